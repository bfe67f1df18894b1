"""
Train the same Breakout with DeepSPI, SBX's PPO and SB3's PPO, in turn, and compare their speed.

    python benchmarks/throughput.py --setting 128x8 --rounds 5

Each algorithm trains in a process of its own; the processes take turns, one update (rollout and training) at a
time, so that all of them see the same machine. What compiles does so before the first turn that counts.
"""

import argparse
import csv
import multiprocessing as mp
import resource
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ALGORITHMS = ("deepspi", "sbx_ppo", "sb3_ppo")
# the paper's settings, for all three
HYPERPARAMETERS = {"batch_size": 256, "n_epochs": 4, "clip_range": 0.1, "ent_coef": 0.01, "learning_rate": 2.5e-4}


def worker(pipe: Connection, algorithm: str, n_envs: int, n_steps: int) -> None:
    """
    Make one update for each message, and answer with its seconds and the process's peak memory in bytes.

    :param pipe: ``True`` asks for an update, ``False`` for the end
    :param algorithm: one of ``ALGORITHMS``
    :param n_envs: number of environments
    :param n_steps: steps of each in a rollout
    """
    from sbx_deepspi import DeepSPI, make_envpool_env

    if algorithm == "sb3_ppo":
        from stable_baselines3 import PPO
    else:
        from sbx import PPO
    algorithm_class = DeepSPI if algorithm == "deepspi" else PPO
    env = make_envpool_env("Breakout-v5", n_envs=n_envs, seed=0)
    model = algorithm_class("CnnPolicy", env, n_steps=n_steps, seed=0, **HYPERPARAMETERS)
    while pipe.recv():
        start = time.perf_counter()
        # one rollout and one update; the first call also resets the environments and compiles
        model.learn(n_envs * n_steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def matrix_product_ceiling() -> float:
    """
    :return: what a large float32 matrix product reaches here under JAX, in FLOP/s
    """
    import jax
    import jax.numpy as jnp

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
    training = 2 * (encoder + encoder_backward) + 3 * (heads + world_model)
    return n_transitions * (encoder + heads + n_epochs * training)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="128x8", help="environments x steps of a rollout")
    parser.add_argument("--rounds", type=int, default=5, help="updates of each algorithm that count")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--csv", help="also write the times to docs/results/<CSV>")
    arguments = parser.parse_args()
    n_envs, n_steps = map(int, arguments.setting.split("x"))

    context = mp.get_context("spawn")
    pipes, processes = {}, []
    for algorithm in arguments.algorithms:
        pipes[algorithm], theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(theirs, algorithm, n_envs, n_steps), daemon=True))
        processes[-1].start()
    times: dict[str, list[float]] = {algorithm: [] for algorithm in pipes}
    memory: dict[str, int] = {}
    for turn in range(arguments.rounds + 1):
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
    print(f"Breakout, {n_envs} environments x {n_steps} steps, median of {arguments.rounds} updates each")
    print(f"{'':10}{'steps/s':>10}{'DeepSPI is':>14}{'peak memory':>14}")
    for algorithm, seconds in times.items():
        ratios = [theirs / ours for ours, theirs in zip(times["deepspi"], seconds, strict=True)]
        speed = n_transitions / statistics.median(seconds)
        print(f"{algorithm:10}{speed:10.0f}{statistics.median(ratios):13.2f}x{memory[algorithm] / 1e9:11.2f} GB")
    ceiling = matrix_product_ceiling()
    floor = update_flop(n_transitions, HYPERPARAMETERS["n_epochs"]) / ceiling
    print(
        f"Matrix products reach {ceiling / 1e9:.0f} GFLOP/s here: DeepSPI's update could take {floor:.2f} s, "
        f"and takes {statistics.median(times['deepspi']):.2f} s."
    )
    if arguments.csv:
        RESULTS.mkdir(parents=True, exist_ok=True)
        with (RESULTS / arguments.csv).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["algorithm", "n_envs", "n_steps", "seconds"])
            writer.writerows([name, n_envs, n_steps, f"{s:.4f}"] for name, all_ in times.items() for s in all_)


if __name__ == "__main__":
    main()
