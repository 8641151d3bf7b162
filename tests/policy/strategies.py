"""Hypothesis strategies for hostile policies, facts and files."""

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ilis_guard.policy import Facts
from ilis_guard.policy.conditions import Condition
from ilis_guard.policy.diagnostics import ConditionError
from ilis_guard.policy.facts import VISIBLE
from ilis_guard.types import Obstacle, Statistics

SHIPPED = {
    file.name: file.read_text("utf-8") for file in sorted((Path(__file__).parents[2] / "policies").glob("*.yaml"))
}

# --- facts -----------------------------------------------------------------------------------------------------------

ANY_NUMBER = st.one_of(
    st.none(),
    st.floats(),
    st.floats(0, 1),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, 1.7e308, 10**400, -(10**400), 2**63]),
)
ANY_INTEGER = st.one_of(st.integers(), st.sampled_from([0, 1, 2**63, -(2**63), 10**30]))
ANY_TEXT = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(), max_size=4),  # with lone surrogates
    st.sampled_from(
        ["", "small", "large", "a", "\x00", "\ud800", "\udfff\ud800", "x" * 3_000, "true", "NaN", "'", "\n"]
    ),
)
TIERS = st.sampled_from(["small", "large", "huge", ""])
ANY_LABEL: st.SearchStrategy[Any] = st.one_of(
    ANY_TEXT, st.booleans(), st.none(), ANY_NUMBER, st.binary(max_size=2), st.lists(st.none(), max_size=1)
)
GOOD_LABEL = st.one_of(st.sampled_from(["a", "legal", "true", ""]), st.integers(0, 3), st.booleans(), st.floats(0, 1))
LABEL_NAMES = st.sampled_from(["x", "y", "vip"])
FACTS = st.builds(
    Facts,
    uncertainty=st.one_of(st.floats(0, 1), ANY_NUMBER),
    typicality=st.one_of(st.floats(0, 1), ANY_NUMBER),
    calibrated=st.booleans(),
    rank=st.one_of(st.floats(0, 1), ANY_NUMBER),
    threshold=st.one_of(st.floats(0, 1), ANY_NUMBER),
    tier=st.one_of(TIERS, ANY_TEXT),
    last_tier=st.booleans(),
    larger_tiers=st.one_of(st.none(), st.lists(TIERS, max_size=2).map(tuple)),
    attempt=ANY_INTEGER,
    tokens=ANY_INTEGER,
    seconds=ANY_NUMBER.filter(lambda value: value is not None),
    cost=ANY_NUMBER.filter(lambda value: value is not None),
    prompt_length=ANY_INTEGER,
    text_length=ANY_INTEGER,
    finish_reason=st.sampled_from(["", "stop", "length"]),
    labels=st.one_of(
        st.dictionaries(LABEL_NAMES, GOOD_LABEL),
        st.dictionaries(st.one_of(LABEL_NAMES, ANY_TEXT, st.none()), ANY_LABEL, max_size=3),
    ),
    error=st.one_of(st.just(""), ANY_TEXT),
    statistics=st.one_of(
        st.none(),
        st.builds(
            Statistics,
            logprob_sum=st.floats(),
            logprob_mean=st.floats(),
            entropy_mean=st.floats(),
            margin_min=st.floats(),
        ),
    ),
    answer_blocked_by=st.sampled_from([None, None, None, Obstacle(kind="rule_failed", rule="p", detail="why")]),
    sampling_key=ANY_TEXT,
)

# --- conditions ------------------------------------------------------------------------------------------------------


def _named(kind: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name for name, of in VISIBLE.items() if of.cel == kind])


DOUBLES = st.one_of(_named("double"), st.sampled_from(["0.0", "0.05", "0.5", "1.0", "-1.0", "1e300", "(0.0 / 0.0)"]))
INTEGERS = st.one_of(
    _named("int"), st.sampled_from(["0", "1", "3", "size(labels)", "size(error)", "9223372036854775807"])
)
STRINGS = st.one_of(_named("string"), st.sampled_from(["''", "'a'", '"legal"', "r'\\d'", "'\\ud7ff'", "'''it's'''"]))
LABELS = st.sampled_from(["labels.x", "labels.y", "labels.vip", "labels['x']", "labels.absent", "labels[tier]"])
COMPARISON = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
LITERALS = st.sampled_from(["true", "'a'", "1", "0.5", "'true'", "tier", "null"])


