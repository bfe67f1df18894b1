"""A report, from a suite's folder to its page."""

import csv
from pathlib import Path

from matplotlib import rc_context

from sbx_deepspi.report import page
from sbx_deepspi.suite.definition import ALGORITHMS, Algorithm, SuiteError
from sbx_deepspi.suite.folder import Folder
from sbx_deepspi.suite.report import latex, scores, sections, words

IN_TABLES = ("aggregates", "improvement", "games", "world_model")
"""Sections whose tables are for papers, too."""
OWN_PPO = Algorithm(name=sections.BASELINE, **ALGORITHMS[sections.BASELINE])


def report(folder: Path, output: Path | None) -> Path:
    """
    :param folder: of a suite's runs
    :param output: folder of the report; ``None``: ``report`` in the suite's
    :return: path of the page
    :raises SuiteError: the folder is none of a suite, or the report cannot be written there
    """
    of_suite = Folder(folder)
    results = scores.read(of_suite)
    if not results:
        raise SuiteError(f"No runs of the suite in {folder} were asked for so far.")
    into = output or folder / "report"
    if into.exists() and not into.is_dir():
        raise SuiteError(f"The report goes into a folder, but {into} is a file: name another.")
    # names of games and algorithms are no formulas
    with rc_context({"text.parse_math": False}):
        return write(sections.Subject(of_suite.suite, results), into)


def write(subject: sections.Subject, into: Path) -> Path:
    """
    :param subject: what the report is about
    :param into: folder of the report
    :return: path of the page
    """
    made = [
        sections.missing(subject),
        sections.aggregates(subject),
        sections.profiles(subject),
        sections.improvement(subject),
        sections.efficiency(subject),
        sections.games(subject),
        sections.world_model(subject),
        sections.certificates(subject),
        sections.speed(subject),
    ]
    into.mkdir(parents=True, exist_ok=True)
    with (into / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        rows = scores.tidy(subject.results)
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    tables = [
        latex.table(section.table, section.title, section.name)
        for section in made
        if section.name in IN_TABLES and section.table
    ]
    (into / "tables.tex").write_text(latex.document(tables), encoding="utf-8")
    suite = subject.suite
    summary = (
        f"{suite.title.rstrip('.')}. {words.count(len(subject.algorithms), 'algorithm')}, "
        f"{words.count(len(subject.games), 'game')}, {suite.n_timesteps:,} steps of training in each run."
    )
    if sections.BASELINE in subject.algorithms and suite.algorithms[sections.BASELINE] == OWN_PPO:
        summary += f" {sections.BASELINE} is DeepSPI's code without a world model."
    return page.write(
        into, f"Report on {suite.name}", summary, made, sections.findings(subject), ["scores.csv", "tables.tex"]
    )
