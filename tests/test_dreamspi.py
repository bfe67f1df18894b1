"""DreamSPI: each step does what it says, and a dream in a model with known tables has its exact distribution."""

import itertools
from collections import Counter
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_probability.substrates.jax as tfp
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import (
    CheckpointCallback,
    CheckpointError,
    DeepMDP,
    DeepSPI,
    DreamSPI,
    SPICertificateCallback,
    agent,
    deepmdp,
    deepspi,
    dreamspi,
    losses,
    make_envpool_env,
)
from sbx_deepspi.agent import Networks, WorldModel
from sbx_deepspi.hyperparameters import DreamHyperparameters, Hyperparameters
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.optimizer import Learner, StepSize
from sbx_deepspi.rollout import Rollout, Transitions, to_transitions
from sbx_deepspi.world_model.densities import Outputs, make_density
from tests.helpers import CHANNELS_FIRST, TINY_RUN, VECTOR, ToyEnv, collected, params, same, updated

POLICY, MODEL = dreamspi.POLICY_PARTS, dreamspi.MODEL_PARTS
STEP_SIZES = {group: StepSize(1e-3, 0.5) for group in dreamspi.GROUPS}


def tiny(
    action_space: spaces.Space = spaces.Discrete(3),  # noqa: B008
    observation_space: spaces.Space = VECTOR,
    length: int = 5,
    **kwargs: Any,
) -> DreamSPI:
    env = DummyVecEnv([lambda: ToyEnv(observation_space, action_space, length)] * 2)
    policy = "MlpPolicy" if observation_space is VECTOR else "CnnPolicy"
    return DreamSPI(policy, env, **TINY_RUN | dict(imagination_horizon=3) | kwargs)


def of_dream(h: Hyperparameters, **changes: Any) -> Hyperparameters:
    dream = DreamHyperparameters(**dict(horizon=3, n_dreams=1, dyna=False) | changes)
    return h.replace(dream=dream, step_sizes=STEP_SIZES, reward_loss_coef=0.5, transition_loss_coef=0.5)


def moments(learner: Learner, group: str) -> Any:
    """Of a group's Adam."""
    return jax.device_get(learner.optimizer_state[group][1].inner_state)


# --- each step does what it says --------------------------------------------------------------------


def test_each_step_moves_its_own_parts_bit_for_bit() -> None:
    model = tiny(policy_kwargs=dict(lipschitz_policy=0.5))
    rollout, h = collected(model)
    h = of_dream(h)
    programs, before = model.policy.programs, model.policy.learner
    networks, optimizer = programs.networks, programs.optimizer
    real = to_transitions(rollout, np.zeros(2, np.float32), h.gamma, h.gae_lambda)
    lipschitz = networks.lipschitz(before.parameters)
    norms = normalizer.refresh(normalizer.init(lipschitz, ()), lipschitz, ())
    key = jax.random.PRNGKey(0)
    take_model_step = jax.jit(partial(dreamspi.model_step, networks, optimizer, h))
    learned, metrics = take_model_step(before, norms, real, key)
    for _ in range(2):  # a moment that is not zero would move what has no gradient
        learned, _ = take_model_step(learned, norms, real, key)
    assert float(metrics.gradient_norm) > 0
    assert same([before.parameters[part] for part in POLICY], [learned.parameters[part] for part in POLICY])
    assert all(same(moments(before, group), moments(learned, group)) for group in ("policy", "dreams"))
    assert not same(moments(before, "model"), moments(learned, "model"))
    for part in MODEL:
        assert not same(before.parameters[part], learned.parameters[part]), part

    dreamt = jax.jit(partial(dreamspi.dream, networks))(learned.parameters, rollout, 1.0, key, h)
    take_policy_step = jax.jit(partial(dreamspi.policy_step, networks, optimizer, h))
    after = learned
    for _ in range(2):
        after, metrics = take_policy_step(after, dreamt)
    assert float(metrics.gradient_norm) > 0
    assert same([learned.parameters[part] for part in MODEL], [after.parameters[part] for part in MODEL])
    assert all(same(moments(learned, group), moments(after, group)) for group in ("model", "policy"))
    assert not same(moments(learned, "dreams"), moments(after, "dreams"))
    assert not same(learned.parameters["actor"], after.parameters["actor"])
    assert not same(learned.parameters["critic"], after.parameters["critic"])


