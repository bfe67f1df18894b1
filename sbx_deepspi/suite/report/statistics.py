"""
Statistics over games and seeds, with stratified bootstrap intervals: of rliable, Agarwal et al. (2021), "Deep
reinforcement learning at the edge of the statistical precipice".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from rliable import library, metrics
from scipy.stats import trim_mean

N_RESAMPLES = 2000
SEED = 0
AGGREGATES: dict[str, Callable[[np.ndarray], float]] = {
    "IQM": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": metrics.aggregate_optimality_gap,
}
"""Of normalised scores, shape (runs, games)."""


@dataclass(frozen=True)
class Estimate:
    """
    :param value: of shape (K,)
    :param low: lower end of the 95 % interval, shape (K,); NaN: there is no interval
    :param high: its upper end
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, index: int) -> "Estimate":
        """
        :param index: of a number
        :return: this number alone, of shape ()
        """
        return Estimate(self.value[index], self.low[index], self.high[index])

    @property
    def has_interval(self) -> bool:
        """
        :return: whether all numbers have one
        """
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())


def overlap(one: Estimate, other: Estimate) -> bool:
    """
    :param one: number with an interval
    :param other: another
    :return: whether a number lies in both intervals
    """
    return bool(one.low <= other.high and other.low <= one.high)


@contextmanager
def fixed_seed() -> Iterator[None]:
    """
    :return: a context in which NumPy's global generator starts from a seed of ours; afterwards it is as it was
    """
    # rliable draws from the global generator whatever random_state it is given
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def estimate(function: Callable[..., np.ndarray], *scores: np.ndarray) -> Estimate:
    """
    :param function: of the scores; gives an array of shape (K,)
    :param scores: one array or several, each of shape (runs, games, ...), of one algorithm
    :return: what the function gives, with intervals from runs drawn again, game by game and algorithm by algorithm;
        without intervals where an algorithm has one run
    """
    if min(len(of_algorithm) for of_algorithm in scores) < 2:
        value = function(*scores)
        nothing = np.full_like(value, np.nan, dtype=float)
        return Estimate(value, nothing, nothing)
    given = scores[0] if len(scores) == 1 else list(scores)
    with fixed_seed():
        values, intervals = library.get_interval_estimates({"": given}, function, reps=N_RESAMPLES)
    return Estimate(values[""], *intervals[""])


def aggregates(scores: np.ndarray) -> Estimate:
    """
    :param scores: normalised, shape (runs, games)
    :return: one number for each of ``AGGREGATES``
    """
    return estimate(lambda drawn: np.array([function(drawn) for function in AGGREGATES.values()]), scores)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> Estimate:
    """
    :param scores: normalised, shape (runs, games)
    :param thresholds: τ, shape (K,)
    :return: share of runs with a score above each τ
    """
    return estimate(partial(shares_above, thresholds=thresholds), scores)


def shares_above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    :param scores: of any shape
    :param thresholds: shape (K,)
    :return: share of scores above each, shape (K,)
    """
    ordered = np.sort(scores, axis=None)
    return 1 - np.searchsorted(ordered, thresholds, side="right") / ordered.size


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    As rliable's function of this name, which is too slow to be drawn again thousands of times.

    :param x: scores of algorithm X, shape (runs, games)
    :param y: scores of algorithm Y, shape (runs, games)
    :return: P(X > Y), ties counting one half, averaged over games, shape (1,)
    """
    above = (x[:, None] > y[None]).mean() + 0.5 * (x[:, None] == y[None]).mean()
    return np.array([above])


def improvement(x: np.ndarray, y: np.ndarray) -> Estimate:
    """
    :param x: scores of algorithm X, shape (runs, games)
    :param y: scores of algorithm Y, shape (runs, games)
    :return: P(X > Y) of a run of each in the same game, of shape (1,)
    """
    return estimate(probability_of_improvement, x, y)


def efficiency(curves: np.ndarray) -> Estimate:
    """
    :param curves: normalised returns, shape (runs, games, B)
    :return: IQM at each of the B steps
    """
    return estimate(lambda drawn: trim_mean(drawn.reshape(-1, drawn.shape[-1]), 0.25, axis=0), curves)


def too_narrow(n_runs: int) -> float:
    """
    :param n_runs: of each game
    :return: share by which a bootstrap interval of a mean is too narrow, on average: 1 - √((n-1)/n)
    """
    return float(1 - np.sqrt((n_runs - 1) / n_runs))
