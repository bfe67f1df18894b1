"""Scripts written for SB3's PPO, with DeepSPI in its place: what stopped them once."""

import copy
import enum
import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sbx.ppo import policies as sbx_policies
from stable_baselines3 import ppo
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule, get_linear_fn
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sbx_deepspi import DeepSPI, load_normalization
from sbx_deepspi.sb3.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, as_activation
from tests.helpers import CHANNELS_FIRST, VECTOR, ToyEnv, collected, params, same

# one kind of model for most tests: it is compiled once
RUN: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, seed=0)


def model_of(observation_space: spaces.Space = VECTOR, **changes: Any) -> DeepSPI:
    return DeepSPI("MlpPolicy", ToyEnv(observation_space, spaces.Discrete(2)), **{**RUN, **changes})


# --- learning rates ---------------------------------------------------------------------------------


def test_defaults_of_vectors_are_ppos_and_of_images_the_papers() -> None:
    theirs = inspect.signature(stable_baselines3.PPO).parameters
    vectors = model_of(batch_size=None, n_epochs=None)
    for name in ("learning_rate", "batch_size", "n_epochs", "clip_range", "ent_coef", "gamma", "gae_lambda"):
        assert getattr(vectors, name) == theirs[name].default, name
    images = DeepSPI("CnnPolicy", ToyEnv(CHANNELS_FIRST, spaces.Discrete(2)))
    assert (images.batch_size, images.n_epochs, images.clip_range, images.ent_coef) == (256, 4, 0.1, 0.01)
    assert [images.lr_schedule(progress) for progress in (1.0, 0.5)] == pytest.approx([2.5e-4, 1.25e-4])


def test_a_single_step_moves_parameters() -> None:
    model = model_of()
    before = params(model)
    model.learn(1)
    assert not same(before, params(model))


def test_no_update_has_rate_0_and_the_first_has_all_of_it() -> None:
    """Four rollouts: schedules look at progress where each began."""
    model, rates = model_of(learning_rate=LinearSchedule(1.0, 0.0, 1.0)), []
    model._n_collected = 8
    for made in (8, 16, 24, 32):
        model._update_current_progress_remaining(made, 32)
        rates.append(model.hyperparameters().step_sizes.learning_rate)  # type: ignore[union-attr]
    assert rates == pytest.approx([1, 0.75, 0.5, 0.25])


def test_the_tenth_call_of_a_loop_trains_as_the_first() -> None:
    model, rates = model_of(verbose=0), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            before = params(model)
            model.learn(8, reset_num_timesteps=False)
            rates.append(model.hyperparameters().step_sizes.learning_rate)  # type: ignore[union-attr]
            assert not same(before, params(model))
    assert rates == pytest.approx([3e-4] * 3)


def test_a_falling_rate_and_repeated_calls_are_told_apart() -> None:
    model = model_of(learning_rate=LinearSchedule(1e-3, 0.0, 1.0)).learn(8)
    with pytest.warns(UserWarning, match=r"begins at 0.0005 instead of 0.001.*set learning_rate=0.001"):
        model.learn(8, reset_num_timesteps=False)


def test_what_is_set_after_construction_counts() -> None:
    model = model_of().learn(8)
    model.clip_range, model.clip_range_vf, model.learning_rate = 0.3, lambda _: 0.7, lambda progress: 0.5 * progress
    h = model.hyperparameters()
    assert (h.clip_range, h.clip_range_vf) == (0.3, 0.7)
    assert h.step_sizes.learning_rate == 0.5 * model._current_progress_remaining  # type: ignore[union-attr]
    model.lr_schedule = ConstantSchedule(0.25)
    assert model.hyperparameters().step_sizes.learning_rate == 0.25  # type: ignore[union-attr]
    model.n_steps = 16
    model.learn(16)
    assert model.rollout_buffer.rewards.shape == (16, 1)


# --- rewards ----------------------------------------------------------------------------------------