def _arithmetic(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(of, st.builds("({} {} {})".format, of, st.sampled_from("+-*/"), of))


ATOMS = st.one_of(
    st.builds("{} {} {}".format, _arithmetic(DOUBLES), COMPARISON, _arithmetic(DOUBLES)),
    st.builds("{} {} {}".format, _arithmetic(INTEGERS), COMPARISON, _arithmetic(INTEGERS)),
    st.builds("{} {} {}".format, STRINGS, st.sampled_from(["==", "!="]), STRINGS),
    st.builds("{}.{}({})".format, STRINGS, st.sampled_from(["startsWith", "endsWith", "contains"]), STRINGS),
    st.builds("{} {} {}".format, LABELS, COMPARISON, st.one_of(LITERALS, LABELS)),
    st.builds("{} in {}".format, LABELS, st.sampled_from(["['a', 'legal']", "[1, 'a']", "[]", "labels"])),
    st.builds("has({})".format, st.sampled_from(["labels.x", "labels.vip", "labels.absent"])),
    st.builds(
        "{}.{}(i, {} {} i)".format,
        st.sampled_from(["['a', 'b']", "labels", "[1, 2]"]),
        st.sampled_from(["all", "exists", "exists_one"]),
        st.one_of(LABELS, STRINGS),
        COMPARISON,
    ),
    st.builds("type({}) == {}".format, LABELS, st.sampled_from(["int", "string", "bool"])),
    st.builds("{}({}) == {}".format, st.sampled_from(["int", "double", "string"]), LABELS, LITERALS),
    st.sampled_from(
        [
            "certified",
            "calibrated",
            "last_tier",
            "true",
            "false",
            "tokens / 0 == 1",
            "labels.x",
            "labels.all(a, labels[a])",
        ]
    ),
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        inner.map("!({})".format),
        st.builds("({} {} {})".format, inner, st.sampled_from(["&&", "||"]), inner),
        st.builds("({} ? {} : {})".format, inner, inner, inner),
    ),
    max_leaves=4,
)


def is_condition(text: str) -> bool:
    try:
        Condition.of(text)
    except ConditionError:
        return False
    return True


# --- policies --------------------------------------------------------------------------------------------------------

SAMPLES = st.sampled_from([0.01, 0.5, 1.0])
ANSWER_WHEN = st.one_of(
    CONDITIONS.map("uncertainty < 0.9 && ({})".format),
    CONDITIONS.map("typicality >= 0.0 || {}".format),
    CONDITIONS.map("!(uncertainty > 0.5) || {}".format),
    st.sampled_from(["uncertainty >= 0.0", "!(typicality < 0.1)", "uncertainty == uncertainty", "certified"]),
)


@st.composite
def rules(draw: st.DrawFn, number: int, *, is_guaranteed: bool) -> dict[str, Any]:
    do = draw(st.sampled_from(["answer", "answer", "abstain", "retry", "escalate"]))
    rule: dict[str, Any] = {"id": f"r{number}", "do": do}
    condition = draw(
        (ANSWER_WHEN if do == "answer" else st.one_of(CONDITIONS, st.none())).filter(
            lambda text: text is None or (is_condition(text) and (is_guaranteed or not _of_the_guarantee(text)))
        )
    )
    if condition is not None:
        rule["when"] = condition
    if do != "answer" and not (condition and _after_the_prompt(condition)) and draw(st.booleans()):
        rule["stage"] = "prompt"
    if do in ("retry", "escalate") and draw(st.booleans()):
        rule["to"] = draw(st.sampled_from(["small", "large", "people"]))
    if do in ("abstain", "escalate") and draw(st.booleans()):
        rule["say"] = draw(st.sampled_from(["No.", "größer 😀", "a\nb"]))
    if do == "escalate" and draw(st.booleans()):
        rule["due"] = draw(st.sampled_from(["90s", "1.5h", "36525d"]))
    if draw(st.integers(0, 3)) == 0:
        rule["sample"] = draw(SAMPLES)
    return rule


def _of_the_guarantee(text: str) -> bool:
    return bool({"certified", "threshold"} & set(Condition.of(text).names))


def _after_the_prompt(text: str) -> bool:
    later = {"error", "certified", "threshold", "text_length", "finish_reason"}
    return any(name in later or name.startswith("statistics.") for name in Condition.of(text).names)


GUARANTEES = st.sampled_from(
    [
        {"max_error": 0.05},
        {"min_coverage": 0.8, "confidence": 0.9},
        {"max_reviews_per_hour": 20, "requests_per_hour": 400.5},
    ]
)


