"""Certificates of real updates, the enforced neighbourhood, the callback, and the layers that the bound relies on."""

import csv
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepMDP, DeepSPI, SPICertificateCallback, checks
from sbx_deepspi import certificate as certificates
from sbx_deepspi.certificate import constrain
from sbx_deepspi.neighbourhood import draw_back, project
from sbx_deepspi.networks import lipschitz
from sbx_deepspi.networks.agent import Evaluation
from sbx_deepspi.networks.lipschitz import lipschitz_bound
from sbx_deepspi.objective import CATEGORICAL_COSTS
from sbx_deepspi.sb3.spaces import action_distance
from sbx_deepspi.rollout import Rollout, to_transitions
from sbx_deepspi.update import loss, policy_loss, update
from tests.helpers import IMAGE, TINY_RUN, VECTOR, ToyEnv, collected, params, same

DISCRETE = spaces.Discrete(3)
CERTIFIABLE: dict[str, Any] = dict(
    gamma=0.9,
    policy_kwargs=dict(transition_density="deterministic", lipschitz_constant=0.8, lipschitz_policy=0.05),
)


CNN: dict[str, Any] = dict(
    transition_density="normal",
    lipschitz_constant=0.8,
    lipschitz_policy=0.05,
    features_extractor_kwargs=dict(features_dim=8),
)


def test_importance_ratio_range_by_numpy() -> None:
    random = np.random.default_rng(0)
    old, new = (np.log(random.dirichlet(np.ones(3), 5)) for _ in range(2))
    ratio = certificates.importance_ratio_range(jnp.array(new), jnp.array(old))
    assert float(ratio.sup) == pytest.approx(np.exp(new - old).max(), rel=1e-5)
    assert float(ratio.inf) == pytest.approx(np.exp(new - old).min(), rel=1e-5)
    # two choices at once: every pair of actions, one by one
    old, new = (np.log(random.dirichlet(np.ones(3), (4, 2))) for _ in range(2))
    pairs = [
        np.exp(new[s, 0, a] + new[s, 1, b] - old[s, 0, a] - old[s, 1, b])
        for s, a, b in itertools.product(range(4), range(3), range(3))
    ]
    ratio = certificates.importance_ratio_range(jnp.array(new), jnp.array(old))
    assert float(ratio.sup) == pytest.approx(max(pairs), rel=1e-5)
    assert float(ratio.inf) == pytest.approx(min(pairs), rel=1e-5)


def ask(apply: Any, *arguments: Any, method: Any) -> Any:
    """Networks, as one program: JAX compiles an operation on its own nearly as long."""
    return jax.jit(apply, static_argnames="method")(*arguments, method=method)


def trained(action_space: spaces.Space = DISCRETE, policy: str = "MlpPolicy", **kwargs: Any) -> DeepSPI:
    """A model after two updates, the second of which is in its certificate."""
    observation_space = VECTOR if policy == "MlpPolicy" else IMAGE
    env = DummyVecEnv([lambda: ToyEnv(observation_space, action_space, length=4)] * 2)
    return DeepSPI(policy, env, **{**TINY_RUN, **kwargs}).learn(32)


@pytest.mark.parametrize(
    "action_space",
    [DISCRETE, spaces.MultiDiscrete([2, 4]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2,), np.float32)],
    ids=lambda space: type(space).__name__,
)
def test_ratios_of_an_update(action_space: spaces.Space) -> None:
    """Against probabilities of every joint action, or of the sampled ones for Box, under both policies."""
    model = trained(action_space)
    rollout, _ = collected(model)
    before = model.policy.state
    model.train()
    observations = rollout.observations.reshape(-1, 3)
    if isinstance(action_space, spaces.Box):
        every_action = [rollout.actions.reshape(-1, 2)]
    else:
        sizes = {"Discrete": [3], "MultiDiscrete": [2, 4], "MultiBinary": [2, 2]}[type(action_space).__name__]
        joint = np.array(list(itertools.product(*map(range, sizes))))
        every_action = [np.tile(action if len(sizes) > 1 else action[0], (16, 1)) for action in joint]
        every_action = [actions if len(sizes) > 1 else actions[:, 0] for actions in every_action]
    log_prob = jax.jit(lambda state, actions: state.apply_fn(state.params, observations)[0].log_prob(actions))
    ratios = np.exp([log_prob(model.policy.state, a) - log_prob(before, a) for a in every_action])
    assert model.certificate is not None
    assert float(model.certificate.importance_ratio.sup) == pytest.approx(ratios.max(), rel=1e-4)
    assert float(model.certificate.importance_ratio.inf) == pytest.approx(ratios.min(), rel=1e-4)
    assert ratios.max() > 1 > ratios.min()
    names = certificates.numbers(model.certificate, model.all_actions)
    assert ("importance_ratio_sup_sampled" in names) == isinstance(action_space, spaces.Box)


