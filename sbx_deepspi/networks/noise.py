"""Noise for the latent samples: standard normals cut to [-1, 1], as cheap as they can be made.

A minibatch of Atari needs four million of them. Cutting first means that only the middle of the inverse
normal distribution is ever needed, which is a short polynomial. A hash of a counter, two rounds of a 32-bit integer
mixer (constants: C. Wellons' lowbias32), makes bits with far less work than JAX's threefry.
"""

import math

import jax
import jax.numpy as jnp

# Φ⁻¹(½ + q) / q as a polynomial in q² on |q| ≤ Φ(1) - ½, its error below 1e-6
INVERSE_NORMAL = (
    2.5066292, 2.6245054, 5.820022, 13.542898, 92.768906, -337.42471, 2747.3376
)  # fmt: skip
LARGEST = 0.3413447460685429  # Φ(1) - ½


def clipped_normal_of(bits: jax.Array) -> jax.Array:
    """
    max(-1, min(1, Φ⁻¹(u))) of the uniform number u that the upper 24 bits make.

    :param bits: uint32
    :return: float32, same shape
    """
    centred = ((bits >> 8).astype(jnp.float32) + 0.5) * 2.0**-24 - 0.5
    centred = jnp.clip(centred, -LARGEST, LARGEST)
    squares = centred * centred
    polynomial = jnp.full_like(squares, INVERSE_NORMAL[-1])
    for coefficient in reversed(INVERSE_NORMAL[:-1]):
        polynomial = polynomial * squares + coefficient
    return centred * polynomial


def hashed_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """
    Random bits from a counter, mixed twice, each time with a half of the key.

    :param key: randomness
    :param shape: of the result
    :return: uint32
    """
    data = key if jnp.issubdtype(key.dtype, jnp.uint32) else jax.random.key_data(key)
    counter = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mix(_mix(counter + data[..., 0]) ^ data[..., 1])


def _mix(bits: jax.Array) -> jax.Array:
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
