"""What runs when, and where: Ray's tasks, tried again when they fail."""

import contextlib
import logging
import os
import signal
import socket
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import ray
from ray.exceptions import RayError, RayTaskError

from sbx_deepspi.envs.jitted.make import is_jax_env_id
from sbx_deepspi.suite.definition import SuiteError
from sbx_deepspi.suite.folder import DONE, FAILED, WAITING, Run, common_checkpoint, lock
from sbx_deepspi.zoo.registration import OUR_ALGOS

Group = tuple[Run, ...]
"""Runs that learn in one program: they differ in their seeds, and go on from the same number of steps."""
N_RETRIES = 2
SECONDS_TO_END = 120.0
"""That interrupted runs have to finish their update and to save."""
OBJECT_STORE_BYTES = 80 * 2**20  # nothing is sent but names; Ray would take a third of the memory


@dataclass
class Ends:
    """
    How often a run ended before it was done, since the driver began.

    :param number: for whatever reason
    :param failures: of these, those that count: its own errors, and lost workers that had saved nothing new
    :param saved: timesteps of its newest checkpoint when it last ended
    """

    number: int = 0
    failures: int = 0
    saved: int = 0


def run_all(
    runs: Sequence[Run],
    cpus_per_run: float,
    gpus_per_run: float,
    address: str | None,
    tell: Callable[[], None],
) -> None:
    """
    Train what is not done yet.

    :param runs: that are asked for
    :param cpus_per_run: cores of each program
    :param gpus_per_run: of each program; 0.25 lets four share one
    :param address: of a Ray cluster; ``None``: this machine
    :param tell: called about once a second
    :raises KeyboardInterrupt: SIGINT or SIGTERM came: the runs have saved, and the same call goes on
    :raises SuiteError: no machine can run them
    """
    with connected(address, cpus_per_run, gpus_per_run), interrupted_by_sigterm():
        for run in runs:
            write_if_free(run, state=WAITING, attempts=0, error=None)
        task = ray.remote(num_cpus=cpus_per_run, num_gpus=gpus_per_run, max_retries=0)(train_in_worker)
        under_way: dict[ray.ObjectRef, Group] = {}
        ends: defaultdict[Run, Ends] = defaultdict(Ends)
        try:
            for group in groups(runs):
                under_way[task.remote(group, cpus_per_run, gpus_per_run)] = group
            while under_way:
                ended, _ = ray.wait(list(under_way), timeout=1.0)
                for future in ended:
                    ended_group = under_way.pop(future)
                    for group in again(ended_group, *why_it_ended(future, ended_group), ends):
                        under_way[task.remote(group, cpus_per_run, gpus_per_run)] = group
                tell()
        except KeyboardInterrupt:
            for future in under_way:
                ray.cancel(future)
            if under_way:
                ray.wait(list(under_way), num_returns=len(under_way), timeout=SECONDS_TO_END)
            for run in (run for group in under_way.values() for run in group):
                write_if_free(run, state=WAITING)
            raise
        except RayError as error:
            raise SuiteError(f"Ray is gone: {error} The same command goes on from what was saved.") from error


def why_it_ended(future: ray.ObjectRef, group: Group) -> tuple[str, bool]:
    """
    :param future: of a task that ended
    :param group: that it trained
    :return: the error, and whether it is the training's own: otherwise the worker was lost
    """
    try:
        ray.get(future)
    except RayTaskError as error:
        return str(error), True
    except RayError as error:
        return "".join(traceback.format_exception_only(error)), False
    return f"The worker ended, but there is no model in {group[0].path}.", True


def again(group: Group, error: str, is_own: bool, ends: Mapping[Run, Ends]) -> list[Group]:
    """
    :param group: that ended
    :param error: that ended it, unless it is done
    :param is_own: whether it is the training's own: otherwise the worker was lost
    :param ends: of each run so far, which are counted here
    :return: what is to be tried again: after an error, or a second lost worker, each run by itself, so that one does
        not take the others with it
    """
    left = [run for run in group if run.read()["state"] != DONE]
    for run in left:
        before, saved = ends[run], next(iter(run.checkpoints()), 0)
        before.number += 1
        before.failures += is_own or saved <= before.saved
        before.saved = saved
        run.keep_error(error)
        state = WAITING if before.failures <= N_RETRIES else FAILED
        write_if_free(run, state=state, attempts=before.number, error=error)
    each_alone = is_own or any(ends[run].failures > 1 for run in left)
    return groups([run for run in left if ends[run].failures <= N_RETRIES], at_once=1 if each_alone else None)


