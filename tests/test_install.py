"""What a user gets: the wheel in an environment of its own, and a model that survives Ctrl-C."""

import os
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbx_deepspi import DeepSPI

ROOT = Path(__file__).parent.parent

SMOKE_TEST = """
import rl_zoo3, sbx_deepspi
from sbx_deepspi import DeepSPI, make_envpool_env
assert rl_zoo3.ALGOS["deepspi"] is DeepSPI
env = make_envpool_env("Breakout-v5", n_envs=2, seed=0)
DeepSPI("CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1).learn(16)
print("imported from", sbx_deepspi.__file__)
"""


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel; the packages it needs are those of the environment of these tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--offline", "--quiet"]
    subprocess.run([*build, "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([*install, wheel], check=True)
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    # a path that a .pth file names brings its packages, but not its own .pth files: neither the editable install
    # nor its hook
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_smoke(how: str, wheel_python: Path, tmp_path: Path) -> None:
    python = wheel_python if how == "wheel" else Path(sys.executable)
    imported = subprocess.run([python, "-c", SMOKE_TEST], cwd=tmp_path, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
    assert str(ROOT if how == "editable" else wheel_python.parent.parent) in imported.stdout
    train = "-m rl_zoo3.train --algo deepspi --env CartPole-v1 -n 64 -params n_envs:1 n_steps:32 batch_size:32"
    trained = subprocess.run([python, *train.split()], cwd=tmp_path, capture_output=True, text=True)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "logs/deepspi/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_ctrl_c_keeps_the_model(tmp_path: Path) -> None:
    command = "-m rl_zoo3.train --algo deepspi --env CartPole-v1 -P -params n_envs:1 n_steps:64 batch_size:64"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command.split(), "n_timesteps:10_000_000"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        deadline = time.monotonic() + 120
        while "n_updates" not in (tmp_path / "output").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, (tmp_path / "output").read_text()
    model = DeepSPI.load(tmp_path / "logs/deepspi/CartPole-v1_1/CartPole-v1.zip")
    assert 0 < model.num_timesteps < 10_000_000
    assert model.policy.state.step > 0
