"""The size of rewards, and what is measured in its units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gymnasium import spaces

from sbx_deepspi import DeepSPI, agent
from sbx_deepspi.guarantee.measure import measure
from sbx_deepspi.state import EpisodeStatistics, RewardStatistics
from tests.helpers import TINY_RUN, VECTOR, ToyEnv, collected, updated


@pytest.mark.parametrize("window", [1, 3, 50])
def test_lengths_of_the_last_episodes(window: int) -> None:
    """On the host and inside jit, by a list of all lengths."""
    ended = np.random.default_rng(0).random((40, 5)) < 0.2
    lengths, running = np.zeros(ended.shape, np.int32), np.zeros(5, np.int32)
    everything = []
    for step, done in enumerate(ended):
        lengths[step] = running = running + 1
        everything += [int(n) for n in running[done]]
        running = np.where(done, 0, running)
    host = EpisodeStatistics.empty(5, window)
    inside = EpisodeStatistics.empty(5, window)
    assert float(host.mean_length) == np.inf
    for step in range(len(ended)):
        host = host.including(lengths[step][None], ended[step][None])
    for part in (slice(0, 15), slice(15, 40)):
        inside = jax.jit(EpisodeStatistics.including)(inside, jnp.asarray(lengths[part]), jnp.asarray(ended[part]))
    assert float(host.mean_length) == pytest.approx(np.mean(everything[-window:]))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, host, inside)))
    assert all(jax.tree.leaves(jax.tree.map(lambda one, two: one.dtype == two.dtype, host, inside)))
    assert int(host.n_ended) == len(everything) and host.steps.tolist() == lengths[-1].tolist()


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 300.0, 1e30])
def test_root_mean_square_of_all_rewards_by_numpy(size: float) -> None:
    rollouts = [size * np.random.default_rng(i).normal(size=(4, n)).astype(np.float32) for i, n in enumerate((1, 5, 2))]
    statistics = RewardStatistics.empty()
    for rewards in rollouts:
        statistics = jax.jit(RewardStatistics.including)(statistics, rewards)
    everything = np.concatenate([rewards.ravel() for rewards in rollouts]).astype(np.float64)
    expected = np.sqrt((everything**2).mean())
    assert float(statistics.root_mean_square) == pytest.approx(expected, rel=1e-5)
    assert float(statistics.scale) == pytest.approx(max(1.0, expected), rel=1e-5)
    assert int(statistics.count) == everything.size


@pytest.mark.slow
def test_the_world_model_learns_rewards_in_their_unit() -> None:
    """ℓ_R of the first minibatch, by hand; advantages and returns stay in the rewards' own units."""
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    rollout, h = collected(model)
    rollout.rewards[:] = np.linspace(-9, 300, 8)[:, None]
    h = h.replace(n_epochs=1, batch_size=8, reward_loss_coef=0.5)
    networks, parameters = (
        model.policy.programs.networks,
        agent.normalized(model.policy.programs.networks, model.policy.learner.parameters),
    )
    latents = agent.encode(networks, parameters, rollout.observations[:, 0])
    predicted, _ = agent.predict(networks, parameters, latents, rollout.actions[:, 0], jax.random.PRNGKey(0))
    reports = {scale: updated(model, rollout, h, reward_scale=scale)[1].epochs.metrics for scale in (1.0, 50.0)}
    for scale, metrics in reports.items():
        expected = optax.losses.huber_loss(predicted, rollout.rewards[:, 0] / scale).mean()
        assert float(metrics.reward_loss) == pytest.approx(float(expected), rel=1e-4)
    assert float(reports[1.0].value_loss) == pytest.approx(float(reports[50.0].value_loss), rel=1e-5)


@pytest.mark.slow
def test_the_certificate_is_in_the_rewards_own_units() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    rollout, _ = collected(model)
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    key = jax.random.PRNGKey(0)
    one, fifty = (
        jax.jit(lambda rollout, scale=scale: measure(networks, parameters, scale, rollout, 5.0, key, 0.9))(rollout)
        for scale in (1.0, 50.0)
    )
    normalized = agent.normalized(networks, parameters)
    latents = agent.encode(networks, normalized, rollout.observations[:, 0])
    predicted, _ = agent.predict(networks, normalized, latents, rollout.actions[:, 0], key)
    for scale, measured in ((1.0, one), (50.0, fifty)):
        expected = jnp.abs(scale * predicted - rollout.rewards[:, 0]).mean()
        assert float(measured.model.reward_error) == pytest.approx(float(expected), rel=1e-4)
    assert float(fifty.model.reward_lipschitz) == pytest.approx(50 * float(one.model.reward_lipschitz))


def test_rewards_count_on_and_are_logged() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN).learn(16)
    assert int(model.rewards.count) == 16 and float(model.rewards.root_mean_square) == pytest.approx(1.0)
    assert model.logger.name_to_value["world_model/reward_scale"] == 1.0
    assert 0 <= model.logger.name_to_value["world_model/penalty"] < 1
