"""One update: -J of a minibatch and its gradient, minibatches, epochs (Delgrange et al., ICLR 2026)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.core import FrozenDict
from flax.training.train_state import TrainState

from sbx_deepspi import objective
from sbx_deepspi.certificate import Constrained, constrain
from sbx_deepspi.networks.agent import Evaluation, Norms
from sbx_deepspi.rollout import (
    Rollout,
    Transitions,
    microbatches,
    share_observations,
    spread_ends,
    to_transitions,
)

LONGEST_RUN = 8
"""Minibatches after which norms of kernels that have moved are computed anew, at the latest."""


class Hyperparameters(struct.PyTreeNode):
    """
    What an update depends on beside parameters and data.

    Numbers are traced: changing them compiles nothing anew. From ``batch_size`` on, and whether an optional one
    is ``None``, they shape the compiled program.

    :param learning_rate: of the optimiser
    :param max_grad_norm: bound of the global norm of all gradients
    :param gamma: discount factor γ
    :param gae_lambda: λ of the advantages
    :param clip_range: ε
    :param clip_range_vf: largest change of a value; ``None``: no limit
    :param ent_coef: c_e
    :param vf_coef: c_v
    :param reward_loss_coef: α_R
    :param transition_loss_coef: α_P
    :param target_kl: stop the update at 1.5 times this divergence; ``None``: never
    :param gradient_penalty_coef: weight of the gradient penalty; ``None``: none
    :param batch_size: transitions in a minibatch
    :param n_epochs: passes over the rollout
    :param normalize_advantage: whether advantages are normalised per minibatch
    :param microbatch_size: the most transitions that go through the networks at a time
    :param segment_length: successive steps of one environment that stay together when minibatches are drawn
    :param clips_model_losses: whether the world model's losses go into the clip (DeepSPI) or beside it (DeepMDP)
    """

    learning_rate: float
    max_grad_norm: float
    gamma: float
    gae_lambda: float
    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    reward_loss_coef: float
    transition_loss_coef: float
    target_kl: float | None
    gradient_penalty_coef: float | None
    batch_size: int = struct.field(pytree_node=False)
    n_epochs: int = struct.field(pytree_node=False)
    normalize_advantage: bool = struct.field(pytree_node=False)
    microbatch_size: int = struct.field(pytree_node=False)
    segment_length: int = struct.field(pytree_node=False)
    clips_model_losses: bool = struct.field(pytree_node=False)


class Metrics(struct.PyTreeNode):
    """
    What some transitions tell the user: scalars, or several of each along one axis.

    :param loss: -J
    :param policy_gradient_loss: the policy's part of it
    :param entropy_loss: -H(π), in nats
    :param value_loss: ½ (V - return)²
    :param reward_loss: ℓ_R
    :param transition_loss: ℓ_P
    :param gradient_penalty: 0 unless asked for
    :param approx_kl: divergence from the behaviour policy, estimated, in nats
    :param clip_fraction: part of the importance ratios outside [1 - ε, 1 + ε]
    """

    loss: jax.Array
    policy_gradient_loss: jax.Array
    entropy_loss: jax.Array
    value_loss: jax.Array
    reward_loss: jax.Array
    transition_loss: jax.Array
    gradient_penalty: jax.Array
    approx_kl: jax.Array
    clip_fraction: jax.Array

    def mean(self, where: jax.Array | None = None) -> "Metrics":
        """
        :param where: which of several count; ``None``: all
        :return: scalars
        """
        return jax.tree.map(lambda values: jnp.mean(values, where=where), self)


class Faults(struct.PyTreeNode):
    """
    Which quantities were NaN or infinite: bools of a minibatch, or the number of minibatches.

    :param loss: -J
    :param gradient: the norm of -J's: also where finite numbers, from about 1.8e19 on, have squares that overflow
    :param parameters: the norm of all, after the optimiser's step
    """

    loss: jax.Array
    gradient: jax.Array
    parameters: jax.Array

    @property
    def any(self) -> jax.Array:
        """
        :return: whether any quantity is at fault
        """
        return (self.loss > 0) | (self.gradient > 0) | (self.parameters > 0)


class UpdateReport(struct.PyTreeNode):
    """
    What an update tells the user; scalars.

    :param metrics: over the minibatches that ran, without those at fault
    :param faults: how many of them were at fault, by quantity; their steps were not applied
    :param n_minibatches: that ran
    :param explained_variance: of the returns by the values at collection time
    :param n_epochs: epochs that ran
    :param stopped: whether ``target_kl`` stopped the update
    :param last_kl: divergence estimated in the last minibatch that ran
    """

    metrics: Metrics
    faults: Faults
    n_minibatches: jax.Array
    explained_variance: jax.Array
    n_epochs: jax.Array
    stopped: jax.Array
    last_kl: jax.Array


def policy_loss(
    ratios: jax.Array, advantages: jax.Array, evaluation: Evaluation, hyperparameters: Hyperparameters
) -> jax.Array:
    """
    DeepSPI takes the world model's losses into the clip: -E[min(ρ U, clip(ρ, 1-ε, 1+ε) U)], U = Â - α_R ℓ_R - α_P ℓ_P.

    DeepMDP adds them outside, where nothing bounds how far they move the encoder: -E[min(ρ Â, clip(ρ, 1-ε, 1+ε) Â)] +
    E[α_R ℓ_R + α_P ℓ_P].

    :param ratios: ρ, shape (B,)
    :param advantages: Â, normalised, shape (B,)
    :param evaluation: with the world model's losses
    :param hyperparameters: ε, α_R and α_P
    :return: scalar
    """
    h = hyperparameters
    utilities = objective.utility(
        advantages,
        evaluation.reward_losses,
        evaluation.transition_losses,
        h.reward_loss_coef,
        h.transition_loss_coef,
    )
    if h.clips_model_losses:
        return -objective.clipped_surrogate(ratios, utilities, h.clip_range).mean()
    return (advantages - utilities).mean() - objective.clipped_surrogate(ratios, advantages, h.clip_range).mean()


def loss(
    params: FrozenDict, state: TrainState, transitions: Transitions, key: jax.Array, hyperparameters: Hyperparameters
) -> tuple[jax.Array, Metrics]:
    """
    -J of some transitions: J = E[min(ρ U, clip(ρ, 1-ε, 1+ε) U)] + c_e H(π) - c_v ½ (V - return)² for DeepSPI.

    :param params: what J is differentiated by, constrained
    :param state: how to apply them
    :param transitions: B transitions, their advantages already normalised
    :param key: randomness of the latent samples
    :param hyperparameters: ε and the coefficients
    :return: -J, and what to tell the user
    """
    h = hyperparameters
    penalised = h.gradient_penalty_coef is not None
    evaluation = state.apply_fn(params, transitions, key, penalised, method="evaluate")
    ratios = objective.importance_ratio(evaluation.log_probs, transitions.log_probs)
    policy_gradient_loss = policy_loss(ratios, transitions.advantages, evaluation, h)
    entropy_loss = -evaluation.entropies.mean()
    value_loss = objective.value_loss(
        evaluation.values, transitions.returns, transitions.values, h.clip_range_vf
    ).mean()
    gradient_penalty = evaluation.gradient_penalties.mean()
    total = policy_gradient_loss + h.ent_coef * entropy_loss + h.vf_coef * value_loss
    if penalised:
        total += h.gradient_penalty_coef * gradient_penalty
    return total, Metrics(
        loss=total,
        policy_gradient_loss=policy_gradient_loss,
        entropy_loss=entropy_loss,
        value_loss=value_loss,
        reward_loss=evaluation.reward_losses.mean(),
        transition_loss=evaluation.transition_losses.mean(),
        gradient_penalty=gradient_penalty,
        approx_kl=objective.approximate_kl(evaluation.log_probs - transitions.log_probs),
        clip_fraction=jnp.mean(jnp.abs(ratios - 1) > h.clip_range),
    )


def loss_gradients(
    state: TrainState, norms: Norms, minibatch: Transitions, key: jax.Array, hyperparameters: Hyperparameters
) -> tuple[FrozenDict, Metrics]:
    """
    The gradient of -J of a minibatch, averaged over equal parts that fit the processor's cache.

    :param state: the parameters
    :param norms: of the Lipschitz layers' kernels
    :param minibatch: B transitions
    :param key: randomness of the latent samples
    :param hyperparameters: see :class:`Hyperparameters`
    :return: the gradient by the (unconstrained) parameters, and what to tell the user
    """
    if hyperparameters.normalize_advantage:
        minibatch = minibatch.replace(advantages=objective.normalize(minibatch.advantages))
    constrained, pull_back = jax.vjp(lambda params: state.apply_fn(params, norms, method="constrain"), state.params)
    parts = microbatches(minibatch, hyperparameters.microbatch_size)
    n_parts = len(parts.rewards)

    def add_part(total: FrozenDict, part: tuple[Transitions, jax.Array]) -> tuple[FrozenDict, Metrics]:
        transitions, key = part

        def gradients_of(transitions: Transitions) -> tuple[FrozenDict, Metrics]:
            return jax.grad(loss, has_aux=True)(constrained, state, transitions, key, hyperparameters)

        if transitions.segment_length == 1:
            gradients, metrics = gradients_of(transitions)
        else:
            gradients, metrics = jax.lax.cond(
                share_observations(transitions).fits,
                lambda: gradients_of(transitions),
                lambda: gradients_of(transitions.replace(segment_length=1)),
            )
        return jax.tree.map(jnp.add, total, gradients), metrics

    nothing = jax.tree.map(jnp.zeros_like, constrained)
    total, metrics = jax.lax.scan(add_part, nothing, (parts, jax.random.split(key, n_parts)))
    (gradients,) = pull_back(jax.tree.map(lambda gradient: gradient / n_parts, total))
    return gradients, metrics.mean()


class MinibatchReport(struct.PyTreeNode):
    """
    What a minibatch tells; scalars, or several of each along axes for epochs and minibatches.

    :param metrics: see :class:`Metrics`
    :param faults: see :class:`Faults`
    :param ran: whether it did: nothing does after ``target_kl`` has stopped the update
    """

    metrics: Metrics
    faults: Faults
    ran: jax.Array


class Progress(struct.PyTreeNode):
    """
    What goes from minibatch to minibatch.

    :param state: parameters and optimiser
    :param norms: of the Lipschitz layers' kernels, or of what they were shortly before
    :param stale: whether a kernel had moved too far from these in one of the minibatches since they were computed
    :param stopped: whether the divergence has passed its limit
    """

    state: TrainState
    norms: Norms
    stale: jax.Array
    stopped: jax.Array


class Updated(struct.PyTreeNode):
    """
    What an update makes.

    :param state: the new parameters and optimiser
    :param before: the old policy and model, as the certificate wants them
    :param after: the new ones; their norms may be those of shortly before
    :param report: what to tell the user
    """

    state: TrainState
    before: Constrained
    after: Constrained
    report: UpdateReport


@jax.jit
def update(
    state: TrainState,
    rollout: Rollout,
    last_observations: np.ndarray,
    key: jax.Array,
    hyperparameters: Hyperparameters,
) -> Updated:
    """
    One whole update: advantages, epochs, minibatches, in one compiled program.

    :param state: parameters and optimiser
    :param rollout: T steps of N environments
    :param last_observations: what follows the rollout's last step, shape (N, ...)
    :param key: randomness of minibatches and latent samples, used up
    :param hyperparameters: see :class:`Hyperparameters`
    :return: see :class:`Updated`
    """
    h = hyperparameters
    last_values = state.apply_fn(state.params, last_observations)[1]
    transitions = to_transitions(rollout, last_values, h.gamma, h.gae_lambda).replace(segment_length=h.segment_length)
    n_transitions = transitions.rewards.size
    n_full = n_transitions // h.batch_size
    opt_state = optax.tree_utils.tree_set(
        state.opt_state, learning_rate=jnp.float32(h.learning_rate), max_norm=jnp.float32(h.max_grad_norm)
    )
    state = state.replace(opt_state=opt_state)

    def norms_of(state: TrainState) -> Norms:
        return state.apply_fn(state.params, method="norms")

    def learn(progress: Progress, indices: jax.Array, key: jax.Array) -> tuple[Progress, MinibatchReport]:
        state, stopped = progress.state, progress.stopped
        # before the step: the distances are those that the gradient needs
        stale = progress.stale | state.apply_fn(state.params, progress.norms, method="are_stale")
        if h.segment_length > 1:
            indices = spread_ends(indices, transitions.dones, h.segment_length, h.microbatch_size)
        minibatch = jax.tree.map(lambda array: array[indices], transitions)
        gradients, metrics = loss_gradients(state, progress.norms, minibatch, key, h)
        new_state = state.apply_gradients(grads=gradients)
        new_state = new_state.replace(params=state.apply_fn(new_state.params, method="limit_policy"))
        faults = Faults(
            loss=~jnp.isfinite(metrics.loss),
            # one number that is not finite makes the norm so, as do finite ones whose squares are not (above 1.8e19);
            # the optimiser needs that of the gradients anyway
            gradient=~jnp.isfinite(optax.tree.norm(gradients)),
            parameters=~jnp.isfinite(optax.tree.norm(new_state.params)),
        )
        if h.target_kl is not None:
            stopped = metrics.approx_kl > 1.5 * h.target_kl
        rejected = faults.any | stopped
        new_state = jax.tree.map(lambda new, old: jnp.where(rejected, old, new), new_state, state)
        progress = Progress(new_state, progress.norms, stale, stopped)
        return progress, MinibatchReport(metrics, faults, ran=jnp.asarray(True))

    def minibatch_step(progress: Progress, minibatch: tuple[jax.Array, jax.Array]) -> tuple[Progress, MinibatchReport]:
        if h.target_kl is None:
            return learn(progress, *minibatch)

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(learn, progress, *minibatch)[1])
        return jax.lax.cond(progress.stopped, lambda: (progress, nothing), lambda: learn(progress, *minibatch))

    def run_step(progress: Progress, minibatches: tuple[jax.Array, jax.Array]) -> tuple[Progress, MinibatchReport]:
        progress, reports = jax.lax.scan(minibatch_step, progress, minibatches)
        norms = jax.lax.cond(progress.stale, norms_of, lambda state: progress.norms, progress.state)
        return progress.replace(norms=norms, stale=jnp.asarray(False)), reports

    # not after each minibatch: to keep norms or compute them takes time, too, where most of the time they are kept
    run = max(n for n in range(1, LONGEST_RUN + 1) if n_full % n == 0)

    def epoch_step(progress: Progress, key: jax.Array) -> tuple[Progress, MinibatchReport]:
        key, shuffle_key = jax.random.split(key)
        segments = jax.random.permutation(shuffle_key, n_transitions // h.segment_length)
        indices = (segments[:, None] * h.segment_length + jnp.arange(h.segment_length)).reshape(-1)
        keys = jax.random.split(key, n_full + 1)
        full = indices[: n_full * h.batch_size].reshape(n_full, h.batch_size)
        rest = indices[n_full * h.batch_size :]
        reports = []
        if n_full:
            in_runs = jax.tree.map(lambda array: array.reshape(-1, run, *array.shape[1:]), (full, keys[:n_full]))
            progress, report = jax.lax.scan(run_step, progress, in_runs)
            reports.append(jax.tree.map(jnp.ravel, report))
        if rest.size:
            progress, report = run_step(progress, (rest[None], keys[n_full:]))
            reports.append(report)
        return progress, jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports)

    # once, and not for each minibatch: of vectors, norms take as long as all else in it
    norms = norms_of(state)
    before = constrain(state, norms)
    progress = Progress(state, norms, stale=jnp.asarray(False), stopped=jnp.asarray(False))
    progress, reports = jax.lax.scan(epoch_step, progress, jax.random.split(key, h.n_epochs))

    ran = reports.ran
    variance = jnp.var(transitions.returns)
    unexplained = jnp.var(transitions.returns - transitions.values)
    report = UpdateReport(
        metrics=reports.metrics.mean(where=ran & ~reports.faults.any),
        faults=jax.tree.map(jnp.sum, reports.faults),
        n_minibatches=ran.sum(),
        explained_variance=jnp.where(variance > 0, 1 - unexplained / variance, jnp.nan),
        n_epochs=ran.any(axis=1).sum(),
        stopped=progress.stopped,
        last_kl=reports.metrics.approx_kl.reshape(-1)[ran.sum() - 1],
    )
    return Updated(progress.state, before, constrain(progress.state, progress.norms), report)
