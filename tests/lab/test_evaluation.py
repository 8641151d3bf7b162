from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.baselines.estimator import Kind
from ilis_guard.lab.baselines.methods import Fused, OutputStatistics
from ilis_guard.lab.evaluation import bootstrap
from ilis_guard.lab.evaluation.bootstrap import (
    MEAN,
    POOLED,
    Difference,
    MetricEstimate,
    count_groups,
    differences,
    error_if_exact,
    estimate_metrics,
)
from ilis_guard.lab.evaluation.evaluate import _worst_cases as worst_cases
from ilis_guard.lab.evaluation.ood import detections
from ilis_guard.lab.evaluation.sets import best_constant, counted_sets, question_sets
from ilis_guard.lab.evaluation.trials import OTHERS, Trial, check_pair, count_fits, trials
from ilis_guard.lab.metrics import EXACT, ScoreCounts
from ilis_guard.lab.questions import Question
from ilis_guard.lab.splits import split
from tests.lab.synthetic import FixedRanker, fingerprint, noise, synthetic_answers

pytestmark = pytest.mark.usefixtures("fitted_model")

SIZES = {"capital": 300, "city": 300, "river": 300}
SEEDS = 2


def telling(rows: Answers) -> np.ndarray:
    """Tells a good deal: noise, and a step where the answer is wrong."""
    told: np.ndarray = noise(rows) + 2 * rows.wrong
    return told


METHODS = (
    FixedRanker("telling", telling),
    FixedRanker("noise", noise),
    FixedRanker("against", lambda rows: -telling(rows)),
    OutputStatistics(),
    Fused(),
)


@pytest.fixture(scope="module")
def rows() -> Answers:
    return synthetic_answers(SIZES)


@pytest.fixture(scope="module")
def tried(rows: Answers) -> list[Trial]:
    return list(trials(rows, METHODS, seeds=SEEDS, applied=None, progress=lambda: None))


@pytest.fixture(scope="module")
def found(tried: list[Trial]) -> list[MetricEstimate]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bootstrap, "RESAMPLES", 200)
        return estimate_metrics(tried)


def one(found: list[MetricEstimate], protocol: str, method: str, metric: str, tested: str = MEAN) -> MetricEstimate:
    (figure,) = (
        figure
        for figure in found
        if (figure.protocol, figure.method, figure.metric, figure.tested_on) == (protocol, method, metric, tested)
    )
    return figure


def test_every_protocol_has_its_trials(tried: list[Trial]) -> None:
    kinds = Counter((trial.protocol, trial.method) for trial in tried)
    for method in METHODS:
        assert kinds["in-distribution", method.name] == 3 * SEEDS
        assert kinds["one-to-one", method.name] == 3 * 2 * SEEDS
        assert kinds["leave-one-set-out", method.name] == 3
    assert {trial.trained_on for trial in tried if trial.protocol == "leave-one-set-out"} == {OTHERS}
    assert all((trial.trained_on == trial.tested_on) == (trial.protocol == "in-distribution") for trial in tried)


def test_all_methods_are_tested_on_the_same_rows(tried: list[Trial]) -> None:
    of_cell: dict[tuple[str, str, str, int], set[bytes]] = {}
    for trial in tried:
        cell = (trial.protocol, trial.trained_on, trial.tested_on, trial.seed)
        of_cell.setdefault(cell, set()).add(trial.places.tobytes())
    assert all(len(places) == 1 for places in of_cell.values())


def test_nothing_that_is_tested_was_trained_on_chosen_on_or_calibrated_on(rows: Answers) -> None:
    seen: list[tuple[set[str], set[str]]] = []

    class Watching:
        name: str = "watching"
        kind: Kind = "signature"

        def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> FixedRanker:
            splits = split(rows.datasets, seed)
            assert not (train & ~splits["train"]).any()
            assert not (validation & ~splits["validation"]).any()
            seen.append((set(rows.ids[train | validation]), set(rows.datasets[train | validation])))
            return FixedRanker("watching", lambda asked: np.full(len(asked), 0.5))

    def check(trial: Trial) -> None:
        learned, sets = seen[-1]
        of_set = rows.ids[rows.datasets == trial.tested_on]
        assert learned.isdisjoint(of_set[trial.places])
        if trial.protocol == "leave-one-set-out":
            assert trial.tested_on not in sets
            assert len(trial.places) == len(of_set)
        else:
            assert sets == {trial.trained_on}
            test = split(rows.datasets, trial.seed)["test"] & (rows.datasets == trial.tested_on)
            assert set(of_set[trial.places]) == set(rows.ids[test])

    for trial in trials(rows, [Watching()], seeds=2, applied=None, progress=lambda: None):
        check(trial)
    assert len(seen) == count_fits(sets=3, applied_sets=0, methods=1, seeds=2) == 9


