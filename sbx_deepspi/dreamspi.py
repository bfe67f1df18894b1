"""
DreamSPI, top to bottom: model step → dream → policy step (Delgrange et al., ICLR 2026, arXiv 2510.12312).

The policy is learned in the latent model, and the model from real data. An iteration collects a rollout as DeepSPI
does, and then :func:`update` runs the other three steps.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sbx_deepspi import agent, deepspi, devices, losses
from sbx_deepspi.agent import Networks
from sbx_deepspi.deepspi import UpdateReport
from sbx_deepspi.epochs import EpochsReport, epochs
from sbx_deepspi.hyperparameters import Hyperparameters, Metrics
from sbx_deepspi.imagination import before_the_end, imagine
from sbx_deepspi.lipschitz.normalizer import NormCache
from sbx_deepspi.optimizer import Learner, Optimizer, Parameters
from sbx_deepspi.rollout import Observations, Rollout, Transitions, to_transitions

POLICY_PARTS = ("torso", "actor", "critic")
MODEL_PARTS = ("encoder", "transition_model", "reward_model", "termination_model")
GROUPS = {"model": MODEL_PARTS, "policy": POLICY_PARTS, "dreams": POLICY_PARTS}
"""
The groups that have an optimiser, a learning rate and a limit of the norm each: "policy" steps on real data, with dyna,
"dreams" on what is dreamt. They share no momentum, or dreams of weight 0 would go on where the real data led.
"""


class PolicyMetrics(struct.PyTreeNode):
    """
    What a policy step tells the user; scalars, over what counts of a dream.

    :param loss: see :func:`policy_loss`
    :param policy_gradient_loss: the clipped objective's part of it
    :param entropy_loss: -H(π), in nats
    :param value_loss: ½ (V - return)²
    :param approx_kl: divergence from the policy that dreamt, estimated, in nats
    :param clip_fraction: part of the importance ratios outside [1 - ε, 1 + ε]
    :param gradient_norm: of the whole gradient, before it is clipped
    """

    loss: jax.Array
    policy_gradient_loss: jax.Array
    entropy_loss: jax.Array
    value_loss: jax.Array
    approx_kl: jax.Array
    clip_fraction: jax.Array
    gradient_norm: jax.Array


class DreamReport(struct.PyTreeNode):
    """
    What the dreams of an update tell the user.

    :param epochs: means of :class:`PolicyMetrics` over the minibatches, faults, early stop
    :param length: mean steps up to the end or the horizon, scalar
    :param reward: mean reward of a step, in the environment's units, scalar
    """

    epochs: EpochsReport
    length: jax.Array
    reward: jax.Array


def model_loss(
    networks: Networks,
    parameters: Parameters,
    transitions: Transitions,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> tuple[jax.Array, Metrics]:
    """
    DeepSPI's -J on real data, with torso, actor and critic standing still: encoder and world model move as far as the
    neighbourhood lets them.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: what J is differentiated by, of a world model that is Lipschitz
    :param transitions: B transitions, their advantages already normalised
    :param key: randomness of the latent samples
    :param hyperparameters: ε and the coefficients
    :return: -J, and what to tell the user
    """
    still = {part: jax.lax.stop_gradient(parameters[part]) for part in POLICY_PARTS}
    return deepspi.loss(networks, parameters | still, transitions, key, hyperparameters)


def model_step(
    networks: Networks,
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    learner: Learner,
    norms: NormCache,
    minibatch: Transitions,
    key: jax.Array,
) -> tuple[Learner, Metrics]:
    """
    A step of encoder and world model down the gradient of :func:`model_loss`.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param optimizer: of the groups
    :param hyperparameters: see :class:`~sbx_deepspi.hyperparameters.Hyperparameters`
    :param learner: parameters and optimiser, before the step
    :param norms: what is known of the Lipschitz kernels' norms
    :param minibatch: B real transitions
    :param key: randomness of the latent samples
    :return: parameters and optimiser after the step, and what to tell the user
    """
    h = hyperparameters
    gradients, metrics = deepspi.gradient(model_loss, networks, learner.parameters, norms, minibatch, key, h)
    return optimizer.of("model").step(learner, gradients, h.step_sizes), metrics


def dream(
    networks: Networks,
    parameters: Parameters,
    rollout: Rollout,
    reward_scale: float | jax.Array,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> Transitions:
    """
    Imagined episodes from every φ(s) of a rollout, as transitions to learn from. No gradient leads through them.

    :param networks: with a world model
    :param parameters: of all networks
    :param rollout: T steps of N environments
    :param reward_scale: σ, the unit of R̄
    :param key: randomness
    :param hyperparameters: γ, λ, and the number and length H of dreams
    :return: n_dreams · T · N · H transitions of latents, rewards in the environment's units; those behind an end do
        not count
    """
    h, d = hyperparameters, hyperparameters.dream
    assert d is not None
    parameters = jax.lax.stop_gradient(agent.normalized(networks, parameters))
    latents = agent.encode(networks, parameters, rollout.flat().observations)
    imagined = imagine(networks, parameters, jnp.concatenate([latents] * d.n_dreams), d.horizon, key)
    _, last_values = agent.policy_and_values(networks, parameters, imagined.next_observations[-1])
    in_units = imagined.replace(rewards=reward_scale * imagined.rewards, next_observations=None)
    counts = before_the_end(imagined.terminated)
    return to_transitions(in_units, last_values, h.gamma, h.gae_lambda).replace(counts=counts.T.reshape(-1))


def policy_loss(
    networks: Networks, parameters: Parameters, transitions: Transitions, hyperparameters: Hyperparameters
) -> tuple[jax.Array, PolicyMetrics]:
    """
    -E[min(ρ Â, clip(ρ, 1-ε, 1+ε) Â)] - c_e H(π) + c_v ½ (V - return)² on what counts of a dream: PPO's loss.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param parameters: what the loss is differentiated by
    :param transitions: B transitions of latents, their advantages already normalised
    :param hyperparameters: ε and the coefficients
    :return: the loss, and what to tell the user
    """
    h, counts = hyperparameters, transitions.counts
    policy = agent.policy_terms(networks, parameters, transitions.observations, transitions.actions)
    log_ratios = policy.log_probs - transitions.log_probs
    ratios = losses.importance_ratio(policy.log_probs, transitions.log_probs)
    surrogate = losses.clipped_surrogate(ratios, transitions.advantages, h.clip_range)
    surrogate_loss = -losses.mean(surrogate, counts)
    entropy_loss = -losses.mean(policy.entropies, counts)
    value_losses = losses.value_loss(policy.values, transitions.returns, transitions.values, h.clip_range_vf)
    value_loss = losses.mean(value_losses, counts)
    total = surrogate_loss + h.ent_coef * entropy_loss + h.vf_coef * value_loss
    return total, PolicyMetrics(
        loss=total,
        policy_gradient_loss=surrogate_loss,
        entropy_loss=entropy_loss,
        value_loss=value_loss,
        approx_kl=losses.approximate_kl(log_ratios, counts),
        clip_fraction=losses.mean(jnp.abs(ratios - 1) > h.clip_range, counts),
        gradient_norm=jnp.zeros(()),  # known after the gradient
    )


def policy_step(
    networks: Networks,
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    learner: Learner,
    minibatch: Transitions,
) -> tuple[Learner, PolicyMetrics]:
    """
    A step of torso, actor and critic down the gradient of :func:`policy_loss`.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param optimizer: of the groups
    :param hyperparameters: see :class:`~sbx_deepspi.hyperparameters.Hyperparameters`
    :param learner: parameters and optimiser, before the step
    :param minibatch: B transitions of latents
    :return: parameters and optimiser after the step, and what to tell the user
    """
    h = hyperparameters
    if h.normalize_advantage:
        minibatch = minibatch.replace(advantages=losses.normalize(minibatch.advantages, minibatch.counts))
    of_own = jax.grad(policy_loss, argnums=1, has_aux=True)(networks, learner.parameters, minibatch, h)
    gradients, metrics = devices.mean(of_own)
    learner = optimizer.of("dreams").step(learner, gradients, h.step_sizes)
    learner = learner.replace(parameters=agent.limit_policy(networks, learner.parameters))
    return learner, metrics.replace(gradient_norm=optax.tree.norm(gradients))


def update(
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
    What an iteration makes of its rollout: a better model, dreams in it, and a better policy from these.

    :param networks: with a world model
    :param optimizer: of the groups
    :param learner: parameters and optimiser
    :param rollout: T steps of N environments
    :param last_observations: what follows the rollout's last step, shape (N, ...)
    :param reward_scale: σ, the unit in which the world model predicts rewards
    :param key: randomness, used up
    :param hyperparameters: see :class:`~sbx_deepspi.hyperparameters.Hyperparameters`
    :return: the new parameters and optimiser, and what to tell the user
    """
    h = hyperparameters
    assert h.dream is not None
    model_key, dream_key, policy_key = jax.random.split(key, 3)
    # with dyna, actor and critic learn from the real data, too, as DeepSPI's do
    step, of_step = (deepspi.step, optimizer.of("model", "policy")) if h.dream.dyna else (model_step, optimizer)
    learner, report = deepspi.update(
        step, networks, of_step, learner, rollout, last_observations, reward_scale, model_key, h
    )

    dreamt = dream(networks, learner.parameters, rollout, reward_scale, devices.own(dream_key), h)

    learner, of_policy = epochs(
        lambda learner, _, minibatch, key: policy_step(networks, optimizer, h, learner, minibatch),
        lambda learner, _: None,
        lambda learner: learner.parameters,
        learner,
        None,
        dreamt,
        devices.own(policy_key),
        n_epochs=1,
        batch_size=h.batch_size,
        target_kl=h.target_kl,
        microbatch_size=h.batch_size,
    )
    n_dreams = dreamt.rewards.size / h.dream.horizon
    assert dreamt.counts is not None
    length, reward = devices.mean((dreamt.counts.sum() / n_dreams, losses.mean(dreamt.rewards, dreamt.counts)))
    return learner, report.replace(dreams=DreamReport(of_policy, length, reward))
