"""DreamSPI as SB3 knows it."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule

from sbx_deepspi import deepspi, dreamspi, valid
from sbx_deepspi.hyperparameters import DreamHyperparameters, Hyperparameters
from sbx_deepspi.optimizer import StepSize, StepSizes
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.sb3 import checks
from sbx_deepspi.sb3.algorithm import DeepSPI
from sbx_deepspi.sb3.policies import DeepSPIPolicy


class DreamSPI(DeepSPI):
    """
    Safe policy improvement inside the latent model: encoder and world model learn from real data, with DeepSPI's loss;
    torso, actor and critic learn with PPO's from episodes that the model imagines ("dreams").

    ``learning_rate`` is that of torso, actor and critic; where it is not given, it is 2.75e-5, linearly to 0, for
    ``"CnnPolicy"`` (the paper's for Atari), else 3e-4. Steps of the model, of the policy in dreams and, with ``dyna``,
    of the policy on real data have an optimiser and a limit of the gradient's norm each.

    :param args: the first of :class:`~sbx_deepspi.DeepSPI`'s arguments
    :param imagination_horizon: H, steps of a dream, unless the model says that the episode ends before
    :param n_dreams: dreams from each state of the rollout
    :param dyna: whether torso, actor and critic learn from the real data, too, as DeepSPI's do
    :param dream_weight: what dreams count: their steps have ``dream_weight`` times the ``learning_rate``, since Adam
        does not see a factor of the loss. A number, or a function of the remaining progress, such as SB3's
        ``LinearSchedule(0.0, 1.0, 1.0)``, which grows from 0 to 1
    :param model_learning_rate: learning rate of encoder and world model, or a function of the remaining progress;
        ``None``: 2e-4, linearly to 0, for ``"CnnPolicy"``, else 3e-4, whatever ``learning_rate`` is
    :param termination_model: whether the world model learns where episodes end; if not, dreams never end
    :param kwargs: see :class:`~sbx_deepspi.DeepSPI`
    :raises ValueError: an argument is not supported, or a coefficient of the world model's losses is 0
    """

    update: ClassVar[deepspi.Update] = staticmethod(dreamspi.update)
    optimizer_groups: ClassVar[dict[str, tuple[str, ...]] | None] = dreamspi.GROUPS

    def __init__(
        self,
        *args: Any,
        imagination_horizon: int = 8,
        n_dreams: int = 1,
        dyna: bool = False,
        dream_weight: float | Schedule = 1.0,
        model_learning_rate: float | Schedule | None = None,
        termination_model: bool = True,
        **kwargs: Any,
    ):
        # first: the networks are made by the constructor below
        self.imagination_horizon = imagination_horizon
        self.n_dreams = n_dreams
        self.dyna = dyna
        self.dream_weight = dream_weight
        self.model_learning_rate = model_learning_rate
        super().__init__(*args, termination_model=termination_model, **kwargs)  # type: ignore[misc]

    @classmethod
    def defaults_of(cls, policy_class: type[DeepSPIPolicy]) -> dict[str, Any]:
        return super().defaults_of(policy_class) | {"learning_rate": policy_class.dream_defaults["learning_rate"]}

    @property
    def model_lr_schedule(self) -> FloatSchedule:
        """
        :return: the model's learning rate as a function of the remaining progress
        """
        given, default = self.model_learning_rate, type(self.policy).dream_defaults["model_learning_rate"]
        return checks.schedule("model_learning_rate", default if given is None else given)

    @property
    def dream_weight_schedule(self) -> Callable[[float], float]:
        """
        :return: what dreams count as a function of the remaining progress
        """
        return checks.schedule("dream_weight", self.dream_weight)

    def _setup_model(self) -> None:
        valid.in_unit_interval(reward_loss_coef=self.reward_loss_coef, transition_loss_coef=self.transition_loss_coef)
        for name, coefficient in {
            "reward_loss_coef": self.reward_loss_coef,
            "transition_loss_coef": self.transition_loss_coef,
        }.items():
            if not coefficient > 0:
                raise ValueError(
                    f"{name} must be above 0, but got {coefficient!r}: a model that does not learn is none to dream in."
                )
        super()._setup_model()
        self._check()

    def _check(self) -> None:
        valid.positive_integer(imagination_horizon=self.imagination_horizon, n_dreams=self.n_dreams)
        valid.boolean(dyna=self.dyna)
        schedules = {"dream_weight": self.dream_weight, "model_learning_rate": self.model_learning_rate}
        for name, given in schedules.items():
            is_default = given is None and name == "model_learning_rate"
            if is_default or checkpoint.missing_in(given):  # a file cannot hold every function
                continue
            number = checks.schedule(name, given)(self._current_progress_remaining)
            if not (number >= 0 and np.isfinite(np.float32(number))):
                raise ValueError(f"{name} must be a number of at least 0, but got {number!r}.")

    def _watch_penalty(self, penalty: float) -> None:
        """Without dyna only the encoder sees utilities: the model's losses outweigh nothing that the policy learns."""
        if self.dyna:
            super()._watch_penalty(penalty)

    def step_sizes(self, progress: float) -> StepSizes:
        return {
            "policy": StepSize(self.lr_schedule(progress), self.max_grad_norm),
            "model": StepSize(self.model_lr_schedule(progress), self.max_grad_norm),
            "dreams": StepSize(self.dream_weight_schedule(progress) * self.lr_schedule(progress), self.max_grad_norm),
        }

    def hyperparameters(self) -> Hyperparameters:
        self._check()  # they may have been set after construction
        of_dream = DreamHyperparameters(self.imagination_horizon, self.n_dreams, self.dyna)
        return super().hyperparameters().replace(dream=of_dream)
