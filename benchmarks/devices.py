"""
What an update costs each of several devices, and what they ask of each other, as the compiler counts it; and what that
would come to on real ones.

    python benchmarks/devices.py --name devices

Nothing is run: the programs are compiled for devices that XLA makes of the CPU. Each device has as many environments,
and as many transitions of each minibatch, however many devices there are. The simulation takes a device's speed, and
the time and the speed of a message, for granted: they are arguments.
"""

import argparse
import csv
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "f16": 2, "bf16": 2, "u8": 1}
IN_A_NODE = 8  # devices


class Cost(NamedTuple):
    """
    Of one update with one epoch of one minibatch.

    :param flops: of one device
    :param reductions: all-reduces, and other collectives
    :param reduced_bytes: of them together
    :param other: collectives that are no all-reduce, by name
    """

    flops: float
    reductions: int
    reduced_bytes: int
    other: list[str]


class Setting(NamedTuple):
    """
    :param policy: of SB3's names
    :param n_envs: of each device
    :param n_steps: of each in a rollout
    :param batch_size: of each device
    :param n_epochs: of an update
    """

    policy: str
    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int

    @property
    def n_minibatches(self) -> int:
        """
        :return: of an update
        """
        return self.n_epochs * self.n_envs * self.n_steps // self.batch_size


SETTINGS = {
    "images": Setting("CnnPolicy", n_envs=128, n_steps=8, batch_size=256, n_epochs=4),
    "vectors": Setting("MlpPolicy", n_envs=128, n_steps=128, batch_size=4096, n_epochs=4),
}


def cost_of(setting: Setting, n_devices: int) -> Cost:
    """
    :param setting: what is learned
    :param n_devices: number of devices
    :return: what the compiler counts
    """
    import jax
    import numpy as np
    from gymnasium import spaces

    from sbx_deepspi import DeepSPI
    from sbx_deepspi.collect.vec_env import observation_spec
    from sbx_deepspi.rollout import Rollout
    from sbx_deepspi.sb3.spaces import action_dtype, action_shape, log_policy_shape
    from sbx_deepspi.state import EpisodeStatistics

    image = setting.policy == "CnnPolicy"
    observed = spaces.Box(0, 255, (4, 84, 84), np.uint8) if image else spaces.Box(-1, 1, (64,), np.float32)
    acted = spaces.Discrete(6)
    n_envs = setting.n_envs * n_devices
    n_transitions = n_envs * setting.n_steps
    model = DeepSPI(
        setting.policy, None, n_steps=setting.n_steps, batch_size=n_transitions, n_epochs=1, seed=0,
        device=[f"cpu:{index}" for index in range(n_devices)], _init_setup_model=False,
    )  # fmt: skip
    model.observation_space, model.action_space, model.n_envs = observed, acted, n_envs
    model.episodes = EpisodeStatistics.empty(n_envs, 100)
    model._setup_model()
    model._n_collected = n_transitions
    # in one part, so that nothing is in a loop, whose body would be counted once
    h = model.hyperparameters().replace(microbatch_size=n_transitions)
    rollout = jax.eval_shape(
        lambda: Rollout.empty(
            setting.n_steps,
            n_envs,
            observation=observation_spec(observed),
            action=jax.ShapeDtypeStruct(action_shape(acted), action_dtype(acted)),
            log_policy=log_policy_shape(acted),
        )
    )
    last = jax.eval_shape(partial(jax.tree.map, lambda array: array[0]), rollout.observations)
    lowered = model.policy.programs.iteration.lower(
        model.state, rollout, last, h, mesh=model.mesh, update=DeepSPI.update, projects=False
    )
    sizes, other = [], []
    for shapes, name in re.findall(
        r"= (.*?) (all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", lowered.compile().as_text()
    ):
        numbers = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        sizes.append(
            sum(BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n])) for kind, shape in numbers)
        )
        other += [] if name.startswith("all-reduce") else [name]
    # before it is compiled: what a library computes is not counted afterwards
    return Cost(lowered.cost_analysis()["flops"], len(sizes), sum(sizes), other)


def flops_of(setting: Setting, cost: Cost) -> float:
    """
    :param setting: what is learned
    :param cost: as the compiler counts it, which counts a loop once; encoding images has one on CPUs
    :return: FLOP of one device in an update
    """
    if setting.policy == "CnnPolicy":
        from throughput import update_flop

        return update_flop(setting.n_envs * setting.n_steps, setting.n_epochs, n_actions=6)
    return setting.n_epochs * cost.flops


def seconds(setting: Setting, cost: Cost, n_devices: int, speed: argparse.Namespace) -> float:
    """
    :param setting: what is learned
    :param cost: of it
    :param n_devices: number of devices
    :param speed: see :func:`main`
    :return: of an update
    """
    across = n_devices > IN_A_NODE
    latency, bandwidth = (speed.latency[across] * 1e-6, speed.bandwidth[across] * 1e9)
    ring = 2 * (n_devices - 1) / n_devices * cost.reduced_bytes / bandwidth
    talk = 0.0 if n_devices == 1 else cost.reductions * latency + ring
    return flops_of(setting, cost) / (speed.teraflops * 1e12) + setting.n_minibatches * talk


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8, 64], metavar="N", help="how many")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="what is learned")
    parser.add_argument(
        "--teraflops", type=float, default=10.0, help="that a device reaches in training, in 1e12 FLOP/s"
    )
    parser.add_argument(
        "--latency",
        nargs=2,
        type=float,
        default=[20.0, 60.0],
        metavar="US",
        help="of an all-reduce in a node and across, in µs",
    )
    parser.add_argument(
        "--bandwidth", nargs=2, type=float, default=[200.0, 25.0], metavar="GBPS", help="in a node and across, in GB/s"
    )
    parser.add_argument("--name", help="of the CSV file in docs/results; without one, nothing is written")
    return parser


def main() -> None:
    speed = parser().parse_args()

    # nothing is run: compiled as quickly as may be
    flags = f"--xla_force_host_platform_device_count={max(speed.devices)} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    rows: list[dict[str, Any]] = []
    first = Cost(1, 0, 0, [])
    for name in speed.settings:
        setting = SETTINGS[name]
        for n_devices in speed.devices:
            cost = cost_of(setting, n_devices)
            first = cost if n_devices == speed.devices[0] else first
            alone, together = (seconds(setting, cost, number, speed) for number in (1, n_devices))
            rows.append(
                {
                    "setting": name,
                    "devices": n_devices,
                    "work of a device": round(cost.flops / first.flops, 3),
                    "all-reduces of a minibatch": cost.reductions,
                    "KB of a minibatch": round(cost.reduced_bytes / 1e3, 1),
                    "other collectives": len(cost.other),
                    "ms of an update": round(1e3 * together, 3),
                    "efficiency": round(alone / together, 3),
                }
            )
            print(rows[-1], flush=True)
    if speed.name:
        with (RESULTS / f"{speed.name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
