"""Epochs and minibatches: any step function on any transitions. Knows nothing of losses."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from sbx_deepspi.rollout import Transitions
from sbx_deepspi.segments import shuffled, spread_ends


class StepMetrics(Protocol):
    """
    What :func:`epochs` has to know of a step, beside anything else that a step measures; scalars.

    :param loss: that the step lowers
    :param gradient_norm: of its gradient
    :param approx_kl: divergence of the policy from the one that collected the data, estimated before the step, in nats
    """

    @property
    def loss(self) -> jax.Array: ...

    @property
    def gradient_norm(self) -> jax.Array: ...

    @property
    def approx_kl(self) -> jax.Array: ...


Learned = TypeVar("Learned")
Memory = TypeVar("Memory")
Step = Callable[[Learned, Memory, Transitions, jax.Array], tuple[Learned, Any]]
"""(what is learned, a memory, a minibatch, a key) → what is learned, after one step, and its :class:`StepMetrics`."""
Refresh = Callable[[Learned, Memory], Memory]
"""(what is learned, a memory) → the memory for the next steps."""

STEPS_PER_REFRESH = 8
"""At most: to refresh a memory costs time, too."""


class Faults(struct.PyTreeNode):
    """
    Which quantities were NaN or infinite: bools of a minibatch, or the number of minibatches.

    :param loss: that the step lowers
    :param gradient: its norm, which overflows where numbers of about 1.8e19 are squared, finite as they are
    :param parameters: the norm of what is learned, after the step
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


class EpochsReport(struct.PyTreeNode):
    """
    What the epochs of an update tell; scalars.

    :param metrics: of the steps, their mean over the minibatches that ran, without those at fault
    :param faults: how many of them were at fault, by quantity; their steps were not applied
    :param n_minibatches: that ran
    :param n_epochs: that ran
    :param stopped: whether ``target_kl`` stopped the update
    :param last_kl: divergence estimated in the last minibatch that ran
    """

    metrics: Any
    faults: Faults
    n_minibatches: jax.Array
    n_epochs: jax.Array
    stopped: jax.Array
    last_kl: jax.Array


class MinibatchReport(struct.PyTreeNode):
    """
    What a minibatch tells.

    :param metrics: of the step
    :param faults: see :class:`Faults`
    :param ran: whether it did: nothing does after ``target_kl`` has stopped the update
    """

    metrics: Any
    faults: Faults
    ran: jax.Array


def epochs(
    step: Step[Learned, Memory],
    refresh: Refresh[Learned, Memory],
    parameters_of: Callable[[Learned], Any],
    learned: Learned,
    memory: Memory,
    transitions: Transitions,
    key: jax.Array,
    *,
    n_epochs: int,
    batch_size: int,
    target_kl: float | jax.Array | None,
    microbatch_size: int,
) -> tuple[Learned, EpochsReport]:
    """
    Passes over some transitions in minibatches of a new random order each, with one step for each minibatch. The last
    minibatch of an epoch is smaller where ``batch_size`` does not divide the transitions. A step whose loss, gradient
    or result is not finite is not applied; nor is one whose divergence is above 1.5 times ``target_kl``, which ends
    the update, as in SB3.

    :param step: see :data:`Step`
    :param refresh: see :data:`Refresh`; called where an epoch begins, and after :data:`STEPS_PER_REFRESH` steps at most
    :param parameters_of: the part of what is learned that stays finite
    :param learned: what the steps change
    :param memory: what steps use, but do not change
    :param transitions: B transitions
    :param key: randomness, used up
    :param n_epochs: number of passes
    :param batch_size: transitions in a minibatch
    :param target_kl: ``None``: no limit
    :param microbatch_size: the parts in which the step takes a minibatch
    :return: what was learned, and what happened
    """
    n_transitions = transitions.rewards.size
    n_full = n_transitions // batch_size
    run_length = max((n for n in range(1, STEPS_PER_REFRESH + 1) if n_full % n == 0), default=1)

    def run_minibatch(
        learned: Learned, memory: Memory, indices: jax.Array, key: jax.Array
    ) -> tuple[Learned, jax.Array, MinibatchReport]:
        indices = spread_ends(indices, transitions.dones, transitions.segment_length, microbatch_size)
        minibatch = jax.tree.map(lambda array: array[indices], transitions)
        new, metrics = step(learned, memory, minibatch, key)
        faults = Faults(
            loss=~jnp.isfinite(metrics.loss),
            gradient=~jnp.isfinite(metrics.gradient_norm),
            parameters=~jnp.isfinite(optax.tree.norm(parameters_of(new))),
        )
        stops = jnp.asarray(False) if target_kl is None else metrics.approx_kl > 1.5 * target_kl
        rejected = faults.any | stops
        learned = jax.tree.map(lambda old, new: jnp.where(rejected, old, new), learned, new)
        return learned, stops, MinibatchReport(metrics, faults, ran=jnp.asarray(True))

    def minibatch_step(
        memory: Memory, state: tuple[Learned, jax.Array], minibatch: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Learned, jax.Array], MinibatchReport]:
        learned, stopped = state
        if target_kl is None:
            learned, stopped, report = run_minibatch(learned, memory, *minibatch)
            return (learned, stopped), report

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(run_minibatch, learned, memory, *minibatch)[2])
        learned, stopped, report = jax.lax.cond(
            stopped, lambda: (learned, stopped, nothing), lambda: run_minibatch(learned, memory, *minibatch)
        )
        return (learned, stopped), report

    def run(
        state: tuple[Learned, jax.Array, Memory], minibatches: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Learned, jax.Array, Memory], MinibatchReport]:
        learned, stopped, memory = state
        memory = refresh(learned, memory)
        (learned, stopped), reports = jax.lax.scan(partial(minibatch_step, memory), (learned, stopped), minibatches)
        return (learned, stopped, memory), reports

    def epoch(
        state: tuple[Learned, jax.Array, Memory], key: jax.Array
    ) -> tuple[tuple[Learned, jax.Array, Memory], MinibatchReport]:
        key, shuffle_key = jax.random.split(key)
        indices = shuffled(shuffle_key, n_transitions, transitions.segment_length)
        keys = jax.random.split(key, n_full + 1)
        full, rest = indices[: n_full * batch_size], indices[n_full * batch_size :]
        reports = []
        if n_full:
            runs = full.reshape(-1, run_length, batch_size), keys[:n_full].reshape(-1, run_length, *keys.shape[1:])
            state, report = jax.lax.scan(run, state, runs)
            reports.append(jax.tree.map(jnp.ravel, report))
        if rest.size:
            state, report = run(state, (rest[None], keys[n_full:]))
            reports.append(report)
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports)

    state = learned, jnp.asarray(False), memory
    (learned, stopped, _), reports = jax.lax.scan(epoch, state, jax.random.split(key, n_epochs))
    counts = reports.ran & ~reports.faults.any
    return learned, EpochsReport(
        metrics=jax.tree.map(lambda values: jnp.mean(values, where=counts), reports.metrics),
        faults=jax.tree.map(jnp.sum, reports.faults),
        n_minibatches=reports.ran.sum(),
        n_epochs=reports.ran.any(axis=1).sum(),
        stopped=stopped,
        last_kl=reports.metrics.approx_kl.reshape(-1)[reports.ran.sum() - 1],
    )
