"""Layers and GroupSort against XLA's convolutions and plain selections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.lipschitz import layers
from tests.numerics import KEY, assert_same_function, normal


def test_group_sort_by_hand() -> None:
    np.testing.assert_array_equal(layers.group_sort(jnp.array([3.0, 1.0, -2.0, 5.0])), [-2, 1, 3, 5])
    np.testing.assert_array_equal(layers.group_sort(jnp.array([[0.0, 7.0, 2.0, 4.0]])), [[0, 4, 2, 7]])
    np.testing.assert_array_equal(layers.group_sort(jnp.array([3.0, 1.0, -2.0, 5.0]), 2), [1, 3, -2, 5])


def test_convolution_layer_equals_xlas() -> None:
    layer = layers.Convolution(6)
    images = normal(4, 3, 5, 7, 4)
    params = jax.jit(layer.init)(KEY, images)

    def plain(params: dict, images: jax.Array) -> jax.Array:
        return params["params"]["bias"] + jax.lax.conv_general_dilated(
            images, params["params"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert_same_function(layer.apply, plain, params, images)


@pytest.mark.parametrize(
    ("n_actions", "groups", "parts"), [(1, 2, (6,)), (3, 1, (3, 3)), (18, 2, (2, 2, 2)), (3, 2, (2, 4))]
)
def test_grouped_convolution_per_action_equals_all_actions_then_selection(
    n_actions: int, groups: int, parts: tuple[int, ...]
) -> None:
    layer = layers.GroupedConvolutionPerAction(n_actions, parts, groups)
    images = normal(5, 9, 3, 4, 8)
    actions = np.random.default_rng(0).integers(0, n_actions, 9)
    params = jax.jit(layer.init)(KEY, images, actions)

    def plain(params: dict, images: jax.Array) -> jax.Array:
        kernel, bias = params["params"]["kernel"], params["params"]["bias"]

        def one_action(kernel: jax.Array, bias: jax.Array) -> jax.Array:
            kernel = jnp.moveaxis(kernel, 0, 3).reshape(2, 2, 8 // groups, 6)
            return bias + jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
            )

        every_action = jax.vmap(one_action)(kernel, bias.reshape(n_actions, 6))
        return jnp.moveaxis(every_action[actions, jnp.arange(9)].reshape(9, 3, 4, groups, -1), 3, 1)

    # a group's channels out are those of its first part, then of its second
    assert [part.shape[-1] * groups for part in jax.jit(layer.apply)(params, images, actions)] == list(parts)
    assert_same_function(lambda p, x: jnp.concatenate(layer.apply(p, x, actions), axis=-1), plain, params, images)


@pytest.mark.parametrize("n_actions", [1, 18])
def test_dense_per_action_equals_all_actions_then_selection(n_actions: int) -> None:
    layer = layers.DensePerAction(n_actions, 3)
    inputs, actions = normal(4, 9, 2, 5), np.random.default_rng(0).integers(0, n_actions, 9)
    params = jax.jit(layer.init)(KEY, inputs, actions)

    def plain(params: dict, inputs: jax.Array) -> jax.Array:
        kernel, bias = params["params"]["kernel"], params["params"]["bias"]
        every_action = jnp.einsum("bci,aio->abco", inputs, kernel) + bias[:, None, None]
        return every_action[actions, jnp.arange(9)]

    assert_same_function(lambda p, x: layer.apply(p, x, actions), plain, params, inputs)


def test_actions_not_taken_cost_nothing() -> None:
    def operations(n_actions: int) -> float:
        layer = layers.GroupedConvolutionPerAction(n_actions, (8, 8), 2)
        images, actions = normal(5, 9, 5, 5, 16), jnp.zeros(9, jnp.int32)
        params = jax.jit(layer.init)(KEY, images, actions)
        return jax.jit(layer.apply).lower(params, images, actions).compile().cost_analysis()["flops"]

    assert operations(18) < 1.1 * operations(2)
