"""The bound on what an update can cost, as formulas.

For an update from π_b (with encoder φ_b and latent model M̄_b) to π = π̄ ∘ φ (with M̄), every episode's expected return
up to its end satisfies

    abs(return(π) - latent return(π̄)) ≤ C · AEL · (L_R + γ K_V L_P) + L_end,   C = D_IR^sup < 1/γ,

and with the same for π_b at C = 1: real improvement ≥ latent improvement - ζ. ``docs/guarantee.md`` proves it and
compares it with the paper's bound, whose 1 / (1/C - γ) is never below C.

With a termination model Ē the latent MDP ends, and K_V is the constant of what it is worth to arrive at z',
W(z') = (1 - Ē(z')) V̄(z'). Without one Ē is 0, and W is V̄.
"""

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.networks.choices import by_size
from sbx_deepspi.rollout import Array

Scalar = jax.Array | float


class RatioRange(struct.PyTreeNode):
    """
    Least and greatest importance ratio π(a|s) / π_b(a|s).

    :param inf: D_IR^inf
    :param sup: D_IR^sup
    """

    inf: Scalar
    sup: Scalar


class ModelErrors(struct.PyTreeNode):
    """
    What the bound asks of one encoder with its latent policy and latent model; scalars. Expectations are under the
    states and actions of π_b.

    :param reward_error: L_R = E abs(R - R̄), in units of reward
    :param transition_error: L_P = E W₁(φP, P̄), in Euclidean units of the latent space
    :param end_value: L_end ≥ E Σ abs(1[the episode ends at s'] - Ē(φ(s'))) abs(V̄(φ(s'))) over an episode's steps: what
        the latent model gets wrong about ends. Without a termination model, what it expects where an episode has ended
    :param reward_lipschitz: K_R of z ↦ E_π̄ R̄(z, a)
    :param transition_lipschitz: K_P of z ↦ E_π̄ P̄(·|z, a), in W₁
    :param end_lipschitz: K_E V_max, the Lipschitz constant of Ē times the greatest abs(V̄); 0 where there is no Ē
    """

    reward_error: Scalar
    transition_error: Scalar
    end_value: Scalar
    reward_lipschitz: Scalar
    transition_lipschitz: Scalar
    end_lipschitz: Scalar = 0.0


def importance_ratio_range(log_policy: Array, behaviour_log_policy: Array, choices: tuple[int, ...] = ()) -> RatioRange:
    """
    D_IR^inf and D_IR^sup over states and over every action listed; several choices at once multiply.

    :param log_policy: log π(·|s), shape (B, n), or (B, Σ n) of several choices side by side
    :param behaviour_log_policy: log π_b(·|s), same shape
    :param choices: number of options n of each choice; empty: what is listed are single actions
    :return: scalars
    """
    log_ratios = jnp.asarray(log_policy - behaviour_log_policy)
    blocks = [block for _, block in by_size(log_ratios, choices or log_ratios.shape[-1:])]
    smallest, largest = (
        jnp.stack([extreme(block, axis=-1).sum(axis=-1) for block in blocks]).sum(axis=0)
        for extreme in (jnp.min, jnp.max)
    )
    return RatioRange(inf=jnp.exp(smallest.min()), sup=jnp.exp(largest.max()))


def value_lipschitz(model: ModelErrors, gamma: Scalar) -> jax.Array:
    """
    K_V = (K_R + K_E V_max) / (1 - γ K_P), the Lipschitz constant of W(z') = (1 - Ē(z')) V̄(z').

    :param model: K_R, K_P and K_E V_max
    :param gamma: γ
    :return: scalar; infinite unless K_P < 1/γ
    """
    contraction = 1 - gamma * jnp.asarray(model.transition_lipschitz)
    steepness = model.reward_lipschitz + model.end_lipschitz
    return jnp.where(contraction > 0, steepness / jnp.where(contraction > 0, contraction, 1.0), jnp.inf)


