"""Imagined rollouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from sbx_deepspi import DeepSPI, agent
from sbx_deepspi.imagination import before_the_end, discounted_returns, imagine
from tests.helpers import IMAGE, TINY_RUN, VECTOR, ToyEnv

HORIZON, N = 3, 4


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=str)
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_imagined_steps_are_those_of_the_latent_model(policy: str, action_space: spaces.Space) -> None:
    """With a deterministic model: the same as step by step, with the actions that were drawn."""
    kwargs = dict(transition_density="deterministic", features_extractor_kwargs=dict(features_dim=8))
    env = ToyEnv(VECTOR if policy == "MlpPolicy" else IMAGE, action_space)
    model = DeepSPI(policy, env, **TINY_RUN, policy_kwargs=kwargs)
    networks = model.policy.programs.networks
    parameters = jax.jit(partial(agent.normalized, networks))(model.policy.learner.parameters)
    latents = jax.random.normal(jax.random.key(0), (N, *networks.latent_shape))
    rollout = jax.jit(partial(imagine, networks), static_argnames="horizon")(
        parameters, latents, horizon=HORIZON, key=jax.random.key(1)
    )

    assert {leaf.shape[:2] for leaf in jax.tree.leaves(rollout)} == {(HORIZON, N)}
    assert rollout.observations.shape == (HORIZON, N, *networks.latent_shape)
    np.testing.assert_array_equal(rollout.observations[0], latents)
    np.testing.assert_array_equal(rollout.next_observations[:-1], rollout.observations[1:])
    assert not rollout.dones.any()
    assert not jnp.array_equal(rollout.actions[0], rollout.actions[1])

    predict = jax.jit(partial(agent.predict, networks))
    terms = jax.jit(partial(agent.policy_terms, networks))
    for t in range(HORIZON):
        actions = rollout.actions[t]
        of_policy = terms(parameters, latents, actions)
        np.testing.assert_allclose(rollout.values[t], of_policy.values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.log_probs[t], of_policy.log_probs, rtol=1e-4, atol=1e-5)
        rewards, latents = predict(parameters, latents, actions, jax.random.key(2))
        np.testing.assert_allclose(rollout.rewards[t], rewards, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.next_observations[t], latents, rtol=1e-4, atol=1e-5)


def test_each_step_has_its_own_noise() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(1)), **TINY_RUN)
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    parameters = parameters | {
        "transition_model": jax.tree.map(jnp.zeros_like, parameters["transition_model"])
    }  # blind to z
    latents = jnp.zeros((2, *networks.latent_shape))
    moved = jax.jit(lambda key: imagine(networks, parameters, latents, 2, key))(jax.random.key(0)).next_observations
    assert len(np.unique(moved.reshape(4, -1)[:, 0])) == 4


def test_returns_of_imagined_episodes_by_hand() -> None:
    """One that ends at the second step, one at the last, one that goes on to the critic's 7."""
    env = ToyEnv(VECTOR, spaces.Discrete(1))
    policy = DeepSPI("MlpPolicy", env, **TINY_RUN).policy
    networks, parameters = policy.programs.networks, policy.learner.parameters
    imagined = imagine(networks, parameters, jnp.zeros((3, *networks.latent_shape)), 3, jax.random.key(0))
    ends = jnp.array([[False, False, False], [True, False, False], [True, True, False]])
    imagined = imagined.replace(rewards=jnp.array([[1.0] * 3, [2.0] * 3, [4.0] * 3]), terminated=ends)
    np.testing.assert_array_equal(before_the_end(ends), [[True] * 3, [True] * 3, [False, True, True]])
    returns = discounted_returns(imagined, jnp.full(3, 7.0), 0.5)
    np.testing.assert_allclose(returns, [1 + 1, 1 + 1 + 1, 1 + 1 + 1 + 7 / 8])
