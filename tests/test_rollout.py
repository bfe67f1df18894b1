"""Advantages against SB3's own buffer, and s' and r as the environment gave them."""

from typing import Any

import jax
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env

from sbx_deepspi import DeepSPI
from sbx_deepspi.rollout import Rollout, automatic_n_steps, generalized_advantages, to_transitions

GAMMA, GAE_LAMBDA = 0.9, 0.8


def empty(n_steps: int, n_envs: int, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> Rollout:
    observation, action = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), np.int32)
    return Rollout.empty(n_steps, n_envs, observation, action, log_policy=(2,))


def random_rollout(n_steps: int, n_envs: int) -> tuple[Rollout, np.ndarray]:
    rng = np.random.default_rng(0)
    rollout = empty(n_steps, n_envs, (3,))
    rollout = jax.tree.map(
        lambda a: (rng.random(a.shape) < 0.3 if a.dtype == bool else rng.normal(size=a.shape) * 3).astype(a.dtype),
        rollout,
    )
    rollout = rollout.replace(terminated=rollout.terminated & ~rollout.truncated)
    values = np.where(rollout.truncated, rollout.truncated_values, 0).astype(np.float32)
    rollout = rollout.replace(truncated_values=values)
    return rollout, rng.normal(size=n_envs).astype(np.float32)


def test_advantages_equal_sb3s() -> None:
    rollout, last_values = random_rollout(n_steps=11, n_envs=5)
    assert rollout.terminated.any() and rollout.truncated_values.any()
    buffer = RolloutBuffer(
        11, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), gamma=GAMMA, gae_lambda=GAE_LAMBDA, n_envs=5
    )
    starts = np.concatenate([np.zeros((1, 5)), rollout.dones[:-1]])
    for t in range(11):
        bootstrapped = rollout.rewards[t] + GAMMA * rollout.truncated_values[t]
        buffer.add(
            rollout.observations[t], rollout.actions[t], bootstrapped, starts[t],
            th.as_tensor(rollout.values[t]), th.as_tensor(rollout.log_probs[t]),
        )  # fmt: skip
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), rollout.dones[-1])

    advantages = generalized_advantages(rollout, last_values, GAMMA, GAE_LAMBDA)
    np.testing.assert_allclose(advantages, buffer.advantages, rtol=1e-5, atol=1e-5)
    transitions = to_transitions(rollout, last_values, GAMMA, GAE_LAMBDA)
    np.testing.assert_allclose(transitions.returns, buffer.returns.T.reshape(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(transitions.rewards, rollout.rewards.T.reshape(-1))


def test_advantages_by_hand() -> None:
    """Two steps, then a terminal state: δ = (1 + 0.9·2 - 1, 3 - 2) and Â_0 = δ_0 + 0.72 δ_1."""
    rollout = empty(2, 1, ())
    rollout.rewards[:, 0] = 1, 3
    rollout.values[:, 0] = 1, 2
    rollout.terminated[1] = True
    advantages = generalized_advantages(rollout, np.array([100.0]), GAMMA, GAE_LAMBDA)
    np.testing.assert_allclose(advantages[:, 0], [1.8 + 0.72, 1.0], rtol=1e-6)


def test_dictionaries_of_observations_are_flattened_leaf_by_leaf() -> None:
    observation = {"image": jax.ShapeDtypeStruct((2, 3), np.uint8), "vector": jax.ShapeDtypeStruct((), np.float32)}
    rollout = Rollout.empty(4, 2, observation, jax.ShapeDtypeStruct((), np.int32), log_policy=(2,))
    assert rollout.observations["image"].shape == (4, 2, 2, 3) and rollout.observations["image"].dtype == np.uint8
    for observations in (rollout.observations, rollout.next_observations):
        observations["image"][:] = np.arange(8).reshape(4, 2, 1, 1)
        observations["vector"][:] = np.arange(8).reshape(4, 2)
    transitions = to_transitions(rollout, np.zeros(2, np.float32), GAMMA, GAE_LAMBDA)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # one environment's after the other's
    for observations in (transitions.observations, transitions.next_observations):
        assert observations["image"].dtype == np.uint8 and observations["image"].shape == (8, 2, 3)
        np.testing.assert_array_equal(observations["image"][:, 1, 2], order)
        np.testing.assert_array_equal(observations["vector"], order)


def test_an_episode_ends_for_either_reason() -> None:
    rollout = empty(3, 1)
    rollout.terminated[0], rollout.truncated[1] = True, True
    assert rollout.dones[:, 0].tolist() == [True, True, False]
    transitions = to_transitions(rollout, np.zeros(1, np.float32), GAMMA, GAE_LAMBDA)
    assert transitions.dones.tolist() == [True, True, False]
    assert transitions.terminated.tolist() == [True, False, False]


def test_n_steps_spreads_about_1024_transitions() -> None:
    for n_envs, n_steps in ((1, 1024), (8, 128), (128, 8), (6, 128), (3, 256), (4096, 1)):
        assert automatic_n_steps(n_envs, batch_size=256) == n_steps
    assert DeepSPI("MlpPolicy", make_vec_env("CartPole-v1", 8)).n_steps == 128
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32)
    assert model.n_steps == 64