def largest_value(largest_reward: Scalar, gamma: Scalar) -> jax.Array:
    """
    V_max = R_max / (1 - γ).

    :param largest_reward: R_max ≥ abs(R̄)
    :param gamma: γ
    :return: scalar; infinite unless γ < 1
    """
    return jnp.where(
        jnp.asarray(gamma) < 1, largest_reward / jnp.where(jnp.asarray(gamma) < 1, 1 - gamma, 1.0), jnp.inf
    )


def model_error(model: ModelErrors, gamma: Scalar) -> jax.Array:
    """
    L_R + γ K_V L_P: how far one step of the latent model is from one of the environment, in value.

    :param model: errors and Lipschitz constants
    :param gamma: γ
    :return: scalar
    """
    k_value = value_lipschitz(model, gamma)
    transition_error = jnp.asarray(gamma * model.transition_error)
    # where there is no error, no Lipschitz value is needed; and infinity times 0 would be NaN
    return model.reward_error + jnp.where(transition_error > 0, k_value * transition_error, 0.0)


def value_bound(
    model: ModelErrors, reward: Scalar, distance: Scalar, gamma: Scalar, end_probability: Scalar = 0.0
) -> jax.Array:
    """
    Bound of abs(V̄(z)): since V̄(z) = E[R̄ + γ W(ẑ')], it is at most
    (E abs(R̄) + γ K_V E‖ẑ' - z‖) / (1 - γ (1 - Ē(z))).

    :param model: K_R, K_P and K_E V_max
    :param reward: E abs(R̄(z, a)) under π̄
    :param distance: E‖ẑ' - z‖₂ under π̄ and P̄
    :param gamma: γ
    :param end_probability: Ē(z); 0 without a termination model
    :return: scalar; infinite unless γ < 1 or Ē(z) > 0, and K_P < 1/γ or γ E‖ẑ' - z‖ = 0
    """
    moved = jnp.asarray(gamma * distance)
    total = reward + jnp.where(moved > 0, value_lipschitz(model, gamma) * moved, 0.0)
    lost = 1 - gamma * (1 - jnp.asarray(end_probability))
    return jnp.where(lost > 0, total / jnp.where(lost > 0, lost, 1.0), jnp.inf)


def return_gap(model: ModelErrors, average_episode_length: Scalar, ratio_sup: Scalar, gamma: Scalar) -> jax.Array:
    """
    Bound of abs(return(π) - latent return(π̄)): C · AEL · (L_R + γ K_V L_P) + L_end.

    :param model: of π = π̄ ∘ φ
    :param average_episode_length: AEL of π_b, in steps
    :param ratio_sup: C = D_IR^sup; 1 for π_b itself
    :param gamma: γ
    :return: scalar; infinite unless C < 1/γ, and K_P < 1/γ or γ L_P = 0
    """
    gap = ratio_sup * average_episode_length * model_error(model, gamma) + model.end_value
    holds = (jnp.asarray(ratio_sup) * gamma < 1) & jnp.isfinite(average_episode_length)
    return jnp.where(holds, gap, jnp.inf)


def paper_return_gap(model: ModelErrors, average_episode_length: Scalar, ratio_sup: Scalar, gamma: Scalar) -> jax.Array:
    """
    The paper's bound of the same: AEL (L_R + γ K_V L_P) / (1/C - γ), for latent models that know where episodes end.

    :param model: see :func:`return_gap`
    :param average_episode_length: AEL of π_b, in steps
    :param ratio_sup: C = D_IR^sup; 1 for π_b itself
    :param gamma: γ
    :return: scalar; infinite unless C < 1/γ, and K_P < 1/γ or γ L_P = 0
    """
    room = 1 / jnp.asarray(ratio_sup) - gamma
    gap = average_episode_length * model_error(model, gamma) / jnp.where(room > 0, room, 1.0)
    return jnp.where((room > 0) & jnp.isfinite(average_episode_length), gap, jnp.inf)