@pytest.mark.slow
def test_with_dyna_the_real_data_teach_the_policy_too() -> None:
    """Without the dreams' weight it is DeepSPI's update, momentum and all; with it, the dreams come on top."""
    model = tiny()
    rollout, h = collected(model)
    networks, optimizer = model.policy.programs.networks, model.policy.programs.optimizer
    key = jax.random.split(jax.random.PRNGKey(0), 3)[0]
    program = jax.jit(partial(deepspi.update, deepspi.step, networks, optimizer.of("model", "policy")))
    real, _ = program(model.policy.learner, rollout, model._last_obs, 1.0, key, of_dream(h))
    h = of_dream(h, dyna=True)
    of_weight_0 = h.replace(step_sizes=STEP_SIZES | {"dreams": StepSize(0.0, 0.5)})
    (still, _), (moved, _) = (updated(model, rollout, either) for either in (of_weight_0, h))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), real.parameters, still.parameters)
    before = model.policy.learner.parameters
    assert not same(before["actor"], still.parameters["actor"])
    for part in ("encoder", "transition_model"):
        jax.tree.map(np.testing.assert_array_equal, still.parameters[part], moved.parameters[part])
    assert not same(still.parameters["actor"], moved.parameters["actor"])


@pytest.mark.slow
def test_an_update_is_its_steps() -> None:
    """One epoch of one minibatch each: model step, dream in the new model, policy step."""
    model = tiny(policy_kwargs=dict(lipschitz_constant=None, transition_density="deterministic"))
    rollout, h = collected(model)
    h = of_dream(h, n_dreams=2).replace(n_epochs=1, batch_size=96)  # 16 transitions, 96 imagined ones
    networks, optimizer = model.policy.programs.networks, model.policy.programs.optimizer
    after, report = updated(model, rollout, h, reward_scale=2.0)

    model_key, dream_key, _ = jax.random.split(jax.random.PRNGKey(0), 3)
    last = agent.values(networks, model.policy.learner.parameters, model._last_obs)
    real = to_transitions(rollout, last, h.gamma, h.gae_lambda)
    real = real.replace(rewards=real.rewards / 2.0)
    between, metrics = dreamspi.model_step(networks, optimizer, h, model.policy.learner, (), real, model_key)
    assert float(report.epochs.metrics.reward_loss) == pytest.approx(float(metrics.reward_loss), rel=1e-4)
    np.testing.assert_allclose(
        *(learner.parameters["encoder"]["Dense_0"]["kernel"] for learner in (between, after)), rtol=1e-4, atol=1e-6
    )
    dreamt = dreamspi.dream(networks, between.parameters, rollout, 2.0, dream_key, h)
    assert dreamt.rewards.shape == (96,)
    assert float(report.dreams.length) == pytest.approx(float(dreamt.counts.sum()) / 32, rel=1e-5)
    assert 1 <= float(report.dreams.length) < 3
    by_hand, metrics = dreamspi.policy_step(networks, optimizer, h, between, dreamt)
    assert float(report.dreams.epochs.metrics.value_loss) == pytest.approx(float(metrics.value_loss), rel=1e-3)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), after.parameters, by_hand.parameters)


