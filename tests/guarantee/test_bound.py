"""The theorem of docs/guarantee.md on random finite MDPs, where every quantity is exact: no bound is ever broken."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis.extra.numpy import arrays

from sbx_deepspi.guarantee.bound import (
    ModelErrors,
    importance_ratio_range,
    largest_value,
    paper_return_gap,
    return_gap,
    value_bound,
    value_lipschitz,
)

N_ENDS = 2  # terminal states


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    """No violation is small enough to pass for rounding."""
    with jax.enable_x64(True):
        yield


class RealMDP(NamedTuple):
    """S states, of which episodes begin in the first, and two more that end them."""

    transitions: np.ndarray  # (S, A, S + 2)
    rewards: np.ndarray  # (S, A)
    gamma: float


class LatentMDP(NamedTuple):
    """Z latent states on a line, and an encoder onto them. What it knows of ends is how likely it ends in a state."""

    encoder: np.ndarray  # (S + 2,), indices
    positions: np.ndarray  # (Z,)
    transitions: np.ndarray  # (Z, A, Z)
    rewards: np.ndarray  # (Z, A)
    policy: np.ndarray  # (Z, A)
    ends: np.ndarray  # (Z,), Ē; 0 without a termination model


def distribution(weights: np.ndarray) -> np.ndarray:
    return (weights + 1e-9) / (weights + 1e-9).sum(axis=-1, keepdims=True)


@cache
def weights(*shape: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, shape, elements=st.integers(0, 8).map(float), fill=st.nothing())


@st.composite
def real_mdps(draw: st.DrawFn) -> RealMDP:
    n_states, n_actions = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    transitions = draw(weights(n_states, n_actions, n_states + N_ENDS))
    transitions[..., -1] += 0.2  # episodes end
    return RealMDP(
        distribution(transitions),
        draw(weights(n_states, n_actions)) - 4,
        draw(st.sampled_from([0.2, 0.5, 0.9, 0.99, 0.99])),
    )


@st.composite
def latent_mdps(draw: st.DrawFn, real: RealMDP) -> LatentMDP:
    n_states, n_actions = real.rewards.shape
    n_latents = draw(st.integers(1, 3))
    similarity = draw(st.sampled_from([0.0, 1.0, 20.0]))  # the more alike rows are, the smaller K_P
    common = draw(weights(n_latents))
    return LatentMDP(
        encoder=draw(arrays(np.int64, n_states + N_ENDS, elements=st.integers(0, n_latents - 1), fill=st.nothing())),
        positions=np.cumsum(0.5 + draw(weights(n_latents))),
        transitions=distribution(draw(weights(n_latents, n_actions, n_latents)) + similarity * common),
        rewards=draw(weights(n_latents, n_actions)) - 4,
        policy=distribution(draw(weights(n_latents, n_actions)) + draw(st.sampled_from([0.0, 4.0, 200.0]))),
        ends=draw(weights(n_latents)) / 8 * draw(st.sampled_from([0.0, 0.1, *[1.0] * 14])),
    )


def wasserstein(first: np.ndarray, second: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """W₁ on a line: the area between the distribution functions."""
    differences = np.cumsum(first - second, axis=-1)[..., :-1]
    return (np.abs(differences) * np.diff(positions)).sum(axis=-1)


def discounted_values(transitions: np.ndarray, rewards: np.ndarray, gamma: float) -> np.ndarray:
    return np.linalg.solve(np.eye(len(rewards)) - gamma * transitions, rewards)


def under(policy: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Expectation over actions of a table (S, A, ...)."""
    return np.einsum("sa,sa...->s...", policy, table)


class Comparison(NamedTuple):
    """One latent MDP beside the real one, under the states of a behaviour policy."""

    model: ModelErrors
    real_return: float
    latent_return: float
    latent_values: np.ndarray


