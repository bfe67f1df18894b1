"""The algorithm as a whole: it is PPO at α = 0, it follows the equations, it keeps SB3's contract."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sbx_deepspi import DeepSPI
from sbx_deepspi.networks import backend
from sbx_deepspi.rollout import automatic_n_steps, microbatches, share_observations, to_transitions
from sbx_deepspi.update import Hyperparameters, loss, loss_gradients, update

# a constant rate: the default schedule has come down to 0 when a run's last update is made
TINY_RUN: dict[str, Any] = dict(learning_rate=1e-3, n_steps=8, batch_size=8, n_epochs=2, seed=0)


class ToyEnv(gym.Env):
    """Random observations, reward 1 for every step, episodes of ``length`` steps cut by a time limit."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, length: int = 5):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observation_space.sample(), 1.0, False, self.steps >= self.length, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 44, 48), np.uint8)  # a latent map of 2 x 2, on which convolutions are more than dense
CHANNELS_FIRST, CHANNELS_LAST = spaces.Box(0, 255, (2, 36, 40), np.uint8), spaces.Box(0, 255, (40, 36, 2), np.uint8)


def params(model: DeepSPI) -> Any:
    return jax.device_get(model.policy.state.params)


def same(first: Any, second: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


ACTION_SPACES = [
    spaces.Discrete(3),
    spaces.Discrete(1),
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Box(-2, 3, (2, 2), np.float64),
    spaces.MultiDiscrete([2, 4]),
    spaces.MultiBinary(3),
]


# heads and action encodings are the same code for images
@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [(VECTOR, space) for space in ACTION_SPACES] + [(CHANNELS_FIRST, space) for space in ACTION_SPACES[:3]],
    ids=str,
)
def test_every_space_runs_and_predicts(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    env = DummyVecEnv([lambda: ToyEnv(observation_space, action_space)] * 2)
    policy = "MlpPolicy" if observation_space is VECTOR else "CnnPolicy"
    model = DeepSPI(policy, env, **TINY_RUN)
    before = params(model)
    model.learn(16)
    assert not same(before, params(model))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params(model)))
    for deterministic in (False, True):
        actions, _ = model.predict(env.reset(), deterministic=deterministic)
        assert all(action_space.contains(action) for action in actions)
        action, _ = model.predict(observation_space.sample(), deterministic=deterministic)
        assert action_space.contains(np.asarray(action)[()] if action_space.shape == () else action)


@pytest.mark.parametrize(
    ("policy", "density", "lipschitz_constant"),
    [
        ("MlpPolicy", "mixture", None),
        ("MlpPolicy", "normal", 0.5),
        ("MlpPolicy", "deterministic", 0.5),
        ("CnnPolicy", "mixture", 0.5),
        ("CnnPolicy", "normal", None),
        ("CnnPolicy", "deterministic", None),
    ],
)
def test_every_world_model_runs(policy: str, density: str, lipschitz_constant: float | None) -> None:
    observation_space = VECTOR if policy == "MlpPolicy" else CHANNELS_LAST
    model = DeepSPI(
        policy,
        ToyEnv(observation_space, spaces.Discrete(2)),
        policy_kwargs=dict(
            transition_density=density,
            n_components=2,
            lipschitz_constant=lipschitz_constant,
            net_arch=dict(pi=[4], vf=[3]),
            features_extractor_kwargs=dict(features_dim=6),
        ),
        **TINY_RUN,
    )
    before = params(model)["params"]
    model.learn(8)
    after = params(model)["params"]
    assert set(after) - {"torso"} == {"encoder", "actor", "critic", "transition_model", "reward_model"}
    for part in after:
        assert not same(before[part], after[part]), f"{part} did not learn"


