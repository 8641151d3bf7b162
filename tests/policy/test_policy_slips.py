"""What `policy check` says of slips of the pen: what was got, where, and what was likely meant."""

from pathlib import Path

import pytest

from ilis_guard.config.guard_yaml import read_config
from ilis_guard.errors import PolicyError
from ilis_guard.policy import Notice, Policy

SURE = "id: sure, when: uncertainty < 0.2, do: answer"
LAST = "id: last, do: abstain"
UNDECIDED = "no rule surely decides where, for instance, "


UNCALIBRATED = "the uncertainty is a probability only where it is calibrated"


def all_notices(*rules: str) -> tuple[Notice, ...]:
    """Without that on what isn't calibrated, which these rules don't ask."""
    text = "version: 1\nname: p\ndescription: d\nrules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    found = Policy.parse(text, path="p.yaml").notices()
    return tuple(notice for notice in found if UNCALIBRATED not in notice.what)


def only(*rules: str) -> Notice:
    (notice,) = all_notices(*rules)
    return notice


def column_of(condition: str, part: str) -> int:
    """Of a part of a rule's condition, where the rule's id has four letters."""
    return len('  - {id: sure, when: "') + condition.index(part) + 1


def refusal(condition: str) -> tuple[int, str]:
    """The column in a condition on a line of its own, and what is said."""
    text = f"version: 1\nname: p\nrules:\n  - id: r\n    when: {condition}\n    do: abstain\n"
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text, path="p.yaml")
    (line,) = str(caught.value).splitlines()
    _, row, column, what = line.split(":", 3)
    assert row == "5"
    return int(column) - len("    when: ") - 1, what


