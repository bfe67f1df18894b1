"""Certificates over training, from what ``SPICertificateCallback`` wrote."""

import csv
from pathlib import Path

import numpy as np

CONDITIONS = {
    "D_IR sup": "C < 1/γ",
    "D_IR of": "all actions",
    "K_R": "K_R finite",
    "K_P": "K_P < 1/γ",
    "no episode": "an episode ended",
    "zeta": "ζ finite",
}
"""How a verdict names what failed → the condition."""


NEEDED = {"timesteps", "zeta", "zeta_paper", "verdict"}
"""Columns by which a file of certificates is known."""


def find(folder: Path, num_timesteps: int) -> Path | None:
    """
    :param folder: of a model
    :param num_timesteps: steps that it has learned from
    :return: the newest file in it that has certificates up to there, if there is one
    """
    known = (path for path in folder.glob("*.csv") if rows_of(path, num_timesteps))
    return max(known, key=lambda path: path.stat().st_mtime, default=None)


def rows_of(path: Path, num_timesteps: int) -> list[dict[str, str]]:
    """
    :param path: of any CSV
    :param num_timesteps: steps that the model has learned from; the run may have gone on after it was saved
    :return: the certificates up to there that are whole: a run that was killed may leave the last one unfinished
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
        try:
            whole = [row for row in rows if set(rows.fieldnames or ()) >= NEEDED and is_whole(row)]
        except csv.Error:  # no CSV at all
            return []
    return [row for row in whole if float(row["timesteps"]) <= num_timesteps]


def is_whole(row: dict[str, str]) -> bool:
    """
    :param row: by column
    :return: whether each column but the verdict is a number
    """
    try:
        for name in row.keys() - {"verdict"}:
            float(row[name])
    except (TypeError, ValueError):
        return False
    return row["verdict"] is not None


def read(path: Path, num_timesteps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    :param path: of a file of certificates
    :param num_timesteps: steps that the model has learned from
    :return: numbers by column, and, by condition, whether it failed: arrays with an entry for each update
    """
    rows = rows_of(path, num_timesteps)
    names = [name for name in (rows[0] if rows else ()) if name != "verdict"]
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in names}
    return numbers, failures([row["verdict"] for row in rows])


def failures(verdicts: list[str]) -> dict[str, np.ndarray]:
    """
    :param verdicts: see :func:`~sbx_deepspi.guarantee.conditions.verdict`
    :return: condition → whether it failed, bools with an entry for each verdict
    """
    reasons = [verdict.removeprefix("not certified: ").split("; ") for verdict in verdicts]
    return {
        condition: np.array([any(reason.startswith(beginning) for reason in of_update) for of_update in reasons], bool)
        for beginning, condition in CONDITIONS.items()
    }
