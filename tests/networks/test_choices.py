"""Several choices side by side, against TensorFlow Probability's categorical distributions, one for each choice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_probability.substrates.jax as tfp

from sbx_deepspi.networks.choices import Choices, by_size
from tests.numerics import normal

SIZES = [(3,), (2, 2, 2), (2, 5, 2, 3, 5, 1)]


def apart(logits: jax.Array, sizes: tuple[int, ...]) -> list[Any]:
    return [tfp.distributions.Categorical(logits=part) for part in jnp.split(logits, np.cumsum(sizes)[:-1], axis=-1)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_choices_are_independent_categorical_distributions(sizes: tuple[int, ...]) -> None:
    """Probabilities, entropies, modes, and both gradients."""
    logits = 3 * normal(0, 7, sum(sizes))
    actions = jnp.stack([jnp.arange(7) % n for n in sizes], axis=-1)

    def ours(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        distribution = Choices.from_logits(logits, sizes)
        return distribution.log_prob(actions), distribution.entropy()

    def theirs(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = apart(logits, sizes)
        log_probs = [part.log_prob(action) for part, action in zip(parts, actions.T, strict=True)]
        return jnp.stack(log_probs).sum(axis=0), jnp.stack([part.entropy() for part in parts]).sum(axis=0)

    for mine, other in zip(ours(logits), theirs(logits), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    weights = jnp.arange(7.0)
    for i in range(2):
        gradients = [jax.grad(lambda logits, f=f, i=i: (f(logits)[i] * weights).sum())(logits) for f in (ours, theirs)]
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)
    modes = jnp.stack([part.mode() for part in apart(logits, sizes)], axis=-1)
    np.testing.assert_array_equal(Choices.from_logits(logits, sizes).mode(), modes)


def test_samples_have_the_probabilities() -> None:
    sizes = (2, 3, 2)
    logits = normal(1, 1, sum(sizes))
    noise = jax.random.gumbel(jax.random.PRNGKey(0), (20_000, sum(sizes)))
    samples = jax.jit(Choices.from_logits(jnp.tile(logits, (20_000, 1)), sizes).sample)(noise)
    assert samples.shape == (20_000, 3) and samples.dtype == jnp.int32
    for choice, part in enumerate(apart(logits, sizes)):
        found = np.bincount(samples[:, choice], minlength=sizes[choice]) / 20_000
        np.testing.assert_allclose(found, part.probs_parameter()[0], atol=0.02)


def test_blocks_are_of_equal_size_and_cover_all() -> None:
    blocks = {
        block.shape[-1]: (choices.tolist(), block.tolist()) for choices, block in by_size(jnp.arange(9.0), (2, 3, 2, 2))
    }
    assert blocks == {2: ([0, 2, 3], [[0, 1], [5, 6], [7, 8]]), 3: ([1], [[2, 3, 4]])}


def test_wide_choices_take_no_room_for_padding() -> None:
    """Padded to the widest, B = 64 would take 64 * 201 * 2,000 numbers, 103 MB, for each intermediate result."""
    sizes = (2,) * 200 + (2000,)

    def log_probs(logits: jax.Array, actions: jax.Array) -> jax.Array:
        return Choices.from_logits(logits, sizes).log_prob(actions).sum()

    program = jax.jit(jax.grad(log_probs)).lower(jnp.zeros((64, sum(sizes))), jnp.zeros((64, 201), int)).compile()
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 10e6