class RightAction(gym.Env):
    """One-step episodes: the action that the observation shows earns the reward."""

    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)

    def __init__(self, reward: float) -> None:
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.right = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.right], {}

    def step(self, action: Any) -> Any:
        reward = self.reward * (int(action) == self.right)
        return np.eye(2, dtype=np.float32)[self.right], reward, True, False, {}


@pytest.mark.slow
@pytest.mark.parametrize("reward", [1e-3, 1.0, 300.0, 1e3, 5e4, 1e6])
def test_the_size_of_rewards_matters_no_more_than_for_ppo(reward: float) -> None:
    """The share of right actions after 6,144 steps. It was 0 from 1,000 on, where PPO's is 0.83; at 1e6 none learns."""
    observations = np.eye(2, dtype=np.float32)[np.arange(2000) % 2]
    shares = []
    for algo in (DeepSPI, stable_baselines3.PPO):
        model = algo("MlpPolicy", make_vec_env(lambda: RightAction(reward), seed=0), seed=0).learn(6144)
        shares.append((model.predict(observations)[0] == observations.argmax(axis=1)).mean())
    assert shares[0] >= shares[1] - 0.05


def test_a_penalty_that_stays_large_is_told_once() -> None:
    model = model_of(transition_loss_coef=1.0, policy_kwargs=dict(transition_density="deterministic"))
    with pytest.warns(UserWarning, match="losses outweigh the advantages: .* above 1 for 10 updates") as told:
        for _ in range(25):
            model._watch_penalty(1.5)
        model._watch_penalty(0.5)
    assert len(told) == 1


@pytest.mark.slow
def test_a_box_target_is_found_as_fast_as_by_ppo() -> None:
    """Reward 1 within 0.5 of the target, 1,000 steps; SB3's PPO earns 100 of 100."""
    from stable_baselines3.common.envs import IdentityEnvBox

    run: dict[str, Any] = dict(learning_rate=1e-3, n_steps=256, n_epochs=4, seed=0, gamma=0.4)
    env = DummyVecEnv([lambda: Monitor(IdentityEnvBox(eps=0.5))])
    ours, theirs = (algo("MlpPolicy", env, **run).learn(1000) for algo in (DeepSPI, stable_baselines3.PPO))
    scores = [evaluate_policy(model, env, 20)[0] for model in (ours, theirs)]
    assert scores[0] >= scores[1] - 1e-6


# --- what environments return -----------------------------------------------------------------------


class Foreign(DummyVecEnv):
    """A VecEnv whose returns have the dtypes and containers of somebody else's."""

    convert: dict[str, Any]

    def reset(self) -> Any:
        return self.convert["observations"](super().reset())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        given = zip(("observations", "rewards", "dones"), (observations, rewards, dones), strict=True)
        return *(self.convert[name](value) for name, value in given), tuple(infos)


