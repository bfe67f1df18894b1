"""Ē(z'): the termination model, how likely a latent state is terminal."""

from typing import Any

import flax.linen as nn
import jax

from sbx_deepspi.lipschitz.norms import lipschitz_bound

STEEPEST_SIGMOID = 0.25
"""The sigmoid's slope at 0, its largest."""


class TerminationModel(nn.Module):
    """
    Ē(z'): one hidden layer with ReLU, one logit. Plain layers: a 1-Lipschitz one could not tell a terminal state from
    one nearby that is not.

    :param n_units: width of the hidden layer
    """

    n_units: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """
        :param latents: z', shape (B, ...)
        :return: probability that z' is terminal, shape (B,)
        """
        hidden = nn.relu(nn.Dense(self.n_units, name="hidden")(latents.reshape(len(latents), -1)))
        return nn.sigmoid(nn.Dense(1, name="logits")(hidden)[:, 0])

    def lipschitz_bound(self, parameters: dict[str, Any]) -> jax.Array:
        """
        :param parameters: of this model
        :return: K_E, upper bound of the Lipschitz constant of Ē in z', scalar
        """
        return STEEPEST_SIGMOID * lipschitz_bound(parameters)
