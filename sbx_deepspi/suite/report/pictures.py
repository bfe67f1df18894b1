"""The report's pictures: numbers in, matplotlib's figures out. An algorithm looks the same in all of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbx_deepspi.report.pictures import COLOURS, WIDTH
from sbx_deepspi.suite.report.statistics import Estimate

LINES = ("-", "--", ":", "-.")
MOST_IN_A_ROW = 3
"""Names in a row of a legend."""


@dataclass(frozen=True)
class Style:
    """
    :param color: of an algorithm
    :param linestyle: of its lines
    """

    color: str
    linestyle: str


@dataclass(frozen=True)
class Line:
    """
    :param name: of the algorithm
    :param x: shape (B,)
    :param y: shape (B,)
    :param low: lower end of a band, shape (B,); ``None``: there is no band
    :param high: its upper end
    :param partial: of a run that is not done, drawn thin
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    partial: bool = False


@dataclass(frozen=True)
class Panel:
    """
    :param y: what is upwards
    :param lines: in it
    """

    y: str
    lines: Sequence[Line]


def styles(names: Iterable[str]) -> dict[str, Style]:
    """
    :param names: of all algorithms of a suite, whether they have runs or not
    :return: how each looks
    """
    return {
        name: Style(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]) for i, name in enumerate(names)
    }


def panels(shown: Sequence[Panel], x: str, of: Mapping[str, Style], title: str = "") -> Figure:
    """
    :param shown: one above the other
    :param x: what is to the right
    :param of: algorithms, how they look
    :param title: above all
    :return: lines with bands
    """
    figure, grid = plain(len(shown), 1, 1.0 + 2.3 * len(shown), title)
    labelled: dict[str, Artist] = {}
    for axes, panel in zip(grid[:, 0], shown, strict=True):
        axes.set_ylabel(panel.y)
        for line in panel.lines:
            style = of[line.name]
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=style.color, alpha=0.18, linewidth=0)
            (drawn,) = axes.plot(
                line.x, line.y, color=style.color, linestyle=style.linestyle, linewidth=0.7 if line.partial else 1.8,
                alpha=0.8 if line.partial else 1.0,
            )  # fmt: skip
            # a whole line stands for the algorithm in the legend, if there is one
            if not line.partial or line.name not in labelled:
                labelled[line.name] = drawn
    grid[-1, 0].set_xlabel(x)
    legend(figure, labelled)
    return figure


def intervals(
    shown: Mapping[str, Mapping[str, Estimate]], colours: Mapping[str, str], at: float | None = None
) -> Figure:
    """
    :param shown: by what is to the right, by the name of a row: a number with its interval
    :param colours: of each row
    :param at: a number that is marked; ``None``: none
    :return: a point with its interval for each, two panels beside each other
    """
    n_columns = min(2, len(shown))
    n_rows = -(-len(shown) // n_columns)
    names = list(colours)
    figure, grid = plain(n_rows, n_columns, n_rows * (0.8 + 0.3 * len(names)), sharey=True)
    for axes, (what, estimates) in zip(grid.flat, shown.items(), strict=False):
        axes.set_xlabel(what)
        if at is not None:
            axes.axvline(at, color="0.6", linestyle="--", linewidth=1)
        for row, name in enumerate(names):
            number, colour = estimates[name], colours[name]
            if number.has_interval:
                axes.plot(
                    [number.low, number.high], [row, row], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt"
                )
            axes.plot(number.value, row, "|", color=colour, markersize=13, markeredgewidth=2.5)
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.1)
    return figure


def dots(shown: Mapping[str, np.ndarray], of: Mapping[str, Style], y: str) -> Figure:
    """
    :param shown: by the name of an algorithm: a positive number for each of its runs
    :param of: algorithms, how they look
    :param y: what is upwards
    :return: a dot for each run, and a line at the median
    """
    figure, grid = plain(1, 1, 3.2)
    axes: Axes = grid[0, 0]
    for column, (name, numbers) in enumerate(shown.items()):
        # beside each other, so that they do not hide each other
        x = column + np.linspace(-0.25, 0.25, len(numbers)) if len(numbers) > 1 else np.array([column])
        axes.scatter(x, numbers, 18, color=of[name].color, alpha=0.7, linewidths=0)
        axes.hlines(np.median(numbers), column - 0.35, column + 0.35, color=of[name].color, linewidth=2)
    axes.set_xticks(range(len(shown)), list(shown), rotation=20 if len(shown) > 4 else 0)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    return figure


def plain(
    n_rows: int, n_columns: int, height: float, title: str = "", sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """
    :param n_rows: of axes
    :param n_columns: of axes
    :param height: in inches
    :param title: above all
    :param sharey: whether all have the same axis upwards
    :return: a figure, and its axes in a grid
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=sharey)
    for axes in grid.flat:
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        grid[0, 0].set_title(title, fontsize="medium")
    return figure, grid


def legend(figure: Figure, labelled: Mapping[str, Artist]) -> None:
    """
    :param figure: gets a legend above its axes, where it covers nothing
    :param labelled: by name, what stands for it
    """
    if labelled:
        names = list(labelled)
        figure.legend(
            [labelled[name] for name in names], names, loc="outside upper center", ncols=min(MOST_IN_A_ROW, len(names)),
            frameon=False, fontsize="small",
        )  # fmt: skip
