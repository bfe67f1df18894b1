"""The guarantee as numbers: importance ratios, the bound on the improvement, and whether its conditions hold.

For an update from π_b (with encoder φ_b and latent model M̄_b) to π = π̄ ∘ φ (with M̄), every episode's expected return
up to its end satisfies

    abs(return(π) - latent return(π̄)) ≤ C · AEL · (L_R + γ K_V L_P) + L_end,   C = D_IR^sup < 1/γ,

and with the same for π_b at C = 1: real improvement ≥ latent improvement - ζ. ``docs/guarantee.md`` proves it and
compares it with the paper's bound, whose 1 / (1/C - γ) is never below C.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from sbx_deepspi.networks.agent import NetworkBounds, Norms
from sbx_deepspi.rollout import Array, Rollout

N_SAMPLED = 16
"""Transitions of a rollout on which the latent models' errors are estimated."""
N_EPISODES = 4
"""Episodes of a rollout whose beginning is imagined, and whose end is looked at."""
HORIZON = 2
"""Imagined steps; the critic tells what follows."""

CONDITIONS = ("importance_ratio", "all_actions", "reward_lipschitz", "transition_lipschitz", "episode_end", "finite")
"""What the bound needs, by name."""

Scalar = jax.Array | float


class RatioRange(struct.PyTreeNode):
    """
    Least and greatest importance ratio π(a|s) / π_b(a|s).

    :param inf: D_IR^inf
    :param sup: D_IR^sup
    """

    inf: Scalar
    sup: Scalar


class LatentModel(struct.PyTreeNode):
    """
    What the bound asks of one encoder with its latent policy and latent model; scalars. Expectations are under the
    states and actions of π_b.

    :param reward_error: L_R = E abs(R - R̄), in units of reward
    :param transition_error: L_P = E W₁(φP, P̄), in Euclidean units of the latent space
    :param end_value: L_end ≥ E abs(V̄(φ(s'))) where an episode ends at s', which the latent model does not know of
    :param reward_lipschitz: K_R of z ↦ E_π̄ R̄(z, a)
    :param transition_lipschitz: K_P of z ↦ E_π̄ P̄(·|z, a), in W₁
    """

    reward_error: Scalar
    transition_error: Scalar
    end_value: Scalar
    reward_lipschitz: Scalar
    transition_lipschitz: Scalar


class Certificate(struct.PyTreeNode):
    """
    What is known of one update; scalars.

    :param importance_ratio: D_IR on the rollout's states
    :param model: of the updated policy
    :param behaviour_model: of the behaviour policy
    :param value_lipschitz: K_V of the updated latent value
    :param average_episode_length: AEL, in steps; infinite as long as no episode has ended
    :param episode_ended: whether one ended in the rollout; if not, nothing is known of L_end
    :param zeta: ζ; infinite unless C < 1/γ, AEL is finite, an episode ended, and (but for models without
        error) K_P < 1/γ and K_R is finite
    :param paper_zeta: ζ with the paper's factors, which takes L_end to be 0
    :param latent_improvement: V̄(φ(s_I)) - V̄_b(φ_b(s_I)) estimated; NaN where no episode began
    """

    importance_ratio: RatioRange
    model: LatentModel
    behaviour_model: LatentModel
    value_lipschitz: Scalar
    average_episode_length: Scalar
    episode_ended: Scalar
    zeta: Scalar
    paper_zeta: Scalar
    latent_improvement: Scalar


def importance_ratio_range(log_policy: Array, behaviour_log_policy: Array) -> RatioRange:
    """
    D_IR^inf and D_IR^sup over states and over every action listed; several choices at once multiply.

    :param log_policy: log π(·|s), shape (B, n) or (B, choices, n)
    :param behaviour_log_policy: log π_b(·|s), same shape
    :return: scalars
    """
    log_ratios = log_policy - behaviour_log_policy

    def over_actions(extreme: jax.Array) -> jax.Array:
        return extreme.reshape(len(extreme), -1).sum(axis=1)

    return RatioRange(
        inf=jnp.exp(over_actions(log_ratios.min(axis=-1)).min()),
        sup=jnp.exp(over_actions(log_ratios.max(axis=-1)).max()),
    )


