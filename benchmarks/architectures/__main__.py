"""Tap a tiny random model of every causal language model of transformers, and check each tap by arithmetic.

    python -m benchmarks.architectures [--to benchmarks/results/architectures.csv]

The exit status is 1 if any tap is wrong. Takes about a minute.
"""

import csv
import dataclasses
import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import transformers
import typer
from rich.progress import track
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.architectures.survey import Row, survey
from benchmarks.common import show

VARIANTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"parallel_attn": False}),
    ("gemma4_text", {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("granite", {"residual_multiplier": 0.3}),
    ("granitemoehybrid", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("granitemoehybrid", {"num_local_experts": 0}),
    ("granitemoeshared", {"shared_intermediate_size": 24}),
    ("llama4_text", {"interleave_moe_layer_step": 2}),
    ("minimax", {"mlp_alpha_factor": 3.5, "mlp_beta_factor": 0.5}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
    ("stablelm", {"use_parallel_residual": True}),
)
"""Options that change how an architecture's layers add up."""


def main(to: Annotated[Path, typer.Option(dir_okay=False)] = Path("benchmarks/results/architectures.csv")) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers types it partly
    warnings.simplefilter("ignore")  # about odd sizes
    architectures: list[tuple[str, str, dict[str, Any]]] = [
        (model_type, model_type, {}) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ]
    variants = [
        (f"{model_type} {' '.join(f'{name}={value}' for name, value in options.items())}", model_type, options)
        for model_type, options in VARIANTS
    ]
    rows = [_surveyed(*one) for one in track([*architectures, *variants], description="architectures")]
    _write(to, rows)
    show(
        f"causal language models of transformers {transformers.__version__}",
        ("architecture", "mlp", "residual", "taps", "the tapped tensor is added", "why"),
        [[row.architecture, row.mlp, row.residual, row.taps, row.added, _short(row.why)] for row in rows],
    )
    for name, of in (("architectures", rows[: len(architectures)]), ("variants", rows[len(architectures) :])):
        for site in ("mlp", "residual"):
            verdicts = Counter(getattr(row, site) for row in of)
            typer.echo(f"{len(of)} {name}, site {site}: " + ", ".join(f"{n} {v}" for v, n in verdicts.most_common()))
    if any("wrong" in (row.mlp, row.residual) for row in rows):
        raise typer.Exit(1)


def _surveyed(architecture: str, model_type: str, options: dict[str, Any]) -> Row:
    try:
        return survey(architecture, model_type, options)
    except Exception as error:  # noqa: BLE001 - neither tapped nor refused in words
        return Row(architecture=architecture, mlp="wrong", residual="wrong", why=f"{type(error).__name__}: {error}")


def _write(to: Path, rows: list[Row]) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["transformers", *(field.name for field in dataclasses.fields(Row))])
        writer.writeheader()
        writer.writerows({"transformers": transformers.__version__, **dataclasses.asdict(row)} for row in rows)


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:99] + "…"


if __name__ == "__main__":
    typer.run(main)
