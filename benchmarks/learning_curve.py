"""
Train on Atari and draw the learning curve: the scores of whole games, unclipped, over environment steps.

    python benchmarks/learning_curve.py --name breakout --algorithm deepspi --steps 1_000_000
    python benchmarks/learning_curve.py --name breakout --algorithm sbx_ppo --steps 1_000_000

each writes docs/results/breakout_ALGORITHM.csv, one row per finished game and as they finish, and draws all algorithms
that have one into docs/results/breakout.png. The settings are the paper's, for all of them, the learning rate's
schedule made for 10 M steps however early the run stops. Ctrl-C stops it, too.

SBX's PPO trains several times faster here than as it stands, because its convolutions are DeepSPI's
(:func:`~sbx_deepspi.networks.backend.convolution`): the same function of the same parameters.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import IO, Any

import flax.linen as nn
import jax
import matplotlib
import numpy as np
import pandas as pd
import sbx
from sbx.common.jax_layers import NatureCNN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi import DeepSPI, make_envpool_env
from sbx_deepspi.networks.backend import convolution

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SCHEDULE_STEPS = 10_000_000
WINDOW = 200  # games in the running mean
COLOURS = {"deepspi": "tab:red", "sbx_ppo": "tab:gray"}


class Conv(nn.Module):
    """
    What SBX asks of flax's layer of this name, with its parameters and their initialisation.

    :param features: channels out
    :param kernel_size: of a square kernel
    :param strides: in both directions
    """

    features: int
    kernel_size: int
    strides: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """
        :param images: shape (B, H, W, C)
        :return: VALID convolution
        """
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return convolution(images, kernel, self.strides) + self.param("bias", nn.initializers.zeros, (self.features,))


class FastNatureCNN(NatureCNN):
    """SBX's own, with faster convolutions."""

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, C, H, W), uint8
        :return: shape (B, n_features)
        """
        maps = observations.transpose(0, 2, 3, 1).astype(np.float32) / 255.0
        for layer in (Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1)):
            maps = self.activation_fn(layer(maps))
        return self.activation_fn(nn.Dense(self.n_features)(maps.reshape(len(maps), -1)))


def make_deepspi(env: VecEnv, seed: int) -> DeepSPI:
    """
    :param env: Atari
    :param seed: of everything
    :return: DeepSPI with its defaults, which are the paper's
    """
    return DeepSPI("CnnPolicy", env, seed=seed)


def make_sbx_ppo(env: VecEnv, seed: int, features_extractor_class: type[NatureCNN] = FastNatureCNN) -> sbx.PPO:
    """
    :param env: Atari
    :param seed: of everything
    :param features_extractor_class: the network
    :return: SBX's PPO with DeepSPI's settings
    """
    return sbx.PPO(
        "CnnPolicy",
        env,
        n_steps=8,
        batch_size=256,
        n_epochs=4,
        learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0),
        clip_range=0.1,
        ent_coef=0.01,
        # no hidden layers, which is SBX's default for its own NatureCNN alone
        policy_kwargs={"features_extractor_class": features_extractor_class, "net_arch": []},
        seed=seed,
    )


ALGORITHMS = {"deepspi": make_deepspi, "sbx_ppo": make_sbx_ppo}


class RecordGames(BaseCallback):
    """
    Write a row for each finished game, show progress, and stop after some steps.

    :param file: of the CSV
    :param steps: environment steps of all environments together
    """

    def __init__(self, file: IO[str], steps: int) -> None:
        super().__init__()
        self.file, self.steps = file, steps
        self.writer = csv.writer(file)
        self.writer.writerow(["step", "score", "frames", "seconds"])
        self.start = time.perf_counter()
        self.last_scores: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                game = info["episode"]
                self.writer.writerow([self.num_timesteps, game["r"], game["l"], round(game["t"], 1)])
                self.last_scores = [*self.last_scores, game["r"]][-WINDOW:]
        return self.num_timesteps < self.steps

    def _on_rollout_end(self) -> None:
        self.file.flush()
        if self.num_timesteps % 10_240 < 1_024 and self.last_scores:
            speed = self.num_timesteps / (time.perf_counter() - self.start)
            mean = np.mean(self.last_scores)
            print(f"{self.num_timesteps:,} steps, {speed:.0f} steps/s, mean score {mean:.2f}", flush=True)


def draw(runs: dict[str, pd.DataFrame], title: str, path: Path) -> None:
    """
    :param runs: algorithm → its games, with columns ``step`` and ``score``
    :param title: of the picture
    :param path: of the PNG
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for algorithm, games in runs.items():
        axes.scatter(games["step"], games["score"], s=3, alpha=0.15, color=COLOURS[algorithm])
        mean = games["score"].rolling(WINDOW, min_periods=WINDOW // 4).mean()
        axes.plot(games["step"], mean, color=COLOURS[algorithm], label=f"{algorithm}, mean of {WINDOW} games")
    axes.set(xlabel="environment steps", ylabel="score of a whole game, unclipped", title=title)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="deepspi")
    parser.add_argument("--env", default="Breakout-v5", help="EnvPool's or ALE's id")
    parser.add_argument("--steps", type=int, default=1_000_000, help="when to stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", required=True, help="of the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files")
    arguments = parser.parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{arguments.name}_{arguments.algorithm}.csv"
    env = make_envpool_env(arguments.env, n_envs=128, seed=arguments.seed)
    model: BaseAlgorithm = ALGORITHMS[arguments.algorithm](env, arguments.seed)
    with path.open("w", newline="") as file:
        record: Any = RecordGames(file, arguments.steps)
        try:
            model.learn(SCHEDULE_STEPS, callback=record)
        except KeyboardInterrupt:
            print("Stopped early.")
    print(f"{model.num_timesteps:,} steps in {time.perf_counter() - record.start:.0f} s")
    runs = {}
    for algorithm in ALGORITHMS:
        path = arguments.results / f"{arguments.name}_{algorithm}.csv"
        if path.is_file():
            runs[algorithm] = games = pd.read_csv(path)
            first, last = (part["score"].mean() for part in (games.head(WINDOW), games.tail(WINDOW)))
            print(f"{algorithm}: mean score of the first {WINDOW} games {first:.2f}, of the last {last:.2f}")
    title = f"{arguments.env}, seed {arguments.seed}"
    draw(runs, title, (arguments.results / f"{arguments.name}.png"))


if __name__ == "__main__":
    main()
