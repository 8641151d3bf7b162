"""A damaged bundle on disk raises a BundleError that names the file."""

import dataclasses
import hashlib
import json
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ilis_guard.errors import BundleError
from ilis_guard.scoring import LightGBMScorer, bundle_files, read_bundle
from ilis_guard.types import Fingerprint

FILES = ["bundle.json", "trees.txt", "calibration.json", "traffic.json"]


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        LightGBMScorer(read_bundle(str(folder)))
    message = str(caught.value)
    assert len(message) < 5_000
    return message


def put(folder: Path, file: str, text: str) -> None:
    """Change a file, and tell bundle.json its new sha256."""
    (folder / file).write_text(text)
    metadata = json.loads((folder / "bundle.json").read_text())
    metadata["sha256"][file] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink()
    assert file in refusal(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_folder_in_a_files_place_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    assert file in refusal(folder)


@pytest.mark.parametrize("file", FILES)
def test_an_empty_file_is_named(file: str, folder: Path) -> None:
    (folder / file).write_bytes(b"")
    assert file in refusal(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named(file: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-20])
    assert file in refusal(folder)


@pytest.mark.parametrize("file", FILES[1:])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999])
def test_one_changed_byte_is_found(file: str, place: float, folder: Path) -> None:
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 1
    (folder / file).write_bytes(content)
    assert f"{file}' is damaged or from another bundle" in refusal(folder)


