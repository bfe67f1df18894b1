"""Transition and reward model: as Lipschitz as promised, and not blind to actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.world_model.densities import Outputs, make_density
from sbx_deepspi.world_model.reward import RewardModel
from sbx_deepspi.world_model.transition import TransitionModel
from tests.numerics import KEY, normal


@pytest.mark.parametrize("latent_shape", [(3, 3, 16), (10,)])
@pytest.mark.parametrize("density", ["mixture", "normal", "deterministic"])
@pytest.mark.parametrize("n_actions", [3, None])
def test_rewards_locations_and_scales_are_lipschitz_in_the_latent(
    latent_shape: tuple[int, ...], density: str, n_actions: int | None
) -> None:
    constant = 2.0
    latents = normal(1, 6, *latent_shape)
    actions = jnp.arange(6) % 3 if n_actions else normal(2, 6, 4)
    family = make_density(density, lipschitz_constant=constant, n_components=4)
    transition, reward = TransitionModel(n_actions, family), RewardModel(n_actions, 8, constant)
    parameters = {
        name: jax.jit(model.init)(KEY, latents, actions)["params"]
        for name, model in (("transition", transition), ("reward", reward))
    }
    # weights far from their initialisation, as training would leave them
    parameters = jax.tree.map(lambda p: 3 * p + 0.1, parameters)
    parameters = jax.jit(lambda parameters: normalizer.normalize(parameters, latent_shape[:-1]))(parameters)
    direction = normal(3, 6, *latent_shape)

    @jax.jit
    def predict(latents: jax.Array) -> tuple[jax.Array, Outputs]:
        return (
            reward.apply({"params": parameters["reward"]}, latents, actions),
            transition.apply({"params": parameters["transition"]}, latents, actions),
        )

    def moments(outputs: Outputs) -> list[jax.Array]:
        return [family.sample(outputs, KEY)] if density == "deterministic" else family.locations_and_scales(outputs)

    rewards, outputs = predict(latents)
    for scale in (1e-2, 1.0, 10.0):
        moved = latents + scale * direction
        distance = np.linalg.norm((moved - latents).reshape(6, -1), axis=1)
        moved_rewards, moved_outputs = predict(moved)
        assert (np.abs(moved_rewards - rewards) <= constant * distance * (1 + 1e-3)).all()
        pairs = list(zip(moments(outputs), moments(moved_outputs), strict=True))
        for first, second in pairs:
            change = np.linalg.norm(np.asarray(second - first).reshape(6, -1), axis=1)
            assert (change <= constant / len(pairs) * distance * (1 + 1e-3)).all()
            assert (change > 0).all()


def test_world_model_sees_the_action() -> None:
    latents = normal(1, 4, 3, 3, 16)
    for n_actions, first, second in (
        (2, jnp.zeros(4, int), jnp.ones(4, int)),
        (None, jnp.zeros((4, 2)), jnp.ones((4, 2))),
    ):
        for model in (TransitionModel(n_actions, make_density("normal")), RewardModel(n_actions, 8, 1.0)):
            parameters, apply = jax.jit(model.init)(KEY, latents, first), jax.jit(model.apply)
            outputs = (jax.tree.leaves(apply(parameters, latents, actions)) for actions in (first, second))
            pairs = zip(*outputs, strict=True)
            assert any(not np.allclose(a, b) for a, b in pairs)
