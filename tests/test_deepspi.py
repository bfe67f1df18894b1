"""The algorithm as a whole: it is PPO at α = 0, it follows the equations, it keeps SB3's contract."""

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
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sbx_deepspi import DeepMDP, DeepSPI, agent, deepmdp, deepspi
from sbx_deepspi.deepspi import loss
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.rollout import to_transitions
from sbx_deepspi.sb3.spaces import to_environment
from tests.helpers import CHANNELS_FIRST, CHANNELS_LAST, TINY_RUN, VECTOR, ToyEnv, collected, params, same, updated

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
    [(VECTOR, ACTION_SPACES[i]) for i in (0, 2, 4)]
    + [pytest.param(VECTOR, ACTION_SPACES[i], marks=pytest.mark.slow) for i in (1, 3, 5)]
    + [(CHANNELS_FIRST, ACTION_SPACES[0]), pytest.param(CHANNELS_FIRST, ACTION_SPACES[2], marks=pytest.mark.slow)],
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
        pytest.param("MlpPolicy", "deterministic", 0.5, marks=pytest.mark.slow),
        pytest.param("CnnPolicy", "normal", None, marks=pytest.mark.slow),
        pytest.param("CnnPolicy", "mixture", 0.5, marks=pytest.mark.slow),
        pytest.param("CnnPolicy", "deterministic", None, marks=pytest.mark.slow),
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
    before = params(model)
    model.learn(8)
    after = params(model)
    assert set(after) == {"encoder", "torso", "actor", "critic", "transition_model", "reward_model"}
    for part in after.keys() - ({"torso"} if policy == "MlpPolicy" else set()):  # where it has no parameters
        assert not same(before[part], after[part]), f"{part} did not learn"


@pytest.mark.slow
def test_float_images_and_images_that_are_not_divided() -> None:
    image = spaces.Box(0, 1, (36, 36, 3), np.float32)
    kwargs = dict(normalize_images=False)
    DeepSPI("CnnPolicy", ToyEnv(image, spaces.Discrete(2)), **TINY_RUN, policy_kwargs=kwargs).learn(8)
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
    divided, raw = (agent.encode(model.policy.programs.networks, params(model), image) for model in models)
    ours = agent.encode(models[1].policy.programs.networks, params(models[1]), image / np.float32(255))
    np.testing.assert_allclose(ours, divided, rtol=1e-4, atol=1e-5)
    assert not np.allclose(divided, raw)


def test_mlp_policy_divides_images() -> None:
    model = DeepSPI("MlpPolicy", ToyEnv(CHANNELS_FIRST, spaces.Discrete(2)), **TINY_RUN)
    latents = agent.encode(model.policy.programs.networks, params(model), CHANNELS_FIRST.sample()[None])
    assert np.abs(latents).max() < 0.999  # else tanh is saturated


def n_steps_of(model: DeepSPI) -> int:
    """How many steps its optimiser has made."""
    return int(model.policy.learner.optimizer_state[1].count)


def policy_and_values_of(model: DeepSPI, parameters: Any, observations: Any) -> tuple[Any, jax.Array]:
    networks = model.policy.programs.networks
    return agent.policy_and_values(networks, parameters, agent.encode(networks, parameters, observations))


def model_losses_of(model: DeepSPI, parameters: Any, transitions: Any, key: jax.Array) -> agent.ModelLosses:
    networks, t = model.policy.programs.networks, transitions
    latents, next_latents = (agent.encode(networks, parameters, o) for o in (t.observations, t.next_observations))
    return agent.model_losses(networks, parameters, latents, t.actions, t.rewards, t.terminated, next_latents, key)


@pytest.mark.parametrize(
    "action_space",
    [spaces.Discrete(3), pytest.param(spaces.Box(-1, 1, (2,), np.float32), marks=pytest.mark.slow)],
    ids=str,
)
def test_update_at_alpha_zero_is_ppo(action_space: spaces.Space) -> None:
    """Against PPO written out again, as one loop over epochs with one minibatch each."""
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, action_space, length=4)] * 2)
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=16, seed=1)
    rollout, h = collected(model)
    parameters = model.policy.learner.parameters
    policy_and_values = partial(policy_and_values_of, model)
    learner, _ = updated(model, rollout, h)

    advantages, last = np.zeros((8, 2)), 0.0
    next_values = np.asarray(policy_and_values(parameters, model._last_obs)[1])
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
        distribution, values = policy_and_values(parameters, observations)
        ratio = jnp.exp(distribution.log_prob(actions) - old)
        surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.9, 1.1) * advantages).mean()
        return -surrogate - 0.01 * distribution.entropy().mean() + 0.5 * (0.5 * (values - returns) ** 2).mean()

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3, eps=1e-5))
    expected, opt_state = parameters, optimizer.init(parameters)

    @jax.jit
    def step(parameters: Any, opt_state: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(jax.grad(ppo_loss)(parameters), opt_state)
        return optax.apply_updates(parameters, updates), opt_state

    for _ in range(3):
        expected, opt_state = step(expected, opt_state)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), learner.parameters, expected)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), parameters, learner.parameters)
    assert not any(jax.tree.leaves((moved["transition_model"], moved["reward_model"])))


