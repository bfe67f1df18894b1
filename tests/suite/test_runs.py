"""Runs of a suite on a real Ray, with real kills; and RL Zoo's programs on what they leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rl_zoo3 import ALGOS
from stable_baselines3.common.monitor import load_results

from sbx_deepspi.suite.definition import load
from sbx_deepspi.suite.folder import Folder, Run
from sbx_deepspi.suite.training import train
from tests.suite.helpers import write

GAME = "gymnax/CartPole-v1"


def start(suite: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sbx_deepspi.suite", "run", str(suite), "--seeds", "2", "-o", str(output), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(happens: Callable[[], Any], seconds: float = 120.0) -> Any:
    began = time.monotonic()
    while not (found := happens()):
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return found


def has_run_for(run: Run, timesteps: int) -> Callable[[], dict[str, Any] | None]:
    """A worker that has saved at least once since these steps."""
    return lambda: run.read() if any(saved > timesteps for saved in run.checkpoints()) else None


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().split(") ")[1][:1]


def what_it_made(run: Run) -> tuple[Any, Any, Any]:
    """Rows of progress but for times, the episodes, and the last model's parameters."""
    rows = run.progress().drop(columns="seconds")
    episodes = load_results(str(run.path))[["r", "l"]].reset_index(drop=True)
    return rows, episodes, ALGOS[run.algorithm.algo].load(run.path / f"{run.env_name}.zip").get_parameters()


def check_failures(runs: list[Run], said: str) -> None:
    for run in runs:
        now = run.read()
        assert (now["state"], now["attempts"]) == ("failed", 3)
        assert "Currently n_steps=-1" in now["error"]
        assert "sbx_deepspi/suite/training.py" in now["error"]
    assert said.count("Failed: broken") == len(runs)


def test_a_run_that_always_fails(tmp_path: Path) -> None:
    """It is tried again twice, keeps its traceback, and ends the command with 1."""
    process = start(write(tmp_path / "tiny.yml"), tmp_path / "runs", "--algos", "broken")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, said
    check_failures(Folder(tmp_path / "runs").asked(), said)


@pytest.mark.slow
def test_kills_and_failures(tmp_path: Path) -> None:
    """
    A worker is killed, then the driver, one run always fails: the same command goes on, and what comes out is bit for
    bit what an undisturbed training makes.
    """
    suite = write(tmp_path / "tiny.yml", n_evaluations=3, eval_episodes=2)
    words = ("--algos", "ppo", "broken")
    first = start(suite, tmp_path / "runs", *words)
    wait_for(lambda: (tmp_path / "runs/asked.json").exists())
    folder = Folder(tmp_path / "runs")
    runs, broken = folder.runs(["ppo"], [GAME], range(2)), folder.runs(["broken"], [GAME], range(2))
    last = runs[1]  # to save; where the first alone has its first checkpoint, they go on one by one
    worker = wait_for(has_run_for(last, 0))["pid"]
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: last.read().get("attempts") == 1)
    assert "died" in last.read()["error"]
    again = wait_for(has_run_for(last, max(last.checkpoints())))
    assert again["pid"] != worker
    first.kill()
    first.wait()
    wait_for(lambda: is_gone(again["pid"]))
    assert {run.read()["state"] for run in runs} == {"running"}

    second = start(suite, tmp_path / "runs", *words)
    said, _ = second.communicate(timeout=180)
    assert second.returncode == 1, said
    check_failures(broken, said)

    plain = Folder.of(tmp_path / "plain", load(suite))
    undisturbed = plain.runs(["ppo"], [GAME], range(2))
    train(undisturbed)
    for run, other in zip(runs, undisturbed, strict=True):
        assert run.read()["state"] == other.read()["state"] == "done"
        assert not run.checkpoints()
        (rows, episodes, parameters), (their_rows, their_episodes, theirs) = what_it_made(run), what_it_made(other)
        assert rows.equals(their_rows)
        assert len(rows) == 100
        assert episodes.equals(their_episodes)
        assert str(parameters) == str(theirs)

    began = {run: (run.path / "run.json").stat().st_mtime_ns for run in runs}
    third = start(suite, tmp_path / "runs", "--algos", "ppo")
    said, _ = third.communicate(timeout=60)
    assert third.returncode == 0, said
    assert {run: (run.path / "run.json").stat().st_mtime_ns for run in runs} == began  # nothing was done again


def test_what_lies_beside_a_run(tmp_path: Path) -> None:
    """All that RL Zoo writes, and a command that makes the same run without a suite."""
    suite = load(write(tmp_path / "tiny.yml", n_timesteps=320, n_evaluations=2, eval_episodes=2))
    (run,) = Folder.of(tmp_path / "runs", suite).runs(["deepspi"], [GAME], [1])
    train([run])
    beside = run.path / run.env_name
    for name in ("config.yml", "args.yml", "versions.txt"):
        assert (beside / name).read_text()
    now = run.read()
    assert {"jax", "python", "stable_baselines3"} <= now["versions"].keys()
    assert (now["state"], now["timesteps"], now["together"], now["error"]) == ("done", 320, 1, None)
    rows = run.progress()
    logged = {"world_model/transition_loss", "spi/zeta", "spi/verdict"}
    assert {"timesteps", "seconds", "episodes", "return", "length", *logged} <= {*rows.columns}
    assert (run.path / "evaluations.npz").exists()
    assert list((tmp_path / "runs/deepspi/tensorboard").rglob("events*"))
