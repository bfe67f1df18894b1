"""From a suite's folder to numbers: a score for each run, curves on common steps, and what is compared with what."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sbx_deepspi.suite.definition import Algorithm, Game, SuiteError
from sbx_deepspi.suite.folder import DONE, WAITING, Folder, Run

N_BINS = 50
"""Points of a curve."""
LAST = 10
"""A final score is of the last 1/10 of a run's steps."""
VERDICT, RETURN = "spi/verdict", "return"
DAMAGED = "damaged"
"""State of a run with a file that cannot be read."""


@dataclass(frozen=True)
class Result:
    """
    What there is of a run.

    :param algorithm: of the run
    :param game: of the run
    :param seed: of the run
    :param state: as its folder says
    :param timesteps: so far
    :param rows: of its progress: numbers, NaN where there is none, and verdicts
    :param score: mean over the last tenth of its steps if it is done; NaN: there is none, or it is not
    :param steps_per_second: of its program, with all runs that learned in it; NaN: unknown
    :param made_by: the git commit, and the version of each package
    :param error: last line of what made it fail; empty: nothing did
    """

    algorithm: Algorithm
    game: Game
    seed: int
    state: str
    timesteps: int
    rows: pd.DataFrame
    score: float
    steps_per_second: float
    made_by: Mapping[str, str]
    error: str

    @property
    def is_scored(self) -> bool:
        """
        :return: whether it has a final score
        """
        return bool(np.isfinite(self.score))

    @property
    def normalized(self) -> float:
        """
        :return: the score, 0 for the game's low one and 1 for its high one
        """
        return float(self.game.normalized(self.score))


def read(folder: Folder) -> list[Result]:
    """
    :param folder: of a suite
    :return: what there is of each run that was asked for
    """
    return [result_of(run) for run in folder.asked()]


def result_of(run: Run) -> Result:
    """
    :param run: of a suite
    :return: what there is of it
    """
    try:
        known, rows = run.read(), numeric(run.progress())
    except SuiteError as error:
        known, rows = {"state": DAMAGED, "error": str(error)}, numeric(pd.DataFrame())
    state = known.get("state", WAITING)
    error_lines = (known.get("error") or "").strip().splitlines()
    return Result(
        algorithm=run.algorithm,
        game=run.game,
        seed=run.seed,
        state=state,
        timesteps=int(known.get("timesteps") or 0),
        rows=rows,
        score=last_mean(rows, run.folder.suite.score) if state == DONE else np.nan,
        steps_per_second=float(known.get("steps_per_second") or np.nan) * known.get("together", 1),
        made_by=known.get("versions", {}) | ({"commit": known["commit"]} if known.get("commit") else {}),
        error=error_lines[-1].strip() if error_lines else "",
    )


def numeric(rows: pd.DataFrame) -> pd.DataFrame:
    """
    :param rows: of progress, as they were read
    :return: the same in order of steps, with NaN for what is no number, and the columns that every reader needs
    """
    columns = dict.fromkeys([*rows.columns, "timesteps", "episodes", "return"])
    columns_given = {
        name: rows[name] if name == VERDICT else pd.to_numeric(rows[name], errors="coerce").astype(float)
        for name in columns
        if name in rows
    }
    return pd.DataFrame(columns_given, index=rows.index).reindex(columns=list(columns)).dropna(subset=["timesteps"])


def in_last_tenth(rows: pd.DataFrame) -> pd.DataFrame:
    """
    :param rows: of progress
    :return: those of the last tenth of the steps
    """
    steps = rows["timesteps"]
    return rows[LAST * steps > (LAST - 1) * steps.max()]


def last_mean(rows: pd.DataFrame, column: str) -> float:
    """
    :param rows: of progress
    :param column: of what
    :return: mean over the last tenth of the steps; NaN: it has no number there
    """
    if column not in rows:
        return np.nan
    last = in_last_tenth(rows)
    return weighted_mean(last[column], weights_of(last, column))


def weights_of(rows: pd.DataFrame, column: str) -> pd.Series:
    """
    :param rows: of progress
    :param column: that is averaged
    :return: how often each row counts: a mean of episodes as often as episodes ended in it
    """
    return rows["episodes"] if column == RETURN else pd.Series(1.0, rows.index)


def weighted_mean(values: Iterable[float], weights: Iterable[float]) -> float:
    """
    :param values: NaN where there is none
    :param weights: of each; without one it does not count
    :return: mean; NaN: nothing counts
    """
    v, w = np.asarray(values, float), np.nan_to_num(np.asarray(weights, float))
    counts = np.isfinite(v) & (w > 0)
    return float((v[counts] * w[counts]).sum() / w[counts].sum()) if counts.any() else np.nan


def grid(n_timesteps: int) -> np.ndarray:
    """
    :param n_timesteps: of a run
    :return: ends of the bins of a curve, shape (N_BINS,)
    """
    return n_timesteps * np.arange(1, N_BINS + 1) / N_BINS


