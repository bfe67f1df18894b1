"""
Show that DeepSPI learns: train with RL Zoo's own command, then score the final policy over 100 episodes.

    python benchmarks/learns.py CartPole-v1  # at least 475 within 100 k steps
    python benchmarks/learns.py Pendulum-v1  # at least -300 within 200 k steps

prints a table, one row per seed, and fails if a seed stays below the target.
"""

import argparse

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("env", choices=["CartPole-v1", "Pendulum-v1"], help="Gymnasium's id")
    parser.add_argument("--steps", type=int, help="of all environments together; otherwise the target's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run each")
    parser.add_argument("--episodes", type=int, default=100, help="over which the score is the mean")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sbx_deepspi import DeepSPI


class Target(NamedTuple):
    """What a policy has to reach, and the steps it has for it."""

    steps: int
    score: float


TARGETS = {"CartPole-v1": Target(100_000, 475.0), "Pendulum-v1": Target(200_000, -300.0)}


def train_and_score(env: str, steps: int, seed: int, n_episodes: int) -> float:
    """
    :param env: Gymnasium's id
    :param steps: environment steps to train for
    :param seed: of the training; the episodes have others
    :param n_episodes: to play with the final, deterministic policy
    :return: mean score
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "deepspi", "--env", env, "-n", str(steps)]
        command += ["--seed", str(seed), "--eval-freq", "-1", "--verbose", "0", "-f", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder, "deepspi").glob(f"*/{env}.zip")
        model = DeepSPI.load(path)
    score, _ = evaluate_policy(model, make_vec_env(env, 10, seed=10_000 + seed), n_eval_episodes=n_episodes)
    return float(score)  # type: ignore[arg-type]


def main() -> None:
    arguments = parser().parse_args()
    target = TARGETS[arguments.env]
    steps = arguments.steps or target.steps
    print(f"{arguments.env}: {steps:,} steps, mean of {arguments.episodes} episodes, target {target.score:g}")
    scores = []
    for seed in arguments.seeds:
        scores.append(train_and_score(arguments.env, steps, seed, arguments.episodes))
        print(f"  seed {seed}: {scores[-1]:8.1f}", flush=True)
    if min(scores) < target.score:
        sys.exit(f"{arguments.env} stayed below {target.score:g}.")


if __name__ == "__main__":
    main()
