"""
Several devices, each with its share of the environments: how a program is spread over them, what it asks the others.

A program is written for the environments that it is given. What it needs to know of all environments, it asks for here;
where there is one device, each answer is what was given, and nothing is compiled for it. ``jax.vmap`` over :data:`AXIS`
computes on one device what as many devices compute: minibatches that are drawn evenly from as many groups.

Processes that ``jax.distributed`` has joined run the same programs, each with its own environments. Between programs a
process holds its own part alone, as if there were no others: :class:`OnDevices` joins the parts, and takes them apart.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
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
    :param key: randomness, the same on all devices and in all processes
    :return: this device's own, or, outside of such a program, this process's: without it, all would draw the same
        numbers
    """
    if count() > 1:
        return jax.random.fold_in(key, jax.lax.axis_index(AXIS))
    return key if jax.process_count() == 1 else jax.random.fold_in(key, jax.process_index())


def of_first(tree: Tree) -> Tree:
    """
    :param tree: of arrays, which may differ between devices
    :return: those of the first device
    """

    def first(leaf: jax.Array) -> jax.Array:
        numbers = leaf.astype(jnp.int32) if leaf.dtype == bool else leaf
        return total(jnp.where(jax.lax.axis_index(AXIS) == 0, numbers, jnp.zeros_like(numbers))).astype(leaf.dtype)

    return tree if count() == 1 else jax.tree.map(first, tree)


# --- outside ----------------------------------------------------------------------------------------


Layouts = tuple[Any, Any]
"""Of a program's arguments, and of what it returns: trees, or prefixes of them."""


def mesh_of(here: Sequence[jax.Device]) -> Mesh | None:
    """
    :param here: devices of this process, on which a model computes
    :return: what programs are spread over: these, and those in the same places in the other processes; ``None``: one
        device
    :raises ValueError: another process has no device in one of these places
    """
    if jax.process_count() == 1:
        return Mesh(np.array(here), (AXIS,)) if len(here) > 1 else None
    platform = here[0].platform
    places = [jax.local_devices(backend=platform).index(device) for device in here]
    of_all: list[jax.Device] = []
    for process in range(jax.process_count()):
        theirs = jax.local_devices(process, backend=platform)
        if len(theirs) <= max(places):
            raise ValueError(
                f"Process {jax.process_index()} computes on its {platform} device {max(places)}, but process {process} "
                f"has only {len(theirs)}: give each process as many, or choose fewer (device=...)."
            )
        of_all += [theirs[place] for place in places]
    return Mesh(np.array(of_all), (AXIS,))


def put(tree: Tree, layouts: Any, where: Mesh | jax.Device) -> Tree:
    """
    :param tree: of arrays, wherever they are
    :param layouts: a tree, or a prefix of one
    :param where: this process's devices, or one
    :return: the arrays there
    """
    if not isinstance(where, Mesh):
        # what is there already is not handed over again, which takes longer than to look
        leaves, structure = jax.tree.flatten(tree)
        others = [i for i, leaf in enumerate(leaves) if not _is_there(leaf, where)]
        for i, moved in zip(others, jax.device_put([leaves[i] for i in others], where), strict=True):
            leaves[i] = moved
        here: Tree = jax.tree.unflatten(structure, leaves)
        return here
    there: Tree = jax.device_put(tree, jax.tree.map(lambda layout: NamedSharding(where, layout), layouts))
    return there


def _is_there(leaf: Any, where: jax.Device) -> bool:
    # also committed to it: a program is compiled anew for an array that is there by chance
    return isinstance(leaf, jax.Array) and leaf.committed and leaf.device == where


class OnDevices:
    """
    A compiled program of one device's environments, which can be spread over those of several.

    :param program: all that is static in it by name
    :param layouts_of: its arguments → their layouts, and those of what it returns
    :param static_argnames: what is static in it
    :param compiler_options: see ``jax.jit``
    """

    def __init__(
        self,
        program: partial[Any],
        layouts_of: Callable[..., Layouts],
        static_argnames: tuple[str, ...] = (),
        compiler_options: Any = None,
    ) -> None:
        def on_mesh(*arguments: Any, mesh: Mesh | None = None, **static: Any) -> Any:
            if mesh is None:
                return program(*arguments, **static)
            takes, gives = layouts_of(*arguments)
            # unchecked: loops of an environment of the user's own begin with constants, which the check takes for
            # everybody's
            return jax.shard_map(
                partial(program, **static), mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False
            )(*arguments)

        on_mesh.__name__ = program.func.__name__  # by which the compiler calls it
        compiled = jax.jit(on_mesh, static_argnames=("mesh", *static_argnames), compiler_options=compiler_options)
        self.compiled, self.lower, self.layouts_of = compiled, compiled.lower, layouts_of

    def __call__(self, *arguments: Any, mesh: Mesh | None = None, **static: Any) -> Any:
        """
        :param arguments: of the program, on this process's devices
        :param mesh: the devices; ``None``: one
        :param static: what is static in it
        :return: what it returns, on this process's devices
        """
        if mesh is None or not mesh.is_multi_process:
            return self.compiled(*arguments, mesh=mesh, **static)
        takes, gives = self.layouts_of(*arguments)
        of_all = jax.tree.map(partial(_joined, mesh), takes, arguments)
        return jax.tree.map(partial(_apart, mesh), gives, self.compiled(*of_all, mesh=mesh, **static))


everybody_takes_the_first: "OnDevices" = OnDevices(partial(of_first), lambda tree: ((WHOLE,), WHOLE))
"""A program: arrays of each process → those of the first."""


def _joined(mesh: Mesh, layout: PartitionSpec, part: Any) -> Any:
    part = jax.tree.map(jnp.asarray, part)  # also numbers of Python's
    return multihost_utils.host_local_array_to_global_array(part, mesh, layout)


def _apart(mesh: Mesh, layout: PartitionSpec, whole: Any) -> Any:
    return multihost_utils.global_array_to_host_local_array(whole, mesh, layout)


def part_of_process(tree: Any, layouts: Any) -> Any:
    """
    :param tree: of arrays of the environments of all processes
    :param layouts: a tree, or a prefix of one; none :data:`PER_STEP`
    :return: those of this process's environments, and what all have
    """
    n, index = jax.process_count(), jax.process_index()

    def part(layout: PartitionSpec, arrays: Any) -> Any:
        if layout == WHOLE:
            return arrays
        return jax.tree.map(lambda array: array.reshape(n, -1, *array.shape[1:])[index], arrays)

    return tree if n == 1 else jax.tree.map(part, layouts, tree)
