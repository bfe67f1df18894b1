"""What one rollout holds, its advantages, and its transitions as the networks take them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
Observations = Any
"""A PyTree of arrays: an array, or a dictionary of arrays."""

TRANSITIONS_PER_ROLLOUT = 1024


def automatic_n_steps(n_envs: int, batch_size: int) -> int:
    """
    :param n_envs: number of environments
    :param batch_size: divides the rollout, if that needs no more than twice as many transitions
    :return: steps of each, for about 1,024 transitions in a rollout: 8 for 128 environments, 1,024 for one
    """
    multiple = batch_size // math.gcd(batch_size, n_envs)
    n_steps = max(round(TRANSITIONS_PER_ROLLOUT / n_envs / multiple), 1) * multiple
    return n_steps if n_steps * n_envs <= 2 * TRANSITIONS_PER_ROLLOUT else max(TRANSITIONS_PER_ROLLOUT // n_envs, 1)


class Rollout(struct.PyTreeNode):
    """
    ``T`` steps of ``N`` environments under the behaviour policy π_b; every array is (T, N, ...).

    The fields are NumPy arrays while a rollout is collected and JAX arrays inside the update.

    :param observations: s, in the environment's own dtype: an array, or a dictionary of arrays; latents z in a
        rollout of the latent model
    :param next_observations: s'; where an episode ended, its real last observation
    :param actions: a, as sampled (before Box actions are clipped to their bounds)
    :param rewards: r, float32, as the environment gave them
    :param terminated: whether s' is terminal, bool
    :param truncated: whether a time limit ended the episode at s', which is not terminal, bool
    :param truncated_values: V(s') where a time limit cut the episode, 0 elsewhere, float32
    :param values: V(s), float32
    :param log_probs: log π_b(a|s), float32
    :param log_policy: log π_b(·|s) of every action, or of the sampled one for Box, float32; see
        :func:`~sbx_deepspi.agent.log_policy`
    """

    observations: Observations
    next_observations: Observations
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    truncated_values: Array
    values: Array
    log_probs: Array
    log_policy: Array

    @property
    def dones(self) -> Any:
        """
        :return: whether the episode ended with this step, for either reason
        """
        return self.terminated | self.truncated

    def flat(self) -> "Rollout":
        """
        :return: the same as T · N transitions in time-major order, arrays of shape (T · N, ...)
        """
        flat: Rollout = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), self)
        return flat

    @classmethod
    def empty(
        cls,
        n_steps: int,
        n_envs: int,
        observation: Any,
        action: jax.ShapeDtypeStruct,
        log_policy: tuple[int, ...],
    ) -> "Rollout":
        """
        A rollout of zeros, to be filled step by step.

        :param n_steps: T
        :param n_envs: N
        :param observation: shape and dtype of one observation: a ``jax.ShapeDtypeStruct``, or a dictionary of them
        :param action: shape and dtype of one action
        :param log_policy: shape of log π_b(·|s) in one state
        :return: NumPy arrays of the shapes above
        """

        def zeros(shape: tuple[int, ...] = (), dtype: Any = np.float32) -> np.ndarray:
            return np.zeros((n_steps, n_envs, *shape), dtype)

        return cls(
            observations=jax.tree.map(lambda leaf: zeros(leaf.shape, leaf.dtype), observation),
            next_observations=jax.tree.map(lambda leaf: zeros(leaf.shape, leaf.dtype), observation),
            actions=zeros(action.shape, action.dtype),
            rewards=zeros(),
            terminated=zeros(dtype=bool),
            truncated=zeros(dtype=bool),
            truncated_values=zeros(),
            values=zeros(),
            log_probs=zeros(),
            log_policy=zeros(log_policy),
        )


class Transitions(struct.PyTreeNode):
    """
    What the objective needs of ``B`` transitions; every array is (B, ...).

    :param observations: s
    :param next_observations: s'
    :param actions: a
    :param rewards: r, in units of σ while the world model learns from them
    :param terminated: whether s' is terminal
    :param truncated: whether a time limit ended the episode at s'
    :param values: V(s) at collection time
    :param log_probs: log π_b(a|s)
    :param advantages: Â
    :param returns: Â + V(s)
    :param counts: whether the transition counts, or comes after the end of a dream; ``None``: all count
    :param segment_length: how many of them, each time, are successive steps of one environment; divides B
    """

    observations: Observations
    next_observations: Observations
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    values: jax.Array
    log_probs: jax.Array
    advantages: jax.Array
    returns: jax.Array
    counts: jax.Array | None = None
    segment_length: int = struct.field(pytree_node=False, default=1)

    @property
    def dones(self) -> jax.Array:
        """
        :return: whether the episode ended with this step, for either reason
        """
        return self.terminated | self.truncated


def generalized_advantages(
    rollout: Rollout, last_values: Array, gamma: float | jax.Array, gae_lambda: float | jax.Array
) -> jax.Array:
    """
    Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γ V(s_{t+1}) - V(s_t) and Â_t = δ_t + γλ Â_{t+1}, where an episode's end stops the sum;
    V(s_{t+1}) is 0 after a terminal state and V of the real last observation after a time limit.

    :param rollout: T steps of N environments
    :param last_values: V of the observations that follow the rollout's last step, shape (N,)
    :param gamma: discount factor γ
    :param gae_lambda: λ
    :return: Â, shape (T, N)
    """
    following_values = jnp.concatenate([rollout.values[1:], last_values[None]])
    next_values = jnp.where(rollout.dones, rollout.truncated_values, following_values)
    deltas = rollout.rewards + gamma * next_values - rollout.values
    decays = gamma * gae_lambda * (1.0 - rollout.dones)

    def backward(advantage: jax.Array, step: tuple[Array, Array]) -> tuple[jax.Array, jax.Array]:
        delta, decay = step
        advantage = jnp.asarray(delta + decay * advantage)
        return advantage, advantage

    _, advantages = jax.lax.scan(backward, jnp.zeros_like(deltas[0]), (deltas, decays), reverse=True)
    return advantages


def to_transitions(
    rollout: Rollout, last_values: Array, gamma: float | jax.Array, gae_lambda: float | jax.Array
) -> Transitions:
    """
    Flatten a rollout into its T · N transitions, with their advantages and returns.

    :param rollout: T steps of N environments
    :param last_values: V of the observations that follow the rollout's last step, shape (N,)
    :param gamma: discount factor γ
    :param gae_lambda: λ
    :return: N · T transitions, one environment's after the other's
    """
    advantages = generalized_advantages(rollout, last_values, gamma, gae_lambda)

    def flatten(array: Array) -> jax.Array:
        return jnp.swapaxes(array, 0, 1).reshape(-1, *array.shape[2:])

    return Transitions(
        observations=jax.tree.map(flatten, rollout.observations),
        next_observations=jax.tree.map(flatten, rollout.next_observations),
        actions=flatten(rollout.actions),
        rewards=flatten(rollout.rewards),
        terminated=flatten(rollout.terminated),
        truncated=flatten(rollout.truncated),
        values=flatten(rollout.values),
        log_probs=flatten(rollout.log_probs),
        advantages=flatten(advantages),
        returns=flatten(advantages + rollout.values),
    )