def test_float_images_and_images_that_are_not_divided() -> None:
    image = spaces.Box(0, 1, (36, 36, 3), np.float32)
    DeepSPI("CnnPolicy", ToyEnv(image, spaces.Discrete(2)), **TINY_RUN).learn(8)
    models = [
        DeepSPI(
            "CnnPolicy",
            ToyEnv(CHANNELS_FIRST, spaces.Discrete(2)),
            policy_kwargs=dict(normalize_images=normalize),
            **TINY_RUN,
        )
        for normalize in (True, False)
    ]
    image = CHANNELS_FIRST.sample()[None]
    divided, raw = (model.policy.predict_values(image) for model in models)
    np.testing.assert_allclose(models[1].policy.predict_values(image / np.float32(255)), divided, rtol=1e-4)
    assert not np.allclose(divided, raw)


def test_mlp_policy_divides_images() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(CHANNELS_FIRST, spaces.Discrete(2)), **TINY_RUN)
    latents = model.policy.networks.apply(
        model.policy.state.params, CHANNELS_FIRST.sample()[None], method=lambda networks, image: networks.encoder(image)
    )
    assert np.abs(latents).max() < 0.999  # else tanh is saturated


def collected(model: DeepSPI) -> tuple[Any, Any]:
    """A rollout from the model's environment, and the hyperparameters of its update."""
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    hyperparameters = Hyperparameters(
        learning_rate=1e-3, max_grad_norm=0.5, gamma=0.9, gae_lambda=0.8, clip_range=0.1, clip_range_vf=None,
        ent_coef=0.01, vf_coef=0.5,
        reward_loss_coef=0.0, transition_loss_coef=0.0, target_kl=None, gradient_penalty_coef=None, batch_size=16,
        n_epochs=3, normalize_advantage=True, microbatch_size=2**31, segment_length=1,
        clips_model_losses=model.clips_model_losses,
    )  # fmt: skip
    return model.rollout_buffer, hyperparameters


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=str)
def test_update_at_alpha_zero_is_ppo(action_space: spaces.Space) -> None:
    """Against PPO written out again, as one loop over epochs with one minibatch each."""
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, action_space, length=4)] * 2)
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=16, seed=1)
    rollout, h = collected(model)
    state = model.policy.state
    new_state = update(state, rollout, model._last_obs, jax.random.PRNGKey(0), h).state

    advantages, last = np.zeros((8, 2)), 0.0
    next_values = np.asarray(state.apply_fn(state.params, model._last_obs)[1])
    for t in reversed(range(8)):
        following = np.where(rollout.dones[t], rollout.truncated_values[t], next_values)
        delta = rollout.rewards[t] + 0.9 * following - rollout.values[t]
        last = delta + 0.9 * 0.8 * np.where(rollout.dones[t], 0, last)
        advantages[t], next_values = last, rollout.values[t]
    flat = lambda a: np.asarray(a).reshape(16, *a.shape[2:])  # noqa: E731
    observations, actions, old = flat(rollout.observations), flat(rollout.actions), flat(rollout.log_probs)
    returns = flat(advantages + rollout.values)
    advantages = (flat(advantages) - advantages.mean()) / (advantages.std() + 1e-8)

    def ppo_loss(parameters: Any) -> jax.Array:
        distribution, values = state.apply_fn(parameters, observations)
        ratio = jnp.exp(distribution.log_prob(actions) - old)
        surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.9, 1.1) * advantages).mean()
        return -surrogate - 0.01 * distribution.entropy().mean() + 0.5 * (0.5 * (values - returns) ** 2).mean()

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3, eps=1e-5))
    expected, opt_state = state.params, optimizer.init(state.params)

    @jax.jit
    def step(parameters: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(ppo_loss)(parameters), opt_state)
        return optax.apply_updates(parameters, updates), opt_state

    for _ in range(3):
        expected, opt_state = step(expected, opt_state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new_state.params, expected)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), state.params, new_state.params)["params"]
    assert not any(jax.tree.leaves((moved["transition_model"], moved["reward_model"])))


