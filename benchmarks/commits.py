"""
Time DeepSPI as it stands, DeepSPI of an earlier commit, and SBX's PPO, in turn.

    python benchmarks/commits.py e6b83e5
    python benchmarks/commits.py HEAD --settings CartPole    # the last one

Each trains in a process of its own; the processes take turns, one rollout and update at a time, so that all of them
see the same machine. New processes follow, since a program of small products is up to 5 % faster or slower from one
process to the next. A start-up is a process with an empty cache: from the constructor to the end of the first update,
imports aside. With ``--name`` the times go to docs/results.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

HERE = Path(__file__).parent.parent
SETTINGS = {"8x128": ("Breakout-v5", 8, 128), "128x8": ("Breakout-v5", 128, 8), "CartPole": ("CartPole-v1", 8, 128)}


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("commit", help="to compare with; anything that git checkout takes")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), metavar="NAME",
        help=f"some of {', '.join(SETTINGS)}",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, help="updates of each process that count")
    parser.add_argument("--processes", type=int, default=3, help="of each, one after the other, and start-ups of each")
    parser.add_argument("--name", help="of the file; without one, nothing is written")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before the rest is imported

import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile

# The worker runs with either commit's code, so it uses nothing that only one of them has. Each line of its input asks
# for a rollout and update; it answers with the seconds of both, and of the update alone.
WORKER = """
import sys, time, jax
name, env_id, n_envs, n_steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from stable_baselines3.common.env_util import make_vec_env
if name == "sbx_ppo":
    from sbx import PPO as Algorithm
else:
    from sbx_deepspi import DeepSPI as Algorithm
images = env_id.startswith("Breakout")
if images:
    from sbx_deepspi import make_envpool_env
    env = make_envpool_env(env_id, n_envs=n_envs, seed=0)
else:
    env = make_vec_env(env_id, n_envs=n_envs, seed=0)
settings = dict(n_epochs=4, clip_range=0.1, ent_coef=0.01, learning_rate=2.5e-4) if images else dict(n_epochs=10)
start = time.perf_counter()
model = Algorithm("CnnPolicy" if images else "MlpPolicy", env, n_steps=n_steps, batch_size=256, seed=0, **settings)
made = time.perf_counter() - start
updates = []
train = model.train
def timed():
    start = time.perf_counter()
    train()
    jax.block_until_ready(jax.live_arrays())
    updates.append(time.perf_counter() - start)
model.train = timed
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    start = time.perf_counter()
    model.learn(n_envs * n_steps, reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    print(made + seconds, seconds, updates[-1], file=answers, flush=True)
"""


def start(name: str, code: Path, setting: str, **environment: str) -> subprocess.Popen[str]:
    """
    :param name: ``"now"``, ``"before"`` or ``"sbx_ppo"``
    :param code: folder that holds the package
    :param setting: one of ``SETTINGS``
    :param environment: variables for the process
    :return: the process of a worker
    """
    env_id, n_envs, n_steps = SETTINGS[setting]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, name, env_id, str(n_envs), str(n_steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code)} | environment,
    )


def ask(process: subprocess.Popen[str]) -> tuple[float, ...]:
    """
    :param process: of a worker
    :return: seconds since the constructor began, where this is the first turn, of the turn, and of its update
    """
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"A worker ended with exit status {process.wait()}: what it said is above.")
    return tuple(map(float, answer.split()))


def end(process: subprocess.Popen[str]) -> None:
    """
    :param process: of a worker, which ends with its input
    """
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def take_turns(codes: dict[str, Path], setting: str, rounds: int, processes: int) -> dict[str, dict[str, list[float]]]:
    """
    :param codes: worker → folder that holds its package
    :param setting: one of ``SETTINGS``
    :param rounds: turns of each process that count
    :param processes: of each worker, one after the other
    :return: ``"rollout and update"`` and ``"update"`` → worker → seconds
    """
    times: dict[str, dict[str, list[float]]] = {
        measure: {name: [] for name in codes} for measure in ("rollout and update", "update")
    }
    for _ in range(processes):
        workers = {name: start(name, code, setting) for name, code in codes.items()}
        orders = itertools.cycle(itertools.permutations(workers))  # nobody always comes after the same
        for turn in range(rounds + 2):  # what compiles, and the first certificate, come before the turns that count
            for name in next(orders):
                _, both, update = ask(workers[name])
                if turn > 1:
                    times["rollout and update"][name].append(both)
                    times["update"][name].append(update)
        for worker in workers.values():
            end(worker)
    return times


def start_up(codes: dict[str, Path], times: int) -> dict[str, list[float]]:
    """
    :param codes: worker → folder that holds its package
    :param times: start-ups of each
    :return: worker → seconds from the constructor to the end of CartPole's first update, with an empty cache
    """
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(times):
        for name, code in codes.items():
            worker = start(name, code, "CartPole", JAX_ENABLE_COMPILATION_CACHE="0")
            seconds[name].append(ask(worker)[0])
            end(worker)
    return seconds


def tell(setting: str, measure: str, times: dict[str, list[float]]) -> None:
    """
    :param setting: one of ``SETTINGS``
    :param measure: what was timed
    :param times: worker → seconds
    """
    print(f"\n{setting}, {measure}: medians, and how many times as fast DeepSPI is now (least to greatest)")
    for name, seconds in times.items():
        ratios = [theirs / ours for ours, theirs in zip(times["now"], seconds, strict=True)]
        print(
            f"  {name:8} {statistics.median(seconds):8.4f} s {statistics.median(ratios):7.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def main() -> None:
    arguments = parser().parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "clone", "--quiet", str(HERE), str(before)], check=True)
        subprocess.run(["git", "-C", str(before), "checkout", "--quiet", arguments.commit], check=True)
        codes = {"now": HERE, "before": before, "sbx_ppo": HERE}
        for setting in arguments.settings:
            for measure, times in take_turns(codes, setting, arguments.rounds, arguments.processes).items():
                tell(setting, measure, times)
                rows += [[setting, measure, name, f"{s:.4f}"] for name, of_one in times.items() for s in of_one]
        times = start_up(codes, arguments.processes)
        tell("CartPole", "start-up", times)
        rows += [["CartPole", "start-up", name, f"{s:.4f}"] for name, of_one in times.items() for s in of_one]
    if arguments.name:
        with (HERE / "docs" / "results" / f"{arguments.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["setting", "measure", "worker", "seconds"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
