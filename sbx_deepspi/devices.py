"""
Several devices, each with its share of the environments: how a program is spread over them, what it asks the others.

A program is written for the environments that it is given. What it needs to know of all environments, it asks for here;
where there is one device, each answer is what was given, and nothing is compiled for it. ``jax.vmap`` over :data:`AXIS`
computes on one device what as many devices compute: minibatches that are drawn evenly from as many groups.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

WHOLE = PartitionSpec()
"""Layout of arrays that every device has."""
PER_ENV = PartitionSpec(AXIS)
"""Layout of arrays of shape (N, ...): each device has those of its environments."""
PER_STEP = PartitionSpec(None, AXIS)
"""Layout of arrays of shape (T, N, ...): each device has those of its environments."""

Tree = TypeVar("Tree")


# --- inside a program -------------------------------------------------------------------------------


def count() -> int:
    """
    :return: number of devices that run the program, each with its own environments
    """
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:
        return 1


def mean(tree: Tree) -> Tree:
    """
    :param tree: of arrays, such as gradients, or means over equally many transitions of each device
    :return: their mean over the devices
    """
    return tree if count() == 1 else jax.lax.pmean(tree, AXIS)


def total(tree: Tree) -> Tree:
    """
    :param tree: of arrays
    :return: their sum over the devices
    """
    return tree if count() == 1 else jax.lax.psum(tree, AXIS)


def largest(tree: Tree) -> Tree:
    """
    :param tree: of arrays
    :return: the largest of their numbers over the devices
    """
    return tree if count() == 1 else jax.lax.pmax(tree, AXIS)


def smallest(tree: Tree) -> Tree:
    """
    :param tree: of arrays
    :return: the smallest of their numbers over the devices
    """
    return tree if count() == 1 else jax.lax.pmin(tree, AXIS)


def variance(numbers: jax.Array, axis: int = 0) -> jax.Array:
    """
    :param numbers: as many on each device
    :param axis: over which, and over all devices
    :return: their variance, of one axis less
    """
    if count() == 1:
        return numbers.var(axis=axis)
    deviations = numbers - mean(numbers.mean(axis=axis, keepdims=True))
    return mean((deviations**2).mean(axis=axis))


def together(array: Any) -> Any:
    """
    :param array: shape (T, N, ...), N of this device's environments
    :return: of the environments of all devices, in their order
    """
    return array if count() == 1 else jax.lax.all_gather(array, AXIS, axis=1, tiled=True)


def own(key: jax.Array) -> jax.Array:
    """
    :param key: randomness, the same on all devices
    :return: this device's own: without it, all would draw the same numbers
    """
    return key if count() == 1 else jax.random.fold_in(key, jax.lax.axis_index(AXIS))


# --- outside ----------------------------------------------------------------------------------------


def mesh_of(devices: Sequence[jax.Device]) -> Mesh | None:
    """
    :param devices: on which a model computes
    :return: what programs are spread over; ``None``: one device
    """
    return Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None


def spread(program: Callable[..., Tree], mesh: Mesh | None, takes: Any, gives: Any) -> Callable[..., Tree]:
    """
    :param program: of one device's environments
    :param mesh: the devices; ``None``: one
    :param takes: layouts of its arguments: a tree, or a prefix of one
    :param gives: layouts of what it returns
    :return: the program of all environments, each device with its share
    """
    if mesh is None:
        return program
    # unchecked: loops of an environment of the user's own begin with constants, which the check takes for everybody's
    return jax.shard_map(program, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)


def put(tree: Tree, layouts: Any, where: Mesh | jax.Device) -> Tree:
    """
    :param tree: of arrays, wherever they are
    :param layouts: a tree, or a prefix of one
    :param where: the devices, or one
    :return: the arrays there
    """
    if not isinstance(where, Mesh):
        here: Tree = jax.device_put(tree, where)
        return here
    there: Tree = jax.device_put(tree, jax.tree.map(lambda layout: NamedSharding(where, layout), layouts))
    return there