def test_gradient_of_the_losses_is_scaled_by_the_clipped_ratio() -> None:
    """dJ/dθ through ℓ is -ρ α ℓ' inside the neighbourhood, and -(1 ± ε) α ℓ' where the clip holds."""
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3))] * 2)
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=16, seed=1)
    rollout, h = collected(model)
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    transitions = to_transitions(rollout, np.zeros(2, np.float32), 0.9, 0.8)
    # ratios of 0.7, 1.0 and 1.5: beyond, inside and beyond the neighbourhood
    shifts = np.log(np.resize([0.7, 1.0, 1.5], 16)).astype(np.float32)
    transitions = transitions.replace(log_probs=transitions.log_probs - shifts)
    h = h.replace(reward_loss_coef=0.3, transition_loss_coef=0.2, normalize_advantage=False)
    key = jax.random.PRNGKey(0)
    gradient = jax.jit(jax.grad(lambda p: loss(networks, p, transitions, key, h)[0]))(parameters)

    model_losses = jax.jit(partial(model_losses_of, model, transitions=transitions, key=key))
    of_model = model_losses(parameters)
    utilities = transitions.advantages - 0.3 * of_model.reward - 0.2 * of_model.transition
    ratio = np.resize([0.7, 1.0, 1.5], 16)
    clipped = np.clip(ratio, 0.9, 1.1)
    weight = np.where(ratio * utilities <= clipped * utilities, ratio, clipped)
    assert len(set(weight.round(3))) > 2

    def weighted(parameters: Any) -> jax.Array:
        of_model = model_losses(parameters)
        return (weight * (0.3 * of_model.reward + 0.2 * of_model.transition)).mean()

    expected = jax.jit(jax.grad(weighted))(parameters)
    for part in ("reward_model", "transition_model"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient[part], expected[part]
        )


def test_deepmdps_loss_is_its_formula() -> None:
    """PPO's clipped objective, entropy, values, and the world model's losses outside the clip, by NumPy."""
    model = DeepMDP("MlpPolicy", DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3))] * 2), **TINY_RUN)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=0.3, transition_loss_coef=0.2)
    t = to_transitions(rollout, np.zeros(2, np.float32), 0.9, 0.8)
    t = t.replace(log_probs=t.log_probs - np.log(np.resize([0.7, 1.0, 1.5], 16)).astype(np.float32))
    networks, parameters, key = model.policy.programs.networks, params(model), jax.random.PRNGKey(0)
    total, metrics = jax.jit(partial(deepmdp.loss, networks))(parameters, t, key, h)

    policy = agent.policy_terms(networks, parameters, agent.encode(networks, parameters, t.observations), t.actions)
    policy = jax.device_get(policy)
    of_model, t = jax.device_get((model_losses_of(model, parameters, t, key), t))
    ratio = np.exp(policy.log_probs - t.log_probs)
    surrogate = np.minimum(ratio * t.advantages, np.clip(ratio, 0.9, 1.1) * t.advantages).mean()
    model_loss = 0.3 * of_model.reward.mean() + 0.2 * of_model.transition.mean()
    value_loss = 0.5 * ((policy.values - t.returns) ** 2).mean()
    expected = -surrogate + model_loss - 0.01 * policy.entropies.mean() + 0.5 * value_loss
    assert model_loss > 0.01
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert float(metrics.policy_gradient_loss) == pytest.approx(-surrogate + model_loss, rel=1e-4)


def test_without_losses_there_is_no_world_model(tmp_path: Path) -> None:
    env = ToyEnv(VECTOR, spaces.Discrete(3))
    model = DeepSPI("MlpPolicy", env, reward_loss_coef=0, transition_loss_coef=0, **TINY_RUN)
    before = params(model)
    assert set(before) == {"encoder", "torso", "actor", "critic"}
    model.learn(16)
    for part in ("encoder", "actor", "critic"):
        assert not same(before[part], params(model)[part]), f"{part} did not learn"
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env)
    assert same(params(model), params(loaded))
    loaded.learn(8, reset_num_timesteps=False)
    for changed in (model, loaded):
        changed.transition_loss_coef = 0.1
        with pytest.raises(ValueError, match=r"DeepSPI was made without a world model.*transition_loss_coef=0\.1") as e:
            changed.learn(8)
        assert "\n" not in str(e.value)


