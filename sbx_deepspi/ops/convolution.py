"""VALID convolutions, in the form that suits the platform."""

import jax

from sbx_deepspi.ops.cpu import matrix_convolution


def convolution(images: jax.Array, kernel: jax.Array, stride: int, channels_first: bool = False) -> jax.Array:
    """
    Convolution without padding.

    :param images: shape (B, H, W, C), or (B, C, H, W), integers or floats
    :param kernel: square, shape (k, k, C, O)
    :param stride: in both directions
    :param channels_first: layout of the images
    :return: shape (B, (H - k) // stride + 1, (W - k) // stride + 1, O), in the kernel's dtype
    """
    made: jax.Array = jax.lax.platform_dependent(
        images,
        kernel,
        cpu=lambda images, kernel: matrix_convolution(images, kernel, stride, channels_first),
        default=lambda images, kernel: plain_convolution(images, kernel, stride, channels_first),
    )
    return made


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
