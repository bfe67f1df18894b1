"""Whether environments inside jit fit into a device's memory, and what is free again given back to the system."""

import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
COPIES_OF_A_ROLLOUT = 2
"""A rollout is collected step by step, and learned from environment by environment."""


def total_memory(device: jax.Device) -> float:
    """
    :param device: where JAX computes
    :return: bytes that a program may use at most
    """
    if device.platform != "cpu":
        return float((device.memory_stats() or {}).get("bytes_limit", math.inf))
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for path in map(Path, CGROUP_LIMITS):
        if path.exists() and (text := path.read_text().strip()).isdecimal():
            limits.append(float(text))
    return min(limits)


def bytes_of(tree: Any) -> int:
    """
    :param tree: of arrays, or of their shapes and dtypes
    :return: their size in bytes
    """

    def size(leaf: Any) -> int:
        item = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else np.dtype(leaf.dtype).itemsize
        return int(math.prod(leaf.shape) * item)

    return sum(map(size, jax.tree.leaves(tree)))


def give_back() -> None:
    """Have Linux's C library give the system what is free: what was compiled and has gone leaves hundreds of MB."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def check(needed: int, device: jax.Device, what: str) -> None:
    """
    :param needed: bytes
    :param device: where JAX computes
    :param what: needs them
    :raises MemoryError: there are not so many
    """
    total = total_memory(device)
    if needed > total:
        raise MemoryError(
            f"{what} need about {needed / 2**30:.3g} GiB, but {device} has {total / 2**30:.3g} GiB: make n_envs or "
            "n_steps smaller."
        )
