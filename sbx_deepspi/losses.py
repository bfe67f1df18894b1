"""DeepSPI's objective, one pure function per equation (Delgrange et al., ICLR 2026, arXiv 2510.12312).

Every function takes and returns float arrays; ``B`` is the number of transitions in a minibatch.
"""

import jax
import jax.numpy as jnp
import optax

from sbx_deepspi import devices


def huber(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """
    :param predicted: of any shape
    :param target: of the same shape
    :return: half of the difference's square where that is at most 1 either way, and linear beyond
    """
    costs: jax.Array = optax.losses.huber_loss(predicted, target)
    return costs


def reward_loss(predicted_rewards: jax.Array, rewards: jax.Array) -> jax.Array:
    """
    ℓ_R = huber(R̄(φ(s), a) - r/σ), δ = 1, one number per transition, σ = max(1, root mean square of the rewards).

    :param predicted_rewards: R̄(φ(s), a), shape (B,)
    :param rewards: r/σ, r as the environment gave it, without any bootstrapped value, shape (B,)
    :return: shape (B,)
    """
    return huber(predicted_rewards, rewards)


def transition_loss(predicted_latents: jax.Array, next_latents: jax.Array) -> jax.Array:
    """
    ℓ_P = Σ huber(ẑ' - φ(s')), δ = 1, summed over the latent dimensions: one number per transition.

    :param predicted_latents: ẑ', a reparameterised sample of P̄(·|φ(s), a), shape (B, ...)
    :param next_latents: φ(s'), shape (B, ...)
    :return: shape (B,)
    """
    losses = huber(predicted_latents, next_latents)
    return losses.sum(axis=tuple(range(1, losses.ndim)))


def termination_loss(end_probabilities: jax.Array, terminated: jax.Array) -> jax.Array:
    """
    ℓ_E = huber(Ē(φ(s')) - 1[s' is terminal]), δ = 1, one number per transition. Time limits are not terminal.

    :param end_probabilities: Ē(φ(s')), shape (B,)
    :param terminated: whether s' is terminal, bool, shape (B,)
    :return: shape (B,)
    """
    return huber(end_probabilities, terminated.astype(end_probabilities.dtype))


def categorical_huber_loss(predicted: jax.Array, log_probs: jax.Array, next_latents: jax.Array) -> jax.Array:
    """
    ℓ_P of one-hot latents: Σ huber(ẑ' - φ(s')) over the classes, averaged over the variables.

    :param predicted: ẑ', a straight-through sample of P̄(·|φ(s), a), shape (B, variables, classes)
    :param log_probs: log P̄(·|φ(s), a) of each variable, same shape; in nats
    :param next_latents: φ(s'), one-hot, same shape
    :return: shape (B,); 1 where every variable differs
    """
    return huber(predicted, next_latents).sum(axis=-1).mean(axis=-1)


def hamming_loss(predicted: jax.Array, log_probs: jax.Array, next_latents: jax.Array) -> jax.Array:
    """
    ℓ_P of one-hot latents: the share of variables in which ẑ' and φ(s') differ.

    :param predicted: ẑ', one-hot, shape (B, variables, classes)
    :param log_probs: log P̄(·|φ(s), a) of each variable, same shape; in nats
    :param next_latents: φ(s'), one-hot, same shape
    :return: shape (B,); in [0, 1]
    """
    return 1 - (predicted * next_latents).sum(axis=-1).mean(axis=-1)


def cross_entropy_loss(predicted: jax.Array, log_probs: jax.Array, next_latents: jax.Array) -> jax.Array:
    """
    ℓ_P of one-hot latents: -log P̄(φ(s')), linear in φ(s') so that its gradient reaches it, averaged over the variables.

    :param predicted: ẑ', one-hot, shape (B, variables, classes)
    :param log_probs: log P̄(·|φ(s), a) of each variable, same shape; in nats
    :param next_latents: φ(s'), one-hot, same shape
    :return: shape (B,); in nats
    """
    return -(next_latents * log_probs).sum(axis=-1).mean(axis=-1)


def jensen_shannon_loss(predicted: jax.Array, log_probs: jax.Array, next_latents: jax.Array) -> jax.Array:
    """
    ℓ_P of one-hot latents: the Jensen–Shannon divergence of P̄ and φ(s'), averaged over the variables.

    A hundredth of the uniform distribution is mixed into both, which keeps the gradient finite at 0.

    :param predicted: ẑ', one-hot, shape (B, variables, classes)
    :param log_probs: log P̄(·|φ(s), a) of each variable, same shape; in nats
    :param next_latents: φ(s'), one-hot, same shape
    :return: shape (B,); in nats, at most log 2
    """
    smooth = 0.01 / log_probs.shape[-1]
    model, observed = (0.99 * probs + smooth for probs in (jnp.exp(log_probs), next_latents))
    middle = jnp.log(0.5 * (model + observed))
    divergence = 0.5 * (model * (jnp.log(model) - middle) + observed * (jnp.log(observed) - middle))
    return divergence.sum(axis=-1).mean(axis=-1)


CATEGORICAL_COSTS = {
    "huber": categorical_huber_loss,
    "hamming": hamming_loss,
    "cross_entropy": cross_entropy_loss,
    "jensen_shannon": jensen_shannon_loss,
}
"""ℓ_P of categorical latents, by name."""


def mean(numbers: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """
    :param numbers: shape (B,)
    :param counts: which of them count, bool, shape (B,); ``None``: all
    :return: their mean, scalar; 0 where none counts. Of several devices each has its part of it, whose mean is it
    """
    if counts is None:
        return numbers.mean()
    n_counted = jnp.maximum(devices.total(counts.sum()), 1)
    return numbers.sum(where=counts) * devices.count() / n_counted


def normalize(advantages: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """
    Advantages with mean 0 and standard deviation 1 over the minibatch, of all devices.

    :param advantages: Â, shape (B,)
    :param counts: which of them count, bool, shape (B,); ``None``: all
    :return: shape (B,); where B is 1, the advantage as it is
    """
    if advantages.size * devices.count() <= 1:
        return advantages
    deviations = advantages - devices.mean(mean(advantages, counts))
    return deviations / (jnp.sqrt(devices.mean(mean(deviations**2, counts))) + 1e-8)


def utility(
    advantages: jax.Array,
    reward_losses: jax.Array,
    transition_losses: jax.Array,
    reward_loss_coef: float | jax.Array,
    transition_loss_coef: float | jax.Array,
) -> jax.Array:
    """
    U = Â - α_R ℓ_R - α_P ℓ_P, what DeepSPI puts in the place of the advantage.

    The losses stay differentiable: that is how the clip bounds the encoder's step as well as the policy's.

    :param advantages: Â, already normalised, shape (B,)
    :param reward_losses: ℓ_R, shape (B,)
    :param transition_losses: ℓ_P, shape (B,)
    :param reward_loss_coef: α_R
    :param transition_loss_coef: α_P
    :return: shape (B,)
    """
    return advantages - reward_loss_coef * reward_losses - transition_loss_coef * transition_losses


def importance_ratio(log_probs: jax.Array, old_log_probs: jax.Array) -> jax.Array:
    """
    ρ = D_IR of the sampled pair = π'(a|s) / π(a|s).

    :param log_probs: log π'(a|s) under the policy being updated, shape (B,)
    :param old_log_probs: log π(a|s) under the policy that collected the data, shape (B,)
    :return: shape (B,)
    """
    return jnp.exp(log_probs - old_log_probs)


def clipped_surrogate(ratios: jax.Array, utilities: jax.Array, clip_range: float | jax.Array) -> jax.Array:
    """
    min(ρ U, clip(ρ, 1-ε, 1+ε) U): PPO's clipped objective (Schulman et al. 2017, eq. 7) on the utility.

    :param ratios: ρ, shape (B,)
    :param utilities: U, shape (B,)
    :param clip_range: ε
    :return: shape (B,), to be maximised
    """
    return jnp.minimum(ratios * utilities, jnp.clip(ratios, 1 - clip_range, 1 + clip_range) * utilities)


def value_loss(
    values: jax.Array, returns: jax.Array, old_values: jax.Array, clip_range_vf: float | jax.Array | None
) -> jax.Array:
    """
    ½(V - return)², with V kept within ``clip_range_vf`` of the value at collection time when that is given.

    :param values: V(s) now, shape (B,)
    :param returns: the TD(λ) targets, shape (B,)
    :param old_values: V(s) when the data was collected, shape (B,)
    :param clip_range_vf: largest change of a value, in the units of the return; ``None``: no limit
    :return: shape (B,)
    """
    if clip_range_vf is not None:
        values = old_values + jnp.clip(values - old_values, -clip_range_vf, clip_range_vf)
    return 0.5 * (values - returns) ** 2


def approximate_kl(log_ratios: jax.Array, counts: jax.Array | None = None) -> jax.Array:
    """
    Estimate of KL(π ‖ π') from samples of π: the mean of (ρ - 1) - log ρ, never negative.

    :param log_ratios: log ρ, shape (B,)
    :param counts: which of them count, bool, shape (B,); ``None``: all
    :return: scalar, in nats
    """
    return mean(jnp.expm1(log_ratios) - log_ratios, counts)


def explained_variance(values: jax.Array, returns: jax.Array) -> jax.Array:
    """
    1 - Var(return - V) / Var(return), over all devices.

    :param values: V(s) when the data was collected, shape (B,)
    :param returns: the TD(λ) targets, shape (B,)
    :return: scalar, at most 1; NaN where all returns are equal
    """
    variance, unexplained = devices.variance(returns), devices.variance(returns - values)
    return jnp.where(variance > 0, 1 - unexplained / variance, jnp.nan)