CONTAINERS = [
    np.asarray,
    jnp.asarray,
    lambda array: np.asarray(array).tolist(),
    lambda array: torch.tensor(np.asarray(array)),
]
DTYPES = [np.float32, np.float64, np.int32, np.uint8, np.int64]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 3))
def test_numbers_of_foreign_environments(data: st.DataObject, n_envs: int) -> None:
    """Whatever they are made of: the episode of five steps counts as five."""

    def draw(name: str, dtypes: list[Any]) -> Any:
        container = data.draw(st.sampled_from(CONTAINERS), name)
        dtype = data.draw(st.sampled_from(dtypes), name)
        return lambda array: container(np.asarray(array).astype(dtype))

    env = Foreign([lambda: ToyEnv(VECTOR, spaces.Discrete(2), length=4)] * n_envs)
    env.convert = {
        "observations": draw("observations", [np.float32, np.float64]),
        "rewards": draw("rewards", DTYPES),
        "dones": draw("dones", [*DTYPES, bool]),
    }
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=8 * n_envs, n_epochs=1)
    rollout, _ = collected(model)
    assert rollout.rewards.dtype == np.float32 and (rollout.rewards == 1).all()
    assert rollout.dones.sum() == 2 * n_envs and model.episodes.mean_length == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", lambda r: np.full((1, 2), 1.0), r"reward must be numbers of shape \(1,\)"),
        ("rewards", lambda r: np.array(["x"]), "reward must be numbers"),
        ("rewards", lambda r: np.array([1e39]), "non-finite reward"),
        ("dones", lambda d: np.array([0.5]), "dones must be bools"),
        ("observations", lambda o: np.full((1, 3), 1e39), "non-finite observation"),
        ("observations", lambda o: np.full((1, 3), None), "observation must be numbers"),
    ],
)
def test_numbers_that_cannot_be(name: str, value: Any, message: str) -> None:
    env = Foreign([lambda: ToyEnv(VECTOR, spaces.Discrete(2))])
    env.convert = {"observations": np.asarray, "rewards": np.asarray, "dones": np.asarray}
    model = DeepSPI("MlpPolicy", env, **RUN)
    model.learn(8)
    env.convert[name] = value
    with pytest.raises(ValueError, match=message):
        model.learn(8, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("space", "observation", "seen"),
    [
        (spaces.Box(0, 2**63 - 1, (2,), np.int64), np.array([3_000_000_000, 1]), [3e9, 1]),
        (spaces.Box(0, 2**64 - 1, (1,), np.uint64), np.array([2**40], np.uint64), [2.0**40]),
        (spaces.Box(-9, 9, (1,), np.int8), np.array([-3], np.int8), [-3]),
        (spaces.Discrete(4, start=3), 5, 2),
        (spaces.MultiDiscrete([2, 3], start=[1, 5]), np.array([2, 5]), [1, 0]),
        (spaces.MultiBinary(2), np.array([1, 0], np.int8), [1, 0]),
    ],
    ids=str,
)
def test_observations_as_networks_take_them(space: spaces.Space, observation: Any, seen: Any) -> None:
    model = model_of(space)
    np.testing.assert_array_equal(model.policy.prepare_obs(observation)[0][0], seen)
    assert model.predict(observation)[0].dtype == np.int64


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 2])], ids=str)
def test_choices_outside_of_their_space(space: spaces.Space) -> None:
    model = model_of(space)
    with pytest.raises(ValueError, match="which is not in"):
        model.predict(np.full(space.shape or (), 7))


def test_one_hot_observations_are_told_apart() -> None:
    """Discrete observations are no quantities: state 2 is not twice state 1."""
    model = model_of(spaces.Discrete(5))
    kernel = model.policy.learner.parameters["encoder"]["Dense_0"]["kernel"]
    assert kernel.shape[0] == 5
    latents = [np.asarray(model.policy.predict_values(np.array([state]))) for state in range(5)]
    assert len({float(value[0]) for value in latents}) == 5


DICT = spaces.Dict(
    image=CHANNELS_FIRST, small=spaces.Box(0, 255, (3, 5, 5), np.uint8), vector=VECTOR, mode=spaces.Discrete(3)
)


def test_dictionaries_of_observations(tmp_path: Path) -> None:
    """Train, save, load, predict; each observation reaches the latent state."""
    env = DummyVecEnv([lambda: ToyEnv(DICT, spaces.MultiDiscrete([2, 3], start=[1, -1]))] * 2)
    small = dict(features_extractor_kwargs=dict(features_dim=4, cnn_output_dim=6), net_arch=[4])
    run = {**RUN, "batch_size": 16}
    model = DeepSPI("MultiInputPolicy", env, **run, policy_kwargs=small | {"transition_density": "deterministic"})
    assert model.policy.programs.networks.latent_shape == (6 + 4 + 4 + 4,)
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env=env)
    observations = env.reset()
    actions = [m.predict(observations, deterministic=True)[0] for m in (model, loaded)]
    np.testing.assert_array_equal(*actions)
    assert all(env.action_space.contains(action) for action in actions[0])
    values = model.policy.predict_values(observations)
    for key, array in observations.items():
        other = {**observations, key: array[::-1] if key != "mode" else (array + 1) % 3}
        assert not np.allclose(values, model.policy.predict_values(other)), key


