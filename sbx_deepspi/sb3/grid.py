"""The confounding grid's frames by their numbers, and exact values of policies on it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sbx_deepspi import agent
from sbx_deepspi.agent import Networks
from sbx_deepspi.envs.confounding_grid import Maze, make_frames, make_maze, make_observation_space, policy_value
from sbx_deepspi.networks.encoders import CnnEncoder
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Observations
from sbx_deepspi.sb3.policies import CnnPolicy


class FrameEncoder(CnnEncoder):
    """
    :class:`~sbx_deepspi.networks.encoders.CnnEncoder` for images that are known when it is compiled. Of all the windows
    that a convolution sees in them, which are mostly the same few, each is multiplied once.
    """

    @nn.compact
    def __call__(self, frames: np.ndarray) -> jax.Array:  # type: ignore[override]
        """
        :param frames: uint8, shape (S, 1, H, W)
        :return: z, shape (S, H', W', channels), float32
        """
        maps = frames[:, 0].astype(int)
        values: jax.Array = jnp.arange(256, dtype=jnp.float32)[:, None]  # of a map's numbers: grey levels at first
        for kernel, bias, stride in self.layers(1):
            windows, maps = distinct_windows(maps, len(kernel), stride)
            inputs = values[windows].reshape(len(windows), -1)
            values = self.activation_fn(inputs @ kernel.reshape(-1, kernel.shape[-1]) + bias)
        return values[maps]


@dataclass(frozen=True)
class ByNumber:
    """
    φ of a state by its number: all frames are encoded once, however many numbers there are. It has the two methods of a
    flax module that are used; parameters have the names and first values that they have where frames are observed.

    :param encoder: frames → latent states
    :param n_path: of the grid
    """

    encoder: nn.Module
    n_path: int

    def init_with_output(self, key: jax.Array, numbers: jax.Array) -> tuple[jax.Array, Any]:
        """
        :param key: randomness
        :param numbers: shape (B,)
        :return: z, shape (B, ...), and the first parameters
        """
        latents: Any
        latents, variables = self.encoder.init_with_output(key, self.frames)
        return latents[numbers], variables

    def apply(self, variables: Any, numbers: jax.Array) -> jax.Array:
        """
        :param variables: parameters
        :param numbers: shape (B,)
        :return: z, shape (B, ...)
        """
        latents: Any = self.encoder.apply(variables, self.frames)
        return latents[numbers]

    @property
    def frames(self) -> np.ndarray:
        """
        :return: of each state, shape (S, 1, 84, 84)
        """
        return make_frames(make_maze(self.n_path))


def distinct_windows(maps: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """
    :param maps: integers, shape (B, H, W)
    :param size: of the windows, in both directions
    :param stride: from one to the next, in both directions
    :return: the windows that differ, shape (K, size²), and which of them is where, shape (B, H', W')
    """
    windows = np.lib.stride_tricks.sliding_window_view(maps, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    distinct, which = np.unique(windows.reshape(-1, size**2), axis=0, return_inverse=True)
    return distinct, which.reshape(windows.shape[:3])


class GridPolicy(CnnPolicy):
    """
    :class:`~sbx_deepspi.CnnPolicy` on the frames behind the states' numbers, which ``make_jax_env("ConfoundingGrid",
    numbered=True)`` observes. It computes the same in less time: a grid of n_path 5 has 16 frames, a minibatch 256
    transitions. These are drawn one by one, since runs of successive steps would save nothing here.

    :param observation_space: Discrete, of a grid's states
    :param args: see :class:`~sbx_deepspi.CnnPolicy`
    :param kwargs: see :class:`~sbx_deepspi.CnnPolicy`
    :raises ValueError: no grid has so many states
    """

    observation_space: spaces.Discrete

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        n_states = int(observation_space.n) if isinstance(observation_space, spaces.Discrete) else 0
        if n_states < 8 or n_states % 2:
            raise ValueError(
                f"GridPolicy needs the numbers of the confounding grid's frames, but got {observation_space}: make its "
                "environments with numbered=True, or use 'CnnPolicy'."
            )
        super().__init__(make_observation_space(), *args, **kwargs)
        assert isinstance(observation_space, spaces.Discrete)
        self.observation_space = observation_space
        self.encodes_images = False

    def make_encoder(self) -> nn.Module:
        return FrameEncoder(self.convolutions, True, self.normalize_images, self.activation_fn, self.ortho_init)

    def make_networks(self) -> Networks:
        networks = super().make_networks()
        n_path = (int(self.observation_space.n) - 6) // 2  # a maze has 2 n_path + 6 states
        return replace(networks, encoder=ByNumber(networks.encoder, n_path))  # type: ignore[arg-type]


@partial(jax.jit, static_argnums=0)
def look(networks: Networks, parameters: Parameters, observations: Observations) -> tuple[jax.Array, jax.Array]:
    """
    :param networks: of a policy
    :param parameters: of all of them
    :param observations: of every state, shape (S, ...)
    :return: log π(·|s), shape (S, A), and φ(s), shape (S, ...)
    """
    latents = agent.encode(networks, parameters, observations)
    distribution, _ = agent.policy_and_values(networks, parameters, latents)
    return agent.log_policy(distribution, jnp.zeros(len(latents), jnp.int32)), latents


def measure(maze: Maze, log_policy: np.ndarray, latents: np.ndarray, gamma: float) -> dict[str, float]:
    """
    :param maze: the grid
    :param log_policy: log π(·|s), shape (S, A)
    :param latents: φ(s), shape (S, ...)
    :param gamma: the discount, below 1
    :return: ``value``, the exact one at I of the stochastic policy; ``most_likely_value``, that of its most likely
        actions; ``distance``, the norm between the latent states of the two cells with the choice
    """
    policy = np.exp(log_policy.astype(np.float64))
    policy /= policy.sum(axis=1, keepdims=True)
    most_likely = np.eye(policy.shape[1])[policy.argmax(axis=1)]
    top, bottom = latents[maze.layout[tuple(maze.cells.T)] == "!"]
    return {
        "value": float(policy_value(maze.mdp, policy, gamma)[maze.mdp.initial]),
        "most_likely_value": float(policy_value(maze.mdp, most_likely, gamma)[maze.mdp.initial]),
        "distance": float(np.linalg.norm(top - bottom)),
    }


class GridCallback(BaseCallback):
    """
    Logs what :func:`measure` returns as ``grid/value``, ``grid/most_likely_value`` and ``grid/distance`` after each
    update. RL Zoo takes it as ``callback: sbx_deepspi.sb3.grid.GridCallback`` among the hyperparameters.
    """

    def _on_training_start(self) -> None:
        self.maze: Maze = self.training_env.get_attr("maze")[0]
        is_numbered = isinstance(self.training_env.observation_space, spaces.Discrete)
        self.observations = np.arange(len(self.maze.cells)) if is_numbered else make_frames(self.maze)

    def _on_rollout_start(self) -> None:
        policy: Any = self.model.policy
        seen = look(policy.programs.networks, policy.learner.parameters, self.observations)
        log_policy, latents = jax.device_get(seen)
        gamma = self.model.gamma  # type: ignore[attr-defined]
        for name, number in measure(self.maze, log_policy, latents, gamma).items():
            self.logger.record(f"grid/{name}", number)

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True
