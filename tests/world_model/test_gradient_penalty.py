"""The penalty on slopes of the world model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi import agent
from sbx_deepspi.deepspi import loss
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import to_transitions
from tests.guarantee.models import trained
from tests.helpers import collected, params


def test_gradient_penalty_by_finite_differences() -> None:
    """In float64, whose steps are small enough to pass no kink of a ReLU."""
    kwargs = dict(lipschitz_constant=None, transition_density="normal", features_extractor_kwargs=dict(features_dim=3))
    model = trained(policy_kwargs=kwargs, gradient_penalty_coef=1.0)
    networks, learned = model.policy.programs.networks, params(model)
    with jax.enable_x64(True):
        # steep enough for the penalty to be there
        parameters = jax.tree.map(lambda leaf: jnp.asarray(3 * leaf, jnp.float64), learned)
        latents, actions = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0, 1, 2, 0, 1])
        key = jax.random.key(1)

        def penalties(parameters: Parameters) -> jax.Array:
            return agent.gradient_penalties(networks, parameters, latents, actions, key)

        ours = jax.jit(penalties)(parameters)
        sample_key, direction_key = jax.random.split(key)
        directions = jax.random.normal(direction_key, latents.shape)
        directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

        @jax.jit
        def both(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
            rewards, sample = agent.predict(networks, parameters, latents, actions, sample_key)
            return rewards, (sample * directions).sum(axis=1)

        expected = np.zeros(5)
        for i in range(2):
            steps = 1e-6 * np.eye(3)
            slopes = np.stack([(both(latents + step)[i] - both(latents - step)[i]) / 2e-6 for step in steps], axis=1)
            expected += np.maximum(np.linalg.norm(slopes, axis=1) - 1, 0) ** 2
        np.testing.assert_allclose(ours, expected, rtol=1e-5)
        assert ours.max() > 0.1
        gradients = jax.jit(jax.grad(lambda parameters: penalties(parameters).sum()))(parameters)
    assert np.abs(gradients["transition_model"]["outputs"]["kernel"]).max() > 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))


@pytest.mark.slow
def test_gradient_penalty_counts_in_the_loss_and_is_logged() -> None:
    model = trained(policy_kwargs=dict(lipschitz_constant=None), gradient_penalty_coef=1.0)
    assert "world_model/gradient_penalty" in model.logger.name_to_value
    rollout, h = collected(model)
    transitions = to_transitions(rollout, np.zeros(model.n_envs, np.float32), 0.9, 0.8)
    networks, key = model.policy.programs.networks, jax.random.PRNGKey(0)
    steep = jax.tree.map(lambda leaf: 3 * leaf, model.policy.learner.parameters)
    of_transitions = jax.jit(lambda steep, h: loss(networks, steep, transitions, key, h))
    (one, metrics), (three, _) = (of_transitions(steep, h.replace(gradient_penalty_coef=coef)) for coef in (1.0, 3.0))
    assert metrics.gradient_penalty > 0.1
    assert three - one == pytest.approx(2 * float(metrics.gradient_penalty), rel=1e-3)
