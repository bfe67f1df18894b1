"""gymnax's environments, by their ids."""

import dataclasses
import inspect
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnax.environments.spaces import gymnax_space_to_gym_space

from sbx_deepspi.collect.jax_env import Named


class GymnaxEnv(Named):
    """
    One of gymnax's environments. Two are equal if they have the same id and arguments.

    :param name: gymnax's id, such as ``"Breakout-MinAtar"``
    :param arguments: of its constructor, such as ``use_minimal_action_set``, or parameters of the environment, such as
        ``max_steps_in_episode``
    :raises TypeError: there is no such argument
    :raises ConnectionError: the environment's data could not be downloaded
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, arguments)
        constructor = set(inspect.signature(gymnax.registration._registry[name]).parameters)
        own = {key: value for key, value in arguments.items() if key in constructor}
        try:
            self.env, defaults = gymnax.make(name, **own)
        except OSError as error:
            raise ConnectionError(f"gymnax's {name} downloads its data, which failed: {error}.") from error
        parameters = {field.name for field in dataclasses.fields(defaults)}
        for key in arguments.keys() - constructor - parameters:
            taken = ", ".join(sorted(constructor | parameters))
            raise TypeError(f"gymnax's {name} takes {taken}, but got {key!r}.")
        self.parameters = defaults.replace(**{key: arguments[key] for key in arguments.keys() - constructor})
        self.observation_space: spaces.Space = gymnax_space_to_gym_space(self.env.observation_space(self.parameters))
        self.action_space: spaces.Space = gymnax_space_to_gym_space(self.env.action_space(self.parameters))

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        """
        :param key: randomness
        :return: first observation and state
        """
        observation, state = self.env.reset_env(key, self.parameters)
        return observation, state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
        """
        :param key: randomness
        :param state: of an episode
        :param action: in the action space
        :return: s' as it is observed, state, reward, terminated, truncated
        """
        observation, state, reward, terminated, _ = self.env.step_env(key, state, action, self.parameters)
        truncated = jnp.asarray(self.env.is_truncated(state, self.parameters))
        return observation, state, reward, jnp.asarray(terminated), truncated

    def render(self, state: Any) -> np.ndarray:
        """
        :param state: of an episode, on the host
        :return: gymnax's own picture, uint8, shape (height, width, 3)
        """
        from gymnax.visualize.visualizer import Visualizer
        from matplotlib import pyplot

        visualizer = Visualizer(self.env, self.parameters, [state])
        try:
            visualizer.init()
            visualizer.fig.canvas.draw()
            return np.array(visualizer.fig.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        finally:
            pyplot.close(visualizer.fig)


def has(name: str) -> bool:
    """
    :param name: of an environment
    :return: whether the suite has it
    """
    return name in gymnax.registered_envs


def make(name: str, **arguments: Any) -> tuple[GymnaxEnv, dict[str, Any]]:
    """
    :param name: gymnax's id
    :param arguments: see :class:`GymnaxEnv`
    :return: the environment, and what else the copies need: nothing
    """
    return GymnaxEnv(name, **arguments), {}