@pytest.mark.parametrize(
    ("condition", "offset", "what"),
    [
        # YAML's own signs
        ("!labels.x && last_tier", 0, "put a text that starts with `!` in quotes: '!labels.x && last_tier'"),
        ("!last_tier", 0, "got the tag '!last_tier'; take it out, or put a text that starts with `!` in quotes"),
        ("&& last_tier", 0, "put a text that starts with `&` in quotes: '&& last_tier'"),
        ("*x == 1", 0, "got the alias '*x'; write the value out, or put a text that starts with `*` in quotes"),
        ("% 2", 0, "put a text that starts with it in quotes"),
        ("'last_tier", 0, "close the quotes that open here"),
        ("[last_tier]", 0, "one that starts with [ or { stands in quotes"),
        ("{last_tier: true}", 0, "must be one condition in CEL"),
        # letters
        ("uncertainty\u00a0< 0.2", 11, "got '\\xa0' (NO-BREAK SPACE), which looks like a space and is none in CEL"),
        ("uncertainty <\u20090.2", 13, "(THIN SPACE), which looks like a space"),
        (
            "tier == \u201cbig\u201d",
            8,
            "(LEFT DOUBLE QUOTATION MARK): a text stands between plain quotation marks",
        ),
        ("tier == \u2018big\u2019", 8, "(LEFT SINGLE QUOTATION MARK): a text stands between plain"),
        ("uncertainty \u2264 0.2", 12, "(LESS-THAN OR EQUAL TO): did you mean `<=`?"),
        ("uncertainty \uff1c 0.2", 12, "(FULLWIDTH LESS-THAN SIGN): did you mean `<`?"),
        ("1.0 \u2212 uncertainty < 0.2", 4, "(MINUS SIGN): did you mean `-`?"),
        ("un\u0441ertainty < 0.2", 2, "(CYRILLIC SMALL LETTER ES), which may look like another letter"),
        # numbers
        ("uncertainty < 25%", 14, "got `25%`: a share is a fraction, 0.25"),
        ("last_tier && uncertainty < 2.5 %", 27, "got `2.5 %`: a share is a fraction, 0.025"),
        ("uncertainty < 0,25", 15, "a fraction has a point: 0.25"),
        ("uncertainty < 20", 12, "it is a share, from 0 to 1: write 0.2 for 20 %"),
        ("uncertainty < '0.2'", 12, "a number stands without quotes (0.2)"),
        # operators
        ("uncertainty = 0.2", 12, "got `=`: did you mean `==`?"),
        ("uncertainty =< 0.2", 12, "got `=<`: did you mean `<=`?"),
        ("uncertainty => 0.2", 12, "got `=>`: did you mean `>=`?"),
        ("uncertainty <> 0.2", 12, "got `<>`: did you mean `!=`?"),
        ("tier === 'big'", 5, "got `===`: did you mean `==`?"),
        ("last_tier & uncertainty < 0.2", 10, "got `&`: did you mean `&&`?"),
        ("last_tier | uncertainty < 0.2", 10, "got `|`: did you mean `||`?"),
        ("last_tier and uncertainty < 0.2", 10, "got `and`, which CEL writes as `&&`"),
        ("last_tier OR uncertainty < 0.2", 10, "got `OR`, which CEL writes as `||`"),
        ("not last_tier", 0, "got `not`, which CEL writes as `!`"),
        ("tier is not 'big'", 5, "got `is not`, which CEL writes as `!=`"),
        ("tier not in ['big']", 5, "got `not in`, which CEL writes as `!(labels.x in [...])`"),
        ("uncertainty less than 0.2", 12, "got `less than`, which CEL writes as `<`"),
        ("uncertainty lt 0.2", 12, "got `lt`, which CEL writes as `<`"),
        ("if uncertainty < 0.2", 0, "a condition stands alone, and the action in `do`"),
        ("last_tier \u2227 uncertainty < 0.2", 10, "(LOGICAL AND): did you mean `&&`?"),
        ("uncertainty < 0.2 ^ last_tier", 18, "can't read on at `^`"),
        ("cost > $1", 7, "can't read on at `$`"),
        ("uncertainty < 0.2 &&", 20, "it ends where something is missing"),
        ("uncertainty < 0.2)", 17, "`)` closes what isn't open"),
        ("0.1 < uncertainty < 0.2", 18, "write each comparison by itself: 0.1 < uncertainty && uncertainty < 0.2"),
        # what ends too early
        ("tier in ['big', 'small'", 8, "the `[` here is never closed"),
        ("last_tier && (tier == 'a' || tier == 'b'", 13, "the `(` here is never closed"),
        ("tier == 'big", 8, "a text starts here (') and doesn't end on its line"),
        # names
        (
            "labels.user-tier == 'gold'",
            0,
            "`labels.user-tier`, which CEL reads as a difference; a label's name has",
        ),
        ("has(labels.user-tier)", 4, "did you mean `labels.user_tier`?"),
        ("labels.max-tokens < 5", 0, "did you mean `labels.max_tokens`?"),
        (
            "labels['user-tier'] == 'gold'",
            6,
            "no request has a label 'user-tier': its name has letters",
        ),
        ("prompt-length > 5", 0, "got `prompt-length`, which CEL reads as a difference; did you mean `prompt_length`?"),
        ("statistics.margin-min < 0.1", 0, "did you mean `statistics.margin_min`?"),
        ("uncertanty < 0.2", 0, "unknown name 'uncertanty'; did you mean 'uncertainty'?"),
        ("score < 0.2", 0, "unknown name 'score'; did you mean 'uncertainty'?"),
        ("confidence > 0.8", 0, "a confidence above 0.8 is `uncertainty < 0.2`"),
        ("shift < 0.2", 0, "unknown name 'shift'; did you mean 'typicality'?"),
        ("last_tier == True", 13, "unknown name 'True'; write true"),
        ("labels.x == None", 12, "ask has(labels.NAME) whether a label is there: nothing is ever null"),
        ("labels.x == yes", 12, "unknown name 'yes'; write true, or a text in quotes"),
        ("UNCERTAINTY < 0.2", 0, "did you mean 'uncertainty'?"),
        ("len(labels.x) > 1", 0, "did you mean `size`?"),
        ("labels.x.startswith('a')", 9, "did you mean `startsWith`?"),
        ("labels.get('x') == 1", 7, "a label is read as labels.NAME"),
        ("labels.x.lower() == 'a'", 9, "texts are compared as they are"),
        ("has(labels)", 4, "`has` asks whether a label is there: write has(labels.NAME)"),
        ("certified == 1", 10, "true or false by themselves: write last_tier or !last_tier"),
        ("tier == 'a' || 'b'", 12, "whole comparisons beside && and ||: tier == 'a' || tier == 'b'"),
        ("labels.x == null", 12, "no fact and no label is ever null; ask has(labels.NAME)"),
    ],
)
def test_a_slip_in_a_condition_is_named_at_its_place_with_what_was_likely_meant(
    condition: str, offset: int, what: str
) -> None:
    at, said = refusal(condition)
    assert what in said
    assert at == offset


@pytest.mark.parametrize(
    "condition", ["labels.max - tokens < 5", "1.0 - uncertainty > 0.8", "attempt-1 > 0", "tier == 'a-b'"]
)
def test_what_only_looks_like_a_slip_is_none(condition: str) -> None:
    text = f'version: 1\nname: p\nrules:\n  - {{id: r, when: "{condition}", do: abstain}}\n'
    assert [rule.when for rule in Policy.parse(text).rules] == [condition]


