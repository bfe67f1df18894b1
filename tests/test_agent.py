"""What the networks are asked, as functions of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from sbx_deepspi import DeepSPI, agent
from sbx_deepspi.rollout import to_transitions
from tests.helpers import TINY_RUN, VECTOR, ToyEnv, collected, params, same


def test_gradient_flows_through_both_latents() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    rollout, _ = collected(model)
    transitions = to_transitions(rollout, np.zeros(1, np.float32), 0.9, 0.8)
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters

    def transition_loss(observations: jax.Array, next_observations: jax.Array) -> jax.Array:
        latents, next_latents = (agent.encode(networks, parameters, o) for o in (observations, next_observations))
        key = jax.random.PRNGKey(0)
        seen = transitions.actions, transitions.rewards, transitions.terminated
        return agent.model_losses(networks, parameters, latents, *seen, next_latents, key).transition.sum()

    for gradient in jax.jit(jax.grad(transition_loss, (0, 1)))(transitions.observations, transitions.next_observations):
        assert jnp.abs(gradient).min(axis=-1).max() > 0


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=str)
def test_decisions_know_their_probabilities_and_values(action_space: spaces.Space) -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, action_space), **TINY_RUN)
    networks, parameters = model.policy.programs.networks, params(model)
    latents = agent.encode(networks, parameters, np.stack([VECTOR.sample() for _ in range(4)]))
    decision = agent.act(networks, parameters, latents, jax.random.PRNGKey(0))
    terms = agent.policy_terms(networks, parameters, latents, decision.actions)
    np.testing.assert_allclose(decision.log_probs, terms.log_probs, rtol=1e-5)
    np.testing.assert_allclose(decision.values, terms.values, rtol=1e-5)
    if isinstance(action_space, spaces.Discrete):
        np.testing.assert_allclose(np.exp(decision.log_policy).sum(axis=-1), 1, rtol=1e-5)
        chosen = np.take_along_axis(np.asarray(decision.log_policy), np.asarray(decision.actions)[:, None], axis=-1)
    else:
        chosen = decision.log_policy
    np.testing.assert_allclose(chosen[:, 0], decision.log_probs, rtol=1e-5)


def test_only_lipschitz_parts_are_normalised() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    networks, parameters = model.policy.programs.networks, params(model)
    normalized = agent.normalized(networks, parameters)
    changed = {part for part in parameters if not same(parameters[part], normalized[part])}
    assert changed == set(networks.lipschitz(parameters)) == {"transition_model", "reward_model"}
