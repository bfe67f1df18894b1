"""Many copies of one environment: each is what it would be alone, and begins anew where an episode ends."""

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sbx_deepspi import JaxVecEnv, make_jax_env
from sbx_deepspi.collect.copies import Copies
from sbx_deepspi.collect.normalization import Moments
from tests.jax_envs import Line, line_env, needs_gymnax

SLOW = pytest.mark.slow

N_ENVS, N_STEPS = 5, 60


def steps(env: JaxVecEnv, n_steps: int = N_STEPS) -> list[tuple[Any, Any, Any]]:
    """State before a step, actions, and what it gave."""
    step, rng, rows = jax.jit(env.copies.step), np.random.default_rng(0), []
    env.reset()
    state = env.state
    for _ in range(n_steps):
        actions = jnp.asarray(rng.integers(0, env.action_space.n, env.num_envs))
        new, outcome = step(state, actions)
        rows.append((state, actions, outcome))
        state = new
    return rows


def test_each_copy_is_the_environment_alone() -> None:
    """By a loop over single environments in Python, with the same keys."""
    env, line = line_env(N_ENVS), Line()
    rows = steps(env)
    returns, lengths = np.zeros(N_ENVS), np.zeros(N_ENVS, int)
    n_terminated = n_truncated = 0
    for (state, actions, outcome), (after, _, _) in zip(rows, [*rows[1:], (None, None, None)], strict=True):
        _, step_key, _ = jax.random.split(state.key, 3)
        for i, key in enumerate(jax.random.split(step_key, N_ENVS)):
            inner = jax.tree.map(lambda leaf: leaf[i], state.states)  # noqa: B023
            observation, _, reward, terminated, truncated = line.step(key, inner, actions[i])
            returns[i], lengths[i] = returns[i] + reward, lengths[i] + 1
            late = bool(truncated) or lengths[i] >= 10
            np.testing.assert_array_equal(outcome.next_observations[i], observation)
            assert outcome.rewards[i] == reward
            assert (outcome.returns[i], outcome.lengths[i]) == (pytest.approx(returns[i], abs=1e-5), lengths[i])
            assert (outcome.terminated[i], outcome.truncated[i]) == (terminated, late and not terminated)
            if terminated or late:
                n_terminated, n_truncated = n_terminated + bool(terminated), n_truncated + (not terminated)
                returns[i], lengths[i] = 0, 0
            if after is not None:
                begins = bool(terminated) or late
                expected = line.observe(after.states["position"][i]) if begins else observation
                np.testing.assert_array_equal(after.observations[i], expected)
                assert after.lengths[i] == lengths[i]
                assert not begins or abs(int(after.states["position"][i])) <= 1
    assert n_terminated >= 5 and n_truncated >= 5


def test_a_pool_of_initial_states() -> None:
    env = JaxVecEnv(Line(size=3), N_ENVS, 0, n_initial_states=2, max_episode_steps=4)
    rows = steps(env)
    pool = {float(observation[0]) for observation in rows[0][0].first[0]}
    begun = [(state.observations[:, 0], state.lengths) for state, _, _ in rows]
    starts = {float(position) for positions, lengths in begun for position in positions[lengths == 0]}
    assert starts == pool and sum(int((lengths == 0).sum()) for _, lengths in begun) > 3 * N_ENVS
    pools = set()
    for _ in range(8):
        env.reset()
        pools.add(np.asarray(env.state.first[0]).tobytes())
    assert len(pools) > 1  # drawn anew


