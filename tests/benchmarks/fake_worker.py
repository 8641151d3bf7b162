"""A worker for the tests of its driver: the real protocol, around a subject that has no model.

python -m tests.benchmarks.fake_worker BEHAVIOUR
"""

import os
import sys
import time
from pathlib import Path

from benchmarks.neighbours.workers.serving import Subject, serve

BEHAVIOUR = sys.argv[1]
SECONDS = 0.2


def scored_tokens(prompt: str, bare: list[int]) -> list[int]:
    match BEHAVIOUR:
        case "fails-at-b" if prompt == "b":
            raise RuntimeError("b is too much")
        case "dies":
            os._exit(3)
        case "sleeps":
            time.sleep(SECONDS)
        case "short":
            return bare[:-1]
        case "other-tokens":
            return [*bare[:-1], bare[-1] + 1]
    return bare


def load(folder: Path, tokens: int) -> Subject:
    if BEHAVIOUR == "cannot-load":
        raise OSError(f"no weights in {folder.name}\nand a second line")

    def bare(prompt: str) -> list[int]:
        return [ord(letter) for letter in (prompt * tokens)[:tokens]]

    def scored(prompt: str) -> list[int]:
        sys.stdout.write("a library that prints\n")
        return scored_tokens(prompt, bare(prompt))

    if BEHAVIOUR == "eager":
        return Subject(attention="eager", runs={"scored": scored, "bare": bare, "bare_sdpa": bare})
    return Subject(attention="sdpa", runs={"scored": scored, "bare": bare})


if __name__ == "__main__":
    serve("pytest", load)
