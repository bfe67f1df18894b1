"""
Draw the tables of docs/results/README.md that have no curves: a bar for each cell, and a dot for each number in it.

    python benchmarks/draw_tables.py

The numbers are the page's own, so that a picture shows what its table says. Run it again where a table has changed.
"""

import argparse
import re
import statistics
import textwrap
from pathlib import Path
from typing import NamedTuple

from sbx_deepspi.command_line import HelpFormatter

PAGE = Path(__file__).parent.parent / "docs" / "results" / "README.md"
NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


class Picture(NamedTuple):
    """
    :param heading: under which the table stands
    :param columns: which are drawn, from 1 on, beside each other
    :param ylabel: of the axis
    :param unit: of the numbers that count, where a cell has others, too
    :param log: whether the axis is logarithmic
    """

    heading: str
    columns: tuple[int, ...]
    ylabel: str
    unit: str = ""
    log: bool = False


PICTURES = {
    "table_learns": Picture("## CartPole and Pendulum", (1, 2, 3, 4), "mean of 100 episodes"),
    "table_neighbourhood": Picture("## A neighbourhood that is enforced", (3, 4), "greatest importance ratio"),
    "table_start_up": Picture("### Start-up", (1, 2), "seconds", log=True),
    "table_commits": Picture("### Beside an earlier commit", (1, 3), "times as long as now"),
    "table_envpool": Picture("### EnvPool behind SB3's interface", (1, 2), "steps a second"),
    "table_guarantee": Picture("## What the guarantee costs", (2, 3, 4), "% of an update", unit=" %"),
    "table_dreams_minatar": Picture("### Dreams of MinAtar's Breakout", (1,), "points an episode"),
    "table_dreams_cost": Picture("### What dreams cost", (1, 2), "seconds"),
    "table_devices": Picture("## Several devices", (3, 4, 5), "predicted efficiency, %"),
}


def table_under(heading: str, page: str) -> list[list[str]]:
    """
    :param heading: of a section, with its marks
    :param page: in Markdown
    :return: cells of its first table, row by row, the head first
    """
    lines = page.split(f"\n{heading}\n", 1)[1].split("\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append([re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell).strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def numbers_in(cell: str, unit: str) -> list[float]:
    """
    :param cell: of a table
    :param unit: that follows those that count; empty: all do
    :return: its numbers
    """
    found = re.findall(NUMBER.pattern + unit, cell)
    return [float(number.removesuffix(unit).replace(",", "").replace("−", "-")) for number in found]


def draw(picture: Picture, page: str, path: Path) -> None:
    """
    :param picture: of which table
    :param page: in Markdown
    :param path: of the PNG
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    head, *rows = table_under(picture.heading, page)
    width = 0.8 / len(picture.columns)
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for place, column in enumerate(picture.columns):
        for row, cells in enumerate(rows):
            numbers = numbers_in(cells[column], picture.unit)
            x = row + (place - (len(picture.columns) - 1) / 2) * width
            label = head[column] if row == 0 and len(picture.columns) > 1 else None
            axis.bar(x, statistics.mean(numbers), 0.9 * width, color=f"C{place}", alpha=0.6, label=label)
            if len(numbers) > 1:
                axis.scatter([x] * len(numbers), numbers, s=10, color="black", zorder=2)
    names = [cells[0] if re.search(r"[a-z]", cells[0]) else f"{head[0]} {cells[0]}" for cells in rows]
    axis.set_xticks(range(len(rows)), [textwrap.fill(name, 72 // len(rows)) for name in names], fontsize=8)
    axis.set(ylabel=picture.ylabel, yscale="log" if picture.log else "linear")
    axis.axhline(0, color="black", linewidth=0.5)
    if len(picture.columns) > 1:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    return argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)


def main() -> None:
    parser().parse_args()
    page = PAGE.read_text(encoding="utf-8")
    for name, picture in PICTURES.items():
        draw(picture, page, PAGE.parent / f"{name}.png")


if __name__ == "__main__":
    main()
