"""The numbers that the bound needs, from a rollout: importance ratios, model errors, Lipschitz constants."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi import agent, devices
from sbx_deepspi.agent import Networks
from sbx_deepspi.guarantee.bound import (
    ModelErrors,
    RatioRange,
    Scalar,
    importance_ratio_range,
    largest_value,
    paper_return_gap,
    return_gap,
    value_bound,
    value_lipschitz,
)
from sbx_deepspi.imagination import discounted_returns, imagine
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Array, Rollout

N_SAMPLED = 256
"""Transitions of a rollout on which L_R and L_P are estimated, or all where there are fewer."""
N_AT_A_TIME = 32
"""Ends of episodes that are looked at together; as often as there are more."""
N_STARTS = 32
"""Episodes that are imagined from where they began."""
HORIZON = 2
"""Imagined steps; the critic tells what follows."""


class Certificate(struct.PyTreeNode):
    """
    What is known of one update; scalars.

    :param importance_ratio: D_IR on the rollout's states
    :param model: of the updated policy
    :param behaviour_model: of the behaviour policy
    :param standard_errors: of L_R, L_P and L_end of the updated policy
    :param value_lipschitz: K_V of the updated model
    :param average_episode_length: AEL, in steps; infinite as long as no episode has ended
    :param episode_ended: whether one ended in the rollout; if not, nothing is known of L_end
    :param zeta: ζ; infinite unless C < 1/γ, AEL is finite, an episode ended, and (but for models without
        error) K_P < 1/γ and K_R is finite
    :param paper_zeta: ζ with the paper's factors, which takes L_end to be 0
    :param latent_improvement: V̄(φ(s_I)) - V̄_b(φ_b(s_I)) estimated; NaN where no episode began
    :param ends: what a termination model changes; ``None`` without one
    """

    importance_ratio: RatioRange
    model: ModelErrors
    behaviour_model: ModelErrors
    standard_errors: "StandardErrors"
    value_lipschitz: Scalar
    average_episode_length: Scalar
    episode_ended: Scalar
    zeta: Scalar
    paper_zeta: Scalar
    latent_improvement: Scalar
    ends: "Ends | None" = None


class Ends(struct.PyTreeNode):
    """
    What is known of the updated model's ends, and of the same latent MDP without them; scalars.

    :param error: E abs(1[s' is terminal] - Ē(φ(s')))
    :param lipschitz: K_E of Ē
    :param endless_end_value: L_end of the latent MDP with the same rewards and transitions that never ends
    :param endless_zeta: its ζ
    """

    error: Scalar
    lipschitz: Scalar
    endless_end_value: Scalar
    endless_zeta: Scalar


class StandardErrors(struct.PyTreeNode):
    """
    How far a model's estimated errors may be from the true ones; scalars.

    :param reward: of L_R
    :param transition: of L_P
    :param end: of L_end
    """

    reward: Scalar
    transition: Scalar
    end: Scalar


class Measurement(struct.PyTreeNode):
    """
    What a rollout tells of one policy with its model.

    :param model: errors and Lipschitz constants
    :param standard_errors: of the errors
    :param latent_return: V̄(φ(s_I)) estimated, mean over episodes that began; NaN where none did
    :param endless: of the same model without its ends; the model itself where it has none
    :param end_error: E abs(1[s' is terminal] - Ē(φ(s')))
    :param end_lipschitz: K_E
    """

    model: ModelErrors
    standard_errors: StandardErrors
    latent_return: Scalar
    endless: ModelErrors
    end_error: Scalar
    end_lipschitz: Scalar


class RewardUnits(struct.PyTreeNode):
    """
    What rewards are as the latent MDP has them; scalars.

    :param scale: σ, the unit of R̄
    :param largest: R_max, to which rewards are clipped, so that values are bounded; infinite where there is no Ē
    """

    scale: Scalar
    largest: Scalar

    def of(self, predicted: Array) -> jax.Array:
        """
        :param predicted: R̄, in units of σ
        :return: rewards in the environment's units
        """
        return jnp.clip(self.scale * predicted, -self.largest, self.largest)


def certify(
    networks: Networks,
    behaviour: Parameters,
    updated: Parameters,
    rollout: Rollout,
    average_episode_length: Scalar,
    reward_scales: tuple[Scalar, Scalar],
    key: jax.Array,
    gamma: Scalar,
) -> Certificate:
    """
    The certificate of one update, on the rollout that it learned from.

    D_IR is over all of the rollout's states, L_end over all ends of episodes in it; L_R and L_P are estimated on
    :data:`N_SAMPLED` of its transitions. Of several devices each looks at its environments, and samples its share.

    :param networks: with a world model
    :param behaviour: parameters of π_b and its model
    :param updated: parameters of π and its model
    :param rollout: T steps of N environments under π_b
    :param average_episode_length: AEL, in steps
    :param reward_scales: σ, the unit of R̄, before and after the update
    :param key: randomness of the sample, of actions and of latent states, the same for both policies
    :param gamma: γ
    :return: scalars, in the rewards' own units
    """
    key = devices.own(key)

    def measure_one(parameters: Parameters, reward_scale: jax.Array) -> tuple[Parameters, Measurement]:
        return updated, measure(networks, parameters, reward_scale, rollout, average_episode_length, key, gamma)

    # one after the other through one program, not two copies of it
    _, measurements = jax.lax.scan(measure_one, behaviour, jnp.stack(reward_scales))
    before, after = (jax.tree.map(lambda leaf: leaf[i], measurements) for i in (0, 1))  # noqa: B023
    model, behaviour_model = after.model, before.model

    def zeta(model: ModelErrors, behaviour_model: ModelErrors) -> jax.Array:
        gap = return_gap(model, average_episode_length, ratio.sup, gamma)
        return gap + return_gap(behaviour_model, average_episode_length, 1.0, gamma)

    ratio = importance_ratios(networks, updated, rollout)
    return Certificate(
        importance_ratio=ratio,
        model=model,
        behaviour_model=behaviour_model,
        standard_errors=after.standard_errors,
        value_lipschitz=value_lipschitz(model, gamma),
        average_episode_length=average_episode_length,
        episode_ended=devices.total(rollout.dones.sum()) > 0,
        zeta=zeta(model, behaviour_model),
        paper_zeta=paper_return_gap(model, average_episode_length, ratio.sup, gamma)
        + paper_return_gap(behaviour_model, average_episode_length, 1.0, gamma),
        latent_improvement=after.latent_return - before.latent_return,
        ends=Ends(after.end_error, after.end_lipschitz, after.endless.end_value, zeta(after.endless, before.endless))
        if networks.has_ends
        else None,
    )


def importance_ratios(networks: Networks, updated: Parameters, rollout: Rollout) -> RatioRange:
    """
    D_IR of an updated policy on all of a rollout's states: over every action, or over the sampled ones for Box.

    :param networks: see :class:`~sbx_deepspi.agent.Networks`
    :param updated: parameters of π
    :param rollout: T steps of N environments under π_b
    :return: scalars
    """
    flat = rollout.flat()
    latents = agent.encode(networks, updated, flat.observations)
    distribution, _ = agent.policy_and_values(networks, updated, latents)
    log_policy = agent.log_policy(distribution, jnp.asarray(flat.actions))
    of_own = importance_ratio_range(log_policy, flat.log_policy, networks.actor.choices)
    return RatioRange(inf=devices.smallest(of_own.inf), sup=devices.largest(of_own.sup))


def measure(
    networks: Networks,
    parameters: Parameters,
    reward_scale: Scalar,
    rollout: Rollout,
    average_episode_length: Scalar,
    key: jax.Array,
    gamma: Scalar,
) -> Measurement:
    """
    Estimate a latent model's errors on a rollout, and bound its Lipschitz constants.

    :param networks: with a world model
    :param parameters: of a policy and its model
    :param reward_scale: σ, the unit of R̄
    :param rollout: T steps of N environments under π_b
    :param average_episode_length: AEL, in steps
    :param key: randomness of the sample, of actions and of latent states
    :param gamma: γ
    :return: scalars, in the rewards' own units
    """
    parameters = agent.normalized(networks, parameters)
    sample_key, step_key, end_key, start_key, alarm_key = jax.random.split(key, 5)
    flat = rollout.flat()
    bounds = agent.lipschitz_bounds(networks, parameters)

    # the greatest of random numbers: XLA draws without replacement by sorting, which takes twice as long
    n_of_own = min(share_of(N_SAMPLED), len(flat.rewards))
    n_sampled = n_of_own * devices.count()
    _, chosen = jax.lax.top_k(jax.random.uniform(sample_key, flat.rewards.shape), n_of_own)
    sample = jax.tree.map(lambda array: array[chosen], flat)
    latents, next_latents = (
        agent.encode(networks, parameters, observations)
        for observations in (sample.observations, sample.next_observations)
    )
    largest = devices.largest(jnp.abs(flat.rewards).max()) if networks.has_ends else jnp.inf
    units = RewardUnits(reward_scale, largest)
    rewards, predicted = agent.predict(networks, parameters, latents, sample.actions, step_key)
    reward_errors = jnp.abs(units.of(rewards) - sample.rewards)
    # E‖ẑ' - φ(s')‖ over new transitions is no less than the W₁ distance between P̄ and the law of φ(s')
    transition_errors = distances(predicted, next_latents)

    endless = ModelErrors(
        reward_error=devices.mean(reward_errors.mean()),
        transition_error=devices.mean(transition_errors.mean()),
        end_value=0.0,
        reward_lipschitz=reward_scale * bounds.reward.under(bounds.policy),
        transition_lipschitz=bounds.transition.under(bounds.policy),
    )
    ending = endless
    if networks.has_ends:
        ending = endless.replace(end_lipschitz=bounds.termination * largest_value(largest, gamma))
    end_probabilities = partial(agent.end_probabilities, networks, parameters)
    end_value, end_error = mean_end_value(networks, parameters, units, flat, ending, end_probabilities, end_key, gamma)
    endless_end_value, end_probability_error = end_value, jnp.zeros(())
    if networks.has_ends:
        false_value, false_error = mean_false_alarm(
            networks, parameters, units, sample, next_latents, ending, alarm_key, gamma
        )
        # infinity times 0 would be NaN
        length = jnp.where(false_value > 0, average_episode_length, 0.0)
        end_value += length * false_value
        end_error = jnp.hypot(end_error, length * false_error)
        endless_end_value, _ = mean_end_value(networks, parameters, units, flat, endless, never, end_key, gamma)
        end_probability_error = devices.mean(jnp.abs(sample.terminated - end_probabilities(next_latents)).mean())
    return Measurement(
        ending.replace(end_value=end_value),
        StandardErrors(
            jnp.sqrt(devices.variance(reward_errors)) / math.sqrt(n_sampled),
            jnp.sqrt(devices.variance(transition_errors)) / math.sqrt(n_sampled),
            end_error,
        ),
        latent_return(networks, parameters, units, rollout, start_key, gamma),
        endless.replace(end_value=endless_end_value),
        end_probability_error,
        bounds.termination,
    )


def share_of(number: int) -> int:
    """
    :param number: of all devices
    :return: of each of them, together no less
    """
    return -(-number // devices.count())


def never(latents: jax.Array) -> jax.Array:
    """
    :param latents: shape (B, ...)
    :return: Ē of a latent MDP that never ends: 0, shape (B,)
    """
    return jnp.zeros(len(latents))


def wrong_values(
    networks: Networks,
    parameters: Parameters,
    units: RewardUnits,
    model: ModelErrors,
    latents: jax.Array,
    ends: jax.Array,
    wrong: jax.Array,
    key: jax.Array,
    gamma: Scalar,
) -> jax.Array:
    """
    What being wrong about an end costs, each from one imagined step: what is certain of abs(V̄(z)), times how wrong.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param units: of rewards
    :param model: with K_R, K_P and K_E V_max
    :param latents: z, shape (B, ...)
    :param ends: Ē(z), shape (B,)
    :param wrong: 1 - Ē(z) where an episode ends, or Ē(z) where none does, shape (B,)
    :param key: randomness of actions and of latent states
    :param gamma: γ
    :return: that product, and ``wrong``, shape (2, B); see :func:`limited`
    """
    imagined = imagine(networks, parameters, latents, 1, key)
    moved, reward = distances(imagined.next_observations[0], latents), jnp.abs(units.of(imagined.rewards[0]))
    values = value_bound(model, reward, moved, gamma, ends)
    return jnp.stack([jnp.where(wrong > 0, wrong * values, 0.0), wrong])


def limited(means: jax.Array, errors: jax.Array, largest: Scalar) -> tuple[jax.Array, jax.Array]:
    """
    The mean of wrong values, or of V_max times how wrong, if that is smaller: means are compared, since a limit to each
    sample would make their mean too small.

    :param means: of what :func:`wrong_values` returns, shape (2,)
    :param errors: their standard errors, shape (2,)
    :param largest: V_max; infinite where none is known
    :return: the smaller one and its standard error
    """
    limit = jnp.where(means[1] > 0, largest * means[1], 0.0)
    is_limited = limit < means[0]
    return jnp.where(is_limited, limit, means[0]), jnp.where(is_limited, largest * errors[1], errors[0])


def mean_false_alarm(
    networks: Networks,
    parameters: Parameters,
    units: RewardUnits,
    sample: Rollout,
    next_latents: jax.Array,
    model: ModelErrors,
    key: jax.Array,
    gamma: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """
    The part of L_end where no episode ends, for one step: E[Ē(φ(s')) abs(V̄(φ(s')))].

    :param networks: with a termination model
    :param parameters: of all networks, normalised
    :param units: of rewards
    :param sample: B transitions
    :param next_latents: their φ(s'), shape (B, ...)
    :param model: with K_R, K_P and K_E V_max
    :param key: randomness of actions and of latent states
    :param gamma: γ
    :return: the mean and its standard error
    """
    ends = agent.end_probabilities(networks, parameters, next_latents)
    wrong = jnp.where(sample.dones, 0.0, ends)
    values = wrong_values(networks, parameters, units, model, next_latents, ends, wrong, key, gamma)
    errors = jnp.sqrt(devices.variance(values, axis=1)) / math.sqrt(len(wrong) * devices.count())
    return limited(devices.mean(values.mean(axis=1)), errors, largest_value(units.largest, gamma))


def mean_end_value(
    networks: Networks,
    parameters: Parameters,
    units: RewardUnits,
    flat: Rollout,
    model: ModelErrors,
    end_probabilities: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    gamma: Scalar,
) -> tuple[jax.Array, jax.Array]:
    """
    The part of L_end where episodes end, for either reason: E[(1 - Ē(φ(s'))) abs(V̄(φ(s')))], over all ends there are.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param units: of rewards
    :param flat: B transitions
    :param model: with K_R, K_P and K_E V_max
    :param end_probabilities: Ē, latents → probabilities
    :param key: randomness of actions and of latent states
    :param gamma: γ
    :return: the mean and its standard error; infinite where no episode ended
    """
    n_ends = flat.dones.sum()
    size = -(-len(flat.dones) // N_AT_A_TIME) * N_AT_A_TIME
    (ends,) = jnp.nonzero(flat.dones, size=size, fill_value=0)

    def add_some(i: jax.Array, moments: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        indices = jax.lax.dynamic_slice_in_dim(ends, i * N_AT_A_TIME, N_AT_A_TIME)
        last = jax.tree.map(lambda array: array[indices], flat.next_observations)
        latents = agent.encode(networks, parameters, last)
        known = end_probabilities(latents)
        values = wrong_values(
            networks, parameters, units, model, latents, known, 1 - known, jax.random.fold_in(key, i), gamma
        )
        is_end = i * N_AT_A_TIME + jnp.arange(N_AT_A_TIME) < n_ends
        # Chan's: deviations from means, since a difference of large squares would be imprecise
        n_before, mean, squares = moments
        n_here, mean_here = is_end.sum(), values.mean(axis=1, where=is_end)
        n, difference = n_before + n_here, mean_here - mean
        squares += ((values - mean_here[:, None]) ** 2).sum(axis=1, where=is_end)
        squares += difference**2 * n_before * n_here / n
        return n, mean + difference * n_here / n, squares

    nothing = jnp.float32(0), jnp.zeros(2), jnp.zeros(2)
    n, own_means, squares = jax.lax.fori_loop(0, -(-n_ends // N_AT_A_TIME), add_some, nothing)
    count = devices.total(n)
    means = devices.total(n / jnp.maximum(count, 1) * own_means)
    squares = devices.total(squares + n * (own_means - means) ** 2)
    known = (count > 0) & jnp.isfinite(means)
    means, errors = (
        jnp.where(known, numbers, jnp.inf) for numbers in (means, jnp.sqrt(squares) / jnp.maximum(count, 1))
    )
    return limited(means, errors, largest_value(units.largest, gamma))


def latent_return(
    networks: Networks, parameters: Parameters, units: RewardUnits, rollout: Rollout, key: jax.Array, gamma: Scalar
) -> jax.Array:
    """
    V̄(φ(s_I)), from :data:`HORIZON` imagined steps and the critic's word on what follows.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param units: of rewards
    :param rollout: T steps of N environments
    :param key: randomness of actions and of latent states
    :param gamma: γ
    :return: mean over the first :data:`N_STARTS` episodes that began in the rollout; NaN where none did
    """
    # the observation after an end begins an episode; a rollout's first row may be anywhere in one
    begins = jnp.concatenate([jnp.zeros_like(rollout.dones[:1]), rollout.dones[:-1]]).reshape(-1)
    n_starts = share_of(N_STARTS)
    (starts,) = jnp.nonzero(begins, size=n_starts, fill_value=0)
    flat = rollout.flat()
    latents = agent.encode(networks, parameters, jax.tree.map(lambda array: array[starts], flat.observations))
    imagined = imagine(networks, parameters, latents, HORIZON, key)
    _, last_values = agent.policy_and_values(networks, parameters, imagined.next_observations[-1])
    returns = discounted_returns(imagined.replace(rewards=units.of(imagined.rewards)), last_values, gamma)
    is_start = jnp.arange(n_starts) < begins.sum()
    return devices.total(returns.sum(where=is_start)) / devices.total(is_start.sum())


def distances(latents: jax.Array, others: jax.Array) -> jax.Array:
    """
    :param latents: shape (B, ...)
    :param others: same shape
    :return: ‖z - z'‖₂, shape (B,)
    """
    return jnp.sqrt(((latents - others) ** 2).reshape(len(latents), -1).sum(axis=1))


def unbounded(networks: Networks, parameters: Parameters) -> dict[str, str]:
    """
    Which Lipschitz conditions networks of this kind never meet, whatever their parameters.

    :param networks: with a world model
    :param parameters: of all networks
    :return: name of the condition → what is unbounded
    """
    bounds = agent.lipschitz_bounds(networks, parameters)
    models = {"reward_lipschitz": ("K_R", bounds.reward), "transition_lipschitz": ("K_P", bounds.transition)}
    return {
        condition: f"{constant} is unbounded"
        for condition, (constant, model) in models.items()
        if not math.isfinite(model.under(bounds.policy))
    }


def transition_lipschitz(networks: Networks, parameters: Parameters) -> jax.Array:
    """
    :param networks: with a world model
    :param parameters: of all networks
    :return: K_P, scalar
    """
    bounds = agent.lipschitz_bounds(networks, agent.normalized(networks, parameters))
    return jnp.asarray(bounds.transition.under(bounds.policy))
