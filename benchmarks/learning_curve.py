"""
Train with RL Zoo's own command and draw the learning curve from the monitor files that it leaves.

    python benchmarks/learning_curve.py --algo deepspi --env BreakoutNoFrameskip-v4 --steps 400_000 --name breakout

writes docs/results/breakout.csv (one row per finished game) and docs/results/breakout.png.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
from stable_baselines3.common.monitor import load_results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent.parent / "docs" / "results"
WINDOW = 100  # games in the running mean


def train(algo: str, env: str, steps: int, seed: int, extra: list[str]) -> pd.DataFrame:
    """
    :param algo: name of the algorithm in RL Zoo
    :param env: Gymnasium's id
    :param steps: environment steps
    :param seed: of everything
    :param extra: further arguments for ``rl_zoo3.train``
    :return: one row per finished game: seed, seconds since the start, environment step, score
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rl_zoo3.train", "--algo", algo, "--env", env, "-n", str(steps)]
        command += ["--seed", str(seed), "--eval-freq", "-1", "--log-interval", "20", "-f", folder, *extra]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)
        (run,) = Path(folder, algo).glob(f"{env}_*")
        games = load_results(str(run))
    # monitors count frames or steps, one game after another over all environments: scale to the steps made
    counted = games["l"].cumsum()
    return pd.DataFrame(
        {
            "seed": seed,
            "seconds": games["t"].round(1),
            "step": (counted / counted.iloc[-1] * steps).astype(int),
            "score": games["r"],
        }
    )


def draw(games: pd.DataFrame, title: str, path: Path) -> None:
    """
    :param games: what :func:`train` returns, for all seeds
    :param title: of the picture
    :param path: of the PNG
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for seed, run in games.groupby("seed"):
        axes.scatter(run["step"], run["score"], s=3, alpha=0.15, color="tab:blue")
        mean = run["score"].rolling(WINDOW, min_periods=10).mean()
        axes.plot(run["step"], mean, label=f"seed {seed}, mean of {WINDOW} games")
    axes.set(xlabel="environment steps", ylabel="score of a whole game (unclipped)", title=title)
    axes.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="deepspi")
    parser.add_argument("--env", default="BreakoutNoFrameskip-v4")
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", required=True, help="name of the files in docs/results")
    arguments, extra = parser.parse_known_args()
    runs = [train(arguments.algo, arguments.env, arguments.steps, seed, extra) for seed in arguments.seeds]
    games = pd.concat(runs)
    RESULTS.mkdir(parents=True, exist_ok=True)
    games.to_csv(RESULTS / f"{arguments.name}.csv", index=False)
    draw(games, f"{arguments.algo} on {arguments.env}", RESULTS / f"{arguments.name}.png")
    last = games["score"].tail(WINDOW)
    print(f"Mean score of the last {len(last)} games: {last.mean():.2f}")


if __name__ == "__main__":
    main()
