"""What one rollout holds, its advantages, and its transitions as the networks take them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray

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

    :param observations: s, in the environment's own dtype
    :param next_observations: s'; where an episode ended, its real last observation
    :param actions: a, as sampled (before Box actions are clipped to their bounds)
    :param rewards: r, float32, as the environment gave them
    :param dones: whether the episode ended with this step
    :param truncated_values: V(s') where a time limit cut the episode, 0 elsewhere, float32
    :param values: V(s), float32
    :param log_probs: log π_b(a|s), float32
    :param log_policy: log π_b(·|s) of every action, or of the sampled one for Box, float32; see
        :func:`~sbx_deepspi.networks.agent.log_policy`
    """

    observations: Array
    next_observations: Array
    actions: Array
    rewards: Array
    dones: Array
    truncated_values: Array
    values: Array
    log_probs: Array
    log_policy: Array

    def flat(self) -> "Rollout":
        """
        :return: the same as T · N transitions in time-major order, arrays of shape (T · N, ...)
        """
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), self)

    @classmethod
    def empty(
        cls,
        n_steps: int,
        n_envs: int,
        observation: tuple[tuple[int, ...], Any],
        action: tuple[tuple[int, ...], Any],
        log_policy: tuple[int, ...],
    ) -> "Rollout":
        """
        A rollout of zeros, to be filled step by step.

        :param n_steps: T
        :param n_envs: N
        :param observation: shape and dtype of one observation
        :param action: shape and dtype of one action
        :param log_policy: shape of log π_b(·|s) in one state
        :return: NumPy arrays of the shapes above
        """

        def zeros(shape: tuple[int, ...] = (), dtype: Any = np.float32) -> np.ndarray:
            return np.zeros((n_steps, n_envs, *shape), dtype)

        return cls(
            observations=zeros(*observation),
            next_observations=zeros(*observation),
            actions=zeros(*action),
            rewards=zeros(),
            dones=zeros(dtype=bool),
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
    :param rewards: r
    :param dones: whether the episode ended
    :param values: V(s) at collection time
    :param log_probs: log π_b(a|s)
    :param advantages: Â
    :param returns: Â + V(s)
    :param segment_length: how many of them, each time, are successive steps of one environment; divides B
    """

    observations: jax.Array
    next_observations: jax.Array
    actions: jax.Array
    rewards: jax.Array
    dones: jax.Array
    values: jax.Array
    log_probs: jax.Array
    advantages: jax.Array
    returns: jax.Array
    segment_length: int = struct.field(pytree_node=False, default=1)


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
        observations=flatten(rollout.observations),
        next_observations=flatten(rollout.next_observations),
        actions=flatten(rollout.actions),
        rewards=flatten(rollout.rewards),
        dones=flatten(rollout.dones),
        values=flatten(rollout.values),
        log_probs=flatten(rollout.log_probs),
        advantages=flatten(advantages),
        returns=flatten(advantages + rollout.values),
    )


class SharedObservations(struct.PyTreeNode):
    """
    The observations of ``B`` transitions in segments, each once where the next transition begins with it.

    :param observations: every s, then those s' that begin no other transition; shape (B + ⌈1.5 B / length⌉, ...)
    :param following: which of them is s', integers of shape (B,)
    :param fits: whether there was room for all: one episode's end within every second segment, on average. With
        segments of 8 there mostly is where episodes have more than some twenty steps
    """

    observations: jax.Array
    following: jax.Array
    fits: jax.Array


def share_observations(transitions: Transitions) -> SharedObservations:
    """
    Leave out each s' that is the s of the next transition: so it is within a segment, unless the episode ended.

    :param transitions: B transitions in segments
    :return: what is left, to be encoded
    """
    size, length = len(transitions.dones), transitions.segment_length
    is_own = transitions.dones | (jnp.arange(size) % length == length - 1)
    n_own = -(-3 * size // (2 * length))
    (own,) = jnp.nonzero(is_own, size=n_own, fill_value=0)
    return SharedObservations(
        observations=jnp.concatenate([transitions.observations, transitions.next_observations[own]]),
        following=jnp.where(is_own, size - 1 + jnp.cumsum(is_own), 1 + jnp.arange(size)),
        fits=is_own.sum() <= n_own,
    )


def n_microbatches(size: int, segment_length: int, microbatch_size: int) -> int:
    """
    :param size: transitions in a batch
    :param segment_length: of its segments, which stay whole
    :param microbatch_size: the most transitions in a part, at least a segment's
    :return: number of equal parts, as few as the sizes allow
    """
    n_segments, most = size // segment_length, microbatch_size // segment_length
    return next(n for n in range(1, n_segments + 1) if n_segments % n == 0 and n_segments // n <= most)


def microbatches(transitions: Transitions, microbatch_size: int) -> Transitions:
    """
    Split a batch into equal parts of whole segments, as few as the size allows.

    :param transitions: B transitions
    :param microbatch_size: the most in a part, at least a segment's
    :return: the same, each array of shape (parts, B / parts, ...)
    """
    n_parts = n_microbatches(len(transitions.dones), transitions.segment_length, microbatch_size)
    return jax.tree.map(lambda array: array.reshape(n_parts, -1, *array.shape[1:]), transitions)


def spread_ends(indices: jax.Array, dones: jax.Array, segment_length: int, microbatch_size: int) -> jax.Array:
    """
    Deal out a minibatch's segments like cards, those within which most episodes end first: no part gets more ends than
    another by more than one segment has, so that :func:`share_observations` needs little room for them.

    :param indices: of a minibatch's transitions, in segments, shape (B,)
    :param dones: whether the episode ended, of all transitions
    :param segment_length: of the segments
    :param microbatch_size: as :func:`microbatches` takes it, which will split the minibatch
    :return: the same indices, part by part, shape (B,)
    """
    n_parts = n_microbatches(len(indices), segment_length, microbatch_size)
    segments = indices.reshape(-1, segment_length)
    n_ends = dones[segments[:, :-1]].sum(axis=1)
    dealt = jnp.argsort(-n_ends).reshape(-1, n_parts).T
    return segments[dealt].reshape(-1)
