"""
The paper's toy result: two corridors that look alike, and three ways to learn what to do in them.

    python examples/confounding_grid.py --name confounding_grid

trains PPO (DeepSPI with α = 0), DeepMDP and DeepSPI on five seeds each, and draws the exact value of the policy and how
far apart the latent states of the two choice cells are: means of 10 updates, their median and range over the seeds.
"projected" is DeepSPI with neighbourhood="project"; "DreamSPI" and "DreamSPI, dyna" learn their policy in the latent
model, with settings of their own. NAME.csv and NAME.png go to docs/results. Beside the value of the policy the CSV has
that of its most likely actions.
--latent 8x2 makes z of 8 one-hot vectors of 2 classes, --latent map leaves it the encoder's 7 x 7 x 64 map.

The grid has 16 different frames. Each is encoded once for all transitions that go through the networks at a time, and
its latent state is picked by the state's number, which is exact and saves half of the work and more.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAMES = ["PPO", "DeepMDP", "DeepSPI", "projected", "DreamSPI", "DreamSPI, dyna"]


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--name", required=True, help="of the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    parser.add_argument(
        "--algorithms", nargs="+", choices=NAMES, default=NAMES[:3], metavar="NAME", help=f"some of {'; '.join(NAMES)}"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--steps", type=int, default=300_000, help="of all environments of a run together")
    parser.add_argument("--latent", default="8x2", help="map, or VARIABLESxCLASSES")
    parser.add_argument("--reward-loss-coef", type=float, default=1.0, metavar="ALPHA", help="α_R, in [0, 1]")
    parser.add_argument("--transition-loss-coef", type=float, default=0.1, metavar="ALPHA", help="α_P, in [0, 1]")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import pandas as pd
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import LinearSchedule
from tqdm import tqdm

from sbx_deepspi import ConfoundingGridVecEnv, DeepMDP, DeepSPI, DreamSPI
from sbx_deepspi.envs.confounding_grid import make_maze
from sbx_deepspi.sb3.grid import GridPolicy, look, measure

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MAZE = make_maze()
STATES = np.arange(len(MAZE.cells))
GAMMA = 0.99
# name → class, arguments, and arguments of the policy
ALGORITHMS: dict[str, tuple[type[DeepSPI], dict[str, Any], dict[str, Any]]] = {
    "PPO": (DeepSPI, dict(reward_loss_coef=0.0, transition_loss_coef=0.0), {}),
    "DeepMDP": (DeepMDP, {}, {}),
    "DeepSPI": (DeepSPI, {}, {}),
    "projected": (DeepSPI, dict(neighbourhood="project"), {}),
    # in dreams the reward model has to tell 5 from -47 between latent states that lie close together
    "DreamSPI": (
        DreamSPI,
        dict(
            learning_rate=LinearSchedule(4e-5, 0.0, 1.0), model_learning_rate=LinearSchedule(4e-4, 0.0, 1.0),
            ent_coef=0.05,
        ),
        dict(lipschitz_constant=4.0, optimizer_kwargs=dict(eps=1e-8)),
    ),
    # Real data outweigh dreams, and the policy explores until the model knows the cells apart. A low limit of the norm,
    # as DeepSPI's policy has beside a model with larger gradients: the rare -47 would teach it too soon never to go up
    "DreamSPI, dyna": (
        DreamSPI,
        dict(
            dyna=True, dream_weight=0.1, learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0),
            model_learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0), max_grad_norm=0.05,
        ),
        dict(lipschitz_constant=None, optimizer_kwargs=dict(eps=1e-8)),
    ),
}  # fmt: skip
ENTROPY = {"DreamSPI, dyna": LinearSchedule(0.052, 0.002, 1.0)}  # the coefficient over training, where it changes
VALUES = {"right": 4.8035, "up at the top": 8.0103}


class NumberedGrid(ConfoundingGridVecEnv):
    """The grid with its states' numbers in the place of their frames."""

    def __init__(self, n_envs: int, seed: int) -> None:
        super().__init__(n_envs, seed=seed)
        self.observation_space = spaces.Discrete(len(STATES))

    def _observe(self, states: np.ndarray) -> np.ndarray:
        return states