def compare(real: RealMDP, latent: LatentMDP, behaviour: np.ndarray) -> tuple[Comparison, float]:
    """The exact numbers, and the average episode length of the behaviour policy."""
    n_states = len(real.rewards)
    alive = real.transitions[..., :n_states]
    policy = latent.policy[latent.encoder[:n_states]]
    real_values = discounted_values(under(policy, alive), under(policy, real.rewards), real.gamma)
    latent_rewards, latent_transitions = (
        under(latent.policy, latent.rewards), under(latent.policy, latent.transitions)
    )  # fmt: skip
    latent_values = discounted_values(latent_transitions * (1 - latent.ends), latent_rewards, real.gamma)

    visits = np.linalg.solve(np.eye(n_states) - under(behaviour, alive).T, np.eye(n_states)[0])
    occupancy = (visits / visits.sum())[:, None] * behaviour
    encoded = real.transitions @ np.eye(len(latent.positions))[latent.encoder]
    predicted = latent.transitions[latent.encoder[:n_states]]
    distances = np.abs(latent.positions[:, None] - latent.positions) + np.diag(np.full(len(latent.positions), np.inf))
    pairs = wasserstein(latent_transitions[:, None], latent_transitions[None], latent.positions)
    arrivals = np.einsum("sa,sae->e", occupancy, real.transitions)
    is_end = np.arange(n_states + N_ENDS) >= n_states
    wrong_ends = np.abs(is_end - latent.ends[latent.encoder]) * np.abs(latent_values[latent.encoder])
    steepest_end = (np.abs(latent.ends[:, None] - latent.ends) / distances).max()
    model = ModelErrors(
        reward_error=(occupancy * np.abs(real.rewards - latent.rewards[latent.encoder[:n_states]])).sum(),
        transition_error=(occupancy * wasserstein(encoded, predicted, latent.positions)).sum(),
        end_value=visits.sum() * (arrivals * wrong_ends).sum(),
        reward_lipschitz=(np.abs(latent_rewards[:, None] - latent_rewards) / distances).max(),
        transition_lipschitz=(pairs / distances).max(),
        end_lipschitz=steepest_end * float(largest_value(np.abs(latent.rewards).max(), real.gamma)),
    )
    latent_return = latent_values[latent.encoder[0]]
    return Comparison(model, real_values[0], latent_return, latent_values), visits.sum()


Gap = Callable[[ModelErrors, float, float, float], object]


def check_bounds(real: RealMDP, new: LatentMDP, old: LatentMDP, gap: Gap = return_gap) -> set[str]:
    """Both bounds, where their conditions hold; and what is not trivial about the case."""
    n_states = len(real.rewards)
    policy, behaviour = (latent.policy[latent.encoder[:n_states]] for latent in (new, old))
    ratio_sup = (policy / behaviour).max()
    updated, length = compare(real, new, behaviour)
    baseline, _ = compare(real, old, behaviour)
    gamma = real.gamma
    assume(ratio_sup < 0.999 / gamma)
    assume(max(c.model.transition_lipschitz for c in (updated, baseline)) < 0.999 / gamma)

    bound = float(gap(updated.model, length, ratio_sup, gamma))  # type: ignore[arg-type]
    baseline_bound = float(gap(baseline.model, length, 1.0, gamma))  # type: ignore[arg-type]
    rounding = 1e-9 * (1 + abs(updated.real_return) + abs(updated.latent_return))
    assert abs(updated.real_return - updated.latent_return) <= bound + rounding
    improvement = updated.real_return - baseline.real_return
    latent_improvement = updated.latent_return - baseline.latent_return
    assert improvement >= latent_improvement - (bound + baseline_bound) - 2 * rounding
    traits = {
        "policies differ": ratio_sup > 1.05,
        "states are merged": len(set(new.encoder[:n_states])) < n_states,
        "transitions are wrong": updated.model.transition_error > 0.1,
        "the model is wrong about ends": updated.model.end_value > 0.1,
        "the latent MDP ends": new.ends.any() and old.ends.any(),
        "encoders differ": (new.encoder != old.encoder).any(),
        "the future counts much": gamma > 0.9 and ratio_sup > 1.0005,
    }
    return {trait for trait, there in traits.items() if there}


@st.composite
def updates(draw: st.DrawFn) -> tuple[RealMDP, LatentMDP, LatentMDP]:
    real = draw(real_mdps())
    old = draw(latent_mdps(real))
    new = draw(latent_mdps(real))
    if draw(st.booleans()):  # the paper's case: one latent model, two policies on it
        step = draw(st.sampled_from([0.003, 0.1, 1.0]))
        there = new.policy[np.arange(len(old.policy)) % len(new.policy)]
        new = old._replace(policy=(1 - step) * old.policy + step * there)
    return real, new, old


CHECKS = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]


