"""SB3's contract, for both policies and both kinds of actions: what a script, a callback or a wrapper may count on."""

import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pandas as pd
import pytest
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import SimpleLinearSchedule
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sbx_deepspi import CnnPolicy, DeepSPI, MlpPolicy
from tests.helpers import TINY_RUN, VECTOR, ToyEnv

IMAGE = spaces.Box(0, 255, (36, 40, 1), np.uint8)
DISCRETE, BOX = spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)
RUN: dict[str, Any] = dict(
    learning_rate=1e-3, n_steps=8, batch_size=16, n_epochs=1, seed=0,
    policy_kwargs=dict(
        net_arch=[4], features_extractor_kwargs=dict(features_dim=8), transition_density="deterministic"
    ),
)  # fmt: skip
KINDS = {
    "mlp-discrete": ("MlpPolicy", VECTOR, DISCRETE),
    "mlp-box": ("MlpPolicy", VECTOR, BOX),
    "cnn-discrete": ("CnnPolicy", IMAGE, DISCRETE),
    "cnn-box": ("CnnPolicy", IMAGE, BOX),
}


def make_env(kind: str, n_envs: int = 2) -> VecEnv:
    _, observation_space, action_space = KINDS[kind]
    return DummyVecEnv([lambda: Monitor(ToyEnv(observation_space, action_space))] * n_envs)


def make_model(kind: str, env: Any = None, **kwargs: Any) -> DeepSPI:
    return DeepSPI(KINDS[kind][0], make_env(kind) if env is None else env, **RUN | kwargs)


@pytest.fixture(
    scope="module", params=["mlp-discrete", "mlp-box", "cnn-discrete", pytest.param("cnn-box", marks=pytest.mark.slow)]
)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> DeepSPI:
    """Trained on two updates; tests leave it as it is."""
    return make_model(kind).learn(32)


@pytest.fixture(scope="module")
def fast() -> DeepSPI:
    """For callbacks and loggers, which know nothing of policies."""
    return make_model("mlp-discrete")


def equal(first: Any, second: Any) -> bool:
    same = jax.tree.map(np.array_equal, jax.device_get(first), jax.device_get(second))
    return all(jax.tree.leaves(same))


# --- predicting -------------------------------------------------------------------------------------


def test_predict(kind: str, model: DeepSPI) -> None:
    _, observation_space, action_space = KINDS[kind]
    observations = np.stack([observation_space.sample() for _ in range(5)])
    actions, state = model.predict(observations, deterministic=True)
    assert state is None
    assert actions.shape == (5, *(action_space.shape or ()))
    assert all(action_space.contains(action) for action in actions)
    for observation, action in zip(observations, actions, strict=True):
        single, _ = model.predict(observation, deterministic=True)
        assert np.shape(single) == (action_space.shape or ())
        np.testing.assert_allclose(single, action, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.policy.predict(observations, deterministic=True)[0], actions)
    drawn = [model.predict(observations)[0] for _ in range(8)]
    assert not all(np.array_equal(drawn[0], others) for others in drawn)
    with pytest.raises(ValueError, match="Unexpected observation shape" if observation_space is VECTOR else "axes"):
        model.predict(np.zeros(7, np.float32))


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=str)
def test_predict_takes_images_in_both_channel_orders(action_space: spaces.Space) -> None:
    model = DeepSPI("CnnPolicy", ToyEnv(IMAGE, action_space), **RUN)
    assert model.observation_space.shape == (1, 36, 40)  # transposed, as SB3 does
    image = IMAGE.sample()
    last, first = (model.predict(view, deterministic=True)[0] for view in (image, image.transpose(2, 0, 1)))
    np.testing.assert_array_equal(last, first)
    both, _ = model.predict(np.stack([image] * 2), deterministic=True)
    np.testing.assert_allclose(both[1], first, rtol=1e-5)


# --- parameters -------------------------------------------------------------------------------------


