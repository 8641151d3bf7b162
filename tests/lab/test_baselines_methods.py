"""Every method on made-up rows, of which it is known where the signal lies."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ilis_guard.errors import FitError
from ilis_guard.lab.attempts import Answers, Mask
from ilis_guard.lab.baselines import probes
from ilis_guard.lab.baselines.estimator import Estimator, Method
from ilis_guard.lab.baselines.methods import SIGNATURE, methods
from ilis_guard.lab.baselines.observations import LENS_SITES, SCORES, SITES
from ilis_guard.lab.baselines.probes import AllLayersProbe, LayerProbe, LayerProbeEstimator, LensProbe
from ilis_guard.lab.metrics import auroc
from ilis_guard.types import Fingerprint, Position, Site
from tests.lab.synthetic import harvest_manifest

pytestmark = pytest.mark.usefixtures("fitted_model")

LAYERS, HIDDEN, TOLD_AT = 6, 24, 4
POSITIONS: tuple[Position, ...] = ("prompt", "last", "mean")
METHODS = {method.name: method for method in methods()}
SUPERVISED = [name for name, method in METHODS.items() if method.kind != "unsupervised"]


def made(size: int, seed: int, *, signal: float = 1.5) -> Answers:
    """Rows in which all that methods look at tells how wrong an answer is; activations only at one layer."""
    random = np.random.default_rng(seed)
    wrong = random.random(size) < 0.4
    told = signal * (2.0 * wrong - 1)

    def noise(*shape: int) -> np.ndarray:
        return random.standard_normal((size, *shape))

    maps = {position: np.exp(noise(LAYERS, LAYERS)).astype(np.float32) for position in POSITIONS}
    for position in ("last", "mean"):
        maps[position][:, 1, 3] = np.exp(told + noise())
    activations: dict[Site, np.ndarray] = {}
    for site in SITES:
        layers = noise(LAYERS, HIDDEN)
        layers[:, TOLD_AT, :3] += told[:, None]
        activations[site] = (layers * np.arange(1, LAYERS + 1)[:, None]).astype(np.float16)
    entropies = noise(len(LENS_SITES), LAYERS).astype(np.float32)
    entropies[:, 1, TOLD_AT] += told
    return Answers(
        manifest=harvest_manifest(
            Fingerprint(
                weights="ab",
                precision="full",
                dtype="float32",
                layers=LAYERS,
                hidden=HIDDEN,
                site="mlp",
                taps="layers.*.mlp",
                temperature=1.0,
                decoding="greedy",
                prompt="cd",
            )
        ),
        ids=np.array([f"q{row}" for row in range(size)], dtype=object),
        datasets=np.array(["d"] * size),
        wrong=wrong,
        signatures=maps,
        statistics=np.column_stack([-told + noise(), noise(), told + noise(), noise()]),
        unsupervised={name: told + noise() for name in SCORES},
        activations=activations,
        lens=entropies * np.arange(1, LAYERS + 1, dtype=np.float32),
    )


ROWS = made(900, 0)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the probe on all layers learns these rows in a few epochs."""
    monkeypatch.setattr(probes, "MOST_EPOCHS", 12)
    monkeypatch.setattr(probes, "PATIENCE", 3)
    monkeypatch.setattr(probes, "NETWORK", (64, 32))


def thirds(rows: Answers) -> tuple[Mask, Mask, Mask]:
    """Rows to learn from, to choose on, and to look at."""
    place = np.arange(len(rows)) / len(rows)
    return place < 0.5, (place >= 0.5) & (place < 0.7), place >= 0.7


def scores(method: Method, rows: Answers, train: Mask, validation: Mask, of: Answers, *, seed: int = 0) -> np.ndarray:
    fitted = method.fit(rows, train, validation, seed)
    return fitted.predict_proba(of) if isinstance(fitted, Estimator) else fitted.decision_function(of)


def held_out_auroc(method: Method, rows: Answers, seed: int = 0) -> float:
    train, validation, test = thirds(rows)
    scored = scores(method, rows, train, validation, rows.take(test), seed=seed)
    assert scored.shape == (test.sum(),)
    assert scored.dtype == np.float64
    return auroc(rows.wrong[test], scored)


