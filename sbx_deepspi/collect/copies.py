"""
Many copies of one environment, as pure functions: episodes that start anew by themselves, time limits, statistics.

The only autoreset here: whoever steps copies of an environment, one step at a time or inside a scan, does it with
:meth:`Copies.step`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi import devices
from sbx_deepspi.collect.jax_env import JaxEnv, Observation
from sbx_deepspi.collect.normalization import Normalization, Statistics
from sbx_deepspi.devices import PER_ENV, WHOLE


class CopiesState(struct.PyTreeNode):
    """
    The state of N copies.

    :param key: randomness of the next step or reset
    :param states: the environment's own, arrays of shape (N, ...)
    :param observations: in these states, normalised where that is asked for, arrays of shape (N, ...)
    :param lengths: steps of each copy in its episode, int32, shape (N,)
    :param returns: their rewards, as the environment gave them, summed, float32, shape (N,)
    :param first: observations and states in which episodes begin, arrays of shape (M, ...); ``None``: each episode
        begins with a reset of its own
    :param statistics: of observations and rewards; ``None``: they are not normalised
    """

    key: jax.Array
    states: Any
    observations: Observation
    lengths: jax.Array
    returns: jax.Array
    first: Any
    statistics: Statistics | None

    @property
    def layout(self) -> "CopiesState":
        """
        :return: which arrays every device has, and which are of its environments
        """
        return CopiesState(
            key=WHOLE,  # type: ignore[arg-type]
            states=PER_ENV,
            observations=PER_ENV,
            lengths=PER_ENV,  # type: ignore[arg-type]
            returns=PER_ENV,  # type: ignore[arg-type]
            first=WHOLE,
            statistics=None if self.statistics is None else self.statistics.layout,
        )


class Outcome(struct.PyTreeNode):
    """
    What one step of N copies gave, arrays of shape (N, ...); or T steps, of shape (T, N, ...).

    :param next_observations: s', also where it ended an episode; ``None`` where the host is told of a rollout
    :param rewards: r, float32
    :param terminated: whether s' is terminal, bool
    :param truncated: whether a time limit ended the episode at s', which is not terminal, bool
    :param returns: rewards of the episode up to this step, as the environment gave them, summed, float32
    :param lengths: steps of the episode up to this one, int32
    :param finite_observations: whether s', and the observation after it, are finite as the environment gave them, bool
    :param finite_rewards: whether the reward is, bool
    """

    next_observations: Observation
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    returns: jax.Array
    lengths: jax.Array
    finite_observations: jax.Array
    finite_rewards: jax.Array

    @property
    def dones(self) -> jax.Array:
        """
        :return: whether the episode ended with this step, for either reason
        """
        return self.terminated | self.truncated


@dataclass(frozen=True)
class Copies:
    """
    N copies of an environment.

    :param env: the environment
    :param n_envs: N
    :param state_dtypes: of the leaves of its states after a step: a first state may hold Python's numbers
    :param max_episode_steps: an episode of so many steps is truncated; ``None``: only the environment ends episodes
    :param n_initial_states: episodes begin in one of so many states, drawn anew by each reset of all copies: for
        environments whose reset takes longer than a step; ``None``: each episode begins with a reset of its own
    :param normalization: of observations and rewards; ``None``: none
    """

    env: JaxEnv
    n_envs: int
    state_dtypes: tuple[Any, ...]
    max_episode_steps: int | None = None
    n_initial_states: int | None = None
    normalization: Normalization | None = None

    def reset(self, key: jax.Array, statistics: Statistics | None = None) -> CopiesState:
        """
        Begin an episode in each copy.

        :param key: randomness
        :param statistics: so far; ``None``: of nothing
        :return: the state of all copies
        """
        key, first_key, draw_key = jax.random.split(key, 3)
        first = None
        if self.n_initial_states is not None:
            first = jax.vmap(self._reset_one)(jax.random.split(first_key, self.n_initial_states))
        observations, states = self._begin(first, draw_key)
        if self.normalization is not None:
            if statistics is None:
                statistics = self.normalization.init(self.n_envs, jax.tree.map(lambda array: array[0], observations))
            statistics = self.normalization.after_reset(statistics, observations)
            observations = self.normalization.observations(statistics, observations)
        zeros = jnp.zeros(self.n_envs)
        return CopiesState(key, states, observations, zeros.astype(jnp.int32), zeros, first, statistics)

    def reset_part(self, key: jax.Array, statistics: Statistics | None = None) -> CopiesState:
        """
        Begin an episode in each copy, where several processes have as many: what they have together is what one would
        have.

        :param key: randomness, the same in all processes
        :param statistics: so far; ``None``: of nothing
        :return: the state of this process's copies
        """
        of_all = dataclasses.replace(self, n_envs=self.n_envs * jax.process_count())
        if statistics is not None:
            statistics = statistics.replace(discounted=jnp.zeros(of_all.n_envs))
        state = of_all.reset(key, statistics)
        part: CopiesState = devices.part_of_process(state, state.layout)
        return part

    def step(self, state: CopiesState, actions: jax.Array) -> tuple[CopiesState, Outcome]:
        """
        One step of each copy. Where an episode ends, the next one begins within the same step.

        :param state: of all copies
        :param actions: in the environment's space, shape (N, ...)
        :return: the new state, whose observations are those of the new episodes, and what the step gave
        """
        key, step_key, draw_key = jax.random.split(state.key, 3)
        step_key, draw_key = devices.own(step_key), devices.own(draw_key)
        last_observations, states, rewards, terminated, truncated = jax.vmap(self._step_one)(
            jax.random.split(step_key, self.n_envs), state.states, actions
        )
        lengths, returns = state.lengths + 1, state.returns + rewards
        if self.max_episode_steps is not None:
            truncated |= lengths >= self.max_episode_steps
        truncated &= ~terminated
        dones = terminated | truncated

        def begin_where_done() -> tuple[Observation, Any]:
            def select(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(dones.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            begun: tuple[Observation, Any] = jax.tree.map(
                select, self._begin(state.first, draw_key), (last_observations, states)
            )
            return begun

        observations, states = jax.lax.cond(dones.any(), begin_where_done, lambda: (last_observations, states))
        # before they are normalised: there one copy's NaN becomes everybody's
        finite = _finite(observations) & _finite(last_observations)
        finite_rewards = jnp.isfinite(rewards)
        statistics = state.statistics
        if self.normalization is not None:
            assert statistics is not None
            statistics, rewards = self.normalization.after_step(statistics, observations, rewards, dones)
            observations = self.normalization.observations(statistics, observations)
            last_observations = self.normalization.observations(statistics, last_observations)
        outcome = Outcome(last_observations, rewards, terminated, truncated, returns, lengths, finite, finite_rewards)
        state = state.replace(
            key=key,
            states=states,
            observations=observations,
            lengths=jnp.where(dones, 0, lengths),
            returns=jnp.where(dones, 0.0, returns),
            statistics=statistics,
        )
        return state, outcome

    def _begin(self, first: Any, key: jax.Array) -> tuple[Observation, Any]:
        if self.n_initial_states is None:
            return jax.vmap(self._reset_one)(jax.random.split(key, self.n_envs))
        drawn = jax.random.randint(key, (self.n_envs,), 0, self.n_initial_states)
        begun: tuple[Observation, Any] = jax.tree.map(lambda array: array[drawn], first)
        return begun

    def _reset_one(self, key: jax.Array) -> tuple[Observation, Any]:
        observation, state = self.env.reset(key)
        leaves, structure = jax.tree.flatten(state)
        cast = [_as(leaf, dtype) for leaf, dtype in zip(leaves, self.state_dtypes, strict=True)]
        return _in_space(observation, self.env.observation_space), jax.tree.unflatten(structure, cast)

    def _step_one(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any, jax.Array, Any, Any]:
        observation, state, reward, terminated, truncated = self.env.step(key, state, action)
        observation = _in_space(observation, self.env.observation_space)
        return observation, state, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated), jnp.asarray(truncated)


def _in_space(observation: Observation, space: Any) -> Observation:
    # in the dtype of its space: a reset may return integers where steps return floats
    if hasattr(space, "spaces"):
        return {key: _in_space(observation[key], part) for key, part in space.spaces.items()}
    return jnp.asarray(observation, jax.dtypes.canonicalize_dtype(space.dtype))


def _as(leaf: Any, dtype: Any) -> Any:
    # random keys have a dtype to which nothing is cast
    return leaf if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else jnp.asarray(leaf, dtype)


def _finite(observations: Observation) -> jax.Array:
    leaves = [jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in jax.tree.leaves(observations)]
    return jnp.stack(leaves).all(axis=0)
