"""
What :mod:`tests.test_processes` asks of processes that ``jax.distributed`` joins over loopback: each runs

    python -m tests.several_processes CASE INDEX COUNT PORT FOLDER

and writes what it found into FOLDER/INDEX.json. With COUNT 1 nothing is joined.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sbx_deepspi import CheckpointCallback as OurCheckpointCallback
from sbx_deepspi import DeepSPI, DreamSPI, SPICertificateCallback
from sbx_deepspi.saving.format import flatten
from tests.helpers import VECTOR, ToyEnv
from tests.jax_envs import line_env

N_ENVS, N_STEPS = 8, 8
ROLLOUT = N_ENVS * N_STEPS
SMALL = dict(
    n_steps=N_STEPS, batch_size=16, n_epochs=2, learning_rate=1e-3, seed=0, device="all", certificate_freq=1,
    policy_kwargs=dict(net_arch=[], transition_density="normal", lipschitz_constant=None),
)  # fmt: skip


class At(BaseCallback):
    """Does something once, when so many steps are made."""

    def __init__(self, timesteps: int, do: Callable[[], Any]) -> None:
        super().__init__()
        self.timesteps, self.do = timesteps, do

    def _on_step(self) -> bool:
        return self.num_timesteps != self.timesteps or self.do() is not False


def in_jit(count: int, **given: Any) -> Any:
    return line_env(N_ENVS // count, normalize=True, n_initial_states=5, **given)


def on_host(count: int) -> Any:
    return DummyVecEnv([partial(ToyEnv, VECTOR, spaces.Discrete(3), length=3 + i) for i in range(N_ENVS // count)])


def model_of(env: Any, algorithm: type[DeepSPI] = DeepSPI, **given: Any) -> DeepSPI:
    return algorithm("MlpPolicy", env, **SMALL | given)


def found_in(model: DeepSPI) -> dict[str, Any]:
    parameters = flatten(jax.device_get(model.policy.learner.parameters))
    return {
        "parameters": {name: np.asarray(value, np.float64).ravel().tolist() for name, value in parameters.items()},
        "num_timesteps": model.num_timesteps,
        "episodes": sorted(episode["l"] for episode in model.ep_info_buffer),
        "average length": float(model.episodes.mean_length),
        "L_P": float(model.certificate.model.transition_error) if model.certificate is not None else None,
    }


def case_inside_jit(index: int, count: int, folder: Path) -> dict[str, Any]:
    """Files of process 0 alone."""
    model = model_of(in_jit(count), verbose=1, tensorboard_log=str(folder / "tb"))
    callbacks = [
        CheckpointCallback(N_STEPS, str(folder / f"sb3_{index}")),
        OurCheckpointCallback(N_STEPS, folder / f"ours_{index}"),
        EvalCallback(line_env(1, normalize=model.env), eval_freq=N_STEPS, log_path=str(folder / f"eval_{index}")),
    ]
    model.learn(4 * ROLLOUT, callback=callbacks)
    return found_in(model)


def case_on_host(index: int, count: int, folder: Path) -> dict[str, Any]:
    """Under ``VecNormalize``, which is to know what all have seen."""
    seen = []

    class Remembers(VecNormalize):
        def step_wait(self) -> Any:
            made = super().step_wait()
            seen.append(self.get_original_obs())
            return made

    env = Remembers(on_host(count))
    model = model_of(env, seed=3)
    first = model.env.reset().tolist()
    found = {"first": first} | found_in(model.learn(4 * ROLLOUT))
    return found | {"seen": np.array(seen).tolist(), "mean": env.obs_rms.mean.tolist(), "count": env.obs_rms.count,
                    "variance": env.obs_rms.var.tolist()}  # fmt: skip


def case_dreams(index: int, count: int, folder: Path) -> dict[str, Any]:
    model = model_of(in_jit(count), DreamSPI, imagination_horizon=3, dyna=True, neighbourhood="project")
    return found_in(model.learn(2 * ROLLOUT))


def case_arguments(index: int, count: int, folder: Path) -> dict[str, Any]:
    """Which are noticed, and that the next training is none the worse for it."""
    found = {}
    for name, given in {
        "n_epochs": dict(n_epochs=2 + index),
        "n_steps": dict(n_steps=N_STEPS * (1 + index)),
        "learning_rate": dict(learning_rate=[lambda progress: 1e-3, lambda progress: 1e-3 * progress][index]),
    }.items():
        try:
            model_of(on_host(count), reward_loss_coef=0, transition_loss_coef=0, **given).learn(ROLLOUT)
        except ValueError as error:
            found[name] = str(error)
    model = model_of(on_host(count), reward_loss_coef=0, transition_loss_coef=0)
    try:
        model.learn(4 * ROLLOUT, callback=At(ROLLOUT, lambda: setattr(model, "ent_coef", 0.1 * index)))
    except ValueError as error:
        found["changed"] = str(error)
    model.ent_coef = 0.0
    found["goes on"] = model.learn(ROLLOUT).num_timesteps
    return found


def case_stops(index: int, count: int, folder: Path) -> dict[str, Any]:
    """By a callback and by a signal, of process 1 alone, in the middle of a rollout; seeds may differ."""
    found = {}
    for name, make in {"host": on_host, "jit": in_jit}.items():
        model = model_of(make(count), seed=index, reward_loss_coef=0, transition_loss_coef=0)
        model.learn(9 * ROLLOUT, callback=At(ROLLOUT + N_ENVS, lambda: index != 1))
        found[f"{name} callback"] = found_in(model)
        try:
            signals = At(ROLLOUT + N_ENVS, lambda: index != 1 or os.kill(os.getpid(), signal.SIGTERM))
            model.learn(9 * ROLLOUT, callback=signals)
        except KeyboardInterrupt as error:
            found[f"{name} signal"] = found_in(model) | {"error": str(error)}
    return found


def case_differ(index: int, count: int, folder: Path) -> dict[str, Any]:
    """What one process alone does: its callback asks for certificates, sets parameters, or changes what is compiled."""
    found = {}
    model = model_of(in_jit(count), certificate_freq=5)
    callback = SPICertificateCallback(folder / "certificates.csv", require="neighbourhood", on_violation="restore")
    found["certified"] = found_in(model.learn(3 * ROLLOUT, callback=[callback] if index == 1 else []))

    class Changes(BaseCallback):
        def _on_rollout_start(self) -> None:
            if self.num_timesteps == ROLLOUT:
                self.do()

        def _on_step(self) -> bool:
            return True

        def do(self) -> None:
            if index == 1:
                self.model.n_epochs = 3

    class Sets(Changes):
        def do(self) -> None:
            if index == 1:
                self.model.set_parameters(self.model.get_parameters())
                tree = self.model.policy.learner
                self.model.policy.learner = tree.replace(parameters=jax.tree.map(lambda x: x + 1, tree.parameters))

    for name, callback in {"n_epochs": Changes(), "parameters": Sets()}.items():
        model = model_of(in_jit(count), reward_loss_coef=0, transition_loss_coef=0)
        try:
            model.learn(3 * ROLLOUT, callback=callback)
        except ValueError as error:
            found[name] = str(error)
    return found


def case_slow(index: int, count: int, folder: Path) -> dict[str, Any]:
    """One fails while another is busy; then one has ended while another is busy."""

    class Busy(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            if index == 0:
                time.sleep(25)

    def fail_or_wait() -> None:
        if index == 1:
            raise OSError("the disk is full")
        time.sleep(25)

    found = {}
    model = model_of(in_jit(count), reward_loss_coef=0, transition_loss_coef=0)
    try:
        model.learn(9 * ROLLOUT, callback=At(ROLLOUT + N_ENVS, fail_or_wait))
    except (OSError, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    found["num_timesteps"] = model.learn(ROLLOUT, callback=Busy()).num_timesteps
    if index == 0:
        time.sleep(25)  # the other's program comes to its end
    return found


def case_not_made(index: int, count: int, folder: Path) -> dict[str, Any]:
    """Process 1 fails before it learns."""
    model = model_of(in_jit(count), batch_size=16 - index, reward_loss_coef=0, transition_loss_coef=0)
    model.learn(ROLLOUT)
    return {}


def case_raises(index: int, count: int, folder: Path) -> dict[str, Any]:
    def fail() -> None:
        if index == 1:
            raise OSError("the disk is full")

    model = model_of(in_jit(count), reward_loss_coef=0, transition_loss_coef=0)
    try:
        model.learn(9 * ROLLOUT, callback=At(ROLLOUT + N_ENVS, fail))
    except (OSError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {}


def case_killed(index: int, count: int, folder: Path) -> dict[str, Any]:
    """The last one is, between two programs; process 0 has saved what it learned."""

    def kill() -> None:
        if index == count - 1:
            (folder / "killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    model = model_of(in_jit(count))
    model.learn(99 * ROLLOUT, callback=[OurCheckpointCallback(1, folder / "saved"), At(3 * ROLLOUT, kill)])
    return {}


def case_killed_within_a_program(index: int, count: int, folder: Path) -> dict[str, Any]:
    """The last one is, while it runs what the others wait for."""
    model = model_of(in_jit(count), n_epochs=40)

    def soon() -> None:
        if index == count - 1:
            command = f"sleep 1; date +%s.%N > {folder / 'killed'}; kill -9 {os.getpid()}"
            subprocess.Popen(["bash", "-c", command], start_new_session=True)

    model.learn(999 * ROLLOUT, callback=[OurCheckpointCallback(1, folder / "saved"), At(2 * ROLLOUT, soon)])
    return {}


def case_first_killed(index: int, count: int, folder: Path) -> dict[str, Any]:
    return case_killed((index - 1) % count, count, folder)


def case_resumed(index: int, count: int, folder: Path) -> dict[str, Any]:
    model = DeepSPI.load(folder / "saved" / "rl_model_latest.zip", in_jit(count), device="all")
    begins = found_in(model)
    return {"begins": begins} | found_in(model.learn(2 * ROLLOUT, reset_num_timesteps=False))


if __name__ == "__main__":
    cases, (index, count, port) = sys.argv[1].split(","), map(int, sys.argv[2:5])
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = f"127.0.0.1:{port}"
        jax.distributed.initialize(address, count, index, coordinator_bind_address=address)
    folder = Path(sys.argv[5])
    found = {case: globals()[f"case_{case}"](index, count, folder) for case in cases}
    (folder / f"{index}.json").write_text(json.dumps(found))
