"""Craftax's environments, by their ids, without their own autoreset, which loses an episode's last observation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from gymnasium import spaces

from sbx_deepspi.collect.jax_env import Named
from sbx_deepspi.env_ids import IDS

N_INITIAL_STATES = 64


class CraftaxEnv(Named):
    """
    One of Craftax's environments. Two are equal if they have the same id and parameters.

    :param name: Craftax's id
    :param parameters: of the environment, such as ``max_timesteps``
    :raises TypeError: there is no such parameter
    """

    def __init__(self, name: str, **parameters: Any) -> None:
        super().__init__(name, parameters)
        self.env = make_craftax_env_from_name(name, auto_reset=False)
        defaults = self.env.default_params
        taken = sorted(field.name for field in dataclasses.fields(defaults))
        for parameter in parameters.keys() - set(taken):
            raise TypeError(f"{name} takes {', '.join(taken)}, but got {parameter!r}.")
        self.parameters = defaults.replace(**parameters)
        space = self.env.observation_space(self.parameters)
        self.observation_space = spaces.Box(float(space.low), float(space.high), space.shape, np.float32)
        self.action_space: spaces.Space = spaces.Discrete(int(self.env.action_space(self.parameters).n))

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """
        :param key: randomness
        :return: first observation and state
        """
        observation, state = self.env.reset_env(key, self.parameters)
        return jnp.asarray(observation, jnp.float32), state

    def step(
        self, key: jax.Array, state: Any, action: jax.Array
    ) -> tuple[jax.Array, Any, jax.Array, jax.Array, jax.Array]:
        """
        :param key: randomness
        :param state: of an episode
        :param action: in the action space
        :return: s' as it is observed, state, reward, terminated, truncated
        """
        observation, state, reward, _, _ = self.env.step_env(key, state, action, self.parameters)
        # Craftax's "done" is also that of its time limit
        late = jnp.asarray(state.timestep >= self.parameters.max_timesteps)
        dead = self.env.is_terminal(state.replace(timestep=0), self.parameters)
        return jnp.asarray(observation, jnp.float32), state, reward, jnp.asarray(dead), late & ~dead


def has(name: str) -> bool:
    """
    :param name: of an environment
    :return: whether the suite has it
    """
    return name in IDS["craftax"]


def make(name: str, **parameters: Any) -> tuple[CraftaxEnv, dict[str, Any]]:
    """
    :param name: Craftax's id
    :param parameters: see :class:`CraftaxEnv`
    :return: the environment, and what else the copies need: a pool of first states, since a new world takes long
    """
    return CraftaxEnv(name, **parameters), dict(n_initial_states=N_INITIAL_STATES)
