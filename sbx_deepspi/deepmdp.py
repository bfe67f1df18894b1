"""DeepMDP's loss (Gelada et al., ICML 2019) on PPO: the same world model, its losses outside the clip."""

from functools import partial

import jax

from sbx_deepspi import agent, losses
from sbx_deepspi.agent import Networks
from sbx_deepspi.deepspi import Step, complete, gradient_step
from sbx_deepspi.hyperparameters import Hyperparameters, Metrics
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Transitions
from sbx_deepspi.segments import encode_pairs


def loss(
    networks: Networks,
    parameters: Parameters,
    transitions: Transitions,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[jax.Array, Metrics]:
    """
    -E[min(ρ Â, clip(ρ, 1-ε, 1+ε) Â)] + E[α_R ℓ_R + α_P ℓ_P] - c_e H(π) + c_v ½ (V - return)².

    PPO's loss, plus the world model's, which nothing clips: what it asks of the encoder does not depend on how far the
    policy has moved. With a termination model, ℓ_R + ℓ_E stands in ℓ_R's place.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: what the loss is differentiated by, of a world model that is Lipschitz
    :param transitions: B transitions, their advantages already normalised
    :param key: randomness of the latent samples
    :param hyperparameters: ε and the coefficients
    :return: the loss, and what to tell the user
    """
    h = hyperparameters
    latents, next_latents = encode_pairs(partial(agent.encode, networks, parameters), transitions)
    policy = agent.policy_terms(networks, parameters, latents, transitions.actions)
    seen = transitions.actions, transitions.rewards, transitions.terminated
    model = agent.model_losses(networks, parameters, latents, *seen, next_latents, key)

    ratios = losses.importance_ratio(policy.log_probs, transitions.log_probs)
    ppo_loss = -losses.clipped_surrogate(ratios, transitions.advantages, h.clip_range).mean()
    model_loss = (
        h.reward_loss_coef * (model.reward + model.termination) + h.transition_loss_coef * model.transition
    ).mean()
    return complete(networks, parameters, ppo_loss + model_loss, latents, policy, model, transitions, key, h)


step: Step = partial(gradient_step, loss)
"""DeepMDP's: one step of one optimiser down the gradient of :func:`loss`."""
