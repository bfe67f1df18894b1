"""What tests of layers and networks share: random arrays, plain versions, and how two functions are compared."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def unrolled(kernel: np.ndarray | jax.Array, height: int, width: int) -> np.ndarray:
    """The matrix of a SAME convolution, column by column."""
    channels = kernel.shape[2]
    units = np.eye(height * width * channels, dtype=np.float32).reshape(-1, height, width, channels)
    images = jax.lax.conv_general_dilated(units, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return np.asarray(images).reshape(len(units), -1)


def gradient_of(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """As the gradient penalty needs it: a gradient's own gradient has to be right, too."""
    return lambda *operands: jax.grad(lambda *operands: (function(*operands) ** 3).sum())(*operands)


def assert_same_function(fast: Callable[..., jax.Array], plain: Callable[..., jax.Array], *arguments: object) -> None:
    """Values and all gradients to 1e-4 relative to their largest entry."""

    def outputs_and_gradients(function: Callable[..., jax.Array]) -> object:
        outputs, vjp = jax.vjp(function, *arguments)
        return outputs, vjp(jax.random.normal(KEY, outputs.shape))

    results = (jax.jit(lambda f=f: outputs_and_gradients(f))() for f in (fast, plain))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-12)
