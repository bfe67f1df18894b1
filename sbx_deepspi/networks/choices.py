"""Distributions over finitely many actions: one choice (Discrete), or several at once (MultiDiscrete, MultiBinary)."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


def by_size(options: jax.Array, sizes: tuple[int, ...]) -> Iterator[tuple[np.ndarray, jax.Array]]:
    """
    Numbers of all options of all choices, side by side, as blocks of choices with equally many options: that takes
    neither padding nor one operation for each choice.

    :param options: shape (..., Σ n)
    :param sizes: number of options n of each choice
    :return: for each n, the indices of the choices that have it, and their numbers of shape (..., choices, n)
    """
    starts, of_size = np.cumsum((0, *sizes[:-1])), np.array(sizes)
    for n in sorted(set(sizes)):
        choices = np.flatnonzero(of_size == n)
        columns = starts[choices][:, None] + np.arange(n)
        whole = len(choices) == len(sizes)
        block = options if whole else options[..., columns.reshape(-1)]
        yield choices, block.reshape(*options.shape[:-1], *columns.shape)


def per_choice(blocks: list[tuple[np.ndarray, jax.Array]]) -> jax.Array:
    """
    :param blocks: indices of choices, and one number for each of them, shape (..., choices)
    :return: the numbers in the choices' order, shape (..., all choices)
    """
    if len(blocks) == 1:
        return blocks[0][1]
    order = np.argsort(np.concatenate([choices for choices, _ in blocks]))
    return jnp.concatenate([numbers for _, numbers in blocks], axis=-1)[..., order]


@dataclass(frozen=True)
class Choices:
    """
    Independent choices, each among its options.

    :param log_policy: log π(·|s) of every option of every choice, side by side, shape (B, Σ n)
    :param sizes: number of options of each choice
    """

    log_policy: jax.Array
    sizes: tuple[int, ...]

    @classmethod
    def from_logits(cls, logits: jax.Array, sizes: tuple[int, ...]) -> "Choices":
        """
        :param logits: shape (B, Σ n)
        :param sizes: number of options of each choice
        :return: the distribution
        """
        normalizers = per_choice(
            [(choices, jax.nn.logsumexp(block, axis=-1)) for choices, block in by_size(logits, sizes)]
        )
        if len(sizes) > 1:
            normalizers = normalizers[..., np.repeat(np.arange(len(sizes)), sizes)]
        return cls(logits - normalizers, sizes)

    def _largest(self, numbers: jax.Array) -> jax.Array:
        """The option of each choice with the largest number, int32, shape (B, choices)."""
        blocks = [(choices, block.argmax(axis=-1)) for choices, block in by_size(numbers, self.sizes)]
        return per_choice(blocks).astype(jnp.int32)

    def sample(self, noise: jax.Array) -> jax.Array:
        """
        :param noise: of Gumbel's distribution, shape (B, Σ n)
        :return: options, counted from 0, int32, shape (B, choices)
        """
        return self._largest(self.log_policy + noise)

    def mode(self) -> jax.Array:
        """
        :return: the most likely options, counted from 0, int32, shape (B, choices)
        """
        return self._largest(self.log_policy)

    def log_prob(self, actions: jax.Array) -> jax.Array:
        """
        :param actions: options, counted from 0, shape (B, choices)
        :return: log π(a|s), shape (B,)
        """
        columns = actions + np.cumsum((0, *self.sizes[:-1]))
        return jnp.take_along_axis(self.log_policy, columns, axis=-1).sum(axis=-1)

    def entropy(self) -> jax.Array:
        """
        :return: of all choices together, in nats, shape (B,)
        """
        return -(jnp.exp(self.log_policy) * self.log_policy).sum(axis=-1)
