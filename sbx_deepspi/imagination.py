"""Episodes that the latent model imagines."""

import jax
import jax.numpy as jnp

from sbx_deepspi import agent
from sbx_deepspi.agent import Networks
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Rollout


def imagine(networks: Networks, parameters: Parameters, latents: jax.Array, horizon: int, key: jax.Array) -> Rollout:
    """
    Follow the latent policy π̄ in the latent model: a ~ π̄(·|z), r̂ = R̄(z, a), ẑ' ~ P̄(·|z, a).

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z to begin with, shape (N, ...)
    :param horizon: T, number of steps
    :param key: randomness of actions and next latents
    :return: a rollout of latents, arrays of shape (T, N, ...), in which no episode ends; rewards in units of σ
    """

    def step(latents: jax.Array, key: jax.Array) -> tuple[jax.Array, Rollout]:
        action_key, step_key = jax.random.split(key)
        decision = agent.act(networks, parameters, latents, action_key)
        rewards, next_latents = agent.predict(networks, parameters, latents, decision.actions, step_key)
        never = jnp.zeros(len(latents), bool)
        return next_latents, Rollout(
            observations=latents,
            next_observations=next_latents,
            actions=decision.actions,
            rewards=rewards,
            terminated=never,
            truncated=never,
            truncated_values=jnp.zeros(len(latents)),
            values=decision.values,
            log_probs=decision.log_probs,
            log_policy=decision.log_policy,
        )

    return jax.lax.scan(step, latents, jax.random.split(key, horizon))[1]
