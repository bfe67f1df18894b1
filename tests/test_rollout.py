"""Advantages against SB3's own buffer, and s' and r as the environment gave them."""

import jax
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sbx_deepspi.networks.backend import segment_length
from sbx_deepspi.rollout import (
    Rollout,
    generalized_advantages,
    microbatches,
    share_observations,
    spread_ends,
    to_transitions,
)

GAMMA, GAE_LAMBDA = 0.9, 0.8


def random_rollout(n_steps: int, n_envs: int) -> tuple[Rollout, np.ndarray]:
    rng = np.random.default_rng(0)
    rollout = Rollout.empty(n_steps, n_envs, observation=((3,), np.float32), action=((), np.int32), log_policy=(2,))
    rollout = jax.tree.map(
        lambda a: (rng.random(a.shape) < 0.3 if a.dtype == bool else rng.normal(size=a.shape) * 3).astype(a.dtype),
        rollout,
    )
    truncated = rollout.dones & (rng.random(rollout.dones.shape) < 0.5)
    rollout = rollout.replace(truncated_values=np.where(truncated, rollout.truncated_values, 0).astype(np.float32))
    return rollout, rng.normal(size=n_envs).astype(np.float32)


def test_advantages_equal_sb3s() -> None:
    rollout, last_values = random_rollout(n_steps=11, n_envs=5)
    assert rollout.dones.any() and rollout.truncated_values.any()
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
    rollout = Rollout.empty(2, 1, observation=((), np.float32), action=((), np.int32), log_policy=(2,))
    rollout.rewards[:, 0] = 1, 3
    rollout.values[:, 0] = 1, 2
    rollout.dones[1] = True
    advantages = generalized_advantages(rollout, np.array([100.0]), GAMMA, GAE_LAMBDA)
    np.testing.assert_allclose(advantages[:, 0], [1.8 + 0.72, 1.0], rtol=1e-6)


def test_observations_are_shared_within_segments_unless_the_episode_ended() -> None:
    """Two segments of four steps; the second episode of the first one ends at its third step."""
    rollout = Rollout.empty(4, 2, observation=((), np.int32), action=((), np.int32), log_policy=(2,))
    rollout.observations[:] = np.transpose([[10, 11, 12, 0], [20, 21, 22, 23]])
    rollout.next_observations[:] = np.transpose([[11, 12, 13, 1], [21, 22, 23, 24]])
    rollout.dones[2, 0] = True
    transitions = to_transitions(rollout, np.zeros(2, np.float32), GAMMA, GAE_LAMBDA).replace(segment_length=4)
    shared = share_observations(transitions)
    # 13 ends an episode; 1 and 24 end the segments; that is all there is room for
    np.testing.assert_array_equal(shared.observations, [10, 11, 12, 0, 20, 21, 22, 23, 13, 1, 24])
    np.testing.assert_array_equal(shared.observations[shared.following], transitions.next_observations)
    assert shared.fits


@pytest.mark.parametrize("p_done", [0.0, 0.1, 0.3, 1.0])
def test_shared_observations_give_back_every_next_one(p_done: float) -> None:
    rng = np.random.default_rng(0)
    for length in (2, 3, 8):
        rollout = Rollout.empty(3 * length, 5, observation=((2,), np.float32), action=((), np.int32), log_policy=(2,))
        rollout.dones[:] = rng.random(rollout.dones.shape) < p_done
        rollout.observations[:] = rng.random(rollout.observations.shape)
        rollout.next_observations[:] = rng.random(rollout.observations.shape)
        goes_on = ~rollout.dones[:-1]
        rollout.next_observations[:-1][goes_on] = rollout.observations[1:][goes_on]
        transitions = to_transitions(rollout, np.zeros(5, np.float32), GAMMA, GAE_LAMBDA).replace(segment_length=length)
        shared = share_observations(transitions)
        n_inner_ends = rollout.dones.reshape(3, length, 5)[:, :-1].sum()
        assert shared.fits == (n_inner_ends <= 8)  # 15 segments
        if shared.fits:
            np.testing.assert_array_equal(shared.observations[shared.following], transitions.next_observations)


def test_microbatches_keep_segments_whole() -> None:
    rollout = Rollout.empty(4, 6, observation=((), np.float32), action=((), np.int32), log_policy=(2,))
    rollout.rewards[:] = np.arange(24).reshape(6, 4).T
    transitions = to_transitions(rollout, np.zeros(6, np.float32), GAMMA, GAE_LAMBDA)
    parts = microbatches(transitions.replace(segment_length=4), microbatch_size=10)
    np.testing.assert_array_equal(parts.rewards, np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(microbatches(transitions, 10).rewards, np.arange(24).reshape(3, 8))


@pytest.mark.parametrize("n_parts", [1, 3, 4])
@pytest.mark.parametrize("p_done", [0.0, 0.05, 0.5])
def test_ends_of_episodes_are_spread_over_the_parts(p_done: float, n_parts: int) -> None:
    rng = np.random.default_rng(0)
    dones = rng.random(100 * 5) < p_done
    segments = rng.choice(100, 24, replace=False)
    indices = (5 * segments[:, None] + np.arange(5)).reshape(-1)
    dealt = np.asarray(spread_ends(indices, dones, 5, len(indices) // n_parts)).reshape(n_parts, -1, 5)
    np.testing.assert_array_equal(dealt % 5, np.broadcast_to(np.arange(5), dealt.shape))  # segments stay whole
    np.testing.assert_array_equal(np.sort(dealt.reshape(-1)), np.sort(indices))
    n_ends = dones[dealt[..., :-1]].sum(axis=(1, 2))
    assert n_ends.max() - n_ends.min() <= dones[indices.reshape(-1, 5)[:, :-1]].sum(axis=1).max()


def test_segments_divide_rollouts_and_minibatches() -> None:
    for n_steps, batch_size, length in ((8, 256, 8), (128, 256, 8), (6, 256, 1), (5, 256, 1), (1, 256, 1), (12, 24, 6)):
        assert segment_length(True, n_steps, batch_size) == length
        assert segment_length(False, n_steps, batch_size) == 1
