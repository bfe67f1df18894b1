"""Layers, and what makes them Lipschitz: kernels divided by an upper bound of their operator norm.

The bound comes from Gram iteration (Delattre et al., ICML 2023): squaring the Gram matrix G = M*M n times
gives ‖M‖₂ ≤ tr(G^(2ⁿ) G)^(1/(2ⁿ⁺¹+2)), which holds at every n and tightens fast. Unlike power iteration it never
falls below the true norm, if products are as exact as float32 is: GPUs would round their factors.

A minibatch hardly moves a kernel M, so its norm need not be computed for each: ‖M‖ ≤ ‖M₀‖ + ‖M - M₀‖.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sbx_deepspi.networks.backend import patches, product

TINY = 1e-12  # keeps a kernel of zeros at zero instead of NaN


def spectral_norm_bound(matrices: jax.Array) -> jax.Array:
    """
    Upper bound of the largest singular value, at most 10 % above it (but where that is below 1e-6), differentiable.

    :param matrices: shape (..., m, n)
    :return: shape (...,)
    """
    return schatten_norm(matrices, squarings_for(min(matrices.shape[-2:])))


def squarings_for(rank: int) -> int:
    """
    How often to square a Gram matrix. A Schatten norm of order p is at most rank^(1/p) times the largest singular
    value.

    :param rank: of the matrix, at most
    :return: the least n for which rank^(1/p) ≤ 1.1, where p = 2 (2ⁿ + 1)
    """
    return max(0, math.ceil(math.log2(math.log(rank) / math.log(1.1) / 2 - 1))) if rank > 1 else 0


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def schatten_norm(matrices: jax.Array, n_squarings: int) -> jax.Array:
    """
    The Schatten norm of order p = 2 (2ⁿ + 1): with the power H = G^(2ⁿ) of the Gram matrix G = M*M, it is
    tr(H G)^(1/p), and its gradient has the direction of M H. One power gives both, where differentiating through the
    squarings would take two products more for each.

    :param matrices: shape (..., m, n)
    :param n_squarings: n, of the Gram matrix
    :return: shape (...,)
    """
    return _real_gram_iteration(matrices, n_squarings)[0]


@jax.default_matmul_precision("float32")
def _real_gram_iteration(matrices: jax.Array, n_squarings: int) -> tuple[jax.Array, jax.Array]:
    """The norm, and the power of the smaller Gram matrix, scaled."""
    gram = matrices @ _adjoint(matrices) if _is_wide(matrices) else _adjoint(matrices) @ matrices
    norm, (power,) = _gram_iteration((gram,), n_squarings, lambda matrix: (matrix @ matrix,))
    return norm, power


def _gram_iteration(
    gram: tuple[jax.Array, ...], n_squarings: int, square: Callable[..., tuple[jax.Array, ...]]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """
    The Schatten norm from a Gram matrix, given whole or as its real and imaginary parts, and its power, scaled.
    ``square`` takes and returns the parts; products must be as exact as float32 is.
    """
    scale = _frobenius(*gram)
    power = gram = tuple(part / scale[..., None, None] for part in gram)
    log_power_scale = jnp.zeros_like(scale)
    for i in range(n_squarings):
        # keeps float32 in range, for two squarings
        if i > 0 and i % 2 == 0:
            power_scale = _frobenius(*power)
            power = tuple(part / power_scale[..., None, None] for part in power)
            log_power_scale += jnp.log(power_scale)
        power = square(*power)
        log_power_scale *= 2
    log_trace = log_power_scale + jnp.log(_inner(power, gram) + TINY)
    return jnp.sqrt(scale) * jnp.exp(log_trace / (2 * (2**n_squarings + 1))), power


def _forward(matrices: jax.Array, n_squarings: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    norm, power = _real_gram_iteration(matrices, n_squarings)
    return norm, (matrices, norm, power)


@jax.default_matmul_precision("float32")
def _backward(
    n_squarings: int, saved: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
    matrices, norm, power = saved
    direction = power @ matrices if _is_wide(matrices) else matrices @ power
    # the norm is homogeneous: its gradient's product with the matrix is the norm itself, which gives the scale
    along = (direction * matrices).sum(axis=(-1, -2))
    slope = jnp.where(along > 0, norm / along, 0.0)  # nowhere for a matrix of zeros
    return (direction * (cotangent * slope)[..., None, None],)


schatten_norm.defvjp(_forward, _backward)


def _adjoint(matrices: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrices, -1, -2)


def _is_wide(matrices: jax.Array) -> bool:
    return matrices.shape[-2] < matrices.shape[-1]


def _inner(first: tuple[jax.Array, ...], second: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([(one * other).sum(axis=(-1, -2)) for one, other in zip(first, second, strict=True)]).sum(axis=0)


def _frobenius(*parts: jax.Array) -> jax.Array:
    return jnp.sqrt(_inner(parts, parts) + TINY**2)


def convolution_norm_bound(kernel: jax.Array, height: int, width: int) -> jax.Array:
    """
    Upper bound of the operator norm of a zero-padded, stride-1 convolution on a ``height`` × ``width`` map.

    Such a convolution is a circular one on a map large enough that nothing wraps around, applied between
    an embedding and a crop, both of norm 1. Its norm is thus at most the largest over the discrete
    frequencies of the norm of the kernel's Fourier transform (Sedghi et al., ICLR 2019).

    :param kernel: shape (..., kernel height, kernel width, channels in, channels out)
    :param height: rows of the map
    :param width: columns of the map
    :return: shape (...,)
    """
    *_, kernel_height, kernel_width, _, _ = kernel.shape
    rows, columns = height + kernel_height - 1, width + kernel_width - 1
    # real kernels have conjugate-symmetric transforms: half the columns' frequencies give every norm
    frequencies = np.stack(np.meshgrid(np.arange(rows) / rows, np.arange(columns // 2 + 1) / columns), -1)
    frequencies = frequencies.reshape(-1, 2)
    # its real form has each singular value twice
    n_squarings = squarings_for(2 * min(kernel.shape[-2:]))
    bounds = _transform_norm_bounds(jax.lax.stop_gradient(kernel), frequencies, n_squarings)
    # only the largest has a gradient: go back through it alone
    largest = jnp.asarray(frequencies, jnp.float32)[bounds.argmax(axis=-1)]
    return schatten_norm(_transform(kernel, largest), n_squarings)


@jax.default_matmul_precision("float32")
def _transform_norm_bounds(kernel: jax.Array, frequencies: np.ndarray, n_squarings: int) -> jax.Array:
    """
    Bounds of the norms of a kernel's Fourier transform F at many frequencies, none above that of :func:`_transform`.

    The Gram matrix F*F is the transform of the kernel's products with itself, which are few: A + iB, A symmetric, B
    antisymmetric. Its square takes three real products.

    :param kernel: shape (..., kernel height, kernel width, channels in, channels out)
    :param frequencies: in cycles per cell, shape (F, 2)
    :param n_squarings: of the Gram matrices, as for that
    :return: shape (..., F)
    """
    taps = _taps(kernel)
    flat = kernel.reshape(*kernel.shape[:-4], len(taps), *kernel.shape[-2:])
    smaller = "...tik,...sjk->...tsij" if kernel.shape[-2] <= kernel.shape[-1] else "...tki,...skj->...tsij"
    products = jnp.einsum(smaller, flat, flat)
    products = products.reshape(*products.shape[:-4], len(taps) ** 2, *products.shape[-2:])
    lags = (taps[:, None] - taps[None]).reshape(-1, 2)
    angles = 2 * np.pi * (frequencies @ lags.T)
    real, imaginary = (
        jnp.einsum("ft,...tij->...fij", wave(angles).astype(np.float32), products) for wave in (np.cos, np.sin)
    )

    def square(real: jax.Array, imaginary: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = real @ imaginary
        return real @ real - imaginary @ imaginary, mixed - _adjoint(mixed)

    return _gram_iteration((real, imaginary), n_squarings, square)[0]


def _taps(kernel: jax.Array) -> np.ndarray:
    """Row and column of each tap of a kernel of shape (..., rows, columns, in, out): shape (taps, 2)."""
    return np.stack(np.meshgrid(*map(np.arange, kernel.shape[-4:-2]), indexing="ij"), -1).reshape(-1, 2)


@jax.default_matmul_precision("float32")
def _transform(kernel: jax.Array, frequency: jax.Array) -> jax.Array:
    """
    The Fourier transform of kernels at one frequency each, as real matrices.

    :param kernel: shape (..., kernel height, kernel width, channels in, channels out)
    :param frequency: in cycles per cell, shape (..., 2)
    :return: [[Re, -Im], [Im, Re]], of the same norm as Re + i Im: shape (..., 2 in, 2 out)
    """
    taps = _taps(kernel)
    angles = 2 * np.pi * (frequency @ taps.T.astype(np.float32))
    flat = kernel.reshape(*kernel.shape[:-4], len(taps), *kernel.shape[-2:])
    real, imaginary = (jnp.einsum("...t,...tio->...io", wave(angles), flat) for wave in (jnp.cos, jnp.sin))
    upper, lower = jnp.concatenate([real, imaginary], -1), jnp.concatenate([-imaginary, real], -1)
    return jnp.concatenate([upper, lower], -2)


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


def kernel_norm_bound(kernel: jax.Array, height: int = 1, width: int = 1) -> jax.Array:
    """
    Upper bound of the operator norm of one of this module's layers.

    :param kernel: of any layer below
    :param height: rows of the maps that convolutions see
    :param width: their columns
    :return: scalar, or one number per action where the kernel has a slice for each: shape (n_actions,)
    """
    if kernel.ndim <= 3:
        return spectral_norm_bound(kernel)
    # zeros are padded below and to the right: on a map smaller than the kernel the last taps see nothing else
    norm = convolution_norm_bound(kernel[..., :height, :width, :, :], height, width)
    # groups share no channel: the largest of their norms is the norm of the whole
    return norm.max(axis=1) if kernel.ndim == 6 else norm


class KernelNorm(struct.PyTreeNode):
    """
    What is known of a kernel's operator norm; one number, or one per action.

    :param kernel: M₀, when its norm was computed
    :param bound: of the norm, shape () or (n_actions,)
    :param slope: the bound's gradient, shape of the kernel
    """

    kernel: jax.Array
    bound: jax.Array
    slope: jax.Array


LOOSENESS = 0.01
"""From what distance on, as a part of its norm, a kernel's norm should be computed anew."""


