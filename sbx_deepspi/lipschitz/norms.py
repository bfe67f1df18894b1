"""
Upper bounds of operator norms.

They come from Gram iteration (Delattre et al., ICML 2023): squaring the Gram matrix G = M*M n times gives
‖M‖₂ ≤ tr(G^(2ⁿ) G)^(1/(2ⁿ⁺¹+2)), which holds at every n and tightens fast. Unlike power iteration it never falls
below the true norm, if products are as exact as float32 is: GPUs would round their factors.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-12  # keeps a kernel of zeros at zero instead of NaN
P = ParamSpec("P")
T = TypeVar("T")


def as_exact_as_float32(function: Callable[P, T]) -> Callable[P, T]:
    """
    :param function: of arrays
    :return: the same, with products of matrices that round no factor
    """
    exact: Callable[P, T] = jax.default_matmul_precision("float32")(function)
    return exact


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
    norm, _ = _real_gram_iteration(matrices, n_squarings)
    return norm


@as_exact_as_float32
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
    gram = tuple(part / scale[..., None, None] for part in gram)

    def square_once(
        _: jax.Array, state: tuple[tuple[jax.Array, ...], jax.Array]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        power, log_scale = state
        power = square(*power)
        power_scale = _frobenius(*power)  # keeps float32 in range
        return tuple(part / power_scale[..., None, None] for part in power), 2 * log_scale + jnp.log(power_scale)

    # a loop, since it is compiled for each kernel: written out, it would take several times as long
    power, log_power_scale = jax.lax.fori_loop(0, n_squarings, square_once, (gram, jnp.zeros_like(scale)))
    log_trace = log_power_scale + jnp.log(_inner(power, gram) + TINY)
    return jnp.sqrt(scale) * jnp.exp(log_trace / (2 * (2**n_squarings + 1))), power


def _forward(matrices: jax.Array, n_squarings: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    norm, power = _real_gram_iteration(matrices, n_squarings)
    return norm, (matrices, norm, power)


@as_exact_as_float32
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


@as_exact_as_float32
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


@as_exact_as_float32
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


def kernel_norm_bound(kernel: jax.Array, height: int = 1, width: int = 1) -> jax.Array:
    """
    Upper bound of the operator norm of a layer of :mod:`sbx_deepspi.lipschitz.layers`.

    :param kernel: of a dense layer, shape (in, out), or (n_actions, in, out); of a convolution, shape (kernel height,
        kernel width, in, out), or (n_actions, groups, kernel height, kernel width, in, out)
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


def kernels_of(params: Mapping[str, Any]) -> list[jax.Array]:
    """
    :param params: parameters of layers, nested as deep as wanted
    :return: all kernels, in the tree's order
    """
    leaves = jax.tree_util.tree_leaves_with_path(dict(params))
    return [leaf for path, leaf in leaves if path[-1].key == "kernel"]


def distance_bound(kernel: jax.Array, earlier: jax.Array) -> jax.Array:
    """
    Upper bound of ‖M - M₀‖₂, fast: a convolution is a sum of one product per tap, and the sum of their norms is at most
    the square root of their number times the kernel's Frobenius norm.

    :param kernel: M
    :param earlier: M₀, same shape
    :return: shape () or (n_actions,)
    """
    difference = kernel - earlier
    if kernel.ndim <= 3:
        return _frobenius(difference)
    *_, height, width, _, _ = kernel.shape
    distance = jnp.sqrt(height * width * (difference**2).sum(axis=(-1, -2, -3, -4)))
    return distance.max(axis=1) if kernel.ndim == 6 else distance


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

    limited: dict[str, Any] = jax.tree_util.tree_map_with_path(scale_down, dict(params))
    return limited


def lipschitz_bound(params: Mapping[str, Any]) -> jax.Array:
    """
    Upper bound of the Lipschitz constant of dense layers one after the other, with activations that have none
    above 1: the product of their norms.

    :param params: parameters of dense layers
    :return: scalar
    """
    return jnp.prod(jnp.array([spectral_norm_bound(kernel) for kernel in kernels_of(params)]))