def test_an_informative_score_wins_and_noise_is_chance(found: list[MetricEstimate]) -> None:
    for protocol in ("in-distribution", "one-to-one", "leave-one-set-out"):
        assert one(found, protocol, "fused", "auroc").value > 0.75
        # Two normal distributions two standard deviations apart.
        assert one(found, protocol, "telling", "auroc").value == pytest.approx(0.921, abs=0.03)
        assert one(found, protocol, "noise", "auroc").value == pytest.approx(0.5, abs=0.06)
        low, high = one(found, protocol, "noise", "auroc").interval
        assert low < 0.5 < high
        assert one(found, protocol, "against", "auroc").value < 0.15


def test_an_estimate_is_the_mean_over_seeds_of_scikit_learns_metric(
    found: list[MetricEstimate], tried: list[Trial]
) -> None:
    cell = [
        trial
        for trial in tried
        if (trial.method, trial.trained_on, trial.tested_on, trial.protocol)
        == ("fused", "capital", "city", "one-to-one")
    ]
    (figure,) = (
        figure
        for figure in found
        if (figure.method, figure.trained_on, figure.tested_on, figure.metric) == ("fused", "capital", "city", "auroc")
    )
    expected = [float(roc_auc_score(trial.wrong, trial.raw)) for trial in cell]
    assert figure.by_seed.tolist() == pytest.approx(expected)
    assert figure.value == pytest.approx(np.mean(expected))
    assert figure.spread == pytest.approx(np.std(expected, ddof=1))
    assert figure.rows == len(set(np.concatenate([trial.places for trial in cell]).tolist()))
    low, high = figure.interval
    assert low < figure.value < high


def test_unbounded_scores_are_calibrated_too_and_keep_their_order(
    found: list[MetricEstimate], tried: list[Trial]
) -> None:
    ece, exact = (one(found, "in-distribution", "telling", metric, POOLED) for metric in ("ece", EXACT))
    assert ece.value < exact.value + 0.05
    assert one(found, "in-distribution", "telling", "brier_skill").value > 0.4
    for trial in tried:
        if trial.method in ("telling", "fused"):
            order = np.argsort(trial.raw, kind="stable")
            assert (np.diff(trial.probability[order]) >= 0).all()


def test_a_reversed_score_is_calibrated_to_the_base_rate(tried: list[Trial]) -> None:
    for trial in tried:
        if trial.method == "against":
            assert len(set(trial.probability.tolist())) == 1
            assert 0.3 < trial.probability[0] < 0.7
            assert len(set(trial.raw.tolist())) > 1


def test_differences_are_paired(found: list[MetricEstimate]) -> None:
    told = {(one.protocol, one.metric, one.method): one for one in differences(found, "telling")}
    better = told["in-distribution", "auroc", "noise"]
    assert better.value == pytest.approx(
        one(found, "in-distribution", "telling", "auroc").value - one(found, "in-distribution", "noise", "auroc").value
    )
    low, high = better.interval
    assert 0 < low < better.value < high
    assert (better.ahead, len(better.of_each)) == (3, 3)
    assert better.worst == min(better.of_each.values())
    lower = told["in-distribution", "brier", "noise"]
    assert lower.value < 0
    assert lower.ahead == 3
    assert lower.worst == max(lower.of_each.values())
    assert ("in-distribution", "auroc", "telling") not in told
    assert len(told["one-to-one", "auroc", "noise"].of_each) == 6


def test_a_method_does_not_differ_from_itself_draw_by_draw(rows: Answers) -> None:
    twins = (FixedRanker("one", telling), FixedRanker("other", lambda rows: 2 * telling(rows) + 7))
    made = trials(rows, twins, seeds=1, applied=None, progress=lambda: None)
    told: list[Difference] = differences(estimate_metrics(list(made)), "one")
    assert told
    for twin in told:
        assert twin.interval == pytest.approx((0, 0), abs=1e-9)


def test_the_interval_of_a_mean_over_sets_is_narrower_than_that_of_one_set(found: list[MetricEstimate]) -> None:
    low, high = one(found, "in-distribution", "noise", "auroc").interval
    one_low, one_high = one(found, "in-distribution", "noise", "auroc", "city").interval
    assert high - low < 0.8 * (one_high - one_low)


