"""Runs that are interrupted: resumed bit for bit, ended by signals, and kept from parameters that are not finite."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from sbx_deepspi import CheckpointCallback, DeepSPI, make_envpool_env
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.sb3.algorithm import FAULTY_UPDATES_IN_A_ROW
from tests.helpers import TINY_RUN, VECTOR, ToyEnv, params, same

FAST = TINY_RUN | dict(policy_kwargs=dict(net_arch=[], transition_density="deterministic", lipschitz_constant=None))
"""Little to compile."""

# --- resuming ---------------------------------------------------------------------------------------

RUN = """
import sys
import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
import sbx_deepspi
from sbx_deepspi import CheckpointCallback

Algorithm = getattr(sbx_deepspi, sys.argv[2])

class Restorable(gym.Wrapper):
    # CartPole's state, and that of its generator
    def get_state(self):
        cartpole = self.unwrapped
        return {"state": np.array(cartpole.state), "generator": cartpole.np_random.bit_generator.state}

    def set_state(self, state):
        cartpole = self.unwrapped
        cartpole.state = state["state"]
        cartpole.np_random.bit_generator.state = state["generator"]

def environment(seed):
    return VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2, seed=seed, wrapper_class=Restorable), 2))

def learn(model, steps, folder, **kwargs):
    model.set_logger(configure(folder, ["csv"]))
    model.learn(steps, callback=CheckpointCallback(16, folder), reset_num_timesteps=False, **kwargs)
    model.save(f"{folder}/final")

if sys.argv[1] == "straight":
    model = Algorithm(
        "MlpPolicy", environment(0), n_steps=16, batch_size=8, n_epochs=2, seed=1,
        learning_rate=LinearSchedule(1e-2, 1e-3, 0.9), clip_range=LinearSchedule(0.3, 0.1, 1.0), stats_window_size=3,
        certificate_freq=2,
    )
    learn(model, 192, "straight")
else:
    for folder, force_reset in ("resumed", False), ("reset", True):
        # of other seeds, and already running: nothing of it may show
        env = environment(5)
        env.reset()
        env.step([0, 1])
        model = Algorithm.load("straight/rl_model_96_steps", env=env, force_reset=force_reset)
        learn(model, 96, folder)