def test_a_slip_on_a_later_line_is_placed_there() -> None:
    when = "    when: |\n      last_tier &&\n      uncertainty < 25%\n"
    text = f"version: 1\nname: p\nrules:\n  - id: r\n{when}    do: abstain\n"
    with pytest.raises(PolicyError, match=r"got `25%`: .* \(line 2, column 15 of the condition\)"):
        Policy.parse(text)


@pytest.mark.parametrize(
    ("rules", "typicality"),
    [
        (
            ["id: odd, when: typicality < 0.1, do: escalate", "id: rest, when: uncertainty <= 1.0, do: answer", LAST],
            1.0,
        ),
        (["id: typical, when: typicality >= 0.05, do: answer", LAST], 1.0),
        (["id: typical, when: typicality >= 0.05 && uncertainty * 2.0 < 3.0, do: answer", LAST], 1.0),
        (["id: any, when: uncertainty * 2.0 < 3.0, do: answer", LAST], 0.0),
    ],
)
def test_a_policy_that_answers_where_the_uncertainty_is_one_is_warned_of(rules: list[str], typicality: float) -> None:
    notice = only(*rules)
    assert f"answers even where the uncertainty is 1.0, the typicality is {typicality} and there are" in notice.what
    assert notice.what.endswith("compare the uncertainty, as in `uncertainty < 0.2`")


@pytest.mark.parametrize(
    ("condition", "fact", "bad", "meant"),
    [
        ("uncertainty > 0.3", "uncertainty", 1.0, "did you mean `uncertainty < 0.3`?"),
        ("0.3 <= uncertainty", "uncertainty", 1.0, "did you mean `uncertainty <= 0.3`?"),
        (
            "uncertainty > 0.8",
            "uncertainty",
            1.0,
            "`uncertainty < 0.8`, or, if 0.8 is a confidence, `uncertainty < 0.2`",
        ),
        ("!(uncertainty < 0.3)", "uncertainty", 1.0, "turn its comparison round"),
        ("1.0 - uncertainty < 0.8", "uncertainty", 1.0, "turn its comparison round"),
        (
            "uncertainty > 0.3 && has(labels.vip) && labels.vip == true",
            "uncertainty",
            1.0,
            "did you mean `uncertainty < 0",
        ),
        (
            "uncertainty > 0.3 && typicality >= 0.01 && tokens > 500",
            "uncertainty",
            1.0,
            "did you mean `uncertainty < 0.3`?",
        ),
        ("uncertainty < 0.2 && typicality < 0.01", "typicality", 0.0, "did you mean `typicality > 0.01`?"),
        ("typicality <= 0.01", "typicality", 0.0, "did you mean `typicality >= 0.01`?"),
    ],
)
def test_an_answer_rule_whose_comparison_is_the_wrong_way_round_is_warned_of(
    condition: str, fact: str, bad: float, meant: str
) -> None:
    for rules in ([LAST], ["id: unsure, when: uncertainty >= 0.95, do: escalate", LAST]):
        notice = only(*rules[:-1], f'id: flip, when: "{condition}", do: answer', LAST)
        assert (notice.level, notice.place) == ("warning", f"p.yaml:{4 + len(rules)}:22")
        what = f"rule 'flip': may answer where the {fact} is {bad}, and never where it is {1.0 - bad}: "
        assert notice.what.startswith(what)
        assert meant in notice.what


@pytest.mark.parametrize(
    ("rule", "meant"),
    [
        ("id: flip, when: typicality > 0.05, do: escalate", "did you mean `typicality < 0.05`?"),
        ("id: flip, when: uncertainty < 0.8, do: escalate", "did you mean `uncertainty > 0.8`?"),
        ("id: flip, when: uncertainty <= 0.5, do: abstain", "did you mean `uncertainty >= 0.5`?"),
        ("id: flip, when: 'uncertainty < 0.5 && !last_tier', do: retry", "did you mean `uncertainty > 0.5`?"),
        ("id: flip, stage: prompt, when: uncertainty < 0.9, do: abstain", "did you mean `uncertainty > 0.9`?"),
        ("id: flip, when: '!(typicality <= 0.05)', do: escalate", "turn its comparison round"),
        ("id: flip, when: 1.0 - uncertainty > 0.2, do: escalate", "turn its comparison round"),
    ],
)
def test_a_rule_that_keeps_back_the_surest_answers_is_warned_of(rule: str, meant: str) -> None:
    notice = only(rule, "id: sure, when: uncertainty < 0.9, do: answer", LAST)
    assert notice.level == "warning"
    assert notice.what.startswith("rule 'flip': keeps back what is surest and most typical (uncertainty 0.0, typical")
    assert meant in notice.what


