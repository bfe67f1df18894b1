"""
Where the time of one DeepSPI iteration goes: its parts, each timed on its own.

    python benchmarks/update_parts.py    # Breakout, 128 environments x 8 steps
    python benchmarks/update_parts.py --setting 8x128

Each part runs as often as one iteration (rollout, update, certificate) needs it, in the microbatches in which the
update runs it, forward and backward. What fuses or overlaps in the whole does not in the parts, whose sum it is not.
"""

import argparse

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--setting", default="128x8", metavar="ENVSxSTEPS", help="environments, and steps of each in a rollout"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each part is timed")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi import DeepSPI, agent, make_envpool_env
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.ops import clipped_normal
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Transitions, to_transitions
from sbx_deepspi.segments import encode_pairs, microbatches


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
    h, programs, env = model.hyperparameters(), model.policy.programs, model.env
    networks, optimizer = programs.networks, programs.optimizer
    key = jax.random.PRNGKey(0)
    state, rollout, last_observations = jax.device_put((model.state, model.rollout_buffer, model._last_obs))
    parameters = state.learner.parameters
    iteration = partial(
        programs.iteration, state, rollout, last_observations, h, update=type(model).update, projects=False
    )
    updated = iteration()[0]
    transitions = to_transitions(rollout, np.zeros(model.n_envs, np.float32), h.gamma, h.gae_lambda)
    transitions = transitions.replace(segment_length=h.segment_length)
    batches = microbatches(transitions, min(h.microbatch_size, h.batch_size))
    normalized = jax.jit(partial(agent.normalized, networks))(parameters)
    encode = partial(agent.encode, networks)
    latents = jax.lax.map(jax.jit(lambda part: encode_pairs(partial(encode, normalized), part)), batches)
    n_minibatches = len(transitions.rewards) // h.batch_size * h.n_epochs

    def in_microbatches(loss: Callable[..., jax.Array]) -> Callable[[], Any]:
        """The gradients of a loss by parameters and latents, summed over an iteration's microbatches."""

        @jax.jit
        def run(normalized: Any, batches: Transitions, latents: Any) -> Any:
            def add(total: Any, part: Any) -> tuple[Any, Any]:
                gradients, by_latents = jax.grad(loss, argnums=(0, 2))(normalized, *part)
                return jax.tree.map(jnp.add, total, gradients), by_latents

            def epoch(total: Any, _: None) -> tuple[Any, None]:
                return jax.lax.scan(add, total, (batches, latents))[0], None

            return jax.lax.scan(epoch, jax.tree.map(jnp.zeros_like, normalized), None, length=h.n_epochs)[0]

        return lambda: run(normalized, batches, latents)

    def encoder(parameters: Parameters, part: Transitions, _: Any) -> jax.Array:
        return sum((z**2).sum() for z in encode_pairs(partial(encode, parameters), part))  # type: ignore[return-value]

    def heads(parameters: Parameters, part: Transitions, latents: Any) -> jax.Array:
        terms = agent.policy_terms(networks, parameters, latents[0], part.actions)
        return (terms.log_probs + terms.entropies + terms.values).sum()

    def losses_of(parameters: Parameters, part: Transitions, latents: Any) -> agent.ModelLosses:
        seen = part.actions, part.rewards, part.terminated
        return agent.model_losses(networks, parameters, latents[0], *seen, latents[1], key)

    def rewards(parameters: Parameters, part: Transitions, latents: Any) -> jax.Array:
        return losses_of(parameters, part, latents).reward.sum()

    def next_latents(parameters: Parameters, part: Transitions, latents: Any) -> jax.Array:
        return losses_of(parameters, part, latents).transition.sum()

    def environment() -> None:
        for _ in range(model.n_steps):
            env.step(np.zeros(model.n_envs, np.int32))

    def inference() -> None:
        for _ in range(model.n_steps):
            jax.device_get(programs.decide(parameters, model._last_obs, key))

    noise_shape = (*networks.latent_shape, model.policy.n_components)

    @jax.jit
    def noise(keys: jax.Array) -> jax.Array:
        return jax.lax.map(lambda key: clipped_normal(key, (len(batches.rewards[0]), *noise_shape)), keys)

    noise_keys = jax.random.split(key, len(batches.rewards))
    lipschitz = networks.lipschitz(parameters)

    @jax.jit
    def normalize(lipschitz: Any) -> Any:
        cache = normalizer.init(lipschitz, networks.latent_map)

        def step(cache: Any, _: None) -> tuple[Any, Any]:
            cache = normalizer.refresh(cache, lipschitz, networks.latent_map)
            _, pull_back = jax.vjp(partial(normalizer.apply, cache), lipschitz)
            return cache, pull_back(lipschitz)

        return jax.lax.scan(step, cache, None, length=n_minibatches)

    optimiser = jax.jit(lambda learner: optimizer.step(learner, learner.parameters, h.step_sizes))

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
        "Lipschitz norms": lambda: normalize(lipschitz),
        "optimiser": times(n_minibatches, lambda: optimiser(state.learner)),
        "certificate": lambda: programs.certify(state, updated, rollout, h.gamma),
        "the whole update": iteration,
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
    arguments = parser().parse_args()
    n_envs, n_steps = map(int, arguments.setting.split("x"))
    print(f"Breakout, {n_envs} environments x {n_steps} steps, medians of {arguments.rounds}, one iteration:")
    print(table(measure(n_envs, n_steps, arguments.rounds)))


if __name__ == "__main__":
    main()
