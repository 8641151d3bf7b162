"""What a stream shows: its events in every mode, and that its decision is the one that `decide` would have made."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import tenacity
from hypothesis import given, settings, strategies as st
from structlog.testing import capture_logs

from ilis_guard import Guard, Policy, Retraction, TextDelta, events
from ilis_guard.cascade.early_stop import CONVINCING, PATIENCE
from ilis_guard.cascade.stream import StreamEvent
from ilis_guard.cascade.tier import Tier
from ilis_guard.config.tiers import BreakerSettings, TierCost
from ilis_guard.errors import ModelError, RequestError, ScoringError, TransientModelError
from ilis_guard.policy.explain import explain_decision
from ilis_guard.testing import FakeModel, FixedScorer, InMemoryQueue, fake_guard
from ilis_guard.text import is_blank
from ilis_guard.types import Action, Decision, Generation, Message, Obstacle, Score, ShadowNote, Step, StreamMode
from tests.explained import problem

QUESTION = "What is the boiling point of gallium?"
MODES: tuple[StreamMode, ...] = ("hold", "optimistic", "early_stop")
RULES = """
  - {id: failed, when: error != "", do: retry}
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
  - {id: person, when: uncertainty < 0.9, do: escalate, say: Somebody will look at it.}
  - {id: hopeless, do: abstain, say: I don't know.}
"""
WORDS = "one two three four five six seven eight"
SO_FAR = [" ".join(WORDS.split()[:count]) for count in range(1, 9)]


def policy(rules: str = RULES, head: str = "") -> Policy:
    return Policy.parse(f"version: 1\nname: p\n{head}\nrules:{rules}")


def tier(name: str, model: Any, uncertainty: Any, **settings: Any) -> Tier:
    scorer = None if uncertainty is None else FixedScorer(uncertainty)
    return Tier(name=name, model=model, scorer=scorer, **settings)


def guard(*tiers: Tier, rules: str = RULES, head: str = "", review: InMemoryQueue | None = None) -> Guard:
    queue = InMemoryQueue() if review is None else review
    return Guard(tiers=tiers, policy=policy(rules, head), review=queue, backoff=tenacity.wait_none())


def by_words(*uncertainties: float) -> dict[str, float]:
    """A score for each of the texts so far of an answer of eight words; the last one's is the whole answer's."""
    return dict(zip(SO_FAR, uncertainties, strict=True))


def split(events: Sequence[StreamEvent]) -> tuple[str, list[str], Decision]:
    """The pieces joined, the retractions' reasons, and the decision; the contract's order is seen to."""
    *before, last = events
    assert isinstance(last, Decision)
    kinds = [type(event) for event in before]
    assert kinds == [TextDelta] * kinds.count(TextDelta) + [Retraction] * kinds.count(Retraction)
    assert kinds.count(Retraction) <= 1
    assert all(event.text for event in before if isinstance(event, TextDelta))
    return (
        "".join(event.text for event in before if isinstance(event, TextDelta)),
        [event.reason for event in before if isinstance(event, Retraction)],
        last,
    )


def told(decision: Decision) -> dict[str, Any]:
    """A decision without what differs from one request to the next."""
    found = decision.to_dict()
    for name in ("id", "created_at", "ticket"):
        found.pop(name)
    for attempt in found["attempts"]:
        attempt.pop("seconds")
        attempt.pop("prompt_seconds")
    return found


class Letters:
    """A model whose texts so far are as a byte-level tokenizer makes them: half characters, spaces at the end."""

    fingerprint = None

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def generate(self, messages: Sequence[Message], **_: Any) -> Generation:
        return list(self.stream(messages))[-1].generation

    def stream(self, messages: Sequence[Message]) -> Generator[Step, None, None]:
        whole = FakeModel("x").generate(messages)
        yield Step(token="", generation=replace(whole, text="", tokens=0, finish_reason=None))
        for count, text in enumerate(self.texts, start=1):
            yield Step(token="", generation=replace(whole, text=text, tokens=count, finish_reason=None))
        yield Step(token="", generation=replace(whole, text=self.texts[-1], tokens=len(self.texts)))


class BreaksOff(FakeModel):
    """Fails on its way, so often, after so many words."""

    def __init__(self, text: str, *, after: int, error: Exception, times: int = 1) -> None:
        super().__init__(text)
        self.after, self.error, self.left = after, error, times

    def _break(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def generate(self, messages: Sequence[Message], **options: Any) -> Generation:
        if self._break():
            raise self.error
        return super().generate(messages, **options)

    def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
        breaks = self._break()
        for count, step in enumerate(super().stream(messages, stop=stop)):
            if breaks and count > self.after:
                raise self.error
            yield step


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_shown_whole_and_the_decision_comes_last(mode: StreamMode) -> None:
    text, retractions, made = split(list(fake_guard("default", {"small": 0.1}).stream(QUESTION, mode=mode)))
    assert (text, retractions) == ("answer of small", [])
    assert (made.action, made.text) == (Action.ANSWER, text)


def test_hold_shows_an_answer_in_one_piece_and_nothing_of_anything_else() -> None:
    answered = list(fake_guard("default", {"small": 0.9, "large": 0.1}).stream(QUESTION))
    assert answered[0] == TextDelta(text="answer of large")
    assert len(answered) == 2
    (escalated,) = fake_guard("default", {"small": 0.5}).stream(QUESTION)
    assert isinstance(escalated, Decision)
    assert escalated.action is Action.ESCALATE
    assert escalated.ticket is not None


def test_optimistic_shows_words_as_they_come() -> None:
    shown = list(guard(tier("only", FakeModel(WORDS), 0.1)).stream(QUESTION, mode="optimistic"))
    assert [event.text for event in shown if isinstance(event, TextDelta)] == [
        "one",
        " two",
        " three",
        " four",
        " five",
        " six",
        " seven",
        " eight",
    ]


def test_optimistic_retracts_an_unsure_answer_and_holds_the_next() -> None:
    unsure = by_words(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.7)
    watched = guard(tier("small", FakeModel(WORDS), unsure), tier("large", FakeModel("right"), 0.1))
    text, reasons, made = split(list(watched.stream(QUESTION, mode="optimistic")))
    assert text == WORDS
    assert reasons == ["not_answered"]
    assert (made.action, made.text, made.rules) == (Action.ANSWER, "right", ("larger", "sure"))
    assert told(made) == told(watched.decide(QUESTION))


def test_optimistic_stops_and_retracts_an_answer_ruled_out() -> None:
    unsure = by_words(0.1, 0.1, 0.97, 0.97, 0.97, 0.97, 0.97, 0.1)
    watched = guard(tier("small", FakeModel(WORDS), unsure), tier("large", FakeModel("right"), 0.1))
    text, reasons, made = split(list(watched.stream(QUESTION, mode="optimistic")))
    assert text == "one two"
    assert reasons == ["stopped_early"]
    assert (made.action, made.text) == (Action.ANSWER, "right")
    small, large = made.attempts
    assert (small.stopped_at, small.tokens, small.finish_reason) == (2 + PATIENCE, 2 + PATIENCE, None)
    assert (small.text, small.uncertainty, problem(small)) == (SO_FAR[1 + PATIENCE], 0.97, "")
    assert large.stopped_at is None
    assert "The tier 'small' was stopped after 6 tokens, with an uncertainty of 0.97 so far." in explain_decision(made)


def test_an_unfinished_answer_that_is_merely_unsure_is_not_cut() -> None:
    unsure = by_words(*[CONVINCING - 0.05] * 7, 0.1)
    text, reasons, made = split(list(guard(tier("only", FakeModel(WORDS), unsure)).stream(QUESTION, mode="optimistic")))
    assert (text, reasons, made.text) == (WORDS, [], WORDS)


@pytest.mark.parametrize(("so_far", "is_stopped"), [(0.95, True), (0.7, False)])
def test_an_unfinished_answers_rank_counts_only_where_it_is_convincing(so_far: float, is_stopped: bool) -> None:
    def ranked(rank: float) -> Score:
        return Score(uncertainty=0.9, typicality=1.0, rank=rank, departures=("system",))

    scorer = FixedScorer({SO_FAR[number]: ranked(0.1 if number == 7 else so_far) for number in range(8)})
    only = Tier(name="only", model=FakeModel(WORDS), scorer=scorer)
    rules = "\n  - {id: surest, when: '!calibrated && rank < 0.6', do: answer}\n"
    _, _, made = split(list(guard(only, rules=rules).stream(QUESTION, mode="early_stop")))
    assert (made.attempts[0].stopped_at is not None) is is_stopped
    assert made.action is (Action.ABSTAIN if is_stopped else Action.ANSWER)


def test_one_noisy_word_stops_nothing() -> None:
    noisy = by_words(0.97, 0.1, 0.97, 0.97, 0.1, 0.97, 0.97, 0.1)
    watched = guard(tier("only", FakeModel(WORDS), noisy))
    shown = list(watched.stream(QUESTION, mode="optimistic"))
    assert [event.text for event in shown if isinstance(event, TextDelta)] == [
        "one two",
        " three four five",
        " six seven eight",
    ]
    text, reasons, made = split(shown)
    assert (text, reasons, made.text) == (WORDS, [], WORDS)
    assert made.attempts[0].stopped_at is None


def test_next_tier_is_shown_if_nothing_was_shown_before() -> None:
    watched = guard(tier("small", FakeModel(WORDS), 0.97), tier("large", FakeModel(WORDS), 0.1))
    text, reasons, made = split(list(watched.stream(QUESTION, mode="optimistic")))
    assert (text, reasons, made.text) == (WORDS, [], WORDS)
    assert [attempt.stopped_at for attempt in made.attempts] == [PATIENCE, None]


def test_early_stop_shows_nothing_and_stops_generating() -> None:
    model = FakeModel(WORDS)
    shown = list(guard(tier("only", model, 0.95)).stream(QUESTION, mode="early_stop"))
    (made,) = shown
    assert isinstance(made, Decision)
    assert (made.action, made.rule, made.text) == (Action.ABSTAIN, "hopeless", "I don't know.")
    assert (made.attempts[0].stopped_at, made.attempts[0].tokens) == (PATIENCE, PATIENCE)
    assert len(model.calls) == 1


def test_stopped_answer_is_never_given_even_if_a_rule_holds() -> None:
    """The score that the cut attempt is ruled on comes anew, and a scorer may say something else."""
    scores = iter([0.95] * PATIENCE + [0.0])

    class Fickle:
        def score(self, generation: Generation) -> Any:
            return FixedScorer(next(scores)).score(generation)

    only = Tier(name="only", model=FakeModel(WORDS), scorer=Fickle())
    watched = guard(only, rules="\n  - {id: sure, when: uncertainty < 0.9, do: answer}\n")
    (made,) = watched.stream(QUESTION, mode="early_stop")
    assert isinstance(made, Decision)
    assert (made.action, made.uncertainty) == (Action.ABSTAIN, 0.0)
    assert made.rulings[-1].outcomes[-1].obstacle == Obstacle(kind="stopped_early", tokens=PATIENCE)
    assert made.attempts[0].to_dict()["stopped_at"] == PATIENCE


@pytest.mark.parametrize(
    "condition",
    [
        'finish_reason == "stop" && uncertainty < 0.99',
        "typicality > 0.5 && statistics.logprob_mean < 0.0 && uncertainty < 0.99",
        'finish_reason != "" && uncertainty < 0.99',
        "text_length > 30 && uncertainty < 0.99",
        "tokens >= 8 && uncertainty < 0.99",
        "tokens * 2 > 15 && uncertainty < 0.99",
        "cost > 1.5 && uncertainty < 0.99",
        "seconds > 0.00001 && uncertainty < 0.99",
    ],
)
@pytest.mark.parametrize("mode", ["optimistic", "early_stop"])
def test_facts_known_only_at_the_end_stop_nothing(condition: str, mode: StreamMode) -> None:
    watched = guard(
        tier("only", FakeModel(WORDS), 0.97, cost=TierCost(per_million_tokens=200_000.0)),
        rules=f"\n  - {{id: whole, when: '{condition}', do: answer}}\n",
    )
    text, reasons, made = split(list(watched.stream(QUESTION, mode=mode)))
    assert (text, reasons) == (WORDS, [])
    assert (made.action, made.rule, made.attempts[0].stopped_at) == (Action.ANSWER, "whole", None)


def test_a_rule_that_short_answers_fall_under_cuts_no_long_one() -> None:
    rules = """
  - {id: short, when: text_length < 30, do: abstain}
  - {id: long, when: uncertainty < 0.99, do: answer}
"""
    text, _, made = split(
        list(guard(tier("only", FakeModel(WORDS), 0.97), rules=rules).stream(QUESTION, mode="early_stop"))
    )
    assert (text, made.rule) == (WORDS, "long")


def test_cost_of_an_unfinished_answer_is_open() -> None:
    """At the answer's end, no larger tier may be asked any more, and then the smaller one's answer is good enough."""
    rules = """
  - {id: sure, when: uncertainty < 0.2, do: answer}
  - {id: larger, do: retry}
  - {id: good-enough, when: uncertainty < 0.99, do: answer}
"""
    price = TierCost(per_million_tokens=1_000_000.0)
    tiers = tier("small", FakeModel(WORDS), 0.97, cost=price), tier("large", FakeModel(WORDS), 0.1, cost=price)
    watched = guard(*tiers, rules=rules, head="budget: {max_cost: 8.0}")
    _, _, made = split(list(watched.stream(QUESTION, mode="early_stop")))
    assert (made.rule, made.text, len(made.attempts)) == ("good-enough", WORDS, 1)
    assert told(made) == told(watched.decide(QUESTION))


@pytest.mark.parametrize("mode", MODES)
def test_model_that_fails_before_the_first_word_is_called_again(mode: StreamMode) -> None:
    model = BreaksOff(WORDS, after=0, error=TransientModelError("busy"), times=2)
    text, reasons, made = split(list(guard(tier("only", model, 0.1)).stream(QUESTION, mode=mode)))
    assert (text, reasons, made.text) == (WORDS, [], WORDS)


def test_repeated_call_after_shown_words_shows_nothing_twice() -> None:
    model = BreaksOff(WORDS, after=3, error=TransientModelError("busy"))
    text, reasons, made = split(list(guard(tier("only", model, 0.1)).stream(QUESTION, mode="optimistic")))
    assert (text, reasons) == ("one two three", ["attempt_failed"])
    assert (made.action, made.text) == (Action.ANSWER, WORDS)


def test_a_model_that_fails_for_good_hands_on_to_the_next_tier() -> None:
    model = BreaksOff(WORDS, after=3, error=ModelError("broken"), times=9)
    watched = guard(tier("small", model, 0.1), tier("large", FakeModel("right"), 0.1))
    text, reasons, made = split(list(watched.stream(QUESTION, mode="optimistic")))
    assert (text, reasons) == ("one two three", ["attempt_failed"])
    assert (made.action, made.text, made.rules) == (Action.ANSWER, "right", ("failed", "sure"))
    assert problem(made.attempts[0]) == "ModelError: broken"


def test_a_stranger_of_a_model_that_yields_nothing_is_a_failed_attempt() -> None:
    class Silent(FakeModel):
        def stream(self, messages: Sequence[Message], *, stop: Sequence[str] = ()) -> Generator[Step, None, None]:
            del messages, stop
            yield from ()

    _, _, made = split(list(guard(tier("only", Silent("x"), 0.1)).stream(QUESTION, mode="optimistic")))
    assert problem(made.attempts[0]) == "ModelError: the model of the tier 'only' ended its stream without a step"


def test_breaker_counts_streams_as_calls() -> None:
    model = BreaksOff(WORDS, after=2, error=TransientModelError("busy"), times=99)
    only = tier("only", model, 0.1, breaker=BreakerSettings(failures=3))
    watched = guard(only)
    list(watched.stream(QUESTION, mode="optimistic"))
    assert "is down" in problem(watched.decide(QUESTION).attempts[0])


class Remote:
    """A model that can't be followed."""

    fingerprint = None

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, messages: Sequence[Message]) -> Generation:
        return FakeModel(self.text).generate(messages)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_cant_be_followed_answers_whole(mode: StreamMode) -> None:
    shown = list(guard(tier("only", Remote(WORDS), 0.1)).stream(QUESTION, mode=mode))
    assert shown[0] == TextDelta(text=WORDS)
    assert len(shown) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_tier_without_a_bundle_shows_nothing(mode: StreamMode) -> None:
    (made,) = guard(tier("only", FakeModel(WORDS), None)).stream(QUESTION, mode=mode)
    assert isinstance(made, Decision)
    assert made.action is not Action.ANSWER
    assert made.attempts[0].text == WORDS


