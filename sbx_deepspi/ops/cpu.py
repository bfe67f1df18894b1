"""
The forms that suit CPUs: XLA's convolutions are slow there, and slower still inside loops (jax issue 12868), while
matrix products run near the machine's peak; JAX's random bits cost more than what is done with them.
"""

import math

import jax
import jax.numpy as jnp


def matrix_convolution(images: jax.Array, kernel: jax.Array, stride: int, channels_first: bool = False) -> jax.Array:
    """
    Convolution without padding, as space-to-depth, one matrix product, and a sum of shifted rows.

    Patches of columns go into the product and sums of shifted rows come out of it, which moves fewer bytes
    than patches of both or sums of both.

    :param images: shape (B, H, W, C), or (B, C, H, W), integers or floats
    :param kernel: shape (k, k, C, O)
    :param stride: in both directions
    :param channels_first: layout of the images
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O), in the kernel's dtype
    """
    if remainder := -kernel.shape[0] % stride:
        # with zeros to a size that the stride divides; the images get pixels that these zeros see
        kernel = jnp.pad(kernel, ((0, remainder), (0, remainder), (0, 0), (0, 0)))
        sides = ((0, remainder), (0, remainder))
        images = jnp.pad(images, ((0, 0), (0, 0), *sides) if channels_first else ((0, 0), *sides, (0, 0)))
    size, _, channels, features = kernel.shape
    taps = size // stride
    height, width = images.shape[2:] if channels_first else images.shape[1:3]
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    seen = slice((rows - 1) * stride + size), slice((columns - 1) * stride + size)
    # blocks of stride x stride pixels become channels, which leaves a convolution with stride 1
    blocks = space_to_depth(images[:, :, *seen] if channels_first else images[:, *seen], stride, channels_first)
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features)
    kernel = kernel.transpose(2, 4, 1, 3, 0, 5) if channels_first else kernel.transpose(2, 1, 3, 4, 0, 5)
    kernel = kernel.reshape(-1, taps * features)

    windows = jnp.concatenate([blocks[:, :, i : i + columns] for i in range(taps)], axis=-1).astype(kernel.dtype)
    products = (windows.reshape(-1, len(kernel)) @ kernel).reshape(*windows.shape[:-1], taps, features)
    return sum(products[:, i : i + rows, :, i] for i in range(taps))  # type: ignore[return-value]


def space_to_depth(images: jax.Array, size: int, channels_first: bool) -> jax.Array:
    """
    Turn blocks of ``size`` × ``size`` pixels into one pixel with that many times the channels.

    :param images: shape (B, H, W, C), or (B, C, H, W), H and W multiples of ``size``
    :param size: of the blocks
    :param channels_first: layout of the images, and order of a block's numbers: channel, row, column if it is true,
        row, column, channel if not
    :return: shape (B, H / size, W / size, size² · C)
    """
    batch = len(images)
    if not channels_first:
        _, height, width, channels = images.shape
        blocks = images.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(batch, height // size, width // size, -1)
    _, channels, height, width = images.shape
    rows = images.reshape(batch, channels, height // size, size, width // size, size)
    if images.dtype == jnp.uint8 and size == 4:
        # a block's row is one word: a quarter of what would be moved. Without the barrier XLA picks each byte anew
        words = jax.lax.bitcast_convert_type(rows, jnp.uint32).transpose(0, 2, 4, 1, 3)
        blocks = jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(words), jnp.uint8)
    else:
        blocks = rows.transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, height // size, width // size, -1)


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
