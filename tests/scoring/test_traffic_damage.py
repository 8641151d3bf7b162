"""A bundle with a hostile traffic.json, whose digest is right, is refused or scores; it never raises another error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ilis_guard.errors import BundleError, ScoringError
from ilis_guard.scoring import LightGBMScorer, bundle_files, read_bundle
from ilis_guard.types import Generation
from tests.scoring.test_bundle_damage import Change, put, refusal, setting

Row = Callable[[int], Generation]
FEATURES = ("kinds", 0, "moments", "features")


def changed(folder: Path, change: Change) -> None:
    traffic = json.loads((folder / "traffic.json").read_text())
    change(traffic)
    put(folder, "traffic.json", json.dumps(traffic))


def both(first: Change, second: Change) -> Change:
    def change(traffic: dict[str, Any]) -> None:
        first(traffic)
        second(traffic)

    return change


def twice(traffic: dict[str, Any]) -> None:
    """Two kinds, of clusters."""
    width, (kind,) = len(traffic["prompts"]["mean"]), traffic["kinds"]
    traffic["kinds"] = [kind | {"name": name, "centre": [place] * width} for name, place in (("a", -1.0), ("b", 1.0))]


def shortened(*path: str | int) -> Change:
    """The last numbers of a moment's lists left out."""

    def change(traffic: dict[str, Any]) -> None:
        inner: Any = traffic
        for key in path:
            inner = inner[key]
        inner["mean"].pop()
        inner["spread"].pop()

    return change


WRONG: dict[str, Change] = {
    "no kinds": setting("kinds", to=[]),
    "an object of kinds": setting("kinds", to={}),
    "no moments": setting("kinds", 0, "moments", to={}),
    "no features": lambda traffic: traffic["kinds"][0]["moments"].pop("features"),
    "no log-probability": lambda traffic: traffic["kinds"][0]["moments"].pop("logprobs"),
    "moments of what isn't known": setting("kinds", 0, "moments", "tokens", to={"mean": [0.0], "spread": [1.0]}),
    "NaN for a mean": setting(*FEATURES, "mean", 3, to=float("nan")),
    "infinity for a mean": setting(*FEATURES, "mean", 3, to=float("inf")),
    "NaN for a spread": setting(*FEATURES, "spread", 3, to=float("nan")),
    "infinity for a spread": setting(*FEATURES, "spread", 3, to=float("inf")),
    "a negative spread": setting(*FEATURES, "spread", 3, to=-0.5),
    "a spread that can't be divided by": setting(*FEATURES, "spread", 3, to=5e-324),
    "a spread beyond all measure": setting(*FEATURES, "spread", 3, to=1e101),
    "a mean beyond all measure": setting(*FEATURES, "mean", 3, to=-1e101),
    "nothing for a mean": setting(*FEATURES, "mean", 3, to=None),
    "a text for a mean": setting(*FEATURES, "mean", 3, to="0.5"),
    "a mean missing": lambda traffic: traffic["kinds"][0]["moments"]["features"]["mean"].pop(),
    "a feature missing": shortened(*FEATURES),
    "a column to compare missing": shortened("kinds", 0, "moments", "typicality"),
    "no column of the log-probability": shortened("kinds", 0, "moments", "logprobs"),
    "a column of the prompts missing": shortened("prompts"),
    "no columns at all": setting(*FEATURES, to={"mean": [], "spread": []}),
    "a kind twice": lambda traffic: traffic["kinds"].append(traffic["kinds"][0]),
    "a kind of no rows": setting("kinds", 0, "rows", to=0),
    "a part of a row": setting("kinds", 0, "rows", to=1.5),
    "a kind without a name": setting("kinds", 0, "name", to=None),
    "a centre where there is one kind": lambda traffic: traffic["kinds"][0].update(
        centre=[0.0] * len(traffic["prompts"]["mean"])
    ),
    "a centre missing where there are two": both(twice, setting("kinds", 1, "centre", to=[])),
    "a centre of another width": both(twice, lambda traffic: traffic["kinds"][1]["centre"].pop()),
    "a centre beyond all measure": both(twice, setting("kinds", 1, "centre", 0, to=1e200)),
    "NaN for a centre": both(twice, setting("kinds", 1, "centre", 0, to=float("nan"))),
    "kinds of other widths": both(twice, shortened("kinds", 1, "moments", "features")),
    "centres beside a label": both(twice, setting("label", to="topic")),
    "a number for a label": setting("label", to=7),
    "an unknown key": setting("more", to=1),
    "an unknown key in a kind": setting("kinds", 0, "more", to=1),
    "more kinds than anybody reads": setting("kinds", to=[{}] * 20_001),
    "more numbers than anybody reads": setting(*FEATURES, "mean", to=[0.0] * 500_001),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_traffic_profile_is_refused_though_its_digest_is_right(change: Change, folder: Path) -> None:
    changed(folder, change)
    assert "traffic.json" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "7", '"kinds"', "[" * 100_000, '{"kinds":' * 100_000, '{"kinds": NaN}'],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_what_is_no_traffic_profile_is_refused_though_its_digest_is_right(text: str, folder: Path) -> None:
    put(folder, "traffic.json", text)
    assert "traffic.json" in refusal(folder)


