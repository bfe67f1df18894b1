"""The command line: ``python -m sbx_deepspi.suite run SUITE`` and ``report FOLDER``."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter
from sbx_deepspi.suite.definition import SuiteError, find, known_suites, load, nearest, whole_number

NEEDED = ("ray", "rl_zoo3", "rliable")


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(
        "python -m sbx_deepspi.suite",
        description="Many runs of RL Zoo's on Ray, and what they show together.",
        formatter_class=HelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="{run,report}")
    run = commands.add_parser(
        "run",
        help="train what is not done yet",
        description="Trains every game, algorithm and seed that is not done. After an interruption the same command "
        "goes on from what was saved.",
        formatter_class=HelpFormatter,
    )
    run.add_argument("suite", help=f"{', '.join(known_suites())}, or a .yml file of your own")
    run.add_argument(
        "--algos",
        nargs="+",
        metavar="NAME",
        help="of the suite; otherwise those that its file adds, or else ppo deepmdp deepspi dreamspi",
    )
    run.add_argument("--games", nargs="+", metavar="NAME", help="of the suite; otherwise all")
    run.add_argument("--seeds", type=int, default=10, metavar="N", help="how many: 0, 1, ...")
    run.add_argument(
        "-n", "--n-timesteps", metavar="N", help="of all environments of a run together; otherwise the suite's"
    )
    run.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="of the runs; otherwise logs/SUITE")
    run.add_argument("--address", help="of a Ray cluster; otherwise the runs are on this machine")
    run.add_argument("--cpus-per-run", type=float, default=1, metavar="N", help="cores of each program")
    run.add_argument(
        "--gpus-per-run", type=float, default=0, metavar="N", help="0 is for CPUs; with 0.25 four programs share one"
    )
    run.set_defaults(command=run_suite)
    report = commands.add_parser(
        "report",
        help="make a page of what there is",
        description="Makes one HTML page of what a folder's runs show together, whether all are done or not.",
        formatter_class=HelpFormatter,
    )
    report.add_argument("folder", type=Path, help="of the runs")
    report.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER", help="of the page; otherwise report in that of the runs"
    )
    report.set_defaults(command=report_suite)
    return parser


def run_suite(given: argparse.Namespace) -> int:
    """
    :param given: on the command line
    :return: exit status: 1 where a run has failed
    """
    from dataclasses import replace

    from rich.console import Console
    from rl_zoo3 import ALGOS

    from sbx_deepspi.suite.folder import FAILED, Folder, only_here
    from sbx_deepspi.suite.scheduling import check_address, run_all
    from sbx_deepspi.suite.table import RunsTable

    suite = load(find(given.suite))
    if given.n_timesteps is not None:
        suite = replace(suite, n_timesteps=whole_number(given.n_timesteps, 1, "--n-timesteps"))
    whole_number(given.seeds, 1, "--seeds")
    for name, number, least in (("cpus", given.cpus_per_run, 0.01), ("gpus", given.gpus_per_run, 0)):
        if not number >= least or (number > 1 and not number.is_integer()):
            raise SuiteError(f"--{name}-per-run has to be from {least} to 1, or a whole number, but is {number:g}.")
    which = (
        suite.select("algorithms", given.algos or suite.usual_algorithms),
        suite.select("games", given.games),
        range(given.seeds),
    )
    if given.address is not None:
        check_address(given.address)
    for algo in {suite.algorithms[name].algo for name in which[0]} - ALGOS.keys():
        raise SuiteError(f"RL Zoo has no algorithm {algo!r}{nearest(algo, ALGOS)}")
    for env in (suite.games[name].env for name in which[1]):
        check_env(env)
    path = given.output or Path("logs") / suite.name
    path.mkdir(parents=True, exist_ok=True)
    try:
        with only_here(path):
            folder = Folder.of(path, suite)
            folder.ask(*which)
            runs = folder.runs(*which)
            with RunsTable(runs, Console()) as table:
                run_all(runs, given.cpus_per_run, given.gpus_per_run, given.address, table.tell)
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from what was saved.", file=sys.stderr)
        return 130
    failed = [run for run in runs if run.read()["state"] == FAILED]
    for run in failed:
        print(f"Failed: {run.name}; its tracebacks are in {run.path / 'failures.txt'}", file=sys.stderr)
    print(f"The runs are in {folder.path}; python -m sbx_deepspi.suite report {folder.path} shows them")
    return 1 if failed else 0


def check_env(env: str) -> None:
    """
    :param env: an environment's id
    :raises SuiteError: it is unknown, or its library is not installed
    """
    import gymnasium as gym
    import rl_zoo3.import_envs  # noqa: F401

    from sbx_deepspi.envs.jitted.make import is_jax_env_id, make_one

    if is_jax_env_id(env):
        try:
            make_one(env)
        except (ImportError, ValueError) as error:
            raise SuiteError(str(error)) from error
    elif env not in gym.registry:
        close = difflib.get_close_matches(env, gym.registry, n=1)
        hint = f": did you mean {close[0]!r}?" if close else ", or its package is not installed."
        raise SuiteError(f"There is no environment {env!r}{hint}")


def report_suite(given: argparse.Namespace) -> int:
    """
    :param given: on the command line
    :return: exit status
    """
    from sbx_deepspi.suite.report.make import report

    print(f"The report is in {report(given.folder, given.output)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line; ``None``: those of this process
    :return: exit status; where it is not 0, a sentence on stderr says why
    """
    given = parser().parse_args(arguments)
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        print(f"Suites need {' and '.join(missing)}: pip install 'sbx-deepspi[suite]'.", file=sys.stderr)
        return 1
    try:
        return given.command(given)
    except (SuiteError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