def test_no_bound_is_broken() -> None:
    traits: Counter[str] = Counter()

    @settings(max_examples=1400, deadline=None, suppress_health_check=CHECKS)
    @given(updates())
    def check(update: tuple[RealMDP, LatentMDP, LatentMDP]) -> None:
        traits.update(["conditions hold", *check_bounds(*update)])

    check()
    assert traits["conditions hold"] >= 1400
    assert traits["the latent MDP ends"] >= 1000
    # at γ = 0.99 few policies are close enough
    assert traits.pop("the future counts much") >= 10
    assert len(traits) == 7 and min(traits.values()) >= 50, traits


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=CHECKS)
@given(updates())
def test_the_papers_bound_holds_where_the_model_knows_the_ends_and_is_never_below_ours(
    update: tuple[RealMDP, LatentMDP, LatentMDP],
) -> None:
    """A latent state of its own for ends, absorbing and without reward, is how a latent model knows them."""

    def with_end(latent: LatentMDP) -> LatentMDP:
        n_latents, n_actions = latent.rewards.shape
        transitions = np.zeros((n_latents + 1, n_actions, n_latents + 1))
        transitions[:-1, :, :-1] = 0.5 * latent.transitions
        transitions[:-1, :, -1] = 0.5
        transitions[-1, :, -1] = 1
        encoder = latent.encoder.copy()
        encoder[-N_ENDS:] = n_latents
        return latent._replace(
            encoder=encoder,
            positions=np.append(latent.positions, latent.positions[-1] + 20),
            transitions=transitions,
            rewards=np.vstack([latent.rewards, np.zeros(n_actions)]),
            policy=np.vstack([latent.policy, latent.policy[:1]]),
            ends=np.zeros(n_latents + 1),
        )

    real, new, old = update
    check_bounds(real, with_end(new), with_end(old), gap=paper_return_gap)
    behaviour = old.policy[old.encoder[: len(real.rewards)]]
    updated, length = compare(real, with_end(new), behaviour)
    assert updated.model.end_value == 0
    for ratio_sup in (1.0, 0.5 + 0.5 / real.gamma):
        ours = float(return_gap(updated.model, length, ratio_sup, real.gamma))
        assert ours <= float(paper_return_gap(updated.model, length, ratio_sup, real.gamma)) * (1 + 1e-5)


WRONG: dict[str, Gap] = {
    "episodes half as long": lambda m, length, c, gamma: return_gap(m, length / 2, c, gamma),
    "no importance ratio": lambda m, length, c, gamma: return_gap(m, length, 1.0, gamma),
    "no reward error": lambda m, length, c, gamma: return_gap(m.replace(reward_error=0.0), length, c, gamma),
    "no transition error": lambda m, length, c, gamma: return_gap(m.replace(transition_error=0.0), length, c, gamma),
    "ends forgotten": lambda m, length, c, gamma: return_gap(m.replace(end_value=0.0), length, c, gamma),
    "ends are not steep": lambda m, length, c, gamma: return_gap(m.replace(end_lipschitz=0.0), length, c, gamma),
    "K_V without contraction": lambda m, length, c, gamma: return_gap(
        m.replace(transition_lipschitz=0.0), length, c, gamma
    ),
}


