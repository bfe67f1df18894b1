"""What learns: first parameters and optimiser as one TrainState, and what equal models share of it."""

from collections.abc import Callable
from functools import lru_cache, partial, wraps
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from sbx_deepspi.networks.agent import Networks
from sbx_deepspi.rollout import Transitions

Made = TypeVar("Made")


def shared(make: Callable[..., Made]) -> Callable[..., Made]:
    """
    Let equal arguments give the very same object, for the last 64. JAX compiles anew for another one, even if it is
    equal: so a second model of the same kind finds the first one's programs.

    :param make: of hashable arguments; for others it makes a new object
    :return: the same function
    """
    made_before = lru_cache(maxsize=64)(make)

    @wraps(make)
    def make_once(*arguments: Any) -> Made:
        try:
            hash(arguments)
        except TypeError:
            return make(*arguments)
        return made_before(*arguments)

    return make_once


@shared
def first_of_equals(networks: Networks) -> Networks:
    """
    :param networks: of a policy
    :return: the first that are equal to them
    """
    return networks


class Optimizer(NamedTuple):
    """
    What takes the steps: an optimiser after a clip of the gradient's global norm.

    :param steps: the same object for every learning rate and norm, which are part of its state instead, so that others
        compile nothing anew
    :param starting_from: learning rate and norm → one whose first state has them
    """

    steps: optax.GradientTransformation
    starting_from: Callable[[Any, Any], optax.GradientTransformation]


def make_optimizer(optimizer_class: Callable[..., optax.GradientTransformation], kwargs: dict[str, Any]) -> Optimizer:
    """
    :param optimizer_class: an optax optimiser that takes ``learning_rate``
    :param kwargs: further arguments
    :return: the optimiser, the same object for the same arguments
    """
    # with their types: 1, 1.0 and True are equal, but not to an optimiser
    return _make_optimizer(optimizer_class, tuple((name, type(value), value) for name, value in kwargs.items()))


@shared
def _make_optimizer(
    optimizer_class: Callable[..., optax.GradientTransformation], kwargs: tuple[tuple[str, type, Any], ...]
) -> Optimizer:
    def starting_from(learning_rate: Any, max_norm: Any) -> optax.GradientTransformation:
        clip = optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=max_norm)
        values = {name: value for name, _, value in kwargs}
        return optax.chain(clip, optax.inject_hyperparams(optimizer_class)(learning_rate=learning_rate, **values))

    return Optimizer(starting_from(1.0, 1.0), starting_from)


@partial(jax.jit, static_argnames=("init", "apply", "optimizer"))
def create_state(
    init: Callable[..., Any],
    apply: Callable[..., Any],
    optimizer: Optimizer,
    key: jax.Array,
    example: Transitions,
    learning_rate: float,
    max_norm: float,
) -> TrainState:
    """
    First parameters and optimiser, in one program: operations one by one would be compiled one by one.

    :param init: of :class:`Networks`
    :param apply: of the same
    :param optimizer: see :func:`make_optimizer`
    :param key: randomness
    :param example: one transition
    :param learning_rate: at the start
    :param max_norm: of the gradient
    :return: what learns
    """
    params = apply(init(key, example, key, method="evaluate"), method="limit_policy")
    opt_state = optimizer.starting_from(learning_rate, max_norm).init(params)
    state = TrainState(step=0, apply_fn=apply, params=params, tx=optimizer.steps, opt_state=opt_state)
    # dtypes as a checkpoint has them: Python's numbers would be weakly typed, which is another type to the compiler
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), state)
