"""The report as files: one page that needs no others, its pictures, and its numbers."""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from matplotlib.figure import Figure

DPI = 200
Numbers = dict[str, dict[str, np.ndarray]]
"""Series → quantity → a number for each of its points."""


@dataclass(frozen=True)
class Picture:
    """
    :param name: of its file
    :param title: what it shows, for those who cannot see it
    :param figure: drawn
    :param good: a sentence that says what good looks like, where that can be said
    """

    name: str
    title: str
    figure: Figure
    good: str = ""


@dataclass(frozen=True)
class Section:
    """
    :param name: in the address, and in the file of numbers
    :param title: of the section
    :param found: in words
    :param pictures: of it
    :param numbers: all that its pictures and tables show
    :param table: rows of cells, the first of which are headings
    """

    name: str
    title: str
    found: str
    pictures: Sequence[Picture] = ()
    numbers: Numbers = field(default_factory=dict)
    table: Sequence[Sequence[str]] = ()


def write(
    folder: Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    findings: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Path:
    """
    :param folder: gets ``index.html``, a PNG for each picture, and ``numbers.csv``
    :param title: of the page
    :param summary: what was played
    :param sections: of the page
    :param findings: of all sections, in sentences at the top
    :param files: names of what else is in the folder
    :return: path of the page
    :raises OSError: it could not be written
    """
    images = {}
    for picture in (picture for section in sections for picture in section.pictures):
        buffer = io.BytesIO()
        picture.figure.savefig(buffer, format="png", dpi=DPI)
        (folder / f"{picture.name}.png").write_bytes(buffer.getvalue())
        images[picture.name] = base64.b64encode(buffer.getvalue()).decode()
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    page = folder / "index.html"
    given = dict(title=title, summary=summary, sections=sections, images=images, findings=findings, files=files)
    page.write_text(template.render(given), encoding="utf-8")
    with (folder / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("section", "series", "point", "quantity", "value"))
        for section in sections:
            for series, quantities in section.numbers.items():
                for quantity, values in quantities.items():
                    writer.writerows(
                        (section.name, series, i, quantity, value) for i, value in enumerate(values.tolist())
                    )
    return page
