"""The command line. Each command calls one function of the packages below and prints its result."""

from ilis_guard.cli.app import main

__all__ = ["main"]
