"""
How the speed of training changes with the number of environments, of actions, and of steps in a rollout.

    python benchmarks/scaling.py --name scaling

Trains on random images, which cost nothing to make: what is left is DeepSPI's own. One rollout and one update count,
compilation excluded, the median of a few; everything else as by default.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="rollouts and updates that count")
    parser.add_argument("--name", required=True, help="of the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import csv
import statistics
import time
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from gymnasium import spaces

from sbx_deepspi import DeepSPI
from sbx_deepspi.envs.batched import BatchedVecEnv
from sbx_deepspi.rollout import automatic_n_steps

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPISODE_LENGTH = 200
BATCH_SIZE = 256
# what changes → (environments, actions, steps), the others as in the middle of the range
GRID = {
    "environments": [(n, 4, automatic_n_steps(n, BATCH_SIZE)) for n in (8, 32, 128, 256, 512, 1024)],
    "actions": [(128, n, 8) for n in (2, 4, 6, 9, 18)],
    "steps": [(128, 4, n) for n in (2, 4, 8, 16, 64)],
}


class RandomImages(BatchedVecEnv):
    """
    Stacks of four random 84 × 84 images, rewards of 0 and 1, episodes of :data:`EPISODE_LENGTH` steps.

    :param n_envs: number of environments
    :param n_actions: of each
    """

    render_mode = None

    def __init__(self, n_envs: int, n_actions: int) -> None:
        super().__init__(n_envs, spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(n_actions))
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (4, n_envs, 4, 84, 84), np.uint8)
        self.rewards = rng.integers(0, 2, (64, n_envs)).astype(np.float32)
        self.steps = rng.integers(0, EPISODE_LENGTH, n_envs)
        self.n_steps = 0

    def reset(self) -> np.ndarray:
        return self.images[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.n_steps += 1
        self.steps += 1

    def step_wait(self) -> Any:
        observations, dones = self.images[self.n_steps % 4], self.steps == EPISODE_LENGTH
        self.steps[dones] = 0
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = self.images[0, i]
        return observations, self.rewards[self.n_steps % 64], dones, infos

    def close(self) -> None:
        pass


def steps_per_second(n_envs: int, n_actions: int, n_steps: int, rounds: int) -> float:
    """
    :param n_envs: number of environments
    :param n_actions: of each
    :param n_steps: of each in a rollout
    :param rounds: rollouts and updates that count
    :return: environment steps per second of training
    """
    model = DeepSPI("CnnPolicy", RandomImages(n_envs, n_actions), n_steps=n_steps, batch_size=BATCH_SIZE, seed=0)
    times = []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        model.learn(n_envs * n_steps, reset_num_timesteps=False)
        if turn:
            times.append(time.perf_counter() - start)
    return n_envs * n_steps / statistics.median(times)


def draw(speeds: pd.DataFrame, path: Path) -> None:
    """
    :param speeds: a row per setting
    :param path: of the PNG
    """
    figure, axes = plt.subplots(1, len(GRID), figsize=(4 * len(GRID), 3.2), layout="constrained", sharey=True)
    columns = {"environments": "n_envs", "actions": "n_actions", "steps": "n_steps"}
    for axis, (changes, column) in zip(axes, columns.items(), strict=True):
        rows = speeds[speeds["changes"] == changes]
        axis.plot(rows[column], rows["steps_per_second"], "o-", color="tab:red")
        axis.set(xscale="log", xlabel=changes)
        axis.set_xticks(rows[column], [f"{number:.0f}" for number in rows[column]], minor=False)
        axis.minorticks_off()
    axes[0].set(ylabel="environment steps per second", ylim=(0, 1.1 * speeds["steps_per_second"].max()))
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser().parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"{arguments.name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["changes", "n_envs", "n_actions", "n_steps", "steps_per_second"])
        for changes, settings in GRID.items():
            for setting in settings:
                speed = steps_per_second(*setting, arguments.rounds)
                print("{:5} environments, {:2} actions, {} steps: {:.0f} steps/s".format(*setting, speed))
                writer.writerow([changes, *setting, f"{speed:.1f}"])
    draw(pd.read_csv(path), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
