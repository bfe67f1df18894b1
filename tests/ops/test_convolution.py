"""Convolutions and windows in each platform's form against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.ops import patches
from sbx_deepspi.ops.convolution import plain_convolution
from sbx_deepspi.ops.cpu import matrix_convolution
from tests.numerics import assert_same_function, gradient_of, normal


@pytest.mark.parametrize(("height", "width"), [(7, 7), (3, 5), (1, 1), (1, 4)])
def test_windows_equal_xlas_and_so_do_their_gradients(height: int, width: int) -> None:
    def plain(inputs: jax.Array) -> jax.Array:
        windows = jax.lax.conv_general_dilated_patches(
            inputs, (2, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        # there a channel's taps lie together
        return jnp.swapaxes(windows.reshape(3, height, width, 4, -1), -1, -2).reshape(3, height, width, -1)

    inputs = normal(1, 3, height, width, 4)
    assert_same_function(patches, plain, inputs)
    assert_same_function(gradient_of(patches), gradient_of(plain), inputs)


@pytest.mark.parametrize(
    ("size", "stride", "height", "width"), [(8, 4, 84, 84), (8, 4, 37, 45), (4, 2, 9, 20), (3, 1, 3, 9)]
)
def test_matrix_convolution_equals_xlas(size: int, stride: int, height: int, width: int) -> None:
    images, kernel = normal(6, 2, height, width, 3), normal(7, size, size, 3, 5)
    assert_same_function(
        lambda k, x: matrix_convolution(x, k, stride), lambda k, x: plain_convolution(x, k, stride), kernel, images
    )
    for form in (matrix_convolution, plain_convolution):
        assert_same_function(
            lambda k, x, form=form: form(x, k, stride, channels_first=True),
            lambda k, x: plain_convolution(jnp.moveaxis(x, 1, -1), k, stride),
            kernel,
            jnp.moveaxis(images, -1, 1),
        )


@pytest.mark.parametrize(("size", "stride"), [(8, 4), (4, 2)])
@pytest.mark.parametrize("channels_first", [False, True])
def test_convolution_of_bytes(size: int, stride: int, channels_first: bool) -> None:
    """Bytes are moved four at a time where a block's row is a word: their values and order stay."""
    images = np.random.default_rng(0).integers(0, 256, (2, 37, 45, 3), np.uint8)
    given = jnp.asarray(np.moveaxis(images, -1, 1) if channels_first else images)
    assert_same_function(
        lambda k, x: matrix_convolution(given, k, stride, channels_first) + x,
        lambda k, x: plain_convolution(jnp.asarray(images, jnp.float32), k, stride) + x,
        normal(7, size, size, 3, 5),
        jnp.zeros(5),
    )
