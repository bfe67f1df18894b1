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
    refresh = jax.jit(partial(normalizer.refresh, latent_map=latent_map))
    kernel = normal(6, *shape)
    (norm,) = refresh(normalizer.init(tree(kernel), latent_map), tree(kernel))
    norm = norm.replace(bound=jnp.asarray(true_norms(kernel, latent_map), jnp.float32).reshape(norm.bound.shape))

    for direction in (norm.slope, -norm.slope, normal(8, *shape)):
        allowed = normalizer.LOOSENESS * norm.bound / distance_bound(kernel + direction, kernel)
        step = like(allowed, kernel) * direction
        near, far, farther = (tree(kernel + times * step) for times in (0.99, 1.01, 50))

        (kept,), (renewed,) = refresh((norm,), near), refresh((norm,), far)
        np.testing.assert_array_equal(kept.kernel, kernel)
        np.testing.assert_array_equal(renewed.kernel, kernel_of(far))
        normalized = true_norms(kernel_of(normalizer.apply((norm,), near)), latent_map)
        assert (normalized <= 1 + 1e-5).all()
        assert (normalized >= 0.97).all()
        # however far it went, the bound holds
        assert (true_norms(kernel_of(normalizer.apply((norm,), farther)), latent_map) <= 1 + 1e-5).all()


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_norms_of_broken_kernels_are_computed_anew_and_bound_nothing_before(broken: float) -> None:
    """What is not finite is near nothing; until it is replaced results are NaN, or safe."""
    refresh = jax.jit(partial(normalizer.refresh, latent_map=()))
    finite = tree(jnp.outer(normal(1, 7), normal(2, 5)))  # of one singular value: no slack in ||M - M0||
    cache = refresh(normalizer.init(finite, ()), tree(jnp.full((7, 5), broken)))
    norm = np.sqrt((np.asarray(kernel_of(normalizer.apply(cache, finite))) ** 2).sum())
    assert np.isnan(norm) or norm <= 1 + 1e-5
    divided = kernel_of(normalizer.apply(refresh(cache, finite), finite))
    np.testing.assert_allclose(divided, kernel_of(normalizer.normalize(finite, ())), rtol=1e-6)


def test_no_gradient_goes_through_the_cache_and_norms_are_compiled_once() -> None:
    """As training uses it: norms are computed in one branch of a refresh, and nowhere else."""
    parameters = {"a": tree(normal(1, 7, 5))["part"], "b": tree(normal(2, 2, 2, 4, 6))["part"]}
    refresh = partial(normalizer.refresh, latent_map=(3, 4))
    unknown = normalizer.init(parameters, (3, 4))

    @jax.jit
    def gradient(cache: normalizer.NormCache, parameters: dict[str, Any]) -> Any:
        normalized, pull_back = jax.vjp(partial(normalizer.apply, cache), parameters)
        return pull_back(normalized)[0]

    text = str(jax.make_jaxpr(refresh)(unknown, parameters))
    alone = sum(
        str(jax.make_jaxpr(lambda kernel: normalizer.norm_of(kernel, (3, 4)))(kernel)).count("dot_general[")
        for kernel in normalizer.kernels_of(parameters)
    )
    assert text.count(" cond[") == 1
    assert text.count("dot_general[") == alone
    assert "dot_general[" not in str(jax.make_jaxpr(gradient)(unknown, parameters))

    # d(M / b) of b = b0 + ||M - M0||, of which only b0 has a slope; near M0, and at it, where <slope, M> is b0
    cache = jax.jit(refresh)(unknown, parameters)
    for times in (1.0, 1.5):
        moved = jax.tree.map(lambda leaf: times * leaf, parameters)  # noqa: B023
        gradients = gradient(cache, moved)
        for name, norm in zip("ab", cache, strict=True):
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
    assert cache == normalizer.refresh(cache, {}, ()) == ()
    assert normalizer.apply(cache, {}) == {}
    assert normalizer.normalize({}, (3, 4)) == {}
    gradient = jax.grad(lambda parameters: sum(map(jnp.sum, normalizer.normalize(parameters, ())), 0.0))({})
    assert gradient == {}
