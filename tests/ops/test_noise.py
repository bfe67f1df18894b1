"""The latent samples' noise: its distribution, and the bits that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from sbx_deepspi.ops import clipped_normal
from sbx_deepspi.ops.cpu import hashed_bits
from sbx_deepspi.ops.noise import LARGEST, clipped_normal_of
from tests.numerics import KEY


def test_clipped_normal_is_the_inverse_normal_distribution_cut_off() -> None:
    bits = jnp.arange(0, 2**32, 2**20 - 1, dtype=jnp.uint32)
    uniform = ((np.asarray(bits) >> 8).astype(float) + 0.5) / 2**24
    expected = np.clip(scipy.stats.norm.ppf(uniform), -1, 1)
    np.testing.assert_allclose(clipped_normal_of(bits), expected, atol=2e-6)
    assert pytest.approx(scipy.stats.norm.cdf(1) - 0.5, rel=1e-9) == LARGEST


def test_hashed_bits_are_uniform_and_independent() -> None:
    """Each bit, its neighbour in the word and in the array, and the bits of the next key."""
    first, second = (hashed_bits(key, (100_000,)) for key in jax.random.split(KEY))
    as_bits = lambda words: np.unpackbits(np.asarray(words).view(np.uint8)).reshape(-1, 32).astype(float)  # noqa: E731
    bits, others = as_bits(first), as_bits(second)
    tolerance = 5 / np.sqrt(len(bits))  # of a correlation, five standard deviations
    signs, other_signs = 2 * bits - 1, 2 * others - 1
    assert np.abs(signs.mean(0)).max() < tolerance
    products = np.abs(signs.T @ signs / len(bits) - np.eye(32))
    assert products.max() < tolerance
    assert np.abs(signs[1:].T @ signs[:-1] / len(bits)).max() < tolerance
    assert np.abs(signs.T @ other_signs / len(bits)).max() < tolerance
    assert scipy.stats.kstest(np.asarray(first) / 2**32, "uniform").pvalue > 1e-3


def test_clipped_normal_moments() -> None:
    """A normal cut to [-1, 1] has mean 0 and variance 1 - 2 φ(1) + ... = 0.5161 (by numerical integration)."""
    noise = np.asarray(clipped_normal(KEY, (1000, 200)))
    inside = scipy.integrate.quad(lambda x: x**2 * scipy.stats.norm.pdf(x), -1, 1)[0]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.var() == pytest.approx(inside + 2 * scipy.stats.norm.sf(1), abs=0.01)
