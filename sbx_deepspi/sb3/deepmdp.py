"""DeepMDP as SB3 knows it."""

from functools import partial
from typing import Any, ClassVar

from sbx_deepspi import deepmdp, deepspi
from sbx_deepspi.sb3.algorithm import DeepSPI


class DeepMDP(DeepSPI):
    """
    The baseline that adds the world model's losses to PPO's, with its published defaults: α_R = α_P = 1, a
    deterministic transition model, plain layers.

    :param args: the first of :class:`~sbx_deepspi.DeepSPI`'s arguments; ``policy_kwargs`` goes by name
    :param reward_loss_coef: α_R, in [0, 1]
    :param transition_loss_coef: α_P, in [0, 1]
    :param policy_kwargs: arguments of the policy, see :class:`~sbx_deepspi.sb3.policies.DeepSPIPolicy`
    :param kwargs: see :class:`~sbx_deepspi.DeepSPI`
    """

    update: ClassVar[deepspi.Update] = staticmethod(partial(deepspi.update, deepmdp.step))

    def _watch_penalty(self, penalty: float) -> None:
        """The losses stand beside the advantages, and outweigh nothing."""

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
