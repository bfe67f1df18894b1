"""Segments and parts of minibatches change no number but by rounding."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI, agent, ops
from sbx_deepspi.deepspi import gradient, loss
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.rollout import Rollout, to_transitions
from sbx_deepspi.segments import encode_pairs, microbatches, segment_length, share_observations, spread_ends
from tests.helpers import IMAGE, ToyEnv, collected

GAMMA, GAE_LAMBDA = 0.9, 0.8


def empty(n_steps: int, n_envs: int, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> Rollout:
    observation, action = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), np.int32)
    return Rollout.empty(n_steps, n_envs, observation, action, log_policy=(2,))


def test_observations_are_shared_within_segments_unless_the_episode_ended() -> None:
    """Two segments of four steps; the second episode of the first one ends at its third step."""
    rollout = empty(4, 2, (), np.int32)
    rollout.observations[:] = np.transpose([[10, 11, 12, 0], [20, 21, 22, 23]])
    rollout.next_observations[:] = np.transpose([[11, 12, 13, 1], [21, 22, 23, 24]])
    rollout.terminated[2, 0] = True
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
        rollout = empty(3 * length, 5, (2,), np.float32)
        ends = rng.random((2, *rollout.dones.shape)) < p_done / 2 + p_done**2 / 2
        rollout.terminated[:], rollout.truncated[:] = ends
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
    rollout = empty(4, 6, ())
    rollout.rewards[:] = np.arange(24).reshape(6, 4).T
    transitions = to_transitions(rollout, np.zeros(6, np.float32), GAMMA, GAE_LAMBDA)
    parts = microbatches(transitions.replace(segment_length=4), microbatch_size=10)
    np.testing.assert_array_equal(parts.rewards, np.arange(24).reshape(3, 8))
    np.testing.assert_array_equal(microbatches(transitions, 10).rewards, np.arange(24).reshape(3, 8))
    # images so large that a part should hold less than a segment
    parts = microbatches(transitions.replace(segment_length=4), microbatch_size=3)
    np.testing.assert_array_equal(parts.rewards, np.arange(24).reshape(6, 4))


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


def test_pairs_of_dictionaries_are_encoded_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    observation = {"image": jax.ShapeDtypeStruct((2, 3), np.uint8), "vector": jax.ShapeDtypeStruct((4,), np.float32)}
    rollout = Rollout.empty(6, 3, observation, jax.ShapeDtypeStruct((), np.int32), log_policy=(2,))
    rollout.terminated[2, 0], rollout.truncated[4, 1] = True, True
    for name in observation:
        every = rng.integers(256, size=(7, *rollout.observations[name].shape[1:]))
        rollout.observations[name][:], rollout.next_observations[name][:] = every[:-1], every[1:]
        rollout.next_observations[name][rollout.dones] += 1  # the episode's end is not the next one's beginning
    plain = to_transitions(rollout, np.zeros(3, np.float32), GAMMA, GAE_LAMBDA)
    segments = plain.replace(segment_length=6)
    assert share_observations(segments).fits
    sizes = []

    def encode(observations: Any) -> jax.Array:
        sizes.append(len(observations["vector"]))
        images = observations["image"].reshape(-1, 6).astype(np.float32)
        return jnp.concatenate([images, 2 * observations["vector"]], axis=1)

    for ours, theirs in zip(encode_pairs(encode, segments), encode_pairs(encode, plain), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert sizes == [23, 18, 18]


def learned(model: DeepSPI) -> tuple[Any, Any, Any]:
    """Networks, parameters, and the Lipschitz kernels' norms."""
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    lipschitz, latent_map = networks.lipschitz(parameters), networks.latent_map
    return networks, parameters, normalizer.refresh(normalizer.init(lipschitz, latent_map), lipschitz, latent_map)


@pytest.mark.slow
def test_gradients_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Sums over parts of a minibatch, pulled back through the kernels' normalisation, against plain autodiff; encoder and
    transition model in yet smaller parts.
    """
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, spaces.Discrete(3))] * 2)
    kwargs = dict(transition_density="deterministic", features_extractor_kwargs=dict(features_dim=8))
    model = DeepSPI("CnnPolicy", env, n_steps=6, batch_size=12, seed=1, policy_kwargs=kwargs)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=1.0, transition_loss_coef=1.0)
    networks, parameters, norms = learned(model)
    key = jax.random.PRNGKey(0)
    transitions = to_transitions(rollout, np.zeros(2, np.float32), 0.9, 0.8)
    advantages = transitions.advantages
    normalized = transitions.replace(advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8))

    def whole(parameters: Any) -> jax.Array:
        return loss(networks, agent.normalized(networks, parameters), normalized, key, h)[0]

    expected_loss, expected = jax.jit(jax.value_and_grad(whole))(parameters)
    monkeypatch.setattr(ops.parts, "CPU_PIECE", 5)
    for size in (5, 99):  # parts of 4, since 5 does not divide 12, and one part, of which three are made
        in_parts = jax.jit(partial(gradient, loss, networks))  # another model may have other pieces
        gradients, metrics = in_parts(parameters, norms, transitions, key, h.replace(microbatch_size=size))
        assert metrics.loss == pytest.approx(float(expected_loss), rel=1e-4)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-9)


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(18),
        pytest.param(spaces.Discrete(1), marks=pytest.mark.slow),
        pytest.param(spaces.Box(-1, 1, (2,)), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sharing_observations_changes_nothing(action_space: spaces.Space) -> None:
    """Loss and every gradient against the plain form; also where episodes end too often for it."""
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, action_space, length=5)] * 3)
    kwargs = dict(transition_density="deterministic", features_extractor_kwargs=dict(features_dim=8))
    model = DeepSPI("CnnPolicy", env, n_steps=8, batch_size=24, seed=1, policy_kwargs=kwargs)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=1.0, transition_loss_coef=1.0, microbatch_size=16)
    networks, parameters, norms = learned(model)
    key, of_minibatch = jax.random.PRNGKey(0), jax.jit(partial(gradient, loss, networks))
    for dones, fits in ((rollout.dones, True), (np.ones_like(rollout.dones), False)):
        plain = to_transitions(rollout.replace(truncated=dones), np.zeros(3, np.float32), 0.9, 0.8)
        segments = plain.replace(segment_length=4)
        assert segments.dones.any()
        parts_fit = jax.vmap(share_observations)(microbatches(segments, h.microbatch_size)).fits
        assert (parts_fit == fits).all() and len(parts_fit) == 2
        expected, expected_metrics = of_minibatch(parameters, norms, plain, key, h)
        gradients, metrics = of_minibatch(parameters, norms, segments, key, h)
        assert metrics.loss == pytest.approx(float(expected_metrics.loss), rel=1e-4)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-9)
