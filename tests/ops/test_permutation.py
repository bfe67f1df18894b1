"""Random orders."""

from itertools import permutations
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from sbx_deepspi.ops import permutation

KEY = jax.random.PRNGKey(0)


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 5000, 2**17])
def test_each_number_comes_once(n: int) -> None:
    order = np.asarray(permutation(KEY, n))
    assert order.dtype == np.int32
    assert np.array_equal(np.sort(order), np.arange(n))
    assert n < 4 or not np.array_equal(order, np.asarray(permutation(jax.random.PRNGKey(1), n)))


def test_all_orders_are_equally_likely() -> None:
    drawn = np.asarray(jax.vmap(lambda key: permutation(key, 4))(jax.random.split(KEY, 24_000)))
    counts = [int((drawn == np.array(order)).all(axis=1).sum()) for order in permutations(range(4))]
    assert sum(counts) == 24_000
    assert len(counts) == factorial(4)
    assert chisquare(counts).pvalue > 1e-3


def test_equal_bits_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sort by few bits would keep numbers with equal bits in order: two sorts have bits enough."""
    n = 2**16
    bits = jax.random.bits
    # as if there were two bits besides the number's own in each sort
    monkeypatch.setattr(jax.random, "bits", lambda key, shape: bits(key, shape) & 3)
    places = np.argsort(np.asarray(permutation(KEY, n)))
    in_order = (places[1:] > places[:-1]).mean()  # of neighbours: ½, and half as often as two have all four bits equal
    assert in_order == pytest.approx(0.5 + 0.5 / 16, abs=5 * 0.5 / n**0.5)


def test_it_can_be_drawn_for_several_keys_at_once() -> None:
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: permutation(key, 100))(keys)
    assert jnp.array_equal(together, jnp.stack([permutation(key, 100) for key in keys]))
