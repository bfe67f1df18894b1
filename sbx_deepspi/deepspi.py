"""
DeepSPI, top to bottom: loss → gradient → step → update (Delgrange et al., ICLR 2026, arXiv 2510.12312).

The equations are in :mod:`sbx_deepspi.losses`, what the networks are asked in :mod:`sbx_deepspi.agent`, epochs and
minibatches in :mod:`sbx_deepspi.epochs`. The baseline's loss is in :mod:`sbx_deepspi.deepmdp`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sbx_deepspi import agent, devices, losses
from sbx_deepspi.agent import ModelLosses, Networks, PolicyTerms
from sbx_deepspi.epochs import EpochsReport, epochs
from sbx_deepspi.hyperparameters import Hyperparameters, Metrics
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.lipschitz.normalizer import NormCache
from sbx_deepspi.optimizer import Learner, Optimizer, Parameters
from sbx_deepspi.rollout import Observations, Rollout, Transitions, to_transitions
from sbx_deepspi.segments import encode_pairs, mean_over_parts


class UpdateReport(struct.PyTreeNode):
    """
    What an update tells the user.

    :param epochs: means of :class:`Metrics` over the minibatches, faults, early stop
    :param explained_variance: of the returns by the values at collection time, scalar
    :param dreams: see :class:`~sbx_deepspi.dreamspi.DreamReport`; ``None`` of algorithms that do not dream
    """

    epochs: EpochsReport
    explained_variance: jax.Array
    dreams: Any = None


Loss = Callable[[Networks, Parameters, Transitions, jax.Array, Hyperparameters], tuple[jax.Array, Metrics]]


def loss(
    networks: Networks,
    parameters: Parameters,
    transitions: Transitions,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[jax.Array, Metrics]:
    """
    -J = -E[min(ρ U, clip(ρ, 1-ε, 1+ε) U)] - c_e H(π) + c_v ½ (V - return)², with U = Â - α_R ℓ_R - α_P ℓ_P.

    ℓ_R and ℓ_P stay differentiable inside the clip: the encoder moves no faster than the neighbourhood lets it.
    With a termination model, ℓ_R + ℓ_E stands in ℓ_R's place.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: what J is differentiated by, of a world model that is Lipschitz
    :param transitions: B transitions, their advantages already normalised
    :param key: randomness of the latent samples
    :param hyperparameters: ε and the coefficients
    :return: -J, and what to tell the user
    """
    h = hyperparameters
    latents, next_latents = encode_pairs(partial(agent.encode, networks, parameters), transitions)
    policy = agent.policy_terms(networks, parameters, latents, transitions.actions)
    seen = transitions.actions, transitions.rewards, transitions.terminated
    model = agent.model_losses(networks, parameters, latents, *seen, next_latents, key)
    of_rewards = model.reward + model.termination
    utilities = losses.utility(
        transitions.advantages, of_rewards, model.transition, h.reward_loss_coef, h.transition_loss_coef
    )
    ratios = losses.importance_ratio(policy.log_probs, transitions.log_probs)
    policy_loss = -losses.clipped_surrogate(ratios, utilities, h.clip_range).mean()
    return complete(networks, parameters, policy_loss, latents, policy, model, transitions, key, h)


def complete(
    networks: Networks,
    parameters: Parameters,
    policy_loss: jax.Array,
    latents: jax.Array,
    policy: PolicyTerms,
    model: ModelLosses,
    transitions: Transitions,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[jax.Array, Metrics]:
    """
    Add what every algorithm here has in common: entropy, values and, where asked for, the gradient penalty.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: of all of them, normalised
    :param policy_loss: of policy and world model
    :param latents: φ(s), shape (B, ...)
    :param policy: terms of policy and values
    :param model: losses of the world model
    :param transitions: B transitions
    :param key: randomness of the penalty's directions
    :param hyperparameters: the coefficients
    :return: the whole loss, and what to tell the user
    """
    h = hyperparameters
    entropy_loss = -policy.entropies.mean()
    value_loss = losses.value_loss(policy.values, transitions.returns, transitions.values, h.clip_range_vf).mean()
    total = policy_loss + h.ent_coef * entropy_loss + h.vf_coef * value_loss
    gradient_penalty = jnp.zeros(())
    if h.gradient_penalty_coef is not None:
        key = jax.random.fold_in(key, len(latents))  # the model's losses have those below
        gradient_penalty = agent.gradient_penalties(networks, parameters, latents, transitions.actions, key).mean()
        total += h.gradient_penalty_coef * gradient_penalty
    log_ratios = policy.log_probs - transitions.log_probs
    return total, Metrics(
        loss=total,
        policy_gradient_loss=policy_loss,
        entropy_loss=entropy_loss,
        value_loss=value_loss,
        reward_loss=model.reward.mean(),
        transition_loss=model.transition.mean(),
        termination_loss=model.termination.mean(),
        gradient_penalty=gradient_penalty,
        approx_kl=losses.approximate_kl(log_ratios),
        clip_fraction=jnp.mean(jnp.abs(jnp.exp(log_ratios) - 1) > h.clip_range),
        gradient_norm=jnp.zeros(()),  # known after the gradient
    )


def gradient(
    loss: Loss,
    networks: Networks,
    parameters: Parameters,
    norms: NormCache,
    minibatch: Transitions,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[Parameters, Metrics]:
    """
    The gradient of a loss on a minibatch, through the norms by which Lipschitz kernels are divided.

    :param loss: see :func:`loss`
    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: of all of them, as they are learned
    :param norms: what is known of the Lipschitz kernels' norms
    :param minibatch: B transitions
    :param key: randomness of the latent samples
    :param hyperparameters: see :class:`Hyperparameters`
    :return: the gradient by the parameters, and what to tell the user
    """
    if hyperparameters.normalize_advantage:
        minibatch = minibatch.replace(advantages=losses.normalize(minibatch.advantages))

    def normalize(parameters: Parameters) -> Parameters:
        return parameters | normalizer.apply(norms, networks.lipschitz(parameters))

    normalized, pull_back = jax.vjp(normalize, parameters)
    slope: Callable[..., tuple[Parameters, Metrics]] = jax.grad(loss, argnums=1, has_aux=True)

    def gradient_of_part(transitions: Transitions, key: jax.Array) -> tuple[Parameters, Metrics]:
        return slope(networks, normalized, transitions, key, hyperparameters)

    gradients, metrics = mean_over_parts(gradient_of_part, minibatch, key, hyperparameters.microbatch_size)
    gradients, metrics = devices.mean((*pull_back(gradients), metrics))
    return gradients, metrics.replace(gradient_norm=optax.tree.norm(gradients))


def gradient_step(
    loss: Loss,
    networks: Networks,
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    learner: Learner,
    norms: NormCache,
    minibatch: Transitions,
    key: jax.Array,
) -> tuple[Learner, Metrics]:
    """
    One step of the optimiser down the gradient of a loss; then the policy is made as Lipschitz as asked for.

    :param loss: see :func:`loss`
    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param optimizer: of all parameters, or of those groups that step
    :param hyperparameters: see :class:`Hyperparameters`
    :param learner: parameters and optimiser, before the step
    :param norms: what is known of the Lipschitz kernels' norms
    :param minibatch: B transitions
    :param key: randomness of the latent samples
    :return: parameters and optimiser after the step, and what to tell the user
    """
    gradients, metrics = gradient(loss, networks, learner.parameters, norms, minibatch, key, hyperparameters)
    learner = optimizer.step(learner, gradients, hyperparameters.step_sizes)
    learner = learner.replace(parameters=agent.limit_policy(networks, learner.parameters))
    return learner, metrics


Step = Callable[[Networks, Optimizer, Hyperparameters, Learner, NormCache, Transitions, jax.Array], tuple[Learner, Any]]
step: Step = partial(gradient_step, loss)
"""DeepSPI's: one step of one optimiser down the gradient of :func:`loss`."""