def test_unscored_words_are_neither_shown_nor_stopped() -> None:
    broken: dict[str, Any] = {text: ScoringError("a layer overflowed") for text in SO_FAR[:-1]}
    watched = guard(tier("only", FakeModel(WORDS), broken | {WORDS: 0.1}))
    for mode in MODES:
        shown = list(watched.stream(QUESTION, mode=mode))
        assert [event.text for event in shown if isinstance(event, TextDelta)][-1:] == [WORDS]
        assert told(split(shown)[2]) == told(watched.decide(QUESTION))


@pytest.mark.parametrize("mode", MODES)
def test_shadow_mode_streams_the_first_tiers_answer(mode: StreamMode) -> None:
    looking_on = "mode: shadow\nbudget: {max_attempts: 2}"
    watched = guard(tier("small", FakeModel(WORDS), 0.99), tier("large", FakeModel("x"), 0.1), head=looking_on)
    shown = list(watched.stream(QUESTION, mode=mode))
    text, reasons, made = split(shown)
    assert (text, reasons, made.text) == (WORDS, [], WORDS)
    assert len(shown) == (9 if mode == "optimistic" else 2)
    assert made.shadow is not None
    assert made.shadow.action is Action.RETRY
    assert made.attempts[0].stopped_at is None


def test_shadow_mode_streams_a_model_without_a_bundle() -> None:
    watched = guard(tier("only", FakeModel(WORDS), None), head="mode: shadow")
    assert len(list(watched.stream(QUESTION, mode="optimistic"))) == 9