def test_errors_and_episode_length_of_an_update() -> None:
    """A rollout that is small enough to be its own sample: the errors are means over all of it."""
    model = trained(**CERTIFIABLE)
    rollout, _ = collected(model)
    model.train()
    state = model.policy.state
    latents, next_latents = (
        np.asarray(ask(state.apply_fn, state.params, o.reshape(-1, 3), method="encode"))
        for o in (rollout.observations, rollout.next_observations)
    )
    constrained = ask(state.apply_fn, state.params, method="constrain")
    actions = rollout.actions.reshape(-1)
    predict = {
        name: ask(
            state.apply_fn, constrained, latents, actions, method=lambda n, z, a, name=name: getattr(n, name)(z, a)
        )
        for name in ("reward_model", "transition_model")
    }
    distances = np.linalg.norm(np.asarray(predict["transition_model"].locations) - next_latents, axis=1)
    certificate = model.certificate
    assert certificate is not None
    assert float(certificate.model.reward_error) == pytest.approx(np.abs(predict["reward_model"] - 1).mean(), rel=1e-4)
    assert float(certificate.model.transition_error) == pytest.approx(distances.mean(), rel=1e-4)
    assert float(certificate.average_episode_length) == 4


@pytest.mark.parametrize("learning_rate", [1e-6, 3e-2])
def test_an_update_hands_over_both_models_as_the_certificate_wants_them(learning_rate: float) -> None:
    """That of π_b exactly, that of π nearly: norms are kept as long as kernels hardly move."""
    model = trained()
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=1.0, transition_loss_coef=1.0, batch_size=2, n_epochs=5, learning_rate=learning_rate)
    state = model.policy.state
    result = update(state, rollout, model._last_obs, jax.random.PRNGKey(0), h)
    before, after = constrain(state), constrain(result.state)
    assert jax.tree.structure((before, after)) == jax.tree.structure((result.before, result.after))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), result.before, before)
    moved, looseness = [], []
    by_path = map(jax.tree_util.tree_leaves_with_path, (state.params, result.state.params, after.params))
    for (path, ours), *others in zip(jax.tree_util.tree_leaves_with_path(result.after.params), *by_path, strict=True):
        old, new, fresh = (leaf for _, leaf in others)
        if path[-1].key == "kernel" and "model" in path[1].key:
            moved.append(float(jnp.linalg.norm(new - old) / lipschitz.kernel_norm_bound(old).max()))
            looseness.append(1 - float((ours / fresh).mean()))
        else:
            np.testing.assert_array_equal(ours, fresh)
    if learning_rate < 1e-3:
        assert 1e-4 < max(looseness) < max(moved) * 1.01 < lipschitz.LOOSENESS
    else:
        assert min(moved) > 1
        assert max(map(abs, looseness)) < 1e-5


def test_a_sample_is_of_different_transitions_whose_fields_belong_together() -> None:
    rollout = Rollout.empty(10, 4, ((), np.float32), ((), np.int32), (2,))
    rollout.rewards.flat = np.arange(40)
    rollout.observations[:] = rollout.actions[:] = rollout.rewards
    rollout.next_observations[:] = rollout.rewards + 4  # time-major: four environments side by side
    rollout.dones[[2, 5, 9], [1, 3, 0]] = True
    draw = jax.jit(certificates.draw_sample)
    samples = [draw(rollout, jax.random.key(seed)) for seed in range(20)]
    for sample in samples:
        transitions = sample.transitions
        assert len(set(transitions.rewards.tolist())) == certificates.N_SAMPLED
        for of_each in (transitions.observations, transitions.actions, transitions.next_observations - 4):
            np.testing.assert_array_equal(of_each, transitions.rewards)
        assert sample.ends.observations[sample.ends.valid].tolist() == [9 + 4, 23 + 4, 36 + 4]
        assert sample.starts.observations[sample.starts.valid].tolist() == [13, 27]  # the last end begins nothing here
    assert {int(index) for sample in samples for index in sample.transitions.rewards} == set(range(40))


def test_end_value_of_an_update() -> None:
    """The bound of what the latent model still expects at the last observations of episodes, from a plain loop."""
    model = trained(spaces.Discrete(1), **CERTIFIABLE)  # one action: nothing is random
    rollout, _ = collected(model)
    model.train()
    state = model.policy.state
    constrained = ask(state.apply_fn, state.params, method="constrain")
    last = rollout.next_observations[rollout.dones][: certificates.N_EPISODES]
    latents = ask(state.apply_fn, constrained, last, method="encode")
    step = ask(state.apply_fn, constrained, latents, np.zeros(len(latents), int), jax.random.key(0), method="imagine")
    assert model.certificate is not None
    k_value = float(model.certificate.value_lipschitz)
    moved = np.linalg.norm(step.latents - latents, axis=1).mean()
    expected = (np.abs(step.rewards).mean() + 0.9 * k_value * moved) / 0.1
    assert float(model.certificate.model.end_value) == pytest.approx(expected, rel=1e-3)


def test_without_an_end_in_the_rollout_nothing_is_certified() -> None:
    model = trained(spaces.Discrete(1), **CERTIFIABLE)
    rollout, _ = collected(model)
    assert rollout.dones.any()
    rollout.dones[:] = False  # AEL is known from earlier rollouts
    model.train()
    assert model.certificate is not None
    assert np.isfinite(model.certificate.average_episode_length)
    assert model.certificate.model.end_value == model.certificate.zeta == np.inf
    assert "episode_end" in certificates.violations(model.certificate, 0.9, True)


