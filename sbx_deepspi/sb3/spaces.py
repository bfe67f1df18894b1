"""What a Gymnasium space means to the networks: shapes, dtypes, and how the world model reads actions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces


def action_dtype(action_space: spaces.Space) -> type[np.generic]:
    """
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: the dtype of sampled actions
    """
    return np.float32 if isinstance(action_space, spaces.Box) else np.int32


def action_shape(action_space: spaces.Space) -> tuple[int, ...]:
    """
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: shape of one action as the policy samples it: Box actions are flat vectors
    """
    shape = action_space.shape or ()
    return (int(np.prod(shape)),) if isinstance(action_space, spaces.Box) else shape


def log_policy_shape(action_space: spaces.Space) -> tuple[int, ...]:
    """
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: shape of log π(·|s) in one state, see :func:`~sbx_deepspi.agent.log_policy`
    """
    match action_space:
        case spaces.Discrete():
            return (int(action_space.n),)
        case spaces.MultiDiscrete():
            return (len(action_space.nvec), int(action_space.nvec.max()))
        case spaces.MultiBinary():
            return (int(np.prod(action_space.shape)), 2)
    return (1,)


def actor_kwargs(action_space: spaces.Space) -> dict[str, Any]:
    """
    How SBX's actor is told of an action space.

    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: arguments of the actor
    """
    hashable = {"split_indices": ()}  # as SBX's own default, an array, is not; these spaces do not use it
    match action_space:
        case spaces.Box():
            return {"action_dim": int(np.prod(action_space.shape)), **hashable}
        case spaces.Discrete():
            return {"action_dim": int(action_space.n), "num_discrete_choices": int(action_space.n), **hashable}
        case spaces.MultiDiscrete():
            return {"action_dim": int(action_space.nvec.sum()), "num_discrete_choices": action_space.nvec}
        case spaces.MultiBinary():
            return {"action_dim": 2 * action_space.n, "num_discrete_choices": np.full(action_space.n, 2)}
    raise NotImplementedError(action_space)


@dataclass(frozen=True)
class Unchanged:
    """Discrete actions as they are."""

    def __call__(self, actions: jax.Array) -> jax.Array:
        return actions


@dataclass(frozen=True)
class Clipped:
    """
    Box actions within their bounds, as the environment sees them.

    :param low: bounds of each of A actions, the bytes of a float32 array: arrays cannot be compared
    :param high: the same
    """

    low: bytes
    high: bytes

    def __call__(self, actions: jax.Array) -> jax.Array:
        return jnp.clip(actions, np.frombuffer(self.low, np.float32), np.frombuffer(self.high, np.float32))


@dataclass(frozen=True)
class OneHot:
    """
    Several choices as one-hot vectors side by side.

    :param sizes: number of options of each choice
    """

    sizes: tuple[int, ...]

    def __call__(self, actions: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.nn.one_hot(actions[:, i], n) for i, n in enumerate(self.sizes)], axis=-1)


@dataclass(frozen=True)
class Floats:
    """Binary actions as numbers."""

    def __call__(self, actions: jax.Array) -> jax.Array:
        return actions.astype(jnp.float32)


def action_encoder(action_space: spaces.Space) -> Callable[[jax.Array], jax.Array]:
    """
    How the world model reads actions: Discrete and MultiBinary ones as they are, Box ones as the environment saw them
    (clipped to their bounds), MultiDiscrete ones as one-hot vectors side by side.

    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: a function of actions of shape (B, ...) to integers (B,) for Discrete, else to floats (B, A)
    """
    match action_space:
        case spaces.Discrete():
            return Unchanged()
        case spaces.Box():
            return Clipped(*(bound.astype(np.float32).tobytes() for bound in (action_space.low, action_space.high)))
        case spaces.MultiDiscrete():
            return OneHot(tuple(int(n) for n in action_space.nvec))
        case spaces.MultiBinary():
            return Floats()
    raise NotImplementedError(action_space)


def action_distance(action_space: spaces.Space) -> float:
    """
    How far a distribution over actions, as vectors, moves for one unit of the actor's outputs, in W₁.

    A softmax changes by ‖Δ logits‖₂ / (2√2) in total variation, and two one-hot vectors are √2 apart; ``m`` choices
    add up to √m times that. A normal of fixed scale moves as its mean does.

    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: Lipschitz constant
    """
    if isinstance(action_space, spaces.Box):
        return 1.0
    return 0.5 * float(np.sqrt(np.prod(action_space.shape or ())))
