"""Export verdicts as labelled rows: the model's answer, the person's verdict, and why the ticket exists."""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Row, select

from ilis_guard.review.record import judged_in
from ilis_guard.review.schema import tickets
from ilis_guard.review.store import BATCH_SIZE, TicketStore
from ilis_guard.types import Verdict

DATASET: Final = "review"
"""Name of the rows' dataset."""


def labelled_rows(store: TicketStore, *, queue: str | None, signatures: bool) -> Iterator[dict[str, Any]]:
    """See `ReviewQueue.export`."""
    resolved = select(tickets).where(tickets.c.state == "resolved").order_by(tickets.c.ended_at, tickets.c.id)
    if queue is not None:
        resolved = resolved.where(tickets.c.queue == queue)
    with store.database.reading() as connection:
        for row in connection.execution_options(yield_per=BATCH_SIZE).execute(resolved):
            yield _labelled_row(row, signatures=signatures)


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL that only its owner may read, and that is on disk when this returns; return the number of rows."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    count = 0
    try:
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _labelled_row(row: Row[Any], *, signatures: bool) -> dict[str, Any]:
    """Return a row as a harvest of this question would have it, with the verdict in place of the gold answer."""
    # Without an answer nothing was correct: a harvest treats an empty answer alike.
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
        "rank": judged.get("rank"),
        "calibrated": judged.get("calibrated", False),
        "departures": judged.get("departures", []),
        "tokens": judged.get("tokens"),
        "finish_reason": judged.get("finish_reason"),
        **(judged.get("statistics") or {}),
        # Why it was reviewed: rows of different kinds, rules, queues or policies are samples of different populations,
        # and within one of them each row stands for 1 / probability requests. (`kind` above is the question's.)
        "ticket_kind": row.kind,
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
    """Return the known right answers: none after a rejection, or after redaction."""
    if row.redacted_at is not None:
        return []
    right = {Verdict.ACCEPT: proposed, Verdict.CORRECT: row.text, Verdict.REJECT: ""}[Verdict(row.verdict)]
    return [right] if right else []


def _sync_folder(folder: Path) -> None:
    """Put the file's name on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
