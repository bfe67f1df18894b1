"""
What processes that train one model tell each other while none of them runs a program, and how each notices that another
is gone.

They talk through the key-value store of ``jax.distributed``, which process 0 keeps. No program waits there for others,
so that bad news comes as a sentence, and not as a program that never ends.
"""

import atexit
import functools
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
from jax._src import distributed  # JAX has no other way to the store

FOLDER = "sbx_deepspi"
"""Where in the store all keys are."""
BEAT = 2.0
"""Seconds from one sign of life to the next."""
SILENCE = 30.0
"""Seconds without a sign of life after which a process is taken for dead."""
COLLECTIVES = ("Gloo", "NCCL")
"""Libraries through which devices of several processes talk, as errors name them."""
TIME_TO_LEAVE = 15.0
"""Seconds until a process ends that waits in a program for one that is gone."""


class ProcessLostError(RuntimeError):
    """Another process has ended, or has been killed: the training cannot go on."""


class Processes:
    """
    This process, and the others that ``jax.distributed`` has joined with it. There is one, see :func:`processes`.

    :param index: number of this process
    :param count: how many there are
    """

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self._store: Any = distributed.global_state.client
        self._training = 0  # number of the present one, or of the last
        self._exchange = 0  # number of the next one of this training
        self._runs_program = False
        self._ended: set[int] = set()  # processes whose programs have come to their end
        self._silent: set[int] = set()  # processes that have given no sign of life for long
        self._lost: str | None = None  # what has become of a process that this training waits for
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sbx_deepspi watches other processes", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def __enter__(self) -> "Processes":
        """Begin a training, in all processes."""
        self._training, self._exchange, self._lost = self._training + 1, 0, None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        """
        End it. Where it fails here, the others are told, so that they do not wait.

        :raises ProcessLostError: the error came from a program that waited for a process that is gone
        """
        if error is None or isinstance(error, ProcessLostError):
            return
        if any(library in str(error) for library in COLLECTIVES):
            # that another process is gone shows a little later
            deadline = time.monotonic() + SILENCE + 2 * BEAT
            while self._lost is None and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
            if self._lost is not None:
                raise self._loss() from error
        self.leave(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    @contextmanager
    def program(self) -> Iterator[None]:
        """While a program runs that waits for the others': if one of them is gone, this process can only end."""
        self._runs_program = True
        try:
            yield
        finally:
            self._runs_program = False

    def exchange(self, message: Any) -> list[Any]:
        """
        Tell all, and wait for all, in a training.

        :param message: what JSON can hold
        :return: the messages of all processes, in their order
        :raises ProcessLostError: one of them is gone
        """
        of_training, number = f"{FOLDER}/exchanges/{self._training}", self._exchange
        self._exchange += 1
        self._store.key_value_set(f"{of_training}/{number}/{self.index}", json.dumps(message))
        if self.index == 0:
            messages = [self._wait_for(f"{of_training}/{number}/{index}") for index in range(self.count)]
            # who has come to this exchange has read what the last one said
            self._store.key_value_delete(f"{of_training}/{number - 1}")
            self._store.key_value_set(f"{of_training}/{number}/all", f"[{','.join(messages)}]")
        of_all: list[Any] = json.loads(self._wait_for(f"{of_training}/{number}/all"))
        return of_all

    def leave(self, why: str) -> None:
        """
        Tell the others that this process is in the present training no more.

        :param why: in words
        """
        why = why.encode("utf-8", "replace").decode()  # names of files may be no text
        self._store.key_value_set(f"{FOLDER}/left/{self._training}/{self.index}", why, allow_overwrite=True)

    def _wait_for(self, key: str) -> str:
        waited = time.monotonic()
        while True:
            try:
                return str(self._store.blocking_key_value_get(key, 1000))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if self._lost is not None:
                raise self._loss()
            if time.monotonic() - waited > SILENCE:
                waited = math.inf
                print(f"Process {self.index} waits for another: {key} has not come.", file=sys.stderr, flush=True)

    def _loss(self) -> ProcessLostError:
        return ProcessLostError(
            f"{self._lost}: training cannot go on in process {self.index}. The last checkpoint resumes, with as many "
            "processes as you like."
        )

    def _watch(self) -> None:
        beats: dict[int, tuple[str, float]] = {}
        blocked_since = math.inf
        for number in itertools.count():
            if self._ends.wait(BEAT):
                return
            training, now = self._training, time.monotonic()
            try:
                self._store.key_value_set(f"{FOLDER}/beats/{self.index}", str(number), allow_overwrite=True)
                left = self._others(f"{FOLDER}/left/{training}/")
                self._ended = set(self._others(f"{FOLDER}/ended/"))
                seen = self._others(f"{FOLDER}/beats/")
            except jax.errors.JaxRuntimeError:  # without its process 0, JAX ends this one within seconds
                continue
            for index, beat in seen.items():
                if beats.get(index, ("", 0.0))[0] != beat:
                    beats[index] = beat, now
            self._silent = {index for index, (_, last) in beats.items() if now - last > SILENCE} - self._ended
            fates = [(index, f"has left ({why})") for index, why in left.items()]
            fates += [(index, "has come to the end of its program") for index in self._ended]
            silence = f"has given no sign of life for {SILENCE:g} seconds: it was killed, or cut off"
            fates += [(index, silence) for index in self._silent]
            if fates and training == self._training:
                index, fate = fates[0]
                self._lost = f"Process {index} of {self.count} {fate}"
            if self._lost is None or not self._runs_program:
                blocked_since = math.inf
                continue
            blocked_since = min(blocked_since, now)
            if now - blocked_since > TIME_TO_LEAVE:
                _end_at_once(str(self._loss()))

    def _others(self, folder: str) -> dict[int, str]:
        found = {int(key.removeprefix(folder)): value for key, value in self._store.key_value_dir_get(folder)}
        return {index: value for index, value in found.items() if index != self.index}

    def _end(self) -> None:
        """Wait until all programs come to their end: after some minutes of waiting, JAX ends those that still work."""
        try:
            self._store.key_value_set(f"{FOLDER}/ended/{self.index}", "", allow_overwrite=True)
            while self._others(f"{FOLDER}/beats/").keys() - self._others(f"{FOLDER}/ended/") and not self._silent:
                self._ends.wait(BEAT / 4)
        except jax.errors.JaxRuntimeError:  # the script itself has ended what jax.distributed joined
            pass
        self._ends.set()
        self._thread.join()
        if self._silent:
            _end_at_once()


def _end_at_once(why: str = "") -> None:
    """
    End this process: in a program, and at its end, JAX would wait for one that is gone.

    :param why: in words
    """
    try:
        if why:
            print(why, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(1)


def is_first_process() -> bool:
    """
    :return: whether it is this process that logs, prints and saves
    """
    return jax.process_index() == 0


@functools.cache
def processes() -> Processes | None:
    """
    :return: the processes that ``jax.distributed`` has joined; ``None``: it has joined none
    """
    count = jax.process_count()
    return Processes(jax.process_index(), count) if count > 1 else None


def waits_for_others() -> AbstractContextManager[None]:
    """
    :return: a context for programs that wait for those of other processes
    """
    joined = processes()
    return nullcontext() if joined is None else joined.program()
