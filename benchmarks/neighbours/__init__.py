"""Measure the cost of an answer's uncertainty in ilis_guard and in other libraries, side by side: `make neighbours`.

    python -m benchmarks.neighbours [--pairs 7] [--tokens 48] [--only NAME ...] [--torch "torch==2.13.0"]

All answer the same prompts with the same weights (SmolLM2-135M-Instruct in float32, on a processor, one torch
thread), greedily, and must give the same tokens: an answer that differs, or ends early, is a failure.

- **Environments.** Each library has its own virtual environment under `build/neighbours/`, made on the first
  run from the pins in `requirements/` and kept. Torch is installed first, so that the build can be chosen.
- **Workers.** Each neighbour is a process in its environment for the whole run. It measures `scored`, the library's way
  to answer and score, and `bare`, transformers' `generate` with the attention implementation that the library needs. If
  that isn't sdpa, transformers' default, the plain run with sdpa is measured, too: the library's users pay for the
  other implementation.
- **Rounds.** Each round runs every neighbour, with its runs in sequence, in an order that changes from round to round.
  A ratio is that of two runs of the same round. Round 0 is a warm-up and isn't recorded.
- **Fairness.** Each library is used as its own documentation describes, with everything that its score doesn't need
  disabled where possible. Notes below the table describe how each is used.
- **Failures.** A neighbour that can't be installed or doesn't run has a row with the error. The command then exits with
  status 1, after it has measured the others.

A run of all neighbours with at least 7 pairs writes every measurement to `benchmarks/results/neighbours.csv`; a
shorter or narrower run only prints. The output of the workers and of pip is in `build/neighbours/*.log`.

The modules: `roster` (the libraries), `environments` (their virtual environments), `workers` (the scripts in these),
`worker` (the driver's side), `rounds` (the measurements), `report` (table and CSV).
"""
