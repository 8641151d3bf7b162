"""Observing: each harvested answer goes through its model once more, for the methods that signatures compete with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.baselines.observations import (
    ObservationManifest,
    file_digest,
    observation_schema,
    observation_table,
)
from ilis_guard.lab.baselines.p_true import proposal, share_of_false, template, verdict_tokens
from ilis_guard.lab.baselines.passes import Given, Passes
from ilis_guard.lab.baselines.unsupervised import RAUQ_ALPHA, scores
from ilis_guard.lab.harvest import HarvestedRow, read_rows, recorded_versions
from ilis_guard.lab.questions import Question
from ilis_guard.lab.unfinished import Unfinished
from ilis_guard.models.local import LocalModel
from ilis_guard.types import POSITIONS, Message

PASS_TOKENS: Final = 1024
"""Tokens of a pass at most, padding counted: with more, what lies between two layers doesn't stay in a processor's
cache, and a pass of 4096 takes half as long again for each token."""
PASS_LOGITS: Final = 2**27
"""Logits of a pass at most: half a gigabyte in float32."""
PART_ROWS: Final = 64
"""Rows that are kept on disk together while others are still observed."""

Progress = Callable[[int, int], None]
"""Told (tokens passed through the model, tokens in all): a row of many takes longer than a row of few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An answered row, ready to pass through the model."""

    id: str
    given: Given
    judged: Sequence[int]
    """The prompt that asks whether the answer is true."""

    @property
    def tokens(self) -> int:
        return self.given.length + len(self.judged)


_Seen = tuple[list[_Row], list[dict[str, Any]]]
"""A batch, and what was seen of it."""


def observe(
    model: LocalModel,
    harvest: Path,
    questions: Sequence[Question],
    path: Path,
    *,
    progress: Progress = lambda _done, _all: None,
) -> ObservationManifest:
    """Put every harvested answer through its model once more and write what was seen.

    Rows without an answer are left out.

    What is observed is on disk every so many rows: a run that was stopped or killed is gone on with by calling again.

    Args:
        model: the one that was harvested.
        harvest: the harvested Parquet file, with the token ids of its answers.
        questions: what was asked; others may be among them.
        path: the Parquet file to write.
        progress: told after each pass.

    Raises:
        FitError: the harvest holds no token ids, no answers, or answers to other questions; or unfinished observations
            of something else stand beside the file.
        BundleMismatchError: the model isn't the one that was harvested.
        PromptTooLongError: question and answer together don't fit into the context.
        SignatureError: an activation is missing, not finite or too large, or there are no attention weights.
        OSError: the file can't be written.
    """
    harvested, rows = read_rows(harvest)
    if differing := harvested.fingerprint.differences(model.fingerprint):
        raise BundleMismatchError(
            f"{str(harvest)!r} was harvested from another model: they differ in {', '.join(differing)}; observe "
            "it with the tier that was harvested"
        )
    is_chat = model.checkpoint.tokenizer.chat_template is not None
    manifest = ObservationManifest(
        harvest=harvested,
        harvest_sha256=file_digest(harvest),
        rauq_alpha=RAUQ_ALPHA[is_chat],
        p_true_prompt=template(model.checkpoint.tokenizer).text,
        versions=recorded_versions(),
    )
    prepared = _prepared(model, harvest, rows, questions)
    unfinished = Unfinished(path, observation_schema(manifest))
    done = unfinished.begin()
    total = sum(row.tokens for row in prepared)
    waiting = [row for row in prepared if row.id not in done]
    passed = total - sum(row.tokens for row in waiting)
    progress(passed, total)
    vocabulary = model.checkpoint.model.get_output_embeddings().weight.shape[0]
    try:
        for batches in _in_parts(_observed(model, waiting, vocabulary, is_chat=is_chat)):
            unfinished.add(observation_table([row for _, observed in batches for row in observed], manifest))
            passed += sum(row.tokens for batch, _ in batches for row in batch)
            progress(passed, total)
        unfinished.finish([row.id for row in prepared])
    finally:
        unfinished.drop_if_empty()
    return manifest


def _in_parts(observed: Iterator[_Seen]) -> Iterator[list[_Seen]]:
    """Batches that are kept together."""
    part: list[_Seen] = []
    for batch in observed:
        part.append(batch)
        if sum(len(rows) for rows, _ in part) >= PART_ROWS:
            yield part
            part = []
    if part:
        yield part


def _prepared(
    model: LocalModel, harvest: Path, rows: Sequence[HarvestedRow], questions: Sequence[Question]
) -> list[_Row]:
    asked = {question.id: question for question in questions}
    judging = template(model.checkpoint.tokenizer)
    prepared = []
    for row in rows:
        if not _is_answered(row):
            continue
        answer = row.generation
        if not answer.token_ids:
            raise FitError(
                f"{str(harvest)!r} was harvested before token ids were kept, so that its answers can't be read again: "
                "harvest anew"
            )
        if row.id not in asked:
            raise FitError(f"{str(harvest)!r} has an answer to {row.id!r:.60}, which isn't among the questions")
        prompt = asked[row.id].prompt()
        given = Given(
            prompt=model.prompt_tokens([Message(role="user", content=prompt)]),
            answer=answer.token_ids,
            is_cut=answer.finish_reason == "length",
        )
        if len(given.prompt) != answer.prompt_tokens:
            raise FitError(
                f"the prompt of {row.id!r:.60} has {len(given.prompt)} tokens and was harvested with "
                f"{answer.prompt_tokens}: the questions aren't those that were harvested"
            )
        judged = model.prompt_tokens([Message(role="user", content=proposal(prompt, answer.text))], template=judging)
        prepared.append(_Row(id=row.id, given=given, judged=judged))
    if not prepared:
        raise FitError(f"{str(harvest)!r} holds no answers")
    return prepared


def _is_answered(row: HarvestedRow) -> bool:
    return row.generation.statistics is not None and set(POSITIONS) <= set(row.generation.signatures)


def _observed(model: LocalModel, rows: Sequence[_Row], vocabulary: int, *, is_chat: bool) -> Iterator[_Seen]:
    passes = Passes(model)
    of_pass = scores(is_chat=is_chat)
    true, false = verdict_tokens(model.checkpoint.tokenizer)
    for batch in _batches(rows, vocabulary):
        seen = passes.read([row.given for row in batch])
        verdicts = passes.next_token([row.judged for row in batch], [*true, *false])
        p_true = share_of_false(verdicts[:, : len(true)], verdicts[:, len(true) :]).tolist()
        yield (
            batch,
            [
                {
                    "id": row.id,
                    **{name: score(shown.numbers) for name, score in of_pass.items()},
                    "p_true": unlikely,
                    **{str(site): numbers for site, numbers in shown.activations.items()},
                }
                for row, shown, unlikely in zip(batch, seen, p_true, strict=True)
            ],
        )


def _batches(rows: Sequence[_Row], vocabulary: int) -> Iterator[list[_Row]]:
    """Rows of like length together, so that little is padded.

    The longest come first: a batch that is too large for the memory fails at once.
    """
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (row.given.length, row.id), reverse=True):
        grown = [*batch, row]
        width = max(max(row.given.length, len(row.judged)) for row in grown)
        logits = max(len(row.given.fed) + 1 for row in grown) * vocabulary
        if batch and len(grown) > min(PASS_TOKENS // width, PASS_LOGITS // logits):
            yield batch
            batch = [row]
        else:
            batch = grown
    if batch:
        yield batch
