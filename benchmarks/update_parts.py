"""
Where the time of one DeepSPI iteration goes: its parts, each timed on its own.

    python benchmarks/update_parts.py                 # Breakout, 128 environments x 8 steps
    python benchmarks/update_parts.py --setting 8x128

Each part runs as often as one iteration (rollout, update, certificate) needs it, in the microbatches in which the
update runs it, forward and backward. What fuses or overlaps in the whole does not in the parts, whose sum it is not.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi import DeepSPI, make_envpool_env, objective
from sbx_deepspi.certificate import certify
from sbx_deepspi.networks.agent import Networks
from sbx_deepspi.networks.backend import clipped_normal
from sbx_deepspi.policies import decide
from sbx_deepspi.rollout import Transitions, microbatches, to_transitions
from sbx_deepspi.update import update


def prepared(env: VecEnv, n_steps: int | None = None, n_updates: int = 0, **policy_kwargs: Any) -> DeepSPI:
    """
    :param env: to collect rollouts from
    :param n_steps: of each environment; ``None``: DeepSPI's choice
    :param n_updates: made before
    :param policy_kwargs: arguments of the policy
    :return: a model whose rollout is full
    """
    policy = "CnnPolicy" if is_image_space(env.observation_space) else "MlpPolicy"
    model = DeepSPI(policy, env, n_steps=n_steps, policy_kwargs=policy_kwargs, seed=0)
    _, callback = model._setup_learn(10**9)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    for _ in range(n_updates):
        model.train()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """
    Time some calls in turn, compilation excluded.

    :param calls: by name
    :param rounds: how often each counts
    :return: name → seconds until the results are there, round by round
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def parts(model: DeepSPI) -> dict[str, Callable[[], Any]]:
    """
    :param model: whose rollout is full
    :return: name → what to time, for one whole iteration
    """
    h, state, networks, env = model.hyperparameters(), model.policy.state, model.policy.networks, model.env
    key = jax.random.PRNGKey(0)
    rollout, last_observations = jax.device_put((model.rollout_buffer, model._last_obs))
    result = update(state, rollout, last_observations, key, h)
    transitions = to_transitions(rollout, np.zeros(model.n_envs, np.float32), h.gamma, h.gae_lambda)
    transitions = transitions.replace(segment_length=h.segment_length)
    batches = microbatches(transitions, min(h.microbatch_size, h.batch_size))
    constrained = state.apply_fn(state.params, method="constrain")
    encode = jax.jit(lambda part: state.apply_fn(constrained, part, method="encode_both"))
    latents = jax.lax.map(encode, batches)
    n_minibatches = len(transitions.rewards) // h.batch_size * h.n_epochs

    def in_microbatches(loss: Callable[..., jax.Array]) -> Callable[[], Any]:
        """The gradients of a loss by parameters and latents, summed over an iteration's microbatches."""

        @jax.jit
        def run(constrained: Any, batches: Transitions, latents: Any) -> Any:
            def add(total: Any, part: Any) -> tuple[Any, Any]:
                gradients, by_latents = jax.grad(
                    lambda params, latents: state.apply_fn(params, part[0], latents, method=loss), argnums=(0, 1)
                )(constrained, part[1])
                return jax.tree.map(jnp.add, total, gradients), by_latents

            def epoch(total: Any, _: None) -> tuple[Any, None]:
                return jax.lax.scan(add, total, (batches, latents))[0], None

            return jax.lax.scan(epoch, jax.tree.map(jnp.zeros_like, constrained), None, length=h.n_epochs)[0]

        return lambda: run(constrained, batches, latents)

    def encoder(networks: Networks, part: Transitions, _: Any) -> jax.Array:
        return sum((latents**2).sum() for latents in networks.encode_both(part))  # type: ignore[return-value]

    def heads(networks: Networks, part: Transitions, latents: Any) -> jax.Array:
        features = networks.torso(latents[0])
        distribution = networks.actor(features)
        return (distribution.log_prob(part.actions) + distribution.entropy() + networks.critic(features)).sum()

    def rewards(networks: Networks, part: Transitions, latents: Any) -> jax.Array:
        actions = networks.encode_actions(part.actions)
        return objective.reward_loss(networks.reward_model(latents[0], actions), part.rewards).sum()

    def next_latents(networks: Networks, part: Transitions, latents: Any) -> jax.Array:
        actions = networks.encode_actions(part.actions)
        return networks.transition_losses(latents[0], actions, latents[1], key).sum()

    def environment() -> None:
        for _ in range(model.n_steps):
            env.step(np.zeros(model.n_envs, np.int32))

    def inference() -> None:
        for _ in range(model.n_steps):
            jax.device_get(decide(state, model._last_obs, key))

    noise_shape = (*model.policy.latent_shape, model.policy.n_components)

    @jax.jit
    def noise(keys: jax.Array) -> jax.Array:
        return jax.lax.map(lambda key: clipped_normal(key, (len(batches.rewards[0]), *noise_shape)), keys)

    noise_keys = jax.random.split(key, len(batches.rewards))
    norms = jax.jit(lambda params: networks.apply(params, method="norms"))

    @jax.jit
    def normalize(params: Any, norms: Any) -> Any:
        return jax.vjp(lambda params: networks.apply(params, norms, method="constrain"), params)[1](params)

    def lipschitz() -> list[Any]:
        known = norms(state.params)
        return [normalize(state.params, known) for _ in range(n_minibatches)]

    optimiser = jax.jit(lambda state: state.apply_gradients(grads=state.params))

    def times(n: int, call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [call() for _ in range(n)]

    return {
        "environment": environment,
        "inference": inference,
        "transfer": lambda: jax.device_put((model.rollout_buffer, model._last_obs)),
        "encoder": in_microbatches(encoder),
        "policy and value heads": in_microbatches(heads),
        "reward model": in_microbatches(rewards),
        "transition model, with its noise": in_microbatches(next_latents),
        "  of which noise": times(h.n_epochs, lambda: noise(noise_keys)),
        "Lipschitz norms": lipschitz,
        "optimiser": times(n_minibatches, lambda: optimiser(state)),
        "certificate": lambda: certify(result.before, result.after, rollout, 100.0, key, h.gamma),
        "the whole update": lambda: update(state, rollout, last_observations, key, h),
    }


def measure(n_envs: int, n_steps: int, rounds: int) -> dict[str, float]:
    """
    :param n_envs: number of environments
    :param n_steps: of each
    :param rounds: how often each part is timed, in turn, compilation excluded
    :return: name → median seconds of an iteration
    """
    model = prepared(make_envpool_env("Breakout-v5", n_envs=n_envs, seed=0), n_steps)
    times = in_turn(parts(model), rounds)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def table(seconds: dict[str, float]) -> str:
    """
    :param seconds: what :func:`measure` returned
    :return: one line for each part
    """
    return "\n".join(f"  {name:34}{1000 * value:10.0f} ms" for name, value in seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="128x8", help="environments x steps of a rollout")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    n_envs, n_steps = map(int, arguments.setting.split("x"))
    print(f"Breakout, {n_envs} environments x {n_steps} steps, medians of {arguments.rounds}, one iteration:")
    print(table(measure(n_envs, n_steps, arguments.rounds)))


if __name__ == "__main__":
    main()