def test_gradient_of_the_losses_is_scaled_by_the_clipped_ratio() -> None:
    """dJ/dθ through ℓ is -ρ α ℓ' inside the neighbourhood, and -(1 ± ε) α ℓ' where the clip holds."""
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3))] * 2)
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=16, seed=1)
    rollout, h = collected(model)
    state = model.policy.state
    transitions = to_transitions(rollout, np.zeros(2, np.float32), 0.9, 0.8)
    # ratios of 0.7, 1.0 and 1.5: beyond, inside and beyond the neighbourhood
    shifts = np.log(np.resize([0.7, 1.0, 1.5], 16)).astype(np.float32)
    transitions = transitions.replace(log_probs=transitions.log_probs - shifts)
    h = h.replace(reward_loss_coef=0.3, transition_loss_coef=0.2, normalize_advantage=False)
    key = jax.random.PRNGKey(0)
    gradient = jax.jit(jax.grad(lambda p: loss(p, state, transitions, key, h)[0]))(state.params)["params"]

    evaluation = jax.jit(lambda p: state.apply_fn(p, transitions, key, method="evaluate"))(state.params)
    utilities = transitions.advantages - 0.3 * evaluation.reward_losses - 0.2 * evaluation.transition_losses
    ratio = np.resize([0.7, 1.0, 1.5], 16)
    clipped = np.clip(ratio, 0.9, 1.1)
    weight = np.where(ratio * utilities <= clipped * utilities, ratio, clipped)
    assert len(set(weight.round(3))) > 2

    def weighted(parameters: Any) -> jax.Array:
        e = state.apply_fn(parameters, transitions, key, method="evaluate")
        return (weight * (0.3 * e.reward_losses + 0.2 * e.transition_losses)).mean()

    expected = jax.jit(jax.grad(weighted))(state.params)["params"]
    for part in ("reward_model", "transition_model"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient[part], expected[part]
        )