def kernel_norms(params: Mapping[str, Any], height: int = 1, width: int = 1) -> list[KernelNorm]:
    """
    :param params: parameters of modules built from these layers
    :param height: rows of the maps that convolutions see
    :param width: their columns
    :return: the norms of all kernels, in the tree's order
    """

    def norm_of(kernel: jax.Array) -> KernelNorm:
        bound, pull_back = jax.vjp(lambda kernel: kernel_norm_bound(kernel, height, width), kernel)
        (slope,) = pull_back(jnp.ones_like(bound))
        return KernelNorm(kernel, bound, slope)

    return [norm_of(kernel) for kernel in kernels_of(params)]


def kernels_of(params: Mapping[str, Any]) -> list[jax.Array]:
    """
    :param params: parameters of modules built from these layers
    :return: all kernels, in the tree's order
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return [leaf for path, leaf in leaves if path[-1].key == "kernel"]


def distance_bound(norm: KernelNorm, kernel: jax.Array) -> jax.Array:
    """
    Upper bound of the operator norm of the layer whose kernel is the difference. A convolution is a sum of one product
    per tap, whose norms' sum is at most the square root of their number times the kernel's Frobenius norm.

    :param norm: of what the kernel was
    :param kernel: now
    :return: shape () or (n_actions,)
    """
    difference = kernel - norm.kernel
    if kernel.ndim <= 3:
        return _frobenius(difference)
    *_, height, width, _, _ = kernel.shape
    distance = jnp.sqrt(height * width * (difference**2).sum(axis=(-1, -2, -3, -4)))
    return distance.max(axis=1) if kernel.ndim == 6 else distance


@jax.custom_vjp
def bound_from(norm: KernelNorm, kernel: jax.Array) -> jax.Array:
    """
    Upper bound of a kernel's norm near one whose norm is known: ‖M‖ ≤ ‖M₀‖ + ‖M - M₀‖. Its gradient by the kernel is
    the norm's at M₀.

    :param norm: of what the kernel was; no gradient goes on to it
    :param kernel: now
    :return: shape () or (n_actions,)
    """
    return norm.bound + distance_bound(norm, kernel)


def _bound_forward(norm: KernelNorm, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bound_from(norm, kernel), norm.slope


def _bound_backward(slope: jax.Array, cotangent: jax.Array) -> tuple[None, jax.Array]:
    return None, slope * cotangent.reshape(cotangent.shape + (1,) * (slope.ndim - cotangent.ndim))


bound_from.defvjp(_bound_forward, _bound_backward)


def are_stale(norms: list[KernelNorm], params: Mapping[str, Any]) -> jax.Array:
    """
    :param norms: of what the kernels were
    :param params: parameters of modules built from these layers
    :return: whether any kernel is farther from there than :data:`LOOSENESS`
    """
    pairs = zip(norms, kernels_of(params), strict=True)
    return jnp.array([jnp.any(distance_bound(norm, k) > LOOSENESS * norm.bound) for norm, k in pairs]).any()


def normalize_kernels(params: Mapping[str, Any], norms: list[KernelNorm]) -> dict[str, Any]:
    """
    Divide every kernel of this module's layers by a bound of its operator norm: each layer becomes 1-Lipschitz.

    Done once per minibatch on the parameters, rather than by each layer whenever it is applied.

    :param params: parameters of modules built from these layers; all but kernels stay as they are
    :param norms: of these kernels, or of what they were; see :func:`kernel_norms`
    :return: a tree of the same structure
    """
    known = iter(norms)

    def normalize(path: tuple[Any, ...], kernel: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return kernel
        bound = bound_from(next(known), kernel)
        return kernel / (bound.reshape(bound.shape + (1,) * (kernel.ndim - bound.ndim)) + TINY)

    return jax.tree_util.tree_map_with_path(normalize, dict(params))


def limit_kernels(params: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """
    Scale down every dense kernel whose operator norm may pass a limit; leave the others as they are.

    :param params: parameters of dense layers
    :param limit: for the norm of each
    :return: a tree of the same structure
    """

    def scale_down(path: tuple[Any, ...], kernel: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return kernel
        return kernel / jnp.maximum(1.0, spectral_norm_bound(kernel) / limit)

    return jax.tree_util.tree_map_with_path(scale_down, dict(params))


def lipschitz_bound(params: Mapping[str, Any]) -> jax.Array:
    """
    Upper bound of the Lipschitz constant of dense layers one after the other, with activations that have none
    above 1: the product of their norms.

    :param params: parameters of dense layers
    :return: scalar
    """
    return jnp.prod(jnp.array([spectral_norm_bound(kernel) for kernel in kernels_of(params)]))


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
        outputs = product(rows, kernel[actions]) + bias[actions][:, None]
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
        outputs = product(patches(inputs).reshape(-1, len(kernel)), kernel)
        return outputs.reshape(*inputs.shape[:-1], self.features) + bias


class GroupedConvolutionPerAction(nn.Module):
    """
    One grouped 2 × 2 SAME convolution for each action; each map goes through that of the action taken.

    :param n_actions: number of convolutions; 1 for actions that do not choose one
    :param features: channels out, of each part
    :param n_groups: groups of channels; divides the channels in and out
    :param n_parts: parts of the output
    """

    n_actions: int
    features: int
    n_groups: int
    n_parts: int = 1

    @nn.compact
    def __call__(self, inputs: jax.Array, actions: jax.Array) -> list[jax.Array]:
        """
        :param inputs: shape (B, height, width, channels)
        :param actions: which convolution, integers of shape (B,)
        :return: the parts, each of shape (B, groups, height, width, features / groups)
        """
        batch, height, width, channels = inputs.shape
        groups, group_in = self.n_groups, channels // self.n_groups
        group_out = self.n_parts * self.features // groups
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
            outputs = product(windows, kernel[actions]) + bias[actions][:, :, None]
            return outputs.reshape(batch, groups, height, width, -1)

        # kernels are split, not outputs: the gradient would concatenate these, which is slow on CPUs
        kernels = jnp.split(kernel.reshape(self.n_actions, groups, 4 * group_in, group_out), self.n_parts, axis=-1)
        return [part(*both) for both in zip(kernels, jnp.split(bias, self.n_parts, axis=-1), strict=True)]


def by_group(maps: jax.Array, n_groups: int) -> jax.Array:
    """
    Each group of a map's channels as a map of its own.

    :param maps: shape (B, height, width, channels)
    :param n_groups: divides the channels
    :return: shape (B, groups, height, width, channels / groups)
    """
    return jnp.moveaxis(maps.reshape(*maps.shape[:-1], n_groups, -1), 3, 1)
