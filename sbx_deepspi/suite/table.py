"""The live table of a suite's runs."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from sbx_deepspi.suite.definition import SuiteError
from sbx_deepspi.suite.folder import DONE, FAILED, RUNNING, Run

States = dict[Run, dict[str, Any]]
Key = TypeVar("Key", bound=Hashable)


class RunsTable:
    """
    Shows where the runs are: on a terminal a table that changes, elsewhere a line for each change.

    :param runs: all that were asked for, one at least
    :param console: rich's
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.runs, self.console = runs, console
        self.suite = runs[0].folder.suite
        self.began = time.monotonic()
        self.states = {run: run.read() for run in runs}
        self.steps_at_start = self._steps()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "RunsTable":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.tell()
        if self.live is not None:
            self.live.stop()

    def tell(self) -> None:
        """Read where the runs are, and show it."""
        before, self.states = self.states, {run: self._read(run) for run in self.runs}
        if self.live is not None:
            self.live.update(self.tables(), refresh=True)
            return
        for run, now in self.states.items():
            what = before[run]["state"], before[run].get("attempts", 0)
            if what != (now["state"], now.get("attempts", 0)):
                self.console.print(self.line(run, now), highlight=False, markup=False, soft_wrap=True)

    def line(self, run: Run, now: dict[str, Any]) -> str:
        """
        :param run: of the suite
        :param now: where it is
        :return: a line on it
        """
        line = f"{run.name}: {now['state']}, {now['timesteps']:,} steps"
        if now.get("score") is not None:
            line += f", score {now['score']:.4g}"
        if now.get("error"):
            line += f" (failure {now['attempts']}: {now['error'].strip().splitlines()[-1]:.200})"
        return f"{line}; {self.left()}"

    def tables(self) -> Group:
        """
        :return: a row for each algorithm, and one for each program that runs: few enough for any screen
        """
        totals = Table(title=f"Suite {self.suite.name}: {self.left()}", title_justify="left")
        for title in ("algorithm", "done", "running", "failed", "steps", "normalised score"):
            totals.add_column(title, justify="left" if title == "algorithm" else "right")
        running = Table()
        for title in ("algorithm", "game", "runs", "steps", "score", "steps/s"):
            running.add_column(title, justify="left" if title in ("algorithm", "game") else "right")
        for algorithm, of_algorithm in by(self.states, lambda run: run.algorithm.name).items():
            counts = Counter(now["state"] for now in of_algorithm.values())
            normalized = [run.game.normalized(now["score"]) for run, now in scored(of_algorithm)]
            made = sum(now["timesteps"] for now in of_algorithm.values())
            totals.add_row(
                algorithm, f"{counts[DONE]} of {len(of_algorithm)}", str(counts[RUNNING] or ""),
                str(counts[FAILED] or ""), f"{made / len(of_algorithm) / self.suite.n_timesteps:.1%}", mean(normalized),
            )  # fmt: skip
        under_way = {run: now for run, now in self.states.items() if now["state"] == RUNNING}
        for (algorithm, game), of_both in by(under_way, lambda run: (run.algorithm.name, run.game.name)).items():
            speed = sum(now.get("steps_per_second", 0.0) for now in of_both.values())
            running.add_row(
                algorithm, game, str(len(of_both)),
                f"{sum(now['timesteps'] for now in of_both.values()) / len(of_both) / self.suite.n_timesteps:.1%}",
                mean([now["score"] for _, now in scored(of_both)]), f"{speed:,.0f}",
            )  # fmt: skip
        return Group(totals, *[running] * bool(under_way))

    def left(self) -> str:
        """
        :return: the time left, in words
        """
        made, steps = self._steps() - self.steps_at_start, 0
        for now in self.states.values():
            if now["state"] not in (DONE, FAILED):
                steps += self.suite.n_timesteps - now["timesteps"]
        if steps == 0:
            return "nothing left"
        if made <= 0:
            return f"{steps:,} steps left"
        seconds = int((time.monotonic() - self.began) * steps / made)
        return f"about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def _read(self, run: Run) -> dict[str, Any]:
        before = self.states[run]
        if before["state"] == DONE:
            return before
        try:
            return run.read()
        except (OSError, SuiteError):  # a shared disk may show a file late that another machine has just replaced
            return before

    def _steps(self) -> int:
        return sum(now["timesteps"] for now in self.states.values())


def by(states: States, key: Callable[[Run], Key]) -> dict[Key, States]:
    """
    :param states: of runs
    :param key: of a run
    :return: the states of the runs with each key
    """
    found: dict[Key, States] = {}
    for run, now in states.items():
        found.setdefault(key(run), {})[run] = now
    return found


def scored(states: States) -> list[tuple[Run, dict[str, Any]]]:
    """
    :param states: of runs
    :return: the runs in which an episode has ended
    """
    return [(run, now) for run, now in states.items() if now.get("score") is not None]


def mean(numbers: Sequence[float]) -> str:
    """
    :param numbers: any
    :return: their mean, for people
    """
    return f"{sum(numbers) / len(numbers):.3g}" if numbers else ""
