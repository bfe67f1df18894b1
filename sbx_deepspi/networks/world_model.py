"""The world model on the latent space: P̄(·|z, a) and R̄(z, a), L-Lipschitz in z or plain.

Discrete actions choose a slice of the last layer on latent maps, and of the reward's; all others (and all on latent
vectors) enter the hidden layer as an added embedding, which leaves the map as Lipschitz in z as it was.

With parameters from :func:`~sbx_deepspi.networks.lipschitz.normalize_kernels`, the reward is L-Lipschitz in z, and so
is each component's location plus scale. A mixture's weights depend on z too; no bound covers what they add.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.networks.densities import Categorical, Grouped, LatentDensity, from_outputs
from sbx_deepspi.networks.lipschitz import (
    Convolution,
    Dense,
    DensePerAction,
    GroupedConvolutionPerAction,
    group_sort,
    kernel_norm_bound,
    spectral_norm_bound,
)

N_GROUPS = 16


class LipschitzBounds(struct.PyTreeNode):
    """
    Upper bounds of Lipschitz constants in the Euclidean norm; of a density, in the 1-Wasserstein distance. Scalars,
    infinite where nothing is proven.

    :param latent: in z, for any action
    :param action: in the action as a vector (one-hot for Discrete actions), for any z
    """

    latent: jax.Array | float
    action: jax.Array | float

    def under(self, policy: Any) -> Any:
        """
        :param policy: Lipschitz constant in z of the distribution over actions
        :return: that of the model in z, actions drawn from the policy
        """
        return self.latent + self.action * policy


class ActionEmbedding(nn.Module):
    """
    A linear embedding of the actions, to be added to hidden features or, broadcast, to a hidden map.

    It is not divided by a norm: the world model has to be Lipschitz in z, not in a.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    """

    n_actions: int | None

    @nn.compact
    def __call__(self, actions: jax.Array, hidden: jax.Array) -> jax.Array:
        """
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :param hidden: what the embedding is added to, shape (B, ..., C)
        :return: shape (B, 1, ..., C)
        """
        vectors = actions if self.n_actions is None else jax.nn.one_hot(actions, self.n_actions)
        shape = (vectors.shape[-1], hidden.shape[-1])
        embedding = self.param("embedding", nn.initializers.lecun_normal(), shape)
        return jnp.expand_dims(vectors @ embedding, tuple(range(1, hidden.ndim - 1)))


class TransitionModel(nn.Module):
    """
    P̄(·|z, a).

    On latent maps: a 2 × 2 convolution to twice the channels, then a grouped one for the taken action.
    On latent vectors: two dense layers.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    :param transition_density: ``"mixture"``, ``"normal"`` or ``"deterministic"``
    :param n_components: K of the mixture
    :param lipschitz_constant: L; ``None``: plain layers with ReLU
    :param embed_actions: discrete actions enter as an embedding on latent maps too
    """

    n_actions: int | None
    transition_density: str
    n_components: int
    lipschitz_constant: float | None
    embed_actions: bool = False

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> LatentDensity:
        """
        :param latents: z, shape (B, H, W, C) or (B, D)
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :return: a density over next latents, of the shape of ``latents``
        """
        n_dimensions = latents.shape[-1]
        n_components = self.n_components if self.transition_density == "mixture" else 1
        n_parts = 1 if self.transition_density == "deterministic" else 2
        is_map = latents.ndim == 4
        groups = N_GROUPS if is_map and n_dimensions % N_GROUPS == 0 else 1
        slices = self.n_actions if is_map and self.n_actions is not None and not self.embed_actions else 1
        taken = actions if slices > 1 else jnp.zeros(len(latents), jnp.int32)

        if is_map:
            hidden = Convolution(2 * n_dimensions, name="hidden")(latents)
        else:
            hidden = Dense(2 * n_dimensions, name="hidden")(latents)
        if slices == 1:
            hidden += ActionEmbedding(self.n_actions, name="actions")(actions, hidden)
        hidden = nn.relu(hidden) if self.lipschitz_constant is None else group_sort(hidden, groups)

        features = n_dimensions * n_components
        if is_map:
            last = GroupedConvolutionPerAction(slices, features, groups, n_parts, name="outputs")
            parts = last(hidden, taken)
        else:
            parts = jnp.split(Dense(n_parts * features, name="outputs")(hidden), n_parts, axis=-1)
        parts = [part.reshape(*part.shape[:-1], -1, n_components) for part in parts]
        logits = None
        if self.transition_density == "mixture":
            logits = DensePerAction(slices, self.n_components, name="logits")(hidden, taken)
        if not is_map:
            return from_outputs(parts, logits, self.lipschitz_constant)
        # the weights are the same for all groups
        logits = None if logits is None else logits[:, None]
        return Grouped(from_outputs(parts, logits, self.lipschitz_constant), groups)

    def lipschitz_bounds(self, *latent_map: int) -> LipschitzBounds:
        """
        Noise within [-1, 1] makes a normal √2 times as Lipschitz as its locations and scales together.

        :param latent_map: rows and columns of z, if it has them
        :return: of P̄(·|z, a) with these parameters; infinite for a mixture, whose weights depend on z
        """
        if self.transition_density == "mixture":
            return LipschitzBounds(math.inf, math.inf)
        params = self.variables["params"]
        outputs: Any  # a traced number, or one that is known
        if self.lipschitz_constant is None:
            outputs = kernel_norm_bound(params["outputs"]["kernel"], *latent_map).max()
            latent = outputs * kernel_norm_bound(params["hidden"]["kernel"], *latent_map)
        else:  # kernels of norm 1
            latent = outputs = self.lipschitz_constant * (0.5 if self.transition_density == "normal" else 1.0)
        noise = math.sqrt(2) if self.transition_density == "normal" else 1.0
        if "actions" not in params:
            return LipschitzBounds(noise * latent, math.inf)
        # the embedding is added to every cell of a map
        embedding = spectral_norm_bound(params["actions"]["embedding"]) * math.sqrt(math.prod(latent_map))
        return LipschitzBounds(noise * latent, noise * outputs * embedding)


class CategoricalTransitionModel(nn.Module):
    """
    P̄(·|z, a) over one-hot latents: token embeddings, plus one of the action, through a hidden layer to logits.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    :param cost: which of :data:`~sbx_deepspi.objective.CATEGORICAL_COSTS` is ℓ_P
    :param n_units: width of the two hidden layers
    :param token_size: of one variable's embedding
    """

    n_actions: int | None
    cost: str
    n_units: int = 512
    token_size: int = 16
    lipschitz_constant = None  # plain layers: a Lipschitz one could not be sure of any class

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> Categorical:
        """
        :param latents: z, shape (B, variables, classes)
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :return: a density over next latents, of the shape of ``latents``
        """
        batch, n_variables, n_classes = latents.shape
        shape = (n_variables, n_classes, self.token_size)
        tokens = self.param("tokens", nn.initializers.normal(1.0), shape)
        embeddings = jnp.einsum("bvc,vct->bvt", latents, tokens).reshape(batch, -1)
        hidden = Dense(self.n_units, name="hidden_0")(embeddings)
        hidden += ActionEmbedding(self.n_actions, name="actions")(actions, hidden)
        hidden = nn.relu(Dense(self.n_units, name="hidden_1")(nn.relu(hidden)))
        return Categorical(Dense(n_variables * n_classes, name="outputs")(hidden).reshape(latents.shape), self.cost)

    def lipschitz_bounds(self, *latent_map: int) -> LipschitzBounds:
        """
        :param latent_map: not used
        :return: infinite: nothing is proven of these layers
        """
        return LipschitzBounds(math.inf, math.inf)


class RewardModel(nn.Module):
    """
    R̄(z, a): three dense layers, the last one with an output for each discrete action.

    :param n_actions: number of discrete actions; ``None``: actions are vectors
    :param n_units: width of the two hidden layers
    :param lipschitz_constant: L; ``None``: plain layers with ReLU
    :param embed_actions: discrete actions enter as an embedding instead
    """

    n_actions: int | None
    n_units: int
    lipschitz_constant: float | None
    embed_actions: bool = False

    @nn.compact
    def __call__(self, latents: jax.Array, actions: jax.Array) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :param actions: integers of shape (B,) if ``n_actions`` is given, else floats of shape (B, A)
        :return: predicted rewards, shape (B,)
        """
        activation = nn.relu if self.lipschitz_constant is None else group_sort
        slices = 1 if self.n_actions is None or self.embed_actions else self.n_actions
        taken = actions if slices > 1 else jnp.zeros(len(latents), jnp.int32)

        hidden = Dense(self.n_units, name="hidden_0")(latents.reshape(len(latents), -1))
        if slices == 1:
            hidden += ActionEmbedding(self.n_actions, name="actions")(actions, hidden)
        hidden = activation(hidden)
        hidden = activation(Dense(self.n_units, name="hidden_1")(hidden))
        rewards = DensePerAction(slices, 1, name="outputs")(hidden, taken)[:, 0]
        return rewards if self.lipschitz_constant is None else self.lipschitz_constant * rewards

    def lipschitz_bounds(self) -> LipschitzBounds:
        """
        :return: of R̄(z, a) with these parameters
        """
        params = self.variables["params"]
        outputs: Any  # a traced number, or one that is known
        if self.lipschitz_constant is None:
            outputs = kernel_norm_bound(params["outputs"]["kernel"]).max()
            outputs *= kernel_norm_bound(params["hidden_1"]["kernel"])
            latent = outputs * kernel_norm_bound(params["hidden_0"]["kernel"])
        else:  # kernels of norm 1
            latent = outputs = self.lipschitz_constant
        if "actions" not in params:
            return LipschitzBounds(latent, math.inf)
        return LipschitzBounds(latent, outputs * spectral_norm_bound(params["actions"]["embedding"]))
