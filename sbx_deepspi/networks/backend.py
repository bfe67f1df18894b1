"""
What depends on the machine, in one place: which form of a computation runs where, and what is kept between runs.

Both forms compute the same; of random numbers, the same distribution.

On accelerators XLA's own operations are right. On CPUs its convolutions are slow, and slower still inside the loops
over epochs and minibatches (jax issue 12868), while matrix products run near the machine's peak; JAX's random bits
cost more there than what is done with them; and what image networks compute should stay within the cache.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from sbx_deepspi.networks.convolution import matrix_convolution, plain_convolution
from sbx_deepspi.networks.noise import clipped_normal_of, hashed_bits

CPU_MICROBATCH = 32  # images of 84 x 84, whose feature maps two MB of cache hold, more or less
EVERYTHING = 2**31


def convolution(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """
    Convolution without padding.

    :param images: shape (B, H, W, C)
    :param kernel: square, its size a multiple of ``stride``: shape (k, k, C, O)
    :param stride: in both directions
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O)
    """
    return jax.lax.platform_dependent(
        images,
        kernel,
        cpu=lambda images, kernel: matrix_convolution(images, kernel, stride),
        default=lambda images, kernel: plain_convolution(images, kernel, stride),
    )


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


def in_parts(function: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """
    A function of images, of some after the other where all of them would not stay within the cache.

    :param function: shape (b, ...) → (b, ...), of each image on its own
    :param images: shape (B, ...)
    :return: shape (B, ...)
    """
    if len(images) <= 2 * CPU_MICROBATCH:  # what an update's parts come to with their s'
        return function(images)
    return jax.lax.platform_dependent(
        images,
        cpu=lambda images: jax.lax.map(lambda image: function(image[None])[0], images, batch_size=CPU_MICROBATCH),
        default=function,
    )


def microbatch_size(platform: str, encodes_images: bool) -> int:
    """
    The most transitions that go through the networks at a time.

    :param platform: of the device, ``"cpu"`` or another
    :param encodes_images: whether the encoder is convolutional
    :return: number of transitions
    """
    return CPU_MICROBATCH if platform == "cpu" and encodes_images else EVERYTHING


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
