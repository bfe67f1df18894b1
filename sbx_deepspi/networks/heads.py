"""Torsos, actor and critic: latent state → features → action distribution and value."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tensorflow_probability.substrates.jax as tfp

from sbx_deepspi.networks.choices import Choices
from sbx_deepspi.networks.encoders import Activation, kernel_init

tfd = tfp.distributions


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


class Actor(nn.Module):
    """
    π̄(·|z) from the torso's features: SBX's actor, but for several choices at once, which it pads to the widest.

    :param n_outputs: size of a Box action, or number of options of all choices together
    :param choices: number of options of each choice; empty for Box actions
    :param is_one_choice: whether an action is a number instead of a vector of choices (Discrete)
    :param net_arch: widths of the hidden layers
    :param activation_fn: after each hidden layer
    :param ortho_init: orthogonal kernel of gain 0.01 in the last layer
    :param log_std_init: log standard deviation of Box actions to begin with
    """

    n_outputs: int
    choices: tuple[int, ...]
    is_one_choice: bool
    net_arch: tuple[int, ...]
    activation_fn: Activation
    ortho_init: bool
    log_std_init: float

    @nn.compact
    def __call__(self, features: jax.Array) -> Any:
        """
        :param features: shape (B, F)
        :return: a distribution with ``mode``, ``log_prob`` and ``entropy``
        """
        for n_units in self.net_arch:
            features = self.activation_fn(nn.Dense(n_units)(features))
        outputs = nn.Dense(self.n_outputs, kernel_init=kernel_init(self.ortho_init, 0.01))(features)
        if self.is_one_choice:
            return tfd.Categorical(logits=outputs)
        if self.choices:
            return Choices.from_logits(outputs, self.choices)
        log_std = self.param("log_std", nn.initializers.constant(self.log_std_init), (self.n_outputs,))
        return tfd.MultivariateNormalDiag(loc=outputs, scale_diag=jnp.exp(log_std))


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
