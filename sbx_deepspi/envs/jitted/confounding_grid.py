"""The confounding grid inside jit, from the same tables as the other two forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from sbx_deepspi.collect.jax_env import Named
from sbx_deepspi.envs.confounding_grid import draw_picture, make_maze, make_observations


class JaxConfoundingGrid(Named):
    """
    See :class:`~sbx_deepspi.ConfoundingGrid`. Two are equal if their parameters are.

    :param n_path: the paper's n, from 1 to 81
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount in the exits' rewards
    :param numbered: an observation is the number of its frame, for :class:`~sbx_deepspi.sb3.grid.GridPolicy`
    :raises ValueError: a parameter is out of its range
    """

    def __init__(self, n_path: int = 5, epsilon: float = 0.2, gamma: float = 0.99, numbered: bool = False) -> None:
        super().__init__("ConfoundingGrid", dict(n_path=n_path, epsilon=epsilon, gamma=gamma, numbered=numbered))
        self.maze = make_maze(n_path, epsilon, gamma)
        self.mdp = self.maze.mdp
        self.observation_space, self._observations = make_observations(self.maze, numbered)
        self.action_space: spaces.Space = spaces.Discrete(4)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """
        :param key: not used: every episode begins in I
        :return: first observation and state
        """
        return jnp.asarray(self._observations[self.mdp.initial]), jnp.int32(self.mdp.initial)

    def step(self, key: jax.Array, state: Any, action: Any) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
        """
        :param key: randomness
        :param state: number of a state
        :param action: 0 up, 1 down, 2 left or 3 right
        :return: observation, state, reward, terminated, truncated (the copies have the time limit)
        """
        probabilities = jnp.asarray(self.mdp.transitions, jnp.float32)[state, action]
        reward = jnp.asarray(self.mdp.rewards, jnp.float32)[state, action]
        state = jax.random.categorical(key, jnp.log(probabilities)).astype(jnp.int32)
        return (
            jnp.asarray(self._observations)[state],
            state,
            reward,
            jnp.asarray(self.mdp.terminal)[state],
            jnp.zeros((), bool),
        )

    def render(self, state: Any) -> np.ndarray:
        """
        :param state: number of a state
        :return: the layout and the agent, uint8, shape (height, width, 3)
        """
        return draw_picture(self.maze, int(state))
