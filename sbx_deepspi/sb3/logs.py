"""What an update writes into SB3's logger. All of it is ASCII: no terminal, file or code page can end a run."""

import numpy as np
from stable_baselines3.common.logger import Logger

from sbx_deepspi.deepspi import UpdateReport
from sbx_deepspi.guarantee.conditions import numbers, verdict, violations
from sbx_deepspi.guarantee.measure import Certificate
from sbx_deepspi.hyperparameters import Hyperparameters
from sbx_deepspi.optimizer import StepSize
from sbx_deepspi.state import RewardStatistics


def record_update(
    logger: Logger,
    report: UpdateReport,
    hyperparameters: Hyperparameters,
    log_std: np.ndarray | None,
    rewards: RewardStatistics,
    n_epochs: int,
    has_termination_model: bool,
) -> None:
    """
    SBX's ``train/`` keys, those of the world model, and those of dreams.

    :param logger: SB3's
    :param report: of the update, on the host
    :param hyperparameters: of the update
    :param log_std: of Box actions; ``None`` for others
    :param rewards: all so far
    :param n_epochs: passes over rollouts made so far, which SB3 calls updates
    :param has_termination_model: whether the world model learns where episodes end
    """
    h, metrics, record = hyperparameters, report.epochs.metrics, logger.record
    if isinstance(h.step_sizes, StepSize):
        record("train/learning_rate", h.step_sizes.learning_rate)
    else:
        record("train/learning_rate", h.step_sizes["policy"].learning_rate)
        record("train/model_learning_rate", h.step_sizes["model"].learning_rate)
        record("dream/learning_rate", h.step_sizes["dreams"].learning_rate)
    record("train/entropy_loss", metrics.entropy_loss.item())
    record("train/policy_gradient_loss", metrics.policy_gradient_loss.item())
    record("train/value_loss", metrics.value_loss.item())
    record("train/approx_kl", metrics.approx_kl.item())
    record("train/clip_fraction", metrics.clip_fraction.item())
    record("train/loss", metrics.loss.item())
    record("train/pg_loss", (metrics.policy_gradient_loss + h.ent_coef * metrics.entropy_loss).item())
    record("train/explained_variance", report.explained_variance.item())
    record("train/n_updates", n_epochs, exclude="tensorboard")
    record("train/clip_range", h.clip_range)
    if h.clip_range_vf is not None:
        record("train/clip_range_vf", h.clip_range_vf)
    if log_std is not None:
        record("train/std", np.exp(log_std).mean().item())
    if h.reward_loss_coef > 0 or h.transition_loss_coef > 0:
        record("world_model/reward_loss", metrics.reward_loss.item())
        record("world_model/transition_loss", metrics.transition_loss.item())
        if has_termination_model:
            record("world_model/termination_loss", metrics.termination_loss.item())
        record("world_model/penalty", penalty(report, h))
        record("world_model/reward_scale", float(rewards.scale))
    if h.gradient_penalty_coef is not None:
        record("world_model/gradient_penalty", metrics.gradient_penalty.item())
    if report.dreams is not None:
        of_policy = report.dreams.epochs.metrics
        record("dream/length", report.dreams.length.item())
        record("dream/reward", report.dreams.reward.item())
        record("dream/entropy_loss", of_policy.entropy_loss.item())
        record("dream/policy_gradient_loss", of_policy.policy_gradient_loss.item())
        record("dream/value_loss", of_policy.value_loss.item())
        record("dream/approx_kl", of_policy.approx_kl.item())
        record("dream/clip_fraction", of_policy.clip_fraction.item())


def penalty(report: UpdateReport, hyperparameters: Hyperparameters) -> float:
    """
    :param report: of the update, on the host
    :param hyperparameters: of the update
    :return: mean(α_R (ℓ_R + ℓ_E) + α_P ℓ_P), in standard deviations of the advantages
    """
    h, metrics = hyperparameters, report.epochs.metrics
    of_rewards = metrics.reward_loss + metrics.termination_loss
    return float(h.reward_loss_coef * of_rewards + h.transition_loss_coef * metrics.transition_loss)


def record_certificate(logger: Logger, certificate: Certificate, gamma: float, all_actions: bool) -> str:
    """
    The ``spi/`` keys. The verdict goes to CSV and JSON alone: it is longer than a cell of the table.

    :param logger: SB3's
    :param certificate: on the host
    :param gamma: γ
    :param all_actions: whether importance ratios are over every action
    :return: the verdict
    """
    failed = violations(certificate, gamma, all_actions)
    for name, number in numbers(certificate, all_actions).items():
        logger.record(f"spi/{name}", number)
    logger.record("spi/certified", float(not failed))
    line = verdict(certificate, failed)
    logger.record("spi/verdict", line, exclude=("stdout", "log", "tensorboard"))
    return line
