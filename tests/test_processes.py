"""
Processes that train one model together over loopback: the same parameters in all, those of one process with as many
devices; they end together, also where one is killed. :mod:`tests.several_processes` is what each of them runs.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sbx_deepspi import DeepSPI
from sbx_deepspi.saving.format import flatten
from sbx_deepspi.sb3 import joined

ROOT = Path(__file__).parent.parent


def start(cases: str, folder: Path, count: int = 2, n_devices: int = 1) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={n_devices}"
    command = [sys.executable, "-W", "ignore", "-m", "tests.several_processes", cases]
    environ = os.environ | {"XLA_FLAGS": flags}

    def start_one(index: int) -> subprocess.Popen[str]:
        arguments = [*command, str(index), str(count), str(port), str(folder)]
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return [start_one(index) for index in range(count)]


def run(cases: str, folder: Path, count: int = 2, n_devices: int = 1) -> list[Any]:
    """What each process found, and what it printed, by case."""
    folder.mkdir(exist_ok=True)
    processes = start(cases, folder, count, n_devices)
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, outputs
    found = [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]
    return [one | {"printed": output} for one, (output, _) in zip(found, outputs, strict=True)]


def difference(first: Any, second: Any) -> float:
    pairs = [(first["parameters"][name], second["parameters"][name]) for name in first["parameters"]]
    return max(np.abs(np.subtract(a, b)).max(initial=0.0) for a, b in pairs)


def test_statistics_of_processes_are_those_of_one_that_has_seen_everything() -> None:
    rng = np.random.default_rng(0)
    seen = [1e4 + rng.normal(scale=0.1, size=(n, 3)) for n in (50, 7, 20, 30)]  # before, and by each of three

    def numbers(*batches: np.ndarray) -> tuple[Any, Any, float]:
        known = RunningMeanStd(shape=(3,))
        for batch in batches:
            known.update(batch)
        return known.mean.tolist(), known.var.tolist(), known.count

    found = joined.combined({"obs_rms": numbers(seen[0])}, [{"obs_rms": numbers(seen[0], own)} for own in seen[1:]])[
        "obs_rms"
    ]
    for ours, theirs in zip(found, numbers(*seen), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_processes_that_were_given_different_arguments_say_so_and_can_go_on(tmp_path: Path) -> None:
    first, second = (found["arguments"] for found in run("arguments", tmp_path))
    assert first == second
    assert first["n_epochs"].endswith("n_epochs is 2 in process 0 and 3 in process 1.")
    assert first["n_steps"].endswith("n_steps is 8 in process 0 and 16 in process 1.")
    assert "learning_rate is [0.001, 0.001] in process 0 and [0.001, 0.0005]" in first["learning_rate"]
    assert first["changed"].endswith("ent_coef is 0.0 in process 0 and 0.1 in process 1.")
    assert first["goes on"] == 64


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_two_devices(tmp_path: Path) -> None:
    first, second = run("inside_jit,dreams,on_host", tmp_path / "two")
    (alone,) = run("inside_jit,dreams", tmp_path / "one", count=1, n_devices=2)
    for case in ("inside_jit", "dreams"):
        assert difference(first[case], second[case]) == 0
        assert difference(first[case], alone[case]) < 1e-6
        for name in ("num_timesteps", "average length"):
            assert first[case][name] == second[case][name] == alone[case][name]
        assert first[case]["L_P"] == second[case]["L_P"] == pytest.approx(alone[case]["L_P"], rel=1e-5)
    # those of other processes are told of before the next update: only the last rollout's are each one's own
    n_told = [len(found["inside_jit"]["episodes"]) for found in (first, second, alone)]
    assert n_told[0] < n_told[2] < n_told[0] + n_told[1]
    # on the host, episodes differ: each process has seeds of its own
    assert difference(first["on_host"], second["on_host"]) == 0
    assert first["on_host"]["average length"] == second["on_host"]["average length"]
    beginnings = np.array(first["on_host"]["first"] + second["on_host"]["first"])
    assert len(np.unique(beginnings, axis=0)) == len(beginnings)


@pytest.mark.slow
def test_process_0_alone_prints_logs_and_saves(tmp_path: Path) -> None:
    first, second = run("inside_jit", tmp_path)
    assert "total_timesteps" in first["printed"]
    assert "total_timesteps" not in second["printed"] and "certified" not in second["printed"]
    assert len(list(tmp_path.glob("tb/*/events*"))) == 1
    for folder in ("sb3", "ours", "eval"):
        assert list((tmp_path / f"{folder}_0").iterdir()) and not list(tmp_path.glob(f"{folder}_1/*"))


@pytest.mark.slow
def test_vec_normalize_knows_what_all_processes_have_seen(tmp_path: Path) -> None:
    first, second = (found["on_host"] for found in run("on_host", tmp_path))
    seen = np.concatenate([np.array(found["seen"], np.float64).reshape(-1, 3) for found in (first, second)])
    # beside the few of resets
    assert first["mean"] == second["mean"] and first["variance"] == second["variance"]
    assert len(seen) <= first["count"] < len(seen) + 20
    np.testing.assert_allclose(first["mean"], seen.mean(axis=0), atol=0.05)
    np.testing.assert_allclose(first["variance"], seen.var(axis=0), rtol=0.1)


@pytest.mark.slow
def test_they_stop_together(tmp_path: Path) -> None:
    first, second = (found["stops"] for found in run("stops", tmp_path))
    for name, found in first.items():
        assert difference(found, second[name]) == 0, name
        # the rollout and its update end first
        assert found["num_timesteps"] == second[name]["num_timesteps"] == 128, name
    for name in ("host signal", "jit signal"):
        assert first[name]["error"] == second[name]["error"] == "SIGTERM in process 1 after 128 steps"


@pytest.mark.slow
def test_what_one_process_alone_does(tmp_path: Path) -> None:
    first, second = (found["differ"] for found in run("differ", tmp_path))
    # certificates that one asks for are made in all
    assert difference(first["certified"], second["certified"]) == 0
    assert first["n_epochs"] == second["n_epochs"]
    assert first["n_epochs"].endswith("n_epochs is 2 in process 0 and 3 in process 1.")
    assert "but parameters is not there in process 0" in first["parameters"]


@pytest.mark.slow
def test_who_is_busy_is_left_alone(tmp_path: Path) -> None:
    first, second = (found["slow"] for found in run("slow", tmp_path))
    assert second["error"] == "OSError: the disk is full"
    assert first["error"].startswith("ProcessLostError: Process 1 of 2 has left (OSError: the disk is full)")
    assert first["num_timesteps"] == second["num_timesteps"] == 64


@pytest.mark.slow
def test_who_fails_before_learning_ends_the_others(tmp_path: Path) -> None:
    first, second = start("not_made", tmp_path)
    _, errors = second.communicate(timeout=300)
    assert "batch_size must be a multiple of the 2 devices" in errors
    _, errors = first.communicate(timeout=60)
    assert first.returncode == second.returncode == 1
    assert "ProcessLostError: Process 1 of 2 has come to the end of its program" in errors


@pytest.mark.slow
def test_one_that_fails_ends_the_others_with_its_error(tmp_path: Path) -> None:
    first, second = (found["raises"] for found in run("raises", tmp_path))
    assert second["error"] == "OSError: the disk is full"
    assert first["error"].startswith("ProcessLostError: Process 1 of 2 has left (OSError: the disk is full)")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["killed", "killed_within_a_program"])
def test_one_that_is_killed_ends_the_other_within_a_minute(case: str, tmp_path: Path) -> None:
    first, second = start(case, tmp_path)
    assert second.wait(timeout=300) == -9
    killed = float((tmp_path / "killed").read_text())
    _, errors = first.communicate(timeout=120)
    assert time.time() - killed < 60
    assert first.returncode == 1
    assert "Process 1 of 2 has given no sign of life" in errors and "The last checkpoint resumes" in errors
    if case == "killed_within_a_program":
        assert "Gloo" in errors
    saved = tmp_path / "saved"
    checkpoint = flatten(DeepSPI.load(saved / "rl_model_latest.zip").policy.learner.parameters)
    last = {"parameters": {name: np.asarray(value, float).ravel() for name, value in checkpoint.items()}}
    for count, n_devices in ((2, 1), (1, 1), (1, 4)):
        shutil.copytree(saved, (folder := tmp_path / f"{count}_{n_devices}") / "saved")
        resumed = [found["resumed"] for found in run("resumed", folder, count, n_devices)]
        assert resumed[0]["num_timesteps"] == resumed[0]["begins"]["num_timesteps"] + 128
        assert difference(resumed[0]["begins"], last) == difference(resumed[0], resumed[-1]) == 0
        if case == "killed_within_a_program":  # the slow part was seen once
            break


@pytest.mark.slow
def test_without_process_0_the_others_end(tmp_path: Path) -> None:
    first, second = start("first_killed", tmp_path)
    assert first.wait(timeout=300) == -9
    killed = float((tmp_path / "killed").read_text())
    _, errors = second.communicate(timeout=120)
    assert time.time() - killed < 60
    assert second.returncode != 0 and "another task died" in errors
