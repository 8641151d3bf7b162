"""ilis_guard over HTTP: an OpenAI-compatible server, the reviewers' page, and verdicts from other tools."""

from ilis_guard_server.app import create_app
from ilis_guard_server.run import serve

__all__ = ["create_app", "serve"]
