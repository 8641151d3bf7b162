"""Bundles are written, found and read back."""

import ast
import errno
import importlib.resources
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from ilis_guard import scoring
from ilis_guard.errors import BundleError
from ilis_guard.scoring import Bundle, BundleMetadata, TypicalMaps, read_bundle, write_bundle
from ilis_guard.scoring.bundle import CalibrationSet
from ilis_guard.scoring.bundle_files import MAX_BYTES
from ilis_guard.scoring.traffic import TrafficProfile

FILES = {"bundle.json", "trees.txt", "calibration.json", "traffic.json"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_bundle_round_trips_to_the_last_digit(
    bundle: Bundle, metadata: BundleMetadata, trees: str, calibration_set: CalibrationSet, traffic: TrafficProfile
) -> None:
    assert bundle.metadata == metadata
    assert bundle.trees == trees
    assert bundle.calibration_set == calibration_set
    assert bundle.traffic == traffic


def test_bundle_is_four_text_files_and_leaves_nothing_beside(folder: Path) -> None:
    assert set(contents(folder)) == FILES
    assert list(folder.parent.iterdir()) == [folder]
    assert "{question} Antworte" in (folder / "bundle.json").read_text()


def test_the_same_bundle_is_written_byte_for_byte_and_has_the_same_digest(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert read_bundle(str(tmp_path / "again")).digest == bundle.digest


def test_the_digest_tells_of_a_change_in_any_part(bundle: Bundle, tmp_path: Path) -> None:
    others = [
        replace(bundle, metadata=bundle.metadata.model_copy(update={"max_new_tokens": 17})),
        replace(bundle, trees=bundle.trees + "\n"),
        replace(bundle, calibration_set=bundle.calibration_set.model_copy(update={"wrong": (True,) * 4})),
        replace(bundle, traffic=bundle.traffic.model_copy(update={"label": "topic"})),
    ]
    for index, other in enumerate(others):
        write_bundle(other.metadata, other.trees, other.calibration_set, other.traffic, tmp_path / str(index))
    digests = {read_bundle(str(tmp_path / str(index))).digest for index in range(4)} | {bundle.digest}
    assert len(digests) == 5
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_an_older_bundle_is_replaced(folder: Path, bundle: Bundle) -> None:
    newer = bundle.metadata.model_copy(update={"model": "newer"})
    write_bundle(newer, bundle.trees, bundle.calibration_set, bundle.traffic, folder)
    assert read_bundle(str(folder)).metadata.model == "newer"
    assert list(folder.parent.iterdir()) == [folder]


def test_until_the_new_bundle_is_complete_the_old_one_is_read(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = os.fsync

    def fsync(file: int) -> None:
        seen.append(read_bundle(str(folder)).digest)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    newer = bundle.metadata.model_copy(update={"model": "newer"})
    write_bundle(newer, bundle.trees, bundle.calibration_set, bundle.traffic, folder)
    assert seen == [bundle.digest] * 4
    assert read_bundle(str(folder)).digest != bundle.digest


@pytest.mark.parametrize("written", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_writing_that_fails_midway_leaves_the_old_bundle_and_no_litter(
    written: int, error: BaseException, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count = contents(folder), itertools.count()

    def fsync(_: int) -> None:
        if next(count) == written:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    newer = bundle.metadata.model_copy(update={"model": "newer"})
    with pytest.raises(type(error)):
        write_bundle(newer, bundle.trees, bundle.calibration_set, bundle.traffic, folder)
    assert contents(folder.parent) == {f"{folder.name}/{name}": content for name, content in before.items()}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("file", sorted(FILES))
def test_oversized_file_is_never_written(
    file: str, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    monkeypatch.setitem(MAX_BYTES, file, len(before[file]) - 1)
    with pytest.raises(BundleError, match=f"'{file}' would have {len(before[file])} bytes"):
        write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, folder)
    assert contents(folder) == before


def test_a_calibration_set_too_large_to_be_read_again_is_not_written(folder: Path, bundle: Bundle) -> None:
    before, rows = contents(folder), 300_000
    larger = bundle.calibration_set.model_copy(update={"uncertainty": (0.5,) * rows, "wrong": (True,) * rows})
    with pytest.raises(BundleError, match=r"'calibration\.json' couldn't be read again: it has some 600\d{3} values"):
        write_bundle(bundle.metadata, bundle.trees, larger, bundle.traffic, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("failing", [0, 1])
def test_where_the_exchange_fails_the_old_bundle_is_put_back(
    failing: int, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count, real = contents(folder), itertools.count(), Path.rename

    def rename(self: Path, target: Path) -> Path:
        if next(count) == failing:
            raise OSError(errno.EIO, "the disk is gone")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="the disk is gone"):
        write_bundle(bundle.metadata, "newer", bundle.calibration_set, bundle.traffic, folder)
    assert contents(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(("other", "named"), [("notes.md", "notes.md"), ("older/trees.txt", "older")])
def test_folder_with_other_files_is_never_deleted(other: str, named: str, bundle: Bundle, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / other).parent.mkdir(parents=True)
    (mine / other).write_text("a year's work")
    with pytest.raises(BundleError, match=rf"holds \['{named}'\]; name a new folder"):
        write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, mine)
    assert contents(mine) == {other: b"a year's work"}


def test_a_file_in_the_folders_place_is_never_deleted(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("a day's harvest")
    with pytest.raises(BundleError, match="is a file"):
        write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").read_text() == "a day's harvest"


def test_an_empty_folder_and_the_current_one_may_be_written_to(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, Path())
    assert read_bundle(str(tmp_path / "empty")) == bundle


@pytest.fixture
def shipped(folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the bundle `toy`, a file beside it, and a bundle outside that mustn't be reached."""
    package = folder.parent.parent
    (package / "bundles" / "README.md").write_text("not a bundle")
    write_bundle(bundle.metadata, bundle.trees, bundle.calibration_set, bundle.traffic, package / "outside")
    for name in FILES:
        (package / name).write_bytes((folder / name).read_bytes())
    monkeypatch.setattr(importlib.resources, "files", {"ilis_guard": package}.__getitem__)
    return package


@pytest.mark.usefixtures("shipped")
def test_a_packaged_bundle_is_read_by_name(bundle: Bundle) -> None:
    assert read_bundle("packaged:toy") == bundle


@pytest.mark.parametrize(
    "name",
    ["../outside", "..", ".", "", "./toy", "toy/", "toy/../toy", "toy/../../outside", "README.md", "TOY", "t\0y"],
)
@pytest.mark.usefixtures("shipped")
def test_a_packaged_name_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(BundleError, match=r"comes with ilis_guard; there are \['toy'\]"):
        read_bundle(f"packaged:{name}")


def test_a_packaged_name_is_no_absolute_path(shipped: Path) -> None:
    with pytest.raises(BundleError, match="comes with ilis_guard"):
        read_bundle(f"packaged:{shipped / 'outside'}")


def test_without_packaged_bundles_the_error_says_that_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.resources, "files", {"ilis_guard": tmp_path}.__getitem__)
    with pytest.raises(BundleError, match=r"there are \[\]"):
        read_bundle("packaged:toy")


def test_a_missing_folder_is_named_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle folder '.*nowhere'; fit one with `ilis-guard fit`"):
        read_bundle(str(tmp_path / "nowhere"))


def test_nothing_in_the_room_can_load_a_pickle() -> None:
    files = list(Path(str(scoring.__file__)).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            named: set[str] = set()
            if isinstance(node, ast.Import):
                named = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Call):
                function = node.func
                named = {function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")}
            forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "torch"}
            calls = {"load", "eval", "exec", "compile", "fromfile", "memmap", "__import__", "import_module"}
            regex = isinstance(node, ast.Call) and ast.unparse(node.func) == "re.compile"
            assert not named & (forbidden | calls) or regex, f"{file.name}:{getattr(node, 'lineno', 0)}"


def test_typical_maps_come_back_and_a_bundle_without_them_is_still_one(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.calibration_set.typical is None
    typical = TypicalMaps(right=((0.0, 1.5), (2.0, 0.0)), wrong=((0.0, 3.0), (4.25, 0.0)))
    write_bundle(
        bundle.metadata,
        bundle.trees,
        bundle.calibration_set.model_copy(update={"typical": typical}),
        bundle.traffic,
        tmp_path / "typical",
    )
    assert read_bundle(str(tmp_path / "typical")).calibration_set.typical == typical


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (((0.0, 1.0),), ((0.0, 1.0),)),
        (((0.0, 1.0), (1.0, 0.0)), ((0.0,),)),
        (((0.0, 1.0), (1.0,)), ((0.0, 1.0), (1.0, 0.0))),
        (((-0.1,),), ((0.0,),)),
    ],
)
def test_typical_maps_that_are_none_are_refused(
    right: tuple[tuple[float, ...], ...], wrong: tuple[tuple[float, ...], ...]
) -> None:
    with pytest.raises(ValidationError):
        TypicalMaps(right=right, wrong=wrong)
