"""Layers that are 1-Lipschitz once their kernels are divided by a bound of their operator norm, and GroupSort."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbx_deepspi.ops import patches


def group_sort(features: jax.Array, n_groups: int = 1) -> jax.Array:
    """
    GroupSort(2): sort pairs of features, a 1-Lipschitz non-linearity that keeps gradient norms. The i-th of the first
    half is paired with the i-th of the second, so that memory is read in order.

    :param features: shape (..., 2 n)
    :param n_groups: that the next layer keeps apart; each is sorted on its own
    :return: same shape, the smaller of each pair in the first half of its group
    """
    groups = features.reshape(*features.shape[:-1], n_groups, -1)
    first, second = jnp.split(groups, 2, axis=-1)
    # not min and max: their gradients compare with the result for equality, and divide by how often it holds,
    # which is never where the compiler has rounded a recomputed input another way
    swap = first > second
    ordered = jnp.concatenate([jnp.where(swap, second, first), jnp.where(swap, first, second)], axis=-1)
    return ordered.reshape(features.shape)


class Dense(nn.Module):
    """
    A dense layer.

    :param features: size of the output
    """

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """
        :param inputs: shape (..., n)
        :return: shape (..., features)
        """
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return inputs @ kernel + bias


class DenseParts(nn.Module):
    """
    A dense layer whose output comes in parts.

    :param features: sizes of the parts
    """

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, inputs: jax.Array) -> list[jax.Array]:
        """
        :param inputs: shape (..., n)
        :return: the parts, each of shape (..., features)
        """
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs.shape[-1], sum(self.features)))
        bias = self.param("bias", nn.initializers.zeros, (sum(self.features),))
        return [inputs @ kernel + bias for kernel, bias in split(kernel, bias, self.features)]


class DensePerAction(nn.Module):
    """
    One dense layer for each action; each input goes through the layer of the action taken.

    :param n_actions: number of layers; 1 for actions that do not choose a layer
    :param features: size of the output
    """

    n_actions: int
    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array, actions: jax.Array) -> jax.Array:
        """
        :param inputs: shape (B, ..., n)
        :param actions: which layer, integers of shape (B,)
        :return: shape (B, ..., features)
        """
        shape = (self.n_actions, inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.n_actions, self.features))
        if self.n_actions == 1:
            return inputs @ kernel[0] + bias[0]
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        outputs = rows @ kernel[actions] + bias[actions][:, None]
        return outputs.reshape(*inputs.shape[:-1], self.features)


class Convolution(nn.Module):
    """
    A 2 × 2 convolution with stride 1 and SAME padding.

    :param features: channels out
    """

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """
        :param inputs: shape (B, height, width, channels)
        :return: shape (B, height, width, features)
        """
        shape = (2, 2, inputs.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.reshape(-1, self.features)
        outputs = patches(inputs).reshape(-1, len(kernel)) @ kernel
        return outputs.reshape(*inputs.shape[:-1], self.features) + bias


class GroupedConvolutionPerAction(nn.Module):
    """
    One grouped 2 × 2 SAME convolution for each action; each map goes through that of the action taken.

    :param n_actions: number of convolutions; 1 for actions that do not choose one
    :param features: channels out, of each part of the output
    :param n_groups: groups of channels; divides the channels in and those of each part
    """

    n_actions: int
    features: tuple[int, ...]
    n_groups: int

    @nn.compact
    def __call__(self, inputs: jax.Array, actions: jax.Array) -> list[jax.Array]:
        """
        :param inputs: shape (B, height, width, channels)
        :param actions: which convolution, integers of shape (B,)
        :return: the parts, each of shape (B, groups, height, width, features / groups)
        """
        batch, height, width, channels = inputs.shape
        groups, group_in = self.n_groups, channels // self.n_groups
        group_out = sum(self.features) // groups
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0, 1)),
            (self.n_actions, groups, 2, 2, group_in, group_out),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.n_actions, groups, group_out))
        windows = patches(by_group(inputs, groups).reshape(-1, height, width, group_in))
        windows = windows.reshape(batch, groups, height * width, 4 * group_in)

        def part(kernel: jax.Array, bias: jax.Array) -> jax.Array:
            # the action's kernel is chosen before the product: one convolution per map, not n_actions
            outputs = windows @ kernel[actions] + bias[actions][:, :, None]
            return outputs.reshape(batch, groups, height, width, -1)

        kernel = kernel.reshape(self.n_actions, groups, 4 * group_in, group_out)
        return [part(*both) for both in split(kernel, bias, [size // groups for size in self.features])]


def split(kernel: jax.Array, bias: jax.Array, sizes: Sequence[int]) -> list[tuple[jax.Array, jax.Array]]:
    """
    A layer whose output comes in parts, as one layer for each. Kernels are split, not outputs: the gradient would
    concatenate these, which is slow on CPUs.

    :param kernel: shape (..., n, features)
    :param bias: shape (..., features)
    :param sizes: of the parts, together the features
    :return: kernel and bias of each part
    """
    ends = np.cumsum(sizes)[:-1]
    return list(zip(jnp.split(kernel, ends, axis=-1), jnp.split(bias, ends, axis=-1), strict=True))


def by_group(maps: jax.Array, n_groups: int) -> jax.Array:
    """
    Each group of a map's channels as a map of its own.

    :param maps: shape (B, height, width, channels)
    :param n_groups: divides the channels
    :return: shape (B, groups, height, width, channels / groups)
    """
    return jnp.moveaxis(maps.reshape(*maps.shape[:-1], n_groups, -1), 3, 1)
