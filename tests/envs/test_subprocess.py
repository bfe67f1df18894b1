"""Environments in processes of their own: failures there become errors here, and nothing hangs."""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sbx_deepspi import DeepSPI
from sbx_deepspi.envs import TimeoutSubprocVecEnv

# SB3 starts processes with forkserver, which takes milliseconds instead of seconds if the server has already imported
# SB3, and RL Zoo: where other tests have imported RL Zoo, environments have its TimeLimit wrapper.
multiprocessing.set_forkserver_preload(["stable_baselines3.common.vec_env.subproc_vec_env", "rl_zoo3"])


def failing(fault: str) -> gym.Env:
    """An environment that fails at its third step. Its class is local, so its process need not import this module."""

    class Failing(gym.Wrapper):
        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            observation, *rest = super().step(action)
            if self.steps == 3:
                if fault == "last shape":
                    return observation[:1], 1.0, True, False, {}
                if fault == "raise":
                    raise RuntimeError("the environment's own words")
                if fault == "hang":
                    time.sleep(1000)
                if fault == "shape":
                    observation = observation[:3]
            return observation, *rest

        def close(self) -> None:
            if fault == "hang in close":
                time.sleep(1000)

    return Failing(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("fault", "error", "sentence"),
    [
        ("raise", ConnectionError, r"process of environment 1 has ended \(exit code 1\)"),
        ("hang", TimeoutError, "Environment 1 has not answered for 0.5 s"),
        ("shape", ValueError, r"Environment 1 returned an observation of shape \(3,\), but .* has shape \(4,\)"),
        ("last shape", ValueError, r"Environment 1 returned an observation of shape \(1,\), but .* has shape \(4,\)"),
    ],
)
def test_faults(fault: str, error: type[Exception], sentence: str) -> None:
    good, bad = failing("none"), failing(fault)
    env = TimeoutSubprocVecEnv([lambda: good, lambda: bad])
    handles = len(os.listdir("/proc/self/fd"))
    pids = [process.pid for process in env.processes]
    env.reset()
    for remote in env.remotes:  # both processes run by now
        remote.timeout = 0.5
    actions = np.zeros(2, int)
    env.step(actions)
    env.step(actions)
    with pytest.raises(error, match=sentence):
        env.step(actions)
    if error is not ValueError:  # a late answer must not be taken for the answer to a later question
        with pytest.raises(error, match=sentence):
            env.get_attr("spec")
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 5
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert len(os.listdir("/proc/self/fd")) <= handles - 2  # the pipes


def test_environments_that_cannot_be_made_or_closed() -> None:
    with pytest.raises(TimeoutError, match=r"Environment 0 has not answered for 0.1 s"):
        TimeoutSubprocVecEnv([lambda: time.sleep(1000)], timeout=0.1)
    with pytest.raises(ConnectionError, match=r"process of environment 0 has ended \(exit code 1\)"):
        TimeoutSubprocVecEnv([lambda: 1 / 0])
    bad = failing("hang in close")
    env = TimeoutSubprocVecEnv([lambda: bad])
    env.reset()
    env.timeout = 0.5
    pid = env.processes[0].pid
    env.close()
    assert not Path(f"/proc/{pid}").exists()


def test_without_faults_it_behaves_as_sb3s() -> None:
    kwargs: dict[str, Any] = dict(n_envs=2, seed=0)
    ours = make_vec_env("CartPole-v1", vec_env_cls=TimeoutSubprocVecEnv, vec_env_kwargs=dict(timeout=60), **kwargs)
    theirs = make_vec_env("CartPole-v1", vec_env_cls=SubprocVecEnv, **kwargs)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for _ in range(30):
        for mine, other in zip(ours.step(np.ones(2, int)), theirs.step(np.ones(2, int)), strict=True):
            if isinstance(mine, np.ndarray):
                np.testing.assert_array_equal(mine, other)
    assert ours.get_attr("spec") == theirs.get_attr("spec")
    ours.close()
    theirs.close()


def test_the_end_of_an_evaluation_environment_is_reported() -> None:
    bad = failing("raise")
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1)
    with pytest.raises(ConnectionError, match="process of an environment, for training or for evaluation, has ended"):
        model.learn(16, callback=EvalCallback(SubprocVecEnv([lambda: bad]), eval_freq=4, warn=False))
