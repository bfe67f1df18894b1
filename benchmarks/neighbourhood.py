"""
CartPole with the neighbourhood as the paper's clip suggests it, and as a projection enforces it.

    python benchmarks/neighbourhood.py

trains both on the same seeds with RL Zoo's hyperparameters, and prints the score of the final policy, the greatest
importance ratio that an update left (over all actions of all the rollout's states), how many updates left the
neighbourhood, and the median part of an update that was kept.
"""

import argparse

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="of all environments of a run together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two runs for each")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import statistics
import time
from typing import NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sbx_deepspi import DeepSPI
from sbx_deepspi.guarantee.neighbourhood import outside_neighbourhood


class Watch(BaseCallback):
    """Note what each update did to the importance ratios."""

    def __init__(self) -> None:
        super().__init__()
        self.ratio_sups: list[float] = []
        self.outside: list[bool] = []
        self.kept: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._note()

    def _on_training_end(self) -> None:
        self._note()

    def _note(self) -> None:
        model = self.model
        if model.certificate is not None:
            clip_range = model.clip_range_schedule(model._current_progress_remaining)
            self.ratio_sups.append(float(model.certificate.importance_ratio.sup))
            self.outside.append(bool(outside_neighbourhood(model.certificate, clip_range)))
            self.kept.append(self.logger.name_to_value.get("spi/kept_fraction", 1.0))


class Result(NamedTuple):
    """One run: see the table."""

    score: float
    ratio_sup: float
    outside: float
    kept: float
    seconds: float


def train(neighbourhood: str, seed: int, steps: int) -> Result:
    """
    :param neighbourhood: ``"clip"`` or ``"project"``
    :param seed: of the training; the scored episodes have others
    :param steps: environment steps
    :return: what came of it
    """
    model = DeepSPI(
        "MlpPolicy", make_vec_env("CartPole-v1", 8, seed=seed), LinearSchedule(1e-3, 0.0, 1.0), n_steps=32,
        batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, clip_range=LinearSchedule(0.2, 0.0, 1.0), ent_coef=0.0,
        seed=seed, neighbourhood=neighbourhood, certificate_freq=1,
    )  # fmt: skip
    watch = Watch()
    start = time.perf_counter()
    model.learn(steps, callback=watch, log_interval=10**9)
    seconds = time.perf_counter() - start
    score, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 10, seed=10_000 + seed), n_eval_episodes=100)
    outside = sum(watch.outside) / len(watch.outside)
    return Result(score, max(watch.ratio_sups), outside, statistics.median(watch.kept), seconds)  # type: ignore[arg-type]


def main() -> None:
    arguments = parser().parse_args()
    print(f"CartPole-v1, {arguments.steps:,} steps")
    print("neighbourhood  seed  score  greatest D_IR  updates outside  kept  seconds")
    for seed in arguments.seeds:
        for neighbourhood in ("clip", "project"):
            run = train(neighbourhood, seed, arguments.steps)
            print(
                f"{neighbourhood:13} {seed:5} {run.score:6.1f} {run.ratio_sup:14.3f} {run.outside:16.0%} "
                f"{run.kept:5.2f} {run.seconds:8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