@pytest.mark.slow
def test_statistics_of_normalised_dictionaries_are_saved(tmp_path: Path) -> None:
    def make(vec_env: Any = DummyVecEnv) -> VecNormalize:
        space = spaces.Dict(vector=VECTOR, mode=spaces.MultiBinary(2))
        return VecNormalize(vec_env([lambda: ToyEnv(space, spaces.Discrete(2))]), norm_obs_keys=["vector"])

    model = DeepSPI("MultiInputPolicy", make(SubprocVecEnv), **RUN).learn(16)
    model.save(tmp_path / "model")
    assert isinstance(model.env, VecNormalize)
    expected = model.env.obs_rms["vector"]
    model.env.close()
    resumed = make()
    DeepSPI.load(tmp_path / "model", env=resumed)
    for found in (resumed, load_normalization(tmp_path / "model", make().venv)):
        assert found.obs_rms["vector"].count == expected.count > 16
        np.testing.assert_array_equal(found.obs_rms["vector"].mean, expected.mean)


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
@pytest.mark.parametrize(
    "space", [spaces.Dict(a=spaces.Dict(b=VECTOR)), spaces.Tuple((VECTOR, VECTOR))], ids=["nested", "tuple"]
)
def test_nested_observations_get_their_sentence(policy: str, space: spaces.Space) -> None:
    with pytest.raises(
        ValueError, match="Box, Discrete, MultiDiscrete or MultiBinary observations, or a Dict of these"
    ):
        DeepSPI(policy, ToyEnv(space, spaces.Discrete(2)))


def test_dictionaries_need_their_policy_and_others_do_not() -> None:
    with pytest.raises(ValueError, match="You must use `MultiInputPolicy`"):
        DeepSPI("MlpPolicy", ToyEnv(DICT, spaces.Discrete(2)))
    with pytest.raises(ValueError, match="MultiInputPolicy needs a Dict"):
        DeepSPI("MultiInputPolicy", ToyEnv(VECTOR, spaces.Discrete(2)))


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 1, (36, 36)), spaces.Box(0, 9, (36, 36, 3), np.uint8), VECTOR], ids=str
)
def test_cnn_policy_takes_only_images(space: spaces.Box) -> None:
    with pytest.raises(ValueError, match=r"use CnnPolicy only with images.*normalize_images=False"):
        DeepSPI("CnnPolicy", ToyEnv(space, spaces.Discrete(2)))


