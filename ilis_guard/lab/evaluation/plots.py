"""Plots of an evaluation: matrices, reliability, risk and coverage, typical maps, and importance."""

from collections.abc import Iterable, Sequence
from typing import Final

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from ilis_guard.lab.baselines.estimator import Kind
from ilis_guard.lab.baselines.methods import methods
from ilis_guard.lab.evaluation.bootstrap import MEAN
from ilis_guard.lab.evaluation.evaluate import REFERENCE, Evaluation
from ilis_guard.lab.evaluation.importance import POSITION, Map
from ilis_guard.lab.evaluation.trials import OTHERS, ProtocolName, Trial
from ilis_guard.lab.metrics import BINS
from ilis_guard.lab.svg import TEXT, SvgRenderer, escape_math

LINES: Final = (
    # Okabe and Ito's colours that hold on black and on white, with a dash and a mark of its own each.
    ("#D55E00", "-", "o"),
    ("#0072B2", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#56B4E9", (0, (5, 1)), "v"),
)
MAP_SIZE: Final = (3.7, 3.2)
"""Inches: three side by side on a wide screen, one on a phone."""
COVERAGES: Final = np.linspace(0.05, 1, 39)
AUROC_RANGE: Final = (0.3, 1.0)
PROTOCOLS: Final[tuple[ProtocolName, ...]] = ("in-distribution", "leave-one-set-out")


def plotted_methods(evaluation: Evaluation) -> list[str]:
    """Select the methods of plots: the reference, signatures alone, and of each kind of baseline the best one."""

    def best(names: Iterable[str]) -> list[str]:
        known = {
            name: estimate.value
            for name in names
            if (estimate := evaluation.estimate("in-distribution", name, MEAN, "auroc")) is not None
        }
        return sorted(known, key=lambda name: known[name], reverse=True)[:1]

    kinds = {method.name: method.kind for method in methods()}
    compared: tuple[Kind, ...] = ("probe", "statistics", "unsupervised")
    rivals = ([name for name in evaluation.methods if kinds.get(name) == kind] for kind in compared)
    return [name for names in ([REFERENCE], ["signature"], *rivals) for name in best(names)]


def matrices(evaluation: Evaluation, renderer: SvgRenderer) -> list[Markup]:
    """Plot the AUROC by the sets trained on and tested on, for each method, with leave-one-set-out below."""
    return [_matrix(evaluation, renderer, method) for method in plotted_methods(evaluation)]


def _matrix(evaluation: Evaluation, renderer: SvgRenderer, method: str) -> Markup:
    names = [one.name for one in evaluation.sets if one.counts]
    trained = [*names, OTHERS] if len(names) > 1 else names
    table = np.full((len(trained), len(names)), np.nan)
    for one in evaluation.estimates:
        is_here = one.method == method and one.metric == "auroc" and one.tested_on in names
        if is_here and one.protocol in ("in-distribution", "one-to-one", "leave-one-set-out"):
            table[trained.index(one.trained_on), names.index(one.tested_on)] = one.value

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _heat(axes, table, trained, names, AUROC_RANGE, "viridis")
        axes.set(xlabel="tested on", ylabel="trained on", title=f"{escape_math(method)}: AUROC")

    size = (2.6 + 0.52 * len(names), 1.6 + 0.4 * len(trained))
    return renderer.render(size, f"AUROC of {method} by set trained on and set tested on; metrics.csv has them", draw)


def typicality_matrix(evaluation: Evaluation, renderer: SvgRenderer) -> Markup:
    """Plot the AUROC of typicality at distinguishing other sets from the reference's own."""
    names = [one.name for one in evaluation.sets if one.counts]
    trained = [*names, OTHERS] if len(names) > 1 else names
    table = np.full((len(trained), len(names)), np.nan)
    for one in evaluation.typicality:
        if not one.is_own and one.tested_on in names:
            table[trained.index(one.trained_on), names.index(one.tested_on)] = one.auroc

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _heat(axes, table, trained, names, (0.5, 1.0), "cividis")
        axes.set(xlabel="rows of", ylabel="reference made of", title="Typicality: AUROC at distinguishing them")

    size = (2.6 + 0.52 * len(names), 1.6 + 0.4 * len(trained))
    return renderer.render(size, "How well typicality distinguishes sets; typicality.csv has the numbers", draw)


def reliability(evaluation: Evaluation, renderer: SvgRenderer) -> list[Markup]:
    """Plot how often answers of similar uncertainty are wrong, in-distribution and on sets that were left out."""
    drawn = []
    for protocol in PROTOCOLS:
        by_method = {method: _of(evaluation.trials, protocol, method) for method in plotted_methods(evaluation)[:4]}
        if any(by_method.values()):
            drawn.append(_reliability(by_method, renderer, protocol))
    return drawn


def _reliability(by_method: dict[str, list[Trial]], renderer: SvgRenderer, protocol: str) -> Markup:
    def draw(figure: Figure) -> None:
        columns = 2
        grid = figure.subplots(-(-len(by_method) // columns), columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(by_method) :]:
            axes.set_visible(False)
        for axes, (method, trials), (colour, _, mark) in zip(grid.flat, by_method.items(), LINES, strict=False):
            axes.plot([0, 1], [0, 1], color=TEXT, lw=0.7, alpha=0.6)
            predicted, observed, low, high = _bins(trials)
            away = np.abs(np.array([observed - low, high - observed]))
            axes.errorbar(predicted, observed, yerr=away, fmt=mark, color=colour, ms=5, capsize=2, lw=1)
            axes.set(xlim=(0, 1), ylim=(0, 1), title=escape_math(method), aspect="equal")
        figure.suptitle(protocol, fontsize=10, color=TEXT)
        figure.supxlabel("uncertainty", fontsize=10, color=TEXT)
        figure.supylabel("share that is wrong", fontsize=10, color=TEXT)

    rows = -(-len(by_method) // 2)
    alternative = f"Reliability, {protocol}: on the diagonal, uncertainties are exact"
    return renderer.render((5.5, 0.8 + 2.5 * rows), alternative, draw)


def _bins(trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bins of equal mass: mean uncertainty, share of wrong answers, and the ends of its interval."""
    predicted = np.concatenate([trial.probability for trial in trials])
    wrong = np.concatenate([trial.wrong for trial in trials])
    parts = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    ends = [binomtest(int(wrong[part].sum()), len(part)).proportion_ci(method="wilson") for part in parts]
    return (
        np.array([predicted[part].mean() for part in parts]),
        np.array([wrong[part].mean() for part in parts]),
        np.array([end.low for end in ends]),
        np.array([end.high for end in ends]),
    )


def risk_coverage(evaluation: Evaluation, renderer: SvgRenderer) -> list[Markup]:
    """Plot the error of answered by coverage; means over sets."""
    return [
        _risk_coverage(by_method, renderer, protocol)
        for protocol in PROTOCOLS
        if any(
            (
                by_method := {name: _of(evaluation.trials, protocol, name) for name in plotted_methods(evaluation)}
            ).values()
        )
    ]


def _risk_coverage(by_method: dict[str, list[Trial]], renderer: SvgRenderer, protocol: str) -> Markup:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (method, trials), (colour, dash, mark) in zip(by_method.items(), LINES, strict=False):
            risk = np.mean([_risk(trial) for trial in trials], axis=0)
            axes.plot(COVERAGES, risk, ls=dash, color=colour, marker=mark, ms=4, markevery=6, label=escape_math(method))
        axes.set(xlim=(0, 1.02), xlabel="coverage: share of questions answered", ylabel="error of answered")
        axes.set_ylim(bottom=0)
        axes.set_title(protocol)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)

    return renderer.render((5.5, 3.8), f"Error of answered by coverage, {protocol}, mean over sets", draw)


def _risk(trial: Trial) -> np.ndarray:
    errors = np.cumsum(trial.wrong[np.argsort(trial.raw, kind="stable")])
    answered = np.maximum(1, np.round(COVERAGES * len(errors)).astype(np.int64))
    risk: np.ndarray = errors[answered - 1] / answered
    return risk


def typical_maps(evaluation: Evaluation, renderer: SvgRenderer) -> list[Markup]:
    """Plot the mean map of right answers, of wrong ones, and the difference."""
    typical = evaluation.typical
    most = float(max(typical.right.max(), typical.wrong.max()))
    away = float(np.abs(typical.difference).max()) or 1.0
    what = f"log(1 + nats), {POSITION} map"
    return [
        _map(renderer, typical.right, "right answers", what, (0.0, most), "viridis"),
        _map(renderer, typical.wrong, "wrong answers", what, (0.0, most), "viridis"),
        _map(renderer, typical.difference, "wrong less right", what, (-away, away), "PuOr_r"),
    ]


def importance_maps(evaluation: Evaluation, renderer: SvgRenderer) -> list[Markup]:
    """Plot the share of the trees' gain by pair of layers, and by their distance."""
    importance = evaluation.importance
    most = float(importance.pairs.max()) or 1.0

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        distances = np.arange(1, len(importance.by_distance) + 1)
        even = 1 / (len(importance.pairs) * (len(importance.pairs) - 1))
        axes.bar(distances, importance.by_distance / even, color=LINES[1][0])
        axes.axhline(1, color=TEXT, lw=0.7, ls="--")
        axes.set(xlabel="layers apart", ylabel="gain a pair, 1 = even", title="Gain by distance of the layers")
        axes.spines[["top", "right"]].set_visible(False)

    return [
        _map(renderer, importance.pairs, "gain by pair of layers", "share of all gain", (0.0, most), "cividis"),
        renderer.render(MAP_SIZE, "Mean gain of a pair of layers by their distance", draw),
    ]


def _map(renderer: SvgRenderer, cells: Map, title: str, what: str, scale: tuple[float, float], colours: str) -> Markup:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        edges = np.arange(len(cells) + 1) - 0.5
        mesh = axes.pcolormesh(edges, edges, cells, vmin=scale[0], vmax=scale[1], cmap=colours, rasterized=True)
        axes.set(aspect="equal", xlabel="layer j", ylabel="layer i", title=title)
        axes.invert_yaxis()
        figure.colorbar(mesh, ax=axes, label=what, shrink=0.8)

    return renderer.render(MAP_SIZE, f"{title}: {what}", draw)


def _heat(
    axes: Axes, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], scale: tuple[float, float], name: str
) -> None:
    """Draw coloured cells with their numbers."""
    colours = mpl.colormaps[name].with_extremes(bad=(0, 0, 0, 0))
    shades = mpl.colors.Normalize(*scale, clip=True)
    edges = np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5
    axes.pcolormesh(*edges, table, cmap=colours, norm=shades, edgecolors="none")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            red, green, blue, _ = colours(shades(value))
            is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            label = f"{value:.2f}".removeprefix("0")
            axes.text(column, row, label, ha="center", va="center", color="#000" if is_light else "#fff", fontsize=9)
    axes.set_xticks(range(len(columns)), [escape_math(one) for one in columns], rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [escape_math(one) for one in rows])
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)


def _of(trials: Sequence[Trial], protocol: str, method: str) -> list[Trial]:
    return [trial for trial in trials if trial.protocol == protocol and trial.method == method]
