"""The paper's own table: a signature's scorer less a probe, by the sets trained on and tested on, at two precisions.

    make paper-table MODEL=Qwen/Qwen3-14B DATA=questions
    python -m benchmarks.paper_table --model MODEL --data FOLDER [--prompt TEXT] [--max-new-tokens N]

MODEL is a folder, a hub id, or ``packaged:NAME``; DATA a folder of question files (JSONL, as `ilis-guard harvest` reads
them), one a set. The modules: `sets` (what is asked, and which sets count), `models` (wording and memory), `matrix`
(trials), `differences` (their figures), `published` (the paper's figures), `tables` and `page` (what is written). See
docs/paper-table.md.
"""
