"""The paper's table by its command: from a folder of question files to tables and the page, on tiny random models."""

import csv
import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.laboratory.answers import SITE
from benchmarks.paper_table import __main__ as paper_table, models
from benchmarks.paper_table.matrix import PROBES, SCORERS, compared_methods
from benchmarks.paper_table.models import check_memory, model_name, tiers_of
from benchmarks.paper_table.sets import read_sets, split_parts
from benchmarks.paper_table.tables import CELLS_FILE, OVERVIEW, SETS, PaperTable
from ilis_guard.config.tiers import TierConfig
from ilis_guard.errors import FitError, MissingDependencyError, ModelError, QuestionError
from ilis_guard.lab.attempts import Answers, read_answers
from ilis_guard.lab.baselines.observations import with_observations
from ilis_guard.lab.baselines.probes import LayerProbe
from ilis_guard.lab.questions import Question, read_questions, write_questions
from ilis_guard.models.local import LocalModel
from tests.lab.tiny_models import make

pytestmark = pytest.mark.usefixtures("real_model")

ONE, OTHER, HOPELESS, THIN = "heard-of", "heard-of-too", "never-right", "too-few"
ROWS = 120


def write_sets(folder: Path, rows: int = ROWS) -> Path:
    """Two sets on which the model is right about half of the time, one on which it never is, and a tiny one."""
    draw = random.Random(0)

    def asked(name: str, number: int, *answers: str) -> Question:
        text = " ".join(f"w{draw.randrange(53)}" for _ in range(draw.randrange(2, 12)))
        return Question(id=str(number), question=f"{text} {name}-{number}", answers=answers)

    def heard(name: str, size: int) -> list[Question]:
        some = (draw.sample(range(53), 6) for _ in range(size))
        return [asked(name, number, *(f"w{word}" for word in words)) for number, words in enumerate(some)]

    folder.mkdir(exist_ok=True)
    for name in (ONE, OTHER):
        write_questions(folder / f"{name}.jsonl", heard(name, rows))
    write_questions(folder / f"{THIN}.jsonl", heard(THIN, 8))
    write_questions(folder / f"{HOPELESS}.jsonl", [asked(HOPELESS, number, "nothing") for number in range(20)])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "tiny", "llama", seed=1)


@pytest.fixture(scope="module")
def tiers(model: Path) -> tuple[TierConfig, TierConfig]:
    return tiers_of(str(model), prompt="{question} w1", max_new_tokens=7)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(tiers: tuple[TierConfig, TierConfig], data: Path, folder: Path) -> PaperTable:
    """What an undisturbed run made."""
    return run(tiers, data, folder)


def run(tiers: tuple[TierConfig, TierConfig], data: Path, folder: Path) -> PaperTable:
    return paper_table.run(
        tiers, read_sets(data, 850), to=folder / "to", results=folder / "results", command="by hand", seeds=1
    )


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answers(folder: Path, precision: str, names: tuple[str, ...] = (ONE, OTHER)) -> Answers:
    at = folder / "to" / precision
    harvests = [at / f"{name}.parquet" for name in names]
    return with_observations(read_answers(harvests), harvests, [at / f"{name}.observations.parquet" for name in names])


def test_every_pair_of_sets_has_a_cell_in_every_setting(whole: PaperTable, folder: Path) -> None:
    cells = {
        (one["setting"], one["method"], one["trained_on"], one["tested_on"])
        for one in lines(folder / "results" / "tiny" / CELLS_FILE)
    }
    assert cells == {
        (setting, method, trained_on, tested_on)
        for setting in ("full", "applied", "refitted")
        for method in (*SCORERS, *PROBES)
        for trained_on in (ONE, OTHER)
        for tested_on in (ONE, OTHER)
    }
    assert {(one.cells, one.of) for one in whole.means} == {("in-distribution", 2), ("off-diagonal", 2)}
    assert (folder / "results" / "tiny" / paper_table.PAGE).stat().st_size > 10_000
    measured = {one["model"] for one in lines(folder / "results" / OVERVIEW) if one["Brier as fitted, here"]}
    assert measured == {"tiny"}


def test_neither_texts_nor_folders_are_in_what_is_committed(whole: PaperTable, folder: Path, model: Path) -> None:
    texts = {asked.question for asked in read_questions(folder / "to" / "questions" / f"{ONE}.jsonl")}
    assert len(texts) == ROWS
    for path in (folder / "results").rglob("*.*"):
        content = path.read_text()
        assert str(model.parent) not in content, path.name
        assert not any(text in content for text in texts), path.name
    assert len(list((folder / "results" / whole.model).iterdir())) == 6


