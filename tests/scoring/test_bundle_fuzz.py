"""A mutated packaged bundle is refused or scores: it never crashes, hangs or exhausts the memory.

ILIS_GUARD_FUZZ=20000 tries that many examples at random, where otherwise a few hundred are the same every time.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

# What fails is a text of 50 kB; it lies in a folder that the failure names.
pytestmark = [pytest.mark.usefixtures("process"), pytest.mark.filterwarnings("ignore:Generating overly large repr")]

MANY = int(os.environ.get("ILIS_GUARD_FUZZ", "0"))
ROOT = Path(__file__).parents[2]
METADATA, TREES, CALIBRATION, TRAFFIC = "bundle.json", "trees.txt", "calibration.json", "traffic.json"
TREES_KEPT = 6
"""Of some eighty: an edit is then likelier to change what an earlier one did, and a bundle loads in no time."""


def resized(text: str) -> str:
    """With tree_sizes that are true, so that what else is wrong comes to light."""
    trees = text[max(text.find("Tree="), 0) : max(text.find("end of trees"), 0)]
    sizes = " ".join(str(len(tree)) for tree in re.split(r"(?m)^(?=Tree=)", trees)[1:])
    return re.sub(r"(?m)^tree_sizes=.*$", f"tree_sizes={sizes}", text, count=1)


REAL = {
    file: (resources.files("ilis_guard") / "bundles" / "gemma-3-270m-full" / file).read_text(encoding="utf-8")
    for file in (METADATA, TREES, CALIBRATION, TRAFFIC)
}
LEAF = f"""\
Tree={TREES_KEPT}
num_leaves=1
num_cat=0
split_feature=
split_gain=
threshold=
decision_type=
left_child=
right_child=
leaf_value=0.25
leaf_weight=
leaf_count=300
internal_value=
internal_weight=
internal_count=
is_linear=0
shrinkage=1


"""
FEW_TREES = resized(re.sub(rf"(?s)Tree={TREES_KEPT}\n.*(?=end of trees\n)", LEAF, REAL[TREES]))
OBEYED = [
    "num_leaves",
    "num_cat",
    "is_linear",
    "num_class",
    "num_tree_per_iteration",
    "max_feature_idx",
    "split_feature",
]
"""What LightGBM sizes its memory by."""


class Loading:
    """The other process. Where one dies, the next bundle gets a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def outcome(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """What comes of a bundle of these files."""
        for file, text in texts.items():
            (self._folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        if self._process is None:
            with (self._folder / "stderr").open("w") as complaints:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.scoring.loading"],
                    cwd=ROOT,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=complaints,
                    text=True,
                )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{self._folder}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            code, self._process = process.wait(), None
            process.communicate()
            end = (self._folder / "stderr").read_text()[-1500:]
            pytest.fail(f"a bundle such as {self._folder} brings the process down ({code}): {end}")
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loading]:
    started = Loading(tmp_path_factory.mktemp("fuzzed"))
    yield started
    started.close()


def tried(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=MANY or examples, derandomize=not MANY, deadline=None, suppress_health_check=slow)


def signed(texts: Mapping[str, str]) -> dict[str, str]:
    """With the digests that belong to the texts: who makes a bundle knows how."""
    metadata = texts[METADATA]
    for file in (TREES, CALIBRATION, TRAFFIC):
        old, new = (hashlib.sha256(each[file].encode("utf-8", "surrogatepass")).hexdigest() for each in (REAL, texts))
        metadata = metadata.replace(old, new)
    return {**texts, METADATA: metadata}


def check(loading: Loading, texts: Mapping[str, str]) -> None:
    told = loading.outcome(signed(texts))
    if "refused" in told:
        assert "bundle" in told["refused"]
        assert len(told["refused"]) < 5_000
        return
    assert len(told["scores"]) == 3
    for score in told["scores"]:
        if isinstance(score, str):
            assert "isn't a number" in score or "the bundle was fitted to" in score or "names the kinds" in score
        else:
            uncertainty, typicality = score
            assert 0 <= uncertainty <= 1
            assert 0 < typicality <= 1


# --- what is changed -------------------------------------------------------------------------------------------------

Edit = Callable[[str], str]

PIECES = st.one_of(
    st.sampled_from(
        ["", " ", "\n", "\r", "\t", "\0", "\x0b", "\x85", "\u2028", "é", "=", "-", "0", ".", ",", '"', "\\"]
    ),
    st.sampled_from(["end of trees\n", "Tree=0\n", "\rnum_leaves=9\r", "\rnum_tree_per_iteration=0\rx=", "\rTree=0\r"]),
    st.text(max_size=3),
)
NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "-1", "-2", "-0", "7", "00", "12", "14", "255", "1.5", "1e", "0x10", "nan", "inf"]),
    st.sampled_from(["999999999", "2147483647", "2147483648", "-2147483648", "4294967296", "99999999999999999999"]),
    st.sampled_from(["1e308", "-1e308", "1e309", "1e-400", "null"]),
    st.integers(-70, 700).map(str),
)
PLACES = st.integers(0, 2**16 - 1).map(lambda drawn: drawn * 40503 % 2**16 / 2**16)
"""From 0 to 1, evenly: floats would come near 0 too often, and every other edit be one of the first line."""


@st.composite
def edits_of_text(draw: st.DrawFn) -> Edit:
    """A byte changed, a piece put in, a stretch taken out or said twice, the end cut off."""
    kind = draw(st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]))
    place, length, piece = draw(PLACES), draw(st.integers(1, 300)), draw(PIECES)

    def edit(text: str) -> str:
        at = int(place * len(text))
        match kind:
            case "replace":
                return text[:at] + piece + text[at + 1 :]
            case "insert":
                return text[:at] + piece + text[at:]
            case "delete":
                return text[:at] + text[at + length :]
            case "repeat":
                return text[: at + length] + text[at:]
            case _:
                return text[:at]

    return edit


