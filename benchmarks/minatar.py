"""
Learning curves on MinAtar: DeepSPI, DreamSPI, PPO (our code without a world model), and rejax's PPO beside them.

    python benchmarks/minatar.py --rejax bench/rejax/bin/python

64 environments x 128 steps, 4 epochs of 16 minibatches, a learning rate that stays as it is, two hidden layers of 64
with ReLU. Ours share the first layer and predict with it, rejax's actor and critic share nothing: the "wide" ones have
128 units in that layer, as many as rejax's two have together. alpha is 0.1 and 0.005, of DreamSPI without dyna 1 and
0.05. Writes a CSV after each run, and goes on where it was: what the CSV has is not run again. Then it draws the curves
and prints a table.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAMES = ["ppo", "deepspi", "ppo_wide", "deepspi_wide", "dreamspi", "dreamspi_dyna", "rejax"]


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--game", default="Breakout", help="MinAtar's name")
    parser.add_argument(
        "--algorithms", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    parser.add_argument("--steps", type=int, default=5_000_000, help="of all environments of a run together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3], help="a run for each")
    parser.add_argument("--rejax", metavar="PYTHON", help="the Python that has rejax; without it, rejax is left out")
    parser.add_argument("--name", help="of the CSV and the picture in docs/results; otherwise minatar_GAME")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import csv
import json
import subprocess
from typing import Any

import jax
import matplotlib
import numpy as np
import pandas as pd

from sbx_deepspi import DeepSPI, DreamSPI, LearningCurve, learn_together, make_jax_env

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N_POINTS = 50
SETTINGS: dict[str, Any] = dict(n_steps=128, batch_size=512, n_epochs=4, ent_coef=0.01)
NETWORKS: dict[str, Any] = dict(net_arch=[64], activation_fn=jax.nn.relu)
WIDE = dict(features_extractor_kwargs=dict(features_dim=128))
"""As many units in the first layer as rejax's two networks have together."""
PPO = dict(reward_loss_coef=0.0, transition_loss_coef=0.0)
DEEPSPI = dict(reward_loss_coef=0.1, transition_loss_coef=0.005)
DETERMINISTIC = dict(transition_density="deterministic")
DREAMS = DETERMINISTIC | dict(optimizer_kwargs=dict(eps=1e-8))  # with 1e-5 the termination model may stay at 0
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": PPO,
    "deepspi": DEEPSPI,
    "ppo_wide": PPO | dict(policy_kwargs=WIDE),
    "deepspi_wide": DEEPSPI | dict(policy_kwargs=WIDE | DETERMINISTIC),
    "dreamspi": dict(
        reward_loss_coef=1.0, transition_loss_coef=0.05, policy_kwargs=DREAMS | dict(lipschitz_constant=None)
    ),
    "dreamspi_dyna": DEEPSPI | dict(dyna=True, policy_kwargs=DREAMS),
}
LABELS = {
    "ppo": "PPO (ours, no world model), 64 latent dimensions",
    "deepspi": "DeepSPI, 64, mixture",
    "ppo_wide": "PPO (ours), 128",
    "deepspi_wide": "DeepSPI, 128, deterministic",
    "dreamspi": "DreamSPI, 64, deterministic, plain layers",
    "dreamspi_dyna": "DreamSPI with dyna, 64, deterministic",
    "rejax": "rejax's PPO",
}


def ours(algorithm: str, game: str, steps: int, seed: int, learning_rate: float) -> list[tuple[int, float]]:
    """
    :param algorithm: of :data:`ALGORITHMS`
    :param game: MinAtar's name
    :param steps: of all environments together
    :param seed: of the run
    :param learning_rate: that stays as it is
    :return: (timesteps, mean return of the episodes that ended since the point before)
    """
    settings = SETTINGS | ALGORITHMS[algorithm]
    settings["policy_kwargs"] = NETWORKS | settings.get("policy_kwargs", {})
    env = make_jax_env(f"gymnax/{game}-MinAtar", n_envs=64, seed=seed)
    algorithm_class: type[DeepSPI] = DeepSPI
    if algorithm.startswith("dreamspi"):
        algorithm_class, settings["model_learning_rate"] = DreamSPI, learning_rate
    model = algorithm_class("MlpPolicy", env, learning_rate=learning_rate, seed=seed, **settings)
    (curve,) = learn_together([model], steps, progress_bar=True)
    return points(curve, steps)


