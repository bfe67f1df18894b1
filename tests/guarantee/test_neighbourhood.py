"""The enforced neighbourhood: updates are drawn back into it, and no further."""

import jax
import jax.numpy as jnp
import pytest
from gymnasium import spaces

from sbx_deepspi.guarantee.bound import RatioRange
from sbx_deepspi.guarantee.neighbourhood import draw_back, project
from sbx_deepspi.optimizer import StepSize
from tests.guarantee.models import BOX, DISCRETE, trained
from tests.helpers import collected, params, same, updated


def test_draw_back_by_hand() -> None:
    """One parameter that goes from 1 to 3, inside as long as it is below a limit."""
    old, new = {"x": jnp.array(1.0)}, {"x": jnp.array(3.0)}
    for limit in (2.5, 1.7, 1.01):
        params, fraction = draw_back(old, new, lambda p, limit=limit: p["x"] <= limit)
        assert params["x"] <= limit
        assert float(params["x"]) == pytest.approx(1 + 2 * float(fraction))
        assert 1 + 2 * (float(fraction) * 9 / 8) * (1 + 1e-5) > limit  # an eighth more would be outside
    params, fraction = draw_back(old, new, lambda p: p["x"] <= 3.0)
    assert float(fraction) == 1 and params["x"] == 3.0
    params, fraction = draw_back(old, new, lambda p: p["x"] <= 1.0)
    assert float(fraction) == 0 and params["x"] == 1.0


@pytest.mark.parametrize("action_space", [DISCRETE, pytest.param(BOX, marks=pytest.mark.slow)], ids=str)
def test_projected_updates_stay_inside(action_space: spaces.Space) -> None:
    """Steps that leave the neighbourhood by far, with the clip alone, and not when projected."""
    seen: dict[str, list[RatioRange]] = {"clip": [], "project": []}
    for neighbourhood, ratios in seen.items():
        model = trained(action_space, learning_rate=0.03, neighbourhood=neighbourhood)
        for _ in range(4):
            collected(model)
            model.train()
            assert model.certificate is not None
            ratios.append(model.certificate.importance_ratio)
    assert all(ratio.inf >= 0.9 and ratio.sup <= 1.1 for ratio in seen["project"])
    assert any(ratio.sup > 1.2 for ratio in seen["clip"])
    assert any(ratio.sup > 1.05 for ratio in seen["project"])  # and not by standing still


@pytest.mark.parametrize("action_space", [spaces.MultiDiscrete([2, 3]), DISCRETE], ids=str)
@pytest.mark.slow
def test_no_more_is_drawn_back_than_needed(action_space: spaces.Space) -> None:
    """Of a real update: what is kept is inside, and an eighth more would not be."""
    model = trained(action_space, learning_rate=0.03)
    rollout, h = collected(model)
    networks, behaviour = model.policy.programs.networks, model.policy.learner.parameters
    learner, _ = updated(model, rollout, h.replace(step_sizes=StepSize(0.03, 0.5)))
    draw = jax.jit(lambda *parameters: project(networks, *parameters, rollout, 0.1))
    projected, kept = draw(behaviour, learner.parameters)
    assert 0 < kept < 1
    more = jax.tree.map(lambda old, new: old + 9 / 8 * (new - old), behaviour, projected)
    for drawn, inside in ((projected, True), (more, False)):
        ratio = model.policy.programs.importance_ratios(drawn, rollout)
        assert (ratio.inf >= 0.9 and ratio.sup <= 1.1) == inside


def test_what_is_kept_is_logged() -> None:
    model = trained(learning_rate=0.03, neighbourhood="project")
    assert 0 < model.logger.name_to_value["spi/kept_fraction"] <= 1


def test_what_is_inside_already_stays_as_it_is() -> None:
    runs = [params(trained(learning_rate=1e-5, neighbourhood=n)) for n in ("clip", "project")]
    assert same(*runs)
