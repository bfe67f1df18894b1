"""Checkpoints while a model learns."""

import os
import uuid
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sbx_deepspi import checkpoint


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
    :raises ValueError: a number is less than 1
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

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.n_calls - self._last_saved >= self.save_freq:
            self._save()

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        self._last_saved = self.n_calls
        newest = self.folder / f"{self.name_prefix}_{self.model.num_timesteps}_steps.zip"
        self.model.save(newest)
        point(self.folder / f"{self.name_prefix}_latest.zip", newest.name)
        if self.verbose >= 2:
            print(f"Saved {newest}")
        # by age, not by name: a new run may begin in the folder of an old one
        saved = self.folder.glob(f"{self.name_prefix}_*_steps.zip")
        by_age = sorted(saved, key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[: -self.keep]:
            path.unlink()


def point(link: Path, name: str) -> None:
    """
    Let a symbolic link point at a file of its folder; at any moment it points at the old one or at the new one.

    :param link: where the link is, or is to be
    :param name: of the file
    """
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}.tmp")
    temporary.symlink_to(name)
    os.replace(temporary, link)
    checkpoint.sync_folder(link.parent)