def test_get_and_set_parameters(model: DeepSPI) -> None:
    other = make_model_like(model, seed=1)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}
    assert not equal(other.get_parameters(), parameters)
    other.set_parameters(parameters)
    assert equal(other.get_parameters(), parameters)
    observation = model.observation_space.sample()
    actions = [m.predict(observation, deterministic=True)[0] for m in (model, other)]
    np.testing.assert_array_equal(*actions)
    other.learn(16)
    assert not equal(other.get_parameters(), parameters)


def make_model_like(model: DeepSPI, seed: int) -> DeepSPI:
    return DeepSPI(model.policy_class, model.env, **RUN | {"seed": seed})


def test_parameters_that_do_not_match(model: DeepSPI) -> None:
    parameters = model.get_parameters()
    kernel = "encoder/kernel_0" if "encoder/kernel_0" in parameters["policy"] else "encoder/Dense_0/kernel"

    def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        given = copy.deepcopy(parameters)
        change(given)
        return given

    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "Names of parameters do not match", changed(lambda given: given.pop("policy.optimizer"))),
        (ValueError, "Names of parameters do not match", {}),
        (ValueError, "Key critic is an invalid object name", changed(lambda given: given.update(critic={}))),
        (RuntimeError, f"missing .*{kernel}", changed(lambda given: given["policy"].pop(kernel))),
        (RuntimeError, "unexpected .*more", changed(lambda given: given["policy"].update(more=np.zeros(1)))),
        (RuntimeError, "should have shape", changed(lambda given: given["policy"].update({kernel: np.zeros(1)}))),
    ]
    for error, sentence, given in cases:
        with pytest.raises(error, match=sentence):
            model.set_parameters(given)
        assert equal(model.get_parameters(), parameters)
    other = make_model_like(model, seed=1)
    before = other.get_parameters()
    other.set_parameters({"policy": {kernel: parameters["policy"][kernel]}}, exact_match=False)
    after = other.get_parameters()
    assert np.array_equal(after["policy"].pop(kernel), parameters["policy"][kernel])
    before["policy"].pop(kernel)
    assert equal(before, after)
    with pytest.raises(RuntimeError, match="should have shape"):
        other.set_parameters({"policy": {kernel: np.zeros(1)}}, exact_match=False)


def test_parameters_from_a_file(model: DeepSPI, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    other = make_model_like(model, seed=1)
    other.set_parameters(tmp_path / "model")
    assert equal(other.get_parameters(), model.get_parameters())


def test_policies_save_and_load_alone(kind: str, model: DeepSPI, tmp_path: Path) -> None:
    model.policy.save(tmp_path / "policy")
    policy_class = {"MlpPolicy": MlpPolicy, "CnnPolicy": CnnPolicy}[KINDS[kind][0]]
    policy = policy_class.load(tmp_path / "policy", device="cpu")
    assert equal(policy.learner.parameters, model.policy.learner.parameters)
    observations = np.stack([KINDS[kind][1].sample() for _ in range(3)])
    for deterministic in (True, False):  # the same key draws the same actions
        policy.key = model.policy.key
        actions = [p.predict(observations, deterministic=deterministic)[0] for p in (model.policy, policy)]
        np.testing.assert_array_equal(*actions)
    other = CnnPolicy if policy_class is MlpPolicy else MlpPolicy
    with pytest.raises(ValueError, match=f"load it with {policy_class.__name__}.load"):
        other.load(tmp_path / "policy")


def test_save_and_load(kind: str, model: DeepSPI) -> None:
    file = io.BytesIO()
    model.save(file)
    loaded = DeepSPI.load(file, env=make_env(kind, n_envs=4))
    assert loaded.n_envs == 4
    assert equal(loaded.get_parameters(), model.get_parameters())
    assert loaded.learn(32, reset_num_timesteps=False).num_timesteps == 64
    without = DeepSPI.load(file)
    assert without.get_env() is None
    observation = KINDS[kind][1].sample()
    actions = [m.predict(observation, deterministic=True)[0] for m in (model, without)]
    np.testing.assert_array_equal(*actions)
    without.set_env(make_env(kind))
    assert without.learn(16).num_timesteps == 16


# --- environments and counters ----------------------------------------------------------------------


def test_set_env(kind: str, model: DeepSPI) -> None:
    others = {
        "mlp-discrete": "mlp-box",
        "mlp-box": "cnn-box",
        "cnn-discrete": "mlp-discrete",
        "cnn-box": "cnn-discrete",
    }
    old = model.get_env()
    with pytest.raises(ValueError, match=r"(Observation|Action) spaces do not match"):
        model.set_env(make_env(others[kind]))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_env(kind, n_envs=3))
    assert model.get_env() is old
    new = make_env(kind)
    model.set_env(new)
    assert model._last_obs is None
    assert model.get_env().unwrapped is new


