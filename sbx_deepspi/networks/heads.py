"""Torsos and the critic: latent state → features → value. The actor is SBX's."""

import flax.linen as nn
import jax

from sbx_deepspi.networks.encoders import Activation, kernel_init


class CnnTorso(nn.Module):
    """
    Latent map → features for both heads: flatten, one dense layer.

    :param features_dim: width of the layer
    :param activation_fn: after the layer
    :param ortho_init: orthogonal kernel of gain √2
    """

    features_dim: int
    activation_fn: Activation
    ortho_init: bool

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :return: shape (B, features_dim)
        """
        dense = nn.Dense(self.features_dim, kernel_init=kernel_init(self.ortho_init))
        return self.activation_fn(dense(latents.reshape(len(latents), -1)))


class MlpTorso(nn.Module):
    """Latent vectors are features already: the torso has nothing to add."""

    def __call__(self, latents: jax.Array) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :return: the same, flattened
        """
        return latents.reshape(len(latents), -1)


class Critic(nn.Module):
    """
    V(s) from the torso's features.

    :param net_arch: widths of the hidden layers
    :param activation_fn: after each hidden layer
    :param ortho_init: orthogonal kernels, of gain √2 in hidden layers and 1 in the last
    """

    net_arch: tuple[int, ...]
    activation_fn: Activation
    ortho_init: bool

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """
        :param features: shape (B, F)
        :return: values, shape (B,)
        """
        for n_units in self.net_arch:
            features = self.activation_fn(nn.Dense(n_units, kernel_init=kernel_init(self.ortho_init))(features))
        return nn.Dense(1, kernel_init=kernel_init(self.ortho_init, 1.0))(features)[:, 0]
