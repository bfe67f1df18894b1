"""Layers, densities and world model against plain NumPy versions: values, gradients and norms."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI
from sbx_deepspi.networks import backend, densities, lipschitz
from sbx_deepspi.networks.backend import clipped_normal
from sbx_deepspi.networks.convolution import matrix_convolution, once_padded_patches, plain_convolution, plain_patches
from sbx_deepspi.networks.noise import LARGEST, clipped_normal_of, hashed_bits
from sbx_deepspi.networks.products import batched_product, dense_product
from sbx_deepspi.networks.world_model import RewardModel, TransitionModel
from sbx_deepspi.rollout import to_transitions
from tests.test_deepspi import IMAGE, ToyEnv, collected

KEY = jax.random.key(0)
# compiled as a whole, here and below: JAX compiles an operation on its own nearly as long
kernel_norm_bound = jax.jit(lipschitz.kernel_norm_bound, static_argnums=(1, 2))


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (40, 40), (2, 3, 6, 4)])
def test_spectral_norm_bound_is_above_the_norm_and_close(shape: tuple[int, ...]) -> None:
    matrices = normal(1, *shape)
    true = np.linalg.norm(matrices, 2, axis=(-2, -1))
    bound = np.asarray(jax.jit(lipschitz.spectral_norm_bound)(matrices))
    assert (bound >= true * (1 - 1e-5)).all()
    assert (bound <= 1.1 * true).all()


def unrolled(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """The matrix of a SAME convolution, column by column."""
    channels = kernel.shape[2]
    units = np.eye(height * width * channels, dtype=np.float32).reshape(-1, height, width, channels)
    images = jax.lax.conv_general_dilated(units, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return np.asarray(images).reshape(len(units), -1)


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
    gradient = jax.jit(jax.grad(lambda m: lipschitz.schatten_norm(m, 8)))(matrix)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-3)
    assert np.isfinite(jax.jit(jax.grad(lipschitz.spectral_norm_bound))(jnp.zeros((3, 3)))).all()


@pytest.mark.parametrize("n", [1, 2, 5, 64, 256])
def test_norm_bound_of_orthogonal_matrices_is_within_a_tenth(n: int) -> None:
    """All singular values alike is what it bounds worst; tiny and huge ones must not leave float32's range."""
    orthogonal = np.linalg.qr(normal(7, n, n))[0]
    bound_and_gradient = jax.jit(jax.value_and_grad(lipschitz.spectral_norm_bound))
    for scale in (1e-3, 1.0, 1e6):
        matrix = (scale * orthogonal).astype(np.float32)
        bound, gradient = bound_and_gradient(matrix)
        assert 1 - 1e-5 <= float(bound) / scale <= 1.1 + 1e-5
        # by symmetry along the matrix itself, with a product that is the bound, since it is homogeneous
        np.testing.assert_allclose(n * gradient, orthogonal * (bound / scale), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 5, 5), (7, 1), (2, 30, 30)])
def test_norm_bound_gradient_equals_autodiff_through_the_iteration(shape: tuple[int, ...]) -> None:
    matrices = normal(4, *shape)
    ours = jax.jit(jax.grad(lambda m: lipschitz.spectral_norm_bound(m).sum()))(matrices)
    n = lipschitz.squarings_for(min(shape[-2:]))
    theirs = jax.jit(jax.grad(lambda m: lipschitz._real_gram_iteration(m, n)[0].sum()))(matrices)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [(4, 6), (6, 4)])
def test_convolution_norm_bound_gradient_is_that_over_all_frequencies(channels: tuple[int, int]) -> None:
    kernels = normal(5, 3, 2, 2, *channels)
    frequencies = jnp.stack(jnp.meshgrid(jnp.arange(4) / 4, jnp.arange(6) / 6), -1).reshape(-1, 2)

    def over_all(kernel: jax.Array) -> jax.Array:
        transforms = jax.vmap(lambda frequency: lipschitz._transform(kernel, frequency))(frequencies)
        return lipschitz._real_gram_iteration(transforms, lipschitz.squarings_for(8))[0].max()

    bounds = jax.value_and_grad(lambda kernels: lipschitz.convolution_norm_bound(kernels, 3, 5).sum())
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


