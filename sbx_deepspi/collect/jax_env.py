"""What an environment inside jit is: two pure functions and two spaces."""

from typing import Any, Protocol, runtime_checkable

import jax

Observation = Any
"""A PyTree of arrays: an array, or a dictionary of arrays."""
State = Any
"""A PyTree of arrays."""


@runtime_checkable
class JaxEnv(Protocol):
    """
    One environment as pure functions, which JAX traces: no Python branch may depend on a state or an action.

    Many copies step at once (``jax.vmap``), start anew by themselves when an episode ends, and may have a time limit
    (:class:`~sbx_deepspi.collect.copies.Copies`): none of this is the environment's own business. An environment
    of which two instances are equal should say so (``__eq__`` and ``__hash__``, as a frozen dataclass does): models
    of equal environments share compiled programs.

    It may also have ``render(state)``, which returns an RGB picture, uint8 of shape (height, width, 3), on the host.

    :param observation_space: a Gymnasium space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
    :param action_space: a Gymnasium space: Box, Discrete, MultiDiscrete or MultiBinary
    """

    observation_space: Any
    action_space: Any

    def reset(self, key: jax.Array) -> tuple[Observation, State]:
        """
        :param key: randomness
        :return: the first observation and state of an episode
        """
        ...

    def step(
        self, key: jax.Array, state: State, action: jax.Array
    ) -> tuple[Observation, State, jax.Array, jax.Array, jax.Array]:
        """
        :param key: randomness
        :param state: of an episode that has not ended
        :param action: in the action space
        :return: s' as it is observed (also where the episode ends: the last observation, not the next episode's first
            one), the new state, the reward, whether s' is terminal, and whether a time limit ends the episode there
        """
        ...


class Named:
    """
    Environments that are what their names and arguments say: two of one class are equal if these are.

    :param name: of the environment
    :param arguments: by name
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.name = name
        self.identity = repr((name, sorted(arguments.items())))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.identity == self.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.identity}"