def test_a_traffic_profile_of_another_bundle_is_found_by_its_digest(folder: Path) -> None:
    traffic = json.loads((folder / "traffic.json").read_text())
    traffic["kinds"][0]["name"] = "another"
    (folder / "traffic.json").write_text(json.dumps(traffic))
    assert "traffic.json' is damaged or from another bundle" in refusal(folder)


def test_a_huge_traffic_profile_is_not_read(folder: Path) -> None:
    limit = bundle_files.MAX_BYTES["traffic.json"]
    with (folder / "traffic.json").open("ab") as file:
        file.truncate(limit + 1)
    assert f"traffic.json' has {limit + 1} bytes; such a file has at most {limit}" in refusal(folder)


def test_many_wrong_kinds_make_no_long_complaint(folder: Path) -> None:
    changed(folder, setting("kinds", to=[{"name": "secret" * 50}] * 2_000))
    message = refusal(folder)
    assert message.count("Field required") <= 20
    assert "secret" not in message


ODD: dict[str, Change] = {
    "all is constant": lambda traffic: traffic["kinds"][0]["moments"]["features"].update(spread=[0.0] * 28),
    "the smallest spreads": lambda traffic: traffic["kinds"][0]["moments"]["features"].update(spread=[1e-100] * 28),
    "the largest spreads": lambda traffic: traffic["kinds"][0]["moments"]["features"].update(spread=[1e100] * 28),
    "the largest means": lambda traffic: traffic["kinds"][0]["moments"]["features"].update(mean=[-1e100] * 28),
    "the smallest spread to compare": setting("kinds", 0, "moments", "typicality", "spread", 0, to=1e-100),
    "two kinds": twice,
    "two kinds at one place": both(twice, lambda traffic: traffic["kinds"][0].update(traffic["kinds"][1], name="a")),
    "a centre as far as may be": both(twice, setting("kinds", 1, "centre", 0, to=-1e100)),
    "prompts that don't vary": both(
        twice, lambda traffic: traffic["prompts"].update(spread=[0.0] * len(traffic["prompts"]["mean"]))
    ),
    "a long name": setting("kinds", 0, "name", to="x" * 100_000),
    "an empty name": setting("kinds", 0, "name", to=""),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e37])
def test_an_odd_traffic_profile_gives_a_probability(
    change: Change, scale: float, folder: Path, generation: Row
) -> None:
    changed(folder, change)
    usual = generation(0)
    scaled = {position: (each * scale).astype(np.float32) for position, each in usual.signatures.items()}
    score = LightGBMScorer(read_bundle(str(folder))).score(
        Generation(
            text="Oslo",
            tokens=2,
            prompt_tokens=9,
            finish_reason="stop",
            seconds=0.1,
            signatures=scaled,
            statistics=usual.statistics,
        )
    )
    assert 0 <= score.uncertainty <= 1
    assert 0 < score.typicality <= 1


def test_a_bundle_whose_kinds_a_label_names_asks_for_the_label(folder: Path, generation: Row) -> None:
    changed(folder, setting("label", to="topic"))
    scorer = LightGBMScorer(read_bundle(str(folder)))
    with pytest.raises(ScoringError, match="the label 'topic' names the kinds"):
        scorer.score(generation(0))
    assert 0 <= scorer.score(generation(0), labels={"topic": "all"}).uncertainty <= 1


def test_an_older_bundle_without_a_traffic_profile_is_refused_by_the_files_name(folder: Path) -> None:
    (folder / "traffic.json").unlink()
    metadata = json.loads((folder / "bundle.json").read_text())
    del metadata["sha256"]["traffic.json"]
    (folder / "bundle.json").write_text(json.dumps(metadata))
    with pytest.raises(BundleError, match=r"traffic\.json"):
        read_bundle(str(folder))
