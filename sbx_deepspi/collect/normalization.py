"""Running means and variances of observations and rewards inside jit, by the formulas of SB3's ``VecNormalize``."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi import devices
from sbx_deepspi.devices import PER_ENV, WHOLE

FIRST_COUNT = 1e-4
"""Observations that count as seen before the first, as in SB3's ``RunningMeanStd``."""


class Moments(struct.PyTreeNode):
    """
    Mean and variance of what has been seen so far, for each number of an array.

    :param mean: float32
    :param variance: float32
    :param count: how many arrays have been seen, float32
    """

    mean: jax.Array
    variance: jax.Array
    count: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> "Moments":
        """
        :param shape: of the array
        :return: before the first one
        """
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.float32(FIRST_COUNT))

    def including(self, batch: jax.Array) -> "Moments":
        """
        Chan et al. (1979), the parallel formula.

        :param batch: shape (N, ...), of each device
        :return: mean and variance of these arrays, too
        """
        batch = batch.astype(jnp.float32)
        n = len(batch) * devices.count()
        count = self.count + n
        delta = devices.mean(batch.mean(axis=0)) - self.mean
        of_batch = devices.variance(batch)
        variance = (self.variance * self.count + of_batch * n + delta**2 * (self.count * n / count)) / count
        return Moments(self.mean + delta * (n / count), variance, count)


class Statistics(struct.PyTreeNode):
    """
    What normalisation remembers.

    :param observations: a :class:`Moments` for each array of an observation; ``None``: they are not normalised
    :param discounted: returns of the running episodes up to now, Σ γᵏ r, float32, shape (N,)
    :param returns: mean and variance of these; ``None``: rewards are not normalised
    """

    observations: Any
    discounted: jax.Array
    returns: Moments | None

    @property
    def layout(self) -> "Statistics":
        """
        :return: which arrays every device has, and which are of its environments
        """
        return Statistics(WHOLE, PER_ENV, WHOLE)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Normalization:
    """
    Observations are centred and divided by their standard deviation; rewards are divided by the standard deviation of
    discounted returns. The arguments are those of ``VecNormalize``.

    :param training: whether statistics change; if not, they stay as they are, as in an evaluation
    :param norm_obs: whether observations are normalised
    :param norm_reward: whether rewards are
    :param clip_obs: largest absolute value of a normalised observation
    :param clip_reward: largest absolute value of a normalised reward
    :param gamma: γ of the discounted returns
    :param epsilon: added to variances
    """

    training: bool = True
    norm_obs: bool = True
    norm_reward: bool = True
    clip_obs: float = 10.0
    clip_reward: float = 10.0
    gamma: float = 0.99
    epsilon: float = 1e-8

    def init(self, n_envs: int, observation: Any) -> Statistics:
        """
        :param n_envs: N
        :param observation: an example
        :return: statistics before the first observation
        """
        of_observations = jax.tree.map(lambda array: Moments.empty(array.shape), observation) if self.norm_obs else None
        return Statistics(of_observations, jnp.zeros(n_envs), Moments.empty(()) if self.norm_reward else None)

    def after_reset(self, statistics: Statistics, observations: Any) -> Statistics:
        """
        :param statistics: so far
        :param observations: of the new episodes, shape (N, ...)
        :return: statistics with them
        """
        statistics = statistics.replace(discounted=jnp.zeros_like(statistics.discounted))
        return self._including(statistics, observations)

    def after_step(
        self, statistics: Statistics, observations: Any, rewards: jax.Array, dones: jax.Array
    ) -> tuple[Statistics, jax.Array]:
        """
        :param statistics: so far
        :param observations: after the step, the new episodes' where one ended, shape (N, ...)
        :param rewards: of the step, shape (N,)
        :param dones: whether it ended an episode, shape (N,)
        :return: statistics with them, and the rewards, normalised
        """
        statistics = self._including(statistics, observations)
        if statistics.returns is not None:
            returns = statistics.returns
            if self.training:
                discounted = statistics.discounted * self.gamma + rewards
                returns = returns.including(discounted)
                statistics = statistics.replace(discounted=discounted, returns=returns)
            scale = jnp.sqrt(returns.variance + self.epsilon)
            rewards = jnp.clip(rewards / scale, -self.clip_reward, self.clip_reward)
        return statistics.replace(discounted=jnp.where(dones, 0.0, statistics.discounted)), rewards

    def observations(self, statistics: Statistics, observations: Any) -> Any:
        """
        :param statistics: so far
        :param observations: shape (N, ...)
        :return: the same, normalised, float32
        """
        if statistics.observations is None:
            return observations

        def normalize(array: jax.Array, moments: Moments) -> jax.Array:
            centred = (array - moments.mean) / jnp.sqrt(moments.variance + self.epsilon)
            return jnp.clip(centred, -self.clip_obs, self.clip_obs)

        return jax.tree.map(normalize, observations, statistics.observations)

    def _including(self, statistics: Statistics, observations: Any) -> Statistics:
        if statistics.observations is None or not self.training:
            return statistics
        of_observations = jax.tree.map(
            lambda array, moments: moments.including(array), observations, statistics.observations
        )
        return statistics.replace(observations=of_observations)
