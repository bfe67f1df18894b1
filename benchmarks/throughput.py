"""
Train the same Breakout with DeepSPI, SBX's PPO and SB3's PPO, in turn, and compare their speed.

    make bench    # both settings, and the parts of an iteration
    python benchmarks/throughput.py --settings 128x8 --rounds 5
    make bench DEVICES="2 8"    # beside them, DeepSPI on so many devices

Each algorithm trains in a process of its own; the processes take turns, one update (rollout and training) at a
time, so that all of them see the same machine. What compiles does so before the first turn that counts. With
``--name`` the times go to docs/results, as NAME.csv, NAME_parts.csv and NAME.png.

On a GPU the same command compares there (SB3 needs a CUDA build of torch for that); memory is then the device's.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAMES = ["deepspi", "sbx_ppo", "sb3_ppo"]


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--settings", nargs="+", default=["8x128", "128x8"], metavar="ENVSxSTEPS",
        help="environments, and steps of each in a rollout",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="updates of each algorithm that count")
    parser.add_argument(
        "--algorithms", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--devices", nargs="+", type=int, default=[], metavar="N",
        help="DeepSPI, too, on so many devices; a CPU is cut into as many; otherwise on one",
    )  # fmt: skip
    parser.add_argument("--name", help="of the files; without one, nothing is written")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import csv
import multiprocessing as mp
import os
import resource
import statistics
import time
from multiprocessing.connection import Connection

import jax
import jax.numpy as jnp
import matplotlib
import sbx
import stable_baselines3
import torch
from update_parts import measure, table

from sbx_deepspi import DeepSPI, make_envpool_env

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ALGORITHMS = {"deepspi": DeepSPI, "sbx_ppo": sbx.PPO, "sb3_ppo": stable_baselines3.PPO}
# the paper's settings, for all three
HYPERPARAMETERS = {"batch_size": 256, "n_epochs": 4, "clip_range": 0.1, "ent_coef": 0.01, "learning_rate": 2.5e-4}


def on_devices(algorithm: str) -> tuple[str, int]:
    """
    :param algorithm: one of ``ALGORITHMS``, or ``"deepspi_on_<number>"``
    :return: which of them, and the number of devices
    """
    name, _, number = algorithm.partition("_on_")
    return name, int(number or 1)


def worker(pipe: Connection, algorithm: str, n_envs: int, n_steps: int) -> None:
    """
    Make one update for each message, and answer with its seconds and the peak memory in bytes: of the device where
    that is a GPU, else of the process.

    :param pipe: ``True`` asks for an update, ``False`` for the end
    :param algorithm: see :func:`on_devices`
    :param n_envs: number of environments
    :param n_steps: steps of each in a rollout
    """
    name, n_devices = on_devices(algorithm)
    others = {}
    if n_devices > 1:
        platform = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
        others = {"device": [f"{platform}:{index}" for index in range(n_devices)]}
    env = make_envpool_env("Breakout-v5", n_envs=n_envs, seed=0)
    model = ALGORITHMS[name]("CnnPolicy", env, n_steps=n_steps, seed=0, **HYPERPARAMETERS, **others)
    while pipe.recv():
        start = time.perf_counter()
        # one rollout and one update; the first call also resets the environments and compiles
        model.learn(n_envs * n_steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if algorithm == "sb3_ppo":
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else process
        else:
            peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", process)
        pipe.send((seconds, peak))


def matrix_product_ceiling() -> float:
    """
    :return: what a large float32 matrix product reaches here under JAX, in FLOP/s
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def update_flop(n_transitions: int, n_epochs: int, n_actions: int = 4) -> float:
    """
    Multiplications and additions that one update of DeepSPI cannot do without, at the default networks.

    :param n_transitions: in the rollout
    :param n_epochs: passes over it
    :param n_actions: of the game
    :return: FLOP of rollout and training
    """
    layers = [20 * 20 * 32 * 8 * 8 * 4, 9 * 9 * 64 * 4 * 4 * 32, 7 * 7 * 64 * 3 * 3 * 64]
    encoder = 2 * sum(layers)
    encoder_backward = 2 * encoder - 2 * layers[0]  # nothing asks for the gradient by the pixels
    heads = 2 * (3136 * 512 + 512 * (n_actions + 1))
    hidden, outputs, logits = 49 * 4 * 64 * 128, 49 * 4 * 8 * 640, 49 * 128 * 5
    world_model = 2 * (hidden + outputs + logits + 3136 * 256 + 256 * 256 + 256)
    # s and, once in eight steps, s'
    training = 9 / 8 * (encoder + encoder_backward) + 3 * (heads + world_model)
    return n_transitions * (encoder + heads + n_epochs * training)