"""


@pytest.fixture(scope="module", params=["DeepSPI", pytest.param("DreamSPI", marks=pytest.mark.slow)])
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folders of a run, and of two that take it up from the middle in a new process."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run.py").write_text(RUN)
    for which in ("straight", "resumed"):
        process = subprocess.run(
            [sys.executable, "run.py", which, request.param], cwd=folder, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
    return folder


def final(folder: Path) -> checkpoint.Checkpoint:
    contents = checkpoint.read(folder / "final.zip")
    for name in ("start_time", "_num_timesteps_at_start"):
        del contents.attributes[name]
    for episode in contents.attributes["ep_info_buffer"]:
        del episode["t"]  # seconds
    return contents


def equal(first: Any, second: Any) -> bool:
    try:
        np.testing.assert_equal(jax.device_get(first), jax.device_get(second))
    except AssertionError:
        return False
    return True


def test_a_resumed_run_is_the_run(runs: Path) -> None:
    straight, resumed = final(runs / "straight"), final(runs / "resumed")
    for name, tensor in straight.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.tensors[name], err_msg=name)
    learned = checkpoint.read(runs / "straight/rl_model_96_steps.zip").tensors
    assert any(not np.array_equal(tensor, learned[name]) for name, tensor in straight.tensors.items())
    assert straight.attributes.keys() == resumed.attributes.keys()
    for name, value in straight.attributes.items():
        if name not in ("learning_rate", "clip_range"):
            assert equal(value, resumed.attributes[name]), name
    assert equal(straight.environment, resumed.environment)
    assert len(straight.attributes["ep_info_buffer"]) == 3


def test_a_resumed_run_logs_what_the_run_logged(runs: Path) -> None:
    logs = {name: pd.read_csv(runs / name / "progress.csv") for name in ("straight", "resumed")}
    assert logs["resumed"]["time/total_timesteps"].tolist() == [128, 160, 192]
    # SB3 logs an update in the table after it: that of the update at 96 steps went with the old process
    rows = {
        name: log.tail(2).drop(columns=["time/fps", "time/time_elapsed", "time/iterations"]).reset_index(drop=True)
        for name, log in logs.items()
    }
    pd.testing.assert_frame_equal(rows["straight"], rows["resumed"], check_like=True, check_exact=True)
    assert {"train/loss", "spi/zeta", "rollout/ep_rew_mean"} <= set(rows["straight"])
    # every second update has a certificate: the fourth, the first after the checkpoint, has none, the fifth has
    assert rows["resumed"]["spi/zeta"].notna().tolist() == [False, True]


def test_without_the_environments_state_it_is_another_run(runs: Path) -> None:
    straight, reset = final(runs / "straight"), final(runs / "reset")
    assert not equal(straight.tensors, reset.tensors)
    assert straight.attributes["num_timesteps"] == reset.attributes["num_timesteps"]


def test_environments_without_state_keep_everything_else(tmp_path: Path) -> None:
    env = make_envpool_env("CartPole-v1", n_envs=2, seed=0)
    model = DeepSPI("MlpPolicy", env, **FAST).learn(32)
    model.save(tmp_path / "model")
    assert checkpoint.read(tmp_path / "model.zip").environment == {
        "normalization": None,
        "episodes": None,
        "inside_jit": None,
    }
    loaded = DeepSPI.load(tmp_path / "model", env=env)
    assert equal(loaded.policy.tensors(), model.policy.tensors())
    assert equal(loaded.key, model.key)
    loaded.save(tmp_path / "again")
    first, second = (
        json.loads(zipfile.ZipFile(tmp_path / f"{name}.zip").read(checkpoint.JSON))["attributes"]
        for name in ("model", "again")
    )
    # counters, schedules, the statistics of the last episodes: everything but where the environments were
    assert [name for name in first if first[name] != second.get(name)] == ["_last_obs"]
    assert (loaded.num_timesteps, loaded._n_updates) == (32, 4)
    assert loaded.learn(16, reset_num_timesteps=False).num_timesteps == 48


class Frail(ToyEnv):
    """Its state cannot be had once it is closed."""

    closed = False

    def get_state(self) -> dict[str, int]:
        if self.closed:
            raise RuntimeError("closed")
        return {"steps": self.steps}

    def set_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_a_closed_environment_does_not_stop_a_save(vec_env: Any, tmp_path: Path) -> None:
    env = vec_env([lambda: Frail(VECTOR, spaces.Discrete(2))])
    model = DeepSPI("MlpPolicy", env, **FAST).learn(8)
    model.save(tmp_path / "open")
    assert checkpoint.read(tmp_path / "open.zip").environment["episodes"]["states"] == [{"steps": 3}]
    env.close()
    with pytest.warns(UserWarning, match="environment's state could not be saved"):
        model.save(tmp_path / "closed")
    assert DeepSPI.load(tmp_path / "closed").num_timesteps == 8


def test_a_time_limit_goes_on(tmp_path: Path) -> None:
    gym.register("Frail-v0", lambda: Frail(VECTOR, spaces.Discrete(2), length=100), max_episode_steps=5)
    env = make_vec_env("Frail-v0")
    model = DeepSPI("MlpPolicy", env, **FAST).learn(0)
    for _ in range(3):
        env.step([0])
    model.save(tmp_path / "model")
    episodes = checkpoint.read(tmp_path / "model.zip").environment["episodes"]
    np.testing.assert_array_equal(episodes["rewards"], [[1.0, 1.0, 1.0]])
    other = make_vec_env("Frail-v0")
    DeepSPI.load(tmp_path / "model", env=other, force_reset=False)
    assert [bool(other.step([0])[2][0]) for _ in range(3)] == [False, True, False]
    del gym.registry["Frail-v0"]


class Opaque(Frail):
    def get_state(self) -> Any:
        return {"steps": object()}


def test_a_state_without_a_plain_form_is_left_out(tmp_path: Path) -> None:
    model = DeepSPI("MlpPolicy", Opaque(VECTOR, spaces.Discrete(2)), **FAST).learn(0)
    with pytest.warns(UserWarning, match=r"state could not be saved .*environment/states/0/steps = .* no plain form"):
        model.save(tmp_path / "model")
    assert checkpoint.read(tmp_path / "model.zip").environment["episodes"] is None
    env = DummyVecEnv([lambda: Opaque(VECTOR, spaces.Discrete(2))])
    with pytest.warns(UserWarning, match="does not hold the environment's state: it is reset, in spite of force_reset"):
        loaded = DeepSPI.load(tmp_path / "model", env=env, force_reset=False)
    loaded.learn(0, reset_num_timesteps=False)
    env.step([0])  # it has been reset


class Own(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_wrappers_that_may_have_a_state_are_named(tmp_path: Path) -> None:
    env = Own(DummyVecEnv([lambda: Frail(VECTOR, spaces.Discrete(2))]))
    with pytest.warns(UserWarning, match="What Own keeps from step to step, if anything, is not saved"):
        DeepSPI("MlpPolicy", env, **FAST).learn(0).save(tmp_path / "model")


# --- checkpoints ------------------------------------------------------------------------------------


def test_the_last_checkpoints_and_the_latest(tmp_path: Path) -> None:
    (tmp_path / "rl_model_999_steps.zip").touch()  # of an older run: the first to go
    os.utime(tmp_path / "rl_model_999_steps.zip", (0, 0))
    others = ["rl_model_9_9_steps.zip", "rl_model_best_steps.zip", "rl_model_x_7_steps.zip"]
    for other in others:
        (tmp_path / other).touch()
    model = DeepSPI("MlpPolicy", make_vec_env("CartPole-v1", 2), **FAST)
    model.learn(80, callback=CheckpointCallback(9, tmp_path, keep=2))
    # every 9 steps of an environment, at the end of the update that was running: after 16, 32, ... and at the end
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rl_model_64_steps.zip", "rl_model_80_steps.zip", *others[:2], "rl_model_latest.zip", others[2]
    ]  # fmt: skip
    assert (tmp_path / "rl_model_latest.zip").readlink() == Path("rl_model_80_steps.zip")
    latest = DeepSPI.load(tmp_path / "rl_model_latest.zip")
    assert same(params(latest), params(model))
    assert (latest.num_timesteps, latest._n_updates) == (80, 10)
    for arguments in ((0, tmp_path), (1, tmp_path, "rl_model", 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            CheckpointCallback(*arguments)


def test_the_newest_checkpoint_is_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    for steps in (1, 2, 3):
        (tmp_path / f"rl[1]_{steps}_steps.zip").touch()
        os.utime(tmp_path / f"rl[1]_{steps}_steps.zip", (2**33, 2**33 + steps))
    model = DeepSPI("MlpPolicy", "CartPole-v1", **FAST)
    model.learn(0, callback=CheckpointCallback(1, tmp_path, "rl[1]", keep=5))
    assert len(list(tmp_path.iterdir())) == 5
    model.learn(0, callback=CheckpointCallback(1, tmp_path, "rl[1]", keep=2))
    assert {path.name for path in tmp_path.iterdir()} == {
        "rl[1]_0_steps.zip", "rl[1]_3_steps.zip", "rl[1]_latest.zip"
    }  # fmt: skip
    (tmp_path / "rl[1]_latest.zip").unlink()
    (tmp_path / "rl[1]_latest.zip").mkdir()
    with pytest.raises(OSError, match=r"latest.zip point at .* \(it is a folder: move it away\)"):
        model.learn(0, callback=CheckpointCallback(1, tmp_path, "rl[1]", keep=2))
    assert not list(tmp_path.glob(".*"))


# --- signals ----------------------------------------------------------------------------------------


class At(BaseCallback):
    """Calls a function at the third step."""

    def __init__(self, function: Callable[[], Any]):
        super().__init__()
        self.function = function
        self.ended = 0

    def _on_step(self) -> bool:
        if self.n_calls == 3:
            self.function()
        return True

    def _on_training_end(self) -> None:
        self.ended += 1


def send(*numbers: signal.Signals) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_after_the_running_update(number: signal.Signals, capfd: pytest.CaptureFixture) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    model, callback = DeepSPI("MlpPolicy", "CartPole-v1", **FAST), At(send(number))
    with pytest.raises(KeyboardInterrupt, match=f"{number.name} after 8 steps"):
        model.learn(100, callback=callback)
    assert (model.num_timesteps, model._n_updates, callback.ended) == (8, 2, 1)
    assert capfd.readouterr().err == f"{number.name}: training stops after this update; once more stops it now.\n"
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert model.learn(16, reset_num_timesteps=False).num_timesteps == 24


def test_the_second_signal_stops_at_once() -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **FAST)
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, callback=At(send(signal.SIGTERM, signal.SIGINT)))
    assert (model.num_timesteps, model._n_updates) == (3, 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_handlers_of_others_and_other_threads_are_left_alone() -> None:
    noted: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    try:
        model = DeepSPI("MlpPolicy", "CartPole-v1", **FAST).learn(8, callback=At(send(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (noted, model.num_timesteps) == ([signal.SIGTERM], 8)
    thread = threading.Thread(target=lambda: model.learn(8))
    thread.start()
    thread.join()
    assert model._n_updates == 4


def test_a_signal_that_ends_the_environments_of_a_callback() -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        raise EOFError  # what a SubprocVecEnv for evaluations says when its processes are gone

    model, callback = DeepSPI("MlpPolicy", "CartPole-v1", **FAST), At(interrupted)
    with pytest.raises(KeyboardInterrupt, match="SIGINT after 3 steps"):
        model.learn(100, callback=callback)
    assert callback.ended == 1


SCRIPT = """
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import {vec_env}
from sbx_deepspi import CheckpointCallback, DeepSPI

