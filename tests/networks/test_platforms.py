"""The networks in the forms that suit CPUs and in those of accelerators."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI, agent
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import to_transitions
from sbx_deepspi.segments import encode_pairs
from sbx_deepspi.world_model import densities
from tests.helpers import IMAGE, ToyEnv, collected
from tests.numerics import KEY, assert_same_function, normal


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(18), pytest.param(spaces.Box(-1, 1, (2,)), marks=pytest.mark.slow)], ids=str
)
def test_networks_are_the_same_function_on_cpus_and_elsewhere(
    action_space: spaces.Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the loss is made of, in the forms that :mod:`sbx_deepspi.ops` chooses here and elsewhere."""
    monkeypatch.setattr(densities, "clipped_normal", lambda key, shape: normal(9, *shape))  # the noise differs
    kwargs = dict(lipschitz_constant=None, features_extractor_kwargs=dict(features_dim=8))
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, action_space)] * 3)
    model = DeepSPI("CnnPolicy", env, n_steps=6, batch_size=18, policy_kwargs=kwargs)
    transitions = to_transitions(collected(model)[0], np.zeros(3, np.float32), 0.9, 0.8)
    networks = model.policy.programs.networks
    parameters = jax.tree.map(lambda leaf: 2 * leaf, model.policy.learner.parameters)

    def here(parameters: Parameters) -> jax.Array:
        latents, next_latents = encode_pairs(partial(agent.encode, networks, parameters), transitions)
        policy = agent.policy_terms(networks, parameters, latents, transitions.actions)
        seen = transitions.actions, transitions.rewards, transitions.terminated
        model_losses = agent.model_losses(networks, parameters, latents, *seen, next_latents, KEY)
        terms = [getattr(of, field.name) for of in (policy, model_losses) for field in dataclasses.fields(of)]
        return jnp.stack([*terms, agent.gradient_penalties(networks, parameters, latents, transitions.actions, KEY)])

    def elsewhere(parameters: Parameters) -> jax.Array:
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", lambda *operands, default, cpu: default(*operands))
            return here(parameters)

    assert_same_function(here, elsewhere, parameters)
    terms = jax.jit(here)(parameters)
    assert terms.shape == (7, 18)
    assert terms[-1].max() > 0