@pytest.mark.parametrize(
    "rule",
    [
        "id: odd, when: typicality < 0.05, do: escalate",
        "id: some, when: uncertainty < 0.2, sample: 0.05, do: escalate",
        "id: legal, when: has(labels.legal) && uncertainty < 0.2, do: escalate",
        "id: long, when: tokens > 500 && uncertainty < 0.5, do: escalate",
    ],
)
def test_a_rule_that_keeps_back_some_sure_answers_is_not(rule: str) -> None:
    assert all_notices(rule, "id: sure, when: uncertainty < 0.2, do: answer", LAST) == ()


@pytest.mark.parametrize("condition", ["uncertainty < 1.0", "int(uncertainty) == 0", "uncertainty != 1.0"])
def test_an_answer_at_every_uncertainty_but_one_is_warned_of(condition: str) -> None:
    assert "answers even where the uncertainty is 1.0" in only(f"id: any, when: {condition}, do: answer", LAST).what


@pytest.mark.parametrize(
    "condition",
    [
        "uncertainty < 0.2",
        "uncertainty < 0.2 && typicality > 0.01 && tokens > 500",
        "uncertainty < 0.2 && has(labels.vip) && labels.vip == true",
        "uncertainty < 0.2 && (typicality < 0.1 || last_tier)",
    ],
)
def test_an_answer_rule_that_takes_the_sure_ones_does_not_warn(condition: str) -> None:
    assert all_notices(f'id: sure, when: "{condition}", do: answer', LAST) == ()


@pytest.mark.parametrize(
    ("condition", "operator", "what"),
    [
        (
            "uncertainty < 1.5",
            "< 1.5",
            "`uncertainty < 1.5` is true of every number: `uncertainty` lies between 0 and 1; did you",
        ),
        ("uncertainty < 20.0", "< 20", "did you mean 0.2 (20 %)?"),
        (
            "typicality >= -0.1 && uncertainty < 0.2",
            ">=",
            "is true of every number: `typicality` lies between 0 and 1; did",
        ),
        ("-0.1 <= typicality && uncertainty < 0.2", "<=", "`typicality >= -0.1` is true of every number"),
        ("uncertainty < 0.2 || uncertainty > 1.0", "> 1.0", "`uncertainty > 1.0` is never true"),
        ("uncertainty < 0.2 && attempt >= 0", ">=", "`attempt >= 0` is true of every number: `attempt` is at least 1"),
        ("uncertainty < 0.2 && tokens != -1", "!=", "`tokens != -1` is true of every number: `tokens` is at least 0"),
        ("uncertainty < 0.2 && statistics.logprob_mean > 0.5", "> 0.5", "is at most 0; did you mean -0.5?"),
        ("uncertainty < 0.2 && finish_reason != 'stopp'", "!=", "never is; did you mean 'stop'?"),
        ("uncertainty < 0.2 && error != 'Budget'", "!=", "never is; did you mean 'BudgetError'?"),
    ],
)
def test_a_bound_outside_a_facts_range_is_warned_of(condition: str, operator: str, what: str) -> None:
    odd = [notice for notice in all_notices(f'id: sure, when: "{condition}", do: answer', LAST) if "`" in notice.what]
    assert (odd[0].level, odd[0].place) == ("warning", f"p.yaml:5:{column_of(condition, operator)}")
    assert what in odd[0].what