def test_the_models_loss_is_deepspis_with_what_it_gets_wrong_about_ends() -> None:
    """-J with α_R (ℓ_R + ℓ_E) in α_R ℓ_R's place, for DeepSPI as for DreamSPI; DeepMDP adds it outside the clip."""
    for algorithm in (DeepSPI, DeepMDP):
        env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3))] * 2)
        model = algorithm("MlpPolicy", env, termination_model=True, **TINY_RUN)
        rollout, h = collected(model)
        rollout.terminated[2], rollout.truncated[2] = True, False
        h = h.replace(reward_loss_coef=0.5, transition_loss_coef=0.25, normalize_advantage=False)
        networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
        t = to_transitions(rollout, np.zeros(2, np.float32), h.gamma, h.gae_lambda)
        latents, next_latents = (agent.encode(networks, parameters, o) for o in (t.observations, t.next_observations))
        key, seen = jax.random.PRNGKey(3), (t.actions, t.rewards, t.terminated)
        of_model = agent.model_losses(networks, parameters, latents, *seen, next_latents, key)
        ends = agent.end_probabilities(networks, parameters, next_latents)
        # errors below 1 are where huber is half the square; time limits are not terminal
        assert t.dones.sum() > t.terminated.sum() > 0
        np.testing.assert_allclose(of_model.termination, 0.5 * (ends - t.terminated) ** 2, rtol=1e-5)
        penalty = 0.5 * (of_model.reward + of_model.termination) + 0.25 * of_model.transition
        terms = agent.policy_terms(networks, parameters, latents, t.actions)
        ratios = np.exp(terms.log_probs - t.log_probs)
        np.testing.assert_allclose(ratios, 1, rtol=1e-5)
        _, metrics = (deepspi if algorithm is DeepSPI else deepmdp).loss(networks, parameters, t, key, h)
        np.testing.assert_allclose(metrics.policy_gradient_loss, -(t.advantages - penalty).mean(), rtol=1e-4)
        assert float(metrics.termination_loss) == pytest.approx(float(of_model.termination.mean()), rel=1e-5)


def test_the_policys_loss_is_ppos_on_what_counts() -> None:
    """Against NumPy: what comes behind an end changes neither the loss nor its gradient."""
    model = tiny()
    _, h = collected(model)
    h = of_dream(h).replace(clip_range=0.1)
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    random = np.random.default_rng(0)
    n, counts = 64, random.random(64) < 0.6
    latents = random.normal(size=(n, *networks.latent_shape)).astype(np.float32)
    actions = random.integers(0, 3, n)
    terms = agent.policy_terms(networks, parameters, latents, actions)
    old = np.asarray(terms.log_probs) + 0.3 * random.normal(size=n).astype(np.float32)
    advantages, returns = random.normal(size=(2, n)).astype(np.float32)
    nothing = np.zeros(n, bool)
    transitions = Transitions(
        observations=latents, next_observations=None, actions=actions, rewards=returns, terminated=nothing,
        truncated=nothing, values=returns, log_probs=old, advantages=advantages, returns=returns, counts=counts,
    )  # fmt: skip
    loss, metrics = dreamspi.policy_loss(networks, parameters, transitions, h)
    ratios = np.exp(np.asarray(terms.log_probs) - old)
    surrogate = np.minimum(ratios * advantages, np.clip(ratios, 0.9, 1.1) * advantages)[counts].mean()
    squares = 0.5 * ((np.asarray(terms.values) - returns) ** 2)[counts].mean()
    entropy = np.asarray(terms.entropies)[counts].mean()
    assert float(loss) == pytest.approx(-surrogate - 0.01 * entropy + 0.5 * squares, rel=1e-4)
    assert float(metrics.clip_fraction) == pytest.approx((np.abs(ratios - 1) > 0.1)[counts].mean())
    assert float(metrics.approx_kl) == pytest.approx((ratios - 1 - np.log(ratios))[counts].mean(), rel=1e-4)

    normalized = losses.normalize(jnp.asarray(advantages), counts)
    np.testing.assert_allclose(normalized[counts].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(normalized[counts].std(), 1, rtol=1e-5)
    garbage = jax.tree.map(lambda a: np.where(counts.reshape(-1, *[1] * (a.ndim - 1)), a, a + 7), transitions.replace(
        counts=None, actions=actions - 7))  # fmt: skip
    garbage = garbage.replace(counts=counts, actions=actions)
    gradient = jax.jit(jax.grad(dreamspi.policy_loss, argnums=1, has_aux=True), static_argnums=0)
    first, second = (gradient(networks, parameters, t, h)[0] for t in (transitions, garbage))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), first, second)
    assert not any(np.any(leaf) for part in MODEL for leaf in jax.tree.leaves(first[part]))


