"""Epochs and minibatches: any step function on any transitions. Knows nothing of losses."""

from collections.abc import Callable
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


Carry = TypeVar("Carry")
Step = Callable[[Carry, Transitions, jax.Array], tuple[Carry, Any]]
"""(what is learned, a minibatch, a key) → what is learned, after one step, and its :class:`StepMetrics`."""


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
    step: Step[Carry],
    learned: Callable[[Carry], Any],
    carry: Carry,
    transitions: Transitions,
    key: jax.Array,
    *,
    n_epochs: int,
    batch_size: int,
    target_kl: float | jax.Array | None,
    microbatch_size: int,
) -> tuple[Carry, EpochsReport]:
    """
    Passes over some transitions in minibatches of a new random order each, with one step for each minibatch. The last
    minibatch of an epoch is smaller where ``batch_size`` does not divide the transitions. A step whose loss, gradient
    or result is not finite is not applied; nor is one whose divergence is above 1.5 times ``target_kl``, which ends
    the update, as in SB3.

    :param step: see :data:`Step`
    :param learned: the part of the carry that has to be finite
    :param carry: what goes from step to step
    :param transitions: B transitions
    :param key: randomness, used up
    :param n_epochs: number of passes
    :param batch_size: transitions in a minibatch
    :param target_kl: ``None``: no limit
    :param microbatch_size: the parts in which the step takes a minibatch
    :return: the last carry, and what happened
    """
    n_transitions = transitions.rewards.size
    n_full = n_transitions // batch_size

    def run(carry: Carry, indices: jax.Array, key: jax.Array) -> tuple[Carry, jax.Array, MinibatchReport]:
        indices = spread_ends(indices, transitions.dones, transitions.segment_length, microbatch_size)
        minibatch = jax.tree.map(lambda array: array[indices], transitions)
        new_carry, metrics = step(carry, minibatch, key)
        faults = Faults(
            loss=~jnp.isfinite(metrics.loss),
            gradient=~jnp.isfinite(metrics.gradient_norm),
            parameters=~jnp.isfinite(optax.tree.norm(learned(new_carry))),
        )
        stops = jnp.asarray(False) if target_kl is None else metrics.approx_kl > 1.5 * target_kl
        rejected = faults.any | stops
        new_carry = jax.tree.map(lambda new, old: jnp.where(rejected, old, new), new_carry, carry)
        return new_carry, stops, MinibatchReport(metrics, faults, ran=jnp.asarray(True))

    def minibatch_step(
        state: tuple[Carry, jax.Array], minibatch: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Carry, jax.Array], MinibatchReport]:
        carry, stopped = state
        if target_kl is None:
            carry, stopped, report = run(carry, *minibatch)
            return (carry, stopped), report

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(run, carry, *minibatch)[2])
        carry, stopped, report = jax.lax.cond(
            stopped, lambda: (carry, stopped, nothing), lambda: run(carry, *minibatch)
        )
        return (carry, stopped), report

    def epoch(state: tuple[Carry, jax.Array], key: jax.Array) -> tuple[tuple[Carry, jax.Array], MinibatchReport]:
        key, shuffle_key = jax.random.split(key)
        indices = shuffled(shuffle_key, n_transitions, transitions.segment_length)
        keys = jax.random.split(key, n_full + 1)
        full, rest = indices[: n_full * batch_size], indices[n_full * batch_size :]
        reports = []
        if n_full:
            state, report = jax.lax.scan(minibatch_step, state, (full.reshape(n_full, batch_size), keys[:n_full]))
            reports.append(report)
        if rest.size:
            state, report = minibatch_step(state, (rest, keys[n_full]))
            reports.append(jax.tree.map(lambda leaf: leaf[None], report))
        return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *reports)

    (carry, stopped), reports = jax.lax.scan(epoch, (carry, jnp.asarray(False)), jax.random.split(key, n_epochs))
    counts = reports.ran & ~reports.faults.any
    return carry, EpochsReport(
        metrics=jax.tree.map(lambda values: jnp.mean(values, where=counts), reports.metrics),
        faults=jax.tree.map(jnp.sum, reports.faults),
        n_minibatches=reports.ran.sum(),
        n_epochs=reports.ran.any(axis=1).sum(),
        stopped=stopped,
        last_kl=reports.metrics.approx_kl.reshape(-1)[reports.ran.sum() - 1],
    )
