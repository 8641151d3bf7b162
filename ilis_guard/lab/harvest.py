"""Run a model over labelled questions; keep its answers, whether each is right, and the maps of its layers."""

import hashlib
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

from ilis_guard.cascade.caller import ModelCaller
from ilis_guard.config.tiers import QUESTION
from ilis_guard.errors import FitError, ModelError, QuestionError
from ilis_guard.lab.attempt_schema import AttemptManifest, AttemptTier, HarvestManifest, schema_of
from ilis_guard.lab.attempts import AttemptTable
from ilis_guard.lab.grading import RULES, Judge, grade, is_correct
from ilis_guard.lab.grouping import QuestionText, question_groups, text_digest
from ilis_guard.lab.questions import Question, question_json
from ilis_guard.lab.storage import PartialTable
from ilis_guard.lab.wordings import NamedWording, conversation_of
from ilis_guard.models.base import check_finished
from ilis_guard.models.remote import RemoteModel
from ilis_guard.text import is_blank
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Wording

GIVEN_UP_AFTER: Final = 20
"""Failed answers in a row after which a run stops: the model is down."""
RECORDED_VERSIONS: Final = ("ilis-guard", "torch", "transformers", "bitsandbytes")

Progress = Callable[[int, int], None]
"""Called with (questions done, questions in all)."""


class HarvestedModel(Protocol):
    """A model that answers in batches: a local one, whose layers are tapped, or a `ConcurrentRemoteModel`."""

    @property
    def fingerprint(self) -> Fingerprint | RemoteFingerprint:
        """What its signatures, or the statistics of its answers, are comparable with."""

    @property
    def prompt(self) -> str:
        """The wording around a question."""

    @property
    def max_new_tokens(self) -> int | None:
        """The limit of an answer's tokens; None where the model's own arguments set it."""

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> Sequence[Generation | ModelError]:
        """Answer several conversations; an answer that failed is its error."""


class ConcurrentRemoteModel:
    """A remote model that answers a batch of questions concurrently.

    Args:
        model: called once for each question.
        caller: the tier's, which retries transient failures.
        max_concurrent: limit of concurrent calls; None for a whole batch.
    """

    prompt = QUESTION
    max_new_tokens = None

    def __init__(self, model: RemoteModel, caller: ModelCaller, *, max_concurrent: int | None) -> None:
        self._model = model
        self._caller = caller
        self._max_concurrent = max_concurrent

    @property
    def fingerprint(self) -> RemoteFingerprint:
        """The model's."""
        return self._model.fingerprint

    def generate_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Generation | ModelError]:
        """Answer all conversations; a failure of one stops none of the others."""
        workers = min(len(conversations), self._max_concurrent or len(conversations))
        # An interrupt waits for the calls that are under way, and no further ones are paid for.
        with ThreadPoolExecutor(max_workers=workers) as pool:
            return list(pool.map(self._answer, conversations))

    def _answer(self, turns: Sequence[Message]) -> Generation | ModelError:
        try:
            answer = self._caller.call(partial(self._model.generate, turns))
            check_finished(self._model, answer)
        except ModelError as error:
            return error
        return answer