def test_progress_is_told_as_often_as_announced(rows: Answers) -> None:
    ticks: list[str] = []
    few = METHODS[:2]
    made = list(trials(rows, few, seeds=2, applied=rows, progress=lambda: ticks.append("fit")))
    estimate_metrics(made, progress=lambda: ticks.append("group"))
    assert ticks.count("fit") == count_fits(sets=3, applied_sets=3, methods=2, seeds=2)
    assert ticks.count("group") == count_groups(made) == 2 * 5


def test_precision_transfer_tests_the_same_questions(rows: Answers) -> None:
    """There the maps say nothing, so that a refit finds nothing, and rows come in another order."""
    order = np.random.default_rng(1).permutation(len(rows))[:-40]
    silent = synthetic_answers(SIZES, seed=5, signal=0.0)
    away = replace(rows, signatures=silent.signatures, statistics=silent.statistics).take(order)
    made = list(trials(rows, [Fused()], seeds=1, applied=away, progress=lambda: None))
    found = estimate_metrics(made)
    assert one(found, "in-distribution", "fused", "auroc").value > 0.75
    for protocol in ("applied", "refitted"):
        assert one(found, protocol, "fused", "auroc").value == pytest.approx(0.5, abs=0.15)
    test = rows.ids[split(rows.datasets, 0)["test"]]
    for trial in made:
        if trial.protocol in ("applied", "refitted"):
            of_set = away.ids[away.datasets == trial.tested_on]
            tested = set(of_set[trial.places].tolist())
            assert tested == set(test.tolist()) & set(of_set.tolist())
            assert (trial.wrong == away.wrong[away.datasets == trial.tested_on][trial.places]).all()


def test_precisions_that_are_not_a_pair_are_refused() -> None:
    check_pair(fingerprint(), fingerprint("nf4"))
    with pytest.raises(FitError, match="differ in nothing"):
        check_pair(fingerprint(), fingerprint())
    with pytest.raises(FitError, match="prompt"):
        check_pair(fingerprint(), replace(fingerprint("nf4"), prompt="ef"))


def test_an_error_names_the_set_with_one_class_in_a_split(rows: Answers) -> None:
    test = split(rows.datasets, 0)["test"] & (rows.datasets == "city")
    with pytest.raises(FitError, match="the test rows of 'city' are all wrong"):
        list(trials(replace(rows, wrong=rows.wrong | test), METHODS, seeds=1, applied=None, progress=lambda: None))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_an_error_that_names_the_method(rows: Answers, bad: float) -> None:
    broken = FixedRanker("broken", lambda asked: np.where(np.arange(len(asked)) == 3, bad, 0.5))
    with pytest.raises(FitError, match=r"'broken' must give 240 finite scores.* 1 of them not finite"):
        list(trials(rows, [broken], seeds=1, applied=None, progress=lambda: None))


def test_a_method_that_cannot_be_fitted_is_named(rows: Answers) -> None:
    class Failing:
        name: str = "failing"
        kind: Kind = "signature"

        def fit(self, rows: Answers, train: Mask, validation: Mask, seed: int) -> FixedRanker:  # noqa: ARG002
            raise FitError("nothing was learned")

    with pytest.raises(FitError, match="'failing' can't be fitted to 'capital': nothing was learned"):
        list(trials(rows, [Failing()], seeds=1, applied=None, progress=lambda: None))


def test_exact_probabilities_have_about_the_error_that_is_expected_of_them() -> None:
    random = np.random.default_rng(0)
    said = random.random(400)
    expected = error_if_exact(said)
    errors = [float(ScoreCounts.of(random.random(400) < said, said).calibration_error()[0]) for _ in range(100)]
    assert expected == pytest.approx(np.mean(errors), abs=0.005)


def test_sets_count_by_the_rule() -> None:
    easy, hard = synthetic_answers({"easy": 400}, share=0.1), synthetic_answers({"hard": 400}, seed=1, share=0.9)
    usable, few = synthetic_answers({"usable": 400}, seed=2), synthetic_answers({"few": 80}, seed=3)
    rows = join(easy, hard, usable, few)
    sets = {one.name: one for one in question_sets(rows, None)}
    assert sets["usable"].counts
    assert "outside of 15% to 85%" in sets["easy"].why_left_out
    assert "outside of 15% to 85%" in sets["hard"].why_left_out
    assert "at least 50 of each" in sets["few"].why_left_out
    assert counted_sets(list(sets.values())) == ["usable"]
    with pytest.raises(FitError, match=r"no set counts.*'few'"):
        counted_sets([sets["few"], sets["easy"]])