def test_an_environment_to_go_on_with_may_be_given_by_its_id(tmp_path: Path) -> None:
    """As the constructor takes it."""
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env="CartPole-v1")
    loaded.set_env("CartPole-v1")
    assert loaded.get_env().envs[0].spec.id == "CartPole-v1"
    assert loaded.learn(32).num_timesteps == 32
    with pytest.raises(gym.error.NameNotFound):
        model.set_env("CartPool-v1")


def test_a_rollout_beyond_the_total_is_learned_from_with_no_negative_rate() -> None:
    """RL Zoo's schedules are lines that go on below 0."""
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, learning_rate=SimpleLinearSchedule(1e-3))
    model.learn(10)
    assert model.num_timesteps == 16
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(0.2e-3)


def test_where_a_callback_stops_a_rollout_the_next_one_begins() -> None:
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    model = DeepSPI("MlpPolicy", env, n_steps=8, batch_size=8, seed=0)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 3

    model.learn(16, callback=Stop())
    states = [single.unwrapped.state for single in env.envs]  # type: ignore[attr-defined]
    np.testing.assert_allclose(model._last_obs, states, rtol=1e-6)
    assert not model._last_episode_starts.any()  # type: ignore[union-attr]


def test_learning_twice(kind: str) -> None:
    model = make_model(kind)
    resets = []
    reset = model.env.reset
    model.env.reset = lambda: resets.append(1) or reset()  # type: ignore[method-assign]
    model.learn(16)
    model.learn(16, reset_num_timesteps=False)
    assert (model.num_timesteps, model._total_timesteps, model._n_updates, len(resets)) == (32, 32, 2, 1)
    assert model._current_progress_remaining == 0.5  # where the last rollout began
    assert len(model.ep_info_buffer) == 6  # two environments, episodes of five steps
    model.learn(16)
    assert (model.num_timesteps, model._n_updates, len(resets)) == (16, 3, 2)
    assert len(model.ep_info_buffer) == 2
    assert [episode["r"] for episode in model.ep_info_buffer] == [5.0, 5.0]


def test_the_same_seed_gives_the_same_parameters(kind: str, model: DeepSPI) -> None:
    again, other = (make_model(kind, seed=seed).learn(32) for seed in (0, 1))
    trained = model.get_parameters()
    assert equal(again.get_parameters(), trained)
    assert not equal(other.get_parameters(), trained)


def test_seeds_reach_predictions(model: DeepSPI) -> None:
    file = io.BytesIO()
    model.save(file)
    observations = np.stack([model.observation_space.sample() for _ in range(20)])
    drawn = {}
    for seed in (1, 2, None):
        for turn in range(2):
            loaded = DeepSPI.load(file) if seed is None else DeepSPI.load(file, seed=seed)
            drawn[seed, turn] = loaded.predict(observations)[0]
    for seed in (1, 2, None):
        np.testing.assert_array_equal(drawn[seed, 0], drawn[seed, 1])
    assert not np.array_equal(drawn[1, 0], drawn[2, 0])
    loaded.set_random_seed(1)
    np.testing.assert_array_equal(loaded.predict(observations)[0], drawn[1, 0])