PROMPT_RULES = """
  - {id: too-hard, stage: prompt, when: uncertainty >= 0.8, do: abstain, say: Too hard.}
  - {id: sure, when: uncertainty < 0.2, do: answer}
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", [0.1, 0.9])
def test_rules_of_stage_prompt_are_asked_before_a_word_is_shown(mode: StreamMode, prompt: float) -> None:
    only = tier("only", FakeModel(WORDS), 0.1, prompt_scorer=FixedScorer(prompt), cost=TierCost(per_request=1.0))
    watched = guard(only, rules=PROMPT_RULES)
    text, reasons, made = split(list(watched.stream(QUESTION, mode=mode)))
    assert (text, reasons) == (("", []) if prompt > 0.8 else (WORDS, []))
    assert made.attempts[0].stage == ("prompt" if prompt > 0.8 else "answer")
    assert told(made) == told(watched.decide(QUESTION))


def test_sampled_answer_has_an_audit_ticket() -> None:
    with InMemoryQueue() as queue:
        watched = guard(tier("only", FakeModel(WORDS), 0.1), head="audit: {fraction: 1.0, queue: audits}", review=queue)
        _, _, made = split(list(watched.stream(QUESTION, mode="optimistic")))
        assert made.ticket is not None
        assert queue.get(made.ticket.id).decision == made.id


def test_a_reviewer_cant_accept_half_an_answer() -> None:
    with InMemoryQueue() as queue:
        rules = "\n  - {id: sure, when: uncertainty < 0.2, do: answer}\n  - {id: person, do: escalate}\n"
        only = tier("only", FakeModel(WORDS), 0.97)
        (made,) = guard(only, rules=rules, review=queue).stream(QUESTION, mode="early_stop")
        assert isinstance(made, Decision)
        assert made.ticket is not None
        record = queue.get(made.ticket.id)
        assert record.proposed is None
        assert record.attempts[0]["stopped_at"] == PATIENCE


def test_shadow_policy_has_no_ruling_on_a_stopped_answer() -> None:
    shadow = policy("\n  - {id: all, when: uncertainty < 0.99, do: answer}\n")
    watched = Guard(
        tiers=[tier("only", FakeModel(WORDS), 0.95)], policy=policy(), shadow=shadow, review=InMemoryQueue()
    )
    (made,) = watched.stream(QUESTION, mode="early_stop")
    assert isinstance(made, Decision)
    assert made.shadow is not None
    assert (made.shadow.action, made.shadow.error) == (None, None)
    assert made.shadow.notes == (ShadowNote(kind="answer_stopped_early", tier="only", tokens=PATIENCE),)


def test_stream_is_logged_as_a_decision_with_the_early_stop() -> None:
    with capture_logs() as entries:
        (made,) = guard(tier("only", FakeModel(WORDS), 0.95)).stream(QUESTION, mode="early_stop")
    assert isinstance(made, Decision)
    assert [(entry["event"], entry["decision"]) for entry in entries] == [
        (events.ATTEMPT_FINISHED, made.id),
        (events.DECISION_MADE, made.id),
    ]
    assert entries[0]["stopped_at"] == PATIENCE


def test_invalid_requests_are_refused_at_once() -> None:
    watched = fake_guard("default", {"small": 0.1})
    for refused in (lambda: watched.stream(" "), lambda: watched.astream(" ")):
        with pytest.raises(RequestError, match="the prompt is empty"):
            refused()
    with pytest.raises(RequestError, match="there is no mode 'fast' of a stream; there are hold, optimistic"):
        watched.stream(QUESTION, mode="fast")  # type: ignore[arg-type]


CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cs"])
ONLY_SURE = Policy.parse("version: 1\nname: p\nrules: [{id: sure, when: uncertainty < 0.5, do: answer}]")


def growing(tokens: Sequence[bytes]) -> list[str]:
    """Texts so far as a byte-level tokenizer's decoder makes them, without spaces at either end."""
    return [b"".join(tokens[:count]).decode(errors="replace").strip() for count in range(1, len(tokens) + 1)]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.one_of(CHARACTERS, st.sampled_from(" \n\t\ufffdé☕👩‍🚀"))).filter(lambda text: not is_blank(text)),
    data=st.data(),
    mode=st.sampled_from(MODES),
)
def test_deltas_joined_are_the_text_for_any_token_boundaries(text: str, data: Any, mode: StreamMode) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12))) if len(whole) > 1 else []
    tokens = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.9, 0.97]), min_size=len(tokens), max_size=len(tokens)))
    told = iter(scores)

    class Scorer:
        def score(self, generation: Generation) -> Any:
            return FixedScorer(0.1 if generation.finish_reason else next(told)).score(generation)

    only = Tier(name="only", model=Letters(growing(tokens)), scorer=Scorer())
    shown, reasons, made = split(list(Guard(tiers=[only], policy=ONLY_SURE).stream("?", mode=mode)))
    if made.action is Action.ANSWER:
        assert (shown, reasons) == (text.strip(), [])
        assert made.text == shown
    else:
        assert made.attempts[0].stopped_at is not None
        assert len(reasons) == (1 if shown else 0)
        assert text.strip().startswith(shown)