def shuffled(rows: Answers) -> Answers:
    return replace(rows, wrong=np.random.default_rng(3).permutation(rows.wrong))


def test_there_are_the_methods_of_the_tables() -> None:
    probes = ["probe-mlp", "probe-residual", "saplma", "trilens"]
    learning = ["output-statistics", "sequence-probability", *probes, "signature", "trees", "fused"]
    assert list(METHODS) == [*SCORES, *learning]
    assert [name for name, method in METHODS.items() if method.kind == "unsupervised"] == list(SCORES)
    assert SIGNATURE == (("mean-prompt", "last-prompt"),)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_finds_the_signal(name: str) -> None:
    assert held_out_auroc(METHODS[name], ROWS) > 0.9


@pytest.mark.parametrize("name", SUPERVISED)
def test_a_method_that_learns_is_chance_where_there_is_nothing_to_learn(name: str) -> None:
    assert held_out_auroc(METHODS[name], shuffled(ROWS)) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_scores(name: str) -> None:
    train, validation, _ = thirds(ROWS)
    first, second = (scores(METHODS[name], ROWS, train, validation, ROWS, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_rows_in_no_mask_change_nothing(name: str) -> None:
    train, validation, test = thirds(ROWS)
    other = made(900, 1)

    def mixed(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        return np.where(test.reshape(-1, *[1] * (mine.ndim - 1)), theirs, mine)

    assert ROWS.activations is not None
    assert ROWS.lens is not None
    assert other.activations is not None
    assert other.lens is not None
    altered = replace(
        ROWS,
        wrong=mixed(ROWS.wrong, ~ROWS.wrong),
        statistics=mixed(ROWS.statistics, other.statistics),
        signatures={position: mixed(maps, other.signatures[position]) for position, maps in ROWS.signatures.items()},
        activations={site: mixed(layers, other.activations[site]) for site, layers in ROWS.activations.items()},
        lens=mixed(ROWS.lens, other.lens),
    )
    seen = ROWS.take(train)
    before, after = (scores(METHODS[name], rows, train, validation, seen) for rows in (ROWS, altered))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("site", ["mlp", "residual"])
def test_the_probe_looks_at_the_layer_that_tells(site: str) -> None:
    train, validation, _ = thirds(ROWS)
    fitted = METHODS[f"probe-{site}"].fit(ROWS, train, validation, 0)
    assert isinstance(fitted, LayerProbeEstimator)
    assert fitted.layer == TOLD_AT
    assert fitted.classifier.strength in probes.STRENGTHS


def test_layer_and_penalty_have_the_best_validation_auroc() -> None:
    train, validation, _ = thirds(ROWS)
    rows = made(900, 5, signal=0.4)
    fitted = LayerProbe(name="probe-mlp", site="mlp").fit(rows, train, validation, 0)
    chosen = auroc(rows.wrong[validation], fitted.predict_proba(rows.take(validation)))
    assert rows.activations is not None
    for layer in range(LAYERS):
        numbers = rows.activations["mlp"][:, layer].astype(np.float64)
        middle, spread = numbers[train].mean(axis=0), numbers[train].std(axis=0)
        for strength in probes.STRENGTHS:
            direction = newton((numbers[train] - middle) / spread, rows.wrong[train], strength)
            found = auroc(rows.wrong[validation], (numbers[validation] - middle) / spread @ direction)
            assert found <= chosen + 2e-3, (layer, strength)


def newton(numbers: np.ndarray, wrong: np.ndarray, strength: float) -> np.ndarray:
    """Weights of the logistic regression with an L2 penalty, by Newton's steps."""
    design = np.column_stack([numbers, np.ones(len(numbers))])
    penalty = np.diag([1 / strength] * numbers.shape[1] + [0.0])
    weights = np.zeros(design.shape[1])
    for _ in range(30):
        shares = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (shares - wrong) + penalty @ weights
        weights -= np.linalg.solve((design.T * (shares * (1 - shares))) @ design + penalty, gradient)
    return weights[:-1]


def test_the_probe_on_entropies_is_the_penalised_regression_with_the_best_validation_auroc() -> None:
    train, validation, test = thirds(ROWS)
    assert ROWS.lens is not None
    entropies = ROWS.lens.reshape(len(ROWS), -1).astype(np.float64)
    standard = (entropies - entropies[train].mean(axis=0)) / entropies[train].std(axis=0)
    fitted = LensProbe().fit(ROWS, train, validation, 0)
    directions = {strength: newton(standard[train], ROWS.wrong[train], strength) for strength in probes.STRENGTHS}
    aurocs = {
        strength: auroc(ROWS.wrong[validation], standard[validation] @ directions[strength]) for strength in directions
    }
    assert aurocs[fitted.classifier.strength] == pytest.approx(max(aurocs.values()), abs=1e-3)
    scored = fitted.predict_proba(ROWS.take(test))
    expected = standard[test] @ directions[fitted.classifier.strength]
    assert np.corrcoef(np.log(scored / (1 - scored)), expected)[0, 1] > 0.999


def test_a_network_takes_part_where_there_is_no_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(1500, 2, signal=0)
    assert rows.activations is not None
    layers = rows.activations["residual"].astype(np.float32)
    layers[:, TOLD_AT] *= 3
    either = np.random.default_rng(0).choice([-1.0, 1.0], len(rows))
    layers[:, 0, :8] += 4 * either[:, None]
    layers[:, 1, :8] += 4 * (either * (2.0 * rows.wrong - 1))[:, None]
    crossed = replace(rows, activations={**rows.activations, "residual": layers.astype(np.float16)})
    assert held_out_auroc(LayerProbe(name="probe-residual", site="residual"), crossed) < 0.6
    assert held_out_auroc(AllLayersProbe(), crossed) > 0.9
    monkeypatch.setattr(probes, "CHUNK", 100)
    assert held_out_auroc(AllLayersProbe(), crossed) > 0.9


def without_one(rows: Answers) -> Answers:
    """One number of what the method looks at is missing, in the last row."""
    assert rows.unsupervised is not None
    assert rows.activations is not None
    assert rows.lens is not None

    def spoilt(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[-1] = np.nan
        return array

    return replace(
        rows,
        statistics=spoilt(rows.statistics),
        signatures={position: spoilt(maps) for position, maps in rows.signatures.items()},
        unsupervised={score: spoilt(of) for score, of in rows.unsupervised.items()},
        activations={site: spoilt(layers) for site, layers in rows.activations.items()},
        lens=spoilt(rows.lens),
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_missing_number_is_an_error(name: str) -> None:
    train, validation, test = thirds(ROWS)
    spoilt = without_one(ROWS)
    with pytest.raises(FitError, match=f"{name!r} has no finite number for 1 of .*'q899'"):
        scores(METHODS[name], spoilt, train, validation, spoilt)  # learned from whole rows, asked of the other
    if METHODS[name].kind != "unsupervised":
        with pytest.raises(FitError, match="'q899'"):
            METHODS[name].fit(spoilt, test, validation, 0)


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_need_observations_refuse_rows_without(name: str) -> None:
    bare = replace(ROWS, unsupervised=None, activations=None, lens=None)
    train, validation, _ = thirds(ROWS)

    def run() -> np.ndarray:
        return scores(METHODS[name], bare, train, validation, bare)

    if name in ("output-statistics", "sequence-probability", "signature", "trees", "fused"):
        assert np.isfinite(run()).all()
    else:
        with pytest.raises(FitError, match="run `ilis-guard observe`"):
            run()


Change = Callable[[Mask, Mask], tuple[Mask, Mask]]


@pytest.mark.parametrize("name", SUPERVISED)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, validation: (train & ROWS.wrong, validation), "the train rows hold 0 right"),
        (lambda train, validation: (train, validation & ~ROWS.wrong), "the validation rows hold .* and 0 wrong"),
        (lambda train, validation: (train | validation, validation), "180 rows are both train and validation rows"),
    ],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(name: str, change: Change, message: str) -> None:
    train, validation, _ = thirds(ROWS)
    with pytest.raises(FitError, match=message):
        METHODS[name].fit(ROWS, *change(train, validation), 0)
