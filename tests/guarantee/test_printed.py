"""What is printed while a model learns: ASCII, in rows that fit a terminal."""

import os
import subprocess
import sys

import pytest

TRAINING = """
from sbx_deepspi import DeepSPI, SPICertificateCallback
for kwargs in (dict(neighbourhood="project"), dict(learning_rate=0.1, certificate_freq=1)):
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, seed=0, verbose=1, **kwargs)
    model.learn(32, callback=SPICertificateCallback(require="neighbourhood", on_violation="restore"))
"""


@pytest.mark.parametrize(
    "settings",
    [
        dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        dict(PYTHONIOENCODING="cp1252"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_everything_printed_is_ascii(settings: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    run = subprocess.run([sys.executable, "-c", TRAINING], env={**environment, **settings}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    output = run.stdout.decode("ascii")
    rows = [line for line in output.splitlines() if line.startswith(("|", "-"))]
    assert any("spi/" in row for row in rows) and any("zeta" in row for row in rows)
    assert max(map(len, rows)) <= 80
    assert not any("verdict" in row for row in rows)
    verdicts = [line for line in output.splitlines() if "certified: " in line]
    assert verdicts and "K_P unbounded" in verdicts[0]
    assert "the last good parameters are back" in output