class InLists(ToyEnv):
    """Observations as plain lists, as some scripts return them; SB3 hands the last one of an episode on as it is."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return jax.tree.map(np.ndarray.tolist, observation), info

    def step(self, action: Any) -> Any:
        observation, *others = super().step(action)
        return jax.tree.map(np.ndarray.tolist, observation), *others


@pytest.mark.parametrize("space", [VECTOR, spaces.Dict(a=VECTOR, b=spaces.MultiBinary(2))], ids=["vector", "dict"])
def test_observations_as_lists(space: spaces.Space) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    rollout, _ = collected(DeepSPI(policy, InLists(space, spaces.Discrete(2)), **RUN))
    assert rollout.dones.any()


def test_normalised_images_in_dictionaries_are_images() -> None:
    space = spaces.Dict(image=spaces.Box(-9, 9, (1, 36, 36)), vector=VECTOR)
    kwargs = dict(normalize_images=False)
    model = DeepSPI("MultiInputPolicy", ToyEnv(space, spaces.Discrete(2)), **RUN, policy_kwargs=kwargs)
    assert model.policy.images == ["image"]  # type: ignore[attr-defined]


# --- actions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=-5), spaces.MultiDiscrete([2, 3], start=[4, -2])], ids=str)
def test_actions_begin_where_their_space_does(space: Any) -> None:
    taken: list[Any] = []

    class Strict(ToyEnv):
        def step(self, action: Any) -> Any:
            assert space.contains(action)
            taken.append(np.asarray(action))
            return super().step(action)

    model = DeepSPI("MlpPolicy", Strict(VECTOR, space), n_steps=64, batch_size=64, n_epochs=1, seed=0)
    rollout, _ = collected(model)
    np.testing.assert_array_equal(np.stack(taken), rollout.actions[:, 0] + space.start)
    n_actions = space.n if isinstance(space, spaces.Discrete) else np.prod(space.nvec)
    assert len(np.unique(np.stack(taken).reshape(64, -1), axis=0)) == n_actions


def test_what_a_rollouts_end_sets_counts_from_the_next_one() -> None:
    class Longer(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.n_steps = 16  # type: ignore[attr-defined]

    model = model_of().learn(8, Longer())
    assert model.rollout.rewards.sum() == 8
    assert model.logger.name_to_value["train/clip_fraction"] < 1
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == 24 and model.rollout.rewards.sum() == 16


# --- what is saved ----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


INFOS = st.one_of(
    st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(max_size=3),
    st.booleans().map(np.bool_), st.floats(width=32, allow_nan=False).map(np.float32), st.integers(0, 9).map(np.array),
    st.integers(0, 9).map(jnp.asarray), st.integers(0, 9).map(torch.tensor), st.just(Colour.RED), st.just(object()),
    st.just([1, 2]), st.just(1j),
)  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> DeepSPI:
    """For what knows nothing of how it was trained."""
    return model_of()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(INFOS, min_size=2, max_size=2))
def test_what_infos_hold_never_stops_a_save_or_a_load(plain: DeepSPI, tmp_path: Path, values: list[Any]) -> None:
    model = plain
    model._setup_learn(8)  # forgets episodes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model._update_info_buffer(
            [{"is_success": values[0], "episode": {"r": 1.0, "l": 3, "t": 0.1, "extra": values[1]}}], np.array([True])
        )
        model.save(tmp_path / "model")
        loaded = DeepSPI.load(tmp_path / "model")
    assert loaded.ep_info_buffer == model.ep_info_buffer and loaded.ep_success_buffer == model.ep_success_buffer
    assert loaded.ep_info_buffer[0]["r"] == 1.0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["notes", "colour", "table"]), INFOS))
def test_what_users_set_never_stops_a_save_or_a_load(
    plain: DeepSPI, tmp_path: Path, attributes: dict[str, Any]
) -> None:
    vars(plain).update(attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.save(tmp_path / "model")
    for name in attributes:
        delattr(plain, name)
    DeepSPI.load(tmp_path / "model")


def test_schedules_without_a_name(tmp_path: Path) -> None:
    """The best model of an evaluation is saved in the middle of training; it predicts, and asks for what it lacks."""
    with pytest.warns(UserWarning, match=r"learning_rate = .*without a name.*LinearSchedule\(start, end") as told:
        model = model_of(learning_rate=get_linear_fn(1e-3, 1e-4, 1.0))
        evaluation = EvalCallback(model.env, n_eval_episodes=1, eval_freq=4, best_model_save_path=str(tmp_path))
        model.learn(16, evaluation)
    assert len([warning for warning in told if "without a name" in str(warning.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = DeepSPI.load(tmp_path / "best_model", env=model.env)
    loaded.predict(np.zeros(3))
    with pytest.raises(ValueError, match=r"could not hold learning_rate.*load\(..., learning_rate=...\)"):
        loaded.learn(8)
    DeepSPI.load(tmp_path / "best_model", env=model.env, learning_rate=1e-3).learn(8)


def test_networks_of_functions_without_a_name(tmp_path: Path) -> None:
    kwargs = dict(activation_fn=lambda x: jnp.tanh(x))
    with pytest.warns(UserWarning, match="policy_kwargs"):
        model = model_of(policy_kwargs=kwargs)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy_kwargs\['activation_fn'\].*load\(..., policy_kwargs=...\)"):
        DeepSPI.load(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", policy_kwargs=kwargs)
    assert same(params(model), params(loaded))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: cloudpickle.loads(cloudpickle.dumps(m))],
    ids=["deepcopy", "pickle", "cloudpickle"],
)
def test_copies_are_models_of_their_own(copied: Any) -> None:
    model = model_of(policy_kwargs=dict(activation_fn=torch.nn.Mish)).learn(8)
    other, policy = copied(model), copied(model.policy)
    observations = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    expected = model.policy.predict_values(observations)
    for copy_ in (other.policy, policy):
        np.testing.assert_array_equal(copy_.predict_values(observations), expected)
    before = params(model)
    other.learn(8)
    assert same(before, params(model)) and not same(before, params(other))


def test_copies_after_a_logger_of_the_users_own_learn() -> None:
    model = model_of()
    model.set_logger(configure(None, []))
    copy.deepcopy(model).learn(8)


class OwnBox(spaces.Box):
    pass


@pytest.mark.parametrize(
    ("observations", "actions"),
    [(VECTOR, spaces.Discrete(2, start=3)), (OwnBox(-1, 1, (3,)), spaces.Discrete(2))],
    ids=["Discrete", "a subclass"],
)
def test_spaces_come_back_equal(observations: spaces.Space, actions: spaces.Space, tmp_path: Path) -> None:
    if "dtype" in inspect.signature(spaces.Discrete).parameters and isinstance(actions, spaces.Discrete):
        actions = spaces.Discrete(int(actions.n), start=int(actions.start), dtype=np.int32)  # type: ignore[call-arg]
    DeepSPI("MlpPolicy", ToyEnv(observations, actions), **RUN).save(tmp_path / "model")
    env = DummyVecEnv([lambda: ToyEnv(observations, actions)])
    assert DeepSPI.load(tmp_path / "model", env=env).action_space == actions
    # the number of environments is the file's or the environment's, whatever is given
    DeepSPI.load(tmp_path / "model", env=env, custom_objects={"n_envs": 7})


def test_policies_of_functions_without_a_name(tmp_path: Path) -> None:
    kwargs = dict(activation_fn=lambda x: jnp.tanh(x))
    policy = model_of(policy_kwargs=kwargs).policy
    with pytest.warns(UserWarning, match="activation_fn = .* has no plain form"):
        policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"could not hold activation_fn.*load\(..., activation_fn=...\)"):
        MlpPolicy.load(tmp_path / "policy")
    loaded = MlpPolicy.load(tmp_path / "policy", **kwargs)
    observations = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(loaded.predict_values(observations), policy.predict_values(observations))


def test_schedules_for_predictions_alone_are_nothing_to_warn_of(tmp_path: Path) -> None:
    """As RL Zoo and the Hub put them into models that they only look at."""
    model_of().save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepSPI.load(tmp_path / "model", custom_objects={"learning_rate": 0.0, "clip_range": lambda _: 0.0})


# --- interfaces -------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_told_once_and_the_model_goes_on(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no device 'cuda' here"):
        model = model_of(device="cuda")
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="no device 'cuda:3' here"):
        DeepSPI.load(tmp_path / "model", device="cuda:3")
    with pytest.raises(ValueError, match="device must be"):
        model_of(device="abacus")


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        (ppo.MlpPolicy, MlpPolicy), (ppo.CnnPolicy, CnnPolicy), (ppo.MultiInputPolicy, MultiInputPolicy),
        (sbx_policies.PPOPolicy, MlpPolicy), (sbx_policies.CnnPolicy, CnnPolicy),
    ],
)  # fmt: skip
def test_policies_of_sb3_and_sbx_stand_for_ours(given: Any, ours: type) -> None:
    space = {CnnPolicy: CHANNELS_FIRST, MultiInputPolicy: DICT}.get(ours, VECTOR)  # type: ignore[call-overload]
    model = DeepSPI(given, ToyEnv(space, spaces.Discrete(2)), _init_setup_model=False)
    assert model.policy_class is ours


def test_other_policies_get_a_sentence() -> None:
    class Theirs(ActorCriticPolicy):
        pass

    with pytest.raises(ValueError, match=r"a subclass of sbx_deepspi\.sb3\.policies\.DeepSPIPolicy"):
        DeepSPI(Theirs, "CartPole-v1")


def test_arguments_that_change_nothing_are_taken() -> None:
    kwargs = dict(
        net_arch=[dict(pi=[5], vf=[6])], full_std=False, use_expln=True, squash_output=False,
        share_features_extractor=True, features_extractor_class=None, activation_fn=torch.nn.SELU,
    )  # fmt: skip
    buffer = stable_baselines3.common.buffers.RolloutBuffer
    model = model_of(policy_kwargs=kwargs, rollout_buffer_class=buffer, sde_sample_freq=4)
    assert model.policy.net_arch == {"pi": [5], "vf": [6]}
    with pytest.raises(TypeError, match="share one encoder"):
        model_of(policy_kwargs=dict(share_features_extractor=False))
    for other in (torch.nn.Module, stable_baselines3.common.torch_layers.NatureCNN):  # the latter is CnnPolicy's
        with pytest.raises(TypeError, match="give it a make_encoder"):
            model_of(policy_kwargs=dict(features_extractor_class=other))


@pytest.mark.parametrize(
    "name",
    ["CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish",
     "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh"],
)  # fmt: skip
def test_activations_are_torchs(name: str) -> None:
    x = np.linspace(-5, 5, 41, dtype=np.float32)
    theirs = getattr(torch.nn, name)
    np.testing.assert_allclose(as_activation(theirs)(jnp.asarray(x)), theirs()(torch.tensor(x)).numpy(), atol=1e-5)


def test_torchs_view_of_a_policy() -> None:
    model = model_of()
    policy = model.policy
    state = policy.state_dict()
    assert sum(p.numel() for p in policy.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(params(model)))
    other = model_of(seed=1)
    assert not same(params(model), params(other))
    other.policy.load_state_dict(state)
    assert same(params(model), params(other))
    policy.load_from_vector(2 * policy.parameters_to_vector())
    np.testing.assert_allclose(policy.state_dict()["critic/Dense_2/kernel"], 2 * state["critic/Dense_2/kernel"])
    with pytest.raises(RuntimeError, match="do not match"):
        policy.load_state_dict({"x": np.zeros(1)})
    np.testing.assert_array_equal(
        policy.predict_values(torch.zeros(2, 3)), policy.predict_values(np.zeros((2, 3), np.float32))
    )
    text = repr(policy)
    assert all(part in text for part in ("encoder", "actor", "transition_model", "parameters"))
    assert all(parameter.requires_grad for parameter in policy.parameters())
    for name in ("evaluate_actions", "extract_features", "get_distribution"):
        with pytest.raises(AttributeError, match=f"computes with JAX and has no '{name}'"):
            getattr(policy, name)(None)
    with pytest.raises(NotImplementedError, match="cannot be frozen"):
        policy.requires_grad_(False)


def test_predict_refuses_what_training_does() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="not finite"):
        model.predict(np.array([0, np.nan, 0]))
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        model.predict(model.env.envs[0].reset())  # type: ignore[union-attr]


def test_callbacks_see_what_sb3s_ppo_shows_them() -> None:
    seen: dict[str, dict[str, Any]] = {}

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen[type(self.model).__name__] = dict(self.locals)

    for algo in (DeepSPI, stable_baselines3.PPO):
        env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(2))] * 3)
        algo("MlpPolicy", env, n_steps=8, batch_size=24, n_epochs=1).learn(24, Look())
    ours, theirs = seen["DeepSPI"], seen["PPO"]
    assert ours["n_steps"] == theirs["n_steps"] == 8
    for name in ("values", "rewards", "dones", "log_probs"):
        assert np.shape(ours[name]) == np.shape(theirs[name]), name
    for name in ("rewards", "dones", "new_obs"):
        assert np.asarray(ours[name]).dtype == np.asarray(theirs[name]).dtype, name