def harvest(
    model: HarvestedModel,
    questions: Sequence[Question],
    path: Path,
    *,
    name: str,
    batch_size: int = 32,
    judge: Judge = is_correct,
    judged_by: str = RULES,
    group_by: str | None = None,
    wordings: Sequence[NamedWording] = (),
    progress: Progress = lambda _done, _all: None,
) -> HarvestManifest:
    """Put all questions to a model and write a row for each; the file appears when it is complete.

    Each batch is on disk before the next one starts. A run that was stopped, killed or failed continues when this is
    called again: questions that have a row aren't asked again. Where some answers fail, the others are asked for
    before the error is raised.

    Args:
        model: answers in batches of questions of similar length.
        questions: labelled.
        path: the Parquet file.
        name: what the manifest calls the model.
        batch_size: questions asked together.
        judge: decides whether an answer is right.
        judged_by: what the manifest calls the judge.
        group_by: what the manifest calls the questions' owners; None where they have none.
        wordings: each question is put in one of them, drawn by its id; without any, as it is.
        progress: called first, and after each batch.

    Raises:
        QuestionError: two questions have the same id, one has a wording of its own beside `wordings`, some have a
            `probability` and some don't, or the judge failed.
        FitError: an unfinished harvest that was made differently stands beside the file; or the model can't be tapped,
            and its replies hold no log-probabilities.
        OSError: the file can't be written; where that can be known, this is raised before anything is question.
        ModelError: the model failed on a batch, or some answers failed.
        SignatureError: an activation is missing or not finite.
    """
    _check_ids(questions)
    _check_probabilities(questions)
    manifest = HarvestManifest(
        model=name,
        fingerprint=model.fingerprint,
        prompt=model.prompt,
        max_new_tokens=model.max_new_tokens,
        versions=recorded_versions(),
        questions=questions_digest(questions),
        judge=judged_by,
        group_by=group_by,
        wordings=tuple(wordings),
    )
    conversations = {question.id: conversation_of(question, wordings) for question in questions}
    groups = group_names(questions)
    table = AttemptManifest(origin="harvest", tiers=(AttemptTier(name=name),), harvest=manifest)
    unfinished = PartialTable(path, schema_of(table))
    done = unfinished.begin()
    remaining = [question for question in questions if question.id not in done]
    failures: dict[str, ModelError] = {}
    failed_in_a_row = 0
    progress(len(done), len(questions))
    try:
        for batch in _batches(remaining, conversations, batch_size):
            generated = model.generate_batch([conversations[question.id] for question in batch])
            answers = list(zip(batch, generated, strict=True))
            failures |= {question.id: answer for question, answer in answers if isinstance(answer, ModelError)}
            answered = [(question, answer) for question, answer in answers if not isinstance(answer, ModelError)]
            if not answered:
                failed_in_a_row += len(batch)
                if failed_in_a_row >= GIVEN_UP_AFTER:
                    break
                continue
            failed_in_a_row = 0
            _check_logprobs(model.fingerprint, [answer for _, answer in answered])
            rows = [
                _row(name, question, answer, judge=judge)
                | {"group": groups[question.id]}
                | _wording_columns(conversations[question.id])
                for question, answer in answered
            ]
            unfinished.add(AttemptTable.of_rows(table, rows).table)
            done = done.union(question.id for question, _ in answered)
            progress(len(done), len(questions))
        _check_complete(failures)
        unfinished.finish([question.id for question in questions])
    finally:
        unfinished.discard_if_empty()
    return manifest


def group_names(questions: Sequence[Question]) -> dict[str, str]:
    """Name the group of each question by a digest of its first question's text, by id.

    Questions of several harvests that are equal, but for case, spaces and punctuation, have one name. What precedes a
    question in a conversation makes another question of it, but for system messages.
    """
    texts = [
        QuestionText(
            question="\n".join([question.question, *(question.choices or ())]),
            context=question.context or _turns_before(question),
            answers=frozenset(_right_answers(question)),
            owner=question.owner,
        )
        for question in questions
    ]
    names = [text_digest(text) or question.id for text, question in zip(texts, questions, strict=True)]
    groups = question_groups(texts).tolist()
    return {question.id: names[first] for question, first in zip(questions, groups, strict=True)}


def _turns_before(question: Question) -> str:
    # A system message may hold the date, or the user's name: it makes no other question.
    return "\n".join(turn.content for turn in question.conversation()[:-1] if turn.role != "system")


def _right_answers(question: Question) -> Sequence[str]:
    """The right answers as texts: a choice's letter is that of every fourth question."""
    right = question.right_choice
    return question.answers if right is None or question.choices is None else (question.choices[right],)