def value_lipschitz(reward_lipschitz: Scalar, transition_lipschitz: Scalar, gamma: Scalar) -> jax.Array:
    """
    K_V = K_R / (1 - γ K_P), the Lipschitz constant of the latent value.

    :param reward_lipschitz: K_R
    :param transition_lipschitz: K_P
    :param gamma: γ
    :return: scalar; infinite unless K_P < 1/γ
    """
    contraction = 1 - gamma * jnp.asarray(transition_lipschitz)
    return jnp.where(contraction > 0, reward_lipschitz / jnp.where(contraction > 0, contraction, 1.0), jnp.inf)


def model_error(model: LatentModel, gamma: Scalar) -> jax.Array:
    """
    L_R + γ K_V L_P: how far one step of the latent model is from one of the environment, in value.

    :param model: errors and Lipschitz constants
    :param gamma: γ
    :return: scalar
    """
    k_value = value_lipschitz(model.reward_lipschitz, model.transition_lipschitz, gamma)
    transition_error = jnp.asarray(gamma * model.transition_error)
    # where there is no error, no Lipschitz value is needed; and infinity times 0 would be NaN
    return model.reward_error + jnp.where(transition_error > 0, k_value * transition_error, 0.0)


def end_value_bound(model: LatentModel, reward: Scalar, distance: Scalar, gamma: Scalar) -> jax.Array:
    """
    Bound of E abs(V̄(z)): since V̄(z) = E[R̄ + γ V̄(ẑ')], it is at most (E abs(R̄) + γ K_V E‖ẑ' - z‖) / (1 - γ).

    :param model: K_R and K_P
    :param reward: E abs(R̄(z, a)) under π̄
    :param distance: E‖ẑ' - z‖₂ under π̄ and P̄
    :param gamma: γ
    :return: scalar; infinite unless γ < 1, and K_P < 1/γ or γ E‖ẑ' - z‖ = 0
    """
    k_value = value_lipschitz(model.reward_lipschitz, model.transition_lipschitz, gamma)
    moved = jnp.asarray(gamma * distance)
    total = reward + jnp.where(moved > 0, k_value * moved, 0.0)
    return jnp.where(jnp.asarray(gamma) < 1, total / jnp.where(jnp.asarray(gamma) < 1, 1 - gamma, 1.0), jnp.inf)


def return_gap(model: LatentModel, average_episode_length: Scalar, ratio_sup: Scalar, gamma: Scalar) -> jax.Array:
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


def paper_return_gap(model: LatentModel, average_episode_length: Scalar, ratio_sup: Scalar, gamma: Scalar) -> jax.Array:
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


class Constrained(struct.PyTreeNode):
    """
    A policy with its model made Lipschitz, as its certificate wants it.

    :param params: from ``Networks.constrain``
    :param apply_fn: how to apply them
    """

    params: FrozenDict
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)


@jax.jit
def constrain(state: TrainState, norms: Norms | None = None) -> Constrained:
    """
    :param state: a policy with its model
    :param norms: of its kernels, or of what they were; ``None``: of these
    :return: see :class:`Constrained`
    """
    return Constrained(state.apply_fn(state.params, norms, method="constrain"), state.apply_fn)


@jax.jit
def importance_ratios(updated: TrainState | Constrained, rollout: Rollout) -> RatioRange:
    """
    D_IR of an updated policy on all of a rollout's states: over every action, or over the sampled ones for Box.

    :param updated: π
    :param rollout: T steps of N environments under π_b
    :return: scalars
    """
    flat = rollout.flat()
    log_policy = updated.apply_fn(updated.params, flat.observations, flat.actions, method="log_policy")
    return importance_ratio_range(log_policy, flat.log_policy)