KERNELS = {"dense": (7, 5), "per action": (3, 7, 5), "convolution": (2, 2, 4, 6), "grouped": (3, 2, 2, 2, 4, 6)}


@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_kernels_at_their_known_norm_are_divided_by_it(shape: tuple[int, ...]) -> None:
    """Values and gradients of plain autodiff."""

    def plain(kernel: jax.Array, nothing: jax.Array) -> jax.Array:
        bound = lipschitz.kernel_norm_bound(kernel, 3, 4)
        return kernel / bound.reshape(bound.shape + (1,) * (kernel.ndim - bound.ndim))

    def known(kernel: jax.Array, nothing: jax.Array) -> jax.Array:
        norms = lipschitz.kernel_norms({"kernel": kernel}, 3, 4)
        return lipschitz.normalize_kernels({"kernel": kernel}, norms)["kernel"]

    assert_same_function(known, plain, normal(6, *shape), jnp.zeros(()))


@pytest.mark.parametrize("latent_map", [(3, 4), (1, 4)], ids=str)
@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_moved_kernels_are_divided_by_no_less_than_their_norm(
    shape: tuple[int, ...], latent_map: tuple[int, int]
) -> None:
    """From an exact norm as far as they may go, in the direction that adds most to it and in others."""
    kernel = normal(6, *shape)

    def true_norms(kernels: jax.Array) -> np.ndarray:
        by_action = np.asarray(kernels if len(shape) in (3, 6) else kernels[None])
        if len(shape) <= 3:
            return np.linalg.norm(by_action, 2, axis=(1, 2))
        by_action = by_action.reshape(len(by_action), -1, *shape[-4:])
        return np.array(
            [max(np.linalg.norm(unrolled(group, *latent_map), 2) for group in groups) for groups in by_action]
        )

    (norm,) = jax.jit(lipschitz.kernel_norms, static_argnums=(1, 2))({"kernel": kernel}, *latent_map)
    exact = [norm.replace(bound=jnp.asarray(true_norms(kernel), jnp.float32).reshape(norm.bound.shape))]
    are_stale, normalize = jax.jit(lipschitz.are_stale), jax.jit(lipschitz.normalize_kernels)
    assert not are_stale(exact, {"kernel": kernel})
    for direction in (norm.slope, -norm.slope, normal(8, *shape)):
        allowed = lipschitz.LOOSENESS * exact[0].bound / lipschitz.distance_bound(norm, kernel + direction)
        step = allowed.reshape(allowed.shape + (1,) * (len(shape) - allowed.ndim)) * direction
        new = {"kernel": kernel + 0.99 * step}
        assert not are_stale(exact, new)
        assert are_stale(exact, {"kernel": kernel + 1.01 * step})
        normalized = true_norms(normalize(new, exact)["kernel"])
        assert (normalized <= 1 + 1e-5).all()
        assert (normalized >= 0.97).all()


def test_group_sort_by_hand() -> None:
    np.testing.assert_array_equal(lipschitz.group_sort(jnp.array([3.0, 1.0, -2.0, 5.0])), [-2, 1, 3, 5])
    np.testing.assert_array_equal(lipschitz.group_sort(jnp.array([[0.0, 7.0, 2.0, 4.0]])), [[0, 4, 2, 7]])
    np.testing.assert_array_equal(lipschitz.group_sort(jnp.array([3.0, 1.0, -2.0, 5.0]), 2), [1, 3, -2, 5])