@pytest.mark.parametrize(
    ("kind_", "wrap"),
    [
        ("mlp-discrete", VecNormalize),
        ("mlp-box", lambda env: VecNormalize(VecCheckNan(VecMonitor(env)))),
        ("mlp-box", lambda env: VecFrameStack(env, 3)),
        pytest.param("cnn-discrete", lambda env: VecFrameStack(env, 2), marks=pytest.mark.slow),
        pytest.param(
            "cnn-discrete",
            lambda env: VecNormalize(VecFrameStack(VecTransposeImage(env), 2), norm_obs=False),
            marks=pytest.mark.slow,
        ),
        pytest.param("cnn-discrete", VecTransposeImage, marks=pytest.mark.slow),
        pytest.param("cnn-box", VecMonitor, marks=pytest.mark.slow),
    ],
)
def test_wrappers(kind_: str, wrap: Callable[[VecEnv], VecEnv], tmp_path: Path) -> None:
    env = wrap(make_env(kind_))
    model = make_model(kind_, env).learn(32)
    assert (model.get_vec_normalize_env() is not None) == isinstance(env, VecNormalize)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.get_parameters()))
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", env=env)
    observations = loaded.env.reset()
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )


def test_subproc_vec_env() -> None:
    env = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv)
    model = DeepSPI("MlpPolicy", env, **RUN | {"n_steps": 32}).learn(64)
    env.close()
    assert model.num_timesteps == 64
    assert len(model.ep_info_buffer) > 0


# --- callbacks --------------------------------------------------------------------------------------


class Events(BaseCallback):
    """Notes what it is told, and what it then sees."""

    def __init__(self, steps: int = 10**9):
        super().__init__()
        self.steps, self.seen = steps, []

    def note(self, event: str) -> None:
        self.seen.append((event, self.num_timesteps, self.model._n_updates))

    def _init_callback(self) -> None:
        self.note("init")

    def _on_training_start(self) -> None:
        self.note("training_start")

    def _on_rollout_start(self) -> None:
        self.note("rollout_start")

    def _on_step(self) -> bool:
        self.note("step")
        assert {"infos", "rewards", "dones", "new_obs", "actions", "values", "log_probs"} <= set(self.locals)
        assert self.locals["self"] is self.model
        return self.n_calls < self.steps

    def _on_rollout_end(self) -> None:
        self.note("rollout_end")

    def _on_training_end(self) -> None:
        self.note("training_end")


def test_events_come_in_sb3s_order(fast: DeepSPI) -> None:
    callback = Events()
    first = fast._n_updates
    fast.learn(32, callback=callback)
    expected = [("init", 0, first), ("training_start", 0, first)]
    for update in range(2):
        steps = [(16 * update + 2 * (step + 1), first + update) for step in range(8)]
        expected += [("rollout_start", 16 * update, first + update), *(("step", *step) for step in steps)]
        expected += [("rollout_end", 16 * (update + 1), first + update)]
    assert callback.seen == [*expected, ("training_end", 32, first + 2)]


def test_a_callback_stops_training(fast: DeepSPI) -> None:
    callback = Events(steps=11)
    before = fast._n_updates
    fast.learn(1000, callback=[Events(), callback])
    assert fast.num_timesteps == 22
    assert fast._n_updates == before + 1
    assert [event for event, *_ in callback.seen[-2:]] == ["step", "training_end"]
    calls = []
    fast.learn(1000, callback=lambda local_variables, global_variables: calls.append(1) or len(calls) < 5)
    assert (len(calls), fast.num_timesteps) == (5, 10)


