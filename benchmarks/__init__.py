"""What the README claims of speed and memory, as commands that anyone can run: `make benchmarks`."""
