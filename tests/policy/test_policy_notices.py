"""Notices of `policy check` on policies that load."""

from pathlib import Path

import pytest

from ilis_guard.policy import Notice, Policy

FOLDER = Path(__file__).parents[2] / "policies"


def notices(*rules: str, keys: str = "description: d") -> tuple[Notice, ...]:
    """Without those on missing rules: for all that is left, and for what isn't calibrated, which few here have."""
    found = all_notices(*rules, keys=keys)
    return tuple(each for each in found if not each.what.startswith(UNDECIDED) and UNCALIBRATED not in each.what)


def all_notices(*rules: str, keys: str = "description: d") -> tuple[Notice, ...]:
    text = f"version: 1\nname: p\n{keys}\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    return Policy.parse(text, path="p.yaml").notices()


def only(*rules: str, keys: str = "description: d") -> Notice:
    (notice,) = notices(*rules, keys=keys)
    return notice


UNDECIDED = "no rule surely decides where, for instance, "
UNCALIBRATED = "the uncertainty is a probability only where it is calibrated"


SURE = "id: sure, when: uncertainty < 0.2, do: answer"
LAST = "id: last, do: abstain"


def test_there_is_nothing_to_say_of_a_sound_policy() -> None:
    assert all_notices("id: sure, when: calibrated && uncertainty < 0.2, do: answer", "id: up, do: retry", LAST) == ()


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_of_a_shipped_policy_there_is_no_warning(name: str) -> None:
    policy = Policy.load(name)
    assert [notice.what for notice in policy.notices() if notice.level == "warning"] == []
    is_unguarded = policy.mode == "shadow" or policy.cold_start is not None
    assert is_unguarded is any(notice.level == "note" for notice in policy.notices())


def test_shadow_mode_is_noted_loudly() -> None:
    notice = only(SURE, keys="mode: shadow")
    assert (notice.level, notice.place) == ("note", "p.yaml:3:7")
    assert notice.what.startswith("SHADOW MODE: this policy gates nothing.")


@pytest.mark.parametrize("rules", [[LAST], ["id: up, do: retry", "id: ask, do: escalate"]])
def test_a_policy_that_never_answers_is_warned_of(rules: list[str]) -> None:
    notice = only(*rules)
    assert (notice.level, notice.place) == ("warning", "p.yaml:4:1")
    assert notice.what.startswith("this policy never answers")


@pytest.mark.parametrize(
    ("rules", "rule", "where"),
    [
        (["id: all, when: uncertainty <= 1.0, do: answer"], "all", ""),
        (["id: all, when: uncertainty >= 0.0, do: answer", LAST], "all", ""),
        (["id: a, when: uncertainty < 0.5, do: answer", "id: b, when: uncertainty >= 0.5, do: answer"], "b", ""),
        (["id: a, when: uncertainty < 0.2 || typicality <= 1.0, do: answer", LAST], "a", ""),
        (["id: a, when: uncertainty < 0.2 || last_tier, do: answer", LAST], "a", " and last_tier is true"),
        (["id: a, when: \"uncertainty < 0.2 || tier == 'big'\", do: answer", LAST], "a", " and tier is 'big'"),
        (["id: a, when: \"uncertainty < 0.2 || tier != 'big'\", do: answer", LAST], "a", " and tier is any other"),
        ([SURE, "id: up, do: retry", "id: b, when: uncertainty <= 1.0, do: answer"], "b", " and last_tier is true"),
        (
            ["id: a, when: uncertainty < 0.2 || (last_tier && attempt > 2), do: answer", LAST],
            "a",
            " and last_tier is true and attempt is 3",
        ),
    ],
)
def test_a_rule_that_lets_every_score_pass_is_warned_of(rules: list[str], rule: str, where: str) -> None:
    notice = only(*rules)
    at = next(index for index, text in enumerate(rules) if text.startswith(f"id: {rule},"))
    column = len("  - {") + rules[at].index("when: ") + len("when: ") + 1
    assert (notice.level, notice.place) == ("warning", f"p.yaml:{5 + at}:{column}")
    assert notice.what.startswith(f"rule '{rule}': wherever there is a score{where}, the answer is given")


@pytest.mark.parametrize(
    "rules",
    [
        # somebody else has the doubtful ones
        ["id: unsure, when: uncertainty >= 0.5, do: escalate", "id: rest, when: uncertainty <= 1.0, do: answer"],
        # what can't be looked through may be as it should
        ["id: a, when: uncertainty < 0.2 || labels.vip == true, do: answer", LAST],
        ["id: a, when: uncertainty * 1.0 <= 0.9, do: answer", LAST],
    ],
)
def test_a_gated_policy_does_not_warn(rules: list[str]) -> None:
    assert notices(*rules) == ()


ALL = "id: rest, when: uncertainty <= 1.0, do: answer"


@pytest.mark.parametrize(
    ("rules", "about"),
    [
        # Without the label the rule fails, and holds back the answer: only that is told.
        (
            ["id: a, when: labels.x == 1, do: escalate", ALL],
            ["has no labels.x"],
        ),
        (
            ["id: a, stage: prompt, when: labels.x == 1, do: abstain", ALL],
            ["has no labels.x"],
        ),
        # Asked for with `has`, it holds nothing back.
        (
            [
                "id: a, when: has(labels.x) && labels.x == 1, do: escalate",
                ALL,
            ],
            ["answers even where the uncertainty is 1.0"],
        ),
    ],
)
def test_a_label_that_may_be_absent_holds_answers_back_or_does_not(rules: list[str], about: list[str]) -> None:
    found = notices(*rules)
    assert len(found) == len(about)
    assert all(words in notice.what for words, notice in zip(about, found, strict=True))


