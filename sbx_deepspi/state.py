"""Everything that an iteration changes, as one PyTree: it is saved, and can be mapped over seeds and devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sbx_deepspi import devices
from sbx_deepspi.devices import PER_ENV, WHOLE
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

    def including(self, lengths: Array, ended: Array) -> "EpisodeStatistics":
        """
        NumPy's arrays on the host, JAX's inside jit.

        :param lengths: steps of each environment's episode up to each of T steps, int32, shape (T, N)
        :param ended: whether the step was its episode's last, bool, shape (T, N)
        :return: statistics after these steps
        """
        window, steps = len(self.lengths), lengths[-1]
        if not isinstance(ended, np.ndarray):
            ended, lengths = devices.together(ended), devices.together(lengths)
        elif not ended.any():
            return self.replace(steps=steps)
        ended, of_ended = ended.reshape(-1), lengths.reshape(-1)
        number = self.n_ended + ended.cumsum() - 1
        n_ended = self.n_ended + ended.sum()
        # the last slot is for what is not kept: steps that ended nothing, and all but the newest episodes
        slots = np.where if isinstance(ended, np.ndarray) else jnp.where
        slot = slots(ended & (number >= n_ended - window), number % window, window)
        if isinstance(ended, np.ndarray):
            kept: Any = np.append(self.lengths, np.int32(0))
            kept[slot] = of_ended
        else:
            kept = jnp.append(self.lengths, 0).at[slot].set(of_ended)
        return EpisodeStatistics(steps, kept[:-1], n_ended.astype(np.int32))

    @property
    def mean_length(self) -> jax.Array:
        """
        :return: AEL, mean steps of the last episodes; infinite as long as none has ended
        """
        n_known = jnp.minimum(self.n_ended, len(self.lengths))
        known = jnp.where(jnp.arange(len(self.lengths)) < n_known, self.lengths, 0)
        return jnp.where(n_known > 0, known.sum() / n_known, jnp.inf)


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
        unit = jnp.maximum(devices.largest(jnp.abs(rewards).max()), self.root_mean_square)
        unit = jnp.maximum(unit, jnp.finfo(jnp.float32).tiny)
        size = rewards.size * devices.count()
        count = self.count + size
        old, new = (self.root_mean_square / unit) ** 2, devices.mean(((rewards / unit) ** 2).mean())
        return RewardStatistics(unit * jnp.sqrt(old + (new - old) * (size / count)), count)

    @property
    def scale(self) -> jax.Array:
        """
        :return: σ = max(1, root mean square of all rewards so far)
        """
        return self.root_mean_square.clip(1.0)  # type: ignore[return-value]  # a number of NumPy's on the host


class TrainerState(struct.PyTreeNode):
    """
    Everything that an iteration changes.

    :param learner: parameters and optimiser
    :param key: randomness of training
    :param episodes: lengths of episodes
    :param rewards: their size
    :param n_epochs: passes over rollouts made so far, int32
    :param environments: the state of environments inside jit; ``None`` of others
    """

    learner: Learner
    key: jax.Array
    episodes: EpisodeStatistics
    rewards: RewardStatistics
    n_epochs: Any
    environments: Any = None

    @property
    def layout(self) -> "TrainerState":
        """
        :return: which arrays every device has, and which are of its environments
        """
        episodes = EpisodeStatistics(PER_ENV, WHOLE, WHOLE)  # type: ignore[arg-type]
        environments = None if self.environments is None else self.environments.layout
        return TrainerState(WHOLE, WHOLE, episodes, WHOLE, WHOLE, environments)  # type: ignore[arg-type]