def test_a_world_model_stays_where_its_coefficients_are_set_to_zero(tmp_path: Path) -> None:
    env = ToyEnv(VECTOR, spaces.Discrete(3))
    model = DeepSPI("MlpPolicy", env, **TINY_RUN)
    model.reward_loss_coef = model.transition_loss_coef = 0.0
    model.learn(8)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env)
    assert same(params(model), params(loaded))
    loaded.reward_loss_coef = 0.1
    loaded.learn(8, reset_num_timesteps=False)
    assert not same(params(model)["reward_model"], params(loaded)["reward_model"])


def test_deepmdps_defaults_are_the_published_ones_and_its_model_learns() -> None:
    model = DeepMDP("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(3)), **TINY_RUN)
    assert model.reward_loss_coef == model.transition_loss_coef == 1
    assert (model.policy.transition_density, model.policy.lipschitz_constant) == ("deterministic", None)
    before = params(model)
    model.learn(8)
    for part in ("transition_model", "reward_model"):
        assert not same(before[part], params(model)[part]), f"{part} did not learn"


def test_steps_divide_by_the_norms_that_they_are_given() -> None:
    """These are of the kernels as a run of steps began; the whole update refreshes them."""
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(3)), **TINY_RUN)
    rollout, h = collected(model)
    h = h.replace(reward_loss_coef=0.5, transition_loss_coef=0.5)
    networks, learner = model.policy.programs.networks, model.policy.learner
    transitions = jax.jit(to_transitions)(rollout, model.policy.predict_values(model._last_obs), h.gamma, h.gae_lambda)
    lipschitz, key = networks.lipschitz(learner.parameters), jax.random.PRNGKey(0)
    take_step = jax.jit(partial(deepspi.step, networks, model.policy.programs.optimizer, h))
    norms = normalizer.refresh(normalizer.init(lipschitz, ()), lipschitz, ())
    larger = tuple(norm.replace(bound=2 * norm.bound) for norm in norms)
    (after, metrics), (other, others) = (take_step(learner, given, transitions, key) for given in (norms, larger))
    assert abs(metrics.transition_loss - others.transition_loss) > 1e-6
    assert not same(after.parameters["reward_model"], other.parameters["reward_model"])

    # one step with norms that are up to date is what an update of one minibatch is
    one_step = h.replace(n_epochs=1, batch_size=transitions.rewards.size)
    updated_learner, report = updated(model, rollout, one_step)
    assert report.epochs.metrics.reward_loss == pytest.approx(float(metrics.reward_loss), rel=1e-5)
    assert not same(updated_learner.parameters["reward_model"], lipschitz["reward_model"])


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
    assert rollout.terminated[:, 0].tolist() == [False] * 5 + [True] + [False] * 2
    assert rollout.truncated[:, 0].tolist() == [False] * 2 + [True] + [False] * 5
    value_at_the_limit = float(model.policy.predict_values(np.array([[3.0]], np.float32))[0])
    np.testing.assert_allclose(rollout.truncated_values[:, 0], [0, 0, value_at_the_limit, 0, 0, 0, 0, 0], rtol=1e-5)


def test_automatic_n_steps_follows_the_environments_at_load(tmp_path: Any) -> None:
    DeepSPI("MlpPolicy", "CartPole-v1").save(tmp_path / "automatic")
    assert DeepSPI.load(tmp_path / "automatic", make_vec_env("CartPole-v1", 8)).n_steps == 128
    assert DeepSPI.load(tmp_path / "automatic", make_vec_env("CartPole-v1", 8), n_steps=16).n_steps == 16
    DeepSPI("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32).save(tmp_path / "asked")
    assert DeepSPI.load(tmp_path / "asked", make_vec_env("CartPole-v1", 8)).n_steps == 64


@pytest.mark.parametrize(("batch_size", "minibatches"), [(5, 4), pytest.param(100, 1, marks=pytest.mark.slow)])
def test_batch_size_that_does_not_divide_the_rollout(batch_size: int, minibatches: int) -> None:
    with pytest.warns(UserWarning, match="truncated mini-batch"):
        model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=batch_size, n_epochs=3)
    model.learn(16)
    assert n_steps_of(model) == 3 * minibatches