def test_eval_callback_keeps_the_best_model(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    evaluation = EvalCallback(
        make_env(kind, n_envs=1),
        callback_on_new_best=StopTrainingOnRewardThreshold(4.5),  # every episode gives 5
        n_eval_episodes=2,
        eval_freq=10,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model.learn(1000, callback=evaluation)
    assert model.num_timesteps == 20
    assert evaluation.best_mean_reward == 5
    assert np.load(tmp_path / "evaluations.npz")["results"].tolist() == [[5, 5]]
    best = DeepSPI.load(tmp_path / "best_model")
    assert best.num_timesteps == 20
    assert equal(best.get_parameters(), model.get_parameters())


def test_stop_training_on(fast: DeepSPI) -> None:
    stagnation = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=0)
    evaluation = EvalCallback(
        make_env("mlp-discrete", 1), callback_after_eval=stagnation, eval_freq=4, n_eval_episodes=1, verbose=0
    )
    fast.learn(1000, callback=evaluation)
    assert fast.num_timesteps == 24  # the third evaluation is the second without a better model
    fast.learn(1000, callback=StopTrainingOnMaxEpisodes(max_episodes=3))
    assert fast.num_timesteps == 30  # three episodes of five steps for each environment


def test_every_n_timesteps_checkpoints_and_the_progress_bar(fast: DeepSPI, tmp_path: Path) -> None:
    events = Events()
    every = EveryNTimesteps(n_steps=10, callback=events)
    checkpoints = CheckpointCallback(save_freq=6, save_path=str(tmp_path), save_vecnormalize=True)
    fast.learn(32, callback=CallbackList([every, checkpoints, LogEveryNTimesteps(n_steps=8), ProgressBarCallback()]))
    assert [steps for event, steps, _ in events.seen if event == "step"] == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl_model_12_steps.zip", "rl_model_24_steps.zip"]
    assert DeepSPI.load(tmp_path / "rl_model_24_steps").num_timesteps == 24
    assert fast.learn(16, progress_bar=True).num_timesteps == 16


# --- logging ----------------------------------------------------------------------------------------


def test_logger_formats(fast: DeepSPI, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = make_model("mlp-discrete")
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json", "tensorboard"]))
    model.learn(48)
    keys = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss", "world_model/reward_loss"}
    table = pd.read_csv(tmp_path / "progress.csv")
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert keys <= set(table.columns)
    assert keys <= set(lines[-1])
    assert table["time/total_timesteps"].tolist() == [line["time/total_timesteps"] for line in lines] == [16, 32, 48]
    assert table["rollout/ep_rew_mean"].tolist() == [5, 5, 5]
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert text.count("ep_rew_mean") == 3
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_tensorboard_folders(tmp_path: Path) -> None:
    model = make_model("mlp-discrete", tensorboard_log=str(tmp_path))
    model.learn(16)
    model.learn(16)
    model.learn(16, reset_num_timesteps=False)
    model.learn(16, tb_log_name="other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DeepSPI_1", "DeepSPI_2", "other_1"]


def test_verbose(capsys: pytest.CaptureFixture) -> None:
    make_model("mlp-discrete", verbose=0).learn(16)
    assert capsys.readouterr().out == ""
    DeepSPI("MlpPolicy", ToyEnv(IMAGE, DISCRETE), **RUN, verbose=1).learn(8)
    out = capsys.readouterr().out
    for line in ("Wrapping the env with a `Monitor` wrapper", "Wrapping the env in a DummyVecEnv", "VecTransposeImage"):
        assert line in out
    assert re.search(r"DeepSPI computes on \S+", out)
    assert "ep_len_mean" in out


@pytest.mark.parametrize("device", ["auto", "cpu", th.device("cpu"), "cpu:0"])
def test_devices(device: Any, fast: DeepSPI) -> None:
    loaded_from = io.BytesIO()
    fast.save(loaded_from)
    loaded = DeepSPI.load(loaded_from, device=device)
    assert loaded.jax_device in jax.devices()
    assert all(leaf.devices() == {loaded.jax_device} for leaf in jax.tree.leaves(loaded.policy.learner.parameters))
    with pytest.warns(UserWarning, match="JAX has no device 'tpu:9'"):
        assert DeepSPI.load(loaded_from, device="tpu:9").jax_device == jax.devices()[0]


def test_registered_environments_by_name() -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **RUN)
    assert model.n_envs == 1
    assert model.env.env_is_wrapped(Monitor) == [True]
    assert model.predict(make_vec_env("CartPole-v1", 1).reset())[0].shape == (1,)
