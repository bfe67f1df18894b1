"""Models of one kind share what is compiled, and give it back."""

import gc
import os
import re
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sbx_deepspi import DeepSPI
from tests.helpers import CHANNELS_FIRST, TINY_RUN, VECTOR, ToyEnv, collected


@pytest.mark.parametrize(
    ("policy", "observation_space", "neighbourhood"),
    [
        ("MlpPolicy", VECTOR, "project"),
        pytest.param("MlpPolicy", VECTOR, "clip", marks=pytest.mark.slow),
        pytest.param("CnnPolicy", CHANNELS_FIRST, "clip", marks=pytest.mark.slow),
    ],
)
def test_nothing_compiles_again_after_the_first_update(
    policy: str, observation_space: spaces.Box, neighbourhood: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not for another learning rate or clip range, nor when an episode is cut short for the first time."""

    def compiled() -> list[str]:
        return [record.message for record in caplog.records if "Compiling" in record.message]

    jax.clear_caches()  # of other tests' models of the same kind
    env = ToyEnv(observation_space, spaces.Discrete(5), length=20)
    model = DeepSPI(policy, env, neighbourhood=neighbourhood, **TINY_RUN)
    with jax.log_compiles():
        model.learn(8)
        assert any("iteration" in message for message in compiled())
        caplog.clear()
        model.learn(16, reset_num_timesteps=False)
        model.learning_rate, model.clip_range_schedule, model.ent_coef = 0.5, FloatSchedule(0.3), 0.2
        model._setup_lr_schedule()
        model.learn(16)
    assert model.episodes.mean_length == 20
    assert not compiled()


@pytest.mark.parametrize(
    "action_space",
    [spaces.MultiDiscrete([4, 3]), spaces.Box(-2, 2, (7,))],
    ids=str,
)
@pytest.mark.slow
def test_a_second_model_of_the_same_kind_compiles_nothing(
    action_space: spaces.Space, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor one that is loaded; other numbers are no other kind, but another activation is one."""
    env = ToyEnv(VECTOR, action_space)
    DeepSPI("MlpPolicy", env, **TINY_RUN).learn(16).save(tmp_path / "model")

    def compiled() -> set[str]:
        found = (re.search(r"Compiling jit\(([^)]+)\)", record.message) for record in caplog.records)
        names = {match[1] for match in found if match}
        caplog.clear()
        return names

    with jax.log_compiles():
        numbers = TINY_RUN | dict(seed=5, learning_rate=0.1, gamma=0, ent_coef=1, max_grad_norm=7)
        DeepSPI("MlpPolicy", env, **numbers).learn(16)
        assert compiled() == set()
        DeepSPI.load(tmp_path / "model", env).learn(16)
        assert compiled() <= {"convert_element_type", "stage", "_threefry_fold_in"}  # a new random key
        DeepSPI("MlpPolicy", env, **TINY_RUN, policy_kwargs=dict(activation_fn=lambda x: jax.nn.silu(x))).learn(8)
        assert {"create", "decide", "iteration", "certify"} <= compiled()


@pytest.mark.slow
def test_what_differs_is_not_shared() -> None:
    """Neither where Python takes two values for equal, nor bounds, of which SBX's actor knows nothing."""
    box = spaces.Box(-1, 1, (2,), np.float32)
    kinds = [
        (box, {}),
        (spaces.Box(-1, 2, (2,), np.float32), {}),
        (box, dict(log_std_init=-1.0)),
        (box, dict(optimizer_class=optax.rmsprop)),
        (box, dict(optimizer_kwargs=dict(eps_root=0))),
        (box, dict(optimizer_kwargs=dict(eps_root=0.0))),
        (box, dict(optimizer_kwargs=dict(nesterov=True))),
        (box, dict(optimizer_kwargs=dict(nesterov=1))),
    ]
    policies = [
        DeepSPI("MlpPolicy", ToyEnv(VECTOR, space), **TINY_RUN, policy_kwargs=kwargs).policy
        for space, kwargs in (*kinds, kinds[0])
    ]
    assert len({policy.programs for policy in policies}) == len(kinds)


def test_no_host_transfer_inside_an_update() -> None:
    """The whole update is one compiled program: its inputs go in, its results come out."""
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN).learn(8)
    rollout, h = collected(model)
    programs = model.policy.programs
    program = jax.jit(partial(DeepSPI.update, programs.networks, programs.optimizer))
    arguments = jax.device_put((model.policy.learner, rollout, model._last_obs, 1.0, jax.random.PRNGKey(0), h))
    program(*arguments)
    with jax.transfer_guard("disallow"):
        program(*arguments)


def test_programs_end_with_the_last_model_of_their_kind() -> None:
    def model() -> DeepSPI:
        kwargs = dict(activation_fn=jax.nn.elu, net_arch=[5])  # of no other test
        return DeepSPI("MlpPolicy", ToyEnv(VECTOR, spaces.Discrete(6)), policy_kwargs=kwargs, **TINY_RUN)

    first, second = model(), model()
    assert first.policy.programs is second.policy.programs
    first.learn(8)
    programs, compiled = weakref.ref(first.policy.programs), weakref.ref(first.policy.programs.iteration)
    del first
    gc.collect()
    assert programs() is not None
    del second
    gc.collect()
    assert programs() is None and compiled() is None


MANY_MODELS = """
import gc
from pathlib import Path
from sbx_deepspi import DeepSPI

for i in range(40):
    kwargs = dict(net_arch=[8 + i], features_extractor_kwargs=dict(features_dim=8 + 2 * i))
    model = DeepSPI("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=1, policy_kwargs=kwargs).learn(64)
    model.env.close()
    del model
    gc.collect()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmRSS"].split()[0]) / 1e6)
"""


@pytest.mark.slow
def test_forty_models_of_different_sizes_leave_little_behind() -> None:
    """Compiled as users compile: the tests' own compiler flags, and programs found on disk, would take less."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.run([sys.executable, "-c", MANY_MODELS], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) < 1.5, "gigabytes"
