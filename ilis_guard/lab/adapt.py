"""Adapt a bundle to traffic that nobody labelled: measure its traffic profile."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ilis_guard.errors import AttemptsError, ModelError, ProfileError, RequestError, ScoringError
from ilis_guard.lab.attempts import DATASET, read_attempts
from ilis_guard.lab.conversations import read_conversation
from ilis_guard.lab.files import replacing
from ilis_guard.lab.harvest import HarvestedModel
from ilis_guard.lab.questions import question_prompt
from ilis_guard.lab.traffic import check_traffic, profile_by_label, profile_by_prompts
from ilis_guard.policy.records import first_problem, numbered_lines, read_tapped_decisions
from ilis_guard.scoring.bundle import Bundle
from ilis_guard.scoring.columns import Columns
from ilis_guard.scoring.profile import MAX_BYTES, AdaptedProfile
from ilis_guard.scoring.scorer import LightGBMScorer, blended_trees
from ilis_guard.scoring.traffic import Normaliser, kind_name
from ilis_guard.text import is_blank
from ilis_guard.types import Fingerprint, Generation, Label, Labels, RemoteFingerprint, Request, Wording

BATCH: Final = 32
"""Requests that are put to a model together."""
Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Answers to requests as they come."""

    answers: Sequence[tuple[Labels, Generation]]
    """With the labels of their requests."""
    wordings: frozenset[Wording] | None = None
    """Of the requests; None where they aren't known."""
    places: Sequence[int] | None = None
    """Of each answer's decision, row or request in its source, from 0; None where each of them gave an answer."""


def adapt(bundle: Bundle, traffic: Traffic, *, by: str | None = None, seed: int = 0) -> AdaptedProfile:
    """Measure the profile of a bundle's traffic. Answers that can't be scored are left out.

    Args:
        bundle: what will score such traffic.
        traffic: at least 20 answers of the bundle's model.
        by: the label whose values are the kinds of requests; None to find kinds by their prompts.
        seed: of the clusters of prompts.

    Raises:
        ProfileError: there are too few answers, in all or of a kind, all are the same, one holds a number that isn't
            finite, or a request lacks the label.
    """
    scorer = LightGBMScorer(bundle)
    known = [traffic.answers[one] for one in scorable(bundle, traffic)]
    check_traffic(columns := [_columns(scorer, answer, row) for row, (_, answer) in enumerate(known, 1)])
    measured_on, labels = Columns.concatenated(columns), [each for each, _ in known]
    measured = (
        profile_by_prompts(measured_on, seed=seed)
        if by is None
        else profile_by_label(measured_on, by, [_kind_of(each, by, row) for row, each in enumerate(labels, 1)])
    )
    normal = Normaliser(measured).in_units(measured_on, labels)
    uncertainties = bundle.metadata.calibration.apply(blended_trees(bundle).raw_scores(normal, adapted=True))
    _check_uncertainties(uncertainties)
    return AdaptedProfile(
        bundle=bundle.digest,
        model=bundle.metadata.model,
        wordings=_labelled_wordings(bundle, traffic),
        traffic=measured,
        uncertainties=tuple(sorted(uncertainties.tolist())),
    )


def scorable(bundle: Bundle, traffic: Traffic) -> list[int]:
    """Find the answers that a bundle can score."""
    scorer, at_prompt = LightGBMScorer(bundle), bundle.metadata.stage == "prompt"
    return [
        one
        for one, (_, answer) in enumerate(traffic.answers)
        if scorer.can_score(answer) and (at_prompt or not is_blank(answer.text))
    ]


def _check_uncertainties(uncertainties: Float64[np.ndarray, " rows"]) -> None:
    if not np.isfinite(uncertainties).all():
        raise ProfileError("an uncertainty isn't a number: the bundle is damaged; copy it again or fit it anew")
    if (uncertainties == uncertainties[0]).all():
        raise ProfileError(
            f"all {len(uncertainties)} answers got the same uncertainty, {uncertainties[0]:.3f}: no share of them is "
            "surer than the others. Give answers to different requests"
        )


def _labelled_wordings(bundle: Bundle, traffic: Traffic) -> tuple[Wording, ...]:
    """The bundle's wordings that the traffic has, or may have."""
    known = bundle.metadata.wordings
    return known if traffic.wordings is None else tuple(one for one in known if one in traffic.wordings)