class Watch(BaseCallback):
    """
    After each update, note the exact value of the stochastic policy, and how far apart the choice cells are.

    :param entropy: the entropy coefficient as a function of the remaining progress; ``None``: it stays as it is
    """

    def __init__(self, entropy: Schedule | None) -> None:
        super().__init__()
        self.entropy = entropy
        self.rows: list[dict[str, float]] = []

    def _on_rollout_start(self) -> None:
        if self.entropy is not None:
            self.model.ent_coef = self.entropy(self.model._current_progress_remaining)
        policy = self.model.policy
        log_policy, latents = jax.device_get(look(policy.programs.networks, policy.learner.parameters, STATES))
        ratio_sup = 1.0
        if self.num_timesteps:  # of the update that has just been made, whether it has a certificate or not
            ratios = self.model.policy.programs.importance_ratios
            ratio_sup = float(ratios(self.model.policy.learner.parameters, self.model.rollout_buffer).sup)
        row = {"step": self.num_timesteps, "ratio_sup": ratio_sup}
        self.rows.append(row | measure(MAZE, log_policy, latents, GAMMA))

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _on_step(self) -> bool:
        return True


class Run(NamedTuple):
    """One training run; see the command line."""

    algorithm: str
    seed: int
    steps: int
    latent: str
    reward_loss_coef: float
    transition_loss_coef: float

    def train(self) -> pd.DataFrame:
        """
        :return: what :class:`Watch` noted
        """
        policy_kwargs: dict[str, Any] = {}
        if self.latent != "map":
            n_variables, n_classes = map(int, self.latent.split("x"))
            policy_kwargs = dict(transition_density="categorical", n_variables=n_variables, n_classes=n_classes)
        coefs = dict(reward_loss_coef=self.reward_loss_coef, transition_loss_coef=self.transition_loss_coef)
        algorithm, changes, of_policy = ALGORITHMS[self.algorithm]
        model = algorithm(
            GridPolicy, NumberedGrid(128, self.seed), gamma=GAMMA, policy_kwargs=policy_kwargs | of_policy,
            seed=self.seed, **coefs | changes,
        )  # fmt: skip
        watch = Watch(ENTROPY.get(self.algorithm))
        model.learn(self.steps, callback=watch)
        return pd.DataFrame(watch.rows).assign(algorithm=self.algorithm, seed=self.seed)


def draw(curves: pd.DataFrame, title: str, path: Path) -> None:
    """
    :param curves: with columns ``algorithm``, ``seed``, ``step``, ``value`` and ``distance``
    :param title: of the picture
    :param path: of the PNG
    """
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6.5), sharex=True, layout="constrained")
    for algorithm, runs in curves.groupby("algorithm", sort=False):
        for axes, column in ((top, "value"), (bottom, "distance")):
            seeds = runs.pivot_table(index="step", columns="seed", values=column).rolling(10, min_periods=1).mean()
            (line,) = axes.plot(seeds.index, seeds.median(axis=1), label=f"{algorithm}: median")
            axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=line.get_color(), alpha=0.15)
    for name, value in VALUES.items():
        top.axhline(value, color="grey", linestyle=":", linewidth=1)
        top.annotate(name, (0, value), va="bottom", color="grey", fontsize=8)
    top.set(title=title, ylabel="exact value at I")
    top.legend(loc="lower right")
    bottom.set(xlabel="environment steps", ylabel="‖φ(top !) − φ(bottom !)‖")
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = parser().parse_args()
    runs = [
        Run(
            algorithm, seed, arguments.steps, arguments.latent, arguments.reward_loss_coef,
            arguments.transition_loss_coef,
        )
        for seed in range(arguments.seeds)
        for algorithm in arguments.algorithms
    ]  # fmt: skip
    start = time.perf_counter()
    arguments.results.mkdir(parents=True, exist_ok=True)
    curves = []
    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        futures = {pool.submit(run.train): run for run in runs}
        for future in tqdm(as_completed(futures), total=len(runs), desc="runs"):
            curves.append(future.result())
            # nothing is lost if the rest is stopped
            pd.concat(curves).to_csv(arguments.results / f"{arguments.name}.csv", index=False, float_format="%.5g")
    table = pd.concat(curves).sort_values(["algorithm", "seed", "step"])
    latent = "7 × 7 × 64 latent" if arguments.latent == "map" else f"{arguments.latent.replace('x', ' × ')} latent"
    title = (
        f"Confounding grid, {latent}, α_R = {arguments.reward_loss_coef:g}, α_P = {arguments.transition_loss_coef:g}"
    )
    draw(table, title, arguments.results / f"{arguments.name}.png")
    last = table[table.step == table.step.max()]
    print(
        last.pivot(index="seed", columns="algorithm", values=["value", "most_likely_value", "distance"])
        .round(3)
        .to_string()
    )
    print(f"{len(runs)} runs in {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
