"""Images in parts that stay in the cache: the same as all at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.ops import convolution, in_parts, microbatch_size, parts
from sbx_deepspi.ops.convolution import plain_convolution
from tests.numerics import assert_same_function, normal


@pytest.mark.parametrize("n_images", [20, 21, 40, 64, 65, 130])
def test_images_in_parts_are_encoded_as_one_by_one(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CPU_PIECES", 3)
    monkeypatch.setattr(parts, "CPU_CHUNK", 30)
    kernel, images, shifts = normal(1, 4, 4, 2, 5), normal(2, n_images, 12, 8, 2), normal(3, n_images, 5, 3, 5)
    assert_same_function(
        lambda k, x: in_parts(lambda part, shift: convolution(part, k, 2) + shift, x, shifts, n_numbers=30_000),
        lambda k, x: plain_convolution(x, k, 2) + shifts,
        kernel,
        images,
    )


@pytest.mark.parametrize("n_images", [21, 65])  # side by side, and one after the other
def test_bytes_in_parts_are_encoded_as_one_by_one(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "CPU_PIECES", 3)
    images = np.random.default_rng(0).integers(0, 256, (n_images, 3, 21, 25), np.uint8)
    assert_same_function(
        lambda k, x: in_parts(lambda part: convolution(part, k, 4, True), jnp.asarray(images), n_numbers=30_000) + x,
        lambda k, x: plain_convolution(jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32), k, 4) + x,
        normal(1, 8, 8, 3, 5),
        jnp.zeros(5),
    )


def test_only_images_on_cpus_go_through_in_microbatches() -> None:
    assert microbatch_size("cpu", 84 * 84 * 4) in range(128, 256)
    assert microbatch_size("cpu", 10 * 10 * 4) > 8192
    assert microbatch_size("cpu", 0) == microbatch_size("gpu", 84 * 84 * 4) == parts.EVERYTHING
