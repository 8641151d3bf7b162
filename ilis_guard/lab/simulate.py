"""Two policies on a scored table, from the file to all that there is to tell."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.errors import SimulationError
from ilis_guard.lab.caveats import caveats
from ilis_guard.lab.comparison import Change, Comparison, changes, compare
from ilis_guard.lab.metrics import RESAMPLES
from ilis_guard.lab.recording import Recording, recording_of
from ilis_guard.lab.scored import ScoredManifest, read_scored
from ilis_guard.policy import Policy
from ilis_guard.policy.context import PolicyContext
from ilis_guard.policy.simulation import Outcomes, simulate
from ilis_guard.review.export import write
from ilis_guard.scoring import read_bundle

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""
STEPS: Final = ("the old policy decides", "the new policy decides", "resampling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What came of a simulation."""

    recording: Recording
    old: Outcomes
    new: Outcomes
    compared: Comparison
    caveats: tuple[str, ...]

    @property
    def changes(self) -> Iterator[Change]:
        """The requests whose action changes, in order."""
        return changes(self.recording.recorded, self.old, self.new)

    def first_changes(self, count: int) -> tuple[Change, ...]:
        """The first of them."""
        return tuple(islice(self.changes, count))


def simulate_both(
    old: Policy,
    new: Policy,
    table: Path,
    *,
    requests_per_hour: float,
    config: GuardConfig | None = None,
    all_rows: bool = False,
    seed: int = 0,
    progress: Progress = lambda _step, _done, _all: None,
) -> Simulated:
    """Simulate two policies on the same requests and compare them.

    Args:
        old: the policy in force.
        new: the policy that may take its place.
        table: a scored table.
        requests_per_hour: the traffic that reviews are counted for.
        config: the guard.yaml whose bundles turn guarantees into thresholds; needed where a policy gives one.
        all_rows: also on requests that a bundle has seen.
        seed: of the bootstrap.
        progress: told of each step.

    Raises:
        SimulationError: the table is wrong, or was made with other tiers or bundles than `config` has; or a policy
            gives a guarantee and there is no `config`.
        ConfigError: a policy asks for what the tiers don't have, or guarantees what can't be certified.
        BundleError: a bundle that a guarantee rests on can't be read.
    """
    manifest, rows = read_scored(table)
    ground = _ground(manifest, config)
    thresholds = [_thresholds(policy, ground, has_bundles=config is not None) for policy in (old, new)]
    recording = recording_of(manifest, rows, all_rows=all_rows)
    requests = len(recording.recorded)

    def counted(step: str, steps: int) -> Callable[..., None]:
        done = 0

        def tell(more: int = 1) -> None:
            nonlocal done
            done += more
            progress(step, done, steps)

        return tell

    outcomes = [
        simulate(policy, recording.recorded, thresholds=resolved, progress=counted(step, requests))
        for policy, resolved, step in zip((old, new), thresholds, STEPS, strict=False)
    ]
    resampled = counted(STEPS[-1], RESAMPLES)
    compared = compare(
        recording.recorded, *outcomes, requests_per_hour=requests_per_hour, seed=seed, progress=resampled
    )
    return Simulated(
        recording=recording,
        old=outcomes[0],
        new=outcomes[1],
        compared=compared,
        caveats=caveats(recording, compared, old, new),
    )


def _ground(manifest: ScoredManifest, config: GuardConfig | None) -> PolicyContext:
    """The tiers as they were recorded, with the bundles of guard.yaml if there is one."""
    if config is not None:
        _check_same_tiers(manifest, config)
        return PolicyContext.of_config(config)
    return PolicyContext(
        tiers=tuple(tier.name for tier in manifest.tiers),
        bundles=dict,
        prompts_scored_by=tuple(tier.name for tier in manifest.tiers if tier.prompt_bundle is not None),
        without_cost=(),
        has_queue=True,
    )


def _thresholds(policy: Policy, ground: PolicyContext, *, has_bundles: bool) -> Mapping[str, float | None]:
    """What a policy's guarantee comes to, by tier; empty where it gives none."""
    if policy.guarantee is not None and not has_bundles:
        raise SimulationError(
            f"the policy {policy.name!r} gives a guarantee, which becomes thresholds only with the bundles of a "
            "guard.yaml; give one (--config), or a policy without `guarantee`"
        )
    # Tickets aren't made here: no queue is needed.
    return ground.wire(policy, looks_on=True).thresholds


def _check_same_tiers(manifest: ScoredManifest, config: GuardConfig) -> None:
    recorded, configured = [tier.name for tier in manifest.tiers], [tier.name for tier in config.tiers]
    if recorded != configured:
        raise SimulationError(f"the table has the tiers {recorded!r}, and guard.yaml {configured!r}; score it again")
    for tier, now in zip(manifest.tiers, config.tiers, strict=True):
        # Decisions don't say which bundle scored their prompts, and no threshold rests on it.
        prompts = [(now.prompt_bundle, tier.prompt_bundle)] if manifest.origin == "harvest" else []
        for name, digest in ((now.bundle, tier.bundle), *prompts):
            found = None if name is None else read_bundle(name).digest
            if digest is not None and found != digest:
                raise SimulationError(
                    f"the table's tier {tier.name!r} was scored by the bundle {digest}, and guard.yaml has {found}: "
                    "its thresholds don't go with those scores; score the table again"
                )


def write_changes(path: Path, simulated: Simulated) -> int:
    """Write the requests whose action changes as JSON lines; how many.

    Raises:
        OSError: the file can't be written.
    """
    return write(path, map(asdict, simulated.changes))
