"""
Which form of a computation runs where, in one place, and what is kept between runs.

Both forms compute the same; of random numbers, the same distribution.

On accelerators XLA's own operations are right. On CPUs its convolutions are slow, and slower still inside the loops
over epochs and minibatches (jax issue 12868), while matrix products run near the machine's peak; JAX's random bits
cost more there than what is done with them; small products are slow when they begin by transposing; and what image
networks compute should stay within the cache.
"""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from sbx_deepspi.networks.convolution import (
    matrix_convolution,
    once_padded_patches,
    plain_convolution,
    plain_patches,
)
from sbx_deepspi.networks.noise import clipped_normal_of, hashed_bits
from sbx_deepspi.networks.products import batched_product, dense_product

CPU_MICROBATCH = 128  # fewer transitions, and the dense layers do little but read parameters and add up gradients
CPU_PIECE = 20  # images of 84 x 84, or latent maps of them, that stay in a core's cache
CPU_CHUNK = 32  # images at a time in a loop, where there is no gradient to keep anything for
EVERYTHING = 2**31
LONGEST_SEGMENT = 8


def convolution(images: jax.Array, kernel: jax.Array, stride: int, channels_first: bool = False) -> jax.Array:
    """
    Convolution without padding.

    :param images: shape (B, H, W, C), or (B, C, H, W), integers or floats
    :param kernel: square, its size a multiple of ``stride``: shape (k, k, C, O)
    :param stride: in both directions
    :param channels_first: layout of the images
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O), in the kernel's dtype
    """
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=lambda images, kernel: matrix_convolution(images, kernel, stride, channels_first),
        default=lambda images, kernel: plain_convolution(images, kernel, stride, channels_first),
    )


def patches(inputs: jax.Array) -> jax.Array:
    """
    The 2 × 2 windows of a SAME convolution, zeros beyond the lower and right edges.

    :param inputs: shape (B, H, W, C)
    :return: shape (B, H, W, 4 · C), taps in row-major order, channels last
    """
    return jax.lax.platform_dependent(inputs, cpu=once_padded_patches, default=plain_patches)


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


def product(rows: jax.Array, matrices: jax.Array) -> jax.Array:
    """
    Matrix product of many rows with one matrix, or many small matrix products.

    :param rows: shape (n, m), or (..., n, m)
    :param matrices: shape (m, k), or (..., m, k) with the same leading axes
    :return: shape (n, k), or (..., n, k)
    """
    cpu = dense_product if matrices.ndim == 2 else batched_product
    return jax.lax.platform_dependent(rows, matrices, cpu=cpu, default=jnp.matmul)


def in_parts(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """
    A function of images, or of latent maps, in parts where what it makes of all of them would not stay in the cache.

    :param function: arrays of shape (b, ...) → (b, ...), of each item on its own but for random numbers
    :param arrays: each of shape (B, ...)
    :return: shape (B, ...)
    """
    size = len(arrays[0])
    n_pieces = -(-size // CPU_PIECE)
    if n_pieces == 1:
        return function(*arrays)

    def side_by_side(*arrays: jax.Array) -> jax.Array:
        # written out, not a loop: each core takes a piece, and the gradient keeps what it needs without copies
        pieces = zip(*(jnp.array_split(array, n_pieces) for array in arrays), strict=True)
        return jnp.concatenate([function(*piece) for piece in pieces])

    def one_after_the_other(*arrays: jax.Array) -> jax.Array:
        def single(items: tuple[jax.Array, ...]) -> jax.Array:
            return function(*(item[None] for item in items))[0]

        return jax.lax.map(single, arrays, batch_size=CPU_CHUNK)

    # an update's parts have at most twice as many images as transitions; more go through without a gradient
    cpu = side_by_side if size <= 2 * CPU_MICROBATCH else one_after_the_other
    return jax.lax.platform_dependent(*arrays, cpu=cpu, default=function)


def microbatch_size(platform: str, encodes_images: bool) -> int:
    """
    The most transitions that go through the networks at a time.

    :param platform: of the device, ``"cpu"`` or another
    :param encodes_images: whether the encoder is convolutional
    :return: number of transitions
    """
    return CPU_MICROBATCH if platform == "cpu" and encodes_images else EVERYTHING


def segment_length(encodes_images: bool, n_steps: int, batch_size: int) -> int:
    """
    How many successive steps of an environment stay together when minibatches are drawn, so that φ(s') is not computed
    where it is the next step's φ(s). Vectors' encoders are small: it is computed, transitions drawn one by one.

    :param encodes_images: whether the encoder is convolutional
    :param n_steps: of each environment in a rollout
    :param batch_size: of a minibatch
    :return: number of steps; divides ``n_steps`` and ``batch_size``
    """
    if not encodes_images:
        return 1
    common = math.gcd(n_steps, batch_size)
    # not 2: with the room for episodes' ends it would save an eighth, and have to be checked for as longer ones are
    return max(length for length in (1, *range(3, LONGEST_SEGMENT + 1)) if common % length == 0)


def keep_compiled_programs() -> None:
    """
    Have JAX keep compiled programs in the user's cache folder from run to run, unless it was told where, or not to.

    A folder for each kind of processor, since programs for one may not run on another that shares the home.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    processors = Path("/proc/cpuinfo")
    lines = processors.read_text().splitlines() if processors.exists() else []
    flags = {line for line in lines if line.startswith(("flags", "Features"))}
    kind = hashlib.sha256("".join(sorted(flags)).encode()).hexdigest()[:8]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "sbx-deepspi", f"compiled-{kind}"))