@st.composite
def policies(draw: st.DrawFn) -> str:
    """The text of a policy that uses any part of the language; some are refused, as they have rules out of reach."""
    policy: dict[str, Any] = {"version": 1, "name": draw(st.sampled_from(["p", "größer 😀"]))}
    is_guaranteed = draw(st.booleans())
    if is_guaranteed:
        policy["guarantee"] = draw(GUARANTEES)
    if draw(st.booleans()):
        policy["mode"] = draw(st.sampled_from(["enforce", "shadow"]))
    if draw(st.booleans()):
        policy["budget"] = draw(st.sampled_from([{"max_seconds": 10}, {"max_attempts": 2, "max_cost": 0.1}]))
    if draw(st.booleans()):
        policy["audit"] = {"fraction": draw(SAMPLES), "queue": "audits"}
    count = draw(st.integers(1, 6))
    policy["rules"] = [draw(rules(number, is_guaranteed=is_guaranteed)) for number in range(count)]
    return json.dumps(policy, ensure_ascii=False)


# --- files -----------------------------------------------------------------------------------------------------------

TOKENS = [
    *"\t\r\x00\x07\x7f\x85\u2028\ufeff\u202e\ud800\U0001f600{}[]:,-?&*!|>'\"%@`#~\\",
    "\r\n",
    "\n\n",
    "\n---\n",
    "\n...\n",
    "%YAML 1.1\n---\n",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!!python/object:os.system ",
    "!<tag:x> ",
    "null",
    "true",
    "no",
    "1e400",
    ".inf",
    ".nan",
    "9" * 400,
    "0x" + "f" * 400,
    "2026-11-25",
    "1_000",
    "0o7",
    '"\\ud800"',
    '"\\U00110000"',
    "? ",
    "- " * 30,
    "[" * 30,
    "{a: " * 30,
    "version: 1\n",
    "rules:\n",
    "  - id: a\n",
    "guarantee:\n",
    "budget: {max_seconds: }\n",
    "when: uncertainty < 0.2\n",
    "labels.x == ",
    "&& ",
    "// ",
    "un\u0441ertainty",
    ".map(t, t + t)",
    ".all(a, [1].all(b, true))",
    ".matches('(a|b){1,900}')",
    "x" * 5_000,
    "(" * 40,
    "-1",
    "1.5",
    "{name}",
]


@st.composite
def mutants(draw: st.DrawFn, texts: dict[str, str]) -> str:
    """A file that was once all right."""
    text = texts[draw(st.sampled_from(sorted(texts)))]
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 0, 0, 1, 1, 3, 10, 60]))
        what = draw(st.sampled_from(["token", "token", "cut", "repeat", "swap", "line ends"]))
        part = text[start : start + length]
        if what == "token":
            text = text[:start] + draw(st.sampled_from(TOKENS)) + text[start + length :]
        elif what == "cut":
            text = text[:start] + text[start + length :]
        elif what == "repeat":
            text = text[:start] + part * draw(st.sampled_from([2, 3, 50])) + text[start + length :]
        elif what == "swap":
            text = text[start:] + text[:start]
        else:
            text = text.replace("\n", draw(st.sampled_from(["\r\n", "\r", "\n\n", "\x0b"])))
    return text


NEAR_KEYS = st.sampled_from(
    [
        "version",
        "name",
        "rules",
        "id",
        "do",
        "when",
        "to",
        "say",
        "due",
        "sample",
        "stage",
        "mode",
        "guarantee",
        "max_error",
        "budget",
        "audit",
        "fraction",
        "queue",
        "<<",
        "",
        "1",
        "Rules",
    ]
)
NEAR_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(10**40), 10**400),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from([1, "p", "answer", "abstain", "uncertainty < 0.2", "4h", "shadow", "labels.x", 0.1, "prompt"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NEAR_KEYS, inner, max_size=5)),
    max_leaves=12,
)
NEAR_POLICIES = st.fixed_dictionaries(
    {"version": st.just(1), "name": st.just("p")},
    optional={
        "rules": st.lists(st.dictionaries(NEAR_KEYS, NEAR_VALUES, max_size=4), max_size=4),
        **dict.fromkeys(("mode", "guarantee", "budget", "audit", "description", "other", "rules "), NEAR_VALUES),
    },
).map(lambda value: json.dumps(value, ensure_ascii=False))
