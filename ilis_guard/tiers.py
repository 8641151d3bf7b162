"""Tiers ready to answer: a model, and the scorer that its bundle makes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ilis_guard.config import TierConfig
from ilis_guard.errors import BundleMismatchError, ConfigError
from ilis_guard.models import Model
from ilis_guard.models.weights import Progress
from ilis_guard.scoring import LightGBMScorer, Scorer, read_bundle
from ilis_guard.types import Dtype, Site

if TYPE_CHECKING:  # importing it imports torch
    from ilis_guard.models.local import LocalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A named model with its scorer."""

    name: str
    model: Model
    scorer: Scorer | None = None
    """None where the model can't be tapped or no bundle was fitted yet: its answers have no score."""


def load_tier(config: TierConfig, progress: Progress | None = None) -> Tier:
    """Load a tier's model and bundle, and see that they belong together.

    Raises:
        ModelError: the model can't be loaded.
        BundleError: the bundle can't be read.
        BundleMismatchError: the bundle was fitted to another model, precision, prompt or length of answers.
    """
    if config.remote is not None:
        from ilis_guard.models.remote import RemoteModel

        return Tier(name=config.name, model=RemoteModel.load(config.remote.chat_model, config.remote.arguments))
    # The bundle first: reading it takes milliseconds, loading a model may take minutes.
    scorer = None if config.bundle is None else LightGBMScorer(read_bundle(config.bundle))
    if scorer is None:
        return Tier(name=config.name, model=load_local_model(config, progress=progress))
    fitted = scorer.bundle.metadata
    if config.max_new_tokens != fitted.max_new_tokens:
        raise BundleMismatchError(
            f"the bundle of the tier {config.name!r} was fitted to answers of at most {fitted.max_new_tokens} tokens, "
            f"and its max_new_tokens is {config.max_new_tokens}: maps and statistics depend on it. Write "
            f"max_new_tokens: {fitted.max_new_tokens}, or harvest and fit a bundle for longer answers"
        )
    model = load_local_model(
        config,
        temperature=fitted.fingerprint.temperature,
        dtype=fitted.fingerprint.dtype,
        site=fitted.fingerprint.site,
        progress=progress,
    )
    scorer.check_fits(model.fingerprint)
    return Tier(name=config.name, model=model, scorer=scorer)


def load_local_model(
    config: TierConfig,
    *,
    temperature: float = 1.0,
    dtype: Dtype | None = None,
    site: Site = "mlp",
    progress: Progress | None = None,
) -> "LocalModel":
    """Load a local tier's model alone, as harvesting does before there is a bundle.

    Raises:
        ConfigError: the tier is remote.
        ModelError: the model can't be loaded.
    """
    from ilis_guard.models.local import LocalModel

    if config.model is None:
        raise ConfigError(f"the tier {config.name!r} is remote: only a local model can be tapped")
    return LocalModel.load(
        config.model,
        precision=config.precision,
        prompt=config.prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=temperature,
        dtype=dtype,
        site=site,
        decoding=config.decoding,
        device_map=config.device_map,
        proof=config.proof,
        progress=progress,
    )