@pytest.mark.parametrize(
    "condition",
    [
        "uncertainty == uncertainty",
        "uncertainty * 1.0 <= 1.0",
        "uncertainty <= 1.0 || labels.x == 1",
        "[0.5, 1.0].exists(limit, uncertainty <= limit)",
        "uncertainty * 1.0 <= 1.0 && text_length > 0",
        "uncertainty * 1.0 <= 1.0 && statistics.margin_min >= 0.0",
        "uncertainty * 1.0 <= 1.0 && !last_tier",
    ],
)
@pytest.mark.parametrize("before", ["id: some, do: escalate, sample: 0.5", "id: up, when: labels.x, do: answer"])
def test_an_opaque_condition_that_lets_the_worst_score_pass_warns(before: str, condition: str) -> None:
    before = before.replace("labels.x", "labels.x == 1 && uncertainty < 0.1")
    notice = only(before, f'id: all, when: "{condition}", do: answer', LAST)
    assert (notice.level, notice.place) == ("warning", "p.yaml:6:21")
    assert notice.what.startswith("rule 'all': answers even where the uncertainty is 1.0, the typicality is 0.0")
    guaranteed = notices(f'id: all, when: "{condition}", do: answer', LAST, keys="guarantee: {max_error: 0.1}")
    assert guaranteed == ()


def test_a_guarantee_is_a_gate_of_its_own() -> None:
    assert notices("id: all, when: uncertainty <= 1.0, do: answer", LAST, keys="guarantee: {max_error: 0.1}") == ()


def test_a_guarantee_whose_failing_is_left_open_is_warned_of() -> None:
    notice = only("id: sure, when: certified, do: answer", keys="guarantee: {max_error: 0.1}")
    assert (notice.level, notice.place) == ("warning", "p.yaml:3:12")
    assert "where nothing is certified and, for instance, uncertainty is 0" in notice.what


def test_a_retry_that_the_budget_never_allows_is_warned_of() -> None:
    notice = only(SURE, "id: up, do: retry", keys="budget: {max_attempts: 1}")
    assert (notice.level, notice.place) == ("warning", "p.yaml:6:18")
    assert notice.what.startswith("rule 'up': never retries, because the budget allows one attempt")
    assert notices(SURE, "id: up, do: retry", keys="budget: {max_attempts: 2}") == ()


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ("id: last, do: abstain, say: 'call ${PHONE}'", "6:34"),
        ("id: last, do: escalate, to: '${QUEUE}'", "6:34"),
        ("id: last, when: \"tier == '${QUEUE}'\", do: abstain", "6:22"),
    ],
)
def test_a_placeholder_warns(rule: str, place: str) -> None:
    notice = only(SURE, rule)
    assert (notice.level, notice.place) == ("warning", f"p.yaml:{place}")
    assert "stays as it is: a policy knows no environment" in notice.what


def test_a_label_whose_presence_no_rule_tests_warns() -> None:
    notice = only("id: legal, when: labels.topic == 'legal', do: escalate", SURE)
    assert (notice.level, notice.place) == ("warning", "p.yaml:5:23")
    assert notice.what.startswith("rule 'legal': where a request has no labels.topic, the condition fails, and nothing")
    other = "id: other, when: has(labels.topics) && labels.topic == 'legal', do: escalate"
    assert only(other, SURE).what.startswith("rule 'other': where a request has no labels.topic, ")


@pytest.mark.parametrize(
    "rules",
    [
        ["id: legal, when: has(labels.topic) && labels.topic == 'legal', do: escalate", SURE],
        ["id: none, when: '!has( labels.topic )', do: abstain", "id: a, when: labels.topic == 'a', do: retry", SURE],
        # Where it's missing this doesn't answer, and keeps nobody from it.
        ["id: vip, when: labels.vip == true && uncertainty < 0.5, do: answer", SURE],
    ],
)
def test_a_label_whose_presence_is_tested_does_not_warn(rules: list[str]) -> None:
    assert notices(*rules) == ()


@pytest.mark.parametrize(
    ("rules", "keys", "said"),
    [
        ([SURE], "description: d", "though it only ranks there: ask `calibrated && ...`"),
        (
            ["id: sure, when: certified, do: answer", "id: up, when: uncertainty < 0.2, do: retry", LAST],
            "guarantee: {max_error: 0.1}",
            "the guarantee lets no such answer through",
        ),
    ],
)
def test_a_policy_that_never_asks_what_is_calibrated_gets_a_note(rules: list[str], keys: str, said: str) -> None:
    (notice,) = (notice for notice in all_notices(*rules, keys=keys) if UNCALIBRATED in notice.what)
    assert notice.level == "note"
    assert said in notice.what


@pytest.mark.parametrize(
    "rules",
    [
        ["id: sure, when: calibrated && uncertainty < 0.2, do: answer", LAST],
        ["id: no, when: '!calibrated', do: abstain", SURE, LAST],
        ["id: surest, when: rank < 0.5, do: answer", LAST],
    ],
)
def test_a_policy_that_asks_what_is_calibrated_gets_none(rules: list[str]) -> None:
    assert all_notices(*rules) == ()


def test_a_rule_that_answers_all_that_is_not_calibrated_is_warned_of() -> None:
    rules = ["id: any, when: '!calibrated && uncertainty <= 1.0', do: answer", SURE, LAST]
    notice = only(*rules)
    assert notice.level == "warning"
    assert (
        "wherever there is a score and calibrated is false, the answer is given, whatever the score says" in notice.what
    )