def test_sets_that_do_not_count_are_named_with_the_reason(whole: PaperTable, folder: Path) -> None:
    said = {
        (one["precision"], one["set"]): one["counts, or why not"] for one in lines(folder / "results" / "tiny" / SETS)
    }
    assert said["full", ONE] == said["full", OTHER] == said["nf4", ONE] == said["nf4", OTHER] == "counts"
    assert said["full", HOPELESS] == "right 0.0% of the time, outside of 20% to 80%"
    assert said["full", THIN] == "too few questions: with seed 0 the validation rows are all right (1 of 7 answers)"
    # They aren't asked at 4 bits.
    assert {name for precision, name in said if precision == "nf4"} == {ONE, OTHER}
    assert len(whole.manifests) == 4 + 2


@pytest.mark.parametrize(("setting", "fitted", "tested"), [
    ("full", "full", "full"), ("applied", "full", "nf4"), ("refitted", "nf4", "nf4"),
])  # fmt: skip
@pytest.mark.parametrize("trained_on", [ONE, OTHER])
def test_a_cells_figure_is_that_of_a_probe_fitted_by_hand(
    setting: str, fitted: str, tested: str, trained_on: str, whole: PaperTable, folder: Path
) -> None:
    """Trained on the train rows of one set, its layer chosen on the validation rows; tested on the other set's."""
    tested_on = OTHER if trained_on == ONE else ONE
    (part_of,) = split_parts(answers(folder, "full"), 1)

    def rows_of(answered: Answers, part: str, name: str) -> np.ndarray:
        in_part = np.array([part_of.get(id_) == part for id_ in answered.ids.tolist()])
        rows: np.ndarray = (answered.datasets == name) & in_part
        return rows

    learned, there = answers(folder, fitted), answers(folder, tested)
    probe = LayerProbe(name="probe-mlp", site="mlp").fit(
        learned, rows_of(learned, "train", trained_on), rows_of(learned, "validation", trained_on), 0
    )
    test = there.take(rows_of(there, "test", tested_on))
    uncertainty = probe.predict_proba(test)
    brier = float(np.mean((uncertainty - test.wrong) ** 2))
    order = np.argsort(-uncertainty)
    hits = test.wrong[order]
    average_precision = float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    (cell,) = (
        one
        for one in whole.cells
        if (one.setting, one.method, one.trained_on, one.tested_on) == (setting, "probe-mlp", trained_on, tested_on)
    )
    assert cell.rows == len(test)
    assert cell.metrics["brier_as_fitted"].value == pytest.approx(brier)
    assert cell.metrics["auprc_wrong"].value == pytest.approx(average_precision)


