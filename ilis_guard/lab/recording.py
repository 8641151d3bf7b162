"""From a scored table to recorded requests that a simulation can walk."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ilis_guard.errors import SimulationError
from ilis_guard.lab.scored import HELD_OUT, ScoredManifest, ScoredTier, Split, labels_of
from ilis_guard.policy.recordings import ANSWERED, NEVER_RUN, STOPPED_AT_PROMPT, UNKNOWN, Few, Recorded, RecordedTier
from ilis_guard.types import STATISTICS

_FROM_MOST_FLATTERING: Final = get_args(Split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Recorded requests, and what was left out of them."""

    manifest: ScoredManifest
    recorded: Recorded
    left_out: Mapping[Split, int]
    """Requests left out because a bundle had seen them, by the most flattering use that was made of one of their rows:
    training before validation before calibration."""
    flattering: Mapping[Split, int]
    """As `left_out`, of those that are in all the same because all rows were asked for."""


def recording_of(manifest: ScoredManifest, table: pa.Table, *, all_rows: bool = False) -> Recording:
    """Put a scored table's rows together, request by request.

    Args:
        manifest: the table's.
        table: as `scored.read_scored` returns it.
        all_rows: whether requests are kept that a bundle was fitted to or calibrated on, which flatters its score.

    Raises:
        SimulationError: no request is held out.
    """
    ids = table["id"].combine_chunks().dictionary_encode()
    request = ids.indices.to_numpy().astype(np.int64)
    used = _use_made(table, request, len(ids.dictionary))
    is_held_out = np.isin(used, [_FROM_MOST_FLATTERING.index(split) for split in HELD_OUT])
    seen = Counter(_FROM_MOST_FLATTERING[use] for use in used[~is_held_out].tolist())
    if not all_rows:
        if not is_held_out.any():
            raise SimulationError(
                f"none of the {len(used)} requests is held out ({_counted(seen)}): every score was fitted to them, or "
                "nobody knows; score a harvest of other questions, or give --all-rows and expect flattering figures"
            )
        kept = np.flatnonzero(is_held_out)
        table, request = table.filter(pa.array(is_held_out[request])), request[is_held_out[request]]
        renumbered = np.full(len(used), UNKNOWN)
        renumbered[kept] = np.arange(len(kept))
        request, names = renumbered[request], ids.dictionary.take(pa.array(kept)).to_pylist()
    else:
        names = ids.dictionary.to_pylist()
    return Recording(
        manifest=manifest,
        recorded=_recorded(manifest, table, request, names),
        left_out={} if all_rows else seen,
        flattering=seen if all_rows else {},
    )


def _counted(requests: Mapping[Split, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in requests.items())


def _use_made(table: pa.Table, request: Int64[np.ndarray, " rows"], requests: int) -> Int64[np.ndarray, " requests"]:
    """The most flattering use that was made of any of a request's rows; unknown flatters as much as can be."""
    split = table["split"].combine_chunks().dictionary_encode()
    rank = np.array([_FROM_MOST_FLATTERING.index(name) for name in split.dictionary.to_pylist()], dtype=np.int64)
    used = np.full(requests, len(_FROM_MOST_FLATTERING), dtype=np.int64)
    np.minimum.at(used, request, rank[split.indices.to_numpy()])
    return used


def _recorded(
    manifest: ScoredManifest, table: pa.Table, request: Int64[np.ndarray, " rows"], names: list[str]
) -> Recorded:
    count = len(names)
    labels = _few(table, "labels")
    tier = _few(table, "tier")
    prompt_length = np.full(count, UNKNOWN, dtype=np.int64)
    prompt_length[request] = _whole(table, "prompt_length")
    codes = np.zeros(count, dtype=np.int64)
    codes[request] = labels.codes
    return Recorded(
        ids=names,
        labels=Few(values=[labels_of(text) for text in labels.values], codes=codes),
        prompt_length=prompt_length,
        tiers=tuple(_tier(one, table, request, tier, count) for one in manifest.tiers),
    )


def _tier(
    tier: ScoredTier, table: pa.Table, request: Int64[np.ndarray, " rows"], of: Few[str], count: int
) -> RecordedTier:
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

    def few(name: str) -> Few[Any]:
        known = _few(own, name)
        codes = np.full(count, len(known.values), dtype=np.int64)
        codes[at] = known.codes
        return Few(values=[*known.values, ""], codes=codes)

    came_to = np.full(count, NEVER_RUN, dtype=np.int8)
    stage = _few(own, "stage")
    ended = np.array([STOPPED_AT_PROMPT if value == "prompt" else ANSWERED for value in stage.values], dtype=np.int8)
    came_to[at] = ended[stage.codes]
    wrong = np.full(count, UNKNOWN, dtype=np.int8)
    wrong[at] = own["wrong"].cast(pa.int8()).fill_null(UNKNOWN).to_numpy()
    return RecordedTier(
        name=tier.name,
        scores_prompts=tier.prompt_bundle is not None,
        came_to=came_to,
        uncertainty=real("uncertainty"),
        typicality=real("typicality"),
        prompt_uncertainty=real("prompt_uncertainty"),
        prompt_typicality=real("prompt_typicality"),
        statistics=np.column_stack([real(name) for name in STATISTICS]),
        tokens=whole("tokens"),
        seconds=real("seconds"),
        cost=real("cost"),
        prompt_seconds=real("prompt_seconds"),
        prompt_cost=real("prompt_cost"),
        text_length=whole("text_length"),
        finish_reason=few("finish_reason"),
        error=few("error"),
        wrong=wrong,
    )


def _whole(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].fill_null(UNKNOWN).to_numpy())


def _few(table: pa.Table, name: str) -> Few[Any]:
    column = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
    return Few(values=column.dictionary.to_pylist(), codes=column.indices.to_numpy().astype(np.int64))