@pytest.mark.parametrize("wrong", ["episodes half as long", "no reward error", "ends forgotten"])
def test_a_wrong_constant_is_found_at_random(wrong: str) -> None:
    @settings(
        max_examples=5000, deadline=None, suppress_health_check=CHECKS, database=None, derandomize=True,
        phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(updates())
    def search(update: tuple[RealMDP, LatentMDP, LatentMDP]) -> None:
        check_bounds(*update, gap=WRONG[wrong])

    with pytest.raises(AssertionError):
        search()


def one_step(
    encoder: list[int],
    positions: list[float],
    successors: list[int],
    rewards: list[list[float]],
    gamma: float,
    policy: list[float],
    behaviour: list[float],
    real_rewards: list[float],
    ends: list[float],
) -> tuple[Comparison, float, float]:
    """Episodes of one step, with a latent model that moves from state to state for certain."""
    n_actions = len(policy)
    real = RealMDP(np.tile([0.0, 0.0, 1.0], (1, n_actions, 1)), np.array([real_rewards]), gamma)
    transitions = np.repeat(np.eye(len(positions))[successors][:, None], n_actions, axis=1)
    latent = LatentMDP(
        np.array([encoder[0], encoder[1], encoder[1]]), np.array(positions), transitions, np.array(rewards),
        np.tile(policy, (len(positions), 1)), np.array(ends),
    )  # fmt: skip
    comparison, length = compare(real, latent, np.array([behaviour]))
    return comparison, length, float((np.array(policy) / behaviour).max())


# cases in which the bound is met exactly, or up to γ: a smaller one would be wrong
TIGHT = {
    # V̄ of the predicted state is K_V away from that of the state where the episode ends, which is 0
    "transition": (dict(encoder=[2, 0], positions=[0.0, 1.0, 2.0], successors=[0, 1, 1], rewards=[[0.0], [1.0], [0.0]],
                        gamma=0.9, policy=[1.0], behaviour=[1.0], real_rewards=[0.0], ends=[0.0, 0.0, 0.0]), 1.0),
    # the reward is wrong for the one action that π takes three times as often as π_b
    "reward": (dict(encoder=[0, 1], positions=[0.0, 50.0], successors=[1, 1], rewards=[[0.0, 0.0], [0.0, 0.0]],
                    gamma=0.2, policy=[0.25, 0.75], behaviour=[0.75, 0.25], real_rewards=[0.0, 1.0],
                    ends=[0.0, 0.0]), 1.0),
    # the latent model goes on after the end
    "end": (dict(encoder=[0, 1], positions=[0.0, 1.0], successors=[1, 1], rewards=[[0.0], [1.0]],
                 gamma=0.9, policy=[1.0], behaviour=[1.0], real_rewards=[0.0], ends=[0.0, 0.0]), 0.9),
    # it knows the end for certain, but predicts a state beside it from which it goes on
    "end beside": (dict(encoder=[0, 1], positions=[0.0, 1.0, 2.0], successors=[2, 2, 2], rewards=[[1.0], [1.0], [1.0]],
                        gamma=0.9, policy=[1.0], behaviour=[1.0], real_rewards=[1.0], ends=[0.0, 1.0, 0.0]), 1.0),
    # it is half sure of the end
    "half an end": (dict(encoder=[0, 1], positions=[0.0, 1.0], successors=[1, 1], rewards=[[0.0], [1.0]],
                         gamma=0.9, policy=[1.0], behaviour=[1.0], real_rewards=[0.0], ends=[0.5, 0.5]), 0.9),
}  # fmt: skip


def tightness(case: str, gap: Gap) -> float:
    """The true gap as a part of its bound."""
    arguments, _ = TIGHT[case]
    comparison, length, ratio_sup = one_step(**arguments)  # type: ignore[arg-type]
    true_gap = abs(comparison.real_return - comparison.latent_return)
    return true_gap / max(float(gap(comparison.model, length, ratio_sup, arguments["gamma"])), 1e-9)  # type: ignore


@pytest.mark.parametrize("case", TIGHT)
def test_the_bound_is_tight(case: str) -> None:
    assert tightness(case, return_gap) == pytest.approx(TIGHT[case][1], rel=1e-4)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_constant_breaks_a_tight_case(wrong: str) -> None:
    assert max(tightness(case, WRONG[wrong]) for case in TIGHT) > 1.05


def test_a_false_alarm_costs_the_value_that_it_takes_away() -> None:
    """Two steps, the second with reward 1, which the latent model leaves out: it takes the state between for an end."""
    real = RealMDP(np.array([[[0.0, 1, 0, 0]], [[0, 0, 0, 1]]]), np.array([[0.0], [1.0]]), 0.9)
    latent = LatentMDP(
        encoder=np.array([0, 1, 2, 2]), positions=np.arange(3.0), transitions=np.eye(3)[[1, 2, 2]][:, None],
        rewards=np.array([[0.0], [1.0], [0.0]]), policy=np.ones((3, 1)), ends=np.array([0.0, 1.0, 0.0]),
    )  # fmt: skip
    comparison, length = compare(real, latent, np.ones((2, 1)))
    assert (length, comparison.real_return, comparison.latent_return) == (2, 0.9, 0)
    assert comparison.model.end_value == pytest.approx(1)
    assert comparison.model.reward_error == comparison.model.transition_error == 0
    assert float(return_gap(comparison.model, length, 1.0, 0.9)) == pytest.approx(1)


def test_gap_by_hand() -> None:
    model = ModelErrors(0.1, 0.2, 3.0, reward_lipschitz=1.0, transition_lipschitz=0.5)
    assert float(value_lipschitz(model, 0.9)) == pytest.approx(1 / 0.55)
    assert float(value_lipschitz(model.replace(end_lipschitz=0.7), 0.9)) == pytest.approx(1.7 / 0.55)
    assert float(largest_value(2.0, 0.9)) == pytest.approx(20)
    assert float(largest_value(2.0, 1.0)) == np.inf
    error = 0.1 + 0.9 / 0.55 * 0.2
    assert float(return_gap(model, 10.0, 1.1, 0.9)) == pytest.approx(1.1 * 10 * error + 3)
    assert float(paper_return_gap(model, 10.0, 1.1, 0.9)) == pytest.approx(10 * error / (1 / 1.1 - 0.9))
    for gap in (return_gap, paper_return_gap):
        assert float(gap(model, 10.0, 1.2, 0.9)) == np.inf  # C ≥ 1/γ
        assert float(gap(model.replace(transition_lipschitz=1.2), 10.0, 1.0, 0.9)) == np.inf  # K_P ≥ 1/γ
        assert float(gap(model, np.inf, 1.0, 0.9)) == np.inf
        unbounded = model.replace(reward_lipschitz=np.inf, transition_lipschitz=np.inf)
        assert float(gap(unbounded, 10.0, 1.0, 0.9)) == np.inf
        assert np.isfinite(float(gap(unbounded, 10.0, 1.0, 0.0)))  # what follows counts for nothing


def test_importance_ratio_range_by_numpy() -> None:
    random = np.random.default_rng(0)
    old, new = (np.log(random.dirichlet(np.ones(3), 5)) for _ in range(2))
    ratio = importance_ratio_range(jnp.array(new), jnp.array(old))
    assert float(ratio.sup) == pytest.approx(np.exp(new - old).max(), rel=1e-5)
    assert float(ratio.inf) == pytest.approx(np.exp(new - old).min(), rel=1e-5)
    # two choices at once: every pair of actions, one by one
    old, new = (np.log(random.dirichlet(np.ones(3), (4, 2))) for _ in range(2))
    pairs = [
        np.exp(new[s, 0, a] + new[s, 1, b] - old[s, 0, a] - old[s, 1, b])
        for s, a, b in itertools.product(range(4), range(3), range(3))
    ]
    ratio = importance_ratio_range(jnp.array(new).reshape(4, 6), jnp.array(old).reshape(4, 6), (3, 3))
    assert float(ratio.sup) == pytest.approx(max(pairs), rel=1e-5)
    assert float(ratio.inf) == pytest.approx(min(pairs), rel=1e-5)


def test_end_value_bounds_the_latent_value() -> None:
    """On a latent MDP of three states on a line, whose values are exact."""
    random = np.random.default_rng(0)
    for gamma, ends in itertools.product((0.0, 0.5, 0.9), (np.zeros(3), np.array([0.0, 0.4, 1.0]))):
        positions, rewards = np.array([0.0, 1.0, 3.0]), random.normal(size=3)
        transitions = 0.7 * random.dirichlet(np.ones(3)) + 0.3 * random.dirichlet(np.ones(3), 3)
        values = np.linalg.solve(np.eye(3) - gamma * transitions * (1 - ends), rewards)
        distances = np.abs(positions[:, None] - positions)
        k_reward = (np.abs(rewards[:, None] - rewards) / (distances + np.diag([np.inf] * 3))).max()
        cumulative = np.cumsum(transitions[:, None] - transitions[None], axis=-1)[..., :-1]
        apart = (np.abs(cumulative) * np.diff(positions)).sum(axis=-1)
        k_transition = (apart / (distances + np.diag([np.inf] * 3))).max()
        v_max = float(largest_value(abs(rewards).max(), gamma)) if ends.any() else np.inf
        k_end = (
            v_max * (np.abs(ends[:, None] - ends) / (distances + np.diag([np.inf] * 3))).max() if ends.any() else 0.0
        )
        model = ModelErrors(0.0, 0.0, 0.0, k_reward, k_transition, k_end)
        moved = (transitions * distances).sum(axis=1)
        for state in range(3):
            bound = value_bound(model, abs(rewards[state]), moved[state], gamma, ends[state])
            assert abs(values[state]) <= float(bound) * (1 + 1e-5)
            assert gamma > 0 or float(bound) == pytest.approx(abs(values[state]))
    assert value_bound(model, 1.0, 1.0, 1.0) == np.inf
    assert value_bound(model.replace(reward_lipschitz=0.0, end_lipschitz=0.0), 1.0, 1.0, 1.0, 0.5) == 2