@pytest.mark.parametrize(
    ("condition", "operator", "what"),
    [
        ("uncertainty > 1.0", ">", "`uncertainty > 1.0` is never true: `uncertainty` lies between 0 and 1"),
        ("uncertainty < 0.0", "<", "`uncertainty < 0.0` is never true"),
        ("uncertainty < 0.2 && finish_reason == 'stopp'", "==", "never is; did you mean 'stop'?"),
        ("uncertainty < 0.2 && attempt < 1", "< 1", "`attempt < 1` is never true: `attempt` is at least 1"),
    ],
)
def test_a_rule_that_a_bound_keeps_from_ever_acting_is_an_error_at_the_bound(
    condition: str, operator: str, what: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        all_notices(f'id: sure, when: "{condition}", do: answer', LAST)
    assert str(caught.value).startswith(f"p.yaml:5:{column_of(condition, operator)}: rule 'sure': can never act: ")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ([SURE], "uncertainty is 0.2"),
        ([SURE, "id: up, do: retry"], "last_tier is true"),
        ([SURE, "id: some, do: escalate, sample: 0.5"], "uncertainty is 0.2"),
        ([SURE, "id: rest, when: uncertainty >= 0.2, do: escalate"], "uncertainty is missing"),
        ([SURE, "id: rest, when: uncertainty >= 0.2 || labels.x == 1, do: escalate"], "uncertainty is "),
    ],
)
def test_a_policy_that_leaves_cases_open_is_warned_of(rules: list[str], where: str) -> None:
    found = [notice for notice in all_notices(*rules) if notice.what.startswith(UNDECIDED)]
    assert [(notice.level, notice.place) for notice in found] == [("note", "p.yaml:4:1")]
    assert where in found[0].what
    assert "End with a rule without `when`" in found[0].what
    assert [notice for notice in all_notices(*rules, LAST) if notice.what.startswith(UNDECIDED)] == []


@pytest.mark.parametrize(
    ("guarantee", "meant"),
    [
        ("{max_error: 0.95}", "max_error: 0.95` promises next to nothing; did you mean 0.05?"),
        ("{max_error: 0.05, confidence: 0.05}", "confidence: 0.05` promises next to nothing; did you mean 0.95?"),
    ],
)
def test_a_guarantee_the_wrong_way_round_is_warned_of(guarantee: str, meant: str) -> None:
    text = f"version: 1\nname: p\nguarantee: {guarantee}\nrules:\n  - {{{SURE}}}\n  - {{{LAST}}}\n"
    (found,) = [notice for notice in Policy.parse(text, path="p.yaml").notices() if "promises" in notice.what]
    assert (found.level, found.place[:9]) == ("warning", "p.yaml:3:")
    assert meant in found.what


GUARD = "version: 1\npolicy: default\ntiers: [{name: small, model: m}]\nreview:\n  storage: sqlite:///t.db\n"
PAGE = "  page: {url: 'http://127.0.0.1:8000'}\n"
SUPPORT = "  queues: [{name: support, due: 60, overdue: seniors}, {name: nurses}]\n"
HOOK = "  endpoints: [{name: a, url: 'https://a.example', secret: '${KEY}', queues: [legal]}]\n"


def said_of_queues(folder: Path, review: str, *rules: str, keys: str = "") -> list[str]:
    (folder / "guard.yaml").write_text(GUARD + PAGE + review)
    text = f"version: 1\nname: p\n{keys}rules:\n" + "".join(f"  - {{{rule}}}\n" for rule in rules)
    found = Policy.parse(text, path="p.yaml").config_notices(read_config(folder / "guard.yaml"))
    return [f"{notice.level} {notice.place}: {notice.what}" for notice in found if "queue" in notice.what]


@pytest.mark.parametrize("review", [SUPPORT, HOOK, SUPPORT + HOOK])
@pytest.mark.parametrize("queue", ["suport", "supports", "billing"])
def test_a_queue_that_guard_yaml_does_not_have_is_warned_of(tmp_path: Path, review: str, queue: str) -> None:
    (said,) = said_of_queues(tmp_path, review, SURE, f"id: last, do: escalate, to: {queue}")
    assert said.startswith(f"warning p.yaml:5:34: guard.yaml has no queue {queue!r}; ")
    is_near = "support" in review and queue != "billing"
    assert ("did you mean 'support'?" in said) is is_near
    (audit,) = said_of_queues(tmp_path, review, SURE, keys=f"audit: {{fraction: 0.5, queue: {queue}}}\n")
    assert audit.startswith(f"warning p.yaml:3:31: guard.yaml has no queue {queue!r}; ")


@pytest.mark.parametrize(
    ("review", "queue"),
    [(SUPPORT, "support"), (SUPPORT, "seniors"), (HOOK, "legal"), (SUPPORT + HOOK, "nurses"), ("", "anything")],
)
def test_a_queue_that_guard_yaml_has_is_not_warned_of(tmp_path: Path, review: str, queue: str) -> None:
    assert said_of_queues(tmp_path, review, SURE, f"id: last, do: escalate, to: {queue}") == []


def test_the_default_queue_need_not_stand_in_guard_yaml(tmp_path: Path) -> None:
    assert said_of_queues(tmp_path, SUPPORT, SURE, "id: last, do: escalate") == []