@pytest.mark.slow
def test_a_minibatch_in_which_nothing_counts_changes_nothing() -> None:
    model = tiny()
    rollout, h = collected(model)
    networks, optimizer, h = model.policy.programs.networks, model.policy.programs.optimizer, of_dream(h)
    dreamt = dreamspi.dream(networks, model.policy.learner.parameters, rollout, 1.0, jax.random.PRNGKey(0), h)
    nothing = dreamt.replace(counts=jnp.zeros_like(dreamt.counts))
    after, metrics = dreamspi.policy_step(networks, optimizer, h, model.policy.learner, nothing)
    assert float(metrics.loss) == float(metrics.gradient_norm) == 0
    assert same(params(model), after.parameters)


def test_no_gradient_leads_through_a_dream() -> None:
    model = tiny()
    rollout, h = collected(model)
    networks, key = model.policy.programs.networks, jax.random.PRNGKey(0)
    h = of_dream(h)

    def everything(parameters: Any) -> jax.Array:
        dreamt = dreamspi.dream(networks, parameters, rollout, 1.0, key, h)
        numbers = dreamt.rewards, dreamt.returns, dreamt.advantages, dreamt.log_probs, dreamt.observations
        return sum(number.sum() for number in numbers)  # type: ignore[return-value]

    value, gradient = jax.jit(jax.value_and_grad(everything))(model.policy.learner.parameters)
    assert value != 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_a_weight_of_0_leaves_the_policy_and_a_schedule_is_asked_where_a_rollout_begins() -> None:
    model = tiny(dream_weight=lambda progress: 1 - progress, verbose=0)
    seen: list[float] = []

    class Writer(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict, step: int = 0) -> None:
            seen.extend([key_values[name]] if (name := "dream/learning_rate") in key_values else [])

        def close(self) -> None:
            pass

    model.set_logger(Logger(None, [Writer()]))
    before = params(model)
    model.learn(16)
    assert same([before[part] for part in POLICY], [params(model)[part] for part in POLICY])
    model.learn(48)
    assert not same(before["actor"], params(model)["actor"])
    assert seen[-2:] == pytest.approx([0, 1 / 3 * model.learning_rate])  # each table shows the update before it


# --- a dream in a model with known tables -----------------------------------------------------------

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 3, 0.9
TABLES = np.random.default_rng(4)
P = TABLES.dirichlet(np.ones(STATES), (STATES, ACTIONS)).astype(np.float32)
R = TABLES.normal(size=(STATES, ACTIONS)).round(1).astype(np.float32)
E = np.array([0.0, 0.3, 0.9], np.float32)
PI = TABLES.dirichlet(np.ones(ACTIONS), STATES).astype(np.float32)
V = np.array([1.0, -2.0, 3.0], np.float32)


class Table(nn.Module):
    """The rows of a table that one-hot latents name; for actions, too, if they are given."""

    which: str
    is_one_choice: bool = True
    choices: tuple[int, ...] = ()
    n_outputs: int = ACTIONS

    def __call__(self, latents: jax.Array, actions: jax.Array | None = None) -> Any:
        one_hot = latents.reshape(len(latents), -1)
        rows = one_hot @ jnp.asarray(globals()[self.which]).reshape(STATES, -1)
        if actions is not None:
            rows = rows.reshape(len(rows), ACTIONS, -1)[jnp.arange(len(rows)), actions]
        match self.which:
            case "P":
                return Outputs((jnp.log(rows)[:, None, :, None],), None)
            case "PI":
                return tfp.distributions.Categorical(logits=jnp.log(rows))
        return rows[:, 0]

    def as_latents(self, outputs: jax.Array) -> jax.Array:
        return outputs


