"""
What the guarantee costs: the certificate, and Lipschitz layers, as a share of one update.

    python benchmarks/guarantee_cost.py                  # Breakout, 128 environments x 8 steps
    python benchmarks/guarantee_cost.py --env CartPole-v1

Times updates with Lipschitz layers, updates with plain ones and certificates in turn, on one rollout, compilation
excluded, and prints medians and the shares round by round.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space

from sbx_deepspi import DeepSPI, make_envpool_env
from sbx_deepspi.certificate import certify
from sbx_deepspi.envs.envpool import import_envpool
from sbx_deepspi.update import update


def prepared(env: Any, policy: str, **policy_kwargs: Any) -> DeepSPI:
    """
    :param env: to collect one rollout from
    :param policy: name of the policy
    :param policy_kwargs: its arguments
    :return: a model whose rollout is full
    """
    model = DeepSPI(policy, env, policy_kwargs=policy_kwargs, seed=0)
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def seconds(call: Callable[[], Any]) -> float:
    """
    :param call: what to time
    :return: seconds until its results are there
    """
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Breakout-v5", help="EnvPool's, and 128 of them, or Gymnasium's, and 8")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    is_game = arguments.env in import_envpool().list_all_envs()
    env = make_envpool_env(arguments.env, 128, seed=0) if is_game else make_vec_env(arguments.env, 8, seed=0)
    policy = "CnnPolicy" if is_image_space(env.observation_space) else "MlpPolicy"
    lipschitz, plain = prepared(env, policy), prepared(env, policy, lipschitz_constant=None)
    key = jax.random.PRNGKey(0)

    def update_of(model: DeepSPI) -> Callable[[], Any]:
        arguments = jax.device_put((model.policy.state, model.rollout_buffer, model._last_obs, key))
        return lambda: update(*arguments, model.hyperparameters())

    updated, _ = update_of(lipschitz)()
    state, rollout = jax.device_put((lipschitz.policy.state, lipschitz.rollout_buffer))
    calls = {
        "update": update_of(lipschitz),
        "update, plain layers": update_of(plain),
        "certificate": lambda: certify(state, updated, rollout, 100.0, key, lipschitz.gamma),
    }
    for call in calls.values():
        seconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(arguments.rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))

    print(f"{arguments.env}, {lipschitz.n_envs} x {lipschitz.n_steps}, {arguments.rounds} rounds, medians:")
    for name, values in times.items():
        print(f"  {name:22} {1000 * statistics.median(values):9.2f} ms")
    pairs = list(zip(*times.values(), strict=True))
    print(f"  certificate / update   {statistics.median(c / u for u, _, c in pairs):9.1%}")
    print(f"  Lipschitz layers       {statistics.median(1 - p / u for u, p, _ in pairs):9.1%} of an update")


if __name__ == "__main__":
    main()
