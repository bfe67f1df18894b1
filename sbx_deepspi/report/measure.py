"""
What a report measures, as functions of a model's parameters and of what was played.

Those that ask the networks are JAX's, to be compiled; those of arrays alone are NumPy's. ``T`` steps of ``N``
environments, ``S`` starts among them, ``K`` imagined steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sbx_deepspi import agent, imagination
from sbx_deepspi.agent import Networks
from sbx_deepspi.imagination import before_the_end, imagine
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Observations


@dataclass(frozen=True)
class Played:
    """
    ``T`` steps of ``N`` environments; every array is (T, N, ...).

    :param observations: s, as the networks take it
    :param next_observations: s'; where an episode ended, its real last observation
    :param actions: a, as sampled
    :param rewards: r, as the algorithm sees them, float32
    :param terminated: whether s' is terminal, bool
    :param truncated: whether a time limit ended the episode at s', bool
    :param steps: how many steps of its episode were before this one, int
    """

    observations: Observations
    next_observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    steps: np.ndarray

    @property
    def dones(self) -> np.ndarray:
        """
        :return: whether the episode ended with this step, for either reason
        """
        dones: np.ndarray = self.terminated | self.truncated
        return dones


# --- what the networks say --------------------------------------------------------------------------


class Answers(struct.PyTreeNode):
    """
    What a model says of transitions; every array is (B, ...).

    :param latents: φ(s)
    :param next_latents: φ(s')
    :param rewards: R̄(φ(s), a), in units of σ
    :param ends: Ē(φ(s')); 0 without a termination model
    :param values: V(s)
    :param next_values: V(s')
    """

    latents: Any
    next_latents: Any
    rewards: Any
    ends: Any
    values: Any
    next_values: Any


def answers(
    networks: Networks,
    parameters: Parameters,
    observations: Observations,
    actions: jax.Array,
    next_observations: Observations,
) -> Answers:
    """
    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param observations: s, shape (B, ...)
    :param actions: a, shape (B, ...)
    :param next_observations: s', shape (B, ...)
    :return: what the model says of them
    """
    latents, next_latents = (agent.encode(networks, parameters, seen) for seen in (observations, next_observations))
    rewards, _ = agent.predict(networks, parameters, latents, actions, jax.random.PRNGKey(0))
    values, next_values = (agent.policy_and_values(networks, parameters, z)[1] for z in (latents, next_latents))
    ends = agent.end_probabilities(networks, parameters, next_latents)
    return Answers(latents, next_latents, rewards, ends, values, next_values)


def follow(
    networks: Networks, parameters: Parameters, latents: jax.Array, actions: jax.Array, key: jax.Array
) -> jax.Array:
    """
    Where given actions lead in the latent model, without another look at the environment.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z to begin with, shape (S, ...)
    :param actions: of each step, shape (K, S, ...)
    :param key: randomness of the latent samples
    :return: ẑ after 1 ... K steps, shape (K, S, ...)
    """

    def step(latents: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        actions, key = given
        _, next_latents = agent.predict(networks, parameters, latents, actions, key)
        return next_latents, next_latents

    return jax.lax.scan(step, latents, (actions, jax.random.split(key, len(actions))))[1]


def imagined_returns(
    networks: Networks,
    parameters: Parameters,
    latents: jax.Array,
    key: jax.Array,
    *,
    reward_scale: float,
    gamma: float,
    horizon: int,
    n_dreams: int,
) -> jax.Array:
    """
    Discounted returns of episodes that the model imagines, under its policy; the critic says what follows the horizon.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z to begin with, shape (S, ...)
    :param key: randomness of actions, latent samples and ends
    :param reward_scale: σ, the unit of R̄
    :param gamma: γ
    :param horizon: imagined steps
    :param n_dreams: from each start
    :return: mean of each start's dreams, shape (S,)
    """
    imagined = imagine(networks, parameters, jnp.concatenate([latents] * n_dreams), horizon, key)
    _, last_values = agent.policy_and_values(networks, parameters, imagined.next_observations[-1])
    in_units = imagined.replace(rewards=reward_scale * imagined.rewards)
    return imagination.discounted_returns(in_units, last_values, gamma).reshape(n_dreams, -1).mean(axis=0)


class Slopes(struct.PyTreeNode):
    """
    How steep a model is at B latent states; every array is (B,).

    :param reward: ‖∇_z R̄(z, a)‖, in units of σ
    :param transition: the largest singular value of ∂ẑ'/∂z, with the noise held fast
    :param termination: ‖∇_z Ē(z)‖
    """

    reward: Any
    transition: Any
    termination: Any


def slopes(
    networks: Networks,
    parameters: Parameters,
    latents: jax.Array,
    actions: jax.Array,
    key: jax.Array,
    n_iterations: int,
) -> Slopes:
    """
    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z, shape (B, ...)
    :param actions: a, shape (B, ...)
    :param key: randomness of the latent samples, and of the directions to begin with
    :param n_iterations: of the power method; the more, the nearer from below is the largest singular value
    :return: slopes at these latent states: no Lipschitz constant is below them
    """
    sample_key, direction_key = jax.random.split(key)

    def rewards(z: jax.Array) -> jax.Array:
        return agent.predict(networks, parameters, z, actions, sample_key)[0]

    def predicted(z: jax.Array) -> jax.Array:
        return agent.predict(networks, parameters, z, actions, sample_key)[1]

    def ends(z: jax.Array) -> jax.Array:
        return agent.end_probabilities(networks, parameters, z)

    _, pull_back = jax.vjp(predicted, latents)

    def stretch(_: int, directions: jax.Array) -> jax.Array:
        _, pushed = jax.jvp(predicted, (latents,), (units(directions),))
        pulled: jax.Array = pull_back(pushed)[0]
        return pulled

    directions = jax.lax.fori_loop(0, n_iterations, stretch, jax.random.normal(direction_key, latents.shape))
    _, pushed = jax.jvp(predicted, (latents,), (units(directions),))
    # items of a batch do not mix, so that the gradient of a sum is that of each
    gradients = (jax.grad(lambda z, f=function: f(z).sum())(latents) for function in (rewards, ends))
    reward, termination = (norms(gradient) for gradient in gradients)
    return Slopes(reward, norms(pushed), termination)


def norms(arrays: Any) -> Any:
    """
    :param arrays: NumPy's or JAX's, shape (B, ...)
    :return: Euclidean norm of each, shape (B,)
    """
    return (arrays.reshape(len(arrays), -1) ** 2).sum(axis=1) ** 0.5


def units(directions: jax.Array) -> jax.Array:
    """
    :param directions: shape (B, ...)
    :return: the same at length 1; where they are 0, 0
    """
    lengths = norms(directions).reshape(-1, *[1] * (directions.ndim - 1))
    return directions / jnp.where(lengths > 0, lengths, 1.0)


def in_chunks(function: Callable[..., Any], *arrays: Any, size: int) -> Any:
    """
    What networks make of many images need not fit into the memory at once.

    :param function: compiled, of arrays of shape (b, ...)
    :param arrays: PyTrees of arrays of shape (B, ...)
    :param size: the largest b
    :return: NumPy arrays of shape (B, ...)
    """
    n = len(jax.tree.leaves(arrays)[0])
    parts = [
        jax.device_get(function(*jax.tree.map(lambda array: array[i : i + size], arrays)))  # noqa: B023
        for i in range(0, n, size)
    ]
    return jax.tree.map(lambda *chunks: np.concatenate(chunks), *parts)


# --- arrays -----------------------------------------------------------------------------------------


def calibration(predicted: np.ndarray, seen: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """
    What was seen where a model predicted about the same.

    :param predicted: shape (B,)
    :param seen: shape (B,)
    :param edges: of the bins, ascending
    :return: means of both in each bin that is not empty, and how many there are
    """
    bins = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bins, minlength=len(edges) - 1)
    kept = counts > 0
    means = {
        name: np.bincount(bins, weights=values, minlength=len(kept))[kept] / counts[kept]
        for name, values in (("predicted", predicted), ("seen", seen))
    }
    return means | {"count": counts[kept]}


def discounted_returns(
    rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, next_values: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns up to the end of an episode. Where a time limit, or the end of what was played, comes first, the critic says
    what follows.

    :param rewards: r, shape (T, N)
    :param terminated: whether s' is terminal, shape (T, N)
    :param truncated: whether a time limit ended the episode at s', shape (T, N)
    :param next_values: V(s'), shape (T, N)
    :param gamma: γ
    :return: returns, and the weight γᵏ that the critic has in them, shapes (T, N)
    """
    returns, weights = np.zeros(rewards.shape), np.zeros(rewards.shape)
    following, weight = next_values[-1], np.ones(rewards.shape[1])
    for t in reversed(range(len(rewards))):
        cut = truncated[t] if t < len(rewards) - 1 else np.ones_like(truncated[t])
        following = np.where(terminated[t], 0.0, np.where(cut, next_values[t], following))
        weight = np.where(terminated[t], 0.0, np.where(cut, 1.0, weight))
        following, weight = rewards[t] + gamma * following, gamma * weight
        returns[t], weights[t] = following, weight
    return returns, weights


def within_episode(dones: np.ndarray, times: np.ndarray, columns: np.ndarray, n_steps: int) -> np.ndarray:
    """
    :param dones: whether a step was its episode's last, shape (T, N)
    :param times: steps t at which the starts are, at most T - K, shape (S,)
    :param columns: their environments, shape (S,)
    :param n_steps: K
    :return: whether s after 1 ... K steps belongs to the start's episode, bool, shape (K, S)
    """
    within: np.ndarray = before_the_end(dones[times + np.arange(n_steps)[:, None], columns])
    return within


def mean_where(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """
    :param values: shape (K, S)
    :param counts: which of them count, shape (K, S)
    :return: mean of each row, NaN where nothing counts, shape (K,)
    """
    n = counts.sum(axis=1)
    return np.where(n > 0, np.where(counts, values, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan)


def spans(which: np.ndarray) -> list[tuple[int, int]]:
    """
    :param which: of steps 1 ... K, bool
    :return: first and last step of each run of them
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], which, [False]]).astype(int)))
    return [(int(first) + 1, int(last)) for first, last in edges.reshape(-1, 2)]


def vectors(observations: Observations) -> np.ndarray:
    """
    :param observations: an array, or a dictionary of arrays, of shape (B, ...)
    :return: all of their numbers side by side, shape (B, D)
    """
    leaves = jax.tree.leaves(observations)
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def principal_axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param points: shape (B, D)
    :return: where they lie on their two principal axes, shape (B, 2), and the share of the variance along each, shape
        (2,)
    """
    centred = (points - points.mean(axis=0)).astype(np.float64)
    # of products of points, not of the covariance: latent maps have more dimensions than there are points
    variances, directions = np.linalg.eigh(centred @ centred.T)
    variances = np.maximum(variances, 0.0)
    shares = variances / max(variances.sum(), np.finfo(np.float64).tiny)
    return (directions * np.sqrt(variances))[:, :-3:-1], shares[:-3:-1]


def nearest(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """
    :param queries: shape (Q, D)
    :param points: shape (B, D)
    :return: index of the point nearest to each query, shape (Q,)
    """
    squares = (points**2).sum(axis=1) - 2 * queries @ points.T
    indices: np.ndarray = squares.argmin(axis=1)
    return indices


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """
    :param first: shape (B,)
    :param second: shape (B,)
    :return: Pearson's; NaN where one of them does not vary
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