def questions_digest(questions: Sequence[Question]) -> str:
    """Return the SHA-256 of questions with their answers, in their order, hexadecimal."""
    return hashlib.sha256("\n".join(map(question_json, questions)).encode()).hexdigest()


def recorded_versions() -> dict[str, str]:
    """Return the versions of the packages that a manifest records, and Python's."""
    return {package: _version(package) for package in RECORDED_VERSIONS} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _batches(
    questions: Sequence[Question], conversations: Mapping[str, Sequence[Message]], size: int
) -> Iterator[list[Question]]:
    """Group questions of similar length, so that little is padded.

    The longest come first: a batch that is too large for the memory fails at once.
    """
    lengths = {id_: sum(len(turn.content) for turn in turns) for id_, turns in conversations.items()}
    ordered = sorted(questions, key=lambda question: lengths[question.id], reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _row(tier: str, question: Question, answer: Generation, *, judge: Judge) -> dict[str, Any]:
    statistics = {} if answer.statistics is None else answer.statistics.to_dict()
    # A remote model's NaN is a statistic that its log-probabilities don't give; a tapped model's is an overflow, which
    # `fit` refuses.
    if not answer.signatures:
        statistics = {name: value for name, value in statistics.items() if not math.isnan(value)}
    return {
        "id": question.id,
        "tier": tier,
        "dataset": question.dataset,
        "split": "unseen",
        "stage": "answer",
        **statistics,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "prompt_length": len(question.prompt()),
        "text_length": len(answer.text),
        "finish_reason": answer.finish_reason or "",
        "error": "",
        "labels": "{}",
        "probability": question.probability,
        "wrong": not grade(judge, question, answer.text),
        "text": answer.text,
        "token_ids": answer.token_ids,
        **{position: signature.ravel() for position, signature in answer.signatures.items()},
    }


def _wording_columns(conversation: Sequence[Message]) -> dict[str, Any]:
    wording = Wording.of(conversation, prompt="")  # the manifest has the tier's own
    return {"system": wording.system, "history": wording.history}


def _check_ids(questions: Sequence[Question]) -> None:
    if repeated := sorted(id_ for id_, times in Counter(question.id for question in questions).items() if times > 1):
        raise QuestionError(
            f"{len(repeated)} ids are given to several questions, such as {repeated[0]!r:.60}; make them unique"
        )


def _check_probabilities(questions: Sequence[Question]) -> None:
    """Refuse rows that were chosen with a chance beside rows that weren't chosen: they are no sample of one traffic."""
    unknown = [question.id for question in questions if question.probability is None]
    if 0 < len(unknown) < len(questions):
        raise QuestionError(
            f"{len(unknown)} of {len(questions)} questions have no `probability`, such as {unknown[0]!r:.60}, and the "
            "others were chosen with one: harvest the two apart"
        )


def _check_logprobs(fingerprint: Fingerprint | RemoteFingerprint, answers: Iterable[Generation]) -> None:
    """Refuse a remote model whose replies hold no log-probabilities: nothing is left to score its answers by."""
    texts = [answer for answer in answers if not is_blank(answer.text)]
    if isinstance(fingerprint, Fingerprint) or not texts:
        return
    if all(answer.statistics is None or math.isnan(answer.statistics.logprob_sum) for answer in texts):
        raise FitError(
            "the model's replies hold no logprobs, and nothing else could score them: set `logprobs: true` among the "
            "tier's `remote.arguments`, or what else the chat model calls it, and `top_logprobs: 2` for the margin"
        )


def _check_complete(failures: Mapping[str, ModelError]) -> None:
    for first, error in failures.items():
        answers = "1 answer" if len(failures) == 1 else f"{len(failures)} answers"
        raise ModelError(
            f"{answers} couldn't be had, such as that to {first!r:.60} ({type(error).__name__}: {error}). What was "
            "harvested is kept: run it again, and only what is missing is asked for; or take these questions out"
        ) from error
