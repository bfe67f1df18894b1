"""Runs of a suite on a real Ray, with real kills; and RL Zoo's programs on what they leave."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
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


def check_same(run: Run, other: Run) -> None:
    """Rows of progress but for times, the episodes, evaluations, and the last model's parameters."""
    rows, their_rows = (each.progress().drop(columns="seconds") for each in (run, other))
    assert len(rows) == 100
    assert rows.equals(their_rows)
    episodes, their_episodes = (
        load_results(str(each.path))[["r", "l"]].reset_index(drop=True) for each in (run, other)
    )
    assert episodes.equals(their_episodes)
    with np.load(run.path / "evaluations.npz") as found, np.load(other.path / "evaluations.npz") as theirs:
        assert found["timesteps"].tolist() == theirs["timesteps"].tolist()
        np.testing.assert_array_equal(found["results"], theirs["results"])
    parameters, their_parameters = (
        ALGOS[each.algorithm.algo].load(each.path / f"{each.env_name}.zip").policy.learner.parameters
        for each in (run, other)
    )
    jax.tree.map(np.testing.assert_array_equal, parameters, their_parameters)


def check_failures(runs: list[Run], said: str) -> None:
    for run in runs:
        now = run.read()
        assert (now["state"], now["attempts"]) == ("failed", 3)
        assert "Currently n_steps=-1" in now["error"]
        assert "sbx_deepspi/suite/training.py" in now["error"]
        assert (run.path / "failures.txt").read_text().count("Currently n_steps=-1") >= 3
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
    words = ("--algos", "deepspi", "broken")
    first = start(suite, tmp_path / "runs", *words)
    wait_for(lambda: (tmp_path / "runs/asked.json").exists())
    folder = Folder(tmp_path / "runs")
    runs, broken = folder.runs(["deepspi"], [GAME], range(2)), folder.runs(["broken"], [GAME], range(2))
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
    undisturbed = plain.runs(["deepspi"], [GAME], range(2))
    train(undisturbed)
    for run, other in zip(runs, undisturbed, strict=True):
        assert run.read()["state"] == other.read()["state"] == "done"
        assert not run.checkpoints()
        check_same(run, other)

    began = {run: (run.path / "run.json").stat().st_mtime_ns for run in runs}
    third = start(suite, tmp_path / "runs", "--algos", "deepspi")
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


@pytest.mark.slow
def test_programs_of_rl_zoo(tmp_path: Path) -> None:
    """The command that lies beside a run makes the same run elsewhere; enjoy and plot_train read the suite's folder."""
    suite = load(write(tmp_path / "tiny.yml", n_evaluations=2, eval_episodes=2))
    (run,) = Folder.of(tmp_path / "runs", suite).runs(["deepspi"], [GAME], [1])
    train([run])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python, *words = shlex.split((run.path / run.env_name / "command.txt").read_text())
    assert python == "python"
    subprocess.run([sys.executable, *words], cwd=elsewhere, check=True, capture_output=True)
    other = ALGOS["deepspi"].load(elsewhere / f"logs/deepspi/{run.env_name}_1/{run.env_name}.zip")
    parameters = ALGOS["deepspi"].load(run.path / f"{run.env_name}.zip").policy.learner.parameters
    jax.tree.map(np.testing.assert_array_equal, parameters, other.policy.learner.parameters)

    folder = str(tmp_path / "runs/deepspi")
    enjoy = ["enjoy", "--algo", "deepspi", "--env", GAME, "-f", folder, "--exp-id", "2", "-n", "200", "--no-render"]
    plot = ["plots.plot_train", "-a", "deepspi", "-e", "gymnax-CartPole", "-f", folder]
    for program, *arguments in (enjoy, plot):
        command = [sys.executable, "-m", f"rl_zoo3.{program}", *arguments]
        subprocess.run(command, cwd=elsewhere, check=True, capture_output=True)
