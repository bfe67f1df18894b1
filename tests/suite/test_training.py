"""What a worker keeps: files as they were at a checkpoint."""

import json
from pathlib import Path

import pytest

from sbx_deepspi.suite.definition import load
from sbx_deepspi.suite.folder import Folder, Run
from sbx_deepspi.suite.training import Clock, Progress, command
from tests.suite.helpers import write

GAME = "gymnax/CartPole-v1"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (run,) = Folder.of(tmp_path / "runs", load(write(tmp_path / "tiny.yml"))).runs(["ppo"], [GAME], [0])
    run.path.mkdir(parents=True)
    return run


def save(run: Run, timesteps: int) -> None:
    """A checkpoint, as far as files beside the model are concerned."""
    files = [*run.path.glob("*.monitor.csv"), run.path / "progress.jsonl"]
    run.checkpoint(timesteps).mkdir(parents=True)
    saved = {
        "since_row": {"episodes": timesteps, "return": 0.0, "length": 0}, "n_rows": 1, "seconds": 9.0, "score": 1.5,
        "certificate": {}, "sizes": {file.name: file.stat().st_size for file in files},
    }  # fmt: skip
    (run.checkpoint(timesteps) / "progress.json").write_text(json.dumps(saved))


def texts(run: Run) -> dict[str, str]:
    return {path.name: path.read_text() for path in run.path.iterdir() if path.is_file()}


def go_back(run: Run, timesteps: int) -> Progress:
    progress = Progress(run, Clock(0), 1)
    progress.go_back_to(timesteps)
    return progress


def test_files_go_back_to_a_checkpoint(run: Run) -> None:
    monitor, rows = run.path / "0.monitor.csv", run.path / "progress.jsonl"
    monitor.write_text("a")
    rows.write_text("1")
    save(run, 10)
    monitor.write_text("ab")
    rows.write_text("12")
    save(run, 20)
    monitor.write_text("abc")
    rows.write_text("123")

    assert go_back(run, 20).since_row["episodes"] == 20
    assert texts(run) == {"until_20.0.monitor.csv": "ab", "progress.jsonl": "12"}
    # killed before the next checkpoint: what has been written since then goes, what was kept stays
    monitor.write_text("cc")
    rows.write_text("12cc")
    go_back(run, 20)
    assert texts(run) == {"until_20.0.monitor.csv": "ab", "progress.jsonl": "12"}
    monitor.write_text("c")
    save(run, 30)
    monitor.write_text("cd")
    go_back(run, 30)
    assert texts(run) == {"until_20.0.monitor.csv": "ab", "until_30.0.monitor.csv": "c", "progress.jsonl": "12"}


def test_files_go_back_to_the_checkpoint_before(run: Run) -> None:
    """Runs that learn together: one of them was killed before it had the newest."""
    monitor, rows = run.path / "0.monitor.csv", run.path / "progress.jsonl"
    for timesteps, text in ((10, "a"), (20, "ab")):
        monitor.write_text(text)
        rows.write_text(text)
        save(run, timesteps)
    go_back(run, 10)
    assert texts(run) == {"until_10.0.monitor.csv": "a", "progress.jsonl": "a"}
    assert run.checkpoints() == [10]


def test_evaluations_go_back(run: Run) -> None:
    """Those after the checkpoint are made again."""
    (run.path / "progress.jsonl").write_text("")
    for timesteps in (10, 20):
        save(run, timesteps)
        (run.checkpoint(timesteps) / "evaluations.npz").write_text(str(timesteps))
    (run.path / "evaluations.npz").write_text("of the future")
    go_back(run, 20)
    assert (run.path / "evaluations.npz").read_text() == "20"
    assert run.checkpoints() == [20]  # the monitors' files no longer fit the older one
    (run.checkpoint(20) / "evaluations.npz").unlink()
    go_back(run, 20)
    assert not (run.path / "evaluations.npz").exists()


def test_a_file_that_is_shorter_than_it_was(run: Run) -> None:
    """Where a machine has lost its power, nothing is filled up with zeros."""
    (run.path / "progress.jsonl").write_text("1\n2\n")
    save(run, 10)
    (run.path / "progress.jsonl").write_text("1\n")
    go_back(run, 10)
    assert (run.path / "progress.jsonl").read_text() == "1\n"


def test_a_checkpoint_is_forgotten_where_that_was_interrupted(run: Run) -> None:
    run.checkpoint(10).mkdir(parents=True)
    (run.path / "checkpoints/gone_10/half").mkdir(parents=True)
    run.forget_checkpoints()
    assert not list((run.path / "checkpoints").iterdir())


def test_a_run_begins_anew(run: Run) -> None:
    """Killed before the first checkpoint."""
    (run.path / "0.monitor.csv").write_text("a")
    (run.path / "progress.jsonl").write_text("1")
    assert go_back(run, 0).n_rows == 0
    assert texts(run) == {"progress.jsonl": ""}


def test_runs_that_learn_together_save_together() -> None:
    clock = Clock(0.0)
    assert [clock.is_due(1), clock.is_due(1), clock.is_due(2)] == [True] * 3
    clock = Clock(1000.0)
    assert [clock.is_due(1), clock.is_due(1)] == [False] * 2


def test_a_command_that_a_shell_reads() -> None:
    options = {
        "algo": "deepspi",
        "n_timesteps": 5,
        "env_kwargs": None,
        "hyperparams": {"policy": "MlpPolicy", "x": [1]},
    }
    assert command(options) == (
        """python -m rl_zoo3.train --algo deepspi --n-timesteps 5 --hyperparams 'policy:'"'"'MlpPolicy'"'"'' 'x:[1]'"""
    )
