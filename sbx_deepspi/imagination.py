"""Episodes that the latent model imagines."""

from typing import Any

import jax
import jax.numpy as jnp

from sbx_deepspi import agent
from sbx_deepspi.agent import Networks
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Array, Rollout


def imagine(networks: Networks, parameters: Parameters, latents: jax.Array, horizon: int, key: jax.Array) -> Rollout:
    """
    Follow the latent policy π̄ in the latent model: a ~ π̄(·|z), r̂ = R̄(z, a), ẑ' ~ P̄(·|z, a), end ~ Ē(ẑ').

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z to begin with, shape (N, ...)
    :param horizon: T, number of steps
    :param key: randomness of actions, next latents and ends
    :return: a rollout of latents, arrays of shape (T, N, ...); rewards in units of σ. An imagined episode goes on
        behind its end, where it counts for nothing: see :func:`before_the_end`
    """

    def step(latents: jax.Array, key: jax.Array) -> tuple[jax.Array, Rollout]:
        action_key, step_key, end_key = jax.random.split(key, 3)
        noise = agent.action_noise(networks, action_key, len(latents))
        decision = agent.act(networks, parameters, latents, noise)
        rewards, next_latents = agent.predict(networks, parameters, latents, decision.actions, step_key)
        end_probabilities = agent.end_probabilities(networks, parameters, next_latents)
        ends = jax.random.uniform(end_key, end_probabilities.shape) < end_probabilities
        return next_latents, Rollout(
            observations=latents,
            next_observations=None,  # the next step's observations, see below
            actions=decision.actions,
            rewards=rewards,
            terminated=ends,
            truncated=jnp.zeros_like(ends),
            truncated_values=jnp.zeros(len(latents)),
            values=decision.values,
            log_probs=decision.log_probs,
            log_policy=decision.log_policy,
        )

    last, rollout = jax.lax.scan(step, latents, jax.random.split(key, horizon))
    return rollout.replace(next_observations=jnp.concatenate([rollout.observations[1:], last[None]]))


def before_the_end(terminated: Array) -> Any:
    """
    :param terminated: whether a step ended an imagined episode, bool, shape (T, N)
    :return: which steps count, bool, shape (T, N): those before the first end, and the step that leads to it
    """
    return terminated.cumsum(axis=0) - terminated == 0


def discounted_returns(imagined: Rollout, last_values: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """
    Σ γᵗ r̂_t up to the end of an imagined episode, or up to the horizon T and γᵀ V(ẑ_T) from there.

    :param imagined: T steps from N latent states, their rewards in the environment's units
    :param last_values: V of the latent states that follow the last step, shape (N,)
    :param gamma: γ
    :return: shape (N,)
    """
    horizon = len(imagined.rewards)
    discounts = jnp.asarray(gamma) ** jnp.arange(horizon)[:, None]
    returns = (discounts * imagined.rewards).sum(axis=0, where=before_the_end(imagined.terminated))
    return returns + gamma**horizon * jnp.where(imagined.terminated.any(axis=0), 0.0, last_values)
