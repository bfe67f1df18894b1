"""The optimiser: one for all parameters, or one for each named part of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
"""One for all parameters, or one for each group of parts, by its name."""


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
    :param groups: the group of each part, as (part, group), where groups have an optimiser and a norm of their own;
        empty: one for all parts
    """

    make: Callable[..., optax.GradientTransformation]
    arguments: tuple[tuple[str, type, Any], ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    @classmethod
    def create(
        cls,
        make: Callable[..., optax.GradientTransformation],
        arguments: Mapping[str, Any],
        groups: Mapping[str, str] | None = None,
    ) -> "Optimizer":
        """
        :param make: an optax optimiser that takes ``learning_rate``
        :param arguments: its further arguments, by name
        :param groups: part of the parameters → its group; ``None``: one optimiser for all
        :return: the optimiser
        """
        typed = tuple((name, type(value), value) for name, value in arguments.items())
        return cls(make, typed, tuple((groups or {}).items()))

    def init(self, parameters: Parameters, step_sizes: StepSizes) -> Any:
        """
        :param parameters: to be learned
        :param step_sizes: the first ones; some optimisers begin with them
        :return: the optimiser's first state
        """
        # dtypes as a checkpoint has them: Python's numbers would be weakly typed, which is another type to the compiler
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), self._transformation(step_sizes).init(parameters)
        )

    def step(self, learner: Learner, gradients: Parameters, step_sizes: StepSizes, only: str | None = None) -> Learner:
        """
        :param learner: parameters and optimiser
        :param gradients: of a loss, like the parameters
        :param step_sizes: as :meth:`init` takes them
        :param only: the group that steps, while the others stand still; ``None``: all
        :return: both after one step
        """
        before = self._with(step_sizes, learner.optimizer_state)
        updates, state = self._transformation(step_sizes).update(gradients, before, learner.parameters)
        parameters = optax.apply_updates(learner.parameters, updates)
        if only is not None:
            groups = dict(self.groups)
            parameters = {
                part: parameters[part] if groups[part] == only else old for part, old in learner.parameters.items()
            }
            state = before._replace(inner_states=before.inner_states | {only: state.inner_states[only]})
        return Learner(parameters, state)

    def _transformation(self, step_sizes: StepSizes) -> optax.GradientTransformation:
        if not self.groups:
            assert isinstance(step_sizes, StepSize)
            return self._one(step_sizes)
        assert isinstance(step_sizes, dict)
        groups = dict(self.groups)

        def labels(parameters: Parameters) -> Parameters:
            return {part: groups[part] for part in parameters}

        return optax.partition(
            {group: self._one(step_sizes[group]) for group in dict.fromkeys(groups.values())}, labels
        )

    def _one(self, step_size: StepSize) -> optax.GradientTransformation:
        arguments = {name: value for name, _, value in self.arguments}
        return optax.chain(
            optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=step_size.max_grad_norm),
            optax.inject_hyperparams(self.make)(learning_rate=step_size.learning_rate, **arguments),
        )

    def _with(self, step_sizes: StepSizes, state: Any) -> Any:
        """The optimiser's state with these learning rates and norms."""
        if isinstance(step_sizes, dict):
            inner = {group: self._with(size, state.inner_states[group]) for group, size in step_sizes.items()}
            return state._replace(inner_states=inner)
        return optax.tree_utils.tree_set(
            state,
            learning_rate=jnp.float32(step_sizes.learning_rate),
            max_norm=jnp.float32(step_sizes.max_grad_norm),
        )
