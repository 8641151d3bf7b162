"""How well each method tells a model's wrong answers from its right ones: the tables in benchmarks/results/laboratory.

    python -m benchmarks.laboratory --tier gemma-3-270m-full [--data FOLDER] [--applied-to TIER] [--to FOLDER]

Makes the sets of questions, harvests and observes a tier of benchmarks/bundles.yaml on each, evaluates all methods on
all that count, and writes what is committed. Harvests and observations stay in the folder: a run that was stopped or
killed goes on where it was when the same command is given again, and the evaluation is always made anew, by the code
as it is now. With `--applied-to`, another tier answers too, and what was fitted to the first is applied to the other.

The modules: `generated` and `sets` (what is asked), `answers` (harvests and observations), `targets` (what was
expected), `tables` (what is committed and shown). See docs/laboratory.md.
"""
