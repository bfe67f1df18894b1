"""Families of densities from outside the package: registered by a name, they train, are saved and loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI
from sbx_deepspi.world_model import densities
from sbx_deepspi.world_model.densities import LatentDensity, Outputs, register
from tests.helpers import IMAGE, TINY_RUN, VECTOR, ToyEnv, params, same


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two families, for one test each time."""
    monkeypatch.setattr(densities, "DENSITIES", densities.DENSITIES)
    before = dict(densities.DENSITIES)
    register("laplace")(Laplace)
    register("fan")(Fan)
    yield
    densities.DENSITIES.clear()
    densities.DENSITIES.update(before)


@dataclass(frozen=True)
class Laplace(LatentDensity):
    """Location and scale, and an option of its own: the loss is the negative log-likelihood."""

    n_outputs = (1, 1)
    least_scale: float = 1e-3

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        locations, scales = self.locations_and_scales(outputs)
        return locations + scales * jax.random.laplace(key, locations.shape)

    def loss(self, outputs: Outputs, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        locations, scales = self.locations_and_scales(outputs)
        surprise = jnp.log(2 * scales) + jnp.abs(next_latents - locations) / scales
        return surprise.reshape(len(surprise), -1).mean(axis=1)

    def locations_and_scales(self, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        locations, scales = (self.scale * part[..., 0] for part in outputs.parts)
        return locations, jax.nn.softplus(scales) + self.least_scale

    @property
    def lipschitz_factor(self) -> float:
        return np.inf


@dataclass(frozen=True)
class Fan(LatentDensity):
    """One location and three offsets, drawn with weights: parts of unequal size."""

    n_outputs = (1, 3)
    n_weights = 3

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        locations, offsets = (self.scale * part for part in outputs.parts)
        assert outputs.weights is not None
        assert locations.shape[-1] == 1 and offsets.shape == (*locations.shape[:-1], 3)
        weights = jax.nn.softmax(outputs.weights)[..., None, :]
        return (weights * (locations + offsets)).sum(axis=-1)

    @property
    def lipschitz_factor(self) -> float:
        return np.inf


@pytest.mark.parametrize(
    ("density", "policy", "lipschitz_constant"),
    [
        pytest.param("laplace", "CnnPolicy", 0.9, marks=pytest.mark.slow),
        ("fan", "MlpPolicy", None),
        pytest.param("laplace", "MlpPolicy", None, marks=pytest.mark.slow),
        pytest.param("fan", "CnnPolicy", 0.9, marks=pytest.mark.slow),
    ],
)
def test_a_density_from_outside_trains_and_is_saved(
    density: str, policy: str, lipschitz_constant: float | None, tmp_path: Path
) -> None:
    space = VECTOR if policy == "MlpPolicy" else IMAGE
    env = DummyVecEnv([lambda: ToyEnv(space, spaces.Discrete(3))])
    kwargs = dict(
        transition_density=density,
        lipschitz_constant=lipschitz_constant,
        features_extractor_kwargs=dict(features_dim=8),
    )
    run = {**TINY_RUN, "n_epochs": 1}
    model = DeepSPI(policy, env, **run, policy_kwargs=kwargs)
    world_model = model.policy.programs.networks.world_model
    assert world_model is not None and type(world_model.density) is densities.DENSITIES[density]
    assert world_model.density.lipschitz_constant == lipschitz_constant
    before = params(model)
    model.learn(8)
    assert np.isfinite(model.logger.name_to_value["world_model/transition_loss"])
    after = params(model)
    for layer in ("hidden", "outputs"):
        assert not same(*(p["transition_model"][layer]["kernel"] for p in (before, after)))
    assert not same(before["encoder"], after["encoder"])

    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env)
    assert loaded.policy.programs.networks.world_model == world_model
    assert same(after, params(loaded))
    both = [params(m.learn(8, reset_num_timesteps=False)) for m in (loaded,)]
    assert not same(after, both[0])


def test_names_that_nobody_registered_are_refused() -> None:
    with pytest.raises(ValueError, match=r"transition_density must be one of .*'laplace'.*but got 'cauchy'"):
        DeepSPI("MlpPolicy", "CartPole-v1", policy_kwargs=dict(transition_density="cauchy"))