def test_gradients_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Sums over parts of a minibatch, pulled back through the kernels' normalisation, against plain autodiff; encoder and
    transition model in yet smaller parts.
    """
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, spaces.Discrete(3))] * 2)
    kwargs = dict(transition_density="deterministic", features_extractor_kwargs=dict(features_dim=8))
    model = DeepSPI("CnnPolicy", env, n_steps=6, batch_size=12, seed=1, policy_kwargs=kwargs)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=1.0, transition_loss_coef=1.0)
    state, key = model.policy.state, jax.random.PRNGKey(0)
    transitions = to_transitions(rollout, np.zeros(2, np.float32), 0.9, 0.8)
    advantages = transitions.advantages
    normalized = transitions.replace(advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8))

    def whole(params: Any) -> jax.Array:
        return loss(state.apply_fn(params, method="constrain"), state, normalized, key, h)[0]

    expected_loss, expected = jax.jit(jax.value_and_grad(whole))(state.params)
    norms = jax.jit(partial(state.apply_fn, method="norms"))(state.params)
    monkeypatch.setattr(backend, "CPU_PIECE", 5)
    for size in (5, 99):  # parts of 4, since 5 does not divide 12, and one part, of which three are made
        in_parts = jax.jit(lambda *arguments: loss_gradients(*arguments))  # another model may have other pieces
        gradients, metrics = in_parts(state, norms, transitions, key, h.replace(microbatch_size=size))
        assert metrics.loss == pytest.approx(float(expected_loss), rel=1e-4)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-9)


@pytest.mark.parametrize("action_space", [spaces.Discrete(1), spaces.Discrete(18), spaces.Box(-1, 1, (2,))], ids=str)
def test_sharing_observations_changes_nothing(action_space: spaces.Space) -> None:
    """Loss and every gradient against the plain form; also where episodes end too often for it."""
    env = DummyVecEnv([lambda: ToyEnv(IMAGE, action_space, length=5)] * 3)
    kwargs = dict(transition_density="deterministic", features_extractor_kwargs=dict(features_dim=8))
    model = DeepSPI("CnnPolicy", env, n_steps=8, batch_size=24, seed=1, policy_kwargs=kwargs)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=1.0, transition_loss_coef=1.0, microbatch_size=16)
    state, key = model.policy.state, jax.random.PRNGKey(0)
    norms = jax.jit(partial(state.apply_fn, method="norms"))(state.params)
    of_minibatch = jax.jit(loss_gradients)
    for dones, fits in ((rollout.dones, True), (np.ones_like(rollout.dones), False)):
        plain = to_transitions(rollout.replace(dones=dones), np.zeros(3, np.float32), 0.9, 0.8)
        segments = plain.replace(segment_length=4)
        assert segments.dones.any()
        parts_fit = jax.vmap(share_observations)(microbatches(segments, h.microbatch_size)).fits
        assert (parts_fit == fits).all() and len(parts_fit) == 2
        expected, expected_metrics = of_minibatch(state, norms, plain, key, h)
        gradients, metrics = of_minibatch(state, norms, segments, key, h)
        assert metrics.loss == pytest.approx(float(expected_metrics.loss), rel=1e-4)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(theirs).max()) + 1e-9)


def test_gradient_flows_through_both_latents() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **TINY_RUN)
    rollout, _ = collected(model)
    transitions = to_transitions(rollout, np.zeros(1, np.float32), 0.9, 0.8)
    state = model.policy.state

    def transition_loss(observations: jax.Array, next_observations: jax.Array) -> jax.Array:
        moved = transitions.replace(observations=observations, next_observations=next_observations)
        return state.apply_fn(state.params, moved, jax.random.PRNGKey(0), method="evaluate").transition_losses.sum()

    for gradient in jax.jit(jax.grad(transition_loss, (0, 1)))(transitions.observations, transitions.next_observations):
        assert jnp.abs(gradient).min(axis=-1).max() > 0


def test_next_observations_are_the_true_ones_and_rewards_the_given_ones() -> None:
    class Counting(gym.Env):
        """Observations count steps since the start; an episode has 3 steps, every second one is truncated."""

        observation_space, action_space = spaces.Box(-1, 99, (1,), np.float32), spaces.Discrete(2)
        episodes = 0

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
            self.steps = 0
            self.episodes += 1
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            self.steps += 1
            end = self.steps == 3
            observation = np.array([self.steps], np.float32)
            return observation, 10.0 + self.steps, end and self.episodes % 2 == 0, end and self.episodes % 2 == 1, {}

    model = DeepSPI("MlpPolicy", Counting(), n_steps=8, batch_size=8)
    rollout, _ = collected(model)
    assert rollout.observations[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert rollout.next_observations[:, 0, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert rollout.rewards[:, 0].tolist() == [11, 12, 13, 11, 12, 13, 11, 12]
    assert rollout.dones[:, 0].tolist() == [False, False, True] * 2 + [False, False]
    state = model.policy.state
    value_at_the_limit = float(state.apply_fn(state.params, np.array([[3.0]], np.float32))[1][0])
    np.testing.assert_allclose(rollout.truncated_values[:, 0], [0, 0, value_at_the_limit, 0, 0, 0, 0, 0], rtol=1e-5)


def test_n_steps_spreads_about_1024_transitions() -> None:
    for n_envs, n_steps in ((1, 1024), (8, 128), (128, 8), (6, 128), (3, 256), (4096, 1)):
        assert automatic_n_steps(n_envs, batch_size=256) == n_steps
    assert DeepSPI("MlpPolicy", make_vec_env("CartPole-v1", 8)).n_steps == 128
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32)
    assert model.n_steps == 64


def test_automatic_n_steps_follows_the_environments_at_load(tmp_path: Any) -> None:
    DeepSPI("MlpPolicy", "CartPole-v1").save(tmp_path / "automatic")
    assert DeepSPI.load(tmp_path / "automatic", make_vec_env("CartPole-v1", 8)).n_steps == 128
    assert DeepSPI.load(tmp_path / "automatic", make_vec_env("CartPole-v1", 8), n_steps=16).n_steps == 16
    DeepSPI("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32).save(tmp_path / "asked")
    assert DeepSPI.load(tmp_path / "asked", make_vec_env("CartPole-v1", 8)).n_steps == 64


@pytest.mark.parametrize(("batch_size", "minibatches"), [(5, 4), (100, 1)])
def test_batch_size_that_does_not_divide_the_rollout(batch_size: int, minibatches: int) -> None:
    with pytest.warns(UserWarning, match="truncated mini-batch"):
        model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=batch_size, n_epochs=3)
    model.learn(16)
    assert model.policy.state.step == 3 * minibatches


def test_target_kl_stops_the_update(capsys: pytest.CaptureFixture) -> None:
    def run(target_kl: float | None) -> DeepSPI:
        return DeepSPI(
            "MlpPolicy", "CartPole-v1", n_steps=32, batch_size=8, n_epochs=5, learning_rate=1e-2, verbose=1,
            target_kl=target_kl, seed=0,
        ).learn(32)  # fmt: skip

    free, loose, tight = run(None), run(1e9), run(1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params(free), params(loose))
    assert 0 < tight.policy.state.step < 4
    assert tight._n_updates == 1
    assert "Early stopping at step 0" in capsys.readouterr().out
    DeepSPI(
        "MlpPolicy", "CartPole-v1", n_steps=32, batch_size=8, n_epochs=1, learning_rate=1e-2, verbose=1,
        target_kl=1e-4, seed=0,
    ).learn(32)  # fmt: skip
    assert "Early stopping at step 0" in capsys.readouterr().out


class Keys(KVWriter):
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict, step: int = 0) -> None:
        self.seen.update(key_values)

    def close(self) -> None: ...


def test_log_keys_and_schedules() -> None:
    model = DeepSPI(
        "MlpPolicy",
        ToyEnv(VECTOR, spaces.Box(-1, 1, (1,))),
        **{**TINY_RUN, "learning_rate": lambda p: 1e-3 * p},
        clip_range=lambda p: 0.2 * p,
        clip_range_vf=lambda p: p,
    )
    keys = Keys()
    model.set_logger(Logger(None, [keys]))
    model.learn(32)
    sbx = {"entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "pg_loss"}
    sbx |= {"explained_variance", "std", "n_updates", "clip_range", "learning_rate"}
    ours = {"world_model/reward_loss", "world_model/transition_loss"}
    ours |= {f"spi/importance_ratio_{end}_sampled" for end in ("inf", "sup")}
    ours |= {f"spi/{name}" for name in ("L_R", "L_P", "L_end", "K_R", "K_P", "K_V", "average_episode_length")}
    ours |= {f"spi/{name}" for name in ("zeta", "zeta_paper", "latent_improvement", "certified", "verdict")}
    assert {f"train/{key}" for key in sbx} | ours | {"time/fps", "rollout/ep_rew_mean"} <= set(keys.seen)
    # the table of the last iteration shows the update before it, at a quarter of progress remaining
    assert keys.seen["train/learning_rate"] == pytest.approx(0.25e-3)
    assert keys.seen["train/clip_range"] == pytest.approx(0.05)
    assert keys.seen["train/clip_range_vf"] == pytest.approx(0.25)
    assert keys.seen["spi/importance_ratio_inf_sampled"] <= 1 <= keys.seen["spi/importance_ratio_sup_sampled"]


@pytest.mark.parametrize(
    ("policy", "observation_space", "neighbourhood"),
    [("MlpPolicy", VECTOR, "clip"), ("MlpPolicy", VECTOR, "project"), ("CnnPolicy", CHANNELS_FIRST, "clip")],
)
def test_nothing_compiles_again_after_the_first_update(
    policy: str, observation_space: spaces.Box, neighbourhood: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not for another learning rate or clip range, nor when an episode is cut short for the first time."""

    def compiled() -> list[str]:
        return [record.message for record in caplog.records if "Compiling" in record.message]

    jax.clear_caches()  # of other tests' models of the same kind
    env = ToyEnv(observation_space, spaces.Discrete(5), length=20)
    model = DeepSPI(policy, env, neighbourhood=neighbourhood, **TINY_RUN)
    with jax.log_compiles():
        model.learn(8)
        assert any("update" in message for message in compiled())
        caplog.clear()
        model.learn(16, reset_num_timesteps=False)
        model.learning_rate, model.clip_range_schedule, model.ent_coef = 0.5, FloatSchedule(0.3), 0.2
        model._setup_lr_schedule()
        model.learn(16)
    assert model.average_episode_length == 20
    assert not compiled()


