"""Simulate two policies on a table of attempts and compare them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ilis_guard.config.guard_yaml import GuardConfig
from ilis_guard.errors import SimulationError
from ilis_guard.lab.attempt_schema import HELD_OUT, AttemptManifest, AttemptTier, Split, parse_labels
from ilis_guard.lab.attempts import AttemptTable, read_attempts
from ilis_guard.lab.comparison import Change, Comparison, changes, compare
from ilis_guard.lab.grouping import Groups, equal_rows, join_rows
from ilis_guard.lab.metrics import RESAMPLES
from ilis_guard.policy import Policy
from ilis_guard.policy.binding import PolicyContext
from ilis_guard.policy.recordings import (
    ANSWERED,
    NEVER_RUN,
    STOPPED_AT_PROMPT,
    UNKNOWN,
    Categorical,
    Recording,
    TierRecording,
)
from ilis_guard.policy.simulation import Outcomes, simulate
from ilis_guard.review.export import write
from ilis_guard.scoring import read_bundle
from ilis_guard.types import STATISTICS, Action

Progress = Callable[[str, int, int], None]
"""Called with (step, amount done, amount in all)."""
STEPS: Final = ("the old policy decides", "the new policy decides", "resampling")
_MOST_FLATTERING_FIRST: Final = get_args(Split)
_USE: Final[Mapping[Split, str]] = {
    "train": "trained a bundle",
    "validation": "stopped a bundle's training",
    "calibration": "calibrated a bundle",
    "unknown": "may have done so, which the bundle doesn't say",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSample:
    """The requests of a table that a simulation runs on."""

    manifest: AttemptManifest
    recording: Recording
    groups: Groups
    """Index of the first request of each request's group: those that depend on one another."""
    left_out: Mapping[Split, int]
    """Requests left out because a bundle was fitted to them, by the most flattering split of their attempts."""
    flattering: Mapping[Split, int]
    """As `left_out`, of requests that are kept because all rows were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """The outcomes of two policies and their comparison."""

    sample: SimulationSample
    old: Outcomes
    new: Outcomes
    comparison: Comparison
    caveats: tuple[str, ...]
    """What limits the comparison, in sentences."""

    @property
    def changes(self) -> Iterator[Change]:
        """The requests whose action changes, in order."""
        return changes(self.sample.recording, self.old, self.new)

    def first_changes(self, count: int) -> tuple[Change, ...]:
        """The first of `changes`."""
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
) -> SimulationResult:
    """Simulate two policies on the same requests and compare them.

    Args:
        old: the policy in force.
        new: the policy that may take its place.
        table: a table of attempts that `score` wrote.
        requests_per_hour: the traffic for which reviews are counted.
        config: the guard.yaml whose bundles turn guarantees into thresholds; needed where a policy gives one.
        all_rows: also use requests that a bundle was fitted to.
        seed: of the bootstrap.
        progress: called during each step.

    Raises:
        AttemptsError: the file isn't a table of attempts.
        SimulationError: the table was made with other tiers or bundles than `config` has; no request is held out; or a
            policy gives a guarantee and there is no `config`.
        ConfigError: a policy asks for what the tiers don't have, or guarantees what can't be certified.
        BundleError: a bundle that a guarantee rests on can't be read.
    """
    attempts = read_attempts(table)
    context = _context(attempts.manifest, config)
    thresholds = [_thresholds(policy, context, has_bundles=config is not None) for policy in (old, new)]
    sample = simulation_sample(attempts, all_rows=all_rows)
    recording = sample.recording

    def counter(step: str, total: int) -> Callable[..., None]:
        done = 0

        def advance(more: int = 1) -> None:
            nonlocal done
            done += more
            progress(step, done, total)

        return advance

    outcomes = [
        simulate(policy, recording, thresholds=resolved, progress=counter(step, len(recording)))
        for policy, resolved, step in zip((old, new), thresholds, STEPS, strict=False)
    ]
    comparison = compare(
        recording,
        *outcomes,
        groups=sample.groups,
        requests_per_hour=requests_per_hour,
        seed=seed,
        progress=counter(STEPS[-1], RESAMPLES),
    )
    return SimulationResult(
        sample=sample,
        old=outcomes[0],
        new=outcomes[1],
        comparison=comparison,
        caveats=tuple(_caveats(sample, comparison, old, new)),
    )


def write_changes(path: Path, result: SimulationResult) -> int:
    """Write the requests whose action changes as JSON lines, and return how many there are.

    Raises:
        OSError: the file can't be written.
    """
    return write(path, map(asdict, result.changes))


def simulation_sample(attempts: AttemptTable, *, all_rows: bool = False) -> SimulationSample:
    """Arrange a table's attempts by request and tier, and leave out the requests that aren't held out.

    Args:
        attempts: as `score` wrote them.
        all_rows: whether requests are kept that a bundle was fitted to or calibrated on, which flatters its score.

    Raises:
        SimulationError: no request is held out.
    """
    manifest, table = attempts.manifest, attempts.table
    ids = table["id"].combine_chunks().dictionary_encode()
    request = ids.indices.to_numpy().astype(np.int64)
    groups = _groups(table, request, len(ids.dictionary))
    used = _splits(table, request, groups)
    is_held_out = np.isin(used, [_MOST_FLATTERING_FIRST.index(split) for split in HELD_OUT])
    seen = Counter(_MOST_FLATTERING_FIRST[use] for use in used[~is_held_out].tolist())
    if not all_rows:
        if not is_held_out.any():
            counts = ", ".join(f"{split} {count}" for split, count in seen.items())
            raise SimulationError(
                f"none of the {len(used)} requests is held out ({counts}): every score was fitted to them, or "
                "nobody knows; score a harvest of other questions, or give --all-rows and expect flattering figures"
            )
        kept = np.flatnonzero(is_held_out)
        table, request = table.filter(pa.array(is_held_out[request])), request[is_held_out[request]]
        renumbered = np.full(len(used), UNKNOWN)
        renumbered[kept] = np.arange(len(kept))
        request, names = renumbered[request], ids.dictionary.take(pa.array(kept)).to_pylist()
        groups = join_rows(len(kept), equal_rows(groups[kept].tolist()))
    else:
        names = ids.dictionary.to_pylist()
    return SimulationSample(
        manifest=manifest,
        recording=_recording(manifest, table, request, names),
        groups=groups,
        left_out={} if all_rows else seen,
        flattering=seen if all_rows else {},
    )


def _groups(table: pa.Table, request: Int64[np.ndarray, " rows"], requests: int) -> Groups:
    """The groups of requests that depend on one another; a request without one is alone."""
    of_request: list[str | None] = [None] * requests
    for place, group in zip(request.tolist(), table["group"].to_pylist(), strict=True):
        of_request[place] = group
    return join_rows(requests, equal_rows(of_request))


def _splits(table: pa.Table, request: Int64[np.ndarray, " rows"], groups: Groups) -> Int64[np.ndarray, " requests"]:
    """The most flattering split of the attempts at each request's group, as an index.

    `unknown` counts as most flattering.
    """
    split = table["split"].combine_chunks().dictionary_encode()
    rank = np.array([_MOST_FLATTERING_FIRST.index(name) for name in split.dictionary.to_pylist()], dtype=np.int64)
    used = np.full(len(groups), len(_MOST_FLATTERING_FIRST), dtype=np.int64)
    np.minimum.at(used, groups[request], rank[split.indices.to_numpy()])
    splits: Int64[np.ndarray, " requests"] = used[groups]
    return splits


def _recording(
    manifest: AttemptManifest, table: pa.Table, request: Int64[np.ndarray, " rows"], names: list[str]
) -> Recording:
    count = len(names)
    labels = _categorical(table, "labels")
    tier = _categorical(table, "tier")
    prompt_length = np.full(count, UNKNOWN, dtype=np.int64)
    prompt_length[request] = _whole(table, "prompt_length")
    codes = np.zeros(count, dtype=np.int64)
    codes[request] = labels.codes
    return Recording(
        ids=names,
        labels=Categorical(values=[parse_labels(text) for text in labels.values], codes=codes),
        prompt_length=prompt_length,
        tiers=tuple(_tier(one, table, request, tier, count) for one in manifest.tiers),
    )


def _tier(
    tier: AttemptTier, table: pa.Table, request: Int64[np.ndarray, " rows"], of: Categorical[str], count: int
) -> TierRecording:
    rows = np.flatnonzero(of.codes == of.values.index(tier.name)) if tier.name in of.values else np.arange(0)
    own, at = table.take(pa.array(rows)), request[rows]

    def real(name: str) -> np.ndarray:
        column = np.full(count, np.nan)
        column[at] = own[name].to_numpy()
        return column

    def whole(name: str) -> np.ndarray:
        column = np.full(count, UNKNOWN, dtype=np.int64)
        column[at] = _whole(own, name)
        return column

    def categorical(name: str) -> Categorical[Any]:
        known = _categorical(own, name)
        codes = np.full(count, len(known.values), dtype=np.int64)
        codes[at] = known.codes
        return Categorical(values=[*known.values, ""], codes=codes)

    def boolean(name: str) -> np.ndarray:
        column = np.zeros(count, dtype=bool)
        column[at] = own[name].fill_null(False).to_numpy()
        return column

    reached = np.full(count, NEVER_RUN, dtype=np.int8)
    stage = _categorical(own, "stage")
    ended = np.array([STOPPED_AT_PROMPT if value == "prompt" else ANSWERED for value in stage.values], dtype=np.int8)
    reached[at] = ended[stage.codes]
    wrong = np.full(count, UNKNOWN, dtype=np.int8)
    wrong[at] = own["wrong"].cast(pa.int8()).fill_null(UNKNOWN).to_numpy()
    return TierRecording(
        name=tier.name,
        scores_prompts=tier.prompt_bundle is not None,
        reached=reached,
        uncertainty=real("uncertainty"),
        typicality=real("typicality"),
        calibrated=boolean("calibrated"),
        rank=real("rank"),
        prompt_uncertainty=real("prompt_uncertainty"),
        prompt_typicality=real("prompt_typicality"),
        prompt_calibrated=boolean("prompt_calibrated"),
        prompt_rank=real("prompt_rank"),
        statistics=np.column_stack([real(name) for name in STATISTICS]),
        tokens=real("tokens"),
        seconds=real("seconds"),
        cost=real("cost"),
        prompt_seconds=real("prompt_seconds"),
        prompt_cost=real("prompt_cost"),
        text_length=whole("text_length"),
        finish_reason=categorical("finish_reason"),
        error=categorical("error"),
        wrong=wrong,
    )


def _whole(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].fill_null(UNKNOWN).to_numpy())


def _categorical(table: pa.Table, name: str) -> Categorical[Any]:
    column = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
    return Categorical(values=column.dictionary.to_pylist(), codes=column.indices.to_numpy().astype(np.int64))


def _context(manifest: AttemptManifest, config: GuardConfig | None) -> PolicyContext:
    """The tiers of the table, with the bundles of guard.yaml if there is one."""
    if config is not None:
        _check_same_tiers(manifest, config)
        return PolicyContext.of_config(config)
    return PolicyContext(
        tiers=tuple(tier.name for tier in manifest.tiers),
        bundles=dict,
        prompt_bundles=dict,
        prompts_scored_by=tuple(tier.name for tier in manifest.tiers if tier.prompt_bundle is not None),
        without_cost=(),
        has_queue=True,
    )


def _thresholds(policy: Policy, context: PolicyContext, *, has_bundles: bool) -> Mapping[str, float | None]:
    """The thresholds of a policy's guarantee, by tier; empty where it gives none."""
    if policy.guarantee is not None and not has_bundles:
        raise SimulationError(
            f"the policy {policy.name!r} gives a guarantee, which becomes thresholds only with the bundles of a "
            "guard.yaml; give one (--config), or a policy without `guarantee`"
        )
    # No tickets are made here, so no queue is needed.
    return context.bind(policy, is_shadow=True).thresholds