def _kind_of(labels: Labels, by: str, row: int) -> str:
    if by not in labels:
        raise ProfileError(f"request {row} has no label {by!r:.60}; it has {sorted(labels)!r:.120}")
    return kind_name(labels[by])


def _columns(scorer: LightGBMScorer, answer: Generation, row: int) -> Columns:
    try:
        return scorer.columns(answer)
    except ScoringError as error:
        raise ProfileError(f"answer {row} can't be measured: {error}") from error


def logged_traffic(bundle: Bundle, path: Path) -> Traffic:
    """Take the answers that a bundle scored, of logged decisions.

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
    decisions = read_tapped_decisions(path)
    known = [
        (place, (decision.labels, attempt.generation))
        for place, decision in enumerate(decisions)
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
    return Traffic(answers=[answer for _, answer in known], places=[place for place, _ in known])


def harvested_traffic(bundle: Bundle, path: Path) -> Traffic:
    """Take the answers of a harvest, whatever they are labelled.

    Raises:
        AttemptsError: the file isn't a table of attempts.
        FitError: the table holds no answers.
        ProfileError: it was harvested from another model than the bundle's.
    """
    table = read_attempts(path)
    _check_model(bundle, table.harvest.fingerprint, str(path))
    labels = [{DATASET: row["dataset"]} for row in table.rows()]
    answers = [(of_row, answer) for of_row, (_, answer) in zip(labels, table.generations(), strict=True)]
    return Traffic(answers=answers, wordings=frozenset(table.wordings()))


def asked_traffic(
    bundle: Bundle,
    model: HarvestedModel,
    requests: Sequence[Request],
    *,
    progress: Progress = lambda _done, _all: None,
) -> Traffic:
    """Put requests to a model, and take its answers. What it can't answer is left out.

    Args:
        bundle: what will score them.
        model: the bundle's.
        requests: as they come.
        progress: called first, and after each batch.

    Raises:
        ProfileError: it is another model than the bundle's.
        ModelError: it answered none of a batch.
    """
    fingerprint = model.fingerprint
    _check_model(bundle, fingerprint, "the tier")
    progress(0, len(requests))
    made: list[tuple[int, tuple[Labels, Generation]]] = []
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        answers = model.generate_batch([request.messages for request in batch])
        answered = [
            (place, (request.labels, answer))
            for place, (request, answer) in enumerate(zip(batch, answers, strict=True), start)
            if isinstance(answer, Generation)
        ]
        if not answered:
            raise next(answer for answer in answers if isinstance(answer, ModelError))
        made += answered
        progress(start + len(answers), len(requests))
    prompt = fingerprint.prompt if isinstance(fingerprint, Fingerprint) else ""
    return Traffic(
        answers=[answer for _, answer in made],
        wordings=frozenset(Wording.of(each.messages, prompt=prompt) for each in requests),
        places=[place for place, _ in made],
    )


def read_requests(path: Path) -> list[Request]:
    """Read JSON lines, each with a conversation (`messages`) or a question (`question`, `context`, `choices`).

    A line's `labels` and `dataset` are labels of its request. All other keys are passed over, right answers too.

    Raises:
        AttemptsError: the file can't be read or is empty, or a line has neither.
    """
    requests = []
    for number, line in numbered_lines(path):
        try:
            requests.append(_RequestLine.model_validate_json(line).request())
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
    labels: dict[str, Label] = Field(default_factory=dict)
    dataset: str | None = None

    def request(self) -> Request:
        labels: Labels = self.labels if self.dataset is None else {DATASET: self.dataset, **self.labels}
        if self.messages is not None:
            return Request.of(read_conversation(self.messages), labels)
        if self.question is None:
            raise RequestError("there is neither `messages` nor `question` in it")
        return Request.of(question_prompt(self.question, self.context, self.choices), labels)


def write_profile(profile: AdaptedProfile, path: Path) -> None:
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


def _check_model(bundle: Bundle, fingerprint: Fingerprint | RemoteFingerprint, where: str) -> None:
    if different := bundle.metadata.fingerprint.hard_differences(fingerprint):
        raise ProfileError(
            f"{where} has another model than the bundle {bundle.digest!r}: {', '.join(different)} differ. A profile is "
            "of the traffic of the bundle's own model"
        )
