"""What learns: first parameters and optimiser as one TrainState, and what equal models share of it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from sbx_deepspi.networks.backend import shared
from sbx_deepspi.rollout import Transitions


class Optimizer(NamedTuple):
    """
    What takes the steps: an optimiser after a clip of the gradient's global norm.

    :param steps: the same object for every learning rate and norm, which are part of its state instead, so that others
        compile nothing anew
    :param starting_from: learning rate and norm → one whose first state has them
    """

    steps: optax.GradientTransformation
    starting_from: Callable[[Any, Any], optax.GradientTransformation]


@shared
def make_optimizer(
    optimizer_class: Callable[..., optax.GradientTransformation], kwargs: tuple[tuple[str, type, Any], ...]
) -> Optimizer:
    """
    :param optimizer_class: an optax optimiser that takes ``learning_rate``
    :param kwargs: further arguments: names, types (1, 1.0 and True are equal) and values
    :return: the optimiser
    """

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

    :param init: of :class:`~sbx_deepspi.networks.agent.Networks`
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
