"""What transition and reward model share: how actions enter, and bounds of how steep a model is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct


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