def update(
    step: Step,
    networks: Networks,
    optimizer: Optimizer,
    learner: Learner,
    rollout: Rollout,
    last_observations: Observations,
    reward_scale: float | jax.Array,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[Learner, UpdateReport]:
    """
    What an iteration makes of its rollout: advantages, then epochs of steps.

    :param step: such as :data:`step`
    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param optimizer: of all parameters
    :param learner: parameters and optimiser
    :param rollout: T steps of N environments
    :param last_observations: what follows the rollout's last step, shape (N, ...)
    :param reward_scale: σ, the unit in which the world model predicts rewards
    :param key: randomness of minibatches and latent samples, used up
    :param hyperparameters: see :class:`Hyperparameters`
    :return: the new parameters and optimiser, and what to tell the user
    """
    h = hyperparameters
    last_values = agent.values(networks, learner.parameters, last_observations)
    transitions = to_transitions(rollout, last_values, h.gamma, h.gae_lambda)
    transitions = transitions.replace(rewards=transitions.rewards / reward_scale, segment_length=h.segment_length)
    learner, report = epochs(
        partial(step, networks, optimizer, h),
        lambda learner, norms: normalizer.refresh(norms, networks.lipschitz(learner.parameters), networks.latent_map),
        lambda learner: learner.parameters,
        learner,
        normalizer.init(networks.lipschitz(learner.parameters), networks.latent_map),
        transitions,
        devices.own(key),
        n_epochs=h.n_epochs,
        batch_size=h.batch_size,
        target_kl=h.target_kl,
        microbatch_size=h.microbatch_size,
    )
    return learner, UpdateReport(report, losses.explained_variance(transitions.values, transitions.returns))


Update = Callable[
    [Networks, Optimizer, Learner, Rollout, Observations, float | jax.Array, jax.Array, Hyperparameters],
    tuple[Learner, UpdateReport],
]
"""What an algorithm makes of a rollout; DeepSPI's is :func:`update` of :data:`step`."""
