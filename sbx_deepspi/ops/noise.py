"""Noise for the latent samples: standard normals cut to [-1, 1], as cheap as they can be made.

A minibatch of Atari needs four million of them. Cutting first means that only the middle of the inverse
normal distribution is ever needed, which is a short polynomial. On CPUs, a hash of a counter, two rounds of a 32-bit
integer mixer (constants: C. Wellons' lowbias32), makes bits with far less work than JAX's threefry.
"""

import jax
import jax.numpy as jnp

from sbx_deepspi.ops.cpu import hashed_bits

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


def clipped_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """
    Standard normal numbers clipped to [-1, 1].

    :param key: randomness
    :param shape: of the result
    :return: float32
    """
    bits = jax.lax.platform_dependent(
        key, cpu=lambda key: hashed_bits(key, shape), default=lambda key: jax.random.bits(key, shape, jnp.uint32)
    )
    return clipped_normal_of(bits)
