"""Suites as data: what is right, and one sentence for what is not."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import rl_zoo3.import_envs  # noqa: F401
import yaml
from rl_zoo3 import ALGOS

from sbx_deepspi.envs.jitted.make import is_jax_env_id
from sbx_deepspi.suite.__main__ import main
from sbx_deepspi.suite.definition import SuiteError, find, known_suites, load, parse
from sbx_deepspi.suite.folder import DONE, Folder, common_checkpoint, lock, only_here
from sbx_deepspi.zoo.registration import HYPERPARAMS_FILES, PPO_FILE
from tests.suite.helpers import TINY, write

GAME = "gymnax/CartPole-v1"


@pytest.mark.parametrize("name", known_suites())
def test_our_suites(name: str) -> None:
    """RL Zoo knows every environment and algorithm, and our PPO is DeepSPI's code without a world model."""
    suite = load(find(name))
    assert {game.env for game in suite.games.values()} <= gym.registry.keys()
    assert {algorithm.algo for algorithm in suite.algorithms.values()} <= ALGOS.keys()
    assert {"ppo", "deepmdp", "deepspi", "dreamspi"} <= suite.algorithms.keys()
    assert suite.algorithms["ppo"].hyperparams == {"reward_loss_coef": 0.0, "transition_loss_coef": 0.0}
    for game in suite.games.values():
        for algorithm in suite.algorithms.values():
            is_own_ppo = is_jax_env_id(game.env) and algorithm.algo in ("ppo", "sbx_ppo")
            if "NoFrameskip" not in game.env:
                file = PPO_FILE if is_own_ppo else HYPERPARAMS_FILES[algorithm.algo]
                assert game.env in yaml.safe_load(file.read_text()), (algorithm.name, game.name)
    number = {"minatar": 5, "atari5": 5, "atari57": 57, "atari57-stochastic": 57}.get(name)
    assert number in (None, len(suite.games))


def test_what_comes_last() -> None:
    suite = parse(
        TINY
        | {
            "hyperparams": {"n_steps": 1, "n_envs": 1, "gamma": 0.5},
            "games": {"short": {"env": GAME, "low": 0, "high": 1, "hyperparams": {"n_steps": 2, "n_envs": 2}}},
            "algorithms": {
                "mine": {"algo": "deepspi", "hyperparams": {"n_steps": 3}},
                "ppo": {"hyperparams": {"a": 1}},
            },
        },
        Path("my.yml"),
    )
    of_mine = suite.hyperparams_of(suite.games["short"], suite.algorithms["mine"])
    assert of_mine == {"n_steps": 3, "n_envs": 2, "gamma": 0.5}
    assert suite.algorithms["ppo"].hyperparams == {"reward_loss_coef": 0.0, "transition_loss_coef": 0.0, "a": 1}
    assert suite.games["short"].normalized(0.25) == 0.25
    assert suite.n_timesteps == 6_400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"games": {}}, "games has to name one at least"),
        ({"games": {GAME: {"low": 1}}}, "needs 'high'"),
        ({"games": {GAME: {"low": 2, "high": 2}}}, "low has to be below high"),
        ({"games": {GAME: {"low": "x", "high": 2}}}, "low has to be a number"),
        ({"games": [GAME]}, "games has to be a mapping"),
        ({"games": {"short": {"env": 5, "low": 0, "high": 1}}}, "game short: env has to be text, but is 5"),
        ({"algorithms": {"mine": {"algo": 5}}}, "algorithm mine: algo has to be text, but is 5"),
        ({"n_timesteps": 1.5}, "n_timesteps has to be a whole number"),
        ({"n_timesteps": "many"}, "n_timesteps has to be a whole number"),
        ({"n_timesteps": True}, "n_timesteps has to be a whole number"),
        ({"seeds_at_once": 0}, "seeds_at_once has to be a whole number from 1 on"),
        ({"seedsatonce": 2}, "unknown key 'seedsatonce': did you mean 'seeds_at_once'"),
        ({"algorithms": {"mine": {}}}, "needs 'algo'"),
        ({"algorithms": {"a/b": {"algo": "deepspi"}}}, "'a/b' cannot be a name"),
        ({"algorithms": {"report": {"algo": "deepspi"}}}, "'report' cannot be a name"),
        ({"games": {"a": {"env": GAME, "name": "../b", "low": 0, "high": 1}}}, r"'\.\./b' cannot be a name"),
        ({"games": {4: {"env": GAME, "low": 0, "high": 1}}}, "a key that is no text, 4"),
        ({"title": 5}, "title has to be text, but is 5"),
        ({"algorithms": "ppo"}, "algorithms has to be a mapping"),
        ({"hyperparams": [1]}, "hyperparams has to be a mapping"),
        ({"games": {GAME: {"low": 0, "high": 1, "hyperparams": "x"}}}, "hyperparams of game .* has to be a mapping"),
    ],
)
def test_wrong_suites(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=message):
        load(write(tmp_path / "my.yml", **changes))


