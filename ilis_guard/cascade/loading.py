"""Load a tier's model, bundles and profile, as guard.yaml describes them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import RemoteConfig, RollingProfileConfig, TierConfig
from ilis_guard.errors import BundleMismatchError, ConfigError
from ilis_guard.models import StepwiseModel
from ilis_guard.models.weights import Progress
from ilis_guard.scoring import LightGBMScorer, read_bundle
from ilis_guard.scoring.profile import read_profile
from ilis_guard.scoring.rolling_profile import RollingProfile
from ilis_guard.types import Fingerprint, RemoteFingerprint, Site, Stage

if TYPE_CHECKING:  # importing them imports torch, and LangChain
    from ilis_guard.models.local import LocalModel
    from ilis_guard.models.remote import RemoteModel


def load_tier(config: TierConfig, progress: Progress | None = None) -> Tier:
    """Load a tier's model and bundles, and check that the bundles were fitted to the model.

    Raises:
        ModelError: the model can't be loaded.
        BundleError: a bundle can't be read.
        BundleMismatchError: a bundle was fitted to another model, precision, arguments or stage. Another wording,
            decoding or length of answers makes scores uncalibrated.
        ProfileError: a profile can't be used, or was made with another bundle or model.
    """
    rolling = config.profile if isinstance(config.profile, RollingProfileConfig) else None
    tier = partial(
        Tier,
        name=config.name,
        profile=None if rolling is None else RollingProfile(rolling.file, answers=rolling.rolling),
        cost=config.cost,
        max_concurrent=config.max_concurrent,
        breaker=config.breaker,
    )
    # The bundles first: reading them takes milliseconds, loading a model may take minutes.
    scorer = None if config.bundle is None else load_scorer(config, config.bundle, "answer")
    if config.remote is not None:
        return tier(model=load_remote_model(config.remote), scorer=scorer)
    prompt_scorer = None if config.prompt_bundle is None else load_scorer(config, config.prompt_bundle, "prompt")
    scorers = [found for found in (scorer, prompt_scorer) if found is not None]
    if not scorers:
        return tier(model=_batched(load_local_model(config, progress=progress), config.batch))
    fitted = scorers[0].bundle.metadata.fingerprint
    assert isinstance(fitted, Fingerprint), "a local tier is given no other bundle"
    model = load_local_model(config, fitted=fitted, progress=progress)
    return tier(model=_batched(model, config.batch), scorer=scorer, prompt_scorer=prompt_scorer)


def _batched(model: "LocalModel", size: int) -> StepwiseModel:
    if size == 1:
        return model
    from ilis_guard.models.batching import BatchedModel

    return BatchedModel(model, size)


def load_scorer(config: TierConfig, bundle: str, stage: Stage) -> LightGBMScorer:
    """Load one of a tier's bundles, and check its stage and its kind of model.

    Raises:
        BundleError: it can't be read.
        ProfileError: the tier's traffic profile can't be read, or was made with another bundle.
        BundleMismatchError: it was fitted to another stage, or to a local model where the tier is remote or the other
            way round.
    """
    profile = config.profile_of(stage)
    scorer = LightGBMScorer(read_bundle(bundle), None if profile is None else read_profile(Path(profile)))
    fitted = scorer.bundle.metadata
    if fitted.stage != stage:
        raise BundleMismatchError(
            f"the bundle {bundle!r} of the tier {config.name!r} was fitted to the stage {fitted.stage!r} and stands "
            f"where one for {stage!r} belongs: `bundle` scores answers, `prompt_bundle` prompts"
        )
    is_remote = isinstance(fitted.fingerprint, RemoteFingerprint)
    if is_remote != (config.remote is not None):
        raise BundleMismatchError(
            f"the bundle {bundle!r} was fitted to {'a remote' if is_remote else 'a local'} model, {fitted.model!r}, "
            f"and the tier {config.name!r} is {'local' if is_remote else 'remote'}: harvest that tier, and fit to it"
        )
    return scorer


def load_remote_model(config: RemoteConfig) -> "RemoteModel":
    """Load a remote tier's chat model.

    Raises:
        ModelError: it can't be loaded.
    """
    from ilis_guard.models.remote import RemoteModel

    return RemoteModel.load(config.chat_model, config.arguments, reports_endings=config.reports_endings)


def load_local_model(
    config: TierConfig,
    *,
    fitted: Fingerprint | None = None,
    site: Site = "mlp",
    progress: Progress | None = None,
) -> "LocalModel":
    """Load a local tier's model.

    Args:
        config: the tier's.
        fitted: of the model that a bundle was fitted to, or answers were harvested from; it is tapped like that one.
        site: where it is tapped without `fitted`, to harvest.
        progress: told of long steps.

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
        temperature=1.0 if fitted is None else fitted.temperature,
        dtype=None if fitted is None else fitted.dtype,
        site=site if fitted is None else fitted.site,
        decoding=config.decoding,
        chat_template_kwargs=config.chat_template_kwargs,
        device_map=config.device_map,
        proof=config.proof,
        progress=progress,
    )
