"""Epochs and minibatches with a step that knows nothing of DeepSPI: a line fitted by gradient descent."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from sbx_deepspi.epochs import EpochsReport, epochs
from sbx_deepspi.rollout import Transitions

RATE = 0.1


class Measured(struct.PyTreeNode):
    loss: jax.Array
    gradient_norm: jax.Array
    approx_kl: jax.Array


def numbered(n: int, **changes: Any) -> Transitions:
    """Transitions that differ in their reward alone, which is their number."""
    zeros, false = jnp.zeros(n), jnp.zeros(n, bool)
    transitions = Transitions(
        observations=zeros, next_observations=zeros, actions=zeros, rewards=jnp.arange(n, dtype=jnp.float32),
        terminated=false, truncated=false, values=zeros, log_probs=zeros, advantages=zeros, returns=zeros,
    )  # fmt: skip
    return transitions.replace(**changes)


def fit(learned: dict[str, Any], memory: Any, minibatch: Transitions, key: jax.Array) -> tuple[Any, Measured]:
    """One step down ½(w - r)², and what the steps saw. The divergence grows by 0.1 with each."""
    w, n, r = learned["w"], learned["n"], minibatch.rewards
    seen = learned["seen"].at[n, : len(r)].set(r)
    metrics = Measured(0.5 * ((w - r) ** 2).mean(), jnp.abs((w - r).mean()), 0.1 * n)
    return {"w": w - RATE * (w - r).mean(), "n": n + 1, "seen": seen}, metrics


def run(transitions: Transitions, step: Any = fit, refresh: Any = None, **changes: Any) -> tuple[Any, EpochsReport]:
    learned = {"w": jnp.float32(3), "n": jnp.int32(0), "seen": jnp.full((40, 10), jnp.nan)}
    arguments = dict(n_epochs=3, batch_size=4, target_kl=None, microbatch_size=99) | changes

    def program(transitions: Transitions) -> Any:
        return epochs(
            step,
            refresh or (lambda learned, memory: memory),
            lambda learned: learned["w"],
            learned,
            jnp.int32(-1),
            transitions,
            jax.random.PRNGKey(0),
            **arguments,
        )

    return jax.device_get(jax.jit(program)(transitions))


def in_numpy(seen: np.ndarray) -> tuple[float, list[float]]:
    """The same steps as a loop: w after them, and each one's loss."""
    w, losses = 3.0, []
    for row in seen:
        r = row[~np.isnan(row)]
        losses.append(0.5 * ((w - r) ** 2).mean())
        w -= RATE * (w - r).mean()
    return w, losses


@pytest.mark.parametrize(("batch_size", "sizes"), [(5, [5, 5]), (4, [4, 4, 2]), (99, [10])])
def test_epochs_are_a_loop_over_minibatches(batch_size: int, sizes: list[int]) -> None:
    """Every epoch takes each transition once, in an order of its own; the last minibatch has what is left."""
    learned, report = run(numbered(10), batch_size=batch_size)
    n = 3 * len(sizes)
    seen = learned["seen"][:n]
    assert learned["n"] == report.n_minibatches == n and report.n_epochs == 3
    assert (~np.isnan(seen)).sum(axis=1).tolist() == 3 * sizes
    orders = [epoch[~np.isnan(epoch)] for epoch in seen.reshape(3, -1)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    w, losses = in_numpy(seen)
    assert learned["w"] == pytest.approx(w, rel=1e-5)
    assert report.metrics.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert not report.stopped and not report.faults.any
    assert report.last_kl == pytest.approx(0.1 * (n - 1))


def test_target_kl_stops_before_the_step() -> None:
    """The divergence passes 1.5 · 0.25 with the fifth step, which is not applied; nothing runs after it."""
    learned, report = run(numbered(10), target_kl=0.25)
    assert learned["n"] == 4 and learned["w"] == pytest.approx(in_numpy(learned["seen"][:4])[0], rel=1e-5)
    assert report.stopped and report.n_minibatches == 5 and report.n_epochs == 2
    assert report.last_kl == pytest.approx(0.4)
    assert report.metrics.approx_kl == pytest.approx(0.2)  # the mean of 0, 0.1 … 0.4
    free, loose = run(numbered(10)), run(numbered(10), target_kl=1e9)
    jax.tree.map(np.testing.assert_array_equal, free, loose)


@pytest.mark.parametrize("target_kl", [None, 1e9])
@pytest.mark.parametrize("fault", ["loss", "gradient", "parameters"])
def test_a_step_at_fault_is_not_applied(fault: str, target_kl: float | None) -> None:
    """One transition spoils each minibatch that it is in, one of three in each epoch."""

    def faulty(learned: dict[str, Any], memory: Any, minibatch: Transitions, key: jax.Array) -> Any:
        learned, metrics = fit(learned, memory, minibatch, key)
        spoils = (minibatch.rewards == 7).any()
        spoil = lambda value, name: jnp.where(spoils & (fault == name), jnp.nan, value)  # noqa: E731
        metrics = metrics.replace(
            loss=spoil(metrics.loss, "loss"), gradient_norm=spoil(metrics.gradient_norm, "gradient")
        )
        return learned | {"w": spoil(learned["w"], "parameters")}, metrics

    learned, report = run(numbered(10), faulty, target_kl=target_kl)
    w, losses = in_numpy(learned["seen"][:6])
    assert learned["n"] == 6 and learned["w"] == pytest.approx(w, rel=1e-5)
    assert not (learned["seen"] == 7).any()
    assert report.n_minibatches == 9 and report.n_epochs == 3 and report.faults.any
    assert {name: int(getattr(report.faults, name)) for name in ("loss", "gradient", "parameters")} == {
        name: 3 * (name == fault) for name in ("loss", "gradient", "parameters")
    }
    assert report.metrics.loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(
    ("n_transitions", "refreshed_before"),
    [(8, [0] * 4 + [4] * 4), (24, [0] * 6 + [6] * 6 + [12] * 6 + [18] * 6), (7, [0, 0, 0, 3, 4, 4, 4, 7])],
)
def test_a_memory_is_refreshed_with_each_epoch_and_every_eight_steps(
    n_transitions: int, refreshed_before: list[int]
) -> None:
    """At least. Steps see here how many had been taken when their memory was refreshed."""

    def remember(learned: dict[str, Any], memory: jax.Array, minibatch: Transitions, key: jax.Array) -> Any:
        learned, metrics = fit(learned, memory, minibatch, key)
        return learned | {"seen": learned["seen"].at[learned["n"] - 1, 0].set(memory)}, metrics

    transitions = numbered(n_transitions)
    learned, _ = run(transitions, remember, lambda learned, memory: learned["n"], batch_size=2, n_epochs=2)
    assert learned["seen"][: learned["n"], 0].tolist() == refreshed_before


def test_segments_stay_together() -> None:
    learned, _ = run(numbered(12, segment_length=3), batch_size=6)
    seen = learned["seen"][:6, :6].reshape(-1, 3)
    np.testing.assert_array_equal(seen[:, 0] % 3, 0)
    np.testing.assert_array_equal(seen - seen[:, :1], np.broadcast_to([0, 1, 2], seen.shape))
