"""
P̄(·|z, a): the transition model, L-Lipschitz in z or plain.

Discrete actions choose a slice of the last layer on latent maps; all others (and all on latent vectors) enter the
hidden layer as an added embedding, which leaves the map as Lipschitz in z as it was.

With parameters from :mod:`sbx_deepspi.lipschitz.normalizer` its outputs are 1-Lipschitz in z.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbx_deepspi.lipschitz.layers import (
    Convolution,
    Dense,
    DenseParts,
    DensePerAction,
    GroupedConvolutionPerAction,
    by_group,
    group_sort,
)
from sbx_deepspi.lipschitz.norms import kernel_norm_bound, spectral_norm_bound
from sbx_deepspi.world_model.actions import ActionEmbedding, LipschitzBounds
from sbx_deepspi.world_model.densities import LatentDensity, Outputs

GROUP_CHANNELS = 4
"""Latent channels that the last convolution of a map's model keeps together: 16 groups of the paper's 64 channels."""


class TransitionModel(nn.Module):
    """
    P̄(·|z, a) over latent maps and vectors.

    On latent maps: a 2 × 2 convolution to twice the channels, then a grouped one for the taken action.
    On latent vectors: two dense layers.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    :param density: what the outputs are for
    :param embed_actions: discrete actions enter as an embedding on latent maps, too
    """

    n_actions: int | None
    density: LatentDensity
    embed_actions: bool = False

    @property
    def lipschitz_constant(self) -> float | None:
        """
        :return: L in z; ``None``: plain layers with ReLU
        """
        return self.density.lipschitz_constant

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> Outputs:
        """
        :param latents: z, shape (B, H, W, C) or (B, D)
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :return: what the density is made from, in the layout of :meth:`as_outputs`
        """
        n_dimensions, density = latents.shape[-1], self.density
        is_map = latents.ndim == 4
        groups = n_groups(n_dimensions) if is_map else 1
        slices = self.n_actions if is_map and self.n_actions is not None and not self.embed_actions else 1
        taken = actions if slices > 1 else jnp.zeros(len(latents), jnp.int32)

        layer = Convolution if is_map else Dense
        hidden = layer(2 * n_dimensions, name="hidden")(latents)
        if slices == 1:
            hidden += ActionEmbedding(self.n_actions, name="actions")(actions, hidden)
        hidden = nn.relu(hidden) if self.lipschitz_constant is None else group_sort(hidden, groups)

        features = tuple(n_dimensions * n for n in density.n_outputs)
        if is_map:
            parts = GroupedConvolutionPerAction(slices, features, groups, name="outputs")(hidden, taken)
        else:
            parts = DenseParts(features, name="outputs")(hidden)
        weights = None
        if density.n_weights:
            weights = DensePerAction(slices, density.n_weights, name="logits")(hidden, taken)
            weights = weights[:, None] if is_map else weights  # the same for all groups
        return Outputs(
            tuple(part.reshape(*part.shape[:-1], -1, n) for part, n in zip(parts, density.n_outputs, strict=True)),
            weights,
        )

    def as_outputs(self, latents: jax.Array) -> jax.Array:
        """
        Latent states as the outputs lie: maps by group of channels, as a grouped convolution leaves them, since moving
        φ(s') takes less time than moving all parts of the outputs.

        :param latents: shape (B, H, W, C) or (B, D)
        :return: shape (B, groups, H, W, C / groups) or (B, D)
        """
        return by_group(latents, n_groups(latents.shape[-1])) if latents.ndim == 4 else latents

    def as_latents(self, outputs: jax.Array) -> jax.Array:
        """
        The other way round.

        :param outputs: shape (B, groups, H, W, C / groups) or (B, D)
        :return: shape (B, H, W, C) or (B, D)
        """
        if outputs.ndim == 2:
            return outputs
        maps = jnp.moveaxis(outputs, 1, 3)
        return maps.reshape(*maps.shape[:3], -1)

    def lipschitz_bounds(self, parameters: dict[str, Any], latent_map: tuple[int, ...]) -> LipschitzBounds:
        """
        :param parameters: of this model, divided by their norms where it is Lipschitz
        :param latent_map: rows and columns of z, if it has them
        :return: of P̄(·|z, a)
        """
        factor = self.density.lipschitz_factor
        if math.isinf(factor):
            return LipschitzBounds(math.inf, math.inf)
        hidden: Any = 1.0
        outputs: Any = 1.0  # kernels of norm 1
        if self.lipschitz_constant is None:
            outputs = kernel_norm_bound(parameters["outputs"]["kernel"], *latent_map).max()
            hidden = kernel_norm_bound(parameters["hidden"]["kernel"], *latent_map)
        latent = factor * outputs * hidden
        if "actions" not in parameters:
            return LipschitzBounds(latent, math.inf)
        # the embedding is added to every cell of a map
        embedding = spectral_norm_bound(parameters["actions"]["embedding"]) * math.sqrt(math.prod(latent_map))
        return LipschitzBounds(latent, factor * outputs * embedding)


def n_groups(n_channels: int) -> int:
    """
    :param n_channels: of a latent map
    :return: groups of channels that the transition model's last convolution keeps apart
    """
    return n_channels // GROUP_CHANNELS if n_channels % GROUP_CHANNELS == 0 else 1


class TokenTransitionModel(nn.Module):
    """
    P̄(·|z, a) over one-hot latents: token embeddings, plus one of the action, through a hidden layer to logits. Plain
    layers: a Lipschitz one could not be sure of any class.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    :param density: what the outputs are for
    :param n_units: width of the two hidden layers
    :param token_size: of one variable's embedding
    """

    n_actions: int | None
    density: LatentDensity
    n_units: int = 512
    token_size: int = 16
    lipschitz_constant = None

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> Outputs:
        """
        :param latents: z, shape (B, variables, classes)
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :return: what the density is made from
        """
        batch, n_variables, n_classes = latents.shape
        shape = (n_variables, n_classes, self.token_size)
        tokens = self.param("tokens", nn.initializers.normal(1.0), shape)
        embeddings = jnp.einsum("bvc,vct->bvt", latents, tokens).reshape(batch, -1)
        hidden = Dense(self.n_units, name="hidden_0")(embeddings)
        hidden += ActionEmbedding(self.n_actions, name="actions")(actions, hidden)
        hidden = nn.relu(Dense(self.n_units, name="hidden_1")(nn.relu(hidden)))
        sizes = self.density.n_outputs
        parts = jnp.split(
            Dense(n_variables * n_classes * sum(sizes), name="outputs")(hidden),
            n_variables * n_classes * np.cumsum(sizes)[:-1],
            axis=-1,
        )
        return Outputs(tuple(part.reshape(*latents.shape, -1) for part in parts), None)

    def as_outputs(self, latents: jax.Array) -> jax.Array:
        """
        :param latents: shape (B, variables, classes)
        :return: the same, which is how the outputs lie
        """
        return latents

    def as_latents(self, outputs: jax.Array) -> jax.Array:
        """
        :param outputs: shape (B, variables, classes)
        :return: the same
        """
        return outputs

    def lipschitz_bounds(self, parameters: dict[str, Any], latent_map: tuple[int, ...]) -> LipschitzBounds:
        """
        :param parameters: not used
        :param latent_map: not used
        :return: infinite: nothing is proven of these layers
        """
        return LipschitzBounds(math.inf, math.inf)
