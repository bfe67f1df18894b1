"""
The folder of a suite's runs.

    FOLDER/suite.yml                              what the runs are of
    FOLDER/asked.json                             algorithms, games and seeds that were asked for so far
    FOLDER/<algorithm>/                           a log folder as RL Zoo has them, with TensorBoard's in tensorboard/
    FOLDER/<algorithm>/<algo>/<env>_<seed + 1>/   a run's folder as RL Zoo has them, and beside its files:
        run.json           where the run is
        log.txt            what RL Zoo and the algorithm print; of runs that learn together, in the first one's folder
        failures.txt       whatever ended it before it was done, with the time and the traceback
        progress.jsonl     a row for each hundredth of its steps: episodes, their mean return, losses, certificate
        checkpoints/       the newest two: the model, and how long the files were. Two, so that runs that learn
                           together have one in common, even if they were killed while they saved

A game whose name is not its environment's id has a log folder of its own: FOLDER/<algorithm>/<game>/.
"""

import contextlib
import fcntl
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from sbx_deepspi.saving.format import write_atomically
from sbx_deepspi.suite.definition import Algorithm, Game, Suite, SuiteError, load

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


@dataclass(frozen=True)
class Run:
    """
    One training: a game, an algorithm, a seed.

    :param folder: of the suite
    :param game: of the suite
    :param algorithm: of the suite
    :param seed: from 0 on
    """

    folder: "Folder"
    game: Game
    algorithm: Algorithm
    seed: int

    def __hash__(self) -> int:
        return hash((self.algorithm.name, self.game.name, self.seed))

    @property
    def name(self) -> str:
        """
        :return: for people
        """
        return f"{self.algorithm.name} on {self.game.name}, seed {self.seed}"

    @property
    def log_folder(self) -> Path:
        """
        :return: what RL Zoo's programs take as ``-f``
        """
        folder = self.folder.path / self.algorithm.name
        return folder if self.game.name == self.game.env else folder / self.game.name

    @property
    def path(self) -> Path:
        """
        :return: of the run's folder, RL Zoo's ``--exp-id`` seed + 1
        """
        return self.log_folder / self.algorithm.algo / f"{self.env_name}_{self.seed + 1}"

    @property
    def env_name(self) -> str:
        """
        :return: the environment's id as RL Zoo writes it into names of files
        """
        return self.game.env.replace("/", "-")

    def read(self) -> dict[str, Any]:
        """
        :return: where the run is: ``state``, ``timesteps``, ``score``, ``error``, …
        """
        path = self.path / "run.json"
        return read_json(path) if path.exists() else {"state": WAITING, "timesteps": 0}

    def write(self, **changes: Any) -> None:
        """
        :param changes: of what :meth:`read` returns
        """
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "run.json", json.dumps(self.read() | changes, indent=1).encode())

    def keep_error(self, error: str) -> None:
        """
        :param error: that ended the run before it was done
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "failures.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{error.strip()}\n\n")

    def progress(self) -> pd.DataFrame:
        """
        :return: a row for each hundredth of the steps: ``timesteps``, ``seconds``, ``episodes``, ``return``,
            ``length``, and what the algorithm logs; empty if there is none
        :raises SuiteError: the file is damaged
        """
        path = self.path / "progress.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows = text.rpartition("\n")[0].splitlines()  # whole ones: another may just be written
        try:
            return pd.DataFrame([json.loads(row) for row in rows])
        except ValueError as error:
            raise SuiteError(f"{path} is damaged: {error}.") from error

    def checkpoints(self) -> list[int]:
        """
        :return: timesteps of the checkpoints, the newest first
        """
        return sorted((int(path.name) for path in self.path.glob("checkpoints/*") if path.name.isdigit()), reverse=True)

    def checkpoint(self, timesteps: int) -> Path:
        """
        :param timesteps: of the checkpoint
        :return: its folder
        """
        return self.path / "checkpoints" / str(timesteps)

    def forget_checkpoints(self, newer_than: float = math.inf, but: int = 0) -> None:
        """
        :param newer_than: timesteps; the others go
        :param but: how many of those up to ``newer_than`` stay, the newest of them
        """
        kept = [timesteps for timesteps in self.checkpoints() if timesteps <= newer_than][:but]
        for timesteps in set(self.checkpoints()) - set(kept):
            # half of a folder is not taken for a checkpoint
            gone = self.path / "checkpoints" / f"gone_{timesteps}"
            shutil.rmtree(gone, ignore_errors=True)  # what an earlier process was killed over
            self.checkpoint(timesteps).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def common_checkpoint(runs: Sequence[Run]) -> int:
    """
    :param runs: that are to go on together
    :return: timesteps of the newest checkpoint that all of them have; 0: there is none
    """
    return max(set.intersection(*(set(run.checkpoints()) for run in runs)), default=0)


class Folder:
    """
    :param path: of a folder that holds a suite's runs
    :raises SuiteError: it holds none
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not (path / "suite.yml").is_file():
            raise SuiteError(f"{path} holds no runs of a suite: it has no suite.yml.")
        self.suite = load(path / "suite.yml")

    @classmethod
    def of(cls, path: Path, suite: Suite) -> "Folder":
        """
        :param path: of a folder, which is made if there is none
        :param suite: that it is for
        :return: the folder
        :raises SuiteError: it holds something else
        """
        file = path / "suite.yml"
        if file.exists():
            suite = joined(cls(path), suite)
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(file, yaml.safe_dump(suite.plain(), sort_keys=False, allow_unicode=True).encode())
        return cls(path)

    def runs(self, algorithms: Sequence[str], games: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """
        :param algorithms: by name
        :param games: by name
        :param seeds: of each
        :return: the runs, seed by seed, so that there is soon something of everything
        """
        suite = self.suite
        return [
            Run(self, suite.games[game], suite.algorithms[algorithm], seed)
            for seed in seeds
            for game in games
            for algorithm in algorithms
        ]

    def ask(self, algorithms: Sequence[str], games: Sequence[str], seeds: Sequence[int]) -> None:
        """
        :param algorithms: of runs that are now asked for, too
        :param games: of these
        :param seeds: of these
        """
        asked = self._asked()
        asked += [[a, g, s] for a in algorithms for g in games for s in seeds if [a, g, s] not in asked]
        write_atomically(self.path / "asked.json", json.dumps(asked).encode())

    def asked(self) -> list[Run]:
        """
        :return: all runs that were asked for so far
        """
        suite = self.suite
        try:
            return [Run(self, suite.games[game], suite.algorithms[name], seed) for name, game, seed in self._asked()]
        except (KeyError, TypeError, ValueError) as error:
            raise SuiteError(f"{self.path / 'asked.json'} does not fit suite.yml beside it: {error!r}.") from error

    def _asked(self) -> list[list[Any]]:
        path = self.path / "asked.json"
        return read_json(path) if path.exists() else []


def joined(folder: Folder, now: Suite) -> Suite:
    """
    :param folder: that holds runs
    :param now: what it is to hold runs of, too
    :return: the suite as it is now, with all games and algorithms of both
    :raises SuiteError: runs would not be comparable with those of before
    """
    before, path, asked = folder.suite, folder.path, folder.asked()
    games, algorithms = before.games | now.games, before.algorithms | now.algorithms
    for name in ("name", "n_timesteps", "hyperparams", "env_kwargs", "n_evaluations", "eval_episodes", "score"):
        compare(getattr(before, name), getattr(now, name), name, path)
    for game in {run.game.name: run.game for run in asked}.values():
        other = games[game.name]
        compare((game.env, game.hyperparams), (other.env, other.hyperparams), f"game {game.name}", path)
    for algorithm in {run.algorithm.name: run.algorithm for run in asked}.values():
        compare(algorithm, algorithms[algorithm.name], f"algorithm {algorithm.name}", path)
    return replace(now, games=games, algorithms=algorithms)


def compare(before: Any, now: Any, what: str, path: Path) -> None:
    """
    :param before: in a folder's suite
    :param now: in the suite that is asked for
    :param what: it is
    :param path: of the folder
    :raises SuiteError: they are not equal
    """
    if before != now:
        raise SuiteError(
            f"{path} holds runs with another {what}: {before!r:.120}, now {now!r:.120}. Take another folder."
        )


@contextlib.contextmanager
def only_here(path: Path) -> Iterator[None]:
    """
    :param path: of a suite's folder
    :return: a context in which no other process runs its runs
    :raises SuiteError: another does
    """
    with lock(path / "lock") as is_mine:
        if not is_mine:
            raise SuiteError(f"Another process runs the suite in {path}: wait for it, or stop it.")
        yield


@contextlib.contextmanager
def lock(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """
    :param path: of a file that stands for what may be used once
    :param seconds: to wait for it
    :return: a context; whether this process has it now
    """
    until = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_mine = True
            except BlockingIOError:
                is_mine = False
            if is_mine or time.monotonic() >= until:
                break
            time.sleep(0.5)
        yield is_mine


def read_json(path: Path) -> Any:
    """
    :param path: of a file
    :return: what it holds
    :raises SuiteError: it is damaged
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SuiteError(f"{path} is damaged ({error}): take it away, and the same command makes it anew.") from error
