"""SB3's ``SubprocVecEnv`` with a timeout."""

import contextlib
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.subproc_vec_env import _stack_obs

from sbx_deepspi.collect.vec_env import check_shape


class TimeoutSubprocVecEnv(SubprocVecEnv):
    """
    Environments in processes of their own. If an environment hangs, if its process ends, or if an observation has a
    wrong shape, an error says which environment it is.

    Use it as ``make_vec_env(..., vec_env_cls=TimeoutSubprocVecEnv, vec_env_kwargs=dict(timeout=60))``. There is no such
    timeout for environments in the trainer's own process (``DummyVecEnv``, EnvPool).

    :param env_fns: one function per environment, which makes it
    :param start_method: how processes are started, see ``multiprocessing``
    :param timeout: seconds that an environment may take to answer. Its first answer includes the start of its process.
    :raises TimeoutError: the first environment was not made in time
    :raises ConnectionError: the first environment could not be made
    """

    def __init__(
        self, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None, timeout: float = 60.0
    ) -> None:
        self.timeout = timeout
        start = time.monotonic()
        self.processes = []
        answered = threading.Event()
        threading.Thread(target=self._kill_unless, args=(answered,), daemon=True).start()
        try:
            try:
                super().__init__(env_fns, start_method)
            finally:
                answered.set()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            late = time.monotonic() - start >= timeout
            connection = _TimeoutConnection(self.remotes[0], self.processes[0], 0, timeout)
            ended = connection.hangs() if late else connection.ended()
            self._end_processes(wait=0.0)
            raise ended from error
        self.remotes: tuple[Any, ...] = tuple(
            _TimeoutConnection(remote, process, i, timeout)
            for i, (remote, process) in enumerate(zip(self.remotes, self.processes, strict=True))
        )

    def _kill_unless(self, answered: threading.Event) -> None:
        # SB3's constructor waits for the spaces of the first environment, without a timeout. Killing the process ends
        # the wait with an error.
        wait = self.timeout
        while not answered.wait(wait):
            for process in self.processes:
                process.kill()
            wait = 0.1  # the constructor may start further processes

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the step.

        :return: observations of shape (n_envs, ...), rewards and dones of shape (n_envs,), and infos
        :raises TimeoutError: an environment has not answered in time
        :raises ConnectionError: the process of an environment has ended
        :raises ValueError: the shape of an observation is not that of the observation space
        """
        results = [remote.recv() for remote in self.remotes]
        self.waiting = False
        for i, (observation, _, done, info, _) in enumerate(results):
            # At the end of an episode there are two observations: its last one, and the first of the next episode
            for value in (observation, info["terminal_observation"]) if done else (observation,):
                check_shape(i, value, self.observation_space)
        observations, rewards, dones, infos, self.reset_infos = zip(*results, strict=True)  # type: ignore[assignment]
        stacked = _stack_obs(observations, self.observation_space)
        return stacked, np.stack(rewards), np.stack(dones), list(infos)

    def close(self) -> None:
        if self.closed:
            return
        if not self._any_failed():
            with contextlib.suppress(TimeoutError, ConnectionError):
                for remote in self.remotes:
                    if self.waiting:
                        remote.recv()
                    remote.send(("close", None))
        # After a failure, kill the processes at once: a process that hangs would not answer
        self._end_processes(wait=0.0 if self._any_failed() else self.timeout)

    def _any_failed(self) -> bool:
        return any(remote.error is not None for remote in self.remotes)

    def _end_processes(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.join(max(deadline - time.monotonic(), 0.0))
            process.kill()
            process.join()
            process.close()
            remote.close()
        self.closed = True


class _TimeoutConnection:
    """A connection to an environment's process that raises the errors of :class:`TimeoutSubprocVecEnv`."""

    def __init__(self, connection: Connection, process: BaseProcess, index: int, timeout: float) -> None:
        self.connection, self.process, self.index, self.timeout = connection, process, index, timeout
        # Also raised at every later use: a late answer would be taken for the answer to a later question
        self.error: OSError | None = None

    def send(self, message: Any) -> None:
        if self.error is not None:
            raise self.error
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self.ended() from error

    def recv(self) -> Any:
        if self.error is not None:
            raise self.error
        if not self.connection.poll(self.timeout):
            raise self.hangs()
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self.ended() from error

    def hangs(self) -> OSError:
        self.error = TimeoutError(f"Environment {self.index} has not answered for {self.timeout:g} s: close them all.")
        return self.error

    def ended(self) -> OSError:
        self.process.join(timeout=5)
        self.error = ConnectionError(
            f"The process of environment {self.index} has ended (exit code {self.process.exitcode}): if the "
            "environment raised an error, its traceback is above."
        )
        return self.error

    def close(self) -> None:
        self.connection.close()
