"""Convolutions of any sizes: the latent map is what they leave, and what does not fit is named."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from sbx_deepspi import DeepSPI
from sbx_deepspi.networks.encoders import NATURE_CNN, SMALL_CNN
from sbx_deepspi.ops.convolution import plain_convolution
from tests.helpers import TINY_RUN, ToyEnv, params
from tests.numerics import assert_same_function, normal

CELLS = spaces.Box(0, 1, (10, 10, 4), np.float32)
CUBE = spaces.Box(0, 1, (10, 10, 10), np.float32)


def model_of(space: spaces.Box, **policy_kwargs: Any) -> DeepSPI:
    plain = dict(transition_density="deterministic", lipschitz_constant=None) | policy_kwargs
    return DeepSPI("CnnPolicy", ToyEnv(space, spaces.Discrete(2)), **TINY_RUN, policy_kwargs=plain)


@pytest.mark.parametrize(
    ("space", "convolutions", "latent_shape"),
    [
        (CUBE, None, (8, 8, 16)),
        (CELLS, [[8, 3, 2], [12, 2, 1]], (3, 3, 12)),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), None, (7, 7, 64)),
        (spaces.Box(0, 255, (35, 35, 3), np.uint8), None, (33, 33, 16)),
    ],
)
def test_the_latent_map_is_what_convolutions_leave(space: Any, convolutions: Any, latent_shape: Any) -> None:
    model = model_of(space, convolutions=convolutions)
    networks, observation = model.policy.programs.networks, jnp.asarray(model.observation_space.sample()[None])
    assert networks.latent_shape == latent_shape
    assert networks.encoder.apply({"params": model.policy.learner.parameters["encoder"]}, observation).shape[1:] == (
        latent_shape
    )


def test_small_images_learn_and_are_saved(tmp_path: Any) -> None:
    model = model_of(CELLS, convolutions=[(6, 3, 2)])
    before = params(model)
    model.learn(8)
    assert not np.array_equal(before["encoder"]["kernel_0"], params(model)["encoder"]["kernel_0"])
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    for policy in (DeepSPI.load(tmp_path / "model").policy, type(model.policy).load(tmp_path / "policy")):
        assert policy.convolutions == ((6, 3, 2),)
        np.testing.assert_array_equal(*(jax.tree.leaves(p.learner.parameters)[0] for p in (policy, model.policy)))


def test_floats_are_taken_as_they_are() -> None:
    assert not model_of(CELLS).policy.programs.networks.encoder.normalize_images
    assert model_of(spaces.Box(0, 255, (10, 10, 4), np.uint8)).policy.programs.networks.encoder.normalize_images


@pytest.mark.parametrize(
    ("convolutions", "message"),
    [
        ([(16, 11, 1)], r"convolutions\[0\] has a kernel of 11 x 11, .* only 10 x 10 cells"),
        ([(16, 3, 1), (16, 9, 1)], r"convolutions\[1\] has a kernel of 9 x 9, .* only 8 x 8 cells"),
        (NATURE_CNN, r"convolutions\[1\] has a kernel of 4 x 4, .* only 1 x 1 cells"),
        ([(16, 3)], r"convolutions\[0\] must be \(channels, kernel size, stride\).*\(16, 3\)"),
        ([(16, 3, 0)], r"convolutions\[0\] must be .* at least 1"),
        ([16, 3, 1], r"convolutions\[0\] must be .*but got 16"),
        ([], "convolutions must have a layer at least"),
    ],
)
def test_what_does_not_fit_is_named(convolutions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(CELLS, convolutions=convolutions)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 3), (2, 3)])
@pytest.mark.parametrize("channels_first", [False, True])
def test_a_kernel_of_any_size(kernel: int, stride: int, channels_first: bool) -> None:
    from sbx_deepspi.ops import convolution

    images = normal(1, 3, 2, 11, 12) if channels_first else normal(1, 3, 11, 12, 2)
    assert_same_function(
        lambda k, x: convolution(x, k, stride, channels_first),
        lambda k, x: plain_convolution(x, k, stride, channels_first),
        normal(2, kernel, kernel, 2, 4),
        images,
    )


def test_the_default_is_for_the_size() -> None:
    assert model_of(CELLS).policy.convolutions == SMALL_CNN
    assert model_of(spaces.Box(0, 1, (36, 36, 3), np.float32)).policy.convolutions == NATURE_CNN
