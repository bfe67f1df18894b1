"""
Kernels divided by a bound of their operator norm, which makes their layers 1-Lipschitz.

A step hardly moves a kernel M, so its norm is not computed anew for each: ‖M‖ ≤ ‖M₀‖ + ‖M - M₀‖. What is known of each
M₀ is a value, a :data:`NormCache`: :func:`init` makes it, :func:`refresh` brings it up to date, :func:`apply` uses it.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.lipschitz.norms import TINY, distance_bound, kernel_norm_bound, kernels_of

LOOSENESS = 0.01
"""From what distance on, as a part of its norm, a kernel's norm is computed anew."""

Parameters = Mapping[str, Any]


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


NormCache = tuple[KernelNorm, ...]
"""What is known of the norms of all kernels in a tree of parameters, in the tree's order."""


def init(parameters: Parameters, latent_map: tuple[int, ...]) -> NormCache:
    """
    :param parameters: by part; all of them are Lipschitz
    :param latent_map: rows and columns of the maps that convolutions see
    :return: a cache that knows nothing yet: :func:`refresh` comes first
    """

    def unknown(kernel: jax.Array) -> KernelNorm:
        shape = jax.eval_shape(lambda kernel: kernel_norm_bound(kernel, *latent_map), kernel).shape
        # no distance is within a part of a negative bound
        return KernelNorm(jnp.zeros_like(kernel), jnp.full(shape, -1.0), jnp.zeros_like(kernel))

    return tuple(map(unknown, kernels_of(parameters)))


def refresh(cache: NormCache, parameters: Parameters, latent_map: tuple[int, ...]) -> NormCache:
    """
    :param cache: what is known of the kernels' norms
    :param parameters: by part; all of them are Lipschitz
    :param latent_map: rows and columns of the maps that convolutions see
    :return: the same, or, where any kernel has moved too far, the norms of all kernels as they are now
    """
    kernels = kernels_of(parameters)
    if not kernels:
        return cache

    def is_far(norm: KernelNorm, kernel: jax.Array) -> jax.Array:
        # not near, rather than far: what is NaN is computed anew, too
        return ~jnp.all(distance_bound(kernel, norm.kernel) <= LOOSENESS * norm.bound)

    moved = jnp.array([is_far(norm, kernel) for norm, kernel in zip(cache, kernels, strict=True)]).any()
    refreshed: NormCache = jax.lax.cond(
        moved, lambda: tuple(norm_of(kernel, latent_map) for kernel in kernels), lambda: cache
    )
    return refreshed


def apply(cache: NormCache, parameters: Parameters) -> dict[str, Any]:
    """
    :param cache: what is known of the kernels' norms; no gradient goes on to it
    :param parameters: by part; all of them are Lipschitz
    :return: the parameters, with each kernel divided by a bound of its norm
    """
    known = iter(cache)

    def divide(path: tuple[Any, ...], kernel: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return kernel
        bound = bound_near(next(known), kernel)
        return kernel / (bound.reshape(bound.shape + (1,) * (kernel.ndim - bound.ndim)) + TINY)

    divided: dict[str, Any] = jax.tree_util.tree_map_with_path(divide, dict(parameters))
    return divided


def normalize(parameters: Parameters, latent_map: tuple[int, ...]) -> dict[str, Any]:
    """
    :param parameters: by part; all of them are Lipschitz
    :param latent_map: rows and columns of the maps that convolutions see
    :return: the parameters, with each kernel divided by a bound of its norm that is computed anew
    """
    kernels = jax.lax.stop_gradient(kernels_of(parameters))
    return apply(tuple(norm_of(kernel, latent_map) for kernel in kernels), parameters)


def norm_of(kernel: jax.Array, latent_map: tuple[int, ...]) -> KernelNorm:
    """
    :param kernel: of a layer
    :param latent_map: rows and columns of the maps that convolutions see
    :return: its norm and the norm's gradient
    """
    bound, pull_back = jax.vjp(lambda kernel: kernel_norm_bound(kernel, *latent_map), kernel)
    (slope,) = pull_back(jnp.ones_like(bound))
    return KernelNorm(kernel, bound, slope)


@jax.custom_vjp
def bound_near(norm: KernelNorm, kernel: jax.Array) -> jax.Array:
    """
    Upper bound of a kernel's norm near one whose norm is known: ‖M‖ ≤ ‖M₀‖ + ‖M - M₀‖. Its gradient by the kernel is
    the norm's at M₀.

    :param norm: of M₀; no gradient goes on to it
    :param kernel: M
    :return: shape () or (n_actions,)
    """
    return norm.bound + distance_bound(kernel, norm.kernel)


def _bound_forward(norm: KernelNorm, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    return bound_near(norm, kernel), norm.slope


def _bound_backward(slope: jax.Array, cotangent: jax.Array) -> tuple[None, jax.Array]:
    return None, slope * cotangent.reshape(cotangent.shape + (1,) * (slope.ndim - cotangent.ndim))


bound_near.defvjp(_bound_forward, _bound_backward)
