"""VALID convolutions in two forms: XLA's own, and matrix products."""

import jax
import jax.numpy as jnp


def plain_convolution(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """
    XLA's own convolution.

    :param images: shape (B, H, W, C)
    :param kernel: shape (k, k, C, O)
    :param stride: in both directions
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O)
    """
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def matrix_convolution(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """
    The same by space-to-depth, one matrix product, and a sum of shifted rows.

    Patches of columns go into the product and sums of shifted rows come out of it, which moves fewer bytes
    than patches of both or sums of both.

    :param images: shape (B, H, W, C)
    :param kernel: its size a multiple of ``stride``: shape (k, k, C, O)
    :param stride: in both directions
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O)
    """
    size, _, channels, features = kernel.shape
    taps = size // stride
    _, height, width, _ = images.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    # blocks of stride x stride pixels become channels, which leaves a convolution with stride 1
    blocks = space_to_depth(images[:, : (rows - 1) * stride + size, : (columns - 1) * stride + size], stride)
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features).transpose(2, 1, 3, 4, 0, 5)
    kernel = kernel.reshape(-1, taps * features)

    windows = jnp.concatenate([blocks[:, :, i : i + columns] for i in range(taps)], axis=-1)
    # matrices, not arrays of more axes: else the kernel's gradient begins with a transposed copy
    products = (windows.reshape(-1, len(kernel)) @ kernel).reshape(*windows.shape[:-1], taps, features)
    return sum(products[:, i : i + rows, :, i] for i in range(taps))  # type: ignore[return-value]


def space_to_depth(images: jax.Array, size: int) -> jax.Array:
    """
    Turn blocks of ``size`` × ``size`` pixels into one pixel with that many times the channels.

    :param images: shape (B, H, W, C), H and W multiples of ``size``
    :param size: of the blocks
    :return: shape (B, H / size, W / size, size² · C)
    """
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // size, size, width // size, size, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)