def test_text_that_changes_is_retracted() -> None:
    model = Letters(["do", "do n", "don't"])
    text, reasons, made = split(list(guard(tier("only", model, 0.1)).stream(QUESTION, mode="optimistic")))
    assert (text, reasons) == ("do n", ["answer_differs"])
    assert (made.action, made.text) == (Action.ANSWER, "don't")


UNCERTAINTIES = st.sampled_from([0.05, 0.3, 0.7, 0.95])
ABSTAINING = Policy.parse(f"version: 1\nname: p\nrules:{RULES}".replace("do: escalate, say", "do: abstain, say"))


@settings(max_examples=150, deadline=None)
@given(
    small=st.lists(UNCERTAINTIES, min_size=8, max_size=8),
    large=st.lists(UNCERTAINTIES, min_size=8, max_size=8),
    fails=st.sampled_from([None, ModelError("broken"), TransientModelError("busy")]),
    after=st.integers(0, 8),
    mode=st.sampled_from(MODES),
)
def test_where_nothing_was_cut_the_decision_is_the_one_that_decide_makes(
    small: list[float], large: list[float], fails: Exception | None, after: int, mode: StreamMode
) -> None:
    def built() -> Guard:
        model: Callable[[], FakeModel] = (
            (lambda: FakeModel(WORDS)) if fails is None else lambda: BreaksOff(WORDS, after=after, error=fails)
        )
        return Guard(
            tiers=[
                tier("small", model(), by_words(*small), cost=TierCost(per_request=1.0, per_million_tokens=1.0)),
                tier("large", FakeModel(WORDS), by_words(*large)),
            ],
            policy=ABSTAINING,
            backoff=tenacity.wait_none(),
        )

    text, reasons, made = split(list(built().stream(QUESTION, mode=mode)))
    if all(attempt.stopped_at is None for attempt in made.attempts):
        assert told(made) == told(built().decide(QUESTION))
    if made.action is Action.ANSWER and not reasons:
        assert text == made.text
    if made.action is not Action.ANSWER:
        assert bool(reasons) is bool(text)
