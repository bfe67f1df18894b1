"""Bounds of operator norms against NumPy's singular values, and their gradients against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbx_deepspi.lipschitz import norms
from tests.numerics import normal, unrolled

# compiled as a whole, here and below: JAX compiles an operation on its own nearly as long
kernel_norm_bound = jax.jit(norms.kernel_norm_bound, static_argnums=(1, 2))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 40), (2, 3, 6, 4)])
def test_spectral_norm_bound_is_above_the_norm_and_close(shape: tuple[int, ...]) -> None:
    matrices = normal(1, *shape)
    true = np.linalg.norm(matrices, 2, axis=(-2, -1))
    bound = np.asarray(jax.jit(norms.spectral_norm_bound)(matrices))
    assert (bound >= true * (1 - 1e-5)).all()
    assert (bound <= 1.1 * true).all()


@pytest.mark.parametrize("channels", [(4, 6), (6, 4)])
@pytest.mark.parametrize(("height", "width"), [(7, 7), (3, 5), (1, 1), (1, 4)])
def test_convolution_norm_bound_is_above_the_norm_and_close(height: int, width: int, channels: tuple[int, int]) -> None:
    kernel = normal(2, 2, 2, *channels)
    true = np.linalg.norm(unrolled(kernel, height, width), 2)
    bound = float(kernel_norm_bound(kernel, height, width))
    assert true * (1 - 1e-5) <= bound <= 1.2 * true


def test_norm_bound_gradient_is_that_of_the_norm() -> None:
    matrix = normal(3, 6, 4)
    u, _, vt = np.linalg.svd(matrix)
    gradient = jax.jit(jax.grad(lambda m: norms.schatten_norm(m, 8)))(matrix)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-3)
    assert np.isfinite(jax.jit(jax.grad(norms.spectral_norm_bound))(jnp.zeros((3, 3)))).all()


@pytest.mark.parametrize("n", [1, 2, 5, 64, 256])
def test_norm_bound_of_orthogonal_matrices_is_within_a_tenth(n: int) -> None:
    """All singular values alike is what it bounds worst; tiny and huge ones must not leave float32's range."""
    orthogonal = np.linalg.qr(normal(7, n, n))[0]
    bound_and_gradient = jax.jit(jax.value_and_grad(norms.spectral_norm_bound))
    for scale in (1e-3, 1.0, 1e6):
        matrix = (scale * orthogonal).astype(np.float32)
        bound, gradient = bound_and_gradient(matrix)
        assert 1 - 1e-5 <= float(bound) / scale <= 1.1 + 1e-5
        # by symmetry along the matrix itself, with a product that is the bound, since it is homogeneous
        np.testing.assert_allclose(n * gradient, orthogonal * (bound / scale), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 5, 5), (7, 1), (2, 30, 30)])
def test_norm_bound_gradient_equals_autodiff_through_the_iteration(shape: tuple[int, ...]) -> None:
    matrices = normal(4, *shape)
    ours = jax.jit(jax.grad(lambda m: norms.spectral_norm_bound(m).sum()))(matrices)
    n = norms.squarings_for(min(shape[-2:]))
    theirs = jax.jit(jax.grad(lambda m: norms._real_gram_iteration(m, n)[0].sum()))(matrices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [(4, 6), (6, 4)])
def test_convolution_norm_bound_gradient_is_that_over_all_frequencies(channels: tuple[int, int]) -> None:
    kernels = normal(5, 3, 2, 2, *channels)
    frequencies = jnp.stack(jnp.meshgrid(jnp.arange(4) / 4, jnp.arange(6) / 6), -1).reshape(-1, 2)

    def over_all(kernel: jax.Array) -> jax.Array:
        transforms = jax.vmap(lambda frequency: norms._transform(kernel, frequency))(frequencies)
        return norms._real_gram_iteration(transforms, norms.squarings_for(8))[0].max()

    bounds = jax.value_and_grad(lambda kernels: norms.convolution_norm_bound(kernels, 3, 5).sum())
    bound, gradient = jax.jit(bounds)(kernels)
    plain = jax.value_and_grad(lambda kernels: sum(over_all(kernel) for kernel in kernels))
    expected, expected_gradient = jax.jit(plain)(kernels)
    assert bound == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["dense", "grouped"])
def test_bounds_of_layers_per_action(layer: str) -> None:
    """One number for each action's layer: against the SVD of its whole matrix."""
    if layer == "dense":
        kernel = normal(6, 3, 7, 5)
        bounds, true = kernel_norm_bound(kernel), np.linalg.norm(kernel, 2, axis=(1, 2))
    else:
        kernel = normal(6, 3, 2, 2, 2, 4, 6)  # three actions, two groups
        bounds = kernel_norm_bound(kernel, 3, 4)
        true = np.array([max(np.linalg.norm(unrolled(group, 3, 4), 2) for group in action) for action in kernel])
    assert bounds.shape == (3,)
    assert (bounds >= true * (1 - 1e-5)).all()
    assert (bounds <= 1.2 * true).all()


@pytest.mark.parametrize("shape", [(7, 5), (3, 7, 5), (2, 2, 4, 6), (3, 2, 2, 2, 4, 6)])
@pytest.mark.parametrize("latent_map", [(3, 4), (1, 4)], ids=str)
def test_distance_bound_is_above_the_norm_of_the_difference(
    shape: tuple[int, ...], latent_map: tuple[int, int]
) -> None:
    kernel, earlier = normal(1, *shape), normal(2, *shape)
    difference = kernel - earlier
    if len(shape) <= 3:
        true = np.linalg.norm(difference, 2, axis=(-2, -1))
    elif len(shape) == 4:
        true = np.linalg.norm(unrolled(difference, *latent_map), 2)
    else:
        true = np.array([max(np.linalg.norm(unrolled(group, *latent_map), 2) for group in one) for one in difference])
    bound = jax.jit(norms.distance_bound)(kernel, earlier)
    assert bound.shape == true.shape
    assert (bound >= true * (1 - 1e-5)).all()
    assert (jax.jit(norms.distance_bound)(kernel, kernel) < 1e-6).all()


def test_dense_kernels_are_limited_and_their_product_bounds_the_constant() -> None:
    """Those above the limit come down to it, within the bound's tenth; others stay as they are, and so do biases."""
    small, large = 0.1 * normal(1, 5, 4), normal(2, 4, 6)
    params = {"first": {"kernel": small, "bias": jnp.ones(4)}, "second": {"kernel": large, "bias": 9 * jnp.ones(6)}}
    limited = jax.jit(lambda params: norms.limit_kernels(params, 0.9))(params)
    for name in ("first", "second"):
        np.testing.assert_array_equal(limited[name]["bias"], params[name]["bias"])
    np.testing.assert_array_equal(limited["first"]["kernel"], small)
    assert 0.9 / 1.1 <= np.linalg.norm(limited["second"]["kernel"], 2) <= 0.9 * (1 + 1e-5)

    true = np.linalg.norm(small, 2) * np.linalg.norm(large, 2)
    assert true * (1 - 1e-5) <= float(jax.jit(norms.lipschitz_bound)(params)) <= 1.1**2 * true
