"""Kernels divided by a bound of their norm: as plain autodiff does while it is fresh, and never by too little."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.lipschitz.norms import distance_bound, kernel_norm_bound
from tests.numerics import assert_same_function, normal, unrolled

KERNELS = {"dense": (7, 5), "per action": (3, 7, 5), "convolution": (2, 2, 4, 6), "grouped": (3, 2, 2, 2, 4, 6)}


def tree(kernel: jax.Array) -> dict[str, Any]:
    return {"part": {"layer": {"kernel": kernel, "bias": jnp.arange(3.0)}}}


def kernel_of(parameters: dict[str, Any]) -> jax.Array:
    return parameters["part"]["layer"]["kernel"]


def like(numbers: jax.Array, kernel: jax.Array) -> jax.Array:
    """One number, or one per action, with axes to multiply a kernel."""
    return numbers.reshape(numbers.shape + (1,) * (kernel.ndim - numbers.ndim))


def true_norms(kernel: jax.Array, latent_map: tuple[int, int]) -> np.ndarray:
    """By the singular values of each action's whole matrix."""
    by_action = np.asarray(kernel if kernel.ndim in (3, 6) else kernel[None])
    if kernel.ndim <= 3:
        return np.linalg.norm(by_action, 2, axis=(1, 2))
    by_action = by_action.reshape(len(by_action), -1, *kernel.shape[-4:])
    return np.array([max(np.linalg.norm(unrolled(group, *latent_map), 2) for group in groups) for groups in by_action])


@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_kernels_at_their_known_norm_are_divided_by_it(shape: tuple[int, ...]) -> None:
    """Values and gradients of plain autodiff."""

    def plain(kernel: jax.Array, nothing: jax.Array) -> jax.Array:
        return kernel / like(kernel_norm_bound(kernel, 3, 4), kernel)

    def known(kernel: jax.Array, nothing: jax.Array) -> jax.Array:
        return kernel_of(normalizer.normalize(tree(kernel), (3, 4)))

    assert_same_function(known, plain, normal(6, *shape), jnp.zeros(()))


@pytest.mark.parametrize("latent_map", [(3, 4), (1, 4)], ids=str)
@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_moved_kernels_are_divided_by_no_less_than_their_norm(
    shape: tuple[int, ...], latent_map: tuple[int, int]
) -> None:
    """From an exact norm as far as they may go, and farther, in the direction that adds most to it and in others."""
    apply = jax.jit(partial(normalizer.apply, latent_map=latent_map))
    kernel = normal(6, *shape)
    _, cache = apply(normalizer.init(tree(kernel), latent_map), tree(kernel))
    (norm,) = cache.norms
    norm = norm.replace(bound=jnp.asarray(true_norms(kernel, latent_map), jnp.float32).reshape(norm.bound.shape))
    just_checked, due = (normalizer.NormCache((norm,), jnp.int32(age)) for age in (0, normalizer.RECHECK_AFTER))

    for direction in (norm.slope, -norm.slope, normal(8, *shape)):
        allowed = normalizer.LOOSENESS * norm.bound / distance_bound(kernel + direction, kernel)
        step = like(allowed, kernel) * direction
        near, far, farther = (tree(kernel + times * step) for times in (0.99, 1.01, 50))

        divided, kept = apply(due, near)
        np.testing.assert_array_equal(kept.norms[0].kernel, kernel)
        normalized = true_norms(kernel_of(divided), latent_map)
        assert (normalized <= 1 + 1e-5).all()
        assert (normalized >= 0.97).all()
        _, renewed = apply(due, far)
        np.testing.assert_array_equal(renewed.norms[0].kernel, kernel_of(far))

        divided, kept = apply(just_checked, farther)  # nobody looks how far it went, yet the bound holds
        np.testing.assert_array_equal(kept.norms[0].kernel, kernel)
        assert (true_norms(kernel_of(divided), latent_map) <= 1 + 1e-5).all()