@pytest.mark.parametrize("action_space", [spaces.Discrete(7), spaces.Box(-2, 2, (7,))], ids=str)
def test_a_second_model_of_the_same_kind_compiles_nothing(
    action_space: spaces.Space, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one that is loaded; other numbers are no other kind, but another activation is one."""
    env = ToyEnv(VECTOR, action_space)
    DeepSPI("MlpPolicy", env, **TINY_RUN).learn(16).save(tmp_path / "model")

    def compiled() -> set[str]:
        found = (re.search(r"Compiling jit\(([^)]+)\)", record.message) for record in caplog.records)
        names = {match[1] for match in found if match}
        caplog.clear()
        return names

    with jax.log_compiles():
        numbers = TINY_RUN | dict(seed=5, learning_rate=0.1, gamma=0, ent_coef=1, max_grad_norm=7)
        DeepSPI("MlpPolicy", env, **numbers).learn(16)
        assert compiled() == set()
        DeepSPI.load(tmp_path / "model", env).learn(16)
        assert compiled() <= {"convert_element_type", "stage", "_threefry_fold_in"}  # a new random key
        DeepSPI("MlpPolicy", env, **TINY_RUN, policy_kwargs=dict(activation_fn=lambda x: jax.nn.silu(x))).learn(8)
        assert {"create_state", "decide", "update", "certify"} <= compiled()


def test_what_differs_is_not_shared() -> None:
    """Neither where Python takes two values for equal, nor bounds, of which SBX's actor knows nothing."""
    box = spaces.Box(-1, 1, (2,), np.float32)
    kinds = [
        (box, {}),
        (spaces.Box(-1, 2, (2,), np.float32), {}),
        (box, dict(log_std_init=-1.0)),
        (box, dict(optimizer_class=optax.rmsprop)),
        (box, dict(optimizer_kwargs=dict(eps_root=0))),
        (box, dict(optimizer_kwargs=dict(eps_root=0.0))),
        (box, dict(optimizer_kwargs=dict(nesterov=True))),
        (box, dict(optimizer_kwargs=dict(nesterov=1))),
    ]
    states = [
        DeepSPI("MlpPolicy", ToyEnv(VECTOR, space), **TINY_RUN, policy_kwargs=kwargs).policy.state
        for space, kwargs in (*kinds, kinds[0])
    ]
    assert len({(state.apply_fn, state.tx) for state in states}) == len(kinds)


def test_an_optimisers_first_state_knows_the_learning_rate_and_the_norm() -> None:
    kwargs = dict(optimizer_class=optax.rprop)  # whose step sizes begin with it
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, policy_kwargs=kwargs, max_grad_norm=7)
    get = lambda name: optax.tree_utils.tree_get(model.policy.state.opt_state, name)  # noqa: E731
    assert (get("learning_rate"), get("max_norm")) == (pytest.approx(1e-3), 7)
    assert all((sizes == np.float32(1e-3)).all() for sizes in jax.tree.leaves(get("step_sizes")))


