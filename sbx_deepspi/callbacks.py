"""Callbacks that DeepSPI's users need beside SB3's."""

import csv
from collections.abc import Iterable
from pathlib import Path

from flax.training.train_state import TrainState
from stable_baselines3.common.callbacks import BaseCallback

from sbx_deepspi import checks
from sbx_deepspi.certificate import CONDITIONS, numbers, outside_neighbourhood, verdict, violations
from sbx_deepspi.deepspi import DeepSPI

REACTIONS = ("stop", "restore")


class SPICertificateCallback(BaseCallback):
    """
    Write each update's certificate to a CSV file, and hold training to the conditions asked for.

    :param path: of the CSV file, one row per update; rows are added to a file that exists. ``None``: no file
    :param require: conditions that every update must meet, of :data:`~sbx_deepspi.certificate.CONDITIONS` and
        ``"neighbourhood"``, every importance ratio within [1 - ε, 1 + ε]
    :param on_violation: ``"stop"`` training, or ``"restore"`` the last parameters that met the conditions (at first
        those before training) and go on from there
    :param verbose: 1 prints a line at each violation
    :raises ValueError: a condition or reaction is unknown; at the start of training, a condition can never be met
    """

    model: DeepSPI

    def __init__(
        self,
        path: str | Path | None = None,
        require: Iterable[str] = (),
        on_violation: str = "stop",
        verbose: int = 1,
    ):
        super().__init__(verbose)
        self.path = None if path is None else Path(path)
        self.require = tuple(require)
        self.on_violation = on_violation
        for condition in self.require:
            checks.one_of((*CONDITIONS, "neighbourhood"), require=condition)
        checks.one_of(REACTIONS, on_violation=on_violation)

    def _init_callback(self) -> None:
        if not isinstance(self.model, DeepSPI):
            raise ValueError(f"SPICertificateCallback needs DeepSPI or DeepMDP, but got {type(self.model).__name__}.")
        checks.reachable(self.require, self.model.gamma, self.model.clip_range, self.model.all_actions)
        self._last_good: TrainState = self.model.policy.state
        self._seen = self.model.certificate
        self._goes_on = True
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

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
        row = {"timesteps": self.num_timesteps, **numbers(certificate, self.model.all_actions)}
        self._write({**row, "verdict": verdict(certificate, failed)})

        clip_range = self.model.clip_range_schedule(self.model._current_progress_remaining)
        failed |= outside_neighbourhood(certificate, clip_range)
        broken = [failed[condition] for condition in self.require if condition in failed]
        if not broken:
            self._last_good = self.model.policy.state
            return
        if self.on_violation == "restore":
            self.model.policy.state = self._last_good
        else:
            self._goes_on = False
        if self.verbose >= 1:
            action = "the last good parameters are back" if self.on_violation == "restore" else "training stops"
            print(f"At {self.num_timesteps} steps {'; '.join(broken)}: {action}.")

    def _write(self, row: dict[str, float | str]) -> None:
        if self.path is None:
            return
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
