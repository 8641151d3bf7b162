"""The survey's row for one architecture: what is tapped, whether the layers' sums confirm it, or why it is rejected."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from benchmarks.architectures.arithmetic import TEXT, arithmetic
from benchmarks.architectures.maps import CLOSE, furthest, generate
from benchmarks.architectures.tiny import tiny
from ilis_guard.errors import SignatureError
from ilis_guard.signature import TapPoint, locate, pattern, prove
from ilis_guard.types import Site

Verdict = Literal["holds", "read", "refused", "wrong", "not built"]
READ: Final[dict[str, str]] = {
    "gemma3n_text": "the MLP's output goes through post_feedforward_layernorm and is added; the sum then corrects four "
    "predicted streams by weights that depend on it",
    "inkling2_text": "every sixth layer keeps the stream so far aside and starts a new one, which its MLP is added to",
}
"""Where what is added can't be told from outputs, what the source says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the survey found of one architecture; ``read`` is ``holds`` by its source instead of by arithmetic."""

    architecture: str
    model: str = ""
    mlp: Verdict = "not built"
    residual: Verdict = "not built"
    taps: str = ""
    added: str = ""
    mixers: str = ""
    besides: str = ""
    why: str = ""


def survey(architecture: str, model_type: str, overrides: dict[str, Any]) -> Row:
    """Build an architecture tiny, tap it at both sites, prove that, and judge it by its layers' own arithmetic."""
    try:
        model = tiny(model_type, overrides)
        generate(model, TEXT)
    except Exception as error:  # noqa: BLE001 - what can't be built is a row of the table
        return Row(architecture=architecture, why=_said(error))
    name = type(model).__name__
    try:
        mlps = _located(model, "mlp")
    except SignatureError as error:
        return Row(architecture=architecture, model=name, mlp="refused", residual="refused", why=_said(error))
    (mlp, mlp_why), (residual, residual_why) = _tapped(model, "mlp"), _tapped(model, "residual")
    made = arithmetic(model, _located(model, "residual"), mlps) if mlp == "holds" else []
    if mlp == "holds" and not all(layer.holds for layer in made):
        mlp, mlp_why = ("read", READ[model_type]) if model_type in READ else ("wrong", "its layers add up otherwise")
    if residual == "holds" and not all(layer.continued for layer in made):
        residual, residual_why = "wrong", "a layer's output isn't the next one's input"
    return Row(
        architecture=architecture,
        model=name,
        mlp=mlp,
        residual=residual,
        taps=pattern(mlps),
        added=_each(layer.added for layer in made),
        mixers=_each(" and ".join(layer.mixers) for layer in made),
        besides=_each(" and ".join((*layer.besides, *layer.unexplained)) for layer in made),
        why=_each([mlp_why, residual_why]),
    )


def _located(model: Any, site: Site) -> tuple[TapPoint, ...]:
    return locate(model, model.config.get_text_config().num_hidden_layers, site)


def _tapped(model: Any, site: Site) -> tuple[Verdict, str]:
    """Whether the taps are proven and recorded maps are those of the reference, and why not."""
    points = _located(model, site)
    try:
        prove(model, points, hidden=model.config.get_text_config().hidden_size)
        far = furthest(model, points)
    except SignatureError as error:
        return "refused", _said(error)
    return ("holds", "") if far < CLOSE else ("wrong", f"maps differ by {far:.1e} from the reference")


def _each(said: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, said)))


def _said(error: Exception) -> str:
    return f"{'' if isinstance(error, SignatureError) else type(error).__name__ + ': '}{' '.join(str(error).split())}"
