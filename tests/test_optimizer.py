"""The optimiser against optax's own: one for all parts, or one for each group of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sbx_deepspi import DeepSPI
from sbx_deepspi.optimizer import Learner, Optimizer, StepSize
from tests.helpers import TINY_RUN

PARAMETERS = {"encoder": {"kernel": np.ones((2, 3))}, "torso": {}, "actor": {"bias": np.zeros(3)}}
PARAMETERS = jax.tree.map(jnp.float32, PARAMETERS)


def gradients(step: int) -> Any:
    """Far above and, in the third step, below the norms."""
    rng = np.random.default_rng(step)
    scale = 1e-3 if step == 2 else 5.0
    return jax.tree.map(lambda leaf: jnp.float32(scale * rng.normal(size=leaf.shape)), PARAMETERS)


def by_optax(parameters: Any, parts: list[str], rates: list[float], norm: float) -> Any:
    """Three steps of Adam after a clip, of these parts alone; a rate for each step."""
    parameters = {part: parameters[part] for part in parts}
    clip, adam = optax.clip_by_global_norm(norm), optax.scale_by_adam(eps=1e-5)
    state = adam.init(parameters)
    for step, rate in enumerate(rates):
        updates, _ = clip.update({part: gradients(step)[part] for part in parts}, clip.init(parameters))
        updates, state = adam.update(updates, state)
        parameters = jax.tree.map(lambda leaf, update: leaf - rate * update, parameters, updates)  # noqa: B023
    return parameters


def close(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), ours, theirs)


def test_one_optimiser_is_optaxs_chain() -> None:
    optimizer = Optimizer.create(optax.adam, {"eps": 1e-5})
    learner = Learner(PARAMETERS, optimizer.init(PARAMETERS, StepSize(9.0, 9.0)))
    step = jax.jit(optimizer.step)
    for i, rate in enumerate((0.1, 0.2, 0.3)):
        learner = step(learner, gradients(i), StepSize(rate, 0.5))
    close(learner.parameters, by_optax(PARAMETERS, [*PARAMETERS], [0.1, 0.2, 0.3], 0.5))
    assert step._cache_size() == 1


def test_each_group_has_a_rate_and_a_norm_of_its_own() -> None:
    """Two optimisers that know nothing of each other; rates change, the state's types do not."""
    groups = {"representation": ["encoder"], "heads": ["torso", "actor", "of no model"]}
    optimizer = Optimizer.create(optax.adam, {"eps": 1e-5}, groups)

    def sizes(factor: float) -> Any:
        return {"representation": StepSize(0.1 * factor, 0.5), "heads": StepSize(0.01 * factor, 3.0)}

    learner = Learner(PARAMETERS, optimizer.init(PARAMETERS, sizes(9.0)))
    step = jax.jit(optimizer.step)
    for i, factor in enumerate((1.0, 2.0, 3.0)):
        learner = step(learner, gradients(i), sizes(factor))
    expected = by_optax(PARAMETERS, ["encoder"], [0.1, 0.2, 0.3], 0.5)
    expected |= by_optax(PARAMETERS, ["torso", "actor"], [0.01, 0.02, 0.03], 3.0)
    close(learner.parameters, expected)
    assert step._cache_size() == 1


def test_groups_of_the_same_parts_share_no_momentum() -> None:
    """A step of either is what it would be if the other, whose last gradients pull elsewhere, had never been made."""
    optimizer = Optimizer.create(
        optax.adam, {"eps": 1e-5}, {"first": ["encoder", "torso", "actor"], "second": ["actor"]}
    )
    sizes = {"first": StepSize(0.1, 0.5), "second": StepSize(0.2, 3.0)}
    learner = Learner(PARAMETERS, optimizer.init(PARAMETERS, sizes))
    learner = optimizer.of("first").step(learner, gradients(0), sizes)
    between = optimizer.of("second").step(learner, gradients(1), sizes)
    after = optimizer.of("first").step(between, gradients(1), sizes)
    close(
        {part: after.parameters[part] for part in ("encoder", "actor")},
        jax.tree.map(
            lambda old, new, moved: moved + (new - old),
            *({part: learner.parameters[part] for part in ("encoder", "actor")} for learner in (learner, between)),
            by_optax(PARAMETERS, ["encoder", "actor"], [0.1, 0.1], 0.5),
        ),
    )
    jax.tree.map(np.testing.assert_array_equal, between.parameters["encoder"], learner.parameters["encoder"])
    still = optimizer.of("second").step(after, gradients(0), sizes | {"second": StepSize(0.0, 3.0)})
    jax.tree.map(np.testing.assert_array_equal, still.parameters, after.parameters)


def test_equal_optimisers_are_equal_and_equal_numbers_of_other_types_are_not() -> None:
    create = Optimizer.create
    assert create(optax.adam, {"eps": 1.0}) == create(optax.adam, {"eps": 1.0})
    assert hash(create(optax.adam, {}, {"a": ["actor"]})) == hash(create(optax.adam, {}, {"a": ["actor"]}))
    assert create(optax.adam, {"eps": 1.0}) != create(optax.adam, {"eps": 1})
    assert create(optax.adam, {}, {"a": ["actor"]}) != create(optax.adam, {})


def test_an_optimisers_first_state_knows_the_learning_rate_and_the_norm() -> None:
    kwargs = dict(optimizer_class=optax.rprop)  # whose step sizes begin with it
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, policy_kwargs=kwargs, max_grad_norm=7)
    get = lambda name: optax.tree_utils.tree_get(model.policy.learner.optimizer_state, name)  # noqa: E731
    assert (get("learning_rate"), get("max_norm")) == (pytest.approx(1e-3), 7)
    assert all((sizes == np.float32(1e-3)).all() for sizes in jax.tree.leaves(get("step_sizes")))
