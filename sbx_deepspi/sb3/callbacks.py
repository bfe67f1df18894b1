"""Checkpoints and certificates while a model learns."""

import csv
import glob
import io
import os
import re
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sbx_deepspi import valid
from sbx_deepspi.guarantee.conditions import CONDITIONS, behaviour_numbers, limit_of, numbers, verdict, violations
from sbx_deepspi.guarantee.measure import unbounded
from sbx_deepspi.guarantee.neighbourhood import outside_neighbourhood
from sbx_deepspi.optimizer import Learner
from sbx_deepspi.processes import is_first_process
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.sb3 import checks
from sbx_deepspi.sb3.algorithm import DeepSPI

REACTIONS = ("stop", "restore")


class SPICertificateCallback(BaseCallback):
    """
    Write certificates to a CSV file, and hold training to the conditions asked for. Every ``certificate_freq``-th
    update has a certificate, and with ``require`` every update.

    In a list of callbacks it stands before those that save the model: they should find the parameters that it leaves.

    :param path: of the CSV file, one row per certificate; rows are added to a file that exists. ``None``: no file
    :param require: conditions, or one, that every update must meet: of
        :data:`~sbx_deepspi.guarantee.conditions.CONDITIONS`, and ``"neighbourhood"``, every importance ratio within
        [1 - ε, 1 + ε] (for Box, of the sampled actions)
    :param on_violation: ``"stop"`` training, or ``"restore"`` the last parameters that met the conditions (at first
        those before training) and go on from there
    :param verbose: 1 prints a line at each violation
    :raises ValueError: a condition or reaction is unknown, or there is nothing to do; at the start of training, a
        condition can never be met, or K_P breaks one already
    """

    model: DeepSPI

    def __init__(
        self,
        path: str | Path | None = None,
        require: str | Iterable[str] = (),
        on_violation: str = "stop",
        verbose: int = 1,
    ):
        super().__init__(verbose)
        self.path = None if path is None else Path(path)
        self.require = (require,) if isinstance(require, str) else tuple(require)
        self.on_violation = on_violation
        for condition in self.require:
            valid.one_of((*CONDITIONS, "neighbourhood"), require=condition)
        valid.one_of(REACTIONS, on_violation=on_violation)
        if self.path is None and not self.require:
            raise ValueError("SPICertificateCallback has nothing to do: give it a path, or conditions to require.")
        if on_violation == "restore" and not self.require:
            raise ValueError("on_violation='restore' needs conditions that can be violated, but require is empty.")

    def _init_callback(self) -> None:
        if not isinstance(self.model, DeepSPI):
            raise ValueError(
                f"SPICertificateCallback needs DeepSPI, DeepMDP or DreamSPI, but got {type(self.model).__name__}."
            )
        policy, gamma = self.model.policy, self.model.gamma
        if not policy.world_model:
            raise ValueError(
                "SPICertificateCallback needs a world model, but reward_loss_coef and transition_loss_coef are 0: "
                "there is nothing to certify."
            )
        self._last_good: Learner = policy.learner
        self.model.certifies_each_update |= bool(self.require)
        programs, parameters = policy.programs, self._last_good.parameters
        checks.reachable(self.require, gamma, self.model.all_actions, unbounded(programs.networks, parameters))
        needs_contraction = [name for name in self.require if name in ("transition_lipschitz", "finite")]
        if needs_contraction:
            # the first bound is also of the first parameters, and they are what "restore" goes back to
            constant = float(programs.transition_lipschitz(parameters))
            violation = None if constant * gamma < 1 else f"K_P {constant:.4g} >= {limit_of(gamma)}"
            checks.met_before_training(needs_contraction[0], violation)
        self._seen = self.model.certificate
        self._goes_on = True
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        self._last_good = self.model.policy.learner  # where several processes train, process 0's by now

    def _on_rollout_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        return self._goes_on

    def _on_training_end(self) -> None:
        self._look()

    def _look(self) -> None:
        certificate = self.model.certificate
        if certificate is None or certificate is self._seen:
            return
        self._seen = certificate
        failed = violations(certificate, self.model.gamma, self.model.all_actions)
        row: dict[str, float | str] = {"timesteps": self.num_timesteps}
        row |= numbers(certificate, self.model.all_actions) | behaviour_numbers(certificate)
        self._write(row | {"verdict": verdict(certificate, failed)})

        clip_range = self.model.clip_range_schedule(self.model._current_progress_remaining)
        failed |= outside_neighbourhood(certificate, clip_range)
        broken = [failed[condition] for condition in self.require if condition in failed]
        if not broken:
            self._last_good = self.model.policy.learner
            return
        if self.on_violation == "restore":
            self.model.policy.learner = self._last_good
        else:
            self._goes_on = False
        if self.verbose >= 1:
            action = "the last good parameters are back" if self.on_violation == "restore" else "training stops"
            print(f"At {self.num_timesteps} steps {'; '.join(broken)}: {action}.")

    def _write(self, row: dict[str, float | str]) -> None:
        if self.path is None or not is_first_process():
            return
        header = ",".join(row)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            found = file.readline().strip()
            if found not in ("", header):
                raise ValueError(f"{self.path} has other columns than this run's certificates: choose another path.")
            writer = csv.DictWriter(file, list(row))
            if not found:
                writer.writeheader()
            writer.writerow(row)


