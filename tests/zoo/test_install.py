"""A user's installation: the wheel in an environment of its own, and a model that is kept when training ends early."""

import os
import signal
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbx_deepspi import DeepSPI

ROOT = Path(__file__).parents[2]

# The sizes here are those in test_rl_zoo.py, and in SMOKE_TEST those in test_envpool.py: they may be compiled already
TRAIN = "-m rl_zoo3.train --algo deepspi --env CartPole-v1 -params n_envs:2 n_steps:64 batch_size:64 n_epochs:1"
SMOKE_TEST = """
import rl_zoo3, sbx_deepspi
from sbx_deepspi import DeepSPI, make_envpool_env
assert rl_zoo3.ALGOS["deepspi"] is DeepSPI
env = make_envpool_env("Breakout-v5", n_envs=4, seed=0)
DeepSPI("CnnPolicy", env, n_steps=8, batch_size=16).learn(32)
print("imported from", sbx_deepspi.__file__)
"""


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which the wheel is installed. It uses the dependencies installed for these tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--offline", "--quiet"]
    subprocess.run([*build, "--out-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python]
    subprocess.run([*install, wheel], check=True)
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    # Python reads no .pth files in a folder that is added this way, so the editable install and its hook stay away
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return python


def run(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # with a PYTHONPATH, the package might come from there
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_brings_the_algorithm_to_rl_zoo(wheel_python: Path, tmp_path: Path) -> None:
    script = "import rl_zoo3, sbx_deepspi; print(rl_zoo3.ALGOS['deepspi'], sbx_deepspi.__file__)"
    imported = run(wheel_python, "-c", script, folder=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert "DeepSPI" in imported.stdout and str(wheel_python.parent.parent) in imported.stdout


@pytest.mark.slow
def test_the_wheel_trains(wheel_python: Path, tmp_path: Path) -> None:
    imported = run(wheel_python, "-c", SMOKE_TEST, folder=tmp_path)
    assert imported.returncode == 0, imported.stderr
    assert str(wheel_python.parent.parent) in imported.stdout
    trained = run(wheel_python, *TRAIN.split(), "n_timesteps:128", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "logs/deepspi/CartPole-v1_1/CartPole-v1.zip").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "vec_env"), [(signal.SIGINT, "subproc"), (signal.SIGTERM, "dummy")])
def test_a_signal_keeps_the_model_and_training_goes_on(number: signal.Signals, vec_env: str, tmp_path: Path) -> None:
    """The signal goes to the whole process group, as Ctrl-C does, so that the environments' processes get it, too."""
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *TRAIN.split(), "n_timesteps:10_000_000", "-P", "--vec-env", vec_env],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while "n_updates" not in (tmp_path / "output").read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == 0, (tmp_path / "output").read_text()
    assert f"{number.name}: training stops after this update" in (tmp_path / "output").read_text()
    path = "logs/deepspi/CartPole-v1_1/CartPole-v1.zip"
    model = DeepSPI.load(tmp_path / path)
    assert 0 < model.num_timesteps < 10_000_000
    learned_from = model._n_updates // model.n_epochs * 128
    # with subproc the environments are gone: the rollout ends early, and the model does not learn from it
    assert learned_from <= model.num_timesteps < learned_from + (128 if vec_env == "subproc" else 1)
    if number == signal.SIGTERM:
        arguments = [sys.executable, *TRAIN.split(), "n_timesteps:128", "-i", path]
        assert subprocess.run(arguments, cwd=tmp_path, capture_output=True).returncode == 0
        assert DeepSPI.load(tmp_path / path.replace("_1", "_2"))._n_updates == model._n_updates + model.n_epochs


@pytest.mark.slow
def test_a_failing_environment_keeps_the_model(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    train = TRAIN.replace("CartPole-v1", "Failing-v0 --gym-packages failing").replace(
        "-params", "-params n_timesteps:999"
    )
    process = subprocess.run([sys.executable, *train.split()], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 1
    assert "RuntimeError: on purpose" in process.stderr
    assert DeepSPI.load(tmp_path / "logs/deepspi/Failing-v0_1/Failing-v0.zip")._n_updates > 0


FAILING = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Failing(CartPoleEnv):
    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 100:
            raise RuntimeError("on purpose")
        return super().step(action)

gym.register("Failing-v0", Failing, max_episode_steps=500)
"""
