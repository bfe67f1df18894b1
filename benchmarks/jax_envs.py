"""
Steps a second on environments inside jit, beside rejax's PPO, and beside the same DeepSPI on Gymnasium's CartPole.

    make bench-jax                                # all, on an idle machine
    python benchmarks/jax_envs.py --rejax bench/rejax/bin/python
    python benchmarks/jax_envs.py --only sweep    # from 8 to 4,096 environments
    python benchmarks/jax_envs.py --only gpu      # Breakout, 4,096 environments

All take turns, a process for each, in every round; figures are medians of the rounds, ratios are taken within a round.
Rounds are added to those that the CSV has.
What is compiled is not kept from process to process; compiling is timed apart. 4 epochs, minibatches of 512, two hidden
layers of 64 with ReLU. Ours share the first one; rejax's actor and critic share nothing. "ppo_wide" has 128 units in
the first layer, as many as rejax's two have together. "at_most" in the CSV: steps a second if the update's products of
matrices, at the rate of large ones measured in the same round, were all there is to do.
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
    parser.add_argument("--rejax", metavar="PYTHON", help="the Python that has rejax; without it, rejax is left out")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument(
        "--only", choices=["compare", "sweep", "gpu"], help="one of the measurements; otherwise compare and sweep"
    )
    parser.add_argument("--name", default="jax_envs", help="of the CSVs and the picture in docs/results")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import pandas as pd

SETTINGS = {"64 x 128": (64, 128), "1024 x 16": (1024, 16)}
GAMES = {"Breakout-MinAtar": (400, 3), "CartPole-v1": (4, 2)}  # observed numbers, actions
VARIANTS: dict[str, dict[str, Any]] = {
    "ppo": dict(reward_loss_coef=0.0, transition_loss_coef=0.0),
    "ppo_wide": dict(
        reward_loss_coef=0.0,
        transition_loss_coef=0.0,
        policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=128)),
    ),
    "deepspi": {},
    "deepspi_deterministic": dict(policy_kwargs=dict(transition_density="deterministic")),
}
N_EPOCHS = 4
SECONDS = 5.0  # of a measurement, about


def measure_ours(variant: str, env_id: str, n_envs: int, n_steps: int, seconds: float) -> dict[str, float]:
    """
    :param variant: of :data:`VARIANTS`
    :param env_id: of :func:`make_jax_env`, or ``"host"``: Gymnasium's CartPole in a ``DummyVecEnv``
    :param n_envs: number of environments
    :param n_steps: of each in a rollout
    :param seconds: to measure for, about
    :return: seconds to compile, and steps a second
    """
    import jax
    from stable_baselines3.common.env_util import make_vec_env

    from sbx_deepspi import DeepSPI, make_jax_env

    settings: dict[str, Any] = dict(n_steps=n_steps, batch_size=512, n_epochs=N_EPOCHS, ent_coef=0.01, seed=0)
    settings |= {name: value for name, value in VARIANTS[variant].items() if name != "policy_kwargs"}
    networks = dict(net_arch=[64], activation_fn=jax.nn.relu) | VARIANTS[variant].get("policy_kwargs", {})
    env = make_vec_env("CartPole-v1", n_envs, seed=0) if env_id == "host" else make_jax_env(env_id, n_envs, seed=0)
    start = time.perf_counter()
    model = DeepSPI("MlpPolicy", env, policy_kwargs=networks, **settings)
    size = n_envs * n_steps
    model.learn(size)
    first = time.perf_counter() - start
    start = time.perf_counter()
    model.learn(4 * size, reset_num_timesteps=False)
    per_iteration = (time.perf_counter() - start) / 4
    n_iterations = max(4, int(seconds / per_iteration))
    start = time.perf_counter()
    model.learn(n_iterations * size, reset_num_timesteps=False)
    rate = n_iterations * size / (time.perf_counter() - start)
    return {"compile_s": first - size / rate, "steps_per_s": rate}


def measure_rejax(python: str, game: str, n_envs: int, n_steps: int, steps: int) -> dict[str, float]:
    """
    :param python: that has rejax
    :param game: gymnax's id
    :param n_envs: number of environments
    :param n_steps: of each in a rollout
    :param steps: of all environments together
    :return: seconds to compile, and steps a second
    """
    settings = dict(
        env=game, n_envs=n_envs, n_steps=n_steps, batch_size=512, n_epochs=N_EPOCHS, learning_rate=3e-4, steps=steps,
        seed=0, n_points=1, activation="relu", evaluates=False,
    )  # fmt: skip
    command = [python, str(Path(__file__).with_name("rejax_ppo.py")), json.dumps(settings)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {"compile_s": result["compile_s"], "steps_per_s": result["steps"] / result["run_s"]}


def in_a_process(*arguments: str) -> dict[str, float]:
    """
    :param arguments: of this program
    :return: what it measured
    """
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    command = [sys.executable, __file__, "--measure", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def measure_product(size: int = 2048, times: int = 20) -> dict[str, float]:
    """
    :param size: rows and columns
    :param times: how often to multiply
    :return: multiplications and additions a second of a product of two large matrices
    """
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return {"flop_per_s": 2 * size**3 / statistics.median(seconds)}


def flop_of_a_step(variant: str, game: str) -> int:
    """
    :param variant: of :data:`VARIANTS`, or ``"rejax"``
    :param game: gymnax's id
    :return: multiplications and additions of the products of matrices that an update does for one step: forward, for
        the kernels' gradients and, but in the first layer, for the inputs'; the encoding of the next observation, which
        is mostly another step's, is not counted
    """
    observed, actions = GAMES[game]
    width = 128 if variant == "ppo_wide" else 64
    first = observed * width * (2 if variant == "rejax" else 1)
    others = 2 * width * 64 + 64 * actions + 64
    if variant.startswith("deepspi"):
        n_outputs, n_weights = (1, 0) if variant == "deepspi_deterministic" else (2 * 5, 5)
        transition = 64 * 128 + 128 * (64 * n_outputs + n_weights)
        others += transition + 64 * 64 + 64 * 64 + 64
    return N_EPOCHS * 2 * (2 * first + 3 * others)


def compare(rejax: str | None, rounds: int, path: Path) -> None:
    """
    :param rejax: the Python that has it; ``None``: it is left out
    :param rounds: how often each is measured
    :param path: of the CSV
    """
    rows: list[dict[str, Any]] = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = max((row["round"] for row in rows), default=-1) + 1
    for round_ in range(done, done + rounds):
        flop_per_s = in_a_process("product")["flop_per_s"]
        for game in GAMES:
            for setting, (n_envs, n_steps) in SETTINGS.items():
                measured = {}
                if rejax is not None:
                    steps = 1_000_000 if game == "CartPole-v1" else 500_000
                    measured["rejax"] = measure_rejax(rejax, game, n_envs, n_steps, steps)
                for variant in VARIANTS:
                    measured[variant] = in_a_process(variant, f"gymnax/{game}", str(n_envs), str(n_steps))
                for name, result in measured.items():
                    base = measured["rejax"]["steps_per_s"] if rejax is not None else float("nan")
                    rows.append(
                        dict(round=round_, game=game, setting=setting, name=name, **result)
                        | {"to_rejax": result["steps_per_s"] / base, "at_most": flop_per_s / flop_of_a_step(name, game)}
                    )
                    print({key: round(v, 2) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
        for name in ("deepspi", "ppo"):
            result = in_a_process(name, "host", "8", "128")
            rows.append(dict(round=round_, game="Gymnasium's CartPole", setting="8 x 128", name=name, **result))
            print(rows[-1], flush=True)
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    table = pd.DataFrame(rows).groupby(["game", "setting", "name"], sort=False)
    print(table[["steps_per_s", "at_most", "to_rejax", "compile_s"]].median().round(2).to_string())


def sweep(path: Path) -> None:
    """
    Steps a second over the number of environments, drawn.

    :param path: of the CSV; the picture lies beside it
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    for n_envs in (8, 64, 512, 1024, 4096):
        n_steps = max(4096 // n_envs, 4)
        for game in GAMES:
            for variant in ("ppo", "deepspi"):
                result = in_a_process(variant, f"gymnax/{game}", str(n_envs), str(n_steps), "4")
                rows.append(dict(n_envs=n_envs, n_steps=n_steps, game=game, name=variant, **result))
                print(rows[-1], flush=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for (game, variant), line in pd.DataFrame(rows).groupby(["game", "name"], sort=False):
        axes.plot(line.n_envs, line.steps_per_s / 1000, "o-", markersize=3, label=f"{game}, {variant}")
    axes.set(xscale="log", yscale="log", xlabel="environments", ylabel="thousand steps a second")
    axes.set_xticks([8, 64, 512, 1024, 4096], ["8", "64", "512", "1,024", "4,096"])
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path.with_suffix(".png"), dpi=100)


def main() -> None:
    arguments = parser().parse_args()
    if arguments.measure == ["product"]:
        print(json.dumps(measure_product()))
        return
    if arguments.measure:
        variant, env_id, n_envs, n_steps, *seconds = arguments.measure
        seconds = float(seconds[0]) if seconds else SECONDS
        print(json.dumps(measure_ours(variant, env_id, int(n_envs), int(n_steps), seconds)))
        return
    if arguments.only in (None, "compare"):
        compare(arguments.rejax, arguments.rounds, RESULTS / f"{arguments.name}.csv")
    if arguments.only in (None, "sweep"):
        sweep(RESULTS / f"{arguments.name}_sweep.csv")
    if arguments.only == "gpu":
        for variant in VARIANTS:
            print(variant, in_a_process(variant, "gymnax/Breakout-MinAtar", "4096", "16"), flush=True)


if __name__ == "__main__":
    main()
