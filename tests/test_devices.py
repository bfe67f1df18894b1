"""
Several devices: the same parameters that one device gives when it draws minibatches in as many groups, for a share of
the work each. :mod:`tests.several_devices` computes on four, which XLA makes of the CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CHECKS = ("deepmdp", "work", "bad_input")
SLOW_CHECKS = ("deepspi", "fused", "learning")


def on_four_devices(*checks: str) -> Any:
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-W", "ignore", "-m", "tests.several_devices", *checks]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> Any:
    return on_four_devices(*CHECKS)


@pytest.fixture(scope="module")
def found_slowly() -> Any:
    return on_four_devices(*SLOW_CHECKS)


@pytest.mark.slow
def test_an_update_is_that_of_groups_on_one_device(found_slowly: Any) -> None:
    found = found_slowly["deepspi"]
    assert found["difference"] < 1e-6 and found["moved"] > 1e-3
    assert found["kept"][0] == pytest.approx(found["kept"][1]) and 0 < found["kept"][0] < 1
    assert found["difference where it is drawn back"] < 1e-6
    assert found["stopped"] == [True, True] and found["difference where it stops"] < 1e-6
    # a fault on one device is everybody's
    assert found["faults"] == [found["n_minibatches"]] * 2 and found["moved by faulty steps"] == [0, 0]


def test_one_device_that_knows_nothing_of_groups_gives_the_same_from_the_same_minibatches(found: Any) -> None:
    assert found["deepmdp"]["difference"] < 1e-6
    assert found["deepmdp"]["difference from one device"] < 1e-6


@pytest.mark.slow
def test_environments_inside_jit_are_collected_where_they_are_learned_from(found_slowly: Any) -> None:
    found = found_slowly["fused"]
    assert found["difference"] < 1e-6
    assert found["n_ended"] > 0 and found["difference from the host's count"] == 0
    assert found["devices draw numbers of their own"] and found["shards"] == [2, 2, 2, 2]


def test_each_device_does_its_share_of_the_work(found: Any) -> None:
    assert 0.25 < found["work"]["part"] < 0.3
    # sums of gradients, moments and metrics, and the extremes of importance ratios
    assert found["work"]["collectives"] == ["add", "maximum", "minimum"]


@pytest.mark.slow
@pytest.mark.parametrize("environments", ["host", "jit"])
def test_models_learn_and_are_saved_for_any_number_of_devices(found_slowly: Any, environments: str) -> None:
    found = found_slowly["learning"]
    assert found[environments] == 2 * 64 and found[f"{environments} on"] == 4
    assert found[f"{environments} loaded"] == [0, 0, 0]
    assert found[f"{environments} copied on"] == 4 and found[f"{environments} copied where there is one"] == 1
    assert found[f"{environments} acts the same"]
    assert found[f"{environments} goes on"] == [3 * 64] * 3
    # on as many devices, the run goes on as if it had not been interrupted
    assert found["jit resumed"] == {"file": 0, "copy": 0}


@pytest.mark.slow
def test_a_callback_stops_within_a_rollout(found_slowly: Any) -> None:
    assert found_slowly["learning"]["stopped after"] == 24
    assert found_slowly["learning"]["difference where it stopped"] == 0


def test_bad_input_is_answered_in_one_sentence(found: Any) -> None:
    for case, (expected, message) in found["bad_input"].items():
        assert expected in message and "\n" not in message, case


@pytest.mark.slow
def test_certificates_dreams_and_images_are_those_of_groups_on_one_device() -> None:
    found = on_four_devices("certificate", "dreamspi", "images")
    certificate = found["certificate"]
    assert certificate["difference"] < 1e-4 and certificate["from one device"] < 1e-6 and certificate["finite"]
    for ours, alone in certificate["sampled"].values():
        assert ours == pytest.approx(alone, rel=0.1)
    assert found["dreamspi"]["difference"] < 1e-6 < found["dreamspi"]["moved"]
    assert found["images"]["difference"] < 1e-6 and found["images"]["segment_length"] == 8
