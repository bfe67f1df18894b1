"""
Successive steps that stay together, so that φ(s') is encoded once, and minibatches that go through the networks in
parts. Both save time and change no number but by rounding: the loss sees :func:`encode_pairs`, the gradient
:func:`mean_over_parts`, and nothing else of it.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from sbx_deepspi.ops import permutation
from sbx_deepspi.rollout import Observations, Transitions

LONGEST_SEGMENT = 8

Tree = TypeVar("Tree")


def segment_length(encodes_images: bool, n_steps: int, batch_size: int) -> int:
    """
    How many successive steps of an environment stay together when minibatches are drawn, so that φ(s') is not computed
    where it is the next step's φ(s). Encoders of vectors are small: their transitions are drawn one by one.

    :param encodes_images: whether the encoder is convolutional
    :param n_steps: of each environment in a rollout
    :param batch_size: of a minibatch
    :return: number of steps; divides ``n_steps`` and ``batch_size``
    """
    if not encodes_images:
        return 1
    common = math.gcd(n_steps, batch_size)
    # never 2: half of its s' begin the next step, and the room kept for ends of episodes takes most of that away
    lengths: list[int] = [1, *range(3, LONGEST_SEGMENT + 1)]
    return max(length for length in lengths if common % length == 0)


def encode_pairs(encode: Callable[[Observations], jax.Array], transitions: Transitions) -> tuple[jax.Array, jax.Array]:
    """
    :param encode: φ, observations of shape (B, ...) → latents of shape (B, ...)
    :param transitions: B transitions; if in segments, such that :func:`share_observations` fits them
    :return: φ(s) and φ(s'), each of shape (B, ...)
    """
    if transitions.segment_length == 1:
        first, second = transitions.observations, transitions.next_observations
        if isinstance(first, dict) or first.ndim > 1:
            return encode(first), encode(second)
        # both at once: what the numbers stand for may be encoded once for all of them
        latents = encode(jnp.concatenate([first, second]))
        return latents[: len(first)], latents[len(first) :]
    shared = share_observations(transitions)
    latents = encode(shared.observations)
    return latents[: len(shared.following)], latents[shared.following]


def mean_over_parts(
    function: Callable[[Transitions, jax.Array], Tree], minibatch: Transitions, key: jax.Array, microbatch_size: int
) -> Tree:
    """
    The mean of what a function makes of equal parts of a minibatch: of its gradient and metrics, which are means
    themselves. Parts keep what the networks compute within the processor's cache.

    :param function: transitions and a key → a tree of arrays
    :param minibatch: B transitions
    :param key: randomness, another one for each part
    :param microbatch_size: the most transitions in a part
    :return: the mean tree
    """
    parts = microbatches(minibatch, microbatch_size)
    n_parts = len(parts.rewards)
    keys = jax.random.split(key, n_parts)

    def of_part(transitions: Transitions, key: jax.Array) -> Tree:
        if transitions.segment_length == 1:
            return function(transitions, key)
        # where more episodes end than there is room for, every observation is encoded
        made: Tree = jax.lax.cond(
            share_observations(transitions).fits,
            lambda: function(transitions, key),
            lambda: function(transitions.replace(segment_length=1), key),
        )
        return made

    if n_parts == 1:
        return of_part(jax.tree.map(lambda array: array[0], parts), keys[0])

    def add_part(total: Tree, part: tuple[Transitions, jax.Array]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_part(*part)), None

    shapes = jax.eval_shape(of_part, *jax.tree.map(lambda array: array[0], (parts, keys)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add_part, zeros, (parts, keys))
    mean: Tree = jax.tree.map(lambda leaf: leaf / n_parts, total)
    return mean


class SharedObservations(struct.PyTreeNode):
    """
    The observations of ``B`` transitions in segments, each once where the next transition begins with it.

    :param observations: every s, then each s' with which no other transition begins; shape (B + ⌈1.5 B / length⌉, ...)
    :param following: which of them is s', integers of shape (B,)
    :param fits: whether there was room for all: for the end of one episode within every second segment, on average.
        With segments of 8 there mostly is where episodes have more than some twenty steps
    """

    observations: Observations
    following: jax.Array
    fits: jax.Array


def share_observations(transitions: Transitions) -> SharedObservations:
    """
    Leave out each s' that is the s of the next transition: so it is within a segment, unless the episode ended.

    :param transitions: B transitions in segments
    :return: what is left, to be encoded
    """
    size, length = len(transitions.rewards), transitions.segment_length
    is_own = transitions.dones | (jnp.arange(size) % length == length - 1)
    n_own = -(-3 * size // (2 * length))
    (own,) = jnp.nonzero(is_own, size=n_own, fill_value=0)
    return SharedObservations(
        observations=jax.tree.map(
            lambda first, second: jnp.concatenate([first, second[own]]),
            transitions.observations,
            transitions.next_observations,
        ),
        following=jnp.where(is_own, size - 1 + jnp.cumsum(is_own), 1 + jnp.arange(size)),
        fits=is_own.sum() <= n_own,
    )


def n_microbatches(size: int, segment_length: int, microbatch_size: int) -> int:
    """
    :param size: transitions in a batch
    :param segment_length: of its segments, which stay whole
    :param microbatch_size: the most transitions in a part; a segment is never split
    :return: number of equal parts, as few as the sizes allow
    """
    n_segments, most = size // segment_length, max(microbatch_size // segment_length, 1)
    return next(n for n in range(1, n_segments + 1) if n_segments % n == 0 and n_segments // n <= most)


def microbatches(transitions: Transitions, microbatch_size: int) -> Transitions:
    """
    Split a batch into equal parts of whole segments, as few as the size allows.

    :param transitions: B transitions
    :param microbatch_size: the most in a part; a segment is never split
    :return: the same, each array of shape (parts, B / parts, ...)
    """
    n_parts = n_microbatches(len(transitions.rewards), transitions.segment_length, microbatch_size)
    parts: Transitions = jax.tree.map(lambda array: array.reshape(n_parts, -1, *array.shape[1:]), transitions)
    return parts


def shuffled(key: jax.Array, n_transitions: int, segment_length: int) -> jax.Array:
    """
    :param key: randomness
    :param n_transitions: in whole segments
    :param segment_length: of the segments, which stay whole
    :return: a random order of the transitions, integers of shape (n_transitions,)
    """
    segments = permutation(key, n_transitions // segment_length)
    return (segments[:, None] * segment_length + jnp.arange(segment_length)).reshape(-1)


def spread_ends(indices: jax.Array, dones: jax.Array, segment_length: int, microbatch_size: int) -> jax.Array:
    """
    Deal out a minibatch's segments like cards, those within which most episodes end first: no part gets more ends than
    another by more than one segment has, so that :func:`share_observations` needs little room for them.

    :param indices: of a minibatch's transitions, in segments, shape (B,)
    :param dones: whether the episode ended, of all transitions
    :param segment_length: of the segments
    :param microbatch_size: as :func:`microbatches` takes it, which will split the minibatch
    :return: the same indices, part by part, shape (B,)
    """
    if segment_length == 1:
        return indices
    n_parts = n_microbatches(len(indices), segment_length, microbatch_size)
    segments = indices.reshape(-1, segment_length)
    n_ends = dones[segments[:, :-1]].sum(axis=1)
    dealt = jnp.argsort(-n_ends).reshape(-1, n_parts).T
    return segments[dealt].reshape(-1)