@pytest.mark.parametrize("file", FILES)
def test_invalid_utf8_names_its_file(file: str, folder: Path) -> None:
    (folder / file).write_bytes((folder / file).read_bytes() + b"\xff\xfe")
    assert file in refusal(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_too_large_is_not_read(file: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (folder / file).stat().st_size
    others = max((folder / other).stat().st_size for other in FILES if other != file)
    limit = max(size, others)
    (folder / file).write_bytes((folder / file).read_bytes() + b" " * (limit + 1 - size))
    monkeypatch.setattr(bundle_files, "MAX_BYTES", dict.fromkeys(FILES, limit))
    message = refusal(folder)
    assert file in message
    assert f"{limit + 1} bytes; such a file has at most {limit}" in message


@pytest.mark.parametrize("file", FILES)
def test_a_pipe_is_not_waited_for(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert f"{file}' is no plain file" in refusal(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("to", ["/dev/zero", "/proc/self/environ", "{outside}/secret.json", "{file}", "nowhere"])
def test_a_link_that_leads_out_or_nowhere_is_not_followed(file: str, to: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"key": "sesame"}')
    (folder / file).unlink()
    (folder / file).symlink_to(to.format(outside=tmp_path, file=file))
    message = refusal(folder)
    assert file in message
    assert "sesame" not in message


def test_link_to_a_sibling_of_the_bundle_leads_out(folder: Path) -> None:
    (folder.parent / "toy-2").mkdir()
    (folder / "trees.txt").rename(folder.parent / "toy-2" / "trees.txt")
    (folder / "trees.txt").symlink_to("../toy-2/trees.txt")
    assert "trees.txt' is a link that leads out of its folder" in refusal(folder)


def test_a_volume_of_kubernetes_is_a_bundle(folder: Path, tmp_path: Path) -> None:
    (folder / "..2026_01").mkdir()
    for file in FILES:
        (folder / file).rename(folder / "..2026_01" / file)
        (folder / file).symlink_to(f"..data/{file}")
    (folder / "..data").symlink_to("..2026_01")
    (tmp_path / "mounted").symlink_to(folder)
    LightGBMScorer(read_bundle(str(tmp_path / "mounted")))


def test_file_that_grows_during_reading_is_read_up_to_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat
    limit = max((folder / file).stat().st_size for file in FILES)

    def grow(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        if os.path.samestat(status, (folder / "trees.txt").stat()):
            with (folder / "trees.txt").open("a") as trees:
                trees.write(" " * limit)
        return status

    monkeypatch.setattr(bundle_files, "MAX_BYTES", dict.fromkeys(FILES, limit))
    monkeypatch.setattr(os, "fstat", grow)
    assert f"trees.txt' has {limit + 1} bytes" in refusal(folder)


def test_trees_of_another_bundle_are_found_by_their_digest(folder: Path, trees: str) -> None:
    (folder / "trees.txt").write_text(trees.replace("shrinkage=1\n", "shrinkage=2\n"))
    assert "trees.txt' is damaged or from another bundle" in refusal(folder)


Change = Callable[[dict[str, Any]], Any]


def setting(*path: str | int, to: Any) -> Change:
    def change(metadata: dict[str, Any]) -> None:
        inner: Any = metadata
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to

    return change


WRONG_METADATA: dict[str, Change] = {
    "another version": setting("version", to=2),
    "an unknown key": setting("more", to=1),
    "an unknown key in the fingerprint": setting("fingerprint", "more", to=1),
    "an unknown key in a figure": setting("held_out", "auroc", "more", to=1),
    "a key missing": lambda metadata: metadata.pop("prompt"),
    "a key missing from the fingerprint": lambda metadata: metadata["fingerprint"].pop("prompt"),
    "NaN": setting("calibration", "a", to=float("nan")),
    "Infinity": setting("calibration", "c", to=float("inf")),
    "NaN in the fingerprint": setting("fingerprint", "temperature", to=float("nan")),
    "NaN in a figure": setting("baseline", "brier", "low", to=float("nan")),
    "a calibration that turns the order": setting("calibration", "a", to=-1.0),
    "a number as a string": setting("fingerprint", "layers", to="4"),
    "a string as a number": setting("model", to=7),
    "a boolean as a number": setting("max_new_tokens", to=True),
    "a count as a string": setting("rows", "train", to="150"),
    "no number of layers": setting("fingerprint", "layers", to=4.5),
    "an unknown precision": setting("fingerprint", "precision", to="int8"),
    "an unknown feature": setting("features", to=["mean-last"]),
    "no features": setting("features", to=[]),
    "a list for a mapping": setting("datasets", to=[]),
    "no digests": lambda metadata: metadata.pop("sha256"),
    "a digest missing": lambda metadata: metadata["sha256"].pop("trees.txt"),
    "no digest of the traffic": lambda metadata: metadata["sha256"].pop("traffic.json"),
    "a list of digests": setting("sha256", to=["trees.txt"]),
    "a digest that is no string": setting("sha256", "trees.txt", to=None),
    "a feature twice": setting("features", to=["mean-prompt", "last-prompt", "statistics", "statistics"]),
    "a feature thousands of times": setting("features", to=["prompt"] * 9_000),
    "fewer than no rows": setting("held_out", "rows", to=-1),
    "fewer than no tokens": setting("max_new_tokens", to=-1),
    "a number as long as a line": setting("fingerprint", "layers", to=10**18),
    "a calibration steeper than any": setting("calibration", "b", to=1e301),
    "a calibration beyond any": setting("calibration", "c", to=-1e301),
    "more keys than anybody reads": setting("versions", to={str(key): "1" for key in range(20_000)}),
}


@pytest.mark.parametrize("change", WRONG_METADATA.values(), ids=WRONG_METADATA.keys())
def test_wrong_metadata_is_refused(change: Change, folder: Path) -> None:
    metadata = json.loads((folder / "bundle.json").read_text())
    change(metadata)
    (folder / "bundle.json").write_text(json.dumps(metadata))
    assert "bundle.json" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "null", "true", "7", '"bundle"', "NaN", '{"version": 1}{'),
        *("9" * 10_000, "[" * 100_000, '{"a":' * 100_000),
        '{"sha256": {"trees.txt": "", "calibration.json": "", "traffic.json": ""}, "model": "\\ud800"}',
    ],
    ids=lambda text: text[:20],
)
def test_invalid_metadata_is_refused(text: str, folder: Path) -> None:
    (folder / "bundle.json").write_text(text)
    assert "bundle.json" in refusal(folder)


def test_an_endless_number_is_refused(folder: Path) -> None:
    text = (folder / "bundle.json").read_text()
    changed = text.replace('"temperature": 0.30000000000000004', '"temperature": 1e999')
    assert changed != text
    (folder / "bundle.json").write_text(changed)
    assert "bundle.json" in refusal(folder)


TWICE = {
    "bundle.json": '{"stage": "answer", "stage": "prompt",',
    "calibration.json": '{"wrong": [],',
    "traffic.json": '{"label": null,',
}


@pytest.mark.parametrize("file", TWICE)
def test_a_key_that_is_there_twice_is_refused(file: str, folder: Path) -> None:
    twice = (folder / file).read_text().replace("{", TWICE[file], 1)
    if file == "bundle.json":
        (folder / file).write_text(twice)
    else:
        put(folder, file, twice)
    assert f"{file}' can't be used: the key" in refusal(folder)


def test_a_complaint_has_few_lines_and_repeats_nothing_but_keys(folder: Path) -> None:
    metadata = json.loads((folder / "bundle.json").read_text())
    metadata["versions"] = {f"{key}\n" * 20: 7 for key in range(5_000)}
    metadata["prompt"] = ["the author's own"]
    (folder / "bundle.json").write_text(json.dumps(metadata))
    message = refusal(folder)
    assert "and 4981 more problems like these" in message
    assert len(message) < 3_000
    assert "'prompt': Input should be a valid string" in message
    assert "the author's own" not in message


def test_of_many_unknown_features_one_is_complained_of(folder: Path) -> None:
    metadata = json.loads((folder / "bundle.json").read_text())
    metadata["features"] = ["mean-last"] * 50_000
    (folder / "bundle.json").write_text(json.dumps(metadata))
    assert refusal(folder).count("Input should be") == 1


@pytest.mark.parametrize(
    ("rows", "said"), [(400_000, "'uncertainty.0': Input should be less than or equal to 1"), (600_000, "values")]
)
def test_of_many_wrong_numbers_one_is_complained_of(rows: int, said: str, folder: Path) -> None:
    calibration = json.loads((folder / "calibration.json").read_text())
    calibration["uncertainty"] = [2] * rows
    put(folder, "calibration.json", json.dumps(calibration))
    assert refusal(folder).count(said) == 1


WRONG_CALIBRATION: dict[str, Change] = {
    "an uncertainty above 1": setting("uncertainty", to=[0.1, 0.2, 0.3, 1.1]),
    "an uncertainty below 0": setting("uncertainty", to=[0.1, 0.2, 0.3, -0.1]),
    "NaN": setting("uncertainty", to=[0.1, 0.2, 0.3, float("nan")]),
    "strings": setting("uncertainty", to=["0.1"] * 4),
    "more outcomes than rows": setting("wrong", to=[True] * 5),
    "outcomes in words": setting("wrong", to=["yes", "no", "yes", "no"]),
    "outcomes as numbers": setting("wrong", to=[1, 0, 1, 0]),
    "no typicality": lambda calibration: calibration.pop("typicality"),
    "distances out of order": setting("typicality", "distances", to=[2.0, 1.0]),
    "an unknown key": setting("more", to=1),
    "maps of other layers": setting("typicality", to={"mean": [0.0], "precision": [[1.0]], "distances": [1.0]}),
}


@pytest.mark.parametrize("change", WRONG_CALIBRATION.values(), ids=WRONG_CALIBRATION.keys())
def test_a_wrong_calibration_set_is_refused_though_its_digest_is_right(change: Change, folder: Path) -> None:
    calibration = json.loads((folder / "calibration.json").read_text())
    change(calibration)
    put(folder, "calibration.json", json.dumps(calibration))
    message = refusal(folder)
    assert "calibration.json" in message or "typicality reference" in message


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"uncertainty":' * 100_000], ids=lambda t: t[:5]
)
def test_invalid_calibration_set_with_a_right_digest_is_refused(text: str, folder: Path) -> None:
    put(folder, "calibration.json", text)
    assert "calibration.json" in refusal(folder)


@pytest.mark.parametrize("text", ["", "garbage", "tree\nversion=v4\n", "\0\0\0"])
def test_trees_that_are_garbage_are_refused_though_their_digest_is_right(text: str, folder: Path) -> None:
    put(folder, "trees.txt", text)
    assert "trees can't be used" in refusal(folder)


def test_trees_over_other_features_with_a_right_digest_are_refused(folder: Path) -> None:
    metadata = json.loads((folder / "bundle.json").read_text())
    metadata["features"] = ["mean-prompt"]
    (folder / "bundle.json").write_text(json.dumps(metadata))
    assert re.search(r"columns \{'features': 12, .*; its traffic.json has .*'features': 28, ", refusal(folder))


class Trap:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("file", FILES)
def test_a_pickle_is_never_loaded(file: str, folder: Path, tmp_path: Path) -> None:
    text = pickle.dumps(Trap(tmp_path / "sprung"), protocol=0).decode("ascii")
    if file == "bundle.json":
        (folder / file).write_text(text)
    else:
        put(folder, file, text)
    refusal(folder)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(text.encode())
    assert (tmp_path / "sprung").exists(), "the trap itself doesn't work"


@pytest.mark.parametrize("layers", [10_000, 3_000_000_000, -3, 0, 1])
def test_how_many_layers_a_bundle_claims_takes_no_memory_to_find_out(layers: int, folder: Path) -> None:
    read = read_bundle(str(folder))
    fingerprint = dataclasses.replace(cast("Fingerprint", read.metadata.fingerprint), layers=layers)
    lying = dataclasses.replace(read, metadata=read.metadata.model_copy(update={"fingerprint": fingerprint}))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            LightGBMScorer(lying)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
