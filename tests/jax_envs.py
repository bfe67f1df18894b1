"""Environments inside jit that compile in no time."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from sbx_deepspi import JaxVecEnv

needs_gymnax = pytest.mark.skipif(find_spec("gymnax") is None, reason="gymnax is not installed")


@dataclass(frozen=True)
class Line:
    """
    A walk on -size ... size: action 1 goes right, 0 left, now and then it slips. The right end pays 1, the left end
    ends the episode, too; every step costs 0.01.
    """

    size: int = 3
    slips: float = 0.1
    observation_space: ClassVar[spaces.Space] = spaces.Box(-1, 1, (2,), np.float32)
    action_space: ClassVar[spaces.Space] = spaces.Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        position = jax.random.randint(key, (), -1, 2)
        return self.observe(position), {"position": position, "time": 0}

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        slips = jax.random.bernoulli(key, self.slips)
        position = state["position"] + jnp.where(slips, 0, 2 * action - 1)
        state = {"position": position, "time": state["time"] + 1}
        reward = jnp.where(position >= self.size, 1.0, -0.01)
        return self.observe(position), state, reward, jnp.abs(position) >= self.size, state["time"] >= 50

    def observe(self, position: jax.Array) -> jax.Array:
        return jnp.stack([position / self.size, jnp.float32(1)]).astype(jnp.float32)

    def render(self, state: Any) -> np.ndarray:
        picture = np.zeros((1, 2 * self.size + 1, 3), np.uint8)
        picture[0, int(state["position"]) + self.size] = 255
        return picture


@dataclass(frozen=True)
class Breaks(Line):
    """It returns NaN after some steps."""

    where: str = "observation"
    after: int = 5

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any, Any, Any, Any]:
        observation, state, reward, terminated, truncated = super().step(key, state, action)
        late = state["time"] >= self.after
        if self.where == "observation":
            observation = jnp.where(late, jnp.nan, observation)
        else:
            reward = jnp.where(late, jnp.nan, reward)
        return observation, state, reward, terminated & False, truncated


def line_env(n_envs: int = 4, seed: int = 0, **kwargs: Any) -> JaxVecEnv:
    return JaxVecEnv(Line(), n_envs, seed, **{"max_episode_steps": 10, **kwargs})
