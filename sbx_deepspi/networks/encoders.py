"""Encoders φ: observation → latent state."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sbx_deepspi.ops import convolution, in_parts
from sbx_deepspi.world_model.densities import straight_through

Activation = Callable[[jax.Array], jax.Array]


def exact_gelu(x: jax.Array) -> jax.Array:
    """
    :param x: any shape
    :return: x Φ(x), as ``torch.nn.GELU`` computes it: ``jax.nn.gelu`` approximates it
    """
    return jax.nn.gelu(x, approximate=False)


Convolutions = tuple[tuple[int, int, int], ...]
"""(channels, kernel size, stride) of each layer."""
NATURE_CNN: Convolutions = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Mnih et al. 2015, for images of at least 36 x 36 pixels."""
SMALL_CNN: Convolutions = ((16, 3, 1),)
"""Young and Tian 2019, for MinAtar's 10 x 10 cells, and for all images that are too small for the other."""


def latent_map_size(size: int, convolutions: Convolutions) -> int:
    """
    Rows (or columns) of the latent map of an image with ``size`` rows (or columns).

    :param size: in pixels
    :param convolutions: of the encoder
    :return: number of cells; below 1 when the image is too small
    """
    for _, kernel_size, stride in convolutions:
        size = (size - kernel_size) // stride + 1
    return size


def kernel_init(ortho_init: bool, scale: float = np.sqrt(2)) -> nn.initializers.Initializer:
    """
    :param ortho_init: orthogonal kernels of the given scale; if not, flax's own initialisation
    :param scale: gain of the orthogonal kernel
    :return: an initialiser
    """
    return nn.initializers.orthogonal(scale) if ortho_init else nn.initializers.lecun_normal()


class CnnEncoder(nn.Module):
    """
    φ for images: convolutions; the latent state is the last feature map.

    :param convolutions: see :data:`Convolutions`
    :param channels_first: layout of the observations
    :param normalize_images: divide by 255
    :param activation_fn: after each convolution
    :param ortho_init: orthogonal kernels of gain √2
    """

    convolutions: Convolutions
    channels_first: bool
    normalize_images: bool
    activation_fn: Activation
    ortho_init: bool

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, C, H, W) or (B, H, W, C), integers or floats
        :return: z, shape (B, H', W', channels), float32; (B, 7, 7, 64) for 84 × 84 images and :data:`NATURE_CNN`
        """
        layers = self.layers(observations.shape[1 if self.channels_first else -1])

        def encode(maps: jax.Array) -> jax.Array:
            channels_first = self.channels_first
            for kernel, bias, stride in layers:
                maps = self.activation_fn(convolution(maps, kernel, stride, channels_first) + bias)
                channels_first = False
            return maps

        return in_parts(encode, observations, n_numbers=math.prod(observations.shape[1:]))

    def layers(self, channels: int) -> list[tuple[jax.Array, jax.Array, int]]:
        """
        :param channels: of the observations
        :return: kernel, bias and stride of each convolution
        """
        layers = []
        # of the first kernel, in place of the images', which stay bytes until the product
        scale = 1 / 255.0 if self.normalize_images else 1.0
        for i, (features, size, stride) in enumerate(self.convolutions):
            kernel = self.param(f"kernel_{i}", kernel_init(self.ortho_init), (size, size, channels, features))
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (features,))
            layers.append((kernel * scale, bias, stride))
            channels, scale = features, 1.0
        return layers


class MlpEncoder(nn.Module):
    """
    φ for vectors: one dense layer; the latent state is a vector.

    :param features_dim: size of the latent state
    :param normalize_images: divide by 255
    :param activation_fn: after the layer
    :param ortho_init: orthogonal kernel of gain √2
    :param one_hot: number of options of each observed choice, which become one-hot vectors side by side; empty:
        observations are numbers as they are
    """

    features_dim: int
    normalize_images: bool
    activation_fn: Activation
    ortho_init: bool
    one_hot: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, ...), flattened
        :return: z, shape (B, features_dim), float32
        """
        vectors = observations.reshape(len(observations), -1)
        if self.one_hot:
            choices = [jax.nn.one_hot(vectors[:, i], n) for i, n in enumerate(self.one_hot)]
            vectors = jnp.concatenate(choices, axis=-1)
        vectors = vectors.astype(jnp.float32)
        if self.normalize_images:
            vectors = vectors / 255.0
        return self.activation_fn(nn.Dense(self.features_dim, kernel_init=kernel_init(self.ortho_init))(vectors))


class CombinedEncoder(nn.Module):
    """
    φ for dictionaries: each observation through an encoder of its own; their outputs side by side are the latent state.

    :param encoders: key → encoder of vectors, as pairs
    """

    encoders: tuple[tuple[str, nn.Module], ...]

    def __call__(self, observations: dict[str, jax.Array]) -> jax.Array:
        """
        :param observations: by key, shapes (B, ...)
        :return: z, shape (B, sum of the encoders' outputs), float32
        """
        return jnp.concatenate([encoder(observations[key]) for key, encoder in self.encoders], axis=-1)


class CategoricalEncoder(nn.Module):
    """
    φ onto one-hot vectors: another encoder's output, one dense layer to logits, and each variable's most likely
    class. The gradient is that of the probabilities (straight-through).

    :param encoder: observation → features
    :param n_variables: number of one-hot vectors
    :param n_classes: their length
    """

    encoder: nn.Module
    n_variables: int
    n_classes: int

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, ...)
        :return: z, shape (B, n_variables, n_classes)
        """
        features = self.encoder(observations)
        features = features.reshape(len(features), -1)
        logits = nn.Dense(self.n_variables * self.n_classes, name="logits")(features)
        logits = logits.reshape(-1, self.n_variables, self.n_classes)
        return straight_through(logits, jax.nn.softmax(logits))
