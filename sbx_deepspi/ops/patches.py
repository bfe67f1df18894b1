"""The windows of a small convolution, so that it becomes a matrix product."""

import jax
import jax.numpy as jnp


def patches(inputs: jax.Array) -> jax.Array:
    """
    The 2 × 2 windows of a SAME convolution, zeros beyond the lower and right edges.

    :param inputs: shape (B, H, W, C)
    :return: shape (B, H, W, 4 · C), taps in row-major order, channels last
    """
    _, height, width, _ = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, row : row + height, column : column + width] for row in (0, 1) for column in (0, 1)], axis=-1
    )
