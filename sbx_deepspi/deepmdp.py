"""DeepMDP (Gelada et al., ICML 2019) on PPO: the same world model, its losses outside the clip."""

from collections.abc import Callable
from typing import Any

import jax

from sbx_deepspi import objective
from sbx_deepspi.deepspi import DeepSPI
from sbx_deepspi.networks.agent import Evaluation
from sbx_deepspi.update import Hyperparameters


def policy_loss(
    ratios: jax.Array, advantages: jax.Array, evaluation: Evaluation, hyperparameters: Hyperparameters
) -> jax.Array:
    """
    -E[min(ρ Â, clip(ρ, 1-ε, 1+ε) Â)] + E[α_R ℓ_R + α_P ℓ_P]: nothing bounds how far the losses move the encoder.

    :param ratios: ρ, shape (B,)
    :param advantages: Â, normalised, shape (B,)
    :param evaluation: with the world model's losses
    :param hyperparameters: ε, α_R and α_P
    :return: scalar
    """
    h = hyperparameters
    losses = h.reward_loss_coef * evaluation.reward_losses + h.transition_loss_coef * evaluation.transition_losses
    return losses.mean() - objective.clipped_surrogate(ratios, advantages, h.clip_range).mean()


class DeepMDP(DeepSPI):
    """
    The baseline that adds the world model's losses to PPO's, with its published defaults: α_R = α_P = 1, a
    deterministic transition model, plain layers.

    :param args: the first of :class:`~sbx_deepspi.DeepSPI`'s arguments; ``policy_kwargs`` goes by name
    :param reward_loss_coef: α_R, in [0, 1]
    :param transition_loss_coef: α_P, in [0, 1]
    :param policy_kwargs: arguments of the policy, see :class:`~sbx_deepspi.policies.DeepSPIPolicy`
    :param kwargs: see :class:`~sbx_deepspi.DeepSPI`
    """

    policy_loss: Callable[..., jax.Array] = staticmethod(policy_loss)

    def __init__(
        self,
        *args: Any,
        reward_loss_coef: float = 1.0,
        transition_loss_coef: float = 1.0,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(  # type: ignore[misc]  # args end before these
            *args,
            reward_loss_coef=reward_loss_coef,
            transition_loss_coef=transition_loss_coef,
            policy_kwargs=dict(transition_density="deterministic", lipschitz_constant=None) | (policy_kwargs or {}),
            **kwargs,
        )
