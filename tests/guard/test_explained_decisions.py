"""`explain_decision` and `TicketRecord.explain`: what happened and why, in a few sentences for a reviewer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ilis_guard.errors import ReviewError
from ilis_guard.guard import Guard
from ilis_guard.policy.explain import explain_decision
from ilis_guard.review import ReviewQueue
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.types import Attempt, Request, Score, Verdict

QUESTION = "What is the boiling point of geheimnis?"
POLICY = """\
version: 1
name: p
rules:
  - {id: hard, stage: prompt, when: uncertainty > 0.9, do: retry}
  - {id: legal, when: "labels.topic == 'legal'", do: escalate, to: lawyers}
  - {id: sure, when: uncertainty < 0.2 && !(typicality < 0.05), do: answer}
  - {id: again, when: uncertainty < 0.8, do: retry}
"""


SMALL_WAS_UNSURE = (
    "The tier 'small' answered with an uncertainty of 0.5.",
    "By rule 'again' a larger tier is asked (retry), because `uncertainty < 0.8` is true (uncertainty is 0.5).",
)
LARGE_WAS_SURE = (
    "The tier 'large' answered with an uncertainty of 0.1.",
    "By rule 'sure' the answer is given, because `uncertainty < 0.2` is true (uncertainty is 0.1) and `typicality < "
    "0.05` is false (typicality is 1).",
    "Passed over before it: rule 'hard', as `uncertainty > 0.9` is false (uncertainty is 0.3); rule 'legal', as "
    "`labels.topic == 'legal'` is false (labels.topic is 'cooking').",
)


@pytest.mark.parametrize(
    ("tiers", "topic", "prompts", "told"),
    [
        pytest.param({"large": 0.1}, "cooking", {}, LARGE_WAS_SURE, id="answer"),
        pytest.param(
            {"small": 0.85},
            "cooking",
            {},
            (
                "The tier 'small' answered with an uncertainty of 0.85.",
                "No rule held, so nothing is answered (abstain).",
                "Passed over before it: 1 other; rule 'legal', as `labels.topic == 'legal'` is false (labels.topic is "
                "'cooking'); rule 'sure', as `uncertainty < 0.2 && !(typicality < 0.05)` is false (uncertainty is "
                "0.85, typicality is 1); rule 'again', as `uncertainty < 0.8` is false (uncertainty is 0.85).",
            ),
            id="no rule held",
        ),
        pytest.param(
            {"small": 0.5, "large": 0.1},
            "legal",
            {},
            (
                "The tier 'small' answered with an uncertainty of 0.5.",
                "By rule 'legal' a person is asked (escalate), because `labels.topic == 'legal'` is true (labels.topic "
                "is 'legal').",
                "Passed over before it: rule 'hard', as `uncertainty > 0.9` is false (uncertainty is 0.3).",
                "It waits in the queue 'lawyers' for a person.",
            ),
            id="escalate",
        ),
        pytest.param(
            {"small": 0.5, "large": RuntimeError(f"can't tell {QUESTION}")},
            "cooking",
            {},
            (
                *SMALL_WAS_UNSURE,
                "The tier 'large' failed (UnexpectedError).",
                "No rule held, so nothing is answered (abstain).",
                "Passed over before it: 1 other; rule 'legal', as `labels.topic == 'legal'` is false (labels.topic is "
                "'cooking'); rule 'sure', as `uncertainty < 0.2 && !(typicality < 0.05)` is false (uncertainty is "
                "missing, typicality is missing); rule 'again', as `uncertainty < 0.8` is false (uncertainty is "
                "missing).",
            ),
            id="a retry that fails",
        ),
        pytest.param(
            {"small": 0.5, "middle": 0.6, "large": 0.1},
            "cooking",
            {},
            (
                *SMALL_WAS_UNSURE,
                "The tier 'middle' answered with an uncertainty of 0.6.",
                "By rule 'again' a larger tier is asked (retry), because `uncertainty < 0.8` is true (uncertainty is "
                "0.6).",
                *LARGE_WAS_SURE,
            ),
            id="two retries",
        ),
        pytest.param(
            {"small": 0.1, "large": 0.1},
            "cooking",
            {"small": 0.95},
            (
                "The tier 'small' hadn't answered yet; the prompt has an uncertainty of 0.95.",
                "By rule 'hard' a larger tier is asked (retry), before a token is generated, because `uncertainty > "
                "0.9` is true (uncertainty is 0.95).",
                *LARGE_WAS_SURE,
            ),
            id="at the prompt",
        ),
        pytest.param(
            {"small": 0.1},
            None,
            {},
            (
                "The tier 'small' answered with an uncertainty of 0.1.",
                "No rule held, so nothing is answered (abstain).",
                "Passed over before it: 1 other; rule 'legal', as condition `labels.topic == 'legal'` failed: the "
                "label 'topic' is absent; ask has(labels.topic) first; rule 'sure', as rule 'legal' couldn't be "
                "evaluated, so nothing is answered after it: the label 'topic' is absent; ask has(labels.topic) first; "
                "rule 'again', as it would retry, but there is no larger tier.",
            ),
            id="a label is absent",
        ),
    ],
)
def test_decisions_are_explained_in_a_few_sentences(
    tiers: dict[str, float | Score | Exception | None],
    topic: str | None,
    prompts: dict[str, float],
    told: tuple[str, ...],
    tmp_path: Path,
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    with fake_guard(path, tiers, prompts=dict.fromkeys(tiers, 0.3) | prompts) as guard:
        made = guard.decide(QUESTION, labels={} if topic is None else {"topic": topic})
    assert explain_decision(made) == " ".join(told)
    for attempt in made.attempts:
        assert not attempt.text or attempt.text not in explain_decision(made)
    assert "geheimnis" not in explain_decision(made)


def test_a_rule_that_abstains_says_so(fixture: Callable[[str], Path]) -> None:
    with fake_guard(fixture("abstain"), {"small": 0.6}) as guard:
        told = explain_decision(guard.decide(QUESTION))
    assert "By rule 'hopeless' nothing is answered (abstain), because " in told


class FullQueue(InMemoryQueue):
    def escalate(self, **_: Any) -> Any:
        raise ReviewError(f"the disk is full of {QUESTION}")


def test_explanation_names_a_ticket_that_was_not_stored(build: Callable[..., Guard]) -> None:
    made = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=FullQueue()).decide(QUESTION)
    assert explain_decision(made) == (
        "The tier 'small' answered with an uncertainty of 0.6. By rule 'person' a person is asked (escalate), because "
        "`uncertainty > 0.5` is true (uncertainty is 0.6). The ticket couldn't be stored (ReviewError), so nothing "
        "is answered (abstain)."
    )


ESCALATED = (
    "The tier 'small' answered with an uncertainty of 0.6. By rule 'person' a person is asked (escalate), because "
    "`uncertainty > 0.5` is true"
)


def test_explanations_of_escalated_tickets_follow_their_state(build: Callable[..., Guard]) -> None:
    with InMemoryQueue() as queue:
        made = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=queue).decide(QUESTION)
        assert made.ticket is not None
        waiting = f"{ESCALATED} (uncertainty is 0.6). It waits in the queue 'chemists' for a person."
        assert queue.get(made.ticket.id).explain() == explain_decision(made) == waiting
        queue.resolve(made.ticket.id, Verdict.REJECT)
        resolved = f"{ESCALATED} (uncertainty is 0.6). A person has resolved it (reject)."
        assert queue.get(made.ticket.id).explain() == resolved
        assert queue.redact(older_than=0) == 1
        # Facts may be labels: they go with the texts, and which rule decided stays.
        redacted = queue.get(made.ticket.id).explain()
        assert redacted.startswith("The tier 'small' answered with an uncertainty of 0.6. By rule 'person' a person")
        assert redacted.endswith("A person has resolved it (reject).")
        assert "wait" not in redacted


def test_explanations_of_redacted_audits_say_that_the_answer_was_given(build: Callable[..., Guard]) -> None:
    with InMemoryQueue() as queue:
        made = build("audit", {"small": (FakeModel("2400 °C"), FixedScorer(0.1))}, review=queue).decide(QUESTION)
        assert made.ticket is not None
        assert (made.action.value, made.ticket.kind) == ("answer", "audited")
        queue.resolve(made.ticket.id, Verdict.ACCEPT)
        assert queue.redact(older_than=0) == 1
        told = queue.get(made.ticket.id).explain()
        assert "the answer is given" in told
        assert "escalate" not in told
        assert told.endswith("A person has checked it (accept).")


def test_ticket_without_rulings_is_explained_by_attempts(tmp_path: Path) -> None:
    with ReviewQueue(f"sqlite:///{tmp_path}/tickets.db") as queue:
        ticket = queue.escalate(
            decision="d",
            request=Request.of(QUESTION),
            attempts=[Attempt(tier="small", text="secret", error=None)],
            queue="q",
            policy="p",
            rule="r",
        )
        assert queue.get(ticket.id).explain() == (
            "The tier 'small' answered; its answer has no uncertainty. In the end a person is asked (escalate). It "
            "waits in the queue 'q' for a person."
        )


def test_rendering_for_callers_has_kinds_and_no_details(build: Callable[..., Guard]) -> None:
    secret = "sk-key at /srv/queue on db.internal"
    failed = build("escalate", {"small": (FakeModel(RuntimeError(secret)), FixedScorer(0.6))}, review=FullQueue())
    made = failed.decide(QUESTION)
    error = made.attempts[0].error
    assert error is not None
    assert (error.kind, error.detail) == ("UnexpectedError", f"RuntimeError: {secret}")
    assert error.for_callers() == {"kind": "UnexpectedError", "message": "The request failed."}
    unstored = build("escalate", {"small": (FakeModel("2400 °C"), FixedScorer(0.6))}, review=FullQueue())
    shown = unstored.decide(QUESTION).for_callers()
    assert shown["ticket_error"] == {
        "kind": "ReviewError",
        "message": "The request could not be put before a person.",
    }
    assert shown["rulings"][0]["outcomes"][-1] == {
        "rule": "person",
        "stage": "answer",
        "outcome": "decided",
        "obstacle": None,
    }
    told = f"{made.for_callers()} {shown}"
    for part in ("sk-key", "/srv", "db.internal", "RuntimeError", "geheimnis", "the disk is full", "detail"):
        assert part not in told
