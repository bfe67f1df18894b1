"""
Latent transition densities P̄(·|z, a): what the transition model puts out, how a sample is drawn, and what ℓ_P is.

A new one is one class, registered by a name that ``policy_kwargs=dict(transition_density=...)`` then takes::

    @register("laplace")
    @dataclass(frozen=True)
    class Laplace(LatentDensity):
        ...
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi import losses
from sbx_deepspi.ops import clipped_normal

DENSITIES: dict[str, type["LatentDensity"]] = {}
"""By name."""

DensityClass = TypeVar("DensityClass", bound="type[LatentDensity]")


def register(name: str) -> Callable[[DensityClass], DensityClass]:
    """
    :param name: by which policies find the class
    :return: a decorator for a subclass of :class:`LatentDensity`
    """

    def add(density: DensityClass) -> DensityClass:
        DENSITIES[name] = density
        return density

    return add


def make_density(name: str, **options: Any) -> "LatentDensity":
    """
    :param name: a registered one
    :param options: of any density; those that are fields of this one count
    :return: the density
    """
    fields = {field.name for field in dataclasses.fields(DENSITIES[name])}
    return DENSITIES[name](**{option: value for option, value in options.items() if option in fields})


class Outputs(struct.PyTreeNode):
    """
    What a transition model puts out for ``B`` latent states and actions. With Lipschitz layers the parts together are
    1-Lipschitz in z, and so are the weights.

    :param parts: one array for each of :attr:`LatentDensity.n_outputs`, shape (B, ..., D, n)
    :param weights: shape (B, ..., :attr:`LatentDensity.n_weights`), or ``None`` where that is 0
    """

    parts: tuple[jax.Array, ...]
    weights: jax.Array | None


@dataclass(frozen=True)
class LatentDensity(ABC):
    """
    A family of densities over next latents of shape (B, ..., D).

    :param lipschitz_constant: L of the world model in z; ``None``: outputs are taken as they are
    """

    lipschitz_constant: float | None = 1.0

    n_outputs: ClassVar[tuple[int, ...]] = (1,)
    """Numbers for each latent dimension, by part; a field or property where options decide."""
    n_weights: ClassVar[int] = 0
    """Numbers for each cell of a latent map, or for the whole of a latent vector."""
    one_hot: ClassVar[tuple[int, int] | None] = None
    """(variables, classes) where a latent state is a set of one-hot vectors."""

    @property
    def scale(self) -> float:
        """
        :return: what outputs that are 1-Lipschitz together are multiplied by, shared evenly by their parts
        """
        return 1.0 if self.lipschitz_constant is None else self.lipschitz_constant / len(self.n_outputs)

    @abstractmethod
    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        """
        ẑ', reparameterised.

        :param outputs: of the transition model
        :param key: randomness
        :return: shape (B, ..., D)
        """

    def loss(self, outputs: Outputs, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        """
        ℓ_P of observed next latents.

        :param outputs: of the transition model
        :param next_latents: φ(s'), shape (B, ..., D)
        :param key: randomness of the reparameterised sample
        :return: shape (B,)
        """
        return losses.transition_loss(self.sample(outputs, key), next_latents)

    @property
    @abstractmethod
    def lipschitz_factor(self) -> float:
        """
        :return: Lipschitz constant of P̄ in the 1-Wasserstein distance, in its outputs; infinite where none is proven
        """


@register("deterministic")
@dataclass(frozen=True)
class Deterministic(LatentDensity):
    """A single point; ℓ_P is the *mean* Huber loss over the latent dimensions (DeepMDP, Gelada et al. 2019)."""

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        return self.scale * outputs.parts[0][..., 0]

    def loss(self, outputs: Outputs, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        n_dimensions = next_latents[0].size
        return losses.transition_loss(self.sample(outputs, key), next_latents) / n_dimensions

    @property
    def lipschitz_factor(self) -> float:
        return self.scale


@register("normal")
@dataclass(frozen=True)
class Normal(LatentDensity):
    """A diagonal normal whose noise is cut to [-1, 1]. With L, location and scale get ½ L each."""

    n_outputs = (1, 1)

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        locations, scales = self.locations_and_scales(outputs)
        return (locations + scales * clipped_normal(key, locations.shape))[..., 0]

    def locations_and_scales(self, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        """
        :param outputs: of the transition model
        :return: each of shape (B, ..., D, components), scales positive
        """
        locations, scales = outputs.parts
        return self.scale * locations, self.scale * (softplus(scales) + 1e-6)

    @property
    def lipschitz_factor(self) -> float:
        # noise within [-1, 1] moves a sample √2 times as far as location and scale move together
        return math.sqrt(2) * self.scale


@register("mixture")
@dataclass(frozen=True)
class Mixture(Normal):
    """
    A mixture of K such normals: ẑ' = Σ_k softmax(logits)_k (location_k + scale_k ε_k), DeepSPI's. Its weights are
    shared by the latent dimensions of a cell, and depend on z, so that nothing is proven of its Lipschitz constant.

    :param n_components: K
    """

    n_components: int = 5

    @property
    def n_outputs(self) -> tuple[int, int]:  # type: ignore[override]
        return self.n_components, self.n_components

    @property
    def n_weights(self) -> int:  # type: ignore[override]
        return self.n_components

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        assert outputs.weights is not None
        locations, scales = self.locations_and_scales(outputs)
        weights = jax.nn.softmax(outputs.weights)[..., None, :]
        return (weights * (locations + scales * clipped_normal(key, locations.shape))).sum(axis=-1)

    @property
    def lipschitz_factor(self) -> float:
        return math.inf


@register("categorical")
@dataclass(frozen=True)
class Categorical(LatentDensity):
    """
    Independent categorical variables over one-hot latents.

    :param n_variables: one-hot vectors of a latent state
    :param n_classes: their length
    :param categorical_cost: which of :data:`~sbx_deepspi.losses.CATEGORICAL_COSTS` is ℓ_P
    """

    n_variables: int = 32
    n_classes: int = 32
    categorical_cost: str = "huber"

    @property
    def one_hot(self) -> tuple[int, int]:  # type: ignore[override]
        return self.n_variables, self.n_classes

    def sample(self, outputs: Outputs, key: jax.Array) -> jax.Array:
        """
        One-hot, by Gumbel's maximum; its gradient is that of the probabilities (straight-through).

        :param outputs: logits, shape (B, variables, classes, 1)
        :param key: randomness
        :return: shape (B, variables, classes)
        """
        logits = outputs.parts[0][..., 0]
        return straight_through(logits + jax.random.gumbel(key, logits.shape), jax.nn.softmax(logits))

    def loss(self, outputs: Outputs, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(outputs.parts[0][..., 0])
        return losses.CATEGORICAL_COSTS[self.categorical_cost](self.sample(outputs, key), log_probs, next_latents)

    @property
    def lipschitz_factor(self) -> float:
        return math.inf


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """
    log(1 + eˣ), to 1e-7. With ``log1p``, which ``jax.nn.softplus`` takes, an update on Atari would take 1.04 times as
    long on CPUs, for at most 6 % of the smallest scales, which are 1e-6 and more.

    :param x: of any shape
    :return: same shape, positive, but 0 far below 0
    """
    return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


def logistic(x: jax.Array) -> jax.Array:
    """
    1 / (1 + e⁻ˣ), from the exponential that :func:`softplus` takes, so that it is computed once.

    :param x: of any shape
    :return: same shape
    """
    power = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1.0, power) / (1 + power)


softplus.defjvps(lambda tangent, _, x: tangent * logistic(x))  # also at 0, where both kinks are


def straight_through(scores: jax.Array, probabilities: jax.Array) -> jax.Array:
    """
    The one-hot vector of the highest score, with the gradient of the probabilities (Bengio et al. 2013).

    :param scores: shape (..., classes)
    :param probabilities: same shape
    :return: same shape
    """
    one_hot = jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1])
    # the difference first: it is exactly 0
    return one_hot + (probabilities - jax.lax.stop_gradient(probabilities))
