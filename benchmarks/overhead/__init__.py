"""Measure the cost of guarding: guarded against bare generation of the same tokens, in turn, on one thread.

    python -m benchmarks.overhead run [--seconds 20] [--everything] [--only TEXT] [--to FILE]
    python -m benchmarks.overhead show [FILE]

Around a centre (1 prompt of 64 tokens, 32 new tokens) each case changes one parameter: prompts in a batch, prompt
tokens, new tokens, precision, model; and, in random-weight models, layers and width. Each pair is one guarded and one
bare run, in alternating order, so that a drift of the machine favours neither. Each pair gives a ratio; medians have
95 % bootstrap intervals. The report has processor time beside the wall clock: on a shared machine it varies less.

Every pair is written to `benchmarks/results/overhead.csv`, and drawn in `docs/overhead.png`.

The modules: `cases`, `models`, `pairs` (the measurements), `report` (table, CSV, picture).
"""