class Identity(nn.Module):
    def __call__(self, inputs: jax.Array) -> jax.Array:
        return inputs


def known_networks() -> Networks:
    world_model: Any = WorldModel(
        transition_model=Table("P"), reward_model=Table("R"), termination_model=Table("E"),  # type: ignore[arg-type]
        density=make_density("categorical", n_variables=1, n_classes=STATES), encode_actions=lambda actions: actions,
    )  # fmt: skip
    for part in (world_model.transition_model, world_model.reward_model):
        object.__setattr__(part, "lipschitz_constant", None)
    return Networks(
        encoder=Identity(), torso=Identity(), actor=Table("PI"), critic=Table("V"), world_model=world_model,  # type: ignore[arg-type]
        latent_shape=(1, STATES), lipschitz_policy=None, action_distance=0.0,
    )  # fmt: skip


def exact_episodes(start: int) -> dict[tuple[tuple[float, ...], bool, float], float]:
    """(rewards, whether it ended, discounted return with V behind the horizon) → probability, by enumeration."""
    found: Counter[tuple[tuple[float, ...], bool, float]] = Counter()
    paths: list[tuple[int, float, tuple[float, ...], float]] = [(start, 1.0, (), 0.0)]
    for t in range(HORIZON):
        longer = []
        for (state, probability, rewards, total), action, after in itertools.product(
            paths, range(ACTIONS), range(STATES)
        ):
            reward = round(float(R[state, action]), 1)
            here = probability * PI[state, action] * P[state, action, after]
            path, so_far = (*rewards, reward), total + GAMMA**t * reward
            found[path, True, round(so_far, 3)] += here * E[after]
            longer.append((after, here * (1 - E[after]), path, so_far))
        paths = longer
    for state, probability, rewards, total in paths:
        found[rewards, False, round(total + GAMMA**HORIZON * float(V[state]), 3)] += probability
    return {episode: float(probability) for episode, probability in found.items() if probability > 0}