def write_if_free(run: Run, **changes: Any) -> None:
    """
    :param run: that is not done and that nobody trains; else nothing happens
    :param changes: of where it is
    """
    run.path.mkdir(parents=True, exist_ok=True)
    with lock(run.path / "lock") as is_mine:
        if is_mine and run.read()["state"] != DONE:
            run.write(**changes)


def groups(runs: Sequence[Run], at_once: int | None = None) -> list[Group]:
    """
    :param runs: that are asked for, in the order in which they should begin
    :param at_once: runs of a group at most; ``None``: what the suite says, where they can learn in one program
    :return: what is not done, in groups
    """
    found: dict[tuple[int, str, str], list[Run]] = {}
    for run in runs:
        if run.read()["state"] != DONE:
            can = is_jax_env_id(run.game.env) and run.algorithm.algo in OUR_ALGOS
            number = at_once or (run.folder.suite.seeds_at_once if can else 1)
            found.setdefault((run.seed // number, run.game.name, run.algorithm.name), []).append(run)
    return [group for together in found.values() for group in by_checkpoint(together)]


def by_checkpoint(runs: list[Run]) -> list[Group]:
    """
    :param runs: that would learn together
    :return: the same in one group if they can go on from the same number of steps, or else in several
    """
    newest = {run: next(iter(run.checkpoints()), 0) for run in runs}
    if common_checkpoint(runs) or not any(newest.values()):
        return [tuple(runs)]
    return [tuple(run for run in runs if newest[run] == timesteps) for timesteps in dict.fromkeys(newest.values())]


def train_in_worker(group: Group, cpus: float, gpus: float) -> None:
    """
    :param group: to train
    :param cpus: cores that this process may use
    :param gpus: that this process has
    """
    # Ray cancels with SIGINT, which programs in the background may have been told to ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["NPROC"] = str(max(int(cpus), 1))  # of XLA's threads; read when it starts
    if gpus == 0:
        jax.config.update("jax_platforms", "cpu")  # or all of them would share the first GPU
    if 0 < gpus < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from sbx_deepspi.suite.training import train

    train(group)


@contextlib.contextmanager
def connected(address: str | None, cpus: float, gpus: float) -> Iterator[None]:
    """
    :param address: of a Ray cluster; ``None``: a Ray of this process, on this machine
    :param cpus: that a program needs
    :param gpus: that a program needs
    :return: a context in which tasks can be run
    :raises SuiteError: there is no such cluster, or it is too small
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {}
    if address is None:
        own = dict(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    for is_last in (False, False, True):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
            break
        except Exception as error:  # Ray has no class for it; on a busy machine it gives up after 30 seconds
            ray.shutdown()
            if is_last or address is not None:
                where, hint = "on this machine", ""
                if address is not None:
                    where, hint = (
                        f"at {address!r}",
                        ". If the cluster asks for a token, as Ray's do, set RAY_AUTH_MODE=token",
                    )
                raise SuiteError(f"Ray did not start {where}: {error}{hint}.") from error
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            there = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise SuiteError(
                f"No machine has the {cpus:g} cores and {gpus:g} GPUs of a run: there is {there}. See --cpus-per-run "
                "and --gpus-per-run."
            )
        yield
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """
    Ray itself tries for minutes.

    :param address: of a Ray cluster, ``"host:port"`` or ``"auto"``
    :raises SuiteError: nothing answers there
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise SuiteError(f"There is no Ray at {address!r} ({error}). Without --address the runs are here.") from error


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """
    :return: a context in which SIGTERM does what Ctrl-C does
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
