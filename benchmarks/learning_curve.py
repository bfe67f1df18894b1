"""
Train on Atari and draw the learning curve: the scores of whole games, unclipped, over environment steps.

    python benchmarks/learning_curve.py --name breakout --steps 300_000

writes docs/results/breakout.csv, one row per finished game and as they finish, and docs/results/breakout.png.
The settings are the paper's, its schedules made for 10 M steps however early the run stops. Ctrl-C stops it, too.
"""

import argparse
import csv
from pathlib import Path
from typing import IO

import matplotlib
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback

from sbx_deepspi import DeepSPI, make_envpool_env

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SCHEDULE_STEPS = 10_000_000
WINDOW = 200  # games in the running mean


class RecordGames(BaseCallback):
    """
    Write a row for each finished game, and stop after some steps.

    :param file: of the CSV
    :param steps: environment steps of all environments together
    """

    def __init__(self, file: IO[str], steps: int) -> None:
        super().__init__()
        self.file, self.steps = file, steps
        self.writer = csv.writer(file)
        self.writer.writerow(["step", "score", "frames", "seconds"])

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                game = info["episode"]
                self.writer.writerow([self.num_timesteps, game["r"], game["l"], round(game["t"], 1)])
        return self.num_timesteps < self.steps

    def _on_rollout_end(self) -> None:
        self.file.flush()


def draw(games: pd.DataFrame, title: str, path: Path) -> None:
    """
    :param games: with columns ``step`` and ``score``
    :param title: of the picture
    :param path: of the PNG
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.scatter(games["step"], games["score"], s=3, alpha=0.15, label="one game")
    mean = games["score"].rolling(WINDOW, min_periods=WINDOW // 4).mean()
    axes.plot(games["step"], mean, color="tab:red", label=f"mean of {WINDOW} games")
    axes.set(xlabel="environment steps", ylabel="score of a whole game, unclipped", title=title)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Breakout-v5", help="EnvPool's or ALE's id")
    parser.add_argument("--steps", type=int, default=300_000, help="when to stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", required=True, help="name of the files in docs/results")
    arguments = parser.parse_args()

    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{arguments.name}.csv"
    model = DeepSPI("CnnPolicy", make_envpool_env(arguments.env, n_envs=128), seed=arguments.seed)
    with path.open("w", newline="") as file:
        try:
            model.learn(SCHEDULE_STEPS, callback=RecordGames(file, arguments.steps))
        except KeyboardInterrupt:
            print("Stopped early.")
    games = pd.read_csv(path)
    draw(games, f"DeepSPI on {arguments.env}, seed {arguments.seed}", path.with_suffix(".png"))
    for name, part in (("first", games.head(WINDOW)), ("last", games.tail(WINDOW))):
        print(f"Mean score of the {name} {len(part)} games: {part['score'].mean():.2f}")
    print(f"{model.num_timesteps:,} steps in {games['seconds'].iloc[-1]:.0f} s")


if __name__ == "__main__":
    main()
