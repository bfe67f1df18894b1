"""Everything that an iteration changes, as one PyTree: it is saved, and can be mapped over seeds and devices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sbx_deepspi.optimizer import Learner
from sbx_deepspi.rollout import Array


class EpisodeStatistics(struct.PyTreeNode):
    """
    Lengths of episodes in the environment's steps, as AEL counts them. SB3's ``info["episode"]`` is of no use for that:
    Atari's counts frames, and whole games where an episode is one life.

    :param steps: of each of N environments in its present episode, int32, shape (N,)
    :param lengths: of the last episodes that ended, int32, shape (window,); the oldest is overwritten
    :param n_ended: episodes that have ended, int32
    """

    steps: Array
    lengths: Array
    n_ended: Array

    @classmethod
    def empty(cls, n_envs: int, window: int) -> "EpisodeStatistics":
        """
        :param n_envs: N
        :param window: episodes over which lengths are averaged
        :return: before the first step
        """
        return cls(np.zeros(n_envs, np.int32), np.zeros(window, np.int32), np.zeros((), np.int32))

    def after_step(self, began: np.ndarray, ended: np.ndarray) -> "EpisodeStatistics":
        """
        :param began: whether the step was an episode's first, bools of shape (N,)
        :param ended: whether it was its last, bools of shape (N,)
        :return: statistics after the step
        """
        steps = np.where(began, 0, self.steps).astype(np.int32) + np.int32(1)
        lengths, n_ended = self.lengths, int(self.n_ended)
        if ended.any():
            lengths = np.array(lengths)
            for length in steps[ended]:
                lengths[n_ended % len(lengths)] = length
                n_ended += 1
        return EpisodeStatistics(steps, lengths, np.asarray(n_ended, np.int32))

    @property
    def mean_length(self) -> float:
        """
        :return: AEL, mean steps of the last episodes; infinite as long as none has ended
        """
        n_known = min(int(self.n_ended), len(self.lengths))
        return float(np.mean(self.lengths[:n_known])) if n_known else math.inf


class RewardStatistics(struct.PyTreeNode):
    """
    The size of rewards, in whose units the world model predicts them.

    :param root_mean_square: of all rewards so far, float32
    :param count: of these rewards, float32
    """

    root_mean_square: Array
    count: Array

    @classmethod
    def empty(cls) -> "RewardStatistics":
        """
        :return: before the first reward
        """
        return cls(np.zeros((), np.float32), np.zeros((), np.float32))

    def including(self, rewards: Array) -> "RewardStatistics":
        """
        :param rewards: r, float32, of any shape
        :return: statistics of these rewards, too
        """
        # in units of the largest: squares of rewards above 1e19 would overflow
        unit = jnp.maximum(jnp.maximum(jnp.abs(rewards).max(), self.root_mean_square), jnp.finfo(jnp.float32).tiny)
        count = self.count + rewards.size
        old, new = (self.root_mean_square / unit) ** 2, ((rewards / unit) ** 2).mean()
        return RewardStatistics(unit * jnp.sqrt(old + (new - old) * (rewards.size / count)), count)

    @property
    def scale(self) -> jax.Array:
        """
        :return: σ = max(1, root mean square of all rewards so far)
        """
        return jnp.maximum(1.0, self.root_mean_square)


class TrainerState(struct.PyTreeNode):
    """
    Everything that an iteration changes.

    :param learner: parameters and optimiser
    :param key: randomness of training
    :param episodes: lengths of episodes
    :param rewards: their size
    :param n_epochs: passes over rollouts made so far, int32
    """

    learner: Learner
    key: jax.Array
    episodes: EpisodeStatistics
    rewards: RewardStatistics
    n_epochs: Any