def test_no_suite_at_all(tmp_path: Path) -> None:
    for text in ("", "just words", "a: [", "title: t\nn_timesteps: 1\n"):
        (tmp_path / "my.yml").write_text(text)
        with pytest.raises(SuiteError, match=r"my\.yml"):
            load(tmp_path / "my.yml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "minatr"], "There is no suite 'minatr': did you mean 'minatar'?"),
        (["run", "my.yml"], "There is no file my.yml"),
        (["run", "minatar", "--algos", "deepspy"], "Suite minatar has no algorithm 'deepspy': did you mean 'deepspi'?"),
        (["run", "minatar", "--games", "Breakout"], "Suite minatar has no game 'Breakout'"),
        (["run", "minatar", "--seeds", "0"], "--seeds has to be a whole number from 1 on, but is 0."),
        (["run", "minatar", "-n", "1.5"], "--n-timesteps has to be a whole number from 1 on, but is '1.5'."),
        (["run", "{mine}", "--algos", "mine"], "RL Zoo has no algorithm 'deepspy': did you mean 'deepspi'?"),
        (["report", "nowhere"], "nowhere holds no runs of a suite"),
        (["run", "minatar", "--address", "127.0.0.1:1"], "There is no Ray at '127.0.0.1:1'"),
        (["run", "minatar", "--address", "host:port"], "There is no Ray at 'host:port'"),
        (
            ["run", "minatar", "--cpus-per-run", "-1"],
            "--cpus-per-run has to be from 0.01 to 1, or a whole",
        ),
        (["run", "minatar", "--gpus-per-run", "1.5"], "--gpus-per-run has to be from 0 to 1, or a whole number"),
    ],
)
def test_wrong_commands(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = write(tmp_path / "mine.yml", algorithms={"mine": {"algo": "deepspy"}})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main([word.format(mine=mine) for word in words]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("PongNoFrameskip-v44", "There is no environment 'PongNoFrameskip-v44': did you mean 'PongNoFrameskip-v4'?"),
        ("gymnax/CartPol-v1", "gymnax/CartPole-v1"),
        ("nothing like it", "There is no environment 'nothing like it', or its package is not installed."),
    ],
)
def test_wrong_environments(env: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made or started."""
    suite = write(tmp_path / "mine.yml", games={"game": {"env": env, "low": 0, "high": 1}})
    assert main(["run", str(suite), "-o", str(tmp_path / "runs")]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_which_algorithms_are_usual(tmp_path: Path) -> None:
    """Those that the file adds, or else the four that every suite has."""
    assert load(write(tmp_path / "my.yml")).usual_algorithms == ["broken"]
    assert load(find("minatar")).usual_algorithms == ["ppo", "deepmdp", "deepspi", "dreamspi"]
    assert load(write(tmp_path / "my.yml", algorithms={"dreamspi": None})).usual_algorithms == [
        "ppo", "deepmdp", "deepspi",
    ]  # fmt: skip


def folder_of(path: Path, **changes: Any) -> Folder:
    return Folder.of(path / "runs", load(write(path / "tiny.yml", **changes)))


def test_a_folder_goes_on_with_the_same_suite(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.ask(["ppo", "broken"], [GAME], range(2))
    # other games, other algorithms and other references do not change the runs that are there
    more = {"games": {"other": {"env": "gymnax/Acrobot-v1", "low": 0, "high": 1}}, "algorithms": {}}
    folder = folder_of(tmp_path, **more)
    folder.ask(["deepspi"], ["other"], range(1))
    assert [run.name for run in folder.asked()] == [
        f"ppo on {GAME}, seed 0", f"ppo on {GAME}, seed 1", f"broken on {GAME}, seed 0", f"broken on {GAME}, seed 1",
        "deepspi on other, seed 0",
    ]  # fmt: skip
    assert {"broken", "ppo"} <= folder.suite.algorithms.keys()
    folder_of(tmp_path, games={GAME: {"low": 0, "high": 400}})
    assert Folder(tmp_path / "runs").suite.games[GAME].high == 400
    for change in (
        {"n_timesteps": 99}, {"hyperparams": {"policy": "MlpPolicy"}}, {"n_evaluations": 1},
        {"games": {GAME: {"low": 20, "high": 500, "hyperparams": {"gamma": 0.5}}}},
        {"algorithms": {"broken": {"algo": "deepmdp"}}},
    ):  # fmt: skip
        with pytest.raises(
            SuiteError, match=f"holds runs with another .*{next(iter(change))[:4]}.* Take another folder"
        ):
            folder_of(tmp_path, **change)


def test_where_a_run_is(tmp_path: Path) -> None:
    named = {"1x16": {"env": GAME, "low": 0, "high": 1}, GAME: {"low": 20, "high": 500}}
    folder = folder_of(tmp_path, games=named)
    one, two = folder.runs(["ppo"], ["1x16", GAME], [3])
    assert one.path == tmp_path / "runs/ppo/1x16/deepspi/gymnax-CartPole-v1_4"
    assert two.path == tmp_path / "runs/ppo/deepspi/gymnax-CartPole-v1_4"
    assert one.read() == {"state": "waiting", "timesteps": 0}
    assert one.progress().empty
    one.write(state=DONE)
    one.write(timesteps=5)
    assert one.read() == {"state": DONE, "timesteps": 5}
    (one.path / "progress.jsonl").write_text('{"timesteps": 1}\n{"timesteps": 2, "return": 3.0}\n')
    assert one.progress().timesteps.tolist() == [1, 2]
    for timesteps in (100, 20, 3):
        one.checkpoint(timesteps).mkdir(parents=True)
    (one.path / "checkpoints/partial").mkdir()
    two.checkpoint(20).mkdir(parents=True)
    assert one.checkpoints() == [100, 20, 3]
    assert [common_checkpoint(runs) for runs in ([one], [one, two], [two])] == [100, 20, 20]
    one.forget_checkpoints(but=2)
    assert one.checkpoints() == [100, 20]
    one.forget_checkpoints(newer_than=20, but=2)
    assert one.checkpoints() == [20]
    one.forget_checkpoints()
    assert one.checkpoints() == []
    assert common_checkpoint([one, two]) == 0


def test_two_do_not_run_the_same_folder(tmp_path: Path) -> None:
    with only_here(tmp_path):
        with pytest.raises(SuiteError, match="Another process runs the suite"), only_here(tmp_path):
            pass
        with lock(tmp_path / "lock") as is_mine:
            assert not is_mine
    with only_here(tmp_path):
        pass


def test_a_broken_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (run,) = folder.runs(["ppo"], [GAME], [0])
    run.write(state=DONE)
    (run.path / "run.json").write_text("{")
    with pytest.raises(SuiteError, match=r"run\.json is damaged"):
        run.read()
    (folder.path / "asked.json").write_text(json.dumps([["gone", GAME, 0]]))
    with pytest.raises(SuiteError, match=r"asked\.json"):
        folder.asked()
    (folder.path / "suite.yml").write_text(yaml.safe_dump({"title": "t"}))
    with pytest.raises(SuiteError, match=r"suite\.yml: the file needs"):
        Folder(folder.path)
