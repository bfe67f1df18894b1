"""What a Gymnasium space means to the networks: shapes, dtypes, and how the world model reads actions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from sbx_deepspi.collect.vec_env import observation_spec
from sbx_deepspi.rollout import Observations


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


def choices_of(action_space: spaces.Space) -> tuple[int, ...]:
    """
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: number of options of each choice that makes an action; empty for Box
    """
    match action_space:
        case spaces.Discrete():
            return (int(action_space.n),)
        case spaces.MultiDiscrete():
            return tuple(int(n) for n in action_space.nvec)
        case spaces.MultiBinary():
            return (2,) * int(np.prod(action_space.shape))
    return ()


def log_policy_shape(action_space: spaces.Space) -> tuple[int, ...]:
    """
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: shape of log π(·|s) in one state, see :func:`~sbx_deepspi.agent.log_policy`
    """
    return (sum(choices_of(action_space)) or 1,)


def to_environment(actions: Any, action_space: spaces.Space) -> Any:
    """
    NumPy's arrays on the host, JAX's inside jit.

    :param actions: as the policy samples them, shape (N, ...)
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :return: the same in the space and dtype of the environment: clipped to its bounds, or counted from its start
    """
    dtype = action_space.dtype
    if isinstance(actions, jax.Array):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    actions = actions.reshape(-1, *(action_space.shape or ()))
    match action_space:
        case spaces.Box():
            actions = actions.clip(action_space.low, action_space.high)
        case spaces.Discrete() | spaces.MultiDiscrete():
            actions = actions + action_space.start.astype(dtype)
    return actions.astype(dtype)


def to_networks(observations: Any, space: spaces.Space) -> Observations:
    """
    Of environments inside jit. On the host, :func:`~sbx_deepspi.collect.vec_env.observations_of` does the same, and
    checks them.

    :param observations: in the space, shapes (N, ...)
    :param space: of one observation
    :return: the same in the dtypes in which the networks take them; choices are counted from 0
    """
    match space:
        case spaces.Dict():
            return {key: to_networks(observations[key], part) for key, part in space.spaces.items()}
        case spaces.Discrete() | spaces.MultiDiscrete():
            observations = observations - space.start.astype(np.int32)
    return observations.astype(observation_spec(space).dtype)


@dataclass(frozen=True)
class InSpace:
    """
    A function of arrays in a space. Equal spaces make equal ones, although spaces have no hash.

    :param function: of arrays and the space
    :param space: the space
    """

    function: Callable[[Any, spaces.Space], Any]
    space: spaces.Space

    def __call__(self, values: Any) -> Any:
        return self.function(values, self.space)

    def __hash__(self) -> int:
        return hash((self.function, str(self.space)))


def one_hot_sizes(observation_space: spaces.Space) -> tuple[int, ...]:
    """
    :param observation_space: no Dict
    :return: number of options of each observed choice; empty where observations are numbers
    """
    match observation_space:
        case spaces.Discrete():
            return (int(observation_space.n),)
        case spaces.MultiDiscrete():
            return tuple(int(n) for n in observation_space.nvec.reshape(-1))
    return ()


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
            return OneHot(choices_of(action_space))
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
