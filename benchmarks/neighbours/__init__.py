"""What saying something of an answer's uncertainty costs, here and in other libraries, side by side: `make neighbours`.

    python -m benchmarks.neighbours [--pairs 7] [--tokens 48] [--only NAME ...] [--torch "torch==2.13.0"]

Everyone answers the same prompts with the same weights (SmolLM2-135M-Instruct in float32, on a processor, one torch
thread), greedily, and must give the same tokens: an answer that differs, or ends early, is a failure.

- **Environments.** Each library lives in a virtual environment of its own under `build/neighbours/`, made on the first
  run from the pins in `requirements/` and kept. Torch is installed first, so that the build can be chosen.
- **Workers.** Each neighbour is a process in its environment that stays for the whole run and measures what it's asked
  to: `scored`, the library's way to answer and score, and `bare`, transformers' `generate` with the attention
  implementation that the library needs. Where that isn't sdpa, which transformers chooses by itself, the plain run
  with sdpa is measured too: the price of the other one is paid by whoever uses the library.
- **Rounds.** In each round every neighbour has its turn, and its runs follow one another, in an order that changes
  from round to round. A ratio is that of two runs of the same round. Round 0 warms up and isn't kept.
- **Fairness.** Each library is used as its own documentation shows, with what its score doesn't need switched off
  where that can be. How each is used stands below the table.
- **Failures.** A neighbour that can't be installed or doesn't run is a row that says so. The command then ends with
  status 1, after it has measured the others.

A run of all neighbours with at least 7 pairs writes every measurement to `benchmarks/results/neighbours.csv`; a
shorter or narrower run only prints. What the workers and pip print is kept in `build/neighbours/*.log`.

The modules: `roster` (who), `environments` (where), `workers` (in there), `worker` (our end of them), `rounds` (the
measuring), `report` (table and CSV).
"""