def test_average_episode_length_of_environments_in_step() -> None:
    """Whole episodes are counted: a rollout of 4 steps in which all end would say 4."""
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, DISCRETE, length=6)] * 4)
    model = DeepSPI("MlpPolicy", env, **{**TINY_RUN, "n_steps": 4, "batch_size": 16}).learn(16)
    assert model.certificate is not None
    assert model.certificate.average_episode_length == np.inf
    assert "episode_end" in certificates.violations(model.certificate, 0.99, True)
    model.learn(32, reset_num_timesteps=False)
    assert model.certificate.average_episode_length == 6


def test_end_value_bounds_the_latent_value() -> None:
    """On a latent MDP of three states on a line, whose values are exact."""
    random = np.random.default_rng(0)
    for gamma in (0.0, 0.5, 0.9):
        positions, rewards = np.array([0.0, 1.0, 3.0]), random.normal(size=3)
        transitions = 0.7 * random.dirichlet(np.ones(3)) + 0.3 * random.dirichlet(np.ones(3), 3)
        values = np.linalg.solve(np.eye(3) - gamma * transitions, rewards)
        distances = np.abs(positions[:, None] - positions)
        k_reward = (np.abs(rewards[:, None] - rewards) / (distances + np.diag([np.inf] * 3))).max()
        cumulative = np.cumsum(transitions[:, None] - transitions[None], axis=-1)[..., :-1]
        apart = (np.abs(cumulative) * np.diff(positions)).sum(axis=-1)
        k_transition = (apart / (distances + np.diag([np.inf] * 3))).max()
        model = certificates.LatentModel(0.0, 0.0, 0.0, k_reward, k_transition)
        moved = (transitions * distances).sum(axis=1)
        for state in range(3):
            bound = certificates.end_value_bound(model, abs(rewards[state]), moved[state], gamma)
            assert abs(values[state]) <= float(bound) * (1 + 1e-5)
            assert gamma > 0 or float(bound) == pytest.approx(abs(values[state]))
    assert certificates.end_value_bound(model, 1.0, 1.0, 1.0) == np.inf


def test_latent_improvement_is_that_of_imagined_steps() -> None:
    """With one action and certain transitions nothing is random, and a plain loop says the same."""
    model = trained(spaces.Discrete(1), **CERTIFIABLE, learning_rate=1e-2)
    rollout, _ = collected(model)
    before = model.policy.state
    model.train()
    first = rollout.observations[1:][rollout.dones[:-1]][: certificates.N_EPISODES]

    def imagined(state: Any) -> float:
        constrained = ask(state.apply_fn, state.params, method="constrain")
        latents, total = ask(state.apply_fn, constrained, first, method="encode"), 0.0
        actions = np.zeros(len(first), int)  # the only one
        for t in range(certificates.HORIZON):
            step = ask(state.apply_fn, constrained, latents, actions, jax.random.key(0), method="imagine")
            total, latents = total + model.gamma**t * step.rewards, step.latents
        values = ask(state.apply_fn, constrained, latents, method="latent_values")
        return float((total + model.gamma**certificates.HORIZON * values).mean())

    expected = imagined(model.policy.state) - imagined(before)
    assert model.certificate is not None
    assert float(model.certificate.latent_improvement) == pytest.approx(expected, rel=1e-3)
    assert abs(expected) > 1e-3


def test_zeta_is_the_formula() -> None:
    model = trained(**CERTIFIABLE)
    c = jax.tree.map(float, model.certificate)
    assert c is not None
    length, sup, gamma = c.average_episode_length, c.importance_ratio.sup, 0.9
    zeta = paper = 0.0
    for latent, ratio in ((c.model, sup), (c.behaviour_model, 1.0)):
        assert latent.transition_lipschitz < 1 / gamma
        value = latent.reward_lipschitz / (1 - gamma * latent.transition_lipschitz)
        error = latent.reward_error + gamma * value * latent.transition_error
        zeta += ratio * length * error + latent.end_value
        paper += length * error / (1 / ratio - gamma)
    assert c.zeta == pytest.approx(zeta, rel=1e-3)
    assert c.paper_zeta == pytest.approx(paper, rel=1e-3)
    assert np.isfinite(c.latent_improvement)
    assert certificates.violations(c, gamma, True) == {}
    assert certificates.verdict(c, {}).startswith("certified: real improvement ≥ latent improvement - ")


def test_the_verdict_names_what_fails() -> None:
    certificate = jax.tree.map(float, trained(**CERTIFIABLE).certificate)
    assert certificate is not None
    ratio, model = certificate.importance_ratio, certificate.model
    broken = certificate.replace(importance_ratio=ratio.replace(sup=1.31))
    broken = broken.replace(
        model=model.replace(transition_lipschitz=0.5), behaviour_model=model.replace(transition_lipschitz=0.5)
    )
    failed = certificates.violations(broken, 0.99, True)
    assert certificates.verdict(broken, failed) == "not certified: D_IR sup 1.31 ≥ 1/γ = 1.0101"
    cases = {
        "all_actions": (certificate, False, "sampled actions only"),
        "reward_lipschitz": (
            certificate.replace(behaviour_model=model.replace(reward_lipschitz=np.inf)),
            True,
            "K_R of π_b unbounded",
        ),
        "transition_lipschitz": (certificate.replace(model=model.replace(transition_lipschitz=1.2)), True, "K_P 1.2 ≥"),
        "episode_end": (certificate.replace(episode_ended=False), True, "no episode ended in this rollout"),
        "finite": (certificate.replace(zeta=np.nan), True, "ζ is nan"),
    }
    for name, (case, all_actions, words) in cases.items():
        failed = certificates.violations(case, 0.9, all_actions)
        assert list(failed) == [name]
        assert words in failed[name]
    assert {"importance_ratio", *cases} == set(certificates.CONDITIONS)
    # defaults promise nothing, and say why
    certificate = trained().certificate
    assert certificate is not None
    failed = certificates.violations(certificate, 0.99, True)
    assert {"reward_lipschitz", "transition_lipschitz", "finite"} <= failed.keys()
    assert "ζ" not in certificates.verdict(certificate, failed)


