"""The live table of a suite's runs."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sbx_deepspi.suite.folder import DONE, FAILED, RUNNING, Run


class RunsTable:
    """
    Shows where the runs are: on a terminal a table that changes, elsewhere a line for each change.

    :param runs: all that were asked for
    :param console: rich's
    """

    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.runs, self.console = runs, console
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

    def tell(self, under_way: Sequence[Sequence[Run]] = ()) -> None:
        """
        :param under_way: groups of runs that are not done
        """
        before, self.states = self.states, {run: run.read() for run in self.runs}
        if self.live is not None:
            self.live.update(self.table(), refresh=True)
            return
        for run, now in self.states.items():
            what = before[run]["state"], before[run].get("attempts", 0)
            if what != (now["state"], now.get("attempts", 0)):
                self.console.print(self.line(run, now), highlight=False)

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

    def table(self) -> Table:
        """
        :return: a row for each game and algorithm
        """
        rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for run, now in self.states.items():
            rows[run.game.name, run.algorithm.name].append(now)
        table = Table(title=f"Suite {self.runs[0].folder.suite.name}: {self.left()}" if self.runs else None)
        for title in ("game", "algorithm", "done", "running", "failed", "steps", "score", "steps/s"):
            table.add_column(title, justify="left" if title in ("game", "algorithm") else "right")
        for (game, algorithm), states in rows.items():
            counts = Counter(now["state"] for now in states)
            scores = [now["score"] for now in states if now.get("score") is not None]
            speeds = [
                now["steps_per_second"] for now in states if now["state"] == RUNNING and "steps_per_second" in now
            ]
            table.add_row(
                game, algorithm, f"{counts[DONE]} of {len(states)}", str(counts[RUNNING] or ""),
                str(counts[FAILED] or ""), f"{sum(now['timesteps'] for now in states):,}",
                f"{sum(scores) / len(scores):.4g}" if scores else "", f"{sum(speeds):,.0f}" if speeds else "",
            )  # fmt: skip
        return table

    def left(self) -> str:
        """
        :return: the time left, in words
        """
        made, steps = self._steps() - self.steps_at_start, 0
        for run, now in self.states.items():
            if now["state"] not in (DONE, FAILED):
                steps += run.folder.suite.n_timesteps - now["timesteps"]
        if steps == 0:
            return "nothing left"
        if made <= 0:
            return f"{steps:,} steps left"
        seconds = int((time.monotonic() - self.began) * steps / made)
        return f"about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    def _steps(self) -> int:
        return sum(now["timesteps"] for now in self.states.values())
