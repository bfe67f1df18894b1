"""
What the guarantee costs: the certificate, importance ratios over all states alone, and Lipschitz layers, as a share of
one update.

    python benchmarks/guarantee_cost.py    # Breakout, 128 x 8 steps
    python benchmarks/guarantee_cost.py --env CartPole-v1

Times them in turn with updates, with Lipschitz layers and with plain ones, on one rollout after some updates,
compilation excluded, and prints medians, and medians of the shares round by round.
"""

import argparse

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--env", default="Breakout-v5", help="EnvPool's Atari, of which there are 128, or Gymnasium's id: 8 of it"
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--updates", type=int, default=8, help="made before anything is timed")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from stable_baselines3.common.env_util import make_vec_env
from update_parts import in_turn, prepared

from sbx_deepspi import DeepSPI, make_envpool_env
from sbx_deepspi.envs.envpool import import_envpool


def main() -> None:
    arguments = parser().parse_args()
    is_atari = import_envpool().registration.registry.specs.get(arguments.env, [""])[0] == "envpool.atari"
    env = make_envpool_env(arguments.env, 128, seed=0) if is_atari else make_vec_env(arguments.env, 8, seed=0)
    # in the very first updates kernels move farther, and their norms are computed more often
    lipschitz, plain = (prepared(env, n_updates=arguments.updates, lipschitz_constant=c) for c in (1.0, None))

    def update_of(model: DeepSPI) -> Callable[[], Any]:
        arguments = jax.device_put((model.state, model.rollout_buffer, model._last_obs))
        iteration = partial(model.policy.programs.iteration, update=type(model).update, projects=False)
        return lambda: iteration(*arguments, model.hyperparameters())

    programs, before = lipschitz.policy.programs, jax.device_put(lipschitz.state)
    after = update_of(lipschitz)()[0]
    rollout = jax.device_put(lipschitz.rollout_buffer)
    calls = {
        "update": update_of(lipschitz),  # what follows it finds the caches as in training
        "certificate": lambda: programs.certify(before, after, rollout, lipschitz.gamma),
        "importance ratios": lambda: programs.importance_ratios(after.learner.parameters, rollout),
        "update, plain layers": update_of(plain),
    }
    times = in_turn(calls, arguments.rounds)

    print(f"{arguments.env}, {lipschitz.n_envs} x {lipschitz.n_steps}, {arguments.rounds} rounds, medians:")
    for name, values in times.items():
        print(f"  {name:22} {1000 * statistics.median(values):9.2f} ms")
    updates = times["update"]
    shares = {name: [t / u for t, u in zip(values, updates, strict=True)] for name, values in times.items()}
    shares["Lipschitz layers"] = [1 - share for share in shares.pop("update, plain layers")]
    for name in ("certificate", "importance ratios", "Lipschitz layers"):
        print(f"  {name:22} {statistics.median(shares[name]):9.1%} of an update")
    share = statistics.median(shares["certificate"]) / lipschitz.certificate_freq
    print(f"  one certificate in {lipschitz.certificate_freq} updates: {share:.1%} of training's updates")


if __name__ == "__main__":
    main()