def test_the_longest_verdict_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    env = ToyEnv(VECTOR, spaces.Box(-1, 1, (2,), np.float32), length=99)
    model = DeepSPI("MlpPolicy", env, **{**TINY_RUN, "learning_rate": 1.0, "verbose": 1})
    model.learn(16)
    assert model.certificate is not None
    failed = certificates.violations(model.certificate, model.gamma, model.all_actions)
    assert {"all_actions", "transition_lipschitz", "episode_end"} <= failed.keys()
    assert certificates.verdict(model.certificate, failed) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("density", "lipschitz_constant", "policy", "action_space"),
    [
        ("deterministic", 0.8, "MlpPolicy", DISCRETE),  # as CERTIFIABLE
        ("normal", None, "MlpPolicy", spaces.Box(-1, 1, (2,), np.float32)),
        ("normal", 0.8, "CnnPolicy", DISCRETE),
        ("mixture", 0.8, "CnnPolicy", DISCRETE),  # as by default
    ],
)
def test_no_slope_is_above_its_bound(
    density: str, lipschitz_constant: float | None, policy: str, action_space: spaces.Space
) -> None:
    """
    Gradient ascent on pairs of latent states finds nothing steeper, before training and after; and it would: where
    every layer keeps distances, it comes close to the bound.
    """
    kwargs = dict(transition_density=density, lipschitz_constant=lipschitz_constant, lipschitz_policy=0.05)
    if density == "mixture":
        kwargs["lipschitz_policy"] = None
    elif policy == "CnnPolicy":
        kwargs = CNN
    models = [trained(action_space, policy, learning_rate=rate, policy_kwargs=kwargs) for rate in (1e-9, 0.1)]
    networks, latent_shape = models[0].policy.networks, models[0].policy.latent_shape
    n_pairs = 4
    actions = jnp.array([action_space.sample() for _ in range(n_pairs)])
    key = jax.random.key(1)

    def distribution_mean(networks: Any, latents: jax.Array) -> jax.Array:
        actor = networks.actor(networks.torso(latents))
        return actor.logits if isinstance(action_space, spaces.Discrete) else actor.mean()

    def outputs(networks: Any, latents: jax.Array) -> dict[str, jax.Array]:
        predicted = networks.transition_model(latents, actions)
        named = {"reward": networks.reward_model(latents, actions)[:, None]}
        if density == "mixture":  # nothing is promised of its samples
            by_group = predicted.density  # the order of the channels changes no norm
            return {**named, "locations": by_group.locations, "scales": by_group.scales}
        named["next"] = predicted.sample(key)
        if isinstance(action_space, spaces.Discrete):  # E_π̄ R̄(z, a), whose constant is K_R
            every = [networks.reward_model(latents, jnp.full(n_pairs, a)) for a in range(action_space.n)]
            probs = jax.nn.softmax(distribution_mean(networks, latents))
            named["expected reward"] = (probs * jnp.stack(every, axis=1)).sum(axis=1, keepdims=True)
        return {**named, "policy": distribution_mean(networks, latents)}

    @jax.jit
    def ascend(variables: Any) -> dict[str, jax.Array]:
        def slopes(pair: jax.Array) -> dict[str, jax.Array]:
            first, second = (networks.apply(variables, latents, method=outputs) for latents in pair)
            # differentiable also where nothing differs
            norm = lambda difference: jnp.sqrt((difference.reshape(n_pairs, -1) ** 2).sum(axis=1) + 1e-14)  # noqa: E731
            apart = norm(pair[0] - pair[1])
            return {name: norm(first[name] - second[name]) / apart for name in first}

        names = list(jax.eval_shape(slopes, jax.ShapeDtypeStruct((2, n_pairs, *latent_shape), jnp.float32)))

        def step(pair: jax.Array, _: None, which: jax.Array) -> tuple[jax.Array, jax.Array]:
            def slope(pair: jax.Array) -> tuple[jax.Array, jax.Array]:
                of_pairs = jnp.stack([slopes(pair)[name] for name in names])[which]
                return of_pairs.sum(), of_pairs.max()

            gradient, steepest = jax.grad(slope, has_aux=True)(pair)
            return pair + 0.3 * gradient / (jnp.linalg.norm(gradient) + 1e-9), steepest

        pair = jax.random.normal(key, (2, n_pairs, *latent_shape))
        climb = lambda which: jax.lax.scan(partial(step, which=which), pair, length=100)[1]  # noqa: E731
        return dict(zip(names, jax.lax.map(climb, jnp.arange(len(names))), strict=True))  # one program for all

    def tightest(variables: Any) -> Any:
        """A world model of identities, as far as shapes allow."""
        params = dict(variables["params"])
        for name in ("transition_model", "reward_model"):
            params[name] = jax.tree.map(
                lambda leaf: jnp.broadcast_to(jnp.eye(*leaf.shape[-2:]), leaf.shape) if leaf.ndim > 1 else leaf,
                params[name],
            )
        return {"params": params}

    cases = [model.policy.learner.parameters for model in models]
    is_tight = density == "deterministic"
    for variables in [*cases, *([tightest(cases[0])] if is_tight else [])]:
        constrained = ask(networks.apply, variables, method="constrain")
        bounds = ask(networks.apply, constrained, method="lipschitz_bounds")
        policy_bound = float(bounds.policy) / networks.action_distance
        limits = {"reward": bounds.reward.latent, "next": bounds.transition.latent, "policy": policy_bound}
        limits["expected reward"] = bounds.reward.latent + bounds.reward.action * bounds.policy
        limits["locations"] = limits["scales"] = 0.4  # half of L each
        assert density == "mixture" or policy_bound <= 0.05 * (1 + 1e-4)
        found = ascend(constrained)
        for name, slopes in found.items():
            assert float(slopes.max()) <= float(limits[name]) * (1 + 1e-3), name
            assert slopes.max() > slopes[0], "nothing was climbed"
        if lipschitz_constant is not None:
            assert float(bounds.reward.latent) == pytest.approx(0.8)
    if is_tight:
        assert min(float(found[name].max() / limits[name]) for name in ("reward", "next")) > 0.75


