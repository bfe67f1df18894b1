"""brax's environments, by their names, without brax's own wrappers, which lose an episode's last observation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs
from gymnasium import spaces

from sbx_deepspi.collect.jax_env import Named

MAX_EPISODE_STEPS = 1000
N_INITIAL_STATES = 256


class BraxEnv(Named):
    """
    One of brax's environments. Two are equal if they have the same name and arguments.

    :param name: brax's, such as ``"ant"``
    :param arguments: of its constructor, such as ``backend``
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, arguments)
        self.env = envs.get_environment(name, **arguments)
        self.observation_space = spaces.Box(-np.inf, np.inf, (int(self.env.observation_size),), np.float32)  # type: ignore[arg-type]
        self.action_space = spaces.Box(-1.0, 1.0, (self.env.action_size,), np.float32)

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """
        :param key: randomness
        :return: first observation and state
        """
        state = self.env.reset(key)
        return state.obs, state  # type: ignore[return-value]

    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array]:
        """
        :param key: not used: brax's steps are deterministic
        :param state: of an episode
        :param action: in the action space
        :return: s' as it is observed, state, reward, terminated, truncated
        """
        state = self.env.step(state, action)
        return state.obs, state, state.reward, state.done > 0, jnp.zeros((), bool)

    def render(self, state: Any) -> np.ndarray:
        """
        :param state: of an episode, on the host
        :return: brax's own picture, uint8, shape (height, width, 3)
        """
        return np.asarray(self.env.render([state.pipeline_state])[0])  # type: ignore[attr-defined]


def has(name: str) -> bool:
    """
    :param name: of an environment
    :return: whether the suite has it
    """
    return name in envs._envs


def make(name: str, **arguments: Any) -> tuple[BraxEnv, dict[str, Any]]:
    """
    :param name: brax's
    :param arguments: see :class:`BraxEnv`
    :return: the environment, and what else the copies need: brax's time limit, and a pool of first states
    """
    settings = dict(max_episode_steps=MAX_EPISODE_STEPS, n_initial_states=N_INITIAL_STATES)
    return BraxEnv(name, **arguments), settings
