"""The commands behind the README's figures, with very few steps."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("env", ["Pendulum-v1"])
def test_learns_trains_scores_and_fails_below_the_target(env: str) -> None:
    process = run("learns.py", env, "--steps", "64", "--seeds", "5", "--episodes", "2")
    assert "seed 5:" in process.stdout, process.stderr
    assert process.returncode == 1
    assert "stayed below" in process.stderr


def test_soak_survives_faults_and_draws(tmp_path: Path) -> None:
    short = ["--minutes", "0.2", "--mean-delay", "4", "--games", "CartPole-v1", "--results", str(tmp_path)]
    process = run("soak.py", *short)
    assert process.returncode == 0, process.stderr
    assert len(pd.read_csv(tmp_path / "soak_faults.csv")) > 0
    assert pd.read_csv(tmp_path / "soak.csv")["memory_mb"].gt(0).all()
    assert (tmp_path / "soak.png").is_file()
    assert "CartPole-v1" in process.stdout


def test_committed_learning_curve_is_a_long_run() -> None:
    games = pd.read_csv(BENCHMARKS.parent / "docs" / "results" / "breakout.csv")
    assert games["step"].is_monotonic_increasing
    assert games["step"].iloc[-1] >= 200_000


def test_no_placeholder_is_left_in_the_documents() -> None:
    for document in (BENCHMARKS.parent / "README.md", BENCHMARKS.parent / "docs" / "results" / "README.md"):
        for placeholder in ("SPEED", "CARTPOLE", "PENDULUM", "BREAKOUT", "TODO"):
            assert placeholder not in document.read_text(), f"{placeholder} in {document}"
