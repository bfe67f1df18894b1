"""
Train for long while the environments fail now and then, and watch memory and open files.

    python benchmarks/soak.py --minutes 30

trains on CartPole and then on Breakout (ALE), for so many minutes each, in environments that at random raise, hang,
return NaN, or change the shape of their observations. After each fault the last checkpoint has to load, and training
goes on with new environments. It writes docs/results/soak.csv, soak_faults.csv and soak.png.
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
    parser.add_argument("--minutes", type=float, default=30.0, help="for each game")
    parser.add_argument(
        "--games", nargs="+", default=["CartPole-v1", "BreakoutNoFrameskip-v4"], help="ids of Gymnasium or ALE"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--mean-delay", type=float, default=80.0, help="seconds until an environment fails")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ale_py
import gymnasium as gym
import jax
import matplotlib
import numpy as np
import pandas as pd
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sbx_deepspi import CheckpointCallback, DeepSPI
from sbx_deepspi.envs import TimeoutSubprocVecEnv

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FAULTS = {
    "raise": (ConnectionError, "has ended (exit code 1)"),
    "hang": (TimeoutError, "has not answered for"),
    "nan": (ValueError, "returned a non-finite"),
    "shape": (ValueError, "returned an observation of shape"),
}
TIMEOUT = 10.0  # seconds after which an environment hangs
N_ENVS = 4
SAMPLE_INTERVAL = 2.0  # seconds between two looks at memory


class Faulty(gym.Wrapper):
    """
    An environment that fails once, after a random time.

    :param env: the environment
    :param fault: how it fails, a key of :data:`FAULTS`
    :param delay: in seconds, from its first step
    """

    start: float | None = None

    def __init__(self, env: gym.Env, fault: str, delay: float) -> None:
        super().__init__(env)
        self.fault, self.delay = fault, delay

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self.start = self.start or time.monotonic()
        if time.monotonic() > self.start + self.delay:
            match self.fault:
                case "raise":
                    raise RuntimeError("a fault on purpose")
                case "hang":
                    time.sleep(1e6)
                case "nan":
                    reward = np.nan
                case "shape":
                    observation = observation[:-1]
        return observation, reward, *rest


def make_env(game: str, fault: str, delay: float) -> Callable[[], gym.Env]:
    def make() -> gym.Env:
        gym.register_envs(ale_py)
        env = Monitor(gym.make(game))
        return Faulty(AtariWrapper(env) if "NoFrameskip" in game else env, fault, delay)

    return make


def make_envs(game: str, dice: random.Random, mean_delay: float) -> VecEnv:
    fns = [make_env(game, dice.choice(list(FAULTS)), mean_delay * dice.expovariate(1.0)) for _ in range(N_ENVS)]
    processes = TimeoutSubprocVecEnv(fns, timeout=120.0)  # the first of them waits for the imports of all
    processes.timeout = TIMEOUT
    for remote in processes.remotes:
        remote.timeout = TIMEOUT
    env: VecEnv = processes
    return VecFrameStack(env, 4) if "NoFrameskip" in game else env


class Watch(BaseCallback):
    """
    Take note of memory and open files, and stop at some time.

    :param rows: gets a row per sample
    :param game: of the row
    :param end: when to stop, as of ``time.monotonic``
    """

    def __init__(self, rows: list[dict[str, Any]], game: str, end: float) -> None:
        super().__init__()
        self.rows, self.game, self.end = rows, game, end
        self.start = self.last = time.monotonic()

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self.last > SAMPLE_INTERVAL:
            self.last = now
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.rows.append(
                {
                    "game": self.game,
                    "minutes": (now - self.start) / 60,
                    "steps": self.num_timesteps,
                    "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                    "open_files": len(os.listdir("/proc/self/fd")),
                }
            )
        return now < self.end


def soak(
    game: str, minutes: float, dice: random.Random, mean_delay: float, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    :param game: id of the environment
    :param minutes: to train
    :param dice: draws the faults
    :param mean_delay: seconds until an environment fails
    :param folder: of the checkpoints
    :return: samples of memory and open files, and the faults
    """
    env = make_envs(game, dice, mean_delay=float("inf"))
    policy = "CnnPolicy" if "NoFrameskip" in game else "MlpPolicy"
    model = DeepSPI(policy, env, n_steps=64, batch_size=64, n_epochs=2, learning_rate=2.5e-4, seed=0)
    model.learn(64 * N_ENVS, callback=CheckpointCallback(64, folder))  # everything compiled, a first checkpoint
    env.close()
    env = make_envs(game, dice, mean_delay)
    model.set_env(env)
    rows: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    watch = Watch(rows, game, time.monotonic() + 60 * minutes)
    while time.monotonic() < watch.end:
        try:
            callbacks = [watch, CheckpointCallback(64, folder, keep=3)]
            model.learn(10**9, callback=callbacks, reset_num_timesteps=False)
        except (OSError, ValueError) as error:
            kind = next(
                name
                for name, (class_, sentence) in FAULTS.items()
                if isinstance(error, class_) and sentence in str(error)
            )
            faults.append({"game": game, "minutes": (time.monotonic() - watch.start) / 60, "fault": kind})
            print(f"{game}, minute {faults[-1]['minutes']:.1f}, {model.num_timesteps:,} steps: {error}", flush=True)
            env.close()
            # the checkpoint is from an earlier update; what was learned since is not lost, the model being whole
            latest = DeepSPI.load(folder / "rl_model_latest.zip")
            assert 0 < latest.num_timesteps <= model.num_timesteps
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(latest.policy.learner.parameters))
            env = make_envs(game, dice, mean_delay)
            model.set_env(env)
    env.close()
    latest = DeepSPI.load(folder / "rl_model_latest.zip")
    assert 0 < latest.num_timesteps <= model.num_timesteps  # less, if the time ran out in a fault
    samples = pd.DataFrame(rows, columns=["game", "minutes", "steps", "memory_mb", "open_files"])
    return samples, pd.DataFrame(faults, columns=["game", "minutes", "fault"])


