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


def find(folder: Path, num_timesteps: int) -> Path | None:
    """
    :param folder: of a model
    :param num_timesteps: steps that it has learned from
    :return: the newest file in it of certificates that may be the model's, if there is one
    """

    def may_be_the_models(path: Path) -> bool:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.DictReader(file)
            of_certificates = {"timesteps", "zeta", "verdict"} <= set(rows.fieldnames or ())
            return of_certificates and all(float(row["timesteps"]) <= num_timesteps for row in rows)

    return max(filter(may_be_the_models, folder.glob("*.csv")), key=lambda path: path.stat().st_mtime, default=None)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    :param path: of a file of certificates
    :return: numbers by column, and, by condition, whether it failed: arrays with an entry for each update
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
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
