"""Adapt a bundle to traffic that nobody labelled: measure its traffic profile."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ilis_guard.errors import AttemptsError, ModelError, ProfileError, RequestError
from ilis_guard.lab.attempts import read_attempts
from ilis_guard.lab.conversations import read_conversation
from ilis_guard.lab.files import replacing
from ilis_guard.lab.harvest import HarvestedModel
from ilis_guard.lab.questions import question_prompt
from ilis_guard.policy.records import first_problem, numbered_lines, read_decisions
from ilis_guard.scoring.bundle import Bundle
from ilis_guard.scoring.profile import LEAST_ANSWERS, MAX_BYTES, TrafficProfile
from ilis_guard.scoring.scorer import LightGBMScorer
from ilis_guard.text import is_blank
from ilis_guard.types import Fingerprint, Generation, Message, RemoteFingerprint, Request

BATCH: Final = 32
"""Requests that are put to a model together."""
Conversation = tuple[Message, ...]
Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all)."""


def adapt(bundle: Bundle, uncertainties: Sequence[float]) -> TrafficProfile:
    """Make the profile of a bundle's traffic.

    Args:
        bundle: what scored the answers, and will score others.
        uncertainties: of at least 20 answers to requests as they come, 0 to 1.

    Raises:
        ProfileError: there are too few, or all are the same.
    """
    if len(uncertainties) < LEAST_ANSWERS:
        raise ProfileError(
            f"a traffic profile needs {LEAST_ANSWERS} scored answers, got {len(uncertainties)}: give more of them"
        )
    if len(set(uncertainties)) == 1:
        raise ProfileError(
            f"all {len(uncertainties)} answers got the same uncertainty, {uncertainties[0]!r}: no share of them is "
            "surer than the others. Give answers to different requests"
        )
    return TrafficProfile(bundle=bundle.digest, model=bundle.metadata.model, uncertainties=tuple(sorted(uncertainties)))


def logged_uncertainties(bundle: Bundle, path: Path) -> list[float]:
    """Read how uncertain a bundle was of the answers in logged decisions.

    Args:
        bundle: of the stage `answer`.
        path: JSON lines, each a decision as `ilis-guard ask --json` prints it.

    Raises:
        AttemptsError: the file can't be read, or a line isn't a decision.
        ProfileError: no answer was scored by this bundle, or it scores prompts.
    """
    if bundle.metadata.stage == "prompt":
        raise ProfileError(
            f"decisions don't say which bundle scored their prompts, and {bundle.digest!r} does: profile it by a "
            "harvest, or by requests that a tier answers now"
        )
    decisions = read_decisions(path)
    known = [
        attempt.uncertainty
        for decision in decisions
        for attempt in decision.attempts
        if decision.bundles.get(attempt.tier) == bundle.digest
        and attempt.stage == "answer"
        and attempt.stopped_at is None
        and attempt.uncertainty is not None
    ]
    if not known:
        others = sorted({str(digest) for decision in decisions for digest in decision.bundles.values()})
        raise ProfileError(
            f"{path}: none of {len(decisions)} decisions has an answer that the bundle {bundle.digest!r} scored; they "
            f"name {others!r:.200}"
        )
    return known


def harvested_uncertainties(bundle: Bundle, path: Path) -> list[float]:
    """Score the answers of a harvest, whatever they are labelled. Those that can't be scored are left out.

    Raises:
        AttemptsError: the file isn't a table of attempts.
        FitError: the table holds no answers.
        ProfileError: it was harvested from another model than the bundle's.
        ScoringError: an answer holds a number that isn't finite.
    """
    table = read_attempts(path)
    _check_model(bundle, table.harvest.fingerprint, str(path))
    return _uncertainties(bundle, [answer for _, answer in table.generations()])


def asked_uncertainties(
    bundle: Bundle,
    model: HarvestedModel,
    requests: Sequence[Conversation],
    *,
    progress: Progress = lambda _done, _all: None,
) -> list[float]:
    """Put requests to a model, and score its answers. What it can't answer is left out.

    Args:
        bundle: what scores them.
        model: the bundle's.
        requests: as they come.
        progress: called first, and after each batch.

    Raises:
        ProfileError: it is another model than the bundle's.
        ModelError: it answered none of a batch.
        ScoringError: an answer holds a number that isn't finite.
    """
    _check_model(bundle, model.fingerprint, "the tier")
    progress(0, len(requests))
    known: list[float] = []
    for start in range(0, len(requests), BATCH):
        answers = model.generate_batch(requests[start : start + BATCH])
        answered = [answer for answer in answers if isinstance(answer, Generation)]
        if not answered:
            raise next(answer for answer in answers if isinstance(answer, ModelError))
        known += _uncertainties(bundle, answered)
        progress(start + len(answers), len(requests))
    return known


def read_requests(path: Path) -> list[Conversation]:
    """Read JSON lines, each with a conversation (`messages`) or a question (`question`, `context`, `choices`).

    All other keys are passed over, labels and right answers too.

    Raises:
        AttemptsError: the file can't be read or is empty, or a line has neither.
    """
    requests = []
    for number, line in numbered_lines(path):
        try:
            requests.append(_RequestLine.model_validate_json(line).conversation())
        except ValidationError as error:
            raise AttemptsError(f"{path}:{number}: {first_problem(error)}") from None
        except RequestError as error:
            raise AttemptsError(f"{path}:{number}: {error}") from None
    if not requests:
        raise AttemptsError(f"{path}: there are no requests in it")
    return requests


class _RequestLine(BaseModel):
    """A line of a file of requests, or of questions, labelled or not."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    messages: list[Any] | None = None
    question: str | None = None
    context: str | None = None
    choices: list[str] | None = None

    def conversation(self) -> Conversation:
        if self.messages is not None:
            return read_conversation(self.messages)
        if self.question is None:
            raise RequestError("there is neither `messages` nor `question` in it")
        return Request.of(question_prompt(self.question, self.context, self.choices)).messages


def write_profile(profile: TrafficProfile, path: Path) -> None:
    """Write a profile; the file appears when it is complete and on disk.

    Raises:
        ProfileError: it would be too large to be read again.
        OSError: it can't be written; an older one stays as it was.
    """
    content = f"{profile.model_dump_json()}\n".encode()
    if (size := len(content)) > MAX_BYTES:
        raise ProfileError(f"the profile would have {size} bytes, more than the {MAX_BYTES} that are read again")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def _uncertainties(bundle: Bundle, answers: Sequence[Generation]) -> list[float]:
    scorer, at_prompt = LightGBMScorer(bundle), bundle.metadata.stage == "prompt"
    return [
        scorer.score(answer).uncertainty
        for answer in answers
        if scorer.can_score(answer) and (at_prompt or not is_blank(answer.text))
    ]


def _check_model(bundle: Bundle, fingerprint: Fingerprint | RemoteFingerprint, where: str) -> None:
    if different := bundle.metadata.fingerprint.hard_differences(fingerprint):
        raise ProfileError(
            f"{where} has another model than the bundle {bundle.digest!r}: {', '.join(different)} differ. A profile is "
            "of the traffic of the bundle's own model"
        )