def test_a_dream_has_the_exact_distribution() -> None:
    """Rewards, ends and returns of 120,000 dreams, each kind of episode as often as enumeration says."""
    n, start, scale = 120_000, 1, 2.0
    networks, parameters = known_networks(), {part: {} for part in (*POLICY, *MODEL)}
    latents = np.zeros((1, n, 1, STATES), np.float32)
    latents[..., start] = 1
    observation, action = jax.ShapeDtypeStruct((1, STATES), np.float32), jax.ShapeDtypeStruct((), np.int32)
    rollout = Rollout.empty(1, n, observation, action, (ACTIONS,)).replace(observations=latents)
    h: Any = Hyperparameters(
        step_sizes=STEP_SIZES, gamma=GAMMA, gae_lambda=1.0, clip_range=0.1, clip_range_vf=None, ent_coef=0.0,
        vf_coef=0.5, reward_loss_coef=1.0, transition_loss_coef=1.0, target_kl=None, gradient_penalty_coef=None,
        batch_size=8, n_epochs=1, normalize_advantage=True, microbatch_size=8, segment_length=1,
        dream=DreamHyperparameters(HORIZON, 1, False),
    )  # fmt: skip
    dreamt = jax.jit(partial(dreamspi.dream, networks))(parameters, rollout, scale, jax.random.PRNGKey(1), h)
    shape = n, HORIZON
    counts, rewards, ends = (np.asarray(a).reshape(shape) for a in (dreamt.counts, dreamt.rewards, dreamt.terminated))
    returns = np.asarray(dreamt.returns).reshape(shape)[:, 0]
    assert counts[:, 0].all() and (np.diff(counts.astype(int)) <= 0).all()
    ended = (ends & counts).any(axis=1)
    # rewards in the environment's units; V is in them already
    tenths = np.rint(10 * rewards / scale).astype(int)
    seen = Counter((tuple(tenths[i, counts[i]].tolist()), bool(ended[i])) for i in range(n))
    exact = exact_episodes(start)
    expected: Counter[tuple[tuple[int, ...], bool]] = Counter()
    for (path, end, _), probability in exact.items():
        expected[tuple(round(10 * reward) for reward in path), end] += probability  # type: ignore[assignment]
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    assert seen.keys() <= expected.keys() and len(expected) > 15
    for episode, probability in expected.items():
        deviation = np.sqrt(n * probability * (1 - probability)) + 1
        assert abs(seen[episode] - n * probability) < 4.5 * deviation, episode

    def in_units(path: tuple[float, ...], end: bool, total: float) -> float:
        of_rewards = sum(GAMMA**t * reward for t, reward in enumerate(path))
        return scale * of_rewards + (0 if end else total - of_rewards)

    values = np.array([in_units(*episode) for episode in exact])
    weights = np.array(list(exact.values()))
    mean = (weights * values).sum()
    spread = np.sqrt((weights * (values - mean) ** 2).sum())
    assert returns.mean() == pytest.approx(mean, abs=4.5 * spread / np.sqrt(n))
    assert returns.std() == pytest.approx(spread, rel=0.02)
    for quantile in (0.1, 0.5, 0.9):  # of the whole distribution
        order = np.argsort(values)
        at = values[order][np.searchsorted(weights[order].cumsum(), quantile)]
        assert (returns <= at + 1e-3).mean() >= quantile - 0.01 and (returns < at - 1e-3).mean() <= quantile + 0.01


