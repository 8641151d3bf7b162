"""What guarding costs: guarded against bare generation of the same tokens, in turn, on one thread.

    python -m benchmarks.overhead run [--seconds 20] [--everything] [--only TEXT] [--to FILE]
    python -m benchmarks.overhead show [FILE]

Around a centre (1 prompt of 64 tokens, 32 new tokens) one thing is changed at a time: prompts in a batch, tokens of the
prompt, new tokens, precision, model; and, in random-weight models, layers and width. Each pair is one guarded and one
bare run, every other pair the other way round, so that a drift of the machine favours neither. A ratio is a pair's;
medians have 95 % bootstrap intervals. Processor time is told beside the wall clock: on a shared machine it is the
steadier one.

Every pair is written to `benchmarks/results/overhead.csv` as it was measured, and drawn in `docs/overhead.png`.

The modules: `cases` (what is measured), `models` (on what), `pairs` (the measuring), `report` (table, CSV, picture).
"""
