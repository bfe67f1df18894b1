"""Every equation against numbers worked out by hand or by NumPy, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sbx_deepspi import losses

floats = st.floats(-100, 100, width=32)


def huber(errors: jax.Array) -> jax.Array:
    """What both of the world model's losses are made of."""
    return losses.reward_loss(errors, jnp.zeros_like(errors))


def test_huber_by_hand() -> None:
    errors = jnp.array([0.0, 0.5, -0.5, 1.0, -3.0, 10.0])
    np.testing.assert_allclose(huber(errors), [0.0, 0.125, 0.125, 0.5, 2.5, 9.5])
    slopes = jax.vmap(jax.grad(huber))(errors)
    np.testing.assert_allclose(slopes, [0.0, 0.5, -0.5, 1.0, -1.0, 1.0])


@settings(deadline=None)  # the first call compiles
@given(arrays(np.float32, 7, elements=floats))
def test_huber_is_quadratic_then_linear(errors: np.ndarray) -> None:
    expected = np.where(np.abs(errors) <= 1, 0.5 * errors**2, np.abs(errors) - 0.5)
    np.testing.assert_allclose(huber(errors), expected, rtol=1e-5, atol=1e-6)


def test_reward_loss_by_hand() -> None:
    np.testing.assert_allclose(
        losses.reward_loss(jnp.array([1.0, 0.5, -1.0]), jnp.array([1.0, 0.0, 1.0])), [0, 0.125, 1.5]
    )


def test_transition_loss_sums_over_latent_dimensions() -> None:
    predicted = jnp.zeros((2, 2, 2))
    actual = jnp.array([[[0.0, 1.0], [2.0, 0.0]], [[0.5, 0.5], [0.5, -0.5]]])
    np.testing.assert_allclose(losses.transition_loss(predicted, actual), [0.5 + 1.5, 4 * 0.125])


def test_normalize() -> None:
    advantages = jnp.array([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_allclose(
        losses.normalize(advantages), (np.array([1, 2, 3, 6]) - 3) / np.std([1, 2, 3, 6]), rtol=1e-6
    )
    assert losses.normalize(jnp.array([5.0])) == 5.0


def test_utility_and_its_gradients() -> None:
    arguments = (jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), jnp.array([100.0, 0.0]))
    np.testing.assert_allclose(losses.utility(*arguments, 0.2, 0.01), [1 - 0.1 - 1.0, -2 - 0.6], rtol=1e-6)
    gradients = jax.grad(lambda *a: losses.utility(*a, 0.2, 0.01).sum(), argnums=(0, 1, 2))(*arguments)
    for gradient, expected in zip(gradients, (1.0, -0.2, -0.01), strict=True):
        np.testing.assert_allclose(gradient, [expected] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "utility", "value", "slope_ratio", "slope_utility"),
    [
        (1.05, 2.0, 2.1, 2.0, 1.05),  # inside the neighbourhood: both move
        (1.30, 2.0, 2.2, 0.0, 1.1),  # beyond it and better: the ratio is held, the losses scaled by 1 + ε
        (0.80, -2.0, -1.8, 0.0, 0.9),  # beyond it and worse avoided: held at 1 - ε
        (1.30, -2.0, -2.6, -2.0, 1.3),  # beyond it and bad: pulled back at full strength
    ],
)
def test_clipped_surrogate_and_its_gradients(
    ratio: float, utility: float, value: float, slope_ratio: float, slope_utility: float
) -> None:
    assert losses.clipped_surrogate(jnp.array(ratio), jnp.array(utility), 0.1) == pytest.approx(value, rel=1e-6)
    slopes = jax.grad(losses.clipped_surrogate, argnums=(0, 1))(ratio, utility, 0.1)
    assert slopes == (pytest.approx(slope_ratio, abs=1e-6), pytest.approx(slope_utility, rel=1e-6))


@settings(deadline=None)  # the first call compiles
@given(arrays(np.float32, 5, elements=st.floats(-3, 3, width=32)), arrays(np.float32, 5, elements=floats))
def test_clipped_surrogate_never_exceeds_the_unclipped(log_ratios: np.ndarray, utilities: np.ndarray) -> None:
    ratios = losses.importance_ratio(jnp.asarray(log_ratios), jnp.zeros(5))
    np.testing.assert_allclose(ratios, np.exp(log_ratios), rtol=1e-5)
    surrogate = losses.clipped_surrogate(ratios, jnp.asarray(utilities), 0.1)
    expected = np.minimum(np.exp(log_ratios) * utilities, np.clip(np.exp(log_ratios), 0.9, 1.1) * utilities)
    np.testing.assert_allclose(surrogate, expected, rtol=1e-4, atol=1e-4)


def test_value_loss_by_hand() -> None:
    values, returns, old = jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0]), jnp.array([0.5, 0.5])
    np.testing.assert_allclose(losses.value_loss(values, returns, old, None), [0.5, 4.5])
    # 3 is held at 0.5 + 1
    np.testing.assert_allclose(losses.value_loss(values, returns, old, 1.0), [0.5, 0.5 * 1.5**2])
    slope = jax.grad(lambda v: losses.value_loss(v, returns, old, 1.0).sum())(values)
    np.testing.assert_allclose(slope, [-1.0, 0.0])


def test_approximate_kl() -> None:
    log_ratios = np.array([0.1, -0.2, 0.0])
    expected = np.mean(np.exp(log_ratios) - 1 - log_ratios)
    assert losses.approximate_kl(jnp.asarray(log_ratios)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cost", losses.CATEGORICAL_COSTS)
def test_categorical_costs_by_numpy(cost: str) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 4, 5))
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    predicted, observed = (np.eye(5)[random.integers(0, 5, (3, 4))] for _ in range(2))
    observed[0] = predicted[0]
    different = (predicted != observed).any(axis=-1).mean(axis=-1)
    mixed, seen = (0.99 * p + 0.002 for p in (probs, observed))
    expected = {
        "huber": different,  # two classes with an error of 1 each: ½ + ½
        "hamming": different,
        "cross_entropy": -np.log((probs * observed).sum(axis=-1)).mean(axis=-1),
        "jensen_shannon": scipy.spatial.distance.jensenshannon(mixed, seen, axis=-1).__pow__(2).mean(axis=-1),
    }[cost]
    function = losses.CATEGORICAL_COSTS[cost]
    arguments = [array.astype(np.float32) for array in (predicted, np.log(probs), observed)]
    np.testing.assert_allclose(jax.jit(function)(*arguments), expected, rtol=1e-5, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *a: function(*a).sum(), argnums=(0, 1, 2)))(*arguments)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert sum(np.abs(gradient).sum() for gradient in gradients) > 0