def draw(samples: pd.DataFrame, faults: pd.DataFrame, path: Path) -> None:
    """
    :param samples: with columns ``game``, ``minutes``, ``memory_mb`` and ``open_files``
    :param faults: with columns ``game``, ``minutes`` and ``fault``
    :param path: of the PNG
    """
    figure, grid = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for (game, rows), color in zip(samples.groupby("game", sort=False), ("tab:blue", "tab:orange"), strict=False):
        for axes, column in zip(grid, ("memory_mb", "open_files"), strict=True):
            axes.plot(rows["minutes"], rows[column], color=color, label=game)
        grid[0].plot(
            faults.loc[faults["game"] == game, "minutes"], [0] * (faults["game"] == game).sum(), "|", color=color
        )
    grid[0].set(ylabel="resident memory, MB\n(ticks: faults)", ylim=(0, None))
    grid[1].set(xlabel="minutes", ylabel="open files", ylim=(0, None))
    grid[0].legend(loc="lower right")
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser().parse_args()

    # every environment's process imports this file: it forks from one that has imported the rest already
    multiprocessing.set_forkserver_preload(["ale_py", "matplotlib.pyplot", "pandas", "sbx_deepspi"])
    dice = random.Random(arguments.seed)
    runs = []
    for game in arguments.games:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(soak(game, arguments.minutes, dice, arguments.mean_delay, Path(folder)))
    samples, faults = (pd.concat(tables) for tables in zip(*runs, strict=True))
    arguments.results.mkdir(parents=True, exist_ok=True)
    samples.round({"minutes": 3, "memory_mb": 1}).to_csv(arguments.results / "soak.csv", index=False)
    faults.round({"minutes": 3}).to_csv(arguments.results / "soak_faults.csv", index=False)
    draw(samples, faults, arguments.results / "soak.png")
    print(faults.groupby(["game", "fault"]).size().to_string())
    for game, rows in samples.groupby("game", sort=False):
        settled = rows[rows["minutes"] > rows["minutes"].max() / 3]
        print(
            f"{game}: {len(rows)} samples, memory from {settled['memory_mb'].iloc[0]:.0f} MB (after a third "
            f"of the time) to {settled['memory_mb'].iloc[-1]:.0f} MB, open files from "
            f"{settled['open_files'].iloc[0]} to {settled['open_files'].iloc[-1]}"
        )


if __name__ == "__main__":
    main()
