"""The report's pictures: numbers in, matplotlib's figures out. Each is legible at the width of a telephone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 5.0  # inches
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")
"""Okabe and Ito's, which the colour-blind can tell apart, and two more."""
CHANNEL_COLOURS = np.array([[0.34, 0.71, 0.91], [0.9, 0.6, 0.0], [0.0, 0.62, 0.45], [0.94, 0.89, 0.26],
                            [0.84, 0.37, 0.0], [0.8, 0.47, 0.65], [0.0, 0.45, 0.7], [0.6, 0.6, 0.6],
                            [1.0, 1.0, 1.0], [0.5, 0.2, 0.5]])  # fmt: skip
"""Of the channels of an image that is no photograph."""


def axes_of(height: float, x: str, y: str) -> tuple[Figure, Axes]:
    """
    :param height: in inches
    :param x: what is to the right
    :param y: what is upwards
    :return: a figure with one pair of axes
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.locator_params(axis="x", nbins=6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def calibration(series: dict[str, dict[str, np.ndarray]], x: str, y: str) -> Figure:
    """
    :param series: by name: means ``predicted`` and ``seen`` of each bin, and its ``count``
    :param x: what was predicted
    :param y: what was seen
    :return: a point for each bin, its area as the logarithm of its count
    """
    figure, axes = axes_of(4.0, x, y)
    everything = np.concatenate([bins[name] for bins in series.values() for name in ("predicted", "seen")])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color="0.7", zorder=0, label="predicted = seen")
    for (name, bins), colour in zip(series.items(), COLOURS, strict=False):
        sizes = 15 + 25 * np.log10(bins["count"])
        axes.scatter(bins["predicted"], bins["seen"], sizes, color=colour, alpha=0.7, linewidths=0, label=name)
    for handle in axes.legend(frameon=False, fontsize="small").legend_handles[1:]:
        handle.set_sizes([30])  # type: ignore[union-attr]
    return figure


def lines(x: np.ndarray, series: dict[str, np.ndarray], x_label: str, y_label: str, log: bool = False) -> Figure:
    """
    :param x: shape (B,)
    :param series: by name, arrays of shape (B,); the first is drawn thickest
    :param x_label: what is to the right
    :param y_label: what is upwards
    :param log: whether the axis upwards is logarithmic
    :return: a line for each
    """
    figure, axes = axes_of(3.6, x_label, y_label)
    for i, ((name, y), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        axes.plot(x, y, color=colour, linewidth=1.5 if i else 2.5, linestyle="--" if i else "-", label=name)
    if log:
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize="small")
    return figure


def against_real(real: np.ndarray, series: dict[str, np.ndarray], x: str, y: str) -> Figure:
    """
    :param real: shape (S,)
    :param series: by name, what is compared with it, arrays of shape (S,)
    :param x: what the real ones are
    :param y: what the others are
    :return: a point for each
    """
    figure, axes = axes_of(4.0, x, y)
    ends = [min(real.min(), *(v.min() for v in series.values())), max(real.max(), *(v.max() for v in series.values()))]
    axes.plot(ends, ends, color="0.7", zorder=0)
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        axes.scatter(real, values, 16, color=colour, alpha=0.6, linewidths=0, label=name)
    axes.legend(frameon=False, fontsize="small")
    return figure


def coloured_points(points: np.ndarray, colours: np.ndarray, shares: np.ndarray, of_colours: str) -> Figure:
    """
    :param points: shape (B, 2)
    :param colours: a number for each, shape (B,)
    :param shares: of the variance along each axis, shape (2,)
    :param of_colours: what the numbers are
    :return: the points in these colours
    """
    names = (
        f"{axis} axis ({share:.0%} of the variance)" for axis, share in zip(("first", "second"), shares, strict=True)
    )
    figure, axes = axes_of(4.0, *names)
    drawn = axes.scatter(points[:, 0], points[:, 1], 8, c=colours, cmap="viridis", linewidths=0)
    figure.colorbar(drawn, label=of_colours)
    return figure


def frames(columns: Sequence[str], rows: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """
    :param columns: what is above each column
    :param rows: what is beside each row, and its images, shape (columns, height, width, 3), in [0, 1]
    :return: the images in a grid
    """
    height, width = rows[0][1].shape[1:3]
    side = WIDTH / (len(columns) + 0.6)
    figure = Figure(figsize=(WIDTH, len(rows) * side * min(height / width, 2.0) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (name, images) in zip(grid, rows, strict=True):
        row[0].set_ylabel(name, fontsize="small")
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image, vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize="small")
    return figure


def real_and_dreamt(steps: np.ndarray, real: np.ndarray, dreamt: np.ndarray, names: Sequence[str]) -> Figure:
    """
    :param steps: shape (K,)
    :param real: shape (K, D)
    :param dreamt: shape (K, D)
    :param names: of the D numbers
    :return: a line for each number, real and dreamt
    """
    figure = Figure(figsize=(WIDTH, 1.0 + 1.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for i, (axes, name) in enumerate(zip(grid, names, strict=True)):
        axes.plot(steps, real[:, i], color=COLOURS[0], label="real")
        axes.plot(steps, dreamt[:, i], color=COLOURS[1], linestyle="--", label="nearest to the imagined")
        axes.set_ylabel(name, fontsize="small")
        axes.spines[["top", "right"]].set_visible(False)
    grid[-1].set_xlabel("imagined steps")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize="small"
    )
    return figure


def strip(x: np.ndarray, failed: dict[str, np.ndarray], x_label: str) -> Figure:
    """
    :param x: shape (B,)
    :param failed: by the name of a condition, whether it failed, bools of shape (B,)
    :param x_label: what is to the right
    :return: a row of marks for each condition, where it failed
    """
    figure, axes = axes_of(1.4 + 0.35 * len(failed), x_label, "")
    for row, marks in enumerate(failed.values()):
        axes.scatter(x[~marks], np.full((~marks).sum(), row), 12, color=COLOURS[2], marker="|")
        axes.scatter(x[marks], np.full(marks.sum(), row), 60, color=COLOURS[1], marker="|")
    axes.set_yticks(range(len(failed)), list(failed), fontsize="small")
    axes.set_ylim(-0.6, len(failed) - 0.4)
    axes.invert_yaxis()
    return figure


def as_pictures(observations: np.ndarray, channels_first: bool) -> np.ndarray:
    """
    :param observations: images, shape (B, height, width, channels) or (B, channels, height, width); bytes or floats
    :param channels_first: which of the two
    :return: shape (B, height, width, 3), in [0, 1]: three channels of bytes are colours, of other bytes the last
        channel is the newest frame, and channels of floats get a colour each
    """
    images = np.moveaxis(observations, 1, -1) if channels_first else observations
    colours: np.ndarray
    if images.dtype == np.uint8:
        colours = (images if images.shape[-1] == 3 else np.repeat(images[..., -1:], 3, axis=-1)) / 255
    elif images.shape[-1] == 3 and images.max() > images.min() and len(np.unique(images)) > 2:
        colours = np.clip(images, 0, 1)
    else:
        of_channels = CHANNEL_COLOURS[np.arange(images.shape[-1]) % len(CHANNEL_COLOURS)]
        colours = np.clip(images @ of_channels, 0, 1)
    return colours


def histograms(series: dict[str, np.ndarray], limits: dict[str, float]) -> Figure:
    """
    :param series: by name, shape (B,)
    :param limits: of each, drawn as a dashed line where they are finite
    :return: a histogram for each, one above the other
    """
    figure = Figure(figsize=(WIDTH, 0.6 + 1.3 * len(series)), layout="constrained")
    for axes, (name, values), colour in zip(
        figure.subplots(len(series), 1, squeeze=False)[:, 0], series.items(), COLOURS, strict=False
    ):
        axes.hist(values, 30, color=colour)
        if np.isfinite(limits[name]):
            axes.axvline(limits[name], color="0.3", linestyle="--")
        axes.set(ylabel=name, yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("slope")
    return figure
