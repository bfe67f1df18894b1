"""The optimiser: one for all parameters, or one for each group of their named parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

Parameters = dict[str, Any]
"""By part: ``encoder``, ``torso``, ``actor``, ``critic``, and, where there is a world model, its parts."""

Number = float | jax.Array


class StepSize(struct.PyTreeNode):
    """
    How far an optimiser may step.

    :param learning_rate: of the optimiser
    :param max_grad_norm: bound of the global norm of the gradients that it takes
    """

    learning_rate: Number
    max_grad_norm: Number


StepSizes = StepSize | dict[str, StepSize]
"""One for all parameters, or one for each group, by its name."""


class Learner(struct.PyTreeNode):
    """
    What a gradient step changes.

    :param parameters: see :data:`Parameters`
    :param optimizer_state: see :class:`Optimizer`
    """

    parameters: Parameters
    optimizer_state: Any


@dataclass(frozen=True)
class Optimizer:
    """
    An optax optimiser after a clip of the gradient's global norm. Learning rate and norm are part of its state, so that
    others compile nothing anew.

    :param make: an optax optimiser that takes ``learning_rate``, such as ``optax.adam``
    :param arguments: its further arguments, as (name, type, value): 1, 1.0 and True are equal, but not to an optimiser
    :param groups: parts that have an optimiser and a norm of their own, as (group, parts). A part may be in several,
        for steps of several kinds, each of which remembers its own gradients. Empty: one for all parts
    :param stepping: the groups that step, while all else stands still; empty: all
    """

    make: Callable[..., optax.GradientTransformation]
    arguments: tuple[tuple[str, type, Any], ...] = ()
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    stepping: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        make: Callable[..., optax.GradientTransformation],
        arguments: Mapping[str, Any],
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> "Optimizer":
        """
        :param make: an optax optimiser that takes ``learning_rate``
        :param arguments: its further arguments, by name
        :param groups: group → its parts of the parameters; ``None``: one optimiser for all
        :return: the optimiser
        """
        typed = tuple((name, type(value), value) for name, value in arguments.items())
        return cls(make, typed, tuple((group, tuple(parts)) for group, parts in (groups or {}).items()))

    def of(self, *stepping: str) -> "Optimizer":
        """
        :param stepping: groups
        :return: this optimiser, with which these step, while all others stand still
        """
        assert set(stepping) <= {group for group, _ in self.groups}, stepping
        return replace(self, stepping=stepping)

    def init(self, parameters: Parameters, step_sizes: StepSizes) -> Any:
        """
        :param parameters: to be learned
        :param step_sizes: the first ones; some optimisers begin with them
        :return: the optimiser's first state
        """
        # dtypes as a checkpoint has them: Python's numbers would be weakly typed, which is another type to the compiler
        if isinstance(step_sizes, StepSize):
            assert not self.groups
            state: Any = self._one(step_sizes).init(parameters)
        else:
            assert set(parameters) <= {part for _, parts in self.groups for part in parts}, "a part would never learn"
            state = {group: self._one(step_sizes[group]).init(_only(parts, parameters)) for group, parts in self.groups}
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), state)

    def step(self, learner: Learner, gradients: Parameters, step_sizes: StepSizes) -> Learner:
        """
        :param learner: parameters and optimiser
        :param gradients: of a loss, like the parameters
        :param step_sizes: as :meth:`init` takes them
        :return: both after one step
        """
        if isinstance(step_sizes, StepSize):
            return self._step_of(learner, gradients, step_sizes)
        parameters, states = learner.parameters, learner.optimizer_state
        for group, parts in self.groups:
            if not self.stepping or group in self.stepping:
                of_group = Learner(_only(parts, parameters), states[group])
                of_group = self._step_of(of_group, _only(parts, gradients), step_sizes[group])
                parameters, states = parameters | of_group.parameters, states | {group: of_group.optimizer_state}
        return Learner(parameters, states)

    def _step_of(self, learner: Learner, gradients: Parameters, step_size: StepSize) -> Learner:
        state = optax.tree_utils.tree_set(
            learner.optimizer_state,
            learning_rate=jnp.float32(step_size.learning_rate),
            max_norm=jnp.float32(step_size.max_grad_norm),
        )
        updates, state = self._one(step_size).update(gradients, state, learner.parameters)
        return Learner(optax.apply_updates(learner.parameters, updates), state)

    def _one(self, step_size: StepSize) -> optax.GradientTransformation:
        arguments = {name: value for name, _, value in self.arguments}
        return optax.chain(
            optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=step_size.max_grad_norm),
            optax.inject_hyperparams(self.make)(learning_rate=step_size.learning_rate, **arguments),
        )


def _only(parts: Sequence[str], parameters: Parameters) -> Parameters:
    """Those of these parts that there are."""
    return {part: parameters[part] for part in parts if part in parameters}
