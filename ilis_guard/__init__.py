"""ilis_guard decides what to do with an LLM's answer: answer, abstain, retry on a larger model, or escalate.

    from ilis_guard import Guard

    guard = Guard.from_config("guard.yaml")
    decision = guard.decide("What is the capital of Norway?")

The public names stand in one list, `__init__.pyi`. They are imported on first use: importing the package is quick, and
never imports torch. For tests of your own there is `ilis_guard.testing`.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("ilis-guard")

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]  # noqa: PLE0604 - strings, all of them