def points(curve: LearningCurve, steps: int) -> list[tuple[int, float]]:
    """
    :param curve: of one run
    :param steps: it had
    :return: its mean returns in :data:`N_POINTS` parts
    """
    edges = np.linspace(0, steps, N_POINTS + 1)
    part = np.clip(np.searchsorted(edges, curve.timesteps) - 1, 0, N_POINTS - 1)
    return [(int(edges[i + 1]), float(curve.returns[part == i].mean())) for i in range(N_POINTS) if (part == i).any()]


def rejaxs(python: str, game: str, steps: int, seed: int, learning_rate: float) -> list[tuple[int, float]]:
    """
    :param python: that has rejax
    :param game: MinAtar's name
    :param steps: of all environments together
    :param seed: of the run
    :param learning_rate: that stays as it is
    :return: (timesteps, mean return of 128 episodes that are played then)
    """
    settings = dict(
        env=f"{game}-MinAtar", n_envs=64, n_steps=128, batch_size=512, n_epochs=4, learning_rate=learning_rate,
        steps=steps, seed=seed, n_points=N_POINTS // 2, activation="relu", evaluates=True,
    )  # fmt: skip
    command = [python, str(Path(__file__).with_name("rejax_ppo.py")), json.dumps(settings)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return list(zip(result["timesteps"], result["returns"], strict=True))


def draw(path: Path, game: str) -> None:
    """
    :param path: of the CSV; the picture lies beside it
    :param game: MinAtar's name
    """
    rows = pd.read_csv(path)
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for (algorithm, rate), runs in rows.groupby(["algorithm", "learning_rate"], sort=False):
        line = None
        for _, run in runs.groupby("seed"):
            color = None if line is None else line.get_color()
            label = f"{LABELS[algorithm]}, rate {rate:g}" if line is None else None
            (line,) = axes.plot(run.timesteps / 1e6, run["return"], color=color, label=label, linewidth=1)
    axes.set(xlabel="million steps", ylabel="points per episode", title=f"MinAtar {game}, one line per seed")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=100)


def main() -> None:
    arguments = parser().parse_args()
    path = RESULTS / f"{arguments.name or 'minatar_' + arguments.game.lower()}.csv"
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["algorithm", "learning_rate", "seed"])
    finished = set(zip(done.algorithm, done.learning_rate, done.seed, strict=True))
    for seed in arguments.seeds:
        for rate in arguments.learning_rates:
            for algorithm in arguments.algorithms:
                if (algorithm, rate, seed) in finished or (algorithm == "rejax" and not arguments.rejax):
                    continue
                if algorithm == "rejax":
                    curve = rejaxs(arguments.rejax, arguments.game, arguments.steps, seed, rate)
                else:
                    curve = ours(algorithm, arguments.game, arguments.steps, seed, rate)
                is_new = not path.exists()
                with path.open("a", newline="") as file:
                    writer = csv.writer(file)
                    if is_new:
                        writer.writerow(["algorithm", "learning_rate", "seed", "timesteps", "return"])
                    writer.writerows([algorithm, rate, seed, steps, round(mean, 3)] for steps, mean in curve)
                print(f"{algorithm}, rate {rate:g}, seed {seed}: {curve[-1][1]:.1f} at the end", flush=True)
    draw(path, arguments.game)
    rows = pd.read_csv(path)
    longest = rows.groupby(["algorithm", "learning_rate", "seed"]).timesteps.transform("max")
    last = rows[rows.timesteps > 0.9 * longest]
    print(last.groupby(["algorithm", "learning_rate", "seed"])["return"].mean().unstack().round(1).to_string())


if __name__ == "__main__":
    main()