def compare(n_envs: int, n_steps: int, rounds: int, algorithms: list[str]) -> tuple[dict[str, list[float]], dict]:
    """
    Time the algorithms in turn, and print how they compare.

    :param n_envs: number of environments
    :param n_steps: steps of each in a rollout
    :param rounds: updates of each algorithm that count
    :param algorithms: some of ``ALGORITHMS``
    :return: algorithm → seconds of each rollout and update, and algorithm → peak memory in bytes
    """
    context = mp.get_context("spawn")
    pipes, processes = {}, []
    for algorithm in algorithms:
        pipes[algorithm], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(theirs, algorithm, n_envs, n_steps), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a worker's death is noticed
    times: dict[str, list[float]] = {algorithm: [] for algorithm in pipes}
    memory: dict[str, int] = {}
    for turn in range(rounds + 1):
        for algorithm, pipe in pipes.items():
            pipe.send(True)
            seconds, memory[algorithm] = pipe.recv()
            if turn:
                times[algorithm].append(seconds)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()

    n_transitions = n_envs * n_steps
    print(f"\nBreakout, {n_envs} environments x {n_steps} steps, medians of {rounds} rollouts and updates")
    print(f"{'':14}{'steps/s':>10}{'DeepSPI is':>14}{'least and most':>18}{'peak memory':>14}")
    for algorithm, seconds in times.items():
        speed = n_transitions / statistics.median(seconds)
        ratios = pair_ratios(times, algorithm) if "deepspi" in times else [float("nan")]
        least_and_most = f"{min(ratios):.2f}x to {max(ratios):.2f}x"
        print(
            f"{algorithm:14}{speed:10.0f}{statistics.median(ratios):13.2f}x{least_and_most:>18}"
            f"{memory[algorithm] / 1e9:11.2f} GB"
        )
    return times, memory


def pair_ratios(times: dict[str, list[float]], algorithm: str) -> list[float]:
    """
    :param times: seconds by algorithm
    :param algorithm: with which to compare
    :return: how many times as fast DeepSPI was, turn by turn
    """
    return [theirs / ours for ours, theirs in zip(times["deepspi"], times[algorithm], strict=True)]


def draw(times: dict[str, dict[str, list[float]]], path: Path) -> None:
    """
    :param times: setting → algorithm → seconds
    :param path: of the PNG
    """
    figure, axes = plt.subplots(1, len(times), figsize=(4 * len(times), 3.2), layout="constrained", sharey=True)
    for axis, (setting, by_algorithm) in zip([axes] if len(times) == 1 else axes, times.items(), strict=True):
        n_envs, n_steps = map(int, setting.split("x"))
        for i, (algorithm, seconds) in enumerate(by_algorithm.items()):
            speeds = [n_envs * n_steps / s for s in seconds]
            axis.bar(i, statistics.median(speeds), color="tab:red" if "deepspi" in algorithm else "tab:gray", alpha=0.6)
            axis.scatter([i] * len(speeds), speeds, s=8, color="black", zorder=2)
        axis.set_xticks(range(len(by_algorithm)), list(by_algorithm))
        axis.set(title=f"{n_envs} environments x {n_steps} steps", ylabel="environment steps per second")
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser().parse_args()

    # the algorithms' processes share a GPU
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    arguments.algorithms = [*arguments.algorithms, *(f"deepspi_on_{number}" for number in arguments.devices)]
    if arguments.devices and jax.default_backend() == "cpu":
        flag = f"--xla_force_host_platform_device_count={max(arguments.devices)}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    times, memory, parts = {}, {}, {}
    for setting in arguments.settings:
        n_envs, n_steps = map(int, setting.split("x"))
        times[setting], memory[setting] = compare(n_envs, n_steps, arguments.rounds, arguments.algorithms)
    if "deepspi" in arguments.algorithms:
        ceiling = matrix_product_ceiling()
        print(f"\nMatrix products reach {ceiling / 1e9:.0f} GFLOP/s here. DeepSPI's floor, and its parts:")
        for setting, by_algorithm in times.items():
            n_envs, n_steps = map(int, setting.split("x"))
            n_transitions = n_envs * n_steps
            rollout = update_flop(n_transitions, 0) / ceiling
            floor = update_flop(n_transitions, HYPERPARAMETERS["n_epochs"]) / ceiling
            taken = statistics.median(by_algorithm["deepspi"])
            parts[setting] = measure(n_envs, n_steps, arguments.rounds)
            update = (floor - rollout) / parts[setting]["the whole update"]
            print(
                f"{setting}: rollout and update need {floor:.2f} s of products, and take {taken:.2f} s. The update "
                f"alone runs at {update:.0%} of the ceiling. By parts, medians of {arguments.rounds}:"
            )
            print(table(parts[setting]))
    if arguments.name:
        arguments.results.mkdir(parents=True, exist_ok=True)
        with (arguments.results / f"{arguments.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["setting", "algorithm", "peak_memory_bytes", "seconds"])
            writer.writerows(
                [setting, algorithm, memory[setting][algorithm], f"{s:.4f}"]
                for setting, by_algorithm in times.items()
                for algorithm, seconds in by_algorithm.items()
                for s in seconds
            )
        with (arguments.results / f"{arguments.name}_parts.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["setting", "part", "seconds"])
            writer.writerows(
                [setting, part.strip(), f"{s:.4f}"] for setting, seconds in parts.items() for part, s in seconds.items()
            )
        draw(times, arguments.results / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
