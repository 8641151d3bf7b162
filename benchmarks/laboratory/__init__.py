"""Measure how well each method detects a model's wrong answers: the tables in benchmarks/results/laboratory.

    python -m benchmarks.laboratory --tier gemma-3-270m-full [--data FOLDER] [--applied-to TIER] [--to FOLDER]

The command makes the sets of questions, harvests and observes a tier of benchmarks/bundles.yaml on each, evaluates all
methods on all sets that count, and writes the committed tables. Harvests and observations stay in the folder, so the
same command resumes a run that was stopped; the evaluation always runs again, with the current code. With
`--applied-to`, another tier answers, too, and the methods fitted to the first are applied to the other.

The modules: `sets` (the questions), which draws on `generated`, `expressions` and `programs`, and these on `drafts` and
`forms`; `answers` (harvests and observations), `targets` (the expected results), `tables` (the committed and printed
tables); `qwen` makes the folder of the model for code, which benchmarks/laboratory.yaml names. See docs/laboratory.md.
"""