def test_action_bounds_hold_for_every_pair_of_actions() -> None:
    """What an embedded action can change is bounded for any z, which is what makes K_R and K_P finite."""
    for policy, kwargs in (("MlpPolicy", CERTIFIABLE["policy_kwargs"]), ("CnnPolicy", CNN)):
        model = trained(policy=policy, policy_kwargs=kwargs, learning_rate=1e-2)
        networks = model.policy.networks
        constrained = ask(networks.apply, model.policy.learner.parameters, method="constrain")
        bounds = ask(networks.apply, constrained, method="lipschitz_bounds")
        latents = 5 * jax.random.normal(jax.random.key(0), (64, *model.policy.latent_shape))
        key = jax.random.key(1)  # the same noise for every action
        models = lambda n, z, a, key=key: (n.reward_model(z, a), n.transition_model(z, a).sample(key))  # noqa: E731
        rewards, samples = zip(
            *(ask(networks.apply, constrained, latents, jnp.full(64, a), method=models) for a in range(3)),
            strict=True,
        )
        for first, second in itertools.combinations(range(3), 2):
            apart = np.sqrt(2)  # of two one-hot vectors
            moved = np.linalg.norm((samples[first] - samples[second]).reshape(64, -1), axis=1)
            assert np.abs(rewards[first] - rewards[second]).max() <= float(bounds.reward.action) * apart * (1 + 1e-4)
            assert moved.max() <= float(bounds.transition.action) * apart * (1 + 1e-4)


@pytest.mark.parametrize(("n_choices", "n_options"), [(1, 2), (1, 5), (3, 2), (2, 4)])
def test_action_distance_bounds_how_far_actions_move(n_choices: int, n_options: int) -> None:
    """W₁ of one-hot actions, choice by choice: total variation times √2, and never more than the sum over choices."""
    random = np.random.default_rng(0)
    constant = action_distance(spaces.MultiDiscrete([n_options] * n_choices))
    assert action_distance(spaces.Discrete(n_options)) == 0.5
    assert action_distance(spaces.Box(-1, 1, (3,))) == 1.0
    steepest = 0.0
    for scale in (0.01, 1.0, 5.0):
        logits = random.normal(size=(2, 2000, n_choices, n_options)) * scale
        logits[1] = logits[0] + 0.1 * random.normal(size=logits[0].shape)
        first, second = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        variation = 0.5 * np.abs(first - second).sum(axis=-1)
        moved = np.sqrt(2) * variation.sum(axis=-1)
        apart = np.linalg.norm((logits[0] - logits[1]).reshape(2000, -1), axis=-1)
        steepest = max(steepest, (moved / apart).max())
    assert 0.8 * constant <= steepest <= constant * (1 + 1e-9)


def test_lipschitz_policy_is_kept_by_every_step() -> None:
    model = trained(learning_rate=0.1, **CERTIFIABLE)
    assert float(lipschitz_bound(params(model)["params"]["actor"])) == pytest.approx(0.05, rel=1e-3)
    # at its limit, the numbers that the README names still leave K_P below 1/γ
    assert "transition_lipschitz" not in certificates.violations(model.certificate, 0.9, True)  # type: ignore[arg-type]
    free = trained(learning_rate=0.1)
    assert float(lipschitz_bound(params(free)["params"]["actor"])) > 0.05


