"""What a worker does: RL Zoo's experiments, from their checkpoints on, several seeds in one program."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.import_envs  # noqa: F401
from rl_zoo3 import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi import DeepSPI, learn_together
from sbx_deepspi.envs.jitted.vec_env import inside_jit
from sbx_deepspi.saving.format import sync_folder
from sbx_deepspi.suite.folder import DONE, RUNNING, Run, common_checkpoint, lock
from sbx_deepspi.zoo.registration import ExperimentManager

N_ROWS = 100
"""Of progress.jsonl."""
SECONDS_TO_WAIT = 60.0
EVALUATIONS = "evaluations.npz"
PACKAGES = (
    "sbx-deepspi", "stable_baselines3", "sbx-rl", "rl_zoo3", "gymnasium", "gymnax", "brax", "envpool", "ale-py", "jax",
    "flax", "optax", "numpy", "torch", "ray",
)  # fmt: skip


def train(runs: Sequence[Run]) -> None:
    """
    Train from the newest checkpoint that all have to the end.

    :param runs: one, or several that differ in their seeds and learn in one program
    :raises RuntimeError: another process trains one of them
    """
    suite, folder = runs[0].folder.suite, runs[0].folder.path
    if not (folder / "suite.yml").is_file():
        raise FileNotFoundError(f"{platform.node()} has no {folder}: all machines need the folder under the same path.")
    with contextlib.ExitStack() as stack:
        for run in runs:
            run.path.mkdir(parents=True, exist_ok=True)
            # the worker of a driver that was killed may take a while to end
            if not stack.enter_context(lock(run.path / "lock", SECONDS_TO_WAIT)):
                raise RuntimeError(f"Another process trains {run.name}.")
        runs = [run for run in runs if run.read()["state"] != DONE]  # that one may have finished
        if not runs:
            return
        log = stack.enter_context((runs[0].path / "log.txt").open("a"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        clock, checkpoint = Clock(suite.seconds_between_checkpoints), common_checkpoint(runs)
        managers = [RunManager(run, checkpoint, clock, len(runs)) for run in runs]
        try:
            models: list[Any] = [manager.make_model() for manager in managers]
            learn(models, [manager.callbacks for manager in managers], suite.n_timesteps, runs[0].algorithm.name)
        except KeyboardInterrupt:
            for manager in managers:
                manager.progress.save_if_between_updates()
            raise
        finally:
            for manager in managers:
                manager.close()
        for manager, model in zip(managers, models, strict=True):
            manager.save_trained_model(model)
            manager.run.write(state=DONE, error=None)
            manager.run.forget_checkpoints()


def learn(models: list[Any], callbacks: list[list[BaseCallback]], n_timesteps: int, tb_log_name: str) -> None:
    """
    :param models: that have made the same number of steps
    :param callbacks: of each
    :param n_timesteps: of each, with those that were made
    :param tb_log_name: of TensorBoard's folders
    """
    made = models[0].num_timesteps
    arguments: dict[str, Any] = dict(tb_log_name=tb_log_name, reset_num_timesteps=made == 0)
    if len(models) == 1:
        models[0].learn(n_timesteps - made, callbacks[0], **arguments)
    else:
        learn_together(models, n_timesteps - made, callbacks, **arguments)


class Clock:
    """
    Says when to save. Runs that learn together save together, so that they can go on together.

    :param seconds: between two checkpoints
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last, self._asked, self._is_due = time.monotonic(), -1, False

    def is_due(self, timesteps: int) -> bool:
        """
        :param timesteps: of the model that asks
        :return: whether it saves now: the same for all that ask at these timesteps
        """
        if timesteps != self._asked:
            now = time.monotonic()
            self._asked, self._is_due = timesteps, now - self._last >= self.seconds
            self._last = now if self._is_due else self._last
        return self._is_due