def test_target_kl_stops_the_update(capsys: pytest.CaptureFixture) -> None:
    def run(target_kl: float | None) -> DeepSPI:
        return DeepSPI(
            "MlpPolicy", "CartPole-v1", n_steps=32, batch_size=8, n_epochs=5, learning_rate=1e-2, verbose=1,
            target_kl=target_kl, seed=0,
        ).learn(32)  # fmt: skip

    free, loose, tight = run(None), run(1e9), run(1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params(free), params(loose))
    assert 0 < n_steps_of(tight) < 4
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
        **{**TINY_RUN, "learning_rate": lambda p: 1e-3 * p, "clip_range": lambda p: 0.2 * p},
        clip_range_vf=lambda p: p,
    )
    keys = Keys()
    model.set_logger(Logger(None, [keys]))
    model.learn(32)
    sbx = {"entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "pg_loss"}
    sbx |= {"explained_variance", "std", "n_updates", "clip_range", "learning_rate"}
    ours = {f"world_model/{name}" for name in ("reward_loss", "transition_loss", "penalty", "reward_scale")}
    ours |= {f"spi/importance_ratio_{end}_sampled" for end in ("inf", "sup")}
    ours |= {f"spi/{name}" for name in ("L_R", "L_P", "L_end", "K_R", "K_P", "K_V", "average_episode_length")}
    ours |= {f"spi/{name}" for name in ("zeta", "zeta_paper", "latent_improvement", "certified", "verdict")}
    assert {f"train/{key}" for key in sbx} | ours | {"time/fps", "rollout/ep_rew_mean"} <= set(keys.seen)
    # the table of the last iteration shows the update before it, whose rollout began at half of the progress
    assert keys.seen["train/learning_rate"] == pytest.approx(0.5e-3)
    assert keys.seen["train/clip_range"] == pytest.approx(0.1)
    assert keys.seen["train/clip_range_vf"] == pytest.approx(0.5)
    assert keys.seen["spi/importance_ratio_inf_sampled"] <= 1 <= keys.seen["spi/importance_ratio_sup_sampled"]


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
    programs = model.policy.programs
    program = jax.jit(partial(DeepSPI.update, programs.networks, programs.optimizer))
    program = program.lower(model.policy.learner, rollout, model._last_obs, 1.0, jax.random.PRNGKey(0), h).as_text()
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
    assert n_steps_of(model) == 0


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
        (dict(rollout_buffer_kwargs=dict(x=1)), "does not support rollout_buffer_kwargs"),
        (dict(n_epochs=0), "n_epochs must be a whole number of at least 1, but got 0"),
        (dict(n_steps=0), "Currently n_steps=0"),
        (dict(clip_range_vf=-1.0), "clip_range_vf must be positive, but got -1.0"),
        (dict(max_grad_norm=0.0), "max_grad_norm must be positive"),
        (dict(device="cuba"), "device must be 'auto' or one of .*, but got 'cuba'"),
        (dict(policy_kwargs=dict(transition_density="gaussian")), "must be one of 'deterministic', 'normal', 'mix"),
        (dict(policy_kwargs=dict(n_components=0)), "n_components must be a whole number"),
        (dict(policy_kwargs=dict(lipschitz_constant=-1.0)), "lipschitz_constant must be positive"),
        (dict(policy_kwargs=dict(net_archs=[])), "'net_archs': did you mean 'net_arch'"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[4], qf=[4]))), "a dictionary with 'pi' and 'vf', but got {'pi'"),
        (dict(policy_kwargs=dict(squash_output=True)), "do not support squash_output=True: Box actions are normal"),
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
        ("MlpPolicy", spaces.Tuple((VECTOR,)), spaces.Discrete(2), "FlattenObservation"),
        ("MlpPolicy", VECTOR, spaces.Tuple([spaces.Discrete(2)]), "actions, but got Tuple"),
        ("MlpPolicy", VECTOR, spaces.MultiDiscrete([[2, 3]]), "one-dimensional MultiDiscrete"),
        ("CnnPolicy", VECTOR, spaces.Discrete(2), "use CnnPolicy only with images"),
        ("CnnPolicy", spaces.Box(0, 255, (1, 2, 84), np.uint8), spaces.Discrete(2), "kernel of 3 x 3, .* only 2 x 84"),
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
    actions = to_environment(np.array([[-3.0], [4.0], [300.0]]), model.action_space)
    np.testing.assert_array_equal(actions, [[0], [4], [10]])
    assert actions.dtype == np.uint8
