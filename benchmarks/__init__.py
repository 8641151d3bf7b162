"""Benchmarks of the figures in the documentation, as commands: `make benchmarks`, and docs/benchmarks.md."""
