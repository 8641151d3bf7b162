"""Observe harvested answers: one more forward pass of each through its model, for the baselines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ilis_guard.errors import BundleMismatchError, FitError
from ilis_guard.lab.attempts import AttemptTable, read_attempts
from ilis_guard.lab.baselines.forward import ForwardRunner, TokenizedAnswer
from ilis_guard.lab.baselines.observations import (
    LENS,
    ObservationManifest,
    file_digest,
    observation_schema,
    observation_table,
)
from ilis_guard.lab.baselines.scores import (
    RAUQ_ALPHA,
    p_false,
    p_true_template,
    proposal,
    scores,
    verdict_tokens,
)
from ilis_guard.lab.harvest import recorded_versions
from ilis_guard.lab.questions import Question
from ilis_guard.lab.storage import PartialTable
from ilis_guard.lab.wordings import conversation_of
from ilis_guard.models.local import LocalModel
from ilis_guard.types import POSITIONS

PASS_TOKENS: Final = 1024
"""Tokens of a forward pass at most, with padding: the activations of more don't stay in a processor's cache, and a pass
of 4096 takes half as long again for each token."""
PASS_LOGITS: Final = 2**27
"""Logits of a forward pass at most: half a gigabyte in float32."""
PART_ROWS: Final = 64
"""Rows that are written to disk together during a run."""

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all): a row of many tokens takes longer than a row of few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """An answered row, tokenized."""

    id: str
    answer: TokenizedAnswer
    judged: Sequence[int]
    """The prompt that asks whether the answer is true."""

    @property
    def tokens(self) -> int:
        return self.answer.length + len(self.judged)


_Observed = tuple[list[_Row], list[dict[str, Any]]]
"""A batch and its observations."""


def observe(
    model: LocalModel,
    harvest: Path,
    questions: Sequence[Question],
    path: Path,
    *,
    progress: Progress = lambda _done, _all: None,
) -> ObservationManifest:
    """Run every harvested answer through its model once more and write what the baselines need of it.

    Rows without an answer are left out. Every `PART_ROWS` rows are written to disk: a run that was stopped or killed
    continues when this is called again.

    Args:
        model: the one that was harvested.
        harvest: the harvested Parquet file.
        questions: those that were harvested; there may be others among them.
        path: the Parquet file to write.
        progress: called first, and after each part.

    Raises:
        AttemptsError: the harvest isn't a table of attempts.
        FitError: the harvest holds no answers, or answers to other questions; or unfinished observations of something
            else stand beside the file.
        BundleMismatchError: the model isn't the one that was harvested.
        PromptTooLongError: question and answer together don't fit into the context.
        SignatureError: an activation is missing, not finite or too large, or the attention returns no weights.
        OSError: the file can't be written.
    """
    attempts = read_attempts(harvest)
    harvested = attempts.harvest
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
        p_true_prompt=p_true_template(model.checkpoint.tokenizer).text,
        versions=recorded_versions(),
    )
    prepared = _prepare(model, harvest, attempts, questions)
    unfinished = PartialTable(path, observation_schema(manifest))
    done = unfinished.begin()
    total = sum(row.tokens for row in prepared)
    waiting = [row for row in prepared if row.id not in done]
    passed = total - sum(row.tokens for row in waiting)
    progress(passed, total)
    vocabulary = model.checkpoint.model.get_output_embeddings().weight.shape[0]
    try:
        for batches in _in_parts(_observe(model, waiting, vocabulary, is_chat=is_chat)):
            unfinished.add(observation_table([row for _, observed in batches for row in observed], manifest))
            passed += sum(row.tokens for batch, _ in batches for row in batch)
            progress(passed, total)
        unfinished.finish([row.id for row in prepared])
    finally:
        unfinished.discard_if_empty()
    return manifest


def _in_parts(observed: Iterator[_Observed]) -> Iterator[list[_Observed]]:
    """Group batches that are written together."""
    part: list[_Observed] = []
    for batch in observed:
        part.append(batch)
        if sum(len(rows) for rows, _ in part) >= PART_ROWS:
            yield part
            part = []
    if part:
        yield part


def _prepare(model: LocalModel, harvest: Path, attempts: AttemptTable, questions: Sequence[Question]) -> list[_Row]:
    by_id = {question.id: question for question in questions}
    judging = p_true_template(model.checkpoint.tokenizer)
    prepared = []
    for id_, answer in attempts.generations():
        if answer.statistics is None or not set(POSITIONS) <= set(answer.signatures):
            continue
        if id_ not in by_id:
            raise FitError(f"{str(harvest)!r} has an answer to {id_!r:.60}, which isn't among the questions")
        *before, asked = conversation_of(by_id[id_], attempts.harvest.wordings)
        tokenized = TokenizedAnswer(
            prompt=model.prompt_tokens([*before, asked]),
            answer=answer.token_ids,
            is_cut=answer.finish_reason == "length",
        )
        if len(tokenized.prompt) != answer.prompt_tokens:
            raise FitError(
                f"the prompt of {id_!r:.60} has {len(tokenized.prompt)} tokens and was harvested with "
                f"{answer.prompt_tokens}: the questions aren't those that were harvested"
            )
        judged = model.prompt_tokens(
            [*before, replace(asked, content=proposal(asked.content, answer.text))], template=judging
        )
        prepared.append(_Row(id=id_, answer=tokenized, judged=judged))
    if not prepared:
        raise FitError(f"{str(harvest)!r} holds no answers")
    return prepared


def _observe(model: LocalModel, rows: Sequence[_Row], vocabulary: int, *, is_chat: bool) -> Iterator[_Observed]:
    runner = ForwardRunner(model)
    score_functions = scores(is_chat=is_chat)
    true, false = verdict_tokens(model.checkpoint.tokenizer)
    for batch in _batches(rows, vocabulary):
        results = runner.run([row.answer for row in batch])
        verdicts = runner.next_token([row.judged for row in batch], [*true, *false])
        p_true = p_false(verdicts[:, : len(true)], verdicts[:, len(true) :]).tolist()
        yield (
            batch,
            [
                {
                    "id": row.id,
                    **{name: score(result.statistics) for name, score in score_functions.items()},
                    "p_true": share,
                    **{str(site): numbers for site, numbers in result.activations.items()},
                    LENS: result.lens,
                }
                for row, result, share in zip(batch, results, p_true, strict=True)
            ],
        )


def _batches(rows: Sequence[_Row], vocabulary: int) -> Iterator[list[_Row]]:
    """Group rows of similar length, so that little is padded.

    The longest come first: a batch that is too large for the memory fails at once.
    """
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (row.answer.length, row.id), reverse=True):
        larger = [*batch, row]
        width = max(max(row.answer.length, len(row.judged)) for row in larger)
        logits = max(len(row.answer.fed) + 1 for row in larger) * vocabulary
        if batch and len(larger) > min(PASS_TOKENS // width, PASS_LOGITS // logits):
            yield batch
            batch = [row]
        else:
            batch = larger
    if batch:
        yield batch