def test_a_set_on_which_a_constant_answer_does_as_well_is_left_out() -> None:
    rows = join(synthetic_answers({"yes-no": 400}, share=0.45), synthetic_answers({"open": 400}, seed=1, share=0.45))
    asked = [
        Question(id=str(id_), question="Is it?", kind="boolean", answers=("yes", "true") if at % 5 else ("no", "false"))
        if name == "yes-no"
        else Question(id=str(id_), question="What is it?", answers=(f"thing {at}",))
        for at, (id_, name) in enumerate(zip(rows.ids, rows.datasets, strict=True))
    ]
    sets = {one.name: one for one in question_sets(rows, asked)}
    assert sets["yes-no"].constant == pytest.approx(0.8)
    assert "not surely better than always giving the same answer" in sets["yes-no"].why_left_out
    assert sets["open"].counts
    with pytest.raises(FitError, match="isn't among the questions"):
        question_sets(rows, asked[1:])


def test_the_best_constant_answer_of_each_kind() -> None:
    letters = [
        Question(id=str(at), question="?", kind="choice", choices=(f"x{at}", f"y{at}"), answers=("AB"[at % 3 == 0],))
        for at in range(6)
    ]
    assert best_constant(letters) == pytest.approx(4 / 6)
    texts = [
        Question(
            id=str(at), question="?", kind="choice", choices=("up", "down")[:: 1 if at % 2 else -1], answers=("up",)
        )
        for at in range(6)
    ]
    assert best_constant(texts) == 1
    numbers = [
        Question(id=str(at), question="?", kind="numeric", answers=(number,))
        for at, number in enumerate(["1,000", "1000.0", "7"])
    ]
    assert best_constant(numbers) == pytest.approx(2 / 3)
    opened = [
        Question(id=str(at), question="?", answers=names)
        for at, names in enumerate([("Rome", "rome"), ("ROME", "Roma"), ("Paris",), ("Oslo",)])
    ]
    assert best_constant(opened) == pytest.approx(1 / 2)


def test_typicality_detects_other_sets_at_its_level() -> None:
    rows = synthetic_answers({"near": 500, "like": 500, "far": 500}, unlike=["far"])
    found = {(one.trained_on, one.tested_on): one for one in detections(rows, seeds=3)}
    for name in ("near", "far"):
        assert found[name, name].auroc == pytest.approx(0.5)
        assert found[name, name].below[0] < 0.04
        assert 0.01 < found[name, name].below[1] < 0.1
    assert found["near", "far"].auroc > 0.99
    assert found["near", "far"].below[0] > 0.9
    assert found["near", "like"].auroc == pytest.approx(0.5, abs=0.07)
    assert found[OTHERS, "far"].auroc > 0.9
    assert found["near", "far"].rows == 3 * 100


def test_worst_cases_are_the_surest_wrong_and_the_least_sure_right_ones(rows: Answers, tried: list[Trial]) -> None:
    asked = {str(id_): Question(id=str(id_), question=f"{id_}?", answers=("a", "b")) for id_ in rows.ids}
    worst = worst_cases(tried, "telling", rows, asked, {name: f"answer to {name}" for name in asked})
    wrong = {str(id_): bool(bad) for id_, bad in zip(rows.ids, rows.wrong, strict=True)}
    assert all(wrong[case.id] for case in worst.sure_and_wrong)
    assert not any(wrong[case.id] for case in worst.unsure_and_right)
    sure = [case.uncertainty for case in worst.sure_and_wrong]
    unsure = [case.uncertainty for case in worst.unsure_and_right]
    assert (sure, unsure) == (sorted(sure), sorted(unsure, reverse=True))
    assert sure[0] < 0.4 < unsure[0]
    first = worst.sure_and_wrong[0]
    assert (first.question, first.accepted, first.answer) == (f"{first.id}?", "a / b", f"answer to {first.id}")


def join(*parts: Answers) -> Answers:
    return replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        datasets=np.concatenate([part.datasets for part in parts]),
        wrong=np.concatenate([part.wrong for part in parts]),
        signatures={
            position: np.concatenate([part.signatures[position] for part in parts]) for position in parts[0].signatures
        },
        statistics=np.concatenate([part.statistics for part in parts]),
    )
