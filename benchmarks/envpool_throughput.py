"""
How much of bare EnvPool's throughput is left once it speaks SB3's language.

    python benchmarks/envpool_throughput.py

Both take the same random actions, in chunks that alternate.
"""

import argparse

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--env", default="Breakout-v5", help="EnvPool's id")
    parser.add_argument("--n-envs", type=int, default=128, help="how many copies")
    parser.add_argument("--chunks", type=int, default=20, help="how many of each")
    parser.add_argument("--steps", type=int, default=40, help="of all copies in a chunk")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from gymnasium.vector.utils import batch_space

from sbx_deepspi.envs import make_envpool_env
from sbx_deepspi.envs.envpool import import_envpool


def steps_per_second(step: Callable[[np.ndarray], object], actions: list[np.ndarray]) -> float:
    """
    Time a chunk of steps.

    :param step: takes one step of all environments
    :param actions: the actions of each step
    :return: how many environment steps it took in a second
    """
    start = time.perf_counter()
    for action in actions:
        step(action)
    return len(actions) * len(actions[0]) / (time.perf_counter() - start)


def main() -> None:
    args = parser().parse_args()

    env = make_envpool_env(args.env, args.n_envs, seed=0)
    pool = import_envpool().make_gymnasium(env.task, num_envs=args.n_envs, seed=0, **env.settings)
    env.reset()
    pool.reset()

    actions = batch_space(env.action_space, args.n_envs)
    actions.seed(0)
    bare, adapted = [], []
    for _ in range(args.chunks):
        chunk = [actions.sample() for _ in range(args.steps)]
        bare.append(steps_per_second(pool.step, chunk))
        adapted.append(steps_per_second(env.step, chunk))
    ratio = median(a / b for a, b in zip(adapted, bare, strict=True))

    print(f"{args.env}, {args.n_envs} environments, {env.settings['num_threads']} threads")
    print(f"bare EnvPool   {median(bare):8,.0f} steps/s")
    print(f"EnvPoolVecEnv  {median(adapted):8,.0f} steps/s, {ratio:.0%} in the median pair of chunks")


if __name__ == "__main__":
    main()
