"""One copy of an environment inside jit as a Gymnasium environment, for programs that know no other: RL Zoo's enjoy."""

from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium import spaces

from sbx_deepspi.envs.jitted.make import make_one


class JaxGymEnv(gym.Env[Any, Any]):
    """
    Registered under the ids of :func:`~sbx_deepspi.make_jax_env`. Each step crosses from Python into a compiled
    program and back, which is slow: to learn, use :func:`~sbx_deepspi.make_jax_env`.

    :param env_id: see :func:`~sbx_deepspi.make_jax_env`
    :param render_mode: ``"rgb_array"``, ``"human"``, which opens a window, or ``None``
    :param arguments: of the environment
    :raises ValueError: there is no such id, or it cannot be drawn
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, env_id: str, render_mode: str | None = None, **arguments: Any) -> None:
        self.env, settings = make_one(env_id, **arguments)
        if render_mode is not None and not hasattr(self.env, "render"):
            raise ValueError(f"{env_id} draws no pictures: leave render_mode at None (--no-render for RL Zoo's enjoy).")
        self.render_mode = render_mode
        self.observation_space: spaces.Space = self.env.observation_space
        self.action_space: spaces.Space = self.env.action_space
        self.max_episode_steps = settings.get("max_episode_steps")
        self._reset, self._step = jax.jit(self.env.reset), jax.jit(self.env.step)
        self._n_steps = 0
        self._state: Any = None
        self._image: Any = None  # of the window

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: of all random draws from now on; ``None`` continues the present sequence
        :param options: not used
        :return: observation and an empty info
        """
        super().reset(seed=seed)
        observation, self._state = self._reset(self._key())
        self._n_steps = 0
        return self._on_host(observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: in the action space
        :return: observation, reward, terminated, truncated and an empty info
        """
        observation, self._state, reward, terminated, truncated = self._step(
            self._key(), self._state, jax.numpy.asarray(action)
        )
        self._n_steps += 1
        late = self.max_episode_steps is not None and self._n_steps >= self.max_episode_steps
        if self.render_mode == "human":
            self.render()
        return self._on_host(observation), float(reward), bool(terminated), bool(truncated) or late, {}

    def render(self) -> Any:
        """
        :return: an RGB picture, or ``None`` after showing it in a window
        """
        if self.render_mode is None:
            return None
        picture = self.env.render(jax.device_get(self._state))
        if self.render_mode == "rgb_array":
            return picture
        from matplotlib import pyplot

        if self._image is None:
            self._image = pyplot.imshow(picture)
            pyplot.axis("off")
        self._image.set_data(picture)
        pyplot.pause(1 / self.metadata["render_fps"])
        return None

    def _key(self) -> jax.Array:
        return jax.random.PRNGKey(int(self.np_random.integers(2**31)))

    def _on_host(self, observation: Any) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            parts = self.observation_space.spaces
            return {key: np.asarray(observation[key], part.dtype) for key, part in parts.items()}
        array = np.asarray(observation, self.observation_space.dtype)
        return array[()] if isinstance(self.observation_space, spaces.Discrete) else array
