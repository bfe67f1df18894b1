"""SB3's ``SubprocVecEnv``, which does not wait for ever."""

from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class TimeoutSubprocVecEnv(SubprocVecEnv):
    """
    Environments in processes of their own, where one that hangs, ends or changes its observations is an error.

    ``make_vec_env(..., vec_env_cls=TimeoutSubprocVecEnv, vec_env_kwargs=dict(timeout=60))``. Environments that run in
    the trainer's own process (``DummyVecEnv``, EnvPool) cannot be stopped from it.

    :param env_fns: functions that make an environment with Box observations each
    :param start_method: of the processes, see ``multiprocessing``
    :param timeout: seconds that an environment may take for an answer
    """

    def __init__(
        self, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None, timeout: float = 60.0
    ) -> None:
        super().__init__(env_fns, start_method)
        self.remotes: tuple[Any, ...] = tuple(
            _ImpatientConnection(remote, process, i, timeout)
            for i, (remote, process) in enumerate(zip(self.remotes, self.processes, strict=True))
        )

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step.

        :return: observations of shape (n_envs, ...), rewards and dones of shape (n_envs,), and infos
        :raises TimeoutError: an environment has not answered in time
        :raises ConnectionError: the process of an environment has ended
        :raises ValueError: an observation has another shape than its space
        """
        results = [remote.recv() for remote in self.remotes]
        self.waiting = False
        for i, (observation, *_) in enumerate(results):
            if np.shape(observation) != self.observation_space.shape:
                raise ValueError(
                    f"Environment {i} returned an observation of shape {np.shape(observation)}, but its observation "
                    f"space has shape {self.observation_space.shape}."
                )
        observations, rewards, dones, infos, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        return np.stack(observations), np.stack(rewards), np.stack(dones), list(infos)

    def close(self) -> None:
        if self.closed:
            return
        if any(remote.failed for remote in self.remotes):  # to ask nicely would be to wait again
            for process, remote in zip(self.processes, self.remotes, strict=True):
                process.kill()
                process.join()
                remote.close()
            self.closed = True
        super().close()
        for process in self.processes:
            process.close()


class _ImpatientConnection:
    """A connection to an environment's process, with the errors of :class:`TimeoutSubprocVecEnv`."""

    def __init__(self, connection: Connection, process: BaseProcess, index: int, timeout: float) -> None:
        self.connection, self.process, self.index, self.timeout = connection, process, index, timeout
        self.failed = False

    def send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._ended() from error

    def recv(self) -> Any:
        if not self.connection.poll(self.timeout):
            self.failed = True
            raise TimeoutError(f"Environment {self.index} has not answered for {self.timeout:g} s: close them all.")
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._ended() from error

    def _ended(self) -> ConnectionError:
        self.failed = True
        self.process.join(timeout=5)
        return ConnectionError(
            f"The process of environment {self.index} has ended (exit code {self.process.exitcode}): if the "
            "environment raised an error, its traceback is above."
        )

    def close(self) -> None:
        self.connection.close()