def test_convolution_layer_equals_xlas() -> None:
    layer = lipschitz.Convolution(6)
    images = normal(4, 3, 5, 7, 4)
    params = jax.jit(layer.init)(KEY, images)

    def plain(params: dict, images: jax.Array) -> jax.Array:
        return params["params"]["bias"] + jax.lax.conv_general_dilated(
            images, params["params"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert_same_function(layer.apply, plain, params, images)


@pytest.mark.parametrize(("n_actions", "groups", "parts"), [(1, 2, 1), (3, 1, 2), (18, 2, 3)])
def test_grouped_convolution_per_action_equals_all_actions_then_selection(
    n_actions: int, groups: int, parts: int
) -> None:
    layer = lipschitz.GroupedConvolutionPerAction(n_actions, 6 // parts, groups, parts)
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
        taken = every_action[actions, jnp.arange(9)].reshape(9, 3, 4, groups, parts, -1)
        return taken.transpose(4, 0, 3, 1, 2, 5)

    assert_same_function(lambda p, x: jnp.stack(layer.apply(p, x, actions)), plain, params, images)


def gradient_of(function):
    """As the gradient penalty needs it: a gradient's own gradient has to be right, too."""
    return lambda *operands: jax.grad(lambda *operands: (function(*operands) ** 3).sum())(*operands)


@pytest.mark.parametrize(
    ("product", "leading_axes"), [(batched_product, (2, 3)), (dense_product, ())], ids=["batched", "dense"]
)
def test_products_equal_the_plain_one(product, leading_axes: tuple[int, ...]) -> None:
    rows, matrices = normal(1, *leading_axes, 7, 5), normal(2, *leading_axes, 5, 4)
    assert_same_function(product, jnp.matmul, rows, matrices)
    assert_same_function(gradient_of(product), gradient_of(jnp.matmul), rows, matrices)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (3, 5), (1, 1), (1, 4)])
def test_windows_equal_xlas_and_so_do_their_gradients(height: int, width: int) -> None:
    def plain(inputs: jax.Array) -> jax.Array:
        windows = jax.lax.conv_general_dilated_patches(
            inputs, (2, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        # there a channel's taps lie together
        return jnp.swapaxes(windows.reshape(3, height, width, 4, -1), -1, -2).reshape(3, height, width, -1)

    inputs = normal(1, 3, height, width, 4)
    for form in (once_padded_patches, plain_patches):
        assert_same_function(form, plain, inputs)
    assert_same_function(gradient_of(once_padded_patches), gradient_of(plain), inputs)


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


@pytest.mark.parametrize("action_space", [spaces.Discrete(18), spaces.Box(-1, 1, (2,))], ids=str)
def test_networks_are_the_same_function_on_cpus_and_elsewhere(
    action_space: spaces.Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the loss is made of, in the forms that :mod:`backend` chooses here and in those of accelerators."""
    monkeypatch.setattr(densities, "clipped_normal", lambda key, shape: normal(9, *shape))  # the noise differs
    kwargs = dict(lipschitz_constant=None, features_extractor_kwargs=dict(features_dim=8))
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, action_space)] * 3)
    model = DeepSPI("CnnPolicy", env, n_steps=6, batch_size=18, policy_kwargs=kwargs)
    transitions = to_transitions(collected(model)[0], np.zeros(3, np.float32), 0.9, 0.8)
    networks, params = model.policy.networks, jax.tree.map(lambda leaf: 2 * leaf, model.policy.state.params)

    def here(params: Any) -> jax.Array:
        evaluation = networks.apply(params, transitions, KEY, gradient_penalty=True, method="evaluate")
        return jnp.stack([getattr(evaluation, field.name) for field in dataclasses.fields(evaluation)])

    def elsewhere(params: Any) -> jax.Array:
        with monkeypatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", lambda *operands, default, cpu: default(*operands))
            return here(params)

    assert_same_function(here, elsewhere, params)
    penalties = jax.jit(here)(params)[-1]
    assert penalties.max() > 0


@pytest.mark.parametrize("n_actions", [1, 18])
def test_dense_per_action_equals_all_actions_then_selection(n_actions: int) -> None:
    layer = lipschitz.DensePerAction(n_actions, 3)
    inputs, actions = normal(4, 9, 2, 5), np.random.default_rng(0).integers(0, n_actions, 9)
    params = jax.jit(layer.init)(KEY, inputs, actions)

    def plain(params: dict, inputs: jax.Array) -> jax.Array:
        kernel, bias = params["params"]["kernel"], params["params"]["bias"]
        every_action = jnp.einsum("bci,aio->abco", inputs, kernel) + bias[:, None, None]
        return every_action[actions, jnp.arange(9)]

    assert_same_function(lambda p, x: layer.apply(p, x, actions), plain, params, inputs)


def test_actions_not_taken_cost_nothing() -> None:
    def operations(n_actions: int) -> float:
        layer = lipschitz.GroupedConvolutionPerAction(n_actions, 8, 2, 2)
        images, actions = normal(5, 9, 5, 5, 16), jnp.zeros(9, jnp.int32)
        params = jax.jit(layer.init)(KEY, images, actions)
        return jax.jit(layer.apply).lower(params, images, actions).compile().cost_analysis()["flops"]

    assert operations(18) < 1.1 * operations(2)


def assert_same_function(fast, plain, *arguments) -> None:
    """Values and all gradients to 1e-4 relative to their largest entry."""

    def outputs_and_gradients(function):
        outputs, vjp = jax.vjp(function, *arguments)
        return outputs, vjp(jax.random.normal(KEY, outputs.shape))

    results = (jax.jit(lambda f=f: outputs_and_gradients(f))() for f in (fast, plain))
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-12)


def test_mixture_sample_by_numpy() -> None:
    locations, scales, logits = normal(1, 2, 3, 4), jnp.exp(normal(2, 2, 3, 4)), normal(3, 2, 4)
    sample = densities.Mixture(locations, scales, logits).sample(KEY)
    noise = clipped_normal(KEY, (2, 3, 4))
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(sample, (weights[:, None] * (locations + scales * noise)).sum(-1), rtol=1e-5)


def test_softplus_by_numpy() -> None:
    """Relative to the value, also where that is tiny; the slope is the logistic function, and smooth itself."""
    x = np.concatenate([np.linspace(-80, 80, 1001), [0.0, 1e-6, -1e-6]]).astype(np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(jax.jit(densities.softplus)(x), np.logaddexp(0, exact), rtol=1e-6)
    slope = jax.vmap(jax.grad(densities.softplus))
    np.testing.assert_allclose(jax.jit(slope)(x), scipy.special.expit(exact), rtol=1e-6)
    curvature = jax.vmap(jax.grad(jax.grad(densities.softplus)))
    expected = scipy.special.expit(exact) * scipy.special.expit(-exact)
    np.testing.assert_allclose(jax.jit(curvature)(x), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("n_groups", [1, 3])
def test_density_over_groups_of_channels(n_groups: int) -> None:
    """Moved back channel by channel, with the noise of its groups; the losses are those of the latents as they come."""
    locations, scales = normal(1, 2, n_groups, 4, 5, 2, 3), jnp.exp(normal(2, 2, n_groups, 4, 5, 2, 3))
    logits, next_latents = normal(3, 2, 1, 4, 5, 3), normal(4, 2, 4, 5, 2 * n_groups)
    density = densities.Grouped(densities.Mixture(locations, scales, logits), n_groups)
    noise = clipped_normal(KEY, locations.shape)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros((2, 4, 5, 2 * n_groups))
    for group in range(n_groups):
        for channel in range(2):
            of_each = (array[:, group, :, :, channel] for array in (locations, scales, noise))
            location, scale, epsilon = map(np.asarray, of_each)
            expected[..., 2 * group + channel] = (weights[:, 0] * (location + scale * epsilon)).sum(-1)
    np.testing.assert_allclose(density.sample(KEY), expected, rtol=1e-4, atol=1e-5)
    errors = np.abs(expected - next_latents)
    losses = np.where(errors <= 1, errors**2 / 2, errors - 0.5).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(density.transition_losses(next_latents, KEY), losses, rtol=1e-4)


def test_densities_from_outputs() -> None:
    outputs = normal(1, 2, 3, 2)
    density = densities.from_outputs([outputs[..., :1], outputs[..., 1:]], None, lipschitz_constant=3.0)
    assert isinstance(density, densities.Mixture)
    np.testing.assert_allclose(density.locations, 1.5 * outputs[..., :1])
    np.testing.assert_allclose(density.scales, 1.5 * (np.log1p(np.exp(outputs[..., 1:])) + 1e-6), rtol=1e-5)
    point = densities.from_outputs([outputs[..., :1]], None, lipschitz_constant=3.0)
    assert isinstance(point, densities.Deterministic)
    next_latents = jnp.zeros((2, 3))
    losses = point.transition_losses(next_latents, KEY)
    errors = np.abs(3.0 * outputs[..., 0])
    np.testing.assert_allclose(losses, np.where(errors <= 1, errors**2 / 2, errors - 0.5).mean(-1), rtol=1e-5)


@pytest.mark.parametrize("latent_shape", [(3, 3, 16), (10,)])
@pytest.mark.parametrize("density", ["mixture", "normal", "deterministic"])
@pytest.mark.parametrize("n_actions", [3, None])
def test_rewards_locations_and_scales_are_lipschitz_in_the_latent(
    latent_shape: tuple[int, ...], density: str, n_actions: int | None
) -> None:
    constant = 2.0
    latents = normal(1, 6, *latent_shape)
    actions = jnp.arange(6) % 3 if n_actions else normal(2, 6, 4)
    transition = TransitionModel(n_actions, density, 4, constant)
    reward = RewardModel(n_actions, 8, constant)
    transition_params, reward_params = (jax.jit(m.init)(KEY, latents, actions) for m in (transition, reward))

    # weights far from their initialisation, as training would leave them
    transition_params, reward_params = jax.tree.map(lambda p: 3 * p + 0.1, (transition_params, reward_params))

    @jax.jit
    def normalized(params: dict) -> dict:
        norms = lipschitz.kernel_norms(params["params"], *latent_shape[:-1])
        return {"params": lipschitz.normalize_kernels(params["params"], norms)}

    transition_params, reward_params = normalized(transition_params), normalized(reward_params)
    direction = normal(3, 6, *latent_shape)
    predict_rewards, predict_latents = jax.jit(reward.apply), jax.jit(transition.apply)
    for scale in (1e-2, 1.0, 10.0):
        moved = latents + scale * direction
        distance = np.linalg.norm((moved - latents).reshape(6, -1), axis=1)
        change = predict_rewards(reward_params, moved, actions) - predict_rewards(reward_params, latents, actions)
        assert (np.abs(change) <= constant * distance * (1 + 1e-3)).all()
        before = predict_latents(transition_params, latents, actions)
        after = predict_latents(transition_params, moved, actions)
        if len(latent_shape) == 3:
            before, after = before.density, after.density
        maps = [(before.locations, after.locations, constant)]
        if density != "deterministic":
            maps = [(before.locations, after.locations, constant / 2), (before.scales, after.scales, constant / 2)]
        for first, second, bound in maps:
            change = np.linalg.norm(np.asarray(second - first).reshape(6, -1), axis=1)
            assert (change <= bound * distance * (1 + 1e-3)).all()


def test_world_model_sees_the_action() -> None:
    latents = normal(1, 4, 3, 3, 16)
    for n_actions, first, second in (
        (2, jnp.zeros(4, int), jnp.ones(4, int)),
        (None, jnp.zeros((4, 2)), jnp.ones((4, 2))),
    ):
        for model in (TransitionModel(n_actions, "normal", 1, 1.0), RewardModel(n_actions, 8, 1.0)):
            params, apply = jax.jit(model.init)(KEY, latents, first), jax.jit(model.apply)
            outputs = (jax.tree.leaves(apply(params, latents, actions)) for actions in (first, second))
            pairs = zip(*outputs, strict=True)
            assert any(not np.allclose(a, b) for a, b in pairs)


def test_clipped_normal_is_the_inverse_normal_distribution_cut_off() -> None:
    bits = jnp.arange(0, 2**32, 2**20 - 1, dtype=jnp.uint32)
    uniform = ((np.asarray(bits) >> 8).astype(float) + 0.5) / 2**24
    expected = np.clip(scipy.stats.norm.ppf(uniform), -1, 1)
    np.testing.assert_allclose(clipped_normal_of(bits), expected, atol=2e-6)
    assert pytest.approx(scipy.stats.norm.cdf(1) - 0.5, rel=1e-9) == LARGEST


def test_hashed_bits_are_uniform_and_independent() -> None:
    """Each bit, its neighbour in the word and in the array, and the bits of the next key."""
    first, second = (hashed_bits(key, (100_000,)) for key in jax.random.split(KEY))
    as_bits = lambda words: np.unpackbits(np.asarray(words).view(np.uint8)).reshape(-1, 32).astype(float)  # noqa: E731
    bits, others = as_bits(first), as_bits(second)
    tolerance = 5 / np.sqrt(len(bits))  # of a correlation, five standard deviations
    signs, other_signs = 2 * bits - 1, 2 * others - 1
    assert np.abs(signs.mean(0)).max() < tolerance
    products = np.abs(signs.T @ signs / len(bits) - np.eye(32))
    assert products.max() < tolerance
    assert np.abs(signs[1:].T @ signs[:-1] / len(bits)).max() < tolerance
    assert np.abs(signs.T @ other_signs / len(bits)).max() < tolerance
    assert scipy.stats.kstest(np.asarray(first) / 2**32, "uniform").pvalue > 1e-3


def test_clipped_normal_moments() -> None:
    """A normal cut to [-1, 1] has mean 0 and variance 1 - 2 φ(1) + ... = 0.5161 (by numerical integration)."""
    noise = np.asarray(clipped_normal(KEY, (1000, 200)))
    inside = scipy.integrate.quad(lambda x: x**2 * scipy.stats.norm.pdf(x), -1, 1)[0]
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.var() == pytest.approx(inside + 2 * scipy.stats.norm.sf(1), abs=0.01)


@pytest.mark.parametrize("n_images", [20, 21, 40, 64, 65, 130])
def test_images_in_parts_are_encoded_as_one_by_one(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CPU_MICROBATCH", 32)
    monkeypatch.setattr(backend, "CPU_CHUNK", 30)
    kernel, images, shifts = normal(1, 4, 4, 2, 5), normal(2, n_images, 12, 8, 2), normal(3, n_images, 5, 3, 5)
    assert_same_function(
        lambda k, x: backend.in_parts(lambda part, shift: backend.convolution(part, k, 2) + shift, x, shifts),
        lambda k, x: plain_convolution(x, k, 2) + shifts,
        kernel,
        images,
    )


@pytest.mark.parametrize("n_images", [21, 65])  # side by side, and one after the other
def test_bytes_in_parts_are_encoded_as_one_by_one(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CPU_MICROBATCH", 32)
    images = np.random.default_rng(0).integers(0, 256, (n_images, 3, 21, 25), np.uint8)
    assert_same_function(
        lambda k, x: backend.in_parts(lambda part: backend.convolution(part, k, 4, True), jnp.asarray(images)) + x,
        lambda k, x: plain_convolution(jnp.asarray(images.transpose(0, 2, 3, 1), jnp.float32), k, 4) + x,
        normal(1, 8, 8, 3, 5),
        jnp.zeros(5),
    )


@pytest.mark.parametrize("n_latents", [8, 17])  # side by side in uneven pieces, and one after the other
@pytest.mark.parametrize("density", ["deterministic", "normal"])
def test_transition_losses_in_parts(density: str, n_latents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and gradients; noise of its own for each transition where there is noise."""
    kwargs = dict(transition_density=density, features_extractor_kwargs=dict(features_dim=8))
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, spaces.Discrete(3))])
    policy = DeepSPI("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=kwargs).policy
    latents = jnp.tile(normal(1, *policy.latent_shape), (n_latents, 1, 1, 1))
    arguments = latents, jnp.zeros(n_latents, jnp.int32), latents + 0.1, KEY
    monkeypatch.setattr(backend, "CPU_MICROBATCH", 7)
    monkeypatch.setattr(backend, "CPU_CHUNK", 7)

    def losses(params: Any) -> jax.Array:
        return policy.networks.apply(params, *arguments, method="transition_losses")

    def in_pieces_of(size: int) -> list[jax.Array]:
        monkeypatch.setattr(backend, "CPU_PIECE", size)

        @jax.jit
        def losses_and_gradients(params: Any) -> tuple[jax.Array, Any]:
            of_each, pull_back = jax.vjp(losses, params)
            return of_each, pull_back(jnp.arange(1.0, n_latents + 1))

        return jax.tree.leaves(losses_and_gradients(policy.state.params))

    in_pieces = in_pieces_of(3)
    assert len(np.unique(in_pieces[0].round(4))) == (n_latents if density == "normal" else 1)
    if density == "deterministic":
        for ours, theirs in zip(in_pieces, in_pieces_of(99), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-12)


def test_compiled_programs_are_kept_unless_jax_was_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = jax.config.jax_compilation_cache_dir
    backend.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == told
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        backend.keep_compiled_programs()
        assert Path(jax.config.jax_compilation_cache_dir).parent == tmp_path / "sbx-deepspi"
    finally:
        jax.config.update("jax_compilation_cache_dir", told)
