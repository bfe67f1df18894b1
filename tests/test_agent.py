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
    noise = agent.action_noise(networks, jax.random.PRNGKey(0), len(latents))
    decision = agent.act(networks, parameters, latents, noise)
    terms = agent.policy_terms(networks, parameters, latents, decision.actions)
    np.testing.assert_allclose(decision.log_probs, terms.log_probs, rtol=1e-5)
    np.testing.assert_allclose(decision.values, terms.values, rtol=1e-5)
    if isinstance(action_space, spaces.Discrete):
        np.testing.assert_allclose(np.exp(decision.log_policy).sum(axis=-1), 1, rtol=1e-5)
        chosen = np.take_along_axis(np.asarray(decision.log_policy), np.asarray(decision.actions)[:, None], axis=-1)
    else:
        chosen = decision.log_policy
    np.testing.assert_allclose(chosen[:, 0], decision.log_probs, rtol=1e-5)


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))], ids=str
)
def test_sampled_actions_have_the_policys_distribution(action_space: spaces.Space) -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, action_space), **TINY_RUN, policy_kwargs=dict(log_std_init=-0.5))
    networks, parameters = model.policy.programs.networks, params(model)
    last = f"Dense_{len(networks.actor.net_arch)}"
    parameters["actor"][last]["bias"] = jnp.linspace(-1, 1, networks.actor.n_outputs)  # far from uniform
    latents = jnp.tile(agent.encode(networks, parameters, VECTOR.sample()[None]), (40_000, 1))
    distribution, _ = agent.policy_and_values(networks, parameters, latents)
    actions = agent.sample(distribution, agent.action_noise(networks, jax.random.PRNGKey(0), len(latents)))
    others = np.asarray(actions).reshape(len(latents), -1)
    if isinstance(action_space, spaces.Box):
        np.testing.assert_allclose(others.mean(axis=0), distribution.mean()[0], atol=0.02)
        np.testing.assert_allclose(np.cov(others.T), distribution.covariance()[0], atol=0.02)
        return
    kinds, counts = np.unique(others, axis=0, return_counts=True)
    assert actions.dtype == jnp.int32
    for kind, count in zip(kinds, counts, strict=True):
        as_action = kind if isinstance(action_space, spaces.MultiDiscrete) else kind[0]
        log_prob = distribution.log_prob(jnp.broadcast_to(as_action, actions.shape))[0]
        assert count / len(latents) == pytest.approx(float(jnp.exp(log_prob)), abs=0.01)
    assert counts.max() > 1.2 * counts.min()


def test_only_lipschitz_parts_are_normalised() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    networks, parameters = model.policy.programs.networks, params(model)
    normalized = agent.normalized(networks, parameters)
    changed = {part for part in parameters if not same(parameters[part], normalized[part])}
    assert changed == set(networks.lipschitz(parameters)) == {"transition_model", "reward_model"}