def test_where_all_is_there_nothing_is_loaded_and_nothing_fitted(
    whole: PaperTable,
    tiers: tuple[TierConfig, TierConfig],
    data: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("it was loaded, or fitted")

    monkeypatch.setattr(LocalModel, "load", fail)
    monkeypatch.setattr(LayerProbe, "fit", fail)
    again = run(tiers, data, folder)
    assert [(one.metric, one.points) for one in again.differences] == [
        (one.metric, one.points) for one in whole.differences
    ]


def test_a_run_that_stops_while_fitting_goes_on_behind_the_sets_it_has(
    whole: PaperTable,
    tiers: tuple[TierConfig, TierConfig],
    data: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, fitted = LayerProbe.fit, []

    def fit(self: LayerProbe, rows: Answers, train: np.ndarray, validation: np.ndarray, seed: int) -> Any:
        name = str(rows.datasets[train][0])
        if name == OTHER and OTHER not in fitted and not resumed:
            raise KeyboardInterrupt
        fitted.append(name)
        return known(self, rows, train, validation, seed)

    resumed: list[bool] = []
    for path in (folder / "to" / "trials").rglob("*.parquet"):
        path.unlink()
    monkeypatch.setattr(LayerProbe, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        run(tiers, data, folder)
    assert set(fitted) == {ONE}
    resumed.append(True)
    fitted.clear()
    again = run(tiers, data, folder)
    assert set(fitted) == {OTHER}, "each set once"
    assert [one.points for one in again.differences] == [one.points for one in whole.differences]


def test_a_folder_without_question_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"holds no question files \(\*\.jsonl\)"):
        read_sets(tmp_path, 850)
    with pytest.raises(QuestionError, match="is no folder"):
        read_sets(tmp_path / "none", 850)
    with pytest.raises(SystemExit, match="holds no question files"):
        paper_table.main(model="tiny", data=tmp_path)


def test_questions_have_their_sets_name_and_a_sample_is_the_same_each_time(data: Path) -> None:
    sets = read_sets(data, 50)
    assert {name: len(questions) for name, questions in sets.items()} == {ONE: 50, OTHER: 50, HOPELESS: 20, THIN: 8}
    ids = [asked.id for questions in sets.values() for asked in questions]
    assert len(set(ids)) == len(ids)
    assert all(asked.id.startswith(f"{name}-") for name, questions in sets.items() for asked in questions)
    assert {asked.dataset for asked in sets[ONE]} == {ONE}
    assert read_sets(data, 50) == sets
    assert sets[ONE] != read_sets(data, 850)[ONE][:50]


def test_where_no_set_counts_the_reasons_are_said(
    tiers: tuple[TierConfig, TierConfig], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{HOPELESS}.jsonl").write_bytes((data / f"{HOPELESS}.jsonl").read_bytes())
    with pytest.raises(FitError, match=rf"no set counts.*'{HOPELESS}': right 0\.0% of the time"):
        run(tiers, tmp_path / "data", tmp_path)


def test_one_set_has_a_diagonal_and_nothing_else(
    tiers: tuple[TierConfig, TierConfig], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{ONE}.jsonl").write_bytes((data / f"{ONE}.jsonl").read_bytes())
    found = run(tiers, tmp_path / "data", tmp_path)
    assert {one.cells for one in found.means} == {"in-distribution"}
    rows = [one for one in lines(tmp_path / "results" / OVERVIEW) if one["model"] == "tiny"]
    assert {one["cells"]: bool(one["AUPRC right, here"]) for one in rows} == {
        "in-distribution": True,
        "off-diagonal": False,
    }


def test_without_bitsandbytes_nothing_is_asked(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else known(name))
    with pytest.raises(MissingDependencyError, match=r"4 bits .* need bitsandbytes"):
        tiers_of(str(model), prompt=None, max_new_tokens=7)


def test_a_model_without_room_in_memory_is_not_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (full, nf4) = tiers_of(str(model), prompt="{question}", max_new_tokens=7)
    weights = sum(one.numel() for one in LocalModel.load(str(model), site=SITE).checkpoint.model.parameters())
    needed = weights * (2 if torch.cuda.is_available() else 4)
    monkeypatch.setattr(models, "_free_memory", lambda: needed)
    check_memory(full)
    monkeypatch.setattr(models, "_free_memory", lambda: needed - 1)
    with pytest.raises(ModelError, match=r"has no room: its weights need .* GiB at full precision"):
        check_memory(full)
    check_memory(nf4)
    check_memory(full.model_copy(update={"device_map": "auto"}))


def test_a_memory_that_runs_out_while_a_model_answers_ends_the_command_with_a_remedy(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LocalModel, "generate_batch", full)
    with pytest.raises(SystemExit, match=r"CUDA out of memory.*smaller --batch"):
        paper_table.main(model=str(model), data=data, to=tmp_path, results=tmp_path)


def test_a_base_model_is_asked_with_worked_examples(model: Path, tmp_path: Path) -> None:
    base = make(tmp_path / "base", "llama", chat_template=None)
    full, nf4 = tiers_of(str(base), prompt=None, max_new_tokens=7)
    assert full.prompt == nf4.prompt
    assert full.prompt.count("Answer:") > 2
    assert full.prompt.endswith("Question: {question}\nAnswer:")
    assert tiers_of(str(model), prompt=None, max_new_tokens=7)[0].prompt == "{question} Answer in a few words only."
    assert (full.precision, nf4.precision) == ("full", "nf4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty' can't be read"):
        tiers_of(str(tmp_path / "empty"), prompt=None, max_new_tokens=7)


def test_a_models_name_is_the_last_part_of_its_id() -> None:
    for model, name in (
        ("packaged:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("meta-llama/Llama-3.1-8B", "Llama-3-1-8B"),
        ("/models/3b.v2/", "model-3b-v2"),
    ):
        assert model_name(model) == name


def test_the_compared_methods_are_known_to_the_evaluation() -> None:
    assert [method.name for method in compared_methods()] == [*PROBES, *SCORERS]