def _check_same_tiers(manifest: AttemptManifest, config: GuardConfig) -> None:
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


def _caveats(sample: SimulationSample, comparison: Comparison, old: Policy, new: Policy) -> Iterator[str]:
    if sample.left_out:
        yield (
            f"{sum(sample.left_out.values())} requests are left out, because a score flatters itself on rows that "
            f"it has seen: {_by_use(sample.left_out)}."
        )
    if sample.flattering:
        yield (
            f"{sum(sample.flattering.values())} of the {comparison.requests} requests flatter the score, which has "
            f"seen them: {_by_use(sample.flattering)}. Expect more errors on new ones, and no guarantee from these."
        )
    if dependent := comparison.requests - comparison.groups:
        yield (
            f"{dependent} of the {comparison.requests} requests repeat others, or belong to the same owner: there are "
            f"{comparison.groups} independent ones, and the intervals are over those."
        )
    if sample.manifest.origin == "verdicts":
        yield (
            "These requests are those that people gave a verdict on, which a policy chose: they aren't your traffic, "
            "and shares of them aren't shares of it."
        )
    for index, (policy, which) in enumerate(((old, "old"), (new, "new"))):
        yield from _of_policy(comparison, policy, which, index, _tiers_of_unknown_bundles(sample))
    if sample.manifest.origin == "decisions":
        yield (
            "These requests were decided before: what a larger tier would have answered to those that never reached "
            "it isn't known."
        )
    if unknown := [one.name for one in comparison.measures if one.old is None and one.new is None]:
        yield f"Not recorded, and so not reported: {', '.join(unknown)}."
    if old.fingerprint == new.fingerprint:
        yield "The two policies are the same."


