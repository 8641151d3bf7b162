"""The command line. Thin: every command calls one function of the rooms above and shows what came back."""

from ilis_guard.cli.app import main

__all__ = ["main"]
