"""What tests of several modules share: tiny environments, a rollout, and how parameters are compared."""

from functools import partial
from typing import Any

import gymnasium as gym
import jax
import numpy as np
from gymnasium import spaces

from sbx_deepspi import DeepSPI
from sbx_deepspi.collect.vec_env import observations_of
from sbx_deepspi.hyperparameters import Hyperparameters
from sbx_deepspi.optimizer import StepSize

TINY_RUN: dict[str, Any] = dict(learning_rate=1e-3, n_steps=8, batch_size=8, n_epochs=2, clip_range=0.1, seed=0)


class ToyEnv(gym.Env):
    """Random observations, reward 1 for every step, episodes of ``length`` steps cut by a time limit."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, length: int = 5):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps >= self.length, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 44, 48), np.uint8)  # a latent map of 2 x 2, on which convolutions are more than dense
CHANNELS_FIRST, CHANNELS_LAST = spaces.Box(0, 255, (2, 36, 40), np.uint8), spaces.Box(0, 255, (40, 36, 2), np.uint8)


def params(model: DeepSPI) -> Any:
    return jax.device_get(model.policy.learner.parameters)


def same(first: Any, second: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


def collected(model: DeepSPI) -> tuple[Any, Any]:
    """A rollout from the model's environment, and the hyperparameters of its update."""
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    hyperparameters = Hyperparameters(
        step_sizes=StepSize(1e-3, 0.5), gamma=0.9, gae_lambda=0.8, clip_range=0.1, clip_range_vf=None,
        ent_coef=0.01, vf_coef=0.5,
        reward_loss_coef=0.0, transition_loss_coef=0.0, target_kl=None, gradient_penalty_coef=None, batch_size=16,
        n_epochs=3, normalize_advantage=True, microbatch_size=2**31, segment_length=1,
    )  # fmt: skip
    return model.rollout_buffer, hyperparameters


def updated(
    model: DeepSPI, rollout: Any, hyperparameters: Hyperparameters, seed: int = 0, reward_scale: float = 1.0
) -> tuple[Any, Any]:
    """One update of the model's parameters, which it does not take: the new learner, and the report."""
    policy = model.policy
    program = jax.jit(partial(type(model).update, policy.programs.networks, policy.programs.optimizer))
    last_observations = observations_of(model._last_obs, model.observation_space, model.n_envs)
    return program(policy.learner, rollout, last_observations, reward_scale, jax.random.PRNGKey(seed), hyperparameters)