def _tiers_of_unknown_bundles(sample: SimulationSample) -> list[str]:
    """The tiers whose answers have scores of an unknown bundle."""
    tiers = zip(sample.manifest.tiers, sample.recording.tiers, strict=True)
    return [tier.name for tier, recorded in tiers if tier.bundle is None and not np.isnan(recorded.uncertainty).all()]


def _of_policy(comparison: Comparison, policy: Policy, which: str, index: int, unknown: Sequence[str]) -> Iterator[str]:
    if policy.guarantee is not None and unknown:
        yield (
            f"Which bundle scored the tiers {unknown!r} isn't on record, or it was more than one: the thresholds of "
            f"the {which} policy's guarantee are those of guard.yaml's bundles, and may not go with these scores."
        )
    if policy.mode == "shadow":
        yield f"The {which} policy is in shadow mode, in which it decides nothing; it is simulated as if it decided."
    if undecided := sum(comparison.undecided[index].values()):
        reasons = "; ".join(f"{why} ({count})" for why, count in comparison.undecided[index].items())
        share = undecided / comparison.requests
        answered = sum(count for pair, count in comparison.transitions.items() if pair[index] is Action.ANSWER)
        coverage = answered / comparison.requests
        yield (
            f"The {which} policy leaves {undecided} of {comparison.requests} requests undecided "
            f"({share:.1%}), and nothing is made up for them: {reasons}. Its coverage is at least {coverage:.1%} and "
            f"at most {coverage + share:.1%}; its error, retries, cost and seconds are those of the others, which may "
            "be the easier ones."
        )
    if unlabelled := comparison.unlabelled[index]:
        yield (
            f"Of {unlabelled} answers of the {which} policy nobody knows whether they are wrong; its error is that of "
            "the others, whom somebody chose to look at."
        )


def _by_use(requests: Mapping[Split, int]) -> str:
    return ", ".join(f"{requests[split]} {use}" for split, use in _USE.items() if split in requests)