class TestNeighbourhood:
    def test_draw_back_by_hand(self) -> None:
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

    @pytest.mark.parametrize("action_space", [DISCRETE, spaces.Box(-1, 1, (2,), np.float32)], ids=str)
    def test_projected_updates_stay_inside(self, action_space: spaces.Space) -> None:
        """Steps that leave the neighbourhood by far, with the clip alone, and not when projected."""
        seen: dict[str, list[certificates.RatioRange]] = {"clip": [], "project": []}
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

    @pytest.mark.parametrize("action_space", [DISCRETE, spaces.MultiDiscrete([2, 3])], ids=str)
    def test_no_more_is_drawn_back_than_needed(self, action_space: spaces.Space) -> None:
        """Of a real update: what is kept is inside, and an eighth more would not be."""
        model = trained(action_space, learning_rate=0.03)
        rollout, h = collected(model)
        behaviour = model.policy.state
        h = h.replace(learning_rate=0.03)
        updated = update(behaviour, rollout, model._last_obs, jax.random.PRNGKey(0), h).state
        projected, kept = project(behaviour, updated, rollout, 0.1)
        assert 0 < kept < 1
        more = jax.tree.map(lambda old, new: old + 9 / 8 * (new - old), behaviour.params, projected.params)
        for drawn, inside in ((projected.params, True), (more, False)):
            ratio = certificates.importance_ratios(updated.replace(params=drawn), rollout)
            assert (ratio.inf >= 0.9 and ratio.sup <= 1.1) == inside

    def test_what_is_kept_is_logged(self) -> None:
        model = trained(learning_rate=0.03, neighbourhood="project")
        assert 0 < model.logger.name_to_value["spi/kept_fraction"] <= 1

    def test_what_is_inside_already_stays_as_it_is(self) -> None:
        runs = [params(trained(learning_rate=1e-5, neighbourhood=n)) for n in ("clip", "project")]
        assert same(*runs)


class TestCallback:
    def test_restores_the_last_good_parameters_and_not_the_first(self) -> None:
        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 1e-5})
        before = params(model)
        callback = SPICertificateCallback(require="neighbourhood", on_violation="restore", verbose=0)
        good = params(model.learn(8, callback=callback))
        assert not same(before, good)

        class Worsen(BaseCallback):
            def _on_step(self) -> bool:
                if self.n_calls == 9:
                    self.model.learning_rate = 0.3
                    self.model._setup_lr_schedule()
                return True

        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 1e-5})
        model.learn(24, callback=[Worsen(), callback])
        assert same(good, params(model))

    def test_a_file_of_other_columns_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "certificates.csv"
        path.write_text("something,else\n")
        model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN)
        with pytest.raises(ValueError, match="has other columns than this run's certificates: choose another path"):
            model.learn(8, callback=SPICertificateCallback(path))
        assert path.read_text() == "something,else\n"

    def test_writes_a_row_for_each_update(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "certificates.csv"
        model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN)
        model.learn(24, callback=SPICertificateCallback(path))
        model.learn(8, callback=SPICertificateCallback(path), reset_num_timesteps=False)
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["timesteps"] for row in rows] == ["8", "16", "24", "32"]
        assert all(float(row["importance_ratio_sup"]) >= 1 and row["verdict"] for row in rows)
        assert {"L_R", "L_P", "K_R", "K_P", "K_V", "zeta", "average_episode_length"} <= rows[0].keys()

    def test_stops(self, capsys: pytest.CaptureFixture) -> None:
        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 0.1})
        model.learn(80, callback=SPICertificateCallback(require=["neighbourhood"]))
        assert model.num_timesteps == 9  # the violation is seen once the next rollout begins
        assert "At 8 steps D_IR [" in capsys.readouterr().out

    def test_restores(self) -> None:
        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 0.1})
        before = params(model)
        model.learn(24, callback=SPICertificateCallback(require=["neighbourhood"], on_violation="restore", verbose=0))
        assert model.num_timesteps == 24
        assert same(before, params(model))

    def test_conditions_that_are_met_change_nothing(self) -> None:
        runs = []
        for callback in (
            None,
            SPICertificateCallback(require=["importance_ratio", "transition_lipschitz", "reward_lipschitz"]),
        ):
            model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **CERTIFIABLE, "learning_rate": 1e-4})
            runs.append(params(model.learn(16, callback=callback)))
        assert same(*runs)