def test_no_host_transfer_inside_an_update() -> None:
    """The whole update is one compiled program: its inputs go in, its results come out."""
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN).learn(8)
    rollout, h = collected(model)
    arguments = jax.device_put((model.policy.state, rollout, model._last_obs, jax.random.PRNGKey(0), h))
    update(*arguments)
    with jax.transfer_guard("disallow"):
        update(*arguments)


def test_a_rollout_goes_to_the_device_once_and_an_update_comes_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not finite, too, is noticed with what is logged."""
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN).learn(8)
    collected(model)
    transfers = []

    def counted(name: str) -> Callable[..., Any]:
        transfer = getattr(jax, name)
        return lambda *arguments: transfers.append(name) or transfer(*arguments)

    for name in ("device_get", "device_put"):
        monkeypatch.setattr(jax, name, counted(name))
    model.train()
    assert transfers == ["device_put", "device_get"]


def test_images_stay_bytes_and_no_slow_convolution_is_left() -> None:
    """Images go into the update as they come; on CPUs its convolutions are matrix products."""
    model = DeepSPI("CnnPolicy", ToyEnv(CHANNELS_FIRST, spaces.Discrete(2)), **TINY_RUN)
    rollout, h = collected(model)
    assert rollout.observations.dtype == rollout.next_observations.dtype == np.uint8
    program = update.lower(model.policy.state, rollout, model._last_obs, jax.random.PRNGKey(0), h).as_text()
    assert "stablehlo.dot_general" in program
    assert "stablehlo.convolution" not in program


def test_same_seed_same_parameters() -> None:
    runs = [params(DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "seed": s}).learn(32)) for s in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_save_load_predict_and_go_on(tmp_path: Any) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    model = DeepSPI("MlpPolicy", env, policy_kwargs=dict(activation_fn=th.nn.ReLU), **TINY_RUN).learn(32)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env=env)
    assert same(params(model), params(loaded))
    observations = env.reset()
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48
    evaluate_policy(loaded, env, n_eval_episodes=2)


def test_callback_can_stop() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN).learn(100, callback=Stop())
    assert model.num_timesteps == 3
    assert model.policy.state.step == 0


class Faulty(ToyEnv):
    """Goes wrong at its seventh step."""

    def __init__(self, fault: str):
        super().__init__(spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Discrete(2), length=100)
        self.fault = fault

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps == 7:
            reward = {"reward nan": np.nan, "reward inf": -np.inf}.get(self.fault, reward)
            observation = np.full(2, np.nan if self.fault == "observation nan" else 0, np.float32)
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("fault", ["reward nan", "reward inf", "observation nan"])
def test_non_finite_numbers_name_environment_and_step(fault: str) -> None:
    env = DummyVecEnv([lambda: Faulty("none"), lambda: Faulty(fault)])
    model = DeepSPI("MlpPolicy", env, **TINY_RUN)
    before = params(model)
    kind, value = fault.split()
    with pytest.raises(ValueError, match=rf"Environment 1 returned a non-finite {kind} \(-?{value}\) at step 7"):
        model.learn(100)
    assert same(before, params(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(reward_loss_coef=1.5), r"reward_loss_coef must lie in \[0, 1\], but got 1.5"),
        (dict(transition_loss_coef=-0.1), r"transition_loss_coef must lie in \[0, 1\]"),
        (dict(transition_loss_coef=float("nan")), r"transition_loss_coef must lie in \[0, 1\], but got nan"),
        (dict(use_sde=True), "does not support use_sde=True"),
        (dict(rollout_buffer_kwargs={}), "does not support rollout_buffer_kwargs"),
        (dict(n_epochs=0), "n_epochs must be a whole number of at least 1, but got 0"),
        (dict(n_steps=0), "Currently n_steps=0"),
        (dict(clip_range_vf=-1.0), "clip_range_vf must be positive, but got -1.0"),
        (dict(max_grad_norm=0.0), "max_grad_norm must be positive"),
        (dict(device="cuda:7"), "JAX has no device 'cuda:7'"),
        (dict(policy_kwargs=dict(transition_density="gaussian")), "must be one of 'mixture', 'normal', 'determ"),
        (dict(policy_kwargs=dict(n_components=0)), "n_components must be a whole number"),
        (dict(policy_kwargs=dict(lipschitz_constant=-1.0)), "lipschitz_constant must be positive"),
        (dict(policy_kwargs=dict(net_archs=[])), "'net_archs': did you mean 'net_arch'"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[4], qf=[4]))), "a dictionary with 'pi' and 'vf', but got {'pi'"),
        (dict(policy_kwargs=dict(use_expln=True)), "do not support the policy_kwargs 'use_expln'"),
        (dict(policy_kwargs=dict(activation_fn=th.nn.Softmax)), "activation_fn"),
        (dict(policy_kwargs=dict(optimizer_class=th.optim.Adam)), "optimizer_class must be an optax optimiser"),
    ],
    ids=str,
)
def test_bad_arguments_get_one_clear_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, AssertionError), match=message) as error:
        DeepSPI("MlpPolicy", "CartPole-v1", **arguments)
    assert "\n" not in str(error.value)


def test_net_arch_may_be_a_tuple() -> None:
    assert DeepSPI("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=(4, 3))).policy.net_arch["vf"] == [4, 3]


@pytest.mark.parametrize(
    ("policy", "observation_space", "action_space", "message"),
    [
        ("MlpPolicy", spaces.Dict(a=VECTOR), spaces.Discrete(2), "FlattenObservation"),
        ("MlpPolicy", spaces.Discrete(4), spaces.Discrete(2), "FlattenObservation"),
        ("MlpPolicy", VECTOR, spaces.Discrete(2, start=1), "Discrete.2, start=1."),
        ("MlpPolicy", VECTOR, spaces.Tuple([spaces.Discrete(2)]), "actions, but got Tuple"),
        ("MlpPolicy", VECTOR, spaces.MultiDiscrete([[2, 3]]), "one-dimensional MultiDiscrete"),
        ("MlpPolicy", VECTOR, spaces.MultiDiscrete([2, 3], start=[1, 0]), "one-dimensional MultiDiscrete"),
        ("CnnPolicy", VECTOR, spaces.Discrete(2), "use 'MlpPolicy' for vectors"),
        ("CnnPolicy", spaces.Box(0, 255, (1, 35, 84), np.uint8), spaces.Discrete(2), "at least 36 x 36 .* 35 x 84"),
    ],
    ids=str,
)
def test_spaces_that_are_not_supported(
    policy: str, observation_space: spaces.Space, action_space: spaces.Space, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DeepSPI(policy, ToyEnv(observation_space, action_space))


def test_a_vec_env_without_terminal_observations_is_refused() -> None:
    class Forgetful(DummyVecEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            return observations, rewards, dones, [{} for _ in infos]

    model = DeepSPI("MlpPolicy", Forgetful([lambda: ToyEnv(VECTOR, spaces.Discrete(2))]), **TINY_RUN)
    with pytest.raises(ValueError, match="terminal_observation"):
        model.learn(8)


def test_a_last_observation_of_another_shape_is_refused() -> None:
    class Misshapen(DummyVecEnv):
        def step_wait(self) -> Any:
            observations, rewards, dones, infos = super().step_wait()
            for info in infos:
                if "terminal_observation" in info:
                    info["terminal_observation"] = info["terminal_observation"][:1]  # NumPy would repeat its number
            return observations, rewards, dones, infos

    model = DeepSPI("MlpPolicy", Misshapen([lambda: ToyEnv(VECTOR, spaces.Discrete(2))]), **TINY_RUN)
    message = r"Environment 0 returned info\['terminal_observation'\] of shape \(1,\), but .* has shape \(\d+,\)"
    with pytest.raises(ValueError, match=message):
        model.learn(8)


def test_normalised_numbers_that_are_not_finite_name_the_right_environment_and_leave_the_statistics() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Faulty("none"), lambda: Faulty("observation nan")]))
    model = DeepSPI("MlpPolicy", env, **TINY_RUN)
    with pytest.raises(ValueError, match=r"Environment 1 returned a non-finite observation \(nan\) at step 7"):
        model.learn(100)
    assert np.isfinite(env.obs_rms.mean).all() and np.isfinite(env.ret_rms.var) and np.isfinite(env.returns).all()
    with pytest.raises(ValueError, match=r"Environment 1 .* at step 7"):
        DeepSPI("MlpPolicy", VecNormalize(DummyVecEnv([lambda: Faulty("none"), lambda: Faulty("reward inf")]))).learn(9)


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("norm_reward", [True, False])
def test_every_kind_of_normalisation_trains(norm_obs: bool, norm_reward: bool) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2), norm_obs=norm_obs, norm_reward=norm_reward)
    model = DeepSPI("MlpPolicy", env, **TINY_RUN)
    before = params(model)
    assert not same(before, params(model.learn(16)))


def test_set_env_refuses_other_spaces() -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(make_vec_env("Pendulum-v1"))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env("CartPole-v1", 2))


def test_integer_actions_are_clipped_before_they_are_cast() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Box(0, 10, (1,), np.uint8)), **TINY_RUN)
    np.testing.assert_array_equal(model._to_environment(np.array([[-3.0], [4.0], [300.0]])), [[0], [4], [10]])
