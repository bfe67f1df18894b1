"""Rollouts of environments inside jit: a scan, to be compiled together with what learns from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from sbx_deepspi import agent
from sbx_deepspi.agent import Networks
from sbx_deepspi.collect.copies import Copies, CopiesState, Outcome
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Observations, Rollout


@dataclass(frozen=True)
class Environments:
    """
    What a rollout is collected from.

    :param copies: of an environment
    :param observed: their observations → as the networks take them
    :param acted: actions as the policy samples them → as the environment takes them
    :param n_steps: T, steps of each copy in a rollout
    """

    copies: Copies
    observed: Callable[[Any], Observations]
    acted: Callable[[jax.Array], jax.Array]
    n_steps: int


def collect(
    networks: Networks, parameters: Parameters, state: CopiesState, key: jax.Array, *, environments: Environments
) -> tuple[Rollout, Outcome, CopiesState, jax.Array]:
    """
    Run the behaviour policy.

    :param networks: without parameters
    :param parameters: of the behaviour policy
    :param state: of the environments
    :param key: randomness of actions, used up
    :param environments: what to run it in
    :return: T steps of N environments; what the host is told of them, without s', arrays of shape (T, N); the
        environments' state after them; and a key
    """

    key, keys = jax.lax.scan(lambda key, _: agent.next_keys(key), key, length=environments.n_steps)
    n_envs = environments.copies.n_envs
    noise = jax.vmap(lambda key: agent.action_noise(networks, key, n_envs))(keys)

    def step(state: CopiesState, noise: jax.Array) -> tuple[CopiesState, Any]:
        observations = environments.observed(state.observations)
        decision = agent.act(networks, parameters, agent.encode(networks, parameters, observations), noise)
        state, made = environments.copies.step(state, environments.acted(decision.actions))
        next_observations = environments.observed(made.next_observations)

        def truncated_values() -> jax.Array:
            return jnp.where(made.truncated, agent.values(networks, parameters, next_observations), 0.0)

        rollout = Rollout(
            observations=observations,
            next_observations=next_observations,
            actions=decision.actions,
            rewards=made.rewards,
            terminated=made.terminated,
            truncated=made.truncated,
            truncated_values=jax.lax.cond(made.truncated.any(), truncated_values, lambda: jnp.zeros_like(made.rewards)),
            values=decision.values,
            log_probs=decision.log_probs,
            log_policy=decision.log_policy,
        )
        return state, (rollout, made.replace(next_observations=None))

    state, (rollout, episodes) = jax.lax.scan(step, state, noise)
    return rollout, episodes, state, key