class TestBadInput:
    def test_callback(self) -> None:
        with pytest.raises(ValueError, match=r"require must be one of 'importance_ratio'.*but got 'K_Q'"):
            SPICertificateCallback(require=["K_Q"])
        with pytest.raises(ValueError, match="on_violation must be one of 'stop', 'restore', but got 'retry'"):
            SPICertificateCallback(on_violation="retry")
        with pytest.raises(ValueError, match="needs DeepSPI or DeepMDP, but got PPO"):
            PPO("MlpPolicy", "CartPole-v1").learn(8, callback=SPICertificateCallback("certificates.csv"))
        with pytest.raises(ValueError, match="nothing to do: give it a path, or conditions to require"):
            SPICertificateCallback()
        with pytest.raises(ValueError, match=r"on_violation=.restore. needs conditions.*require is empty"):
            SPICertificateCallback("certificates.csv", on_violation="restore")
        never_met = {
            "importance_ratio": (dict(gamma=1.0), DISCRETE, r"gamma=1\.0 the bound means nothing"),
            "all_actions": ({}, spaces.Box(-1, 1, (1,), np.float32), "never met with Box actions"),
            "transition_lipschitz": ({}, DISCRETE, "never met, since K_P is unbounded: set policy_kwargs"),
            "reward_lipschitz": ({}, DISCRETE, "never met, since K_R is unbounded: set policy_kwargs"),
            "finite": ({}, DISCRETE, "'finite' is never met, since K_R is unbounded: set policy_kwargs"),
        }
        for condition, (kwargs, action_space, message) in never_met.items():
            model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, action_space), **TINY_RUN, **kwargs)
            with pytest.raises(ValueError, match=message):
                model.learn(8, callback=SPICertificateCallback(require=[condition]))
        policy_kwargs = CERTIFIABLE["policy_kwargs"] | dict(lipschitz_constant=1.2)
        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **CERTIFIABLE, "policy_kwargs": policy_kwargs})
        for condition in ("transition_lipschitz", "finite"):
            for reaction in ("stop", "restore"):
                callback = SPICertificateCallback(require=condition, on_violation=reaction)
                with pytest.raises(
                    ValueError, match=rf"'{condition}' is violated before the first.*K_P 1\.2.* ≥ 1/γ = 1\.1"
                ):
                    model.learn(8, callback=callback)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(neighbourhood="trust"), "neighbourhood must be one of 'clip', 'project', but got 'trust'"),
            (dict(clip_range=1.0), r"clip_range must lie in \(0, 1\), so that the neighbourhood.*but got 1.0"),
            (dict(clip_range=0.0), r"clip_range must lie in \(0, 1\).*but got 0.0"),
            (dict(gamma=1.5), r"gamma must.*\[0, 1\], but got 1.5"),
            (dict(gae_lambda=-0.1), r"gae_lambda must.*\[0, 1\], but got -0.1"),
            (dict(gradient_penalty_coef=-1.0), "gradient_penalty_coef must be positive, but got -1.0"),
            (dict(policy_kwargs=dict(transition_density="cubic")), "transition_density must be one of.*'categorical'"),
            (dict(policy_kwargs=dict(categorical_cost="l2")), "categorical_cost must be one of 'huber'.*but got 'l2'"),
            (dict(policy_kwargs=dict(n_classes=0)), "n_classes must be a whole number of at least 1, but got 0"),
            (dict(policy_kwargs=dict(lipschitz_policy=0.0)), "lipschitz_policy must be positive.*but got 0.0"),
            (
                dict(policy_kwargs=dict(lipschitz_policy=1.0, activation_fn=jax.nn.silu)),
                "lipschitz_policy needs an activation_fn that is 1-Lipschitz",
            ),
        ],
    )
    def test_model(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, **kwargs)

    @pytest.mark.parametrize("neighbourhood", ["clip", "project"])
    def test_clip_range_of_a_schedule(self, neighbourhood: str) -> None:
        """Only where training starts: RL Zoo's enjoy replaces schedules in models that it loads."""
        kwargs = dict(neighbourhood=neighbourhood, clip_range=LinearSchedule(2.0, 0.0, 1.0))
        model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, **kwargs)
        with pytest.raises(ValueError, match=r"clip_range must lie in \(0, 1\).*got 2.0"):
            model.learn(8)

    def test_gamma_of_one_is_not_certified(self) -> None:
        model = trained(gamma=1.0, policy_kwargs=CERTIFIABLE["policy_kwargs"])
        assert "importance_ratio" in certificates.violations(model.certificate, 1.0, True)  # type: ignore[arg-type]
        assert model.certificate is not None
        assert model.certificate.zeta == np.inf
        checks.reachable(("reward_lipschitz",), 1.0, True, {})  # has nothing to do with γ


def test_new_arguments_are_saved_and_loaded(tmp_path: Path) -> None:
    model = trained(neighbourhood="project", gradient_penalty_coef=0.5, **CERTIFIABLE)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", model.env)
    assert (loaded.neighbourhood, loaded.gradient_penalty_coef) == ("project", 0.5)
    assert loaded.policy.lipschitz_policy == 0.05
    assert loaded.average_episode_length == model.average_episode_length == 4
    assert same(params(model), params(loaded))
    loaded.learn(16, reset_num_timesteps=False)


def test_deepmdp_adds_the_losses_outside_the_clip() -> None:
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, DISCRETE)] * 2)
    model = DeepMDP("MlpPolicy", env, **TINY_RUN)
    assert (model.reward_loss_coef, model.transition_loss_coef) == (1, 1)
    assert model.policy.transition_density == "deterministic" and model.policy.lipschitz_constant is None
    _, h = collected(model)
    h = h.replace(reward_loss_coef=0.3, transition_loss_coef=0.2)
    ratios, advantages = jnp.array([0.7, 1.0, 1.5]), jnp.array([1.0, -2.0, 3.0])

    evaluation = Evaluation(*[jnp.zeros(3)] * 3, jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0]), jnp.zeros(3))
    surrogate = (0.7 * 1 + 1.0 * -2 + 1.1 * 3) / 3
    assert float(policy_loss(ratios, advantages, evaluation, h)) == pytest.approx(0.3 * 2 + 0.2 * 5 - surrogate)
    # inside the clip: U = 0.7 - 0.8, -2.6 - 1.0 and 2.1 - 1.2 at coefficients 0.3 and 0.2
    utilities = np.array([1 - 0.3 - 0.8, -2 - 0.6 - 1.0, 3 - 0.9 - 1.2])
    inside = np.minimum([0.7, 1.0, 1.5] * utilities, [0.9, 1.0, 1.1] * utilities).mean()
    assert float(policy_loss(ratios, advantages, evaluation, h.replace(clips_model_losses=True))) == pytest.approx(
        -inside
    )
    before = params(model)["params"]
    after = params(model.learn(16))["params"]
    assert not same(before["transition_model"], after["transition_model"])


