"""VALID convolutions, and the windows of SAME ones, in two forms: as XLA has them, and as suits CPUs."""

import jax
import jax.numpy as jnp

from sbx_deepspi.networks.products import dense_product


def plain_convolution(images: jax.Array, kernel: jax.Array, stride: int, channels_first: bool = False) -> jax.Array:
    """
    XLA's own convolution.

    :param images: shape (B, H, W, C), or (B, C, H, W), integers or floats
    :param kernel: shape (k, k, C, O)
    :param stride: in both directions
    :param channels_first: layout of the images
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O), in the kernel's dtype
    """
    layout = "NCHW" if channels_first else "NHWC"
    return jax.lax.conv_general_dilated(
        images.astype(kernel.dtype), kernel, (stride, stride), "VALID", dimension_numbers=(layout, "HWIO", "NHWC")
    )


def matrix_convolution(images: jax.Array, kernel: jax.Array, stride: int, channels_first: bool = False) -> jax.Array:
    """
    The same by space-to-depth, one matrix product, and a sum of shifted rows.

    Patches of columns go into the product and sums of shifted rows come out of it, which moves fewer bytes
    than patches of both or sums of both.

    :param images: shape (B, H, W, C), or (B, C, H, W), integers or floats
    :param kernel: its size a multiple of ``stride``: shape (k, k, C, O)
    :param stride: in both directions
    :param channels_first: layout of the images
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O), in the kernel's dtype
    """
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
    products = dense_product(windows.reshape(-1, len(kernel)), kernel).reshape(*windows.shape[:-1], taps, features)
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


def plain_patches(inputs: jax.Array) -> jax.Array:
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


@jax.custom_vjp
def once_padded_patches(inputs: jax.Array) -> jax.Array:
    """
    The same; its gradient is padded once and read four times, where autodiff would pad each tap's and add them.

    :param inputs: shape (B, H, W, C)
    :return: shape (B, H, W, 4 · C), taps in row-major order, channels last
    """
    return plain_patches(inputs)


def _patches_forward(inputs: jax.Array) -> tuple[jax.Array, None]:
    return plain_patches(inputs), None


def _patches_backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    # a barrier, or XLA pads each slice again
    padded = jax.lax.optimization_barrier(jnp.pad(gradient, ((0, 0), (1, 0), (1, 0), (0, 0))))
    upper, lower = padded[:, 1:], padded[:, :-1]
    taps = upper[:, :, 1:], upper[:, :, :-1], lower[:, :, 1:], lower[:, :, :-1]
    of_taps = [jnp.split(tap, 4, axis=-1)[i] for i, tap in enumerate(taps)]
    return (sum(of_taps[1:], of_taps[0]),)


once_padded_patches.defvjp(_patches_forward, _patches_backward)
