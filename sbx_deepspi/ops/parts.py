"""Images and latent maps in parts that stay within the processor's cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

CPU_MICROBATCH = 128  # with fewer transitions, dense layers spend their time reading parameters and adding gradients
CPU_PIECE = 20  # images of 84 x 84, or latent maps of them, that stay in a core's cache
CPU_CHUNK = 32  # images at a time in a loop, where there is no gradient to keep anything for
EVERYTHING = 2**31


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
