"""Images and latent maps in parts that stay within the processor's cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

CPU_MICROBATCH = 4_000_000  # numbers; with fewer, dense layers spend their time reading parameters and adding gradients
CPU_PIECE = 600_000  # numbers that stay in a core's cache
CPU_PIECES = 14  # at most, side by side: twice a microbatch
CPU_CHUNK = 32  # images at a time in a loop, where there is no gradient to keep anything for
EVERYTHING = 2**31


def in_parts(function: Callable[..., jax.Array], *arrays: jax.Array, n_numbers: int) -> jax.Array:
    """
    A function of images, or of latent states, in parts where what it makes of all of them would not stay in the cache.

    :param function: arrays of shape (b, ...) → (b, ...), of each item on its own but for random numbers
    :param arrays: each of shape (B, ...)
    :param n_numbers: that one item becomes in the function, at its largest
    :return: shape (B, ...)
    """
    size = len(arrays[0])
    n_pieces = -(-size // max(CPU_PIECE // n_numbers, 1))
    if n_pieces == 1:
        return function(*arrays)

    def side_by_side(*arrays: jax.Array) -> jax.Array:
        # written out, not a loop: each core takes a piece, and the gradient keeps what it needs without copies
        pieces = zip(*(jnp.array_split(array, n_pieces) for array in arrays), strict=True)
        return jnp.concatenate([function(*piece) for piece in pieces])

    def one_after_the_other(*arrays: jax.Array) -> jax.Array:
        def single(items: tuple[jax.Array, ...]) -> jax.Array:
            return function(*(item[None] for item in items))[0]

        made: jax.Array = jax.lax.map(single, arrays, batch_size=CPU_CHUNK)
        return made

    # an update's parts have at most twice as many images as transitions; more go through without a gradient
    cpu = side_by_side if n_pieces <= CPU_PIECES else one_after_the_other
    made: jax.Array = jax.lax.platform_dependent(*arrays, cpu=cpu, default=function)
    return made


def microbatch_size(platform: str, n_numbers: int) -> int:
    """
    The most transitions that go through the networks at a time.

    :param platform: of the device, ``"cpu"`` or another
    :param n_numbers: that an image, or the prediction of a latent map, has; 0: there are neither
    :return: number of transitions
    """
    return max(CPU_MICROBATCH // n_numbers, 1) if platform == "cpu" and n_numbers else EVERYTHING