def curve(rows: pd.DataFrame, column: str, steps: np.ndarray) -> np.ndarray:
    """
    :param rows: of progress
    :param column: of what
    :param steps: ends of bins, shape (B,)
    :return: mean in each bin, shape (B,); where nothing is known that of the bin before, or, at the beginning, of the
        first that is known; NaN beyond the last row
    """
    if column not in rows or rows.empty:
        return np.full(len(steps), np.nan)
    weights = weights_of(rows, column)
    # what a run did beyond its last step, to fill a rollout, belongs to the last bin
    bins = np.minimum(np.searchsorted(steps, rows["timesteps"]), len(steps) - 1)
    means = [weighted_mean(rows[column][bins == i], weights[bins == i]) for i in range(bins.max() + 1)]
    known = pd.Series(means).ffill().bfill()
    return known.reindex(range(len(steps))).to_numpy()


def mean_and_quartiles(curves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """
    :param curves: of runs, each of shape (B,)
    :return: their ``mean``, ``lower quartile`` and ``upper quartile``, of shape (B,), over those that are known there
    """
    stacked = pd.DataFrame(np.array(curves))
    return {
        "mean": stacked.mean().to_numpy(),
        "lower quartile": stacked.quantile(0.25).to_numpy(),
        "upper quartile": stacked.quantile(0.75).to_numpy(),
    }


@dataclass(frozen=True)
class Compared:
    """
    A full table of runs, so that numbers over games are of the same games for all algorithms.

    :param games: by name
    :param runs: by the name of an algorithm: as many runs in each of the games, in order
    """

    games: tuple[str, ...]
    runs: dict[str, list[list[Result]]]

    def matrix(self, algorithm: str) -> np.ndarray:
        """
        :param algorithm: by name
        :return: normalised scores, shape (seeds, games)
        """
        return np.array([[run.normalized for run in of_game] for of_game in self.runs[algorithm]]).T

    def curves(self, algorithm: str, score: str, steps: np.ndarray) -> np.ndarray:
        """
        :param algorithm: by name
        :param score: the suite's
        :param steps: ends of bins, shape (B,)
        :return: normalised scores, shape (seeds, games, B)
        """
        of_runs = [
            [run.game.normalized(curve(run.rows, score, steps)) for run in of_game] for of_game in self.runs[algorithm]
        ]
        return np.array(of_runs).swapaxes(0, 1)


def compare(results: Sequence[Result]) -> Compared:
    """
    :param results: of a suite
    :return: runs to compare over games, see :func:`largest_table`; without games where nothing is done
    """
    scored: dict[tuple[str, str], list[Result]] = {}
    for run in results:
        if run.is_scored:
            scored.setdefault((run.algorithm.name, run.game.name), []).append(run)
    names, games = (list(dict.fromkeys(key[i] for key in scored)) for i in (0, 1))
    rows, columns = largest_table(np.array([[len(scored.get((name, game), ())) for game in games] for name in names]))
    of_games = tuple(games[column] for column in columns)
    return Compared(
        of_games,
        {name: equally_many([scored[name, game] for game in of_games]) for name in (names[row] for row in rows)},
    )


def largest_table(counts: np.ndarray) -> tuple[list[int], list[int]]:
    """
    :param counts: runs done, shape (algorithms, games)
    :return: algorithms and games, two algorithms or more if they have a game in common, that have most runs, as many
        of an algorithm in each game; a choice counts half if there is an algorithm with one run of each game, which
        gives no interval
    """
    best: tuple[float, list[int], list[int]] = (0.0, [], [])
    for size in range(len(counts), 0, -1):
        if size == 1 and best[1]:
            break
        for rows in map(list, combinations(range(len(counts)), size)):
            fewest = counts[rows].min(axis=0)
            for n in np.unique(fewest[fewest > 0]):
                columns = np.flatnonzero(fewest >= n).tolist()
                sizes = counts[np.ix_(rows, columns)].min(axis=1)
                worth = float(len(columns) * sizes.sum() * (0.5 if sizes.min() == 1 else 1.0))
                if worth > best[0]:
                    best = worth, rows, columns
    return best[1:]


def equally_many(of_games: Sequence[Sequence[Result]]) -> list[list[Result]]:
    """
    :param of_games: runs of an algorithm in each game
    :return: as many in each game; seeds that most games have come first
    """
    often = Counter(run.seed for runs in of_games for run in runs)
    n = min(len(runs) for runs in of_games)
    return [sorted(runs, key=lambda run: (-often[run.seed], run.seed))[:n] for runs in of_games]


def tidy(results: Sequence[Result]) -> list[dict[str, Any]]:
    """
    :param results: of a suite
    :return: a row for each run, as ``scores.csv`` has them; ``None`` where there is no score
    """
    return [
        {
            "algorithm": run.algorithm.name,
            "game": run.game.name,
            "seed": run.seed,
            "state": run.state,
            "timesteps": run.timesteps,
            "score": run.score if run.is_scored else None,
            "normalized": run.normalized if run.is_scored else None,
        }
        for run in results
    ]
