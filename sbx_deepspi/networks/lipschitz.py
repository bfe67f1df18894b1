"""Layers divided by an upper bound of their operator norm, so that each is 1-Lipschitz in its input.

The bound comes from Gram iteration (Delattre et al., ICML 2023): squaring the Gram matrix G = M*M n times
gives ‖M‖₂ ≤ ‖G^(2ⁿ)‖_F^(1/2ⁿ⁺¹), which holds at every n and tightens fast. Unlike power iteration it never
falls below the true norm.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-12  # keeps a kernel of zeros at zero instead of NaN


def spectral_norm_bound(matrices: jax.Array, n_iterations: int = 4) -> jax.Array:
    """
    Upper bound of the largest singular value, differentiable in the matrices.

    :param matrices: real or complex, shape (..., m, n)
    :param n_iterations: squarings of the Gram matrix; at 4 the bound is within 10 % for rank 256, closer below
    :return: shape (...,), real
    """
    adjoint = jnp.conj(jnp.swapaxes(matrices, -1, -2))
    gram = matrices @ adjoint if matrices.shape[-2] < matrices.shape[-1] else adjoint @ matrices
    log_norm = jnp.zeros(matrices.shape[:-2])
    for _ in range(n_iterations):
        # rescaling keeps float32 in range; the scale cancels in the bound, and so in its gradient
        scale = jax.lax.stop_gradient(_frobenius(gram))
        gram = gram / scale[..., None, None]
        gram = gram @ gram
        log_norm = 2 * (log_norm + jnp.log(scale))
    return jnp.exp((log_norm + jnp.log(_frobenius(gram))) / 2 ** (n_iterations + 1))


def _frobenius(matrices: jax.Array) -> jax.Array:
    squares = jnp.real(matrices * jnp.conj(matrices)).sum(axis=(-1, -2))
    return jnp.sqrt(squares + TINY**2)


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
    row_waves = _waves(np.arange(rows) / rows, kernel_height)
    column_waves = _waves(np.arange(columns // 2 + 1) / columns, kernel_width)
    transform = jnp.einsum("fh,gw,...hwio->...fgio", row_waves, column_waves, kernel)
    return spectral_norm_bound(transform).max(axis=(-1, -2))


def _waves(frequencies: np.ndarray, n_taps: int) -> np.ndarray:
    return np.exp(-2j * np.pi * np.outer(frequencies, np.arange(n_taps))).astype(np.complex64)


def group_sort(features: jax.Array) -> jax.Array:
    """
    GroupSort(2): sort neighbouring pairs of features, a 1-Lipschitz non-linearity that keeps gradient norms.

    :param features: shape (..., 2 n)
    :return: same shape, each pair in ascending order
    """
    pairs = features.reshape(*features.shape[:-1], -1, 2)
    ordered = jnp.stack([pairs.min(axis=-1), pairs.max(axis=-1)], axis=-1)
    return ordered.reshape(features.shape)


class Dense(nn.Module):
    """
    A dense layer, divided by its norm if ``lipschitz``.

    :param features: size of the output
    :param lipschitz: whether the layer is made 1-Lipschitz
    """

    features: int
    lipschitz: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """
        :param inputs: shape (..., n)
        :return: shape (..., features)
        """
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (inputs.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.lipschitz:
            kernel = kernel / (spectral_norm_bound(kernel) + TINY)
        return inputs @ kernel + bias


class DensePerAction(nn.Module):
    """
    One dense layer for each action; each input goes through the layer of the action taken.

    :param n_actions: number of layers; 1 for actions that do not choose a layer
    :param features: size of the output
    :param lipschitz: whether each layer is made 1-Lipschitz
    """

    n_actions: int
    features: int
    lipschitz: bool

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
        if self.lipschitz:
            kernel = kernel / (spectral_norm_bound(kernel)[:, None, None] + TINY)
        outputs = jnp.einsum("b...i,bio->b...o", inputs, kernel[actions])
        return outputs + jnp.expand_dims(bias[actions], tuple(range(1, inputs.ndim - 1)))


class Convolution(nn.Module):
    """
    A 2 × 2 convolution with stride 1 and SAME padding, divided by its norm if ``lipschitz``.

    :param features: channels out
    :param lipschitz: whether the layer is made 1-Lipschitz
    """

    features: int
    lipschitz: bool

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """
        :param inputs: shape (B, height, width, channels)
        :return: shape (B, height, width, features)
        """
        *_, height, width, channels = inputs.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, channels, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.lipschitz:
            kernel = kernel / (convolution_norm_bound(kernel, height, width) + TINY)
        return patches(inputs) @ kernel.reshape(4 * channels, self.features) + bias


class GroupedConvolutionPerAction(nn.Module):
    """
    One grouped 2 × 2 SAME convolution for each action; each map goes through that of the action taken.

    :param n_actions: number of convolutions; 1 for actions that do not choose one
    :param features: channels out
    :param n_groups: groups of channels; divides the channels in and out
    :param lipschitz: whether each convolution is made 1-Lipschitz
    """

    n_actions: int
    features: int
    n_groups: int
    lipschitz: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, actions: jax.Array) -> jax.Array:
        """
        :param inputs: shape (B, height, width, channels)
        :param actions: which convolution, integers of shape (B,)
        :return: shape (B, height, width, features)
        """
        batch, height, width, channels = inputs.shape
        group_in, group_out = channels // self.n_groups, self.features // self.n_groups
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0, 1)),
            (self.n_actions, self.n_groups, 2, 2, group_in, group_out),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.n_actions, self.features))
        if self.lipschitz:
            # groups share no channel, so the largest of their norms is the norm of the whole
            norm = convolution_norm_bound(kernel, height, width).max(axis=1)
            kernel = kernel / (norm[:, None, None, None, None, None] + TINY)
        # the action's kernel is chosen before the product: one convolution per map, not n_actions
        windows = patches(inputs).reshape(batch, height * width, 4, self.n_groups, group_in)
        kernel = kernel.reshape(self.n_actions, self.n_groups, 4, group_in, group_out)
        outputs = jnp.einsum("bptgi,bgtio->bpgo", windows, kernel[actions])
        return outputs.reshape(batch, height, width, self.features) + bias[actions][:, None, None]


def patches(inputs: jax.Array) -> jax.Array:
    """
    The 2 × 2 windows of a SAME convolution, zeros beyond the lower and right edges.

    :param inputs: shape (B, height, width, channels)
    :return: shape (B, height, width, 4 · channels), taps in row-major order, channels last
    """
    _, height, width, _ = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, row : row + height, column : column + width] for row in (0, 1) for column in (0, 1)], axis=-1
    )