class Few(struct.PyTreeNode):
    """
    :data:`N_EPISODES` observations.

    :param observations: shape (``N_EPISODES``, ...)
    :param valid: which of them were asked for; the others fill up
    """

    observations: jax.Array
    valid: jax.Array


def first_few(observations: Array, where: Array) -> Few:
    """
    :param observations: shape (B, ...)
    :param where: which are asked for, bools of shape (B,)
    :return: the first few of them
    """
    (indices,) = jnp.nonzero(where, size=N_EPISODES, fill_value=0)
    return Few(jnp.asarray(observations)[indices], jnp.arange(N_EPISODES) < where.sum())


class Sample(struct.PyTreeNode):
    """
    What both policies' latent models are asked about.

    :param transitions: :data:`N_SAMPLED` of a rollout's, or all where there are fewer
    :param ends: observations where episodes ended
    :param starts: observations where episodes began
    """

    transitions: Rollout
    ends: Few
    starts: Few


class Measurement(struct.PyTreeNode):
    """
    What a rollout tells of one policy with its model.

    :param model: errors and Lipschitz constants
    :param latent_return: V̄(φ(s_I)) estimated, mean over episodes that began; NaN where none did
    """

    model: LatentModel
    latent_return: Scalar


def draw_sample(rollout: Rollout, key: jax.Array) -> Sample:
    """
    :param rollout: T steps of N environments under π_b
    :param key: randomness
    :return: some of it
    """
    flat = rollout.flat()
    n_transitions = len(flat.rewards)
    # the greatest of random numbers: XLA draws without replacement by sorting, which takes twice as long
    _, chosen = jax.lax.top_k(jax.random.uniform(key, (n_transitions,)), min(N_SAMPLED, n_transitions))
    # the observation after an end begins an episode; a rollout's first row may be anywhere in one
    begins = jnp.concatenate([jnp.zeros_like(rollout.dones[:1]), rollout.dones[:-1]]).reshape(-1)
    return Sample(
        transitions=jax.tree.map(lambda array: array[chosen], flat),
        ends=first_few(flat.next_observations, flat.dones),
        starts=first_few(flat.observations, begins),
    )


