"""Verdicts as labelled rows: what a model said, what a person said of it, and why a person was asked at all."""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Row, select

from ilis_guard.review.ledger import TicketStore
from ilis_guard.review.record import judged_in
from ilis_guard.review.schema import tickets
from ilis_guard.types import Verdict

DATASET: Final = "review"
"""What the rows' dataset is called."""
_AT_ONCE: Final = 100
"""Rows in memory."""


def labelled(ledger: TicketStore, *, queue: str | None, signatures: bool) -> Iterator[dict[str, Any]]:
    """See `ReviewQueue.export`."""
    resolved = select(tickets).where(tickets.c.state == "resolved").order_by(tickets.c.ended_at, tickets.c.id)
    if queue is not None:
        resolved = resolved.where(tickets.c.queue == queue)
    with ledger.reading() as connection:
        for row in connection.execution_options(yield_per=_AT_ONCE).execute(resolved):
            yield _labelled(row, signatures=signatures)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL that only its owner may read, and that is on disk when this returns; how many rows."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    written = 0
    try:
        with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _labelled(row: Row[Any], *, signatures: bool) -> dict[str, Any]:
    """A row as a harvest would have it, had it asked this question, with the verdict in place of the gold answer."""
    # Where no attempt answered there is nothing that was right; a harvest says the same of an empty answer.
    judged = judged_in(row.attempts) or {}
    messages = row.request["messages"]
    exported = {
        "id": row.id,
        "dataset": DATASET,
        "kind": "open",
        "question": messages[-1]["content"],
        "messages": messages,
        "answers": _right_answers(row, judged.get("text", "")),
        "text": judged.get("text", ""),
        "correct": row.verdict == Verdict.ACCEPT.value,
        "tier": judged.get("tier"),
        "uncertainty": judged.get("uncertainty"),
        "typicality": judged.get("typicality"),
        "tokens": judged.get("tokens", 0),
        "finish_reason": judged.get("finish_reason"),
        **(judged.get("statistics") or {}),
        # Why it was reviewed: rows of different rules, queues or policies are samples of different populations, and
        # within one of them each row stands for 1 / probability requests.
        "rule": row.rule,
        "probability": row.probability,
        "policy": row.policy,
        "queue": row.queue,
        "labels": row.request["labels"],
        "verdict": row.verdict,
        "reviewer": row.reviewer,
        "reason": row.reason,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "redacted": row.redacted_at is not None,
    }
    if signatures:
        exported |= {name: np.ravel(rows).tolist() for name, rows in judged.get("signatures", {}).items()}
    return exported


def _right_answers(row: Row[Any], proposed: str) -> list[str]:
    """What is known to be right; nothing after a rejection, or once the texts are gone."""
    if row.redacted_at is not None:
        return []
    right = {Verdict.ACCEPT: proposed, Verdict.CORRECT: row.text, Verdict.REJECT: ""}[Verdict(row.verdict)]
    return [right] if right else []


def _sync_folder(folder: Path) -> None:
    """So that the file's name is on disk too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