# --- as DeepSPI -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation_space", "action_space", "kwargs"),
    [
        pytest.param(VECTOR, spaces.MultiDiscrete([2, 4]), dict(n_dreams=2), marks=pytest.mark.slow),
        pytest.param(VECTOR, spaces.Box(-1, 1, (2,), np.float32), dict(dyna=True), marks=pytest.mark.slow),
        pytest.param(VECTOR, spaces.Discrete(3), dict(termination_model=False), marks=pytest.mark.slow),
        pytest.param(CHANNELS_FIRST, spaces.Discrete(3), {}, marks=pytest.mark.slow),
        pytest.param(
            CHANNELS_FIRST, spaces.Box(-1, 1, (2,), np.float32),
            dict(policy_kwargs=dict(transition_density="categorical", n_variables=3, n_classes=4)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)  # fmt: skip
def test_spaces(
    observation_space: spaces.Space, action_space: spaces.Space, kwargs: dict[str, Any], tmp_path: Any
) -> None:
    model = tiny(action_space, observation_space, **kwargs)
    before = params(model)
    model.learn(32)
    after = params(model)
    still = {"torso"} if observation_space is VECTOR else set()  # no parameters
    assert ("termination_model" in after) == kwargs.get("termination_model", True)
    for part in after.keys() - still:
        assert not same(before[part], after[part]), f"{part} did not learn"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    model.save(tmp_path / "model")
    loaded = DreamSPI.load(tmp_path / "model", env=model.env)
    assert same(after, params(loaded)) and loaded.n_dreams == model.n_dreams and loaded.dyna == model.dyna
    observations = np.stack([observation_space.sample() for _ in range(4)])
    np.testing.assert_array_equal(*(m.predict(observations, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(16, reset_num_timesteps=False)


BAD: list[tuple[dict[str, Any], str]] = [
    (dict(imagination_horizon=0), "imagination_horizon must be a whole number of at least 1, but got 0"),
    (dict(n_dreams=1.5), "n_dreams must be a whole number of at least 1, but got 1.5"),
    (dict(dyna="yes"), "dyna must be True or False, but got 'yes'"),
    (dict(dream_weight=-1.0), "dream_weight must be a number of at least 0, but got -1.0"),
    (dict(reward_loss_coef=0.0), "reward_loss_coef must be above 0, but got 0.0: a model that does not learn"),
    (dict(transition_loss_coef=0.0), "transition_loss_coef must be above 0"),
    (dict(dream_weight="1"), "dream_weight must be a number or a function of the remaining progress, but got '1'"),
    (dict(model_learning_rate=float("nan")), "model_learning_rate must be a number of at least 0, but got nan"),
    (dict(reward_loss_coef="1"), r"reward_loss_coef must lie in \[0, 1\], but got '1'"),
    (dict(termination_model=1), "termination_model must be True or False, but got 1"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny(**arguments)


def test_deepspi_without_a_world_model_knows_no_ends() -> None:
    with pytest.raises(ValueError, match="termination_model=True needs a world model that learns from rewards"):
        DeepSPI("MlpPolicy", "CartPole-v1", reward_loss_coef=0.0, transition_loss_coef=0.0, termination_model=True)


def test_a_file_that_lacks_a_schedule_loads_and_asks_for_it_where_it_is_needed(tmp_path: Any) -> None:
    model = tiny(model_learning_rate=lambda progress: 1e-3 * progress, dream_weight=lambda progress: 1 - progress)
    model.save(tmp_path / "model")
    loaded = DreamSPI.load(tmp_path / "model", env=model.env)
    assert loaded.predict(np.zeros(3, np.float32))[0].shape == ()
    with pytest.raises(CheckpointError, match="model_learning_rate"):
        loaded.learn(16)
    loaded.model_learning_rate = 1e-3
    with pytest.raises(CheckpointError, match="dream_weight"):
        loaded.learn(16)


@pytest.mark.slow
def test_envpool_callbacks_and_certificates(tmp_path: Any) -> None:
    env = make_envpool_env("Breakout-v5", n_envs=2, seed=0)
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8), transition_density="deterministic")
    model = DreamSPI("CnnPolicy", env, **TINY_RUN | dict(policy_kwargs=kwargs, imagination_horizon=2))
    evaluation = EvalCallback(make_envpool_env("Breakout-v5", n_envs=1, seed=1), n_eval_episodes=1, eval_freq=16)
    certificates = SPICertificateCallback(
        tmp_path / "certificates.csv", require="importance_ratio", on_violation="restore"
    )
    model.learn(48, callback=[certificates, evaluation, CheckpointCallback(8, tmp_path)])
    assert evaluation.best_mean_reward >= 0 and model.certificate is not None and model.certificate.ends is not None
    assert "zeta_endless" in (tmp_path / "certificates.csv").read_text().splitlines()[0]
    resumed = DreamSPI.load(tmp_path / "rl_model_latest.zip", env=env)
    assert resumed.num_timesteps == 48 and same(params(model), params(resumed))
    env.close()


def test_what_is_set_later_is_looked_at_too(tmp_path: Any) -> None:
    """And a file that is written can be read, whatever was set."""
    model = tiny(dream_weight=np.float32(0.5))
    model.imagination_horizon = 0
    with pytest.raises(ValueError, match="imagination_horizon must be"):
        model.learn(16)
    model.imagination_horizon, model.termination_model = 3, False
    with pytest.raises(ValueError, match="was made with termination_model=True, but now it is False"):
        model.learn(16)
    model.save(tmp_path / "model")
    loaded = DreamSPI.load(tmp_path / "model")
    assert loaded.termination_model and same(params(model), params(loaded))
    with pytest.raises(ValueError, match="cannot be loaded with termination_model=False"):
        DreamSPI.load(tmp_path / "model", termination_model=False)