@pytest.mark.parametrize(("policy", "cost"), [("CnnPolicy", "huber"), *(("MlpPolicy", c) for c in CATEGORICAL_COSTS)])
def test_categorical_latents(policy: str, cost: str) -> None:
    kwargs = dict(transition_density="categorical", n_variables=3, n_classes=4, categorical_cost=cost)
    model = trained(policy=policy, policy_kwargs=kwargs, reward_loss_coef=1.0, transition_loss_coef=1.0)
    observations = np.array([model.observation_space.sample() for _ in range(6)])
    networks, variables = model.policy.networks, model.policy.learner.parameters
    latents = ask(networks.apply, variables, observations, method="encode")
    assert latents.shape == (6, 3, 4)
    np.testing.assert_array_equal(latents.sum(axis=-1), 1)
    assert set(np.unique(latents)) == {0, 1}

    density = ask(
        networks.apply, variables, latents, jnp.zeros(6, int), method=lambda n, z, a: n.transition_model(z, a)
    )
    samples = jax.jit(jax.vmap(density.sample))(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(samples.mean(axis=0), jax.nn.softmax(density.logits), atol=0.05)

    untrained = DeepSPI(policy, model.env, **TINY_RUN, policy_kwargs=kwargs)
    assert not same(*(params(m)["params"]["transition_model"] for m in (model, untrained)))
    # straight-through: the encoder learns from losses on one-hot vectors
    weighted = lambda v: (networks.apply(v, observations, method="encode") * jnp.arange(4)).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(weighted))(variables)
    assert jnp.abs(gradient["params"]["encoder"]["logits"]["kernel"]).max() > 0
    assert "transition_lipschitz" in certificates.violations(model.certificate, 0.9, True)  # type: ignore[arg-type]


def test_gradient_penalty_by_finite_differences() -> None:
    kwargs = dict(lipschitz_constant=None, transition_density="normal", features_extractor_kwargs=dict(features_dim=3))
    model = trained(policy_kwargs=kwargs, gradient_penalty_coef=1.0)
    networks = model.policy.networks
    # steep enough for the penalty to be there
    variables = jax.tree.map(lambda leaf: 3 * leaf, model.policy.learner.parameters)
    latents, actions, key = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([0, 1, 2, 0, 1]), jax.random.key(1)
    ours = ask(networks.apply, variables, latents, actions, key, method="gradient_penalties")

    sample_key, direction_key = jax.random.split(key)
    directions = jax.random.normal(direction_key, latents.shape)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)

    def world_model(networks: Any, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        sample = networks.transition_model(latents, actions).sample(sample_key)
        return networks.reward_model(latents, actions), (sample * directions).sum(axis=1)

    both = jax.jit(lambda latents: networks.apply(variables, latents, method=world_model))
    expected = np.zeros(5)
    for i in range(2):
        steps = 1e-3 * np.eye(3, dtype=np.float32)
        slopes = np.stack([(both(latents + step)[i] - both(latents - step)[i]) / 2e-3 for step in steps], axis=1)
        expected += np.maximum(np.linalg.norm(slopes, axis=1) - 1, 0) ** 2
    np.testing.assert_allclose(ours, expected, rtol=2e-2, atol=1e-2)
    assert ours.max() > 0.1
    of_parameters = lambda v: networks.apply(v, latents, actions, key, method="gradient_penalties").sum()  # noqa: E731
    gradients = jax.jit(jax.grad(of_parameters))(variables)["params"]
    assert jnp.abs(gradients["transition_model"]["outputs"]["kernel"]).max() > 0
    assert not jax.tree.reduce(lambda found, leaf: found or jnp.any(leaf), gradients["encoder"], False)


def test_gradient_penalty_counts_in_the_loss_and_is_logged() -> None:
    model = trained(policy_kwargs=dict(lipschitz_constant=None), gradient_penalty_coef=1.0)
    assert "world_model/gradient_penalty" in model.logger.name_to_value
    rollout, h = collected(model)
    transitions = to_transitions(rollout, np.zeros(model.n_envs, np.float32), 0.9, 0.8)
    state, key = model.policy.state, jax.random.PRNGKey(0)
    steep = jax.tree.map(lambda leaf: 3 * leaf, state.params)
    of_transitions = jax.jit(loss)
    (one, metrics), (three, _) = (
        of_transitions(steep, state, transitions, key, h.replace(gradient_penalty_coef=coef)) for coef in (1.0, 3.0)
    )
    assert metrics.gradient_penalty > 0.1
    assert three - one == pytest.approx(2 * float(metrics.gradient_penalty), rel=1e-3)
