"""
DreamSPI on CartPole, with dyna and without, and DeepSPI beside it: learning curves of five seeds each.

    python benchmarks/dream_cartpole.py

Hyperparameters are RL Zoo's for gymnax/CartPole-v1 (rl_zoo_hyperparams/); without dyna, dreams weigh 1. Every reward
is 1, so that ends are all there is to learn from. Writes a CSV after each algorithm, and goes on where it was; then it
draws the curves and prints, for each seed, the best mean of 100 episodes in a row, when a mean of 400 was reached, and
the mean of the last 100.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAMES = ["DreamSPI", "DreamSPI, dyna", "DeepSPI"]


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--algorithms", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"some of {'; '.join(NAMES)}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--steps", type=int, default=300_000, help="of all environments of a run together")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import yaml
from stable_baselines3.common.utils import LinearSchedule

from sbx_deepspi import DeepSPI, DreamSPI, LearningCurve, learn_together, make_jax_env

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
ENV = "gymnax/CartPole-v1"
WINDOW, GOAL = 100, 400
ALGORITHMS: dict[str, tuple[type[DeepSPI], str, dict[str, Any]]] = {
    "DreamSPI": (DreamSPI, "dreamspi", {"dyna": False, "dream_weight": 1.0}),
    "DreamSPI, dyna": (DreamSPI, "dreamspi", {}),
    "DeepSPI": (DeepSPI, "deepspi", {}),
}


def settings(file: str) -> dict[str, Any]:
    """
    :param file: of hyperparameters
    :return: the algorithm's arguments, and ``n_envs`` and ``normalize`` of its environments
    """
    found = yaml.safe_load((ROOT / "rl_zoo_hyperparams" / f"{file}.yml").read_text())[ENV]
    for name, value in found.items():
        if isinstance(value, str) and value.startswith("lin_"):
            found[name] = LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    found["policy_kwargs"] = eval(found.get("policy_kwargs", "None"))
    return {name: value for name, value in found.items() if name != "n_timesteps"}


def curves(algorithm: str, seeds: int, steps: int) -> list[LearningCurve]:
    """
    :param algorithm: of :data:`ALGORITHMS`
    :param seeds: number of runs
    :param steps: of all environments of a run together
    :return: a curve for each seed
    """
    made_from, file, changes = ALGORITHMS[algorithm]
    models = []
    for seed in range(seeds):
        given = settings(file) | changes
        normalize = given.pop("normalize", False)
        kwargs = eval(normalize) if isinstance(normalize, str) else normalize
        env = make_jax_env(ENV, n_envs=given.pop("n_envs"), seed=seed, normalize=kwargs)
        models.append(made_from(given.pop("policy"), env, seed=seed, **given))
    return learn_together(models, steps, progress_bar=True)


def means(curve: LearningCurve) -> pd.DataFrame:
    """
    :param curve: of one run
    :return: steps, and the mean return of the last 100 episodes, at its best, where it first reaches the goal, and at
        about 150 points between
    """
    mean = pd.Series(curve.returns).rolling(WINDOW, min_periods=WINDOW).mean()
    table = pd.DataFrame({"step": curve.timesteps, "return": mean}).dropna()
    shown = np.linspace(0, len(table) - 1, 150).astype(int)
    first = np.flatnonzero(table["return"] >= GOAL)[:1]
    return table.iloc[np.unique([*shown, *first, table["return"].argmax()])]


def main() -> None:
    arguments = parser().parse_args()
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / "dream_cartpole.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["algorithm", "seed", "step", "return"])
    for algorithm in arguments.algorithms:
        if algorithm in set(table.algorithm):
            continue
        of_seeds = [
            means(curve).assign(algorithm=algorithm, seed=seed)
            for seed, curve in enumerate(curves(algorithm, arguments.seeds, arguments.steps))
        ]
        table = pd.concat([table, *of_seeds] if len(table) else of_seeds)
        table.to_csv(path, index=False, float_format="%.5g", columns=["algorithm", "seed", "step", "return"])
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for color, (algorithm, runs) in zip(("tab:blue", "tab:orange", "grey"), table.groupby("algorithm"), strict=False):
        for seed, run in runs.groupby("seed"):
            axes.plot(run.step, run["return"], color=color, linewidth=1, label=algorithm if seed == 0 else None)
    axes.set(xlabel="environment steps", ylabel="mean of 100 episodes", title="CartPole, one line per seed")
    axes.axhline(GOAL, color="grey", linestyle=":", linewidth=1)
    axes.legend(fontsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=100)
    for algorithm, runs in table.groupby("algorithm"):
        for seed, run in runs.groupby("seed"):
            reached = run.step[run["return"] >= GOAL]
            when = f"{int(reached.min()):,} steps" if len(reached) else "never"
            print(
                f"{algorithm}, seed {seed}: best {run['return'].max():.0f}, {GOAL} reached: {when}, last "
                f"{run['return'].iloc[-1]:.0f}"
            )


if __name__ == "__main__":
    main()
