"""
What any installation has to do: learn, save, load, say what it is, and train with RL Zoo. ``make smoke`` runs this with
the Python of a clean environment in which the wheel is installed; pytest does not.
"""

import contextlib
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import sbx_deepspi
from sbx_deepspi import DeepSPI

SMALL = "-params n_envs:2 n_steps:64 batch_size:64 n_epochs:1 n_timesteps:256"


def run(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


installed = Path(sbx_deepspi.__file__).parent
assert installed.is_relative_to(sys.prefix), f"{installed} is not what was installed in {sys.prefix}"
assert (installed / "py.typed").is_file()

with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=128, batch_size=64, n_epochs=1, seed=0).learn(256)
    model.save("model")
    observations = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 4)
    loaded = DeepSPI.load("model")
    assert loaded.num_timesteps == 256
    assert (
        model.predict(observations, deterministic=True)[0] == loaded.predict(observations, deterministic=True)[0]
    ).all()

    assert "python -m sbx_deepspi.report" in run("-m", "sbx_deepspi")
    information = run("-m", "sbx_deepspi", "info")
    assert version("sbx-deepspi") in information and "not installed" in information

    run("-m", "rl_zoo3.train", "--algo", "deepspi", "--env", "CartPole-v1", *SMALL.split())
    assert Path("logs/deepspi/CartPole-v1_1/CartPole-v1.zip").is_file()

print(information)
print(f"sbx-deepspi {version('sbx-deepspi')} works on Python {sys.version.split()[0]}.")