@jax.jit  # traced once for both policies
def measure(policy: Constrained, sample: Sample, key: jax.Array, gamma: Scalar) -> Measurement:
    """
    Estimate a latent model's errors on a sample, and bound its Lipschitz constants.

    :param policy: with its model
    :param sample: of a rollout under π_b
    :param key: randomness of actions and of latent states
    :param gamma: γ
    :return: scalars
    """

    def ask(question: str, *arguments: Any) -> Any:
        return policy.apply_fn(policy.params, *arguments, method=question)

    # asked together, which is faster than one by one: first the sample's, then the ends', then the starts'
    transitions, ends, starts = sample.transitions, sample.ends, sample.starts
    n_sampled = len(transitions.rewards)
    sampled, ended, began = slice(n_sampled), slice(n_sampled, -N_EPISODES), slice(-N_EPISODES, None)
    observations = transitions.observations, ends.observations, starts.observations, transitions.next_observations
    encoded = ask("encode", jnp.concatenate(observations))
    latents, next_latents = encoded[:-n_sampled], encoded[-n_sampled:]
    action_key, step_key, imagination_key = jax.random.split(key, 3)
    imagined_actions = ask("act", latents[n_sampled:], action_key)
    step = ask("imagine", latents, jnp.concatenate([transitions.actions, imagined_actions]), step_key)

    bounds: NetworkBounds = ask("lipschitz_bounds")
    model = LatentModel(
        reward_error=jnp.abs(step.rewards[sampled] - transitions.rewards).mean(),
        # E‖ẑ' - φ(s')‖ over new transitions is no less than the W₁ distance between P̄ and the law of φ(s')
        transition_error=distances(step.latents[sampled], next_latents).mean(),
        end_value=0.0,
        reward_lipschitz=bounds.reward.under(bounds.policy),
        transition_lipschitz=bounds.transition.under(bounds.policy),
    )
    reward = jnp.abs(step.rewards[ended]).mean(where=ends.valid)
    moved = distances(step.latents[ended], latents[ended]).mean(where=ends.valid)
    end_value = end_value_bound(model, reward, moved, gamma)
    model = model.replace(end_value=jnp.where(ends.valid.any(), end_value, jnp.inf))

    def imagine(latents: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        action_key, step_key = jax.random.split(key)
        step = ask("imagine", latents, ask("act", latents, action_key), step_key)
        return step.latents, step.rewards

    last, rewards = jax.lax.scan(imagine, step.latents[began], jax.random.split(imagination_key, HORIZON - 1))
    discounts = jnp.asarray(gamma) ** jnp.arange(HORIZON)[:, None]
    returns = (discounts * jnp.concatenate([step.rewards[None, began], rewards])).sum(axis=0)
    returns += gamma**HORIZON * ask("latent_values", last)
    return Measurement(model, returns.mean(where=starts.valid))


def distances(latents: jax.Array, others: jax.Array) -> jax.Array:
    """
    :param latents: shape (B, ...)
    :param others: same shape
    :return: ‖z - z'‖₂, shape (B,)
    """
    return jnp.sqrt(((latents - others) ** 2).reshape(len(latents), -1).sum(axis=1))


@jax.jit
def certify(
    behaviour: Constrained,
    updated: Constrained,
    rollout: Rollout,
    average_episode_length: Scalar,
    key: jax.Array,
    gamma: Scalar,
) -> Certificate:
    """
    The certificate of one update, on the rollout that it learned from.

    D_IR is over all of the rollout's states; the models' errors are estimated on :data:`N_SAMPLED` of its transitions.

    :param behaviour: π_b with its model
    :param updated: π with its model
    :param rollout: T steps of N environments under π_b, on the device
    :param average_episode_length: AEL, in steps
    :param key: randomness of the sample, of actions and of latent states, the same for both policies
    :param gamma: γ
    :return: scalars
    """
    sample_key, key = jax.random.split(key)
    sample = draw_sample(rollout, sample_key)
    before, after = (measure(policy, sample, key, gamma) for policy in (behaviour, updated))
    model, behaviour_model = after.model, before.model
    ratio = importance_ratios(updated, rollout)
    return Certificate(
        importance_ratio=ratio,
        model=model,
        behaviour_model=behaviour_model,
        value_lipschitz=value_lipschitz(model.reward_lipschitz, model.transition_lipschitz, gamma),
        average_episode_length=average_episode_length,
        episode_ended=jnp.any(rollout.dones),
        zeta=return_gap(model, average_episode_length, ratio.sup, gamma)
        + return_gap(behaviour_model, average_episode_length, 1.0, gamma),
        paper_zeta=paper_return_gap(model, average_episode_length, ratio.sup, gamma)
        + paper_return_gap(behaviour_model, average_episode_length, 1.0, gamma),
        latent_improvement=after.latent_return - before.latent_return,
    )


def unbounded(state: TrainState) -> dict[str, str]:
    """
    Which Lipschitz conditions networks of this kind never meet, whatever their parameters.

    :param state: of the policy
    :return: name of the condition → what is unbounded
    """
    bounds: NetworkBounds = state.apply_fn(state.params, method="lipschitz_bounds")
    models = {"reward_lipschitz": ("K_R", bounds.reward), "transition_lipschitz": ("K_P", bounds.transition)}
    return {
        condition: f"{constant} is unbounded"
        for condition, (constant, model) in models.items()
        if not math.isfinite(model.under(bounds.policy))
    }


def initial_violation(state: TrainState, gamma: float) -> str | None:
    """
    :param state: of the policy, before training
    :param gamma: γ
    :return: how its K_P breaks its condition, or ``None``
    """

    @jax.jit
    def transition_lipschitz(state: TrainState) -> Scalar:
        constrained = constrain(state)
        bounds = constrained.apply_fn(constrained.params, method="lipschitz_bounds")
        return jnp.asarray(bounds.transition.under(bounds.policy))

    constant = float(transition_lipschitz(state.replace(opt_state=None)))
    return None if constant * gamma < 1 else f"K_P {constant:.4g} ≥ {limit_of(gamma)}"


def limit_of(gamma: float) -> str:
    """
    :param gamma: γ
    :return: 1/γ, as the user reads it
    """
    return f"1/γ = {1 / gamma if gamma > 0 else math.inf:.4f}"


def violations(certificate: Certificate, gamma: float, all_actions: bool) -> dict[str, str]:
    """
    Which of the bound's conditions fail, each with a sentence.

    :param certificate: numbers on the host
    :param gamma: γ
    :param all_actions: whether D_IR is over every action, not only over the sampled ones
    :return: name → what is wrong, briefly
    """
    limit = limit_of(gamma)
    failed: dict[str, str] = {}
    sup = float(certificate.importance_ratio.sup)
    if not sup * gamma < 1:
        failed["importance_ratio"] = f"D_IR sup {sup:.4g} ≥ {limit}"
    if not all_actions:
        failed["all_actions"] = "D_IR of sampled actions only"
    for whose, model in ((" of π_b", certificate.behaviour_model), ("", certificate.model)):
        k_reward, k_transition = float(model.reward_lipschitz), float(model.transition_lipschitz)
        if not math.isfinite(k_reward):
            failed["reward_lipschitz"] = f"K_R{whose} unbounded"
        if not math.isfinite(k_transition):
            failed["transition_lipschitz"] = f"K_P{whose} unbounded"
        elif not k_transition * gamma < 1:
            failed["transition_lipschitz"] = f"K_P{whose} {k_transition:.4g} ≥ {limit}"
    if not certificate.episode_ended:
        failed["episode_end"] = "no episode ended in this rollout"
    if not math.isfinite(certificate.zeta):
        failed["finite"] = f"ζ is {float(certificate.zeta)}"
    return failed


def verdict(certificate: Certificate, failed: dict[str, str]) -> str:
    """
    :param certificate: numbers on the host
    :param failed: see :func:`violations`
    :return: one line for the user
    """
    if failed:
        # where another condition fails, ζ is infinite because of it
        reasons = [what for condition, what in failed.items() if condition != "finite"] or failed.values()
        return f"not certified: {'; '.join(reasons)}"
    return (
        f"certified: real improvement ≥ latent improvement - {float(certificate.zeta):.4g}, with errors as "
        f"{N_SAMPLED} transitions show them"
    )


def numbers(certificate: Certificate, all_actions: bool) -> dict[str, float]:
    """
    A certificate by the names that it has in logs.

    :param certificate: numbers on the host
    :param all_actions: whether D_IR is over every action; if not, its names say so
    :return: name → number
    """
    sampled = "" if all_actions else "_sampled"
    named = {
        f"importance_ratio_inf{sampled}": certificate.importance_ratio.inf,
        f"importance_ratio_sup{sampled}": certificate.importance_ratio.sup,
        "L_R": certificate.model.reward_error,
        "L_P": certificate.model.transition_error,
        "L_end": certificate.model.end_value,
        "K_R": certificate.model.reward_lipschitz,
        "K_P": certificate.model.transition_lipschitz,
        "K_V": certificate.value_lipschitz,
        "average_episode_length": certificate.average_episode_length,
        "zeta": certificate.zeta,
        "zeta_paper": certificate.paper_zeta,
        "latent_improvement": certificate.latent_improvement,
    }
    return {name: float(number) for name, number in named.items()}


def behaviour_numbers(certificate: Certificate) -> dict[str, float]:
    """
    What ζ needs to know of the behaviour policy's own model, by name.

    :param certificate: numbers on the host
    :return: name → number
    """
    model = certificate.behaviour_model
    named = {
        "L_R_b": model.reward_error,
        "L_P_b": model.transition_error,
        "L_end_b": model.end_value,
        "K_R_b": model.reward_lipschitz,
        "K_P_b": model.transition_lipschitz,
    }
    return {name: float(number) for name, number in named.items()}