@needs_gymnax
@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", pytest.param("MountainCar-v0", marks=SLOW), pytest.param("Catch-bsuite", marks=SLOW)]
)
def test_a_step_is_gymnaxs_own(env_id: str) -> None:
    """Their dynamics draw nothing: gymnax's wrapper gives the same, whatever its keys."""
    limit = {"max_steps_in_episode": 12}
    env = make_jax_env(f"gymnax/{env_id}", N_ENVS, seed=1, **limit)
    gymnax_step = jax.jit(jax.vmap(env.env.env.step, in_axes=(0, 0, 0, None)))
    keys = jax.random.split(jax.random.PRNGKey(7), N_ENVS)
    n_ended = 0
    for state, actions, outcome in steps(env, 40):
        _, _, reward, terminated, truncated, info = gymnax_step(keys, state.states, actions, env.env.parameters)
        np.testing.assert_allclose(outcome.next_observations, info["final_observation"], rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(outcome.rewards, reward)
        np.testing.assert_array_equal(outcome.terminated, terminated)
        np.testing.assert_array_equal(outcome.truncated, truncated & ~terminated)
        n_ended += int(outcome.dones.sum())
    assert n_ended > N_ENVS


@needs_gymnax
def test_cartpole_is_gymnasiums() -> None:
    """The same first states and actions: the same observations, rewards and ends, to float32's rounding."""
    env = make_jax_env("gymnax/CartPole-v1", N_ENVS, seed=2)
    others = [gym.make("CartPole-v1").unwrapped for _ in range(N_ENVS)]
    rows = steps(env)
    for other, first in zip(others, np.asarray(rows[0][0].observations, np.float64), strict=True):
        other.reset()
        other.state = first
    going = np.ones(N_ENVS, bool)
    for _, actions, outcome in rows:
        for i in np.flatnonzero(going):
            observation, reward, terminated, _, _ = others[i].step(int(actions[i]))
            np.testing.assert_allclose(outcome.next_observations[i], observation, rtol=1e-4, atol=1e-5)
            assert (outcome.rewards[i], outcome.terminated[i]) == (reward, terminated)
            going[i] = not terminated
    assert not going.any()


# --- normalisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_obs": False, "gamma": 0.9},
        pytest.param({"norm_reward": False}, marks=SLOW),
        pytest.param({"clip_obs": 0.5}, marks=SLOW),
    ],
)
def test_normalised_as_by_vec_normalize(settings: dict[str, Any]) -> None:
    inside, outside = line_env(normalize=settings or True), VecNormalize(line_env(), **settings)
    rng = np.random.default_rng(0)
    for first, second in zip(inside.reset(), outside.reset(), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
    for _ in range(50):
        actions = rng.integers(0, 2, 4)
        ours, theirs = inside.step(actions), outside.step(actions)
        for first, second in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)
        for mine, other in zip(ours[3], theirs[3], strict=True):
            assert mine.keys() == other.keys()
            if "terminal_observation" in mine:
                np.testing.assert_allclose(mine["terminal_observation"], other["terminal_observation"], atol=1e-3)
                assert mine["episode"]["r"] == other["episode"]["r"]
    assert inside.observation_space == outside.observation_space
    copied = inside.vec_normalize()
    for name in ("obs_rms", "ret_rms"):
        if hasattr(outside, name) and (name == "obs_rms") <= settings.get("norm_obs", True):
            if name == "ret_rms" and not settings.get("norm_reward", True):
                continue
            np.testing.assert_allclose(getattr(copied, name).mean, getattr(outside, name).mean, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(getattr(copied, name).var, getattr(outside, name).var, rtol=1e-3, atol=1e-4)


def test_moments_by_numpy() -> None:
    batches = [np.random.default_rng(i).normal(3, 2, (n, 2)).astype(np.float32) for i, n in enumerate((1, 7, 64))]
    moments = Moments.empty((2,))
    for batch in batches:
        moments = moments.including(jnp.asarray(batch))
    everything = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-3)
    assert float(moments.count) == pytest.approx(len(everything), abs=1e-3)


def test_an_evaluation_uses_the_statistics_of_training() -> None:
    training = line_env(normalize=True)
    training.reset()
    for _ in range(20):
        training.step(np.ones(4, int))
    evaluation = line_env(2, normalize=training)
    plain = line_env(2)
    mean, variance = training.state.statistics.observations.mean, training.state.statistics.observations.variance
    for seen, raw in ((evaluation.reset(), plain.reset()), (evaluation.step([1, 0]), plain.step([1, 0]))):
        observations, original = (seen[0], raw[0]) if isinstance(seen, tuple) else (seen, raw)
        expected = np.clip((original - mean) / np.sqrt(variance + 1e-8), -10, 10)
        np.testing.assert_allclose(observations, expected, rtol=1e-4)
    assert seen[1].tolist() == raw[1].tolist()  # rewards as they are
    np.testing.assert_array_equal(training.state.statistics.observations.mean, mean)


@needs_gymnax
def test_copies_of_equal_environments_are_equal() -> None:
    assert line_env().copies == line_env(seed=3).copies != line_env(8).copies
    first, second, third = (make_jax_env("gymnax/CartPole-v1", gravity=g).copies for g in (9.8, 9.8, 1.6))
    assert isinstance(first, Copies) and first == second != third and hash(first) == hash(second)