def test_norms_are_computed_anew_when_distances_are_looked_at() -> None:
    """That is at the first call, and then at every :data:`RECHECK_AFTER`-th; what was near stays as it is."""
    apply = jax.jit(partial(normalizer.apply, latent_map=()))
    first, moved = tree(normal(1, 7, 5)), tree(2 * normal(2, 7, 5))
    divided, cache = apply(normalizer.init(first, ()), first)
    for _ in range(normalizer.RECHECK_AFTER - 1):
        divided, cache = apply(cache, moved)
        np.testing.assert_array_equal(cache.norms[0].kernel, kernel_of(first))
        assert np.linalg.norm(kernel_of(divided), 2) < 0.9  # divided by too much, which is safe
    divided, cache = apply(cache, moved)
    np.testing.assert_array_equal(cache.norms[0].kernel, kernel_of(moved))
    np.testing.assert_allclose(kernel_of(divided), kernel_of(normalizer.normalize(moved, ())), rtol=1e-6)
    nearly = jax.tree.map(lambda leaf: 1.001 * leaf, moved)
    for _ in range(normalizer.RECHECK_AFTER):
        _, cache = apply(cache, nearly)
        np.testing.assert_array_equal(cache.norms[0].kernel, kernel_of(moved))


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_norms_of_broken_kernels_are_computed_anew_and_bound_nothing_before(broken: float) -> None:
    """What is not finite is near nothing: it is replaced at the next look; until then results are NaN, or safe."""
    apply = jax.jit(partial(normalizer.apply, latent_map=()))
    finite = tree(jnp.outer(normal(1, 7), normal(2, 5)))  # of one singular value: no slack in ||M - M0||
    _, cache = apply(normalizer.init(finite, ()), tree(jnp.full((7, 5), broken)))
    for _ in range(normalizer.RECHECK_AFTER):
        divided, cache = apply(cache, finite)
        norm = np.sqrt((np.asarray(kernel_of(divided)) ** 2).sum())
        assert np.isnan(norm) or norm <= 1 + 1e-5
    np.testing.assert_allclose(kernel_of(divided), kernel_of(normalizer.normalize(finite, ())), rtol=1e-6)


def test_no_gradient_goes_through_the_cache_and_norms_are_compiled_once() -> None:
    """As training uses it: the cache is an auxiliary value, and norms are computed in one branch and nowhere else."""
    parameters = {"a": tree(normal(1, 7, 5))["part"], "b": tree(normal(2, 2, 2, 4, 6))["part"]}
    cache = normalizer.init(parameters, (3, 4))
    stale = jax.jit(partial(normalizer.apply, latent_map=(3, 4)))(cache, parameters)[1]

    def gradient(cache: normalizer.NormCache, parameters: dict[str, Any]) -> tuple[Any, normalizer.NormCache]:
        normalized, pull_back, cache = jax.vjp(
            lambda parameters: normalizer.apply(cache, parameters, (3, 4)), parameters, has_aux=True
        )
        return pull_back(normalized)[0], cache

    text = str(jax.make_jaxpr(gradient)(cache, parameters))
    alone = sum(
        str(jax.make_jaxpr(lambda kernel: normalizer.norm_of(kernel, (3, 4)))(kernel)).count("dot_general[")
        for kernel in normalizer.kernels_of(parameters)
    )
    assert text.count(" cond[") == 1
    assert text.count("dot_general[") == alone

    # d(M / b) of a fresh bound b = <slope, M>: the kernel's part along itself is projected out
    gradients, fresh = jax.jit(gradient)(cache, parameters)
    for name, norm in zip("ab", fresh.norms, strict=True):
        kernel = parameters[name]["layer"]["kernel"]
        expected = kernel / norm.bound**2 - (kernel**2).sum() / norm.bound**3 * norm.slope
        actual = gradients[name]["layer"]["kernel"]
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    # while norms are kept, the bound's slope is the one that is known
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, parameters)
    gradients, kept = jax.jit(gradient)(stale, moved)
    for name, norm in zip("ab", kept.norms, strict=True):
        kernel = moved[name]["layer"]["kernel"]
        bound = norm.bound + distance_bound(kernel, norm.kernel)
        expected = kernel / bound**2 - (kernel**2).sum() / bound**3 * norm.slope
        np.testing.assert_allclose(gradients[name]["layer"]["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_only_kernels_are_divided_and_zeros_stay_zeros() -> None:
    parameters = {
        "a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)},
        "b": {"actions": {"embedding": normal(1, 4, 2)}},
    }
    normalized = normalizer.normalize(parameters, ())
    jax.tree.map(np.testing.assert_array_equal, normalized, parameters)


def test_nothing_to_normalise() -> None:
    cache = normalizer.init({}, ())
    assert cache.norms == ()
    assert normalizer.apply(cache, {}, ()) == ({}, cache)
    assert normalizer.normalize({}, (3, 4)) == {}
    gradient = jax.grad(lambda parameters: sum(map(jnp.sum, normalizer.normalize(parameters, ())), 0.0))({})
    assert gradient == {}
