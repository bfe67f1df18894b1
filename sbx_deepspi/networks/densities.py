"""Latent transition densities P̄(·|z, a): what the transition model predicts, and how a sample is scored."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.networks.backend import clipped_normal
from sbx_deepspi.networks.lipschitz import by_group
from sbx_deepspi.objective import CATEGORICAL_COSTS, transition_loss


class LatentDensity(Protocol):
    """A density over next latents of shape (B, ..., D) that can be sampled and tell its ℓ_P."""

    def sample(self, key: jax.Array) -> jax.Array:
        """
        ẑ', reparameterised.

        :param key: randomness
        :return: shape (B, ..., D)
        """

    def transition_losses(self, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        """
        ℓ_P of observed next latents.

        :param next_latents: φ(s'), shape (B, ..., D)
        :param key: randomness of the reparameterised sample
        :return: shape (B,)
        """


class Deterministic(struct.PyTreeNode):
    """
    A single point; ℓ_P is the *mean* Huber loss over the latent dimensions (DeepMDP, Gelada et al. 2019).

    :param locations: ẑ', shape (B, ..., D)
    """

    locations: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return self.locations

    def transition_losses(self, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        n_dimensions = next_latents[0].size
        return transition_loss(self.locations, next_latents) / n_dimensions


class Mixture(struct.PyTreeNode):
    """
    A mixture of K diagonal normals whose noise is cut to [-1, 1]; with K = 1, one normal.

    :param locations: shape (B, ..., D, K)
    :param scales: positive, shape (B, ..., D, K)
    :param logits: of the weights, shared by the D dimensions, shape (B, ..., K)
    """

    locations: jax.Array
    scales: jax.Array
    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """
        ẑ' = Σ_k softmax(logits)_k (location_k + scale_k ε_k), reparameterised (DeepSPI's mixture).

        :param key: randomness of ε
        :return: shape (B, ..., D)
        """
        noise = clipped_normal(key, self.locations.shape)
        weights = jax.nn.softmax(self.logits)[..., None, :]
        return (weights * (self.locations + self.scales * noise)).sum(axis=-1)

    def transition_losses(self, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        return transition_loss(self.sample(key), next_latents)


class Categorical(struct.PyTreeNode):
    """
    Independent categorical variables over one-hot latents.

    :param logits: shape (B, variables, classes)
    :param cost: which of :data:`~sbx_deepspi.objective.CATEGORICAL_COSTS` is ℓ_P
    """

    logits: jax.Array
    cost: str = struct.field(pytree_node=False)

    def sample(self, key: jax.Array) -> jax.Array:
        """
        One-hot, by Gumbel's maximum; its gradient is that of the probabilities (straight-through).

        :param key: randomness
        :return: shape (B, variables, classes)
        """
        noise = jax.random.gumbel(key, self.logits.shape)
        return straight_through(self.logits + noise, jax.nn.softmax(self.logits))

    def transition_losses(self, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        return CATEGORICAL_COSTS[self.cost](self.sample(key), jax.nn.log_softmax(self.logits), next_latents)


class Grouped(struct.PyTreeNode):
    """
    A density over latent maps whose channels lie in groups, each group a map of its own. What comes out of a grouped
    convolution lies so: to move φ(s') there is less work than to move all components' locations and scales back.

    :param density: over latents of shape (B, groups, H, W, C / groups)
    :param n_groups: of channels
    """

    density: LatentDensity
    n_groups: int = struct.field(pytree_node=False)

    def sample(self, key: jax.Array) -> jax.Array:
        maps = jnp.moveaxis(self.density.sample(key), 1, 3)
        return maps.reshape(*maps.shape[:3], -1)

    def transition_losses(self, next_latents: jax.Array, key: jax.Array) -> jax.Array:
        return self.density.transition_losses(by_group(next_latents, self.n_groups), key)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """
    log(1 + eˣ), with its slope from the same exponential. JAX's own takes an exponential,
    a logarithm and another exponential, each of which costs as much as all else that is done with a scale.

    :param x: any shape
    :return: same shape, with float32's precision also where it is small
    """
    return _softplus_and_slope(x)[0]


@softplus.defjvp
def _softplus_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    value, slope = _softplus_and_slope(*primals)
    return value, slope * tangents[0]


def _softplus_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    exponential = jnp.exp(-jnp.abs(x))
    # log(1 + e) = 2 artanh(e / (2 + e)), whose series needs few terms: its argument is at most 1/3
    ratio = exponential / (2 + exponential)
    squares = ratio * ratio
    series = jnp.full_like(squares, 1 / 13)
    for power in (11, 9, 7, 5, 3, 1):
        series = series * squares + 1 / power
    slope = jnp.where(x >= 0, 1.0, exponential) / (1 + exponential)
    return jnp.maximum(x, 0.0) + 2 * ratio * series, slope


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


def from_outputs(parts: list[jax.Array], logits: jax.Array | None, lipschitz_constant: float | None) -> LatentDensity:
    """
    Read a transition model's outputs as a density.

    With outputs that are 1-Lipschitz together every location and scale gets ½ L, so that both are L-Lipschitz
    for noise within [-1, 1]; a point gets L.

    :param parts: locations, and scales before their softplus unless they are points: each of shape (B, ..., D, K)
    :param logits: of the mixture's weights, shape (B, ..., K); ``None``: one component
    :param lipschitz_constant: L; ``None``: outputs are taken as they are
    :return: the density
    """
    constant = 1.0 if lipschitz_constant is None else lipschitz_constant
    if len(parts) == 1:
        return Deterministic(constant * parts[0][..., 0])
    if lipschitz_constant is not None:
        constant = 0.5 * lipschitz_constant
    locations, scales = parts
    if logits is None:
        logits = jnp.zeros((*locations.shape[:-2], 1))
    return Mixture(constant * locations, constant * (softplus(scales) + 1e-6), logits)