class RunManager(ExperimentManager):
    """
    RL Zoo's experiment manager for a run of a suite: with a folder that is known beforehand, and checkpoints.

    :param run: that it trains
    :param checkpoint: timesteps of the one to begin with; 0: begin anew
    :param clock: of all runs that learn in this program
    :param n_together: how many these are
    """

    def __init__(self, run: Run, checkpoint: int, clock: Clock, n_together: int) -> None:
        suite = run.folder.suite
        self.run, self._checkpoint = run, checkpoint
        self._envs: list[VecEnv] = []
        hyperparams = suite.hyperparams_of(run.game, run.algorithm)
        eval_freq = suite.n_timesteps // suite.n_evaluations if suite.n_evaluations else -1
        tensorboard = run.log_folder / "tensorboard"
        options = {
            "algo": run.algorithm.algo, "env": run.game.env, "seed": run.seed, "n_timesteps": suite.n_timesteps,
            "log_folder": str(run.log_folder), "tensorboard_log": str(tensorboard), "eval_freq": eval_freq,
            "eval_episodes": suite.eval_episodes, "n_eval_envs": suite.eval_episodes, "hyperparams": hyperparams,
            "env_kwargs": suite.env_kwargs or None,
        }  # fmt: skip
        # elsewhere, or RL Zoo would take the folder of the suite's next seed
        self.command = command(options | {"log_folder": "logs", "tensorboard_log": "logs/tensorboard"})
        super().__init__(
            Namespace(**options, eval_env_kwargs=None, conf_file=None, trained_agent="", vec_env="dummy"),
            run.algorithm.algo, run.game.env, str(run.log_folder), str(tensorboard), suite.n_timesteps, eval_freq,
            suite.eval_episodes, hyperparams=dict(hyperparams), env_kwargs=dict(suite.env_kwargs), seed=run.seed,
            log_interval=-1, verbose=0, n_eval_envs=suite.eval_episodes,
        )  # fmt: skip
        self.tensorboard_log = str(tensorboard / f"{run.env_name}_{run.seed + 1}")
        self.save_path, self.params_path = str(run.path), str(run.path / run.env_name)
        if checkpoint:
            self.trained_agent = str(run.checkpoint(checkpoint) / "model.zip")
            self.continue_training = True
        self.progress = Progress(run, clock, n_together)

    def make_model(self) -> BaseAlgorithm:
        """
        :return: a new model, or that of the checkpoint
        """
        set_random_seed(self.run.seed)
        self.progress.go_back_to(self._checkpoint)
        model, _ = self.setup_experiment()  # type: ignore[misc]
        for callback in self.callbacks:
            if isinstance(callback, EvalCallback):
                go_on(callback, self._checkpoint, self.n_envs, self.run)
        self.callbacks.append(self.progress)  # last: a checkpoint holds what the others have done
        return model

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        See RL Zoo's.

        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments, which :meth:`close` closes
        """
        env = super().create_envs(n_envs, eval_env, no_log)
        self._envs.append(env)
        return env

    def close(self) -> None:
        """Close all environments, also where no model was made."""
        for env in self._envs:
            env.close()

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        # all the rest is in the file, but for episodes outside jit: they begin anew, and not as they began at first
        model = ALGOS[self.algo].load(self.trained_agent, env, tensorboard_log=self.tensorboard_log, verbose=0)
        if inside_jit(env) is None:
            env.seed(self.seed + self._checkpoint)
        if not isinstance(model, DeepSPI):
            model.set_random_seed(self.seed + self._checkpoint)
        return model

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        super()._save_config(saved_hyperparams)
        (Path(self.params_path) / "command.txt").write_text(self.command + "\n")
        versions, commit = installed_versions(), git_commit()
        self.run.write(command=self.command, versions=versions, commit=commit)
        lines = [f"# from {self._checkpoint:,} steps on", *(f"{name} {version}" for name, version in versions.items())]
        with (Path(self.params_path) / "versions.txt").open("a") as file:
            file.write("\n".join([*lines, f"commit {commit}"]) + "\n")


class Progress(BaseCallback):
    """
    Writes where the run is, a row for each hundredth of its steps, and checkpoints.

    :param run: that is trained
    :param clock: says when to save
    :param n_together: runs that learn in one program
    """

    def __init__(self, run: Run, clock: Clock, n_together: int) -> None:
        super().__init__()
        self.run, self.clock, self.n_together = run, clock, n_together
        self.n_timesteps = run.folder.suite.n_timesteps
        self.since_row = {"episodes": 0, "return": 0.0, "length": 0}
        self.n_rows, self.seconds_before = 0, 0.0
        self.score: float | None = None
        self.certificate: dict[str, Any] = {}

    def go_back_to(self, timesteps: int) -> None:
        """
        Cut the run's files to what they were at a checkpoint.

        :param timesteps: of the checkpoint; 0: the run begins anew
        """
        # an older one goes, too: the monitors' files are cut for this one
        self.run.forget_checkpoints(newer_than=timesteps, but=1)
        evaluations, saved_evaluations = self.run.path / EVALUATIONS, self.run.checkpoint(timesteps) / EVALUATIONS
        evaluations.unlink(missing_ok=True)
        if saved_evaluations.exists():
            shutil.copy(saved_evaluations, evaluations)
        sizes: dict[str, int] = {}
        if timesteps:
            saved = json.loads((self.run.checkpoint(timesteps) / "progress.json").read_text())
            self.since_row, self.n_rows, self.seconds_before = saved["since_row"], saved["n_rows"], saved["seconds"]
            self.score, self.certificate, sizes = saved["score"], saved["certificate"], saved["sizes"]
        progress = self.run.path / "progress.jsonl"
        if progress.exists():
            cut(progress, sizes.get(progress.name, 0))
        # whoever opens a monitor's file anew empties it: what it has gets another name, which RL Zoo's plots read, too
        new = {name: size for name, size in sizes.items() if name != progress.name and not name.startswith("until_")}
        for name, size in new.items():
            kept, monitor = self.run.path / f"until_{timesteps}.{name}", self.run.path / name
            if monitor.exists() and not kept.exists():
                cut(monitor, size)
                monitor.rename(kept)
        for monitor in self.run.path.glob("*.monitor.csv"):
            is_kept = monitor.name in sizes or monitor.name.startswith(f"until_{timesteps}.")
            if not (monitor.name.startswith("until_") and is_kept):
                monitor.unlink()

    def _on_training_start(self) -> None:
        self._start = self._told = time.monotonic()
        self.run.write(
            state=RUNNING, n_timesteps=self.n_timesteps, together=self.n_together, pid=os.getpid(),
            host=platform.node(), device=str(getattr(self.model, "jax_device", "")) or None,
        )  # fmt: skip
        self._tell()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if (episode := info.get("episode")) is not None:
                self.since_row["episodes"] += 1
                self.since_row["return"] += float(episode["r"])
                self.since_row["length"] += int(episode["l"])
        return True

    def _on_rollout_start(self) -> None:
        # between two updates: here a model's file holds all that it takes to go on as if nothing had been
        self._keep_certificate()
        self._add_row()
        if self.clock.is_due(self.model.num_timesteps):
            self.save()
        if time.monotonic() - self._told > 5:
            self._tell()

    def _on_training_end(self) -> None:
        self._keep_certificate()
        self._add_row()
        self._tell()

    @property
    def seconds(self) -> float:
        """
        :return: for which the run has been trained
        """
        return self.seconds_before + time.monotonic() - self._start

    def _keep_certificate(self) -> None:
        # not every update gets one, and a row is written for several updates
        of_update = {name: value for name, value in self.logger.name_to_value.items() if name.startswith("spi/")}
        self.certificate |= of_update

    def _add_row(self) -> None:
        timesteps, episodes = self.model.num_timesteps, self.since_row["episodes"]
        if timesteps * N_ROWS < (self.n_rows + 1) * self.n_timesteps:
            return
        means = {name: self.since_row[name] / episodes if episodes else None for name in ("return", "length")}
        logged = {name: plain(value) for name, value in sorted((self.certificate | self.logger.name_to_value).items())}
        row = {"timesteps": timesteps, "seconds": round(self.seconds, 2), "episodes": episodes} | means | logged
        with (self.run.path / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.n_rows = timesteps * N_ROWS // self.n_timesteps
        score = row.get(self.run.folder.suite.score)
        self.score = self.score if score is None else score
        self.since_row, self.certificate = dict.fromkeys(self.since_row, 0), {}
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        speed = self.model.num_timesteps / max(self.seconds, 1e-9)
        self.run.write(
            timesteps=self.model.num_timesteps, score=self.score, seconds=self.seconds, steps_per_second=speed
        )

    def save_if_between_updates(self) -> None:
        """Save what was interrupted. Our algorithms finish their update first, SB3's stop within a rollout."""
        if isinstance(getattr(self, "model", None), DeepSPI):
            self.save()

    def save(self) -> None:
        """Save the model, and how long the run's files are now; then forget older checkpoints."""
        timesteps = self.model.num_timesteps
        folder = self.run.checkpoint(timesteps)
        if folder.exists():
            return
        partial = folder.with_name("partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self.model.save(partial / "model.zip")
        if (statistics := self.model.get_vec_normalize_env()) is not None:
            (partial / self.run.env_name).mkdir()
            statistics.save(str(partial / self.run.env_name / "vecnormalize.pkl"))
        files = [*self.run.path.glob("*.monitor.csv"), self.run.path / "progress.jsonl"]
        saved = {
            "since_row": self.since_row,
            "n_rows": self.n_rows,
            "seconds": self.seconds,
            "score": self.score,
            "certificate": {name: plain(value) for name, value in self.certificate.items()},
            "sizes": {file.name: file.stat().st_size if file.exists() else 0 for file in files},
        }
        (partial / "progress.json").write_text(json.dumps(saved))
        if (evaluations := self.run.path / EVALUATIONS).exists():
            shutil.copy(evaluations, partial)
        for file in [*partial.rglob("*.*"), *(file for file in files if file.exists())]:
            with file.open("rb") as written:
                os.fsync(written)  # what has the checkpoint's name is on the disk, and the files that it is about
        partial.rename(folder)
        sync_folder(folder.parent)
        self.run.forget_checkpoints(but=2)


def cut(path: Path, size: int) -> None:
    """
    :param path: of a file
    :param size: bytes that stay of it
    """
    if path.stat().st_size > size:
        os.truncate(path, size)


def go_on(callback: EvalCallback, timesteps: int, n_envs: int, run: Run) -> None:
    """
    Give an evaluation what it found before the checkpoint.

    :param callback: that evaluates
    :param timesteps: of the checkpoint
    :param n_envs: environments that learn
    :param run: that has the checkpoint
    """
    path = run.checkpoint(timesteps) / EVALUATIONS
    callback.n_calls = timesteps // n_envs
    if not path.exists():
        return
    with np.load(path) as found:
        callback.evaluations_timesteps = found["timesteps"].tolist()
        callback.evaluations_results = list(found["results"])
        callback.evaluations_length = list(found["ep_lengths"])
        callback.evaluations_successes = list(found["successes"]) if "successes" in found else []
    callback.best_mean_reward = max(float(np.mean(results)) for results in callback.evaluations_results)


def plain(value: Any) -> Any:
    """
    :param value: that was logged
    :return: the same for JSON
    """
    return value if value is None or isinstance(value, str) else float(value)


def command(options: dict[str, Any]) -> str:
    """
    :param options: of RL Zoo's ``train``
    :return: the command that makes the same run without a suite
    """
    words = ["python", "-m", "rl_zoo3.train"]
    for name, value in options.items():
        if value is None:
            continue
        words.append("--" + name.replace("_", "-"))
        words += [f"{key}:{of_key!r}" for key, of_key in value.items()] if isinstance(value, dict) else [str(value)]
    return shlex.join(words)


def installed_versions() -> dict[str, str]:
    """
    :return: of Python, and of the packages that make a run what it is
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_commit() -> str | None:
    """
    :return: of this package, with "+" where files were changed since; ``None``: it is not run from a clone
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)
