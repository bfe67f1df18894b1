"""Samples and losses of each family of densities against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI, agent
from sbx_deepspi.ops import clipped_normal, parts
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.world_model import densities
from sbx_deepspi.world_model.densities import Outputs
from sbx_deepspi.world_model.transition import TransitionModel, n_groups
from tests.guarantee.models import trained
from tests.helpers import IMAGE, TINY_RUN, ToyEnv, params, same
from tests.numerics import KEY, normal


def positive(outputs: jax.Array) -> np.ndarray:
    return np.logaddexp(0, outputs) + 1e-6


def huber(errors: np.ndarray) -> np.ndarray:
    return np.where(np.abs(errors) <= 1, errors**2 / 2, np.abs(errors) - 0.5)


def test_mixture_sample_by_numpy() -> None:
    locations, scales, logits = normal(1, 2, 3, 4), normal(2, 2, 3, 4), normal(3, 2, 4)
    density = densities.Mixture(lipschitz_constant=None, n_components=4)
    sample = density.sample(Outputs((locations, scales), logits), KEY)
    noise = clipped_normal(KEY, (2, 3, 4))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = (weights[:, None] * (locations + positive(scales) * noise)).sum(-1)
    np.testing.assert_allclose(sample, expected, rtol=1e-5, atol=1e-6)


def test_softplus_and_its_gradient_by_numpy() -> None:
    x = np.concatenate([np.linspace(-30, 30, 2001), [-1e4, -200, 200, 1e4]]).astype(np.float32)
    exact = np.logaddexp(0, x.astype(np.float64))
    np.testing.assert_allclose(densities.softplus(x), exact, rtol=2e-7, atol=1.5e-7)
    slopes = jax.vmap(jax.grad(densities.softplus))(x)
    np.testing.assert_allclose(slopes, np.exp(x - exact), rtol=1e-5, atol=1e-37)
    np.testing.assert_array_equal(densities.softplus(np.array([-np.inf, np.inf, np.nan])), [0, np.inf, np.nan])


@pytest.mark.parametrize("groups", [1, n_groups(64)])
def test_density_over_groups_of_channels(groups: int) -> None:
    """Moved back channel by channel, with the noise of its groups; the losses are those of the latents as they come."""
    locations, scales = normal(1, 2, groups, 4, 5, 4, 3), normal(2, 2, groups, 4, 5, 4, 3)
    logits, next_latents = normal(3, 2, 1, 4, 5, 3), normal(4, 2, 4, 5, 4 * groups)
    density = densities.Mixture(lipschitz_constant=None, n_components=3)
    model, outputs = TransitionModel(3, density), Outputs((locations, scales), logits)
    noise = clipped_normal(KEY, locations.shape)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros((2, 4, 5, 4 * groups))
    for group in range(groups):
        for channel in range(4):
            of_each = (array[:, group, :, :, channel] for array in (locations, positive(scales), noise))
            location, scale, epsilon = map(np.asarray, of_each)
            expected[..., 4 * group + channel] = (weights[:, 0] * (location + scale * epsilon)).sum(-1)
    np.testing.assert_allclose(model.as_latents(density.sample(outputs, KEY)), expected, rtol=1e-4, atol=1e-5)
    of_each = density.loss(outputs, model.as_outputs(next_latents), KEY)
    np.testing.assert_allclose(of_each, huber(expected - next_latents).sum(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(model.as_latents(model.as_outputs(next_latents)), next_latents)


def test_the_lipschitz_constant_is_shared_by_the_parts() -> None:
    outputs = normal(1, 2, 3, 2)
    density = densities.make_density("normal", lipschitz_constant=3.0, n_components=4)
    assert density == densities.Normal(3.0)
    locations, scales = density.locations_and_scales(Outputs((outputs[..., :1], outputs[..., 1:]), None))
    np.testing.assert_allclose(locations, 1.5 * outputs[..., :1])
    np.testing.assert_allclose(scales, 1.5 * positive(outputs[..., 1:]), rtol=1e-5)
    point = densities.make_density("deterministic", lipschitz_constant=3.0)
    of_each = point.loss(Outputs((outputs[..., :1],), None), jnp.zeros((2, 3)), KEY)
    np.testing.assert_allclose(of_each, huber(3.0 * outputs[..., 0]).mean(-1), rtol=1e-5)


@pytest.mark.parametrize(
    ("density", "n_latents"),  # side by side in uneven pieces, and one after the other
    [
        ("normal", 8),
        pytest.param("normal", 17, marks=pytest.mark.slow),
        pytest.param("deterministic", 8, marks=pytest.mark.slow),
        pytest.param("deterministic", 17, marks=pytest.mark.slow),
    ],
)
def test_transition_losses_in_parts(density: str, n_latents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and gradients; noise of its own for each transition where there is noise."""
    kwargs = dict(transition_density=density, features_extractor_kwargs=dict(features_dim=8))
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, spaces.Discrete(3))])
    policy = DeepSPI("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=kwargs).policy
    networks = policy.programs.networks
    latents = jnp.tile(normal(1, *networks.latent_shape), (n_latents, 1, 1, 1))
    zeros = jnp.zeros(n_latents, jnp.int32)
    arguments = latents, zeros, jnp.zeros(n_latents), zeros == 1, latents + 0.1, KEY
    monkeypatch.setattr(parts, "CPU_MICROBATCH", 7)
    monkeypatch.setattr(parts, "CPU_CHUNK", 7)

    def transition_losses(parameters: Parameters) -> jax.Array:
        return agent.model_losses(networks, parameters, *arguments).transition

    def in_pieces_of(size: int) -> list[jax.Array]:
        monkeypatch.setattr(parts, "CPU_PIECE", size)

        @jax.jit
        def losses_and_gradients(parameters: Parameters) -> tuple[jax.Array, Parameters]:
            of_each, pull_back = jax.vjp(transition_losses, parameters)
            return of_each, pull_back(jnp.arange(1.0, n_latents + 1))

        return jax.tree.leaves(losses_and_gradients(policy.learner.parameters))

    in_pieces = in_pieces_of(3)
    assert len(np.unique(in_pieces[0].round(4))) == (n_latents if density == "normal" else 1)
    if density == "deterministic":
        for ours, theirs in zip(in_pieces, in_pieces_of(99), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-12)


@pytest.mark.parametrize(
    ("policy", "cost"),
    [
        pytest.param("CnnPolicy", "huber", marks=pytest.mark.slow),
        ("MlpPolicy", "huber"),
        *(
            pytest.param("MlpPolicy", cost, marks=pytest.mark.slow)
            for cost in ("cross_entropy", "hamming", "jensen_shannon")
        ),
    ],
)
def test_categorical_latents(policy: str, cost: str) -> None:
    kwargs = dict(transition_density="categorical", n_variables=3, n_classes=4, categorical_cost=cost)
    model = trained(policy=policy, policy_kwargs=kwargs, reward_loss_coef=1.0, transition_loss_coef=1.0)
    observations = np.array([model.observation_space.sample() for _ in range(6)])
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    latents = jax.jit(lambda p: agent.encode(networks, p, observations))(parameters)
    assert latents.shape == (6, 3, 4)
    np.testing.assert_array_equal(latents.sum(axis=-1), 1)
    assert set(np.unique(latents)) == {0, 1}

    world_model = networks.world_model
    assert world_model is not None
    assert world_model.density.categorical_cost == cost
    actions = world_model.encode_actions(jnp.zeros(6, int))
    outputs = jax.jit(lambda p: agent.apply(world_model.transition_model, p, latents, actions))(
        parameters["transition_model"]
    )
    sample = jax.jit(jax.vmap(lambda key: world_model.density.sample(outputs, key)))
    samples = sample(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(samples.mean(axis=0), jax.nn.softmax(outputs.parts[0][..., 0]), atol=0.05)

    untrained = DeepSPI(policy, model.env, **TINY_RUN, policy_kwargs=kwargs)
    assert not same(*(params(m)["transition_model"] for m in (model, untrained)))
    # straight-through: the encoder learns from losses on one-hot vectors
    weighted = lambda p: (agent.encode(networks, p, observations) * jnp.arange(4)).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(weighted))(parameters)
    assert jnp.abs(gradient["encoder"]["logits"]["kernel"]).max() > 0
    assert np.isinf(agent.lipschitz_bounds(networks, parameters).transition.latent)
