"""The README is one page, and what it links to is there; so are pictures and figures that pages name."""

import re
from pathlib import Path

import pytest

from benchmarks import draw_tables
from tests.docs.blocks import BLOCKS, PAGES, ROOT, Block

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^ *```.*?^ *```$|`[^`\n]*`", "", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page: Path) -> None:
    """As they stand, for who reads the repository; the site has its own check."""
    links = LINK.findall(without_code(page.read_text()))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_a_page_with_two_commands_and_two_lines() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert {"make train", "make test"} <= set(re.findall(r"(?m)^make \w+", text))
    assert 'DeepSPI("CnnPolicy", env).learn(10_000_000)' in text
    assert "python -m rl_zoo3.train --algo deepspi --env BreakoutNoFrameskip-v4" in text


def test_every_file_of_the_results_is_named_there() -> None:
    """Figures without a reader go; further seeds lie beside the first one's, and a suite's figures in its folder."""
    text = (ROOT / "docs" / "results" / "README.md").read_text()
    files = [path for path in (ROOT / "docs" / "results").glob("*") if path.suffix in (".csv", ".png")]
    names = {path.name for path in files if not path.name.startswith("breakout_steps_")}
    assert [name for name in sorted(names) if name not in text] == []


def test_blocks_know_where_they_are() -> None:
    block: Block = next(block for block in BLOCKS if block.page == "docs/index.md")
    assert (ROOT / block.page).read_text().splitlines()[block.line - 1].startswith("```")


def test_tables_that_are_drawn_have_numbers_in_each_cell() -> None:
    page = draw_tables.PAGE.read_text()
    for name, picture in draw_tables.PICTURES.items():
        _, *rows = draw_tables.table_under(picture.heading, page)
        cells = [row[column] for row in rows for column in picture.columns]
        assert all(draw_tables.numbers_in(cell, picture.unit) for cell in cells), name
    assert draw_tables.numbers_in("1,468 thousand, −2.5", "") == [1468, -2.5]
    assert draw_tables.numbers_in("179 ms, 5.4 %", " %") == [5.4]