if __name__ == "__main__":
    env = make_vec_env("CartPole-v1", 2, vec_env_cls={vec_env})
    kwargs = dict(net_arch=[], transition_density="deterministic", lipschitz_constant=None)
    model = DeepSPI("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, verbose=1, policy_kwargs=kwargs)
    model.learn(10_000_000, callback=CheckpointCallback(1_000_000, "checkpoints"))
"""


@pytest.mark.parametrize(
    ("vec_env", "number"),
    [("SubprocVecEnv", signal.SIGINT), ("DummyVecEnv", signal.SIGTERM)],
    ids=str,
)
@pytest.mark.slow
def test_a_script_leaves_its_last_checkpoint(vec_env: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(vec_env=vec_env))
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "script.py"], cwd=tmp_path, stdout=output, stderr=output, start_new_session=True
        )
        wait_for("n_updates", tmp_path / "output", process)
        os.killpg(process.pid, number)  # as a terminal does: workers get it too
        process.wait(timeout=60)
    output = (tmp_path / "output").read_text()
    assert process.returncode == -signal.SIGINT, output  # what a shell calls 130
    assert f"{number.name}: training stops after this update" in output
    assert f"KeyboardInterrupt: {number.name} after" in output
    model = DeepSPI.load(tmp_path / "checkpoints/rl_model_latest.zip")
    assert model._n_updates > 0
    if vec_env == "DummyVecEnv":
        assert model.num_timesteps == model._n_updates * 128  # no half rollout


def test_ctrl_c_also_ends_who_reads_our_output(tmp_path: Path) -> None:
    """``python script.py 2>&1 | tee output``: there is nowhere to write to, but a checkpoint."""
    (tmp_path / "script.py").write_text(SCRIPT.format(vec_env="DummyVecEnv"))
    (tmp_path / "output").touch()
    pipeline = f"trap : INT; {sys.executable} -u script.py 2>&1 | tee output"
    process = subprocess.Popen(
        ["bash", "-c", pipeline], cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
    )
    wait_for("n_updates", tmp_path / "output", process)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=60)
    assert DeepSPI.load(tmp_path / "checkpoints/rl_model_latest.zip")._n_updates > 0


def wait_for(text: str, file: Path, process: subprocess.Popen) -> None:
    deadline = 120
    for _ in range(deadline * 5):
        if text in file.read_text():
            return
        try:
            process.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(file.read_text())


# --- updates that are not finite --------------------------------------------------------------------


class Exploding(ToyEnv):
    """Rewards that float32 can hold, and whose square it cannot, from some step on."""

    def __init__(self, first: int, last: int = 10**9):
        super().__init__(VECTOR, spaces.Discrete(2), length=10**9)
        self.faulty = range(first, last)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, *rest = super().step(action)
        return observation, 1e30 if self.steps in self.faulty else reward, *rest


@pytest.mark.parametrize("target_kl", [None, 1e9])
def test_faulty_updates_are_not_applied_and_three_stop_training(target_kl: float | None, tmp_path: Path) -> None:
    good = DeepSPI("MlpPolicy", Exploding(17), **FAST, target_kl=target_kl).learn(16)
    model = DeepSPI("MlpPolicy", Exploding(17), **FAST, target_kl=target_kl)
    with (
        pytest.warns(RuntimeWarning, match="The update after 24 steps had a non-finite loss in 2 of 2 minibatches"),
        pytest.raises(ValueError, match=r"3 updates in a row .* The update after 40 steps had a non-finite loss"),
    ):
        model.learn(1000, callback=CheckpointCallback(10**6, tmp_path))
    assert model.num_timesteps == 16 + FAULTY_UPDATES_IN_A_ROW * 8
    assert same(params(model), params(good))
    assert same(
        jax.device_get(model.policy.learner.optimizer_state[1].inner_state),
        jax.device_get(good.policy.learner.optimizer_state[1].inner_state),
    )
    assert same(params(DeepSPI.load(tmp_path / "rl_model_latest")), params(good))


def test_faults_with_good_updates_between_them_do_not_stop_training() -> None:
    env = Exploding(9, 25)  # two rollouts of 8
    model = DeepSPI("MlpPolicy", env, **FAST)
    with pytest.warns(RuntimeWarning, match="non-finite loss") as caught:
        model.learn(48)
    assert len(caught) == 2
    assert model.num_timesteps == 48
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params(model)))


def test_only_the_minibatches_at_fault_are_left_out() -> None:
    run = FAST | dict(n_steps=16, batch_size=4, n_epochs=1)
    model = DeepSPI("MlpPolicy", Exploding(5, 6), **run, gamma=0.0, gae_lambda=0.0, normalize_advantage=False)
    with pytest.warns(RuntimeWarning, match="non-finite loss in 1 of 4 minibatches"):
        model.learn(16)
    assert model.policy.learner.optimizer_state[1].count == 3
    assert np.isfinite(model.logger.name_to_value["train/loss"])


class Zeros(ToyEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, *rest = super().step(action)
        return np.zeros_like(observation), *rest


@pytest.mark.parametrize(
    ("quantity", "kwargs"),
    [
        # the root's slope at 0 is infinite, and all that comes before the first bias is 0
        ("gradient", dict(policy_kwargs=FAST["policy_kwargs"] | dict(activation_fn=lambda x: jnp.sqrt(jnp.abs(x))))),
        ("parameters", dict(learning_rate=1e39)),
    ],
)
def test_the_quantity_at_fault_is_named(quantity: str, kwargs: dict[str, Any]) -> None:
    model = DeepSPI("MlpPolicy", Zeros(VECTOR, spaces.Discrete(2)), **FAST | kwargs)
    before = params(model)
    with (
        warnings.catch_warnings(record=True) as caught,
        pytest.raises(ValueError, match=f"non-finite {quantity} in 2 of 2"),
    ):
        warnings.simplefilter("always")
        model.learn(1000)
    assert len([w for w in caught if w.category is RuntimeWarning and "non-finite" in str(w.message)]) == 3
    assert same(before, params(model))


def test_checkpoints_that_a_killed_run_left_half_written_are_swept(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f".{name}_8_steps.zip.0.tmp" for name in ("rl_model", "rl_model_new", "somebody"))
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(2)), **FAST)
    model.learn(0, callback=CheckpointCallback(1, tmp_path))
    assert not old.exists()
    assert new.exists() and other.exists()  # perhaps being written; not ours