class CheckpointCallback(BaseCallback):
    """
    Save the model now and then, keep the last few files, and let ``<name_prefix>_latest.zip`` point at the newest.

    Unlike SB3's, it saves between two updates, where a run can be resumed exactly, and also when training ends,
    be it by a signal or because updates failed.

    :param save_freq: steps of each environment between two checkpoints, as SB3 counts them; the next update's end
        is waited for
    :param save_path: folder of the checkpoints
    :param name_prefix: how their names begin: ``<name_prefix>_<steps>_steps.zip``
    :param keep: number of checkpoints to keep
    :param verbose: 2 for a line per checkpoint
    :raises ValueError: a number is less than 1; at the start of training, the model cannot be saved
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | os.PathLike[str],
        name_prefix: str = "rl_model",
        keep: int = 5,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        if save_freq < 1 or keep < 1:
            raise ValueError(f"save_freq and keep must be at least 1, but got {save_freq} and {keep}.")
        self.save_freq = save_freq
        self.folder = Path(save_path)
        self.name_prefix = name_prefix
        self.keep = keep
        self._last_saved = 0

    def _init_callback(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # what runs that were killed left behind, an hour or more ago, so that no other run is writing it
        for path in self.folder.glob(f".{glob.escape(self.name_prefix)}_*.zip.*.tmp"):
            if modified(path) < time.time_ns() - 3600 * 10**9:
                path.unlink(missing_ok=True)
        self.model.save(io.BytesIO())  # what cannot be saved is better known now

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_calls - self._last_saved >= self.save_freq:
            self._save()

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        self._last_saved = self.n_calls
        if not is_first_process():
            return
        newest = self.folder / f"{self.name_prefix}_{self.model.num_timesteps}_steps.zip"
        self.model.save(newest)
        point(self.folder / f"{self.name_prefix}_latest.zip", newest.name)
        if self.verbose >= 2:
            print(f"Saved {newest}")
        # by age, not by name: a new run may begin in the folder of an old one
        name = re.compile(re.escape(self.name_prefix) + r"_\d+_steps\.zip")
        older = [path for path in self.folder.iterdir() if name.fullmatch(path.name) and path != newest]
        for path in sorted(older, key=modified, reverse=True)[self.keep - 1 :]:
            path.unlink(missing_ok=True)


def modified(path: Path) -> int:
    """
    :param path: of a file
    :return: when it was last written, in ns; 0 if somebody else has just deleted it
    """
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def point(link: Path, name: str) -> None:
    """
    Let a symbolic link point at a file of its folder; at any moment it points at the old one or at the new one.

    :param link: where the link is, or is to be
    :param name: of the file
    :raises OSError: there cannot be a link
    """
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.symlink_to(name)
        os.replace(temporary, link)
    except OSError as error:
        reason = "it is a folder: move it away" if link.is_dir() else error.strerror
        raise OSError(error.errno, f"Could not let {link} point at {name} ({reason}), which is saved") from error
    finally:
        temporary.unlink(missing_ok=True)
    checkpoint.sync_folder(link.parent)