@st.composite
def edits_of_lines(draw: st.DrawFn) -> Edit:
    """A line left out, said twice, put elsewhere, one of its numbers changed, or another line hidden in it."""
    kind = draw(st.sampled_from(["number"] * 3 + ["hidden"] * 3 + ["all numbers", "key", "delete", "repeat", "move"]))
    place, other, new = draw(PLACES), draw(PLACES), draw(NUMBERS)
    where = draw(st.sampled_from(["anywhere"] * 4 + ["header"] + ["last tree"] * 2))
    named, separator = draw(st.sampled_from(OBEYED)), draw(st.sampled_from("\r\r\r\0\v "))

    def edit(text: str) -> str:
        lines = text[: text.index("end of trees")].split("\n")
        first, end = {"header": (0, 11), "last tree": (-len(LEAF.split("\n")), 0)}.get(where, (0, len(lines)))
        at = (first + int(place * (end - first))) % len(lines)
        key, equals, values = lines[at].partition("=")
        tokens = values.split(" ")
        match kind:
            case "number":
                index = int(other * len(tokens))
                tokens[index] = new
                lines[at] = key + equals + " ".join(tokens)
            case "all numbers":
                lines[at] = key + equals + " ".join([new] * len(tokens))
            case "hidden":
                lines[at] = key + equals + f"{separator}{named}={new}{separator}{key}=" + values
            case "key":
                lines[at] = lines[int(other * len(lines))].partition("=")[0] + equals + values
            case "delete":
                del lines[at]
            case "repeat":
                lines.insert(at, lines[at])
            case _:
                lines.insert(int(other * (len(lines) - 1)), lines.pop(at))
        return "\n".join(lines) + "end of trees\n"

    return edit


@st.composite
def hostile_trees(draw: st.DrawFn) -> str:
    text, one_edit = FEW_TREES, st.one_of([edits_of_lines()] * 4 + [edits_of_text()])
    for edit in draw(st.lists(one_edit, min_size=1, max_size=2)):
        if "end of trees" in text:
            text = edit(text)
    return resized(text) if draw(st.integers(0, 9)) else text


VALUES = st.one_of(
    st.sampled_from(["null", "true", "0", "-1", "1e999", "-1e300", "1e300", "NaN", "-Infinity", "9" * 19, "9" * 5000]),
    st.sampled_from(["[]", "{}", '""', '"0.5"', "[[]]", "[" * 500 + "]" * 500, '{"a":' * 300 + "0" + "}" * 300]),
    st.sampled_from(['"\\ud800"', '"\\u0000"', '"prompt"', '["prompt"]', "0.5", "1", "2", "17", "18", "19"]),
)
MARK = "\N{PERSONAL COMPUTER}"


def _places(value: Any, keys: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """Where something stands in JSON: of a long list, a few."""
    if keys:
        yield keys
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*keys, key))
    elif isinstance(value, list):
        for index in sorted({0, 1, len(value) // 2, len(value) - 1} & set(range(len(value)))):
            yield from _places(value[index], (*keys, index))


JSON_PLACES = {file: list(_places(json.loads(REAL[file]))) for file in (METADATA, CALIBRATION, TRAFFIC)}


@st.composite
def hostile_json(draw: st.DrawFn, file: str) -> str:
    """A value changed, taken out, or a key put in or said twice; or the text edited as any other."""
    kind = draw(st.sampled_from(["value", "value", "value", "delete", "more", "twice", "many", "text"]))
    if kind == "text":
        return draw(edits_of_text())(REAL[file])
    document = json.loads(REAL[file])
    *path, last = draw(st.sampled_from(JSON_PLACES[file]))
    inside = document
    for key in path:
        inside = inside[key]
    new = draw(VALUES)
    match kind:
        case "value":
            inside[last] = MARK
        case "delete":
            del inside[last]
        case "many":
            inside[last] = [MARK] * 300
        case _ if isinstance(inside, list):
            inside.append(MARK)
        case _:
            inside[MARK] = 0
    text = json.dumps(document, ensure_ascii=False)
    twice = last if kind == "twice" else "more"
    return text.replace(f'"{MARK}":', f"{json.dumps(twice)}:").replace(f'"{MARK}"', new)


@tried(300)
@given(trees=hostile_trees())
def test_hostile_trees_are_refused_or_score(trees: str, loading: Loading) -> None:
    check(loading, {**REAL, TREES: trees})


@tried(120)
@given(metadata=hostile_json(METADATA))
def test_hostile_metadata_is_refused_or_scores(metadata: str, loading: Loading) -> None:
    check(loading, {**REAL, METADATA: metadata})


@tried(120)
@given(calibration=hostile_json(CALIBRATION))
def test_a_hostile_calibration_set_is_refused_or_scores(calibration: str, loading: Loading) -> None:
    check(loading, {**REAL, CALIBRATION: calibration})


@tried(120)
@given(traffic=hostile_json(TRAFFIC))
def test_a_hostile_traffic_profile_is_refused_or_scores(traffic: str, loading: Loading) -> None:
    check(loading, {**REAL, TRAFFIC: traffic})


@pytest.mark.parametrize("trees", [REAL[TREES], FEW_TREES], ids=["all of it", "fewer trees"])
def test_the_bundle_itself_scores_all_three(trees: str, loading: Loading) -> None:
    told = loading.outcome(signed({**REAL, TREES: trees}))
    assert [type(score) for score in told["scores"]] == [list] * 3
