"""R̄(z, a): the reward model, L-Lipschitz in z or plain."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sbx_deepspi.lipschitz.layers import Dense, DensePerAction, group_sort
from sbx_deepspi.lipschitz.norms import kernel_norm_bound, spectral_norm_bound
from sbx_deepspi.world_model.actions import ActionEmbedding, LipschitzBounds


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

    def lipschitz_bounds(self, params: dict[str, Any]) -> LipschitzBounds:
        """
        :param params: of this model, divided by their norms where it is Lipschitz
        :return: of R̄(z, a)
        """
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
