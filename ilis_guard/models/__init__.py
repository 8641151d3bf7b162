"""Who generates: local transformers models (``models.local``) and remote chat models (``models.remote``).

Importing this package imports neither torch nor LangChain.
"""

from ilis_guard.models.base import Model, StepwiseModel, StoppableModel, Tokenizing, UnavailableModel

__all__ = ["Model", "StepwiseModel", "StoppableModel", "Tokenizing", "UnavailableModel"]
