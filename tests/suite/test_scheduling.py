"""Which runs go together, and what is shown of them. Ray itself: test_runs.py."""

from collections import defaultdict
from pathlib import Path

from rich.console import Console

from sbx_deepspi.suite.definition import load
from sbx_deepspi.suite.folder import DONE, FAILED, RUNNING, Folder, Run
from sbx_deepspi.suite.scheduling import Ends, again, groups
from sbx_deepspi.suite.table import RunsTable
from tests.suite.helpers import write

INSIDE, OUTSIDE = "gymnax/CartPole-v1", "CartPole-v1"


def runs_of(path: Path, algorithms: list[str], games: list[str], n_seeds: int) -> list[Run]:
    suite = load(
        write(path / "tiny.yml", seeds_at_once=3, games={name: {"low": 20, "high": 120} for name in (INSIDE, OUTSIDE)})
    )
    return Folder.of(path / "runs", suite).runs(algorithms, games, range(n_seeds))


def seeds_of(found: list[tuple[Run, ...]]) -> list[tuple[str, str, list[int]]]:
    return [(group[0].algorithm.name, group[0].game.name, [run.seed for run in group]) for group in found]


def test_groups(tmp_path: Path) -> None:
    """Seeds of a game and an algorithm inside jit, from the same checkpoint on; the first seeds of everything first."""
    runs = runs_of(tmp_path, ["ppo", "sb3_ppo"], [INSIDE, OUTSIDE], 4)
    alone = [(name, game, [seed]) for seed in range(3) for name, game in (("sb3_ppo", INSIDE), ("ppo", OUTSIDE))]
    found = seeds_of(groups(runs))
    assert found[0] == ("ppo", INSIDE, [0, 1, 2])
    assert found[1:4] == [("sb3_ppo", INSIDE, [0]), ("ppo", OUTSIDE, [0]), ("sb3_ppo", OUTSIDE, [0])]
    assert ("ppo", INSIDE, [3]) in found and all(group in found for group in alone)
    assert found.index(("ppo", INSIDE, [3])) > found.index(("sb3_ppo", OUTSIDE, [2]))

    first, second, third, _ = (run for run in runs if (run.algorithm.name, run.game.name) == ("ppo", INSIDE))
    first.write(state=DONE)
    third.checkpoint(100).mkdir(parents=True)
    of_ppo = [group for group in seeds_of(groups(runs)) if group[:2] == ("ppo", INSIDE)]
    assert sorted(of_ppo) == [("ppo", INSIDE, [1]), ("ppo", INSIDE, [2]), ("ppo", INSIDE, [3])]
    for timesteps in (100, 200):  # it was killed while they saved
        second.checkpoint(timesteps).mkdir(parents=True)
    assert ("ppo", INSIDE, [1, 2]) in seeds_of(groups(runs))
    assert seeds_of(groups([second, third], at_once=1)) == [("ppo", INSIDE, [1]), ("ppo", INSIDE, [2])]
    assert groups([first]) == []


def test_what_is_tried_again(tmp_path: Path) -> None:
    """Own errors twice; lost workers as long as something new was saved, and from the second vain try on one by one."""
    suite = load(write(tmp_path / "tiny.yml", seeds_at_once=2, games={INSIDE: {"low": 20, "high": 120}}))
    runs = Folder.of(tmp_path / "runs", suite).runs(["ppo"], [INSIDE], range(2))
    (together,) = groups(runs)

    ends: defaultdict[Run, Ends] = defaultdict(Ends)
    assert again(together, "ValueError: a", True, ends) == again(together, "ValueError: b", True, ends)
    assert again(together, "ValueError: c", True, ends) == []
    assert [(run.read()["state"], run.read()["attempts"]) for run in runs] == [(FAILED, 3)] * 2
    kept = (runs[0].path / "failures.txt").read_text()
    assert [line for line in kept.splitlines() if line.startswith("ValueError")] == [
        "ValueError: a", "ValueError: b", "ValueError: c",
    ]  # fmt: skip

    ends = defaultdict(Ends)
    for timesteps in range(100, 600, 100):  # preempted again and again
        for run in runs:
            run.checkpoint(timesteps).mkdir(parents=True)
        assert again(together, "the worker died", False, ends) == [together]
    assert again(together, "the worker died", False, ends) == [together]
    one_by_one = [(run,) for run in runs]
    assert again(together, "the worker died", False, ends) == one_by_one
    runs[1].write(state=DONE)
    assert again((runs[0],), "the worker died", False, ends) == []
    assert [run.read()["state"] for run in runs] == [FAILED, DONE]
    assert again((runs[1],), "the worker died", False, ends) == []


def test_a_file_that_cannot_be_read_now(tmp_path: Path) -> None:
    """On a disk that machines share: the table shows what was there before."""
    (run,) = runs_of(tmp_path, ["ppo"], [INSIDE], 1)
    run.write(state=RUNNING, timesteps=640)
    console = Console(width=80, record=True, force_terminal=False, file=(tmp_path / "log").open("w"))
    with RunsTable([run], console) as table:
        (run.path / "run.json").write_text("")
        table.tell()
        assert table.states[run]["timesteps"] == 640


def test_the_table(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, ["ppo", "deepspi"], [INSIDE], 2)
    console = Console(width=80, record=True, force_terminal=True, file=(tmp_path / "screen").open("w"))
    table = RunsTable(runs, console)
    runs[0].write(state=DONE, timesteps=6400, score=120.0)
    runs[1].write(state=RUNNING, timesteps=3200, score=70.0, steps_per_second=1234.4)
    with table:
        table.tell()
    said = console.export_text()
    assert "1 of 2" in said and "12,800 steps left" not in said and "left" in said
    row = next(line for line in said.splitlines() if "1,234" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["deepspi", INSIDE, "1", "50.0%", "70", "1,234"]
    of_ppo = next(line for line in said.splitlines() if "ppo" in line)
    assert [cell.strip() for cell in of_ppo.split("│")[1:-1]] == ["ppo", "1 of 2", "", "", "50.0%", "1"]


def test_lines_instead_of_the_table(tmp_path: Path) -> None:
    """Where there is no terminal: one line for each change, whole."""
    runs = runs_of(tmp_path, ["ppo"], [INSIDE], 2)
    console = Console(width=40, record=True, force_terminal=False, file=(tmp_path / "log").open("w"))
    with RunsTable(runs, console) as table:
        runs[0].write(state=RUNNING, timesteps=0)
        table.tell()
        runs[0].write(state=FAILED, timesteps=640, attempts=3, error="Traceback\n  more\nValueError: no\n")
        table.tell()
        table.tell()
    assert console.export_text().splitlines() == [
        f"ppo on {INSIDE}, seed 0: running, 0 steps; 12,800 steps left",
        f"ppo on {INSIDE}, seed 0: failed, 640 steps (failure 3: ValueError: no); about 0:00:00 left",
    ]
