"""RL Zoo's own programs, run as a user does: from an empty folder, without a configuration file."""

import inspect
import os
import pickle
import shlex
import socket
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import files
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize, is_vecenv_wrapped

from sbx_deepspi import CnnPolicy, DeepMDP, DeepSPI, DreamSPI
from sbx_deepspi.envs import EnvPoolVecEnv, TimeoutSubprocVecEnv
from sbx_deepspi.sb3.policies import MultiInputPolicy
from sbx_deepspi.zoo import hook, repairs, search_space
from sbx_deepspi.zoo import registration as zoo
from tests.jax_envs import needs_gymnax

TRAIN = "-m rl_zoo3.train --algo deepspi"
ENJOY = "-m rl_zoo3.enjoy --algo deepspi -f logs --no-render"
SMALL = "-params n_envs:2 n_steps:64 batch_size:64 n_epochs:1"
CARTPOLE = f"{TRAIN} --env CartPole-v1 -n 128 --eval-freq 64 --eval-episodes 2 {SMALL}"
BREAKOUT = "BreakoutNoFrameskip-v4"


def python(command: str, cwd: Path, **environ: str) -> tuple[str, str]:
    """
    Run Python in a process of its own.

    :param command: its arguments
    :param cwd: its working directory
    :param environ: additional environment variables
    :return: its output, on stdout and on stderr
    """
    process = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=cwd,
        env=os.environ | {"MPLBACKEND": "Agg"} | environ,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout, process.stderr


def manager(algo: str = "deepspi", env_id: str = BREAKOUT, **kwargs: Any) -> zoo.ExperimentManager:
    """
    :param algo: name of the algorithm
    :param env_id: name of the environment
    :param kwargs: further arguments
    :return: RL Zoo's experiment manager, made as ``rl_zoo3.train`` makes it, after it has read the hyperparameters
    """
    from rl_zoo3.exp_manager import ExperimentManager

    experiment = ExperimentManager(Namespace(), algo, env_id, "logs", **kwargs)
    assert isinstance(experiment, zoo.ExperimentManager)
    hyperparams, _ = experiment.read_hyperparameters()
    _, experiment.env_wrapper, _, _ = experiment._preprocess_hyperparams(hyperparams)
    return experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of DeepSPI on CartPole."""
    folder = tmp_path_factory.mktemp("anywhere")
    python(f"{CARTPOLE} --save-freq 64 -tb tensorboard -P", folder)
    return folder


@pytest.fixture(scope="module")
def continued(folder: Path) -> Path:
    """The same folder, with a second run that continues the first."""
    python(f"{CARTPOLE} -i logs/deepspi/CartPole-v1_1/CartPole-v1.zip", folder)
    return folder


def test_train(folder: Path) -> None:
    run = folder / "logs/deepspi/CartPole-v1_1"
    for name in ("CartPole-v1", "best_model", "rl_model_64_steps", "rl_model_128_steps"):
        assert (run / f"{name}.zip").is_file()
    assert np.load(run / "evaluations.npz")["results"].shape == (2, 2)
    assert len(load_results(str(run))) > 0
    assert list((folder / "tensorboard/CartPole-v1/DeepSPI_1").glob("events.out.tfevents.*"))
    config = yaml.unsafe_load((run / "CartPole-v1/config.yml").read_text())
    assert config["n_epochs"] == 1  # by -params
    assert config["gae_lambda"] == 0.8  # by rl_zoo_hyperparams/deepspi.yml


@pytest.mark.slow
def test_continue_training(continued: Path) -> None:
    first, second = (DeepSPI.load(continued / f"logs/deepspi/CartPole-v1_{run}/CartPole-v1.zip") for run in (1, 2))
    assert (first._n_updates, second._n_updates) == (1, 2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_parameters(folder: Path, tmp_path: Path) -> None:
    command = f"{TRAIN} --env CartPole-v1 -n 128 --eval-freq -1 {SMALL} --seed "
    for seed in (3, 3):
        python(f"{command}{seed}", tmp_path)
    paths = [*(tmp_path / f"logs/deepspi/CartPole-v1_{run}/CartPole-v1.zip" for run in (1, 2))]
    paths.append(folder / "logs/deepspi/CartPole-v1_1/CartPole-v1.zip")  # another seed
    runs = [DeepSPI.load(path).policy.tensors() for path in paths]
    same = [all(np.array_equal(tensor, other[name]) for name, tensor in runs[0].items()) for other in runs]
    assert same == [True, True, False]


@pytest.mark.parametrize(
    "which",
    [
        pytest.param("--load-best --custom-objects", marks=pytest.mark.slow),
        pytest.param("--load-last-checkpoint --exp-id 1", marks=pytest.mark.slow),
    ],
)
def test_enjoy(folder: Path, which: str) -> None:
    output, _ = python(f"{ENJOY} --env CartPole-v1 -n 501 {which}", folder)
    assert "Mean reward" in output


def test_push_to_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the upload: the fake API keeps the folder that would be uploaded."""
    repairs.repair_push_to_hub()
    from rl_zoo3 import push_to_hub

    class Offline:
        uploaded: Path

        def create_repo(self, repo_id: str, **kwargs: Any) -> str:
            return repo_id

        def snapshot_download(self, repo_id: str, local_dir: Path) -> None:
            local_dir.mkdir(parents=True)

        def upload_folder(self, folder_path: Path, **kwargs: Any) -> None:
            Offline.uploaded = folder_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(push_to_hub, "HfApi", Offline)
    run = folder / "logs/deepspi/CartPole-v1_1"
    env = VecNormalize(make_vec_env("CartPole-v1"))
    name = push_to_hub.ModelName("deepspi", push_to_hub.EnvironmentName("CartPole-v1"))
    push_to_hub.package_to_hub(
        DeepSPI.load(run / "CartPole-v1.zip", env=env),
        name, "deepspi", "DeepSPI", run, {}, {}, push_to_hub.EnvironmentName("CartPole-v1"), env,
        push_to_hub.ModelRepoId("organization", name), "message", n_eval_episodes=1,
    )  # fmt: skip
    pushed = Offline.uploaded
    assert DeepSPI.load(pushed / "deepspi-CartPole-v1.zip")._n_updates == 1
    unpacked = {path.name for path in (pushed / "deepspi-CartPole-v1").iterdir()}
    assert unpacked == {"data", "tensors.safetensors", "system_info.txt"}
    assert "deepspi" in (pushed / "README.md").read_text()


@pytest.mark.slow
def test_push_to_hub_gets_as_far_as_the_network(folder: Path) -> None:
    command = "-m rl_zoo3.push_to_hub --algo deepspi --env CartPole-v1 -f logs -orga nobody --no-render"
    process = subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert "Uploading to nobody/deepspi-CartPole-v1" in process.stdout, process.stderr
    assert "create_repo" in process.stderr


@pytest.mark.slow
def test_benchmark(folder: Path, tmp_path: Path) -> None:
    python(f"-m rl_zoo3.benchmark --log-dir {folder}/logs --no-hub -n 501", tmp_path)
    assert "|deepspi|CartPole-v1|" in (tmp_path / "benchmark.md").read_text()


def test_benchmark_runs_enjoy_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    patched_call = repairs.run_enjoy_from_any_folder(lambda command: commands.append(command) or 0)
    patched_call(["python", "enjoy.py", "--algo", "deepspi"])
    patched_call(["python", "train.py"])
    (tmp_path / "enjoy.py").touch()
    patched_call(["python", "enjoy.py"])
    module = [sys.executable, "-m", "rl_zoo3.enjoy", "--algo", "deepspi"]
    assert commands == [module, ["python", "train.py"], ["python", "enjoy.py"]]


@pytest.mark.slow
def test_plots(continued: Path) -> None:
    """Plots of two runs."""
    python("-m rl_zoo3.plots.plot_train -a deepspi -e CartPole-v1 -f logs -w 2", continued)
    output, _ = python("-m rl_zoo3.plots.all_plots -a deepspi -e CartPole-v1 -f logs -o results", continued)
    assert "|CartPole-v1 |" in output
    python("-m rl_zoo3.plots.plot_from_file -i results -b -o results.svg", continued)
    assert (continued / "results.svg").is_file()


@pytest.mark.slow
def test_optimize(tmp_path: Path) -> None:
    train = f"{TRAIN} --env CartPole-v1 -n 256 --storage sqlite:///study.db --study-name s"
    small = "--seed 48 -params n_envs:2"  # a seed with which both trials have short rollouts
    python(f"{train} -optimize --n-trials 2 --no-optim-plots {small}", tmp_path)
    trial = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db").trials[1]
    assert trial.state == optuna.trial.TrialState.COMPLETE

    python(f"{train} --trial-id 1 --eval-freq -1 {small}", tmp_path)
    model = DeepSPI.load(tmp_path / "logs/deepspi/CartPole-v1_2/CartPole-v1.zip")
    assert model.reward_loss_coef == trial.params["reward_loss_coef"]
    assert model.n_steps == 2 ** trial.params["n_steps_pow"]
    assert model.policy_kwargs["net_arch"] == search_space.NET_ARCHS[trial.params["net_arch"]]


@pytest.mark.slow
def test_two_programs_train_one_model(tmp_path: Path) -> None:
    """Joined by their environment variables, each on both of its devices; one writes files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    joined = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": flags}
    command = [sys.executable, *shlex.split(f"{CARTPOLE} -n 512 --device all -P -tb tb")]
    programs = [
        subprocess.Popen(
            command, cwd=tmp_path, env=joined | {"JAX_PROCESS_ID": index}, stdout=subprocess.PIPE, text=True
        )
        for index in ("0", "1")
    ]
    first, second = (program.communicate(timeout=300)[0] for program in programs)
    assert [program.returncode for program in programs] == [0, 0]
    assert "512/512" in first and "Saving to logs/deepspi/CartPole-v1_1" in first
    assert "Saving" not in second and "total_timesteps" not in second
    run = tmp_path / "logs" / "deepspi" / "CartPole-v1_1"
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert len(list((tmp_path / "tb" / "CartPole-v1").iterdir())) == 1
    model = DeepSPI.load(run / "CartPole-v1.zip")
    # 2 environments in each, 64 steps
    assert (model.num_timesteps, model.n_envs, model._n_updates) == (512, 2, 2)
    assert len(np.load(run / "evaluations.npz")["timesteps"]) > 0


@pytest.mark.slow
def test_atari(tmp_path: Path) -> None:
    """Training and evaluation on EnvPool; the model plays on ALE."""
    small = "-params n_envs:4 n_steps:8 batch_size:16"  # the sizes in test_envpool.py: may be compiled already
    output, _ = python(f"{TRAIN} --env {BREAKOUT} -n 32 --eval-freq 32 --eval-episodes 1 {small}", tmp_path)
    assert "Using EnvPool\n" in output
    run = tmp_path / "logs/deepspi" / f"{BREAKOUT}_1"
    assert np.load(run / "evaluations.npz")["ep_lengths"][0, 0] > 100  # a whole game, not one life
    assert len(list(run.glob("*.monitor.csv"))) == 1

    output, _ = python(f"{ENJOY} --env {BREAKOUT} -n 1000", tmp_path)
    assert "Atari Episode Score" in output


TINY = "--eval-freq 32 --eval-episodes 1 -params n_envs:4 n_steps:8 batch_size:16 n_epochs:1"
INSIDE_JIT = f"--env gymnax/Catch-bsuite {TINY}"


@pytest.mark.slow
@needs_gymnax
def test_an_environment_inside_jit(tmp_path: Path) -> None:
    output, _ = python(f"{TRAIN} -n 64 {INSIDE_JIT}", tmp_path)
    assert "total_timesteps | 64" in output and "Python object" not in output
    run = tmp_path / "logs/deepspi/gymnax-Catch-bsuite_1"
    assert np.load(run / "evaluations.npz")["ep_lengths"].tolist() == [[9], [9]]
    assert (load_results(str(run)).l == 9).all()
    assert DeepSPI.load(run / "gymnax-Catch-bsuite.zip").num_timesteps == 64


@needs_gymnax
@pytest.mark.slow
def test_ppo_and_more_inside_jit(tmp_path: Path) -> None:
    output, _ = python(f"{TRAIN.replace('deepspi', 'ppo')} -n 64 {INSIDE_JIT}", tmp_path)
    assert "total_timesteps | 64" in output
    python(f"{TRAIN} -n 64 {INSIDE_JIT}", tmp_path)
    output, _ = python(f"{ENJOY} --env gymnax/Catch-bsuite -n 20", tmp_path)
    assert "Mean episode length: 9.00" in output
    python(f"{TRAIN} -n 64 {INSIDE_JIT} -i logs/deepspi/gymnax-Catch-bsuite_1/gymnax-Catch-bsuite.zip", tmp_path)
    python(f"{TRAIN} --env gymnax/Catch-bsuite -n 256 -optimize --n-trials 1 --no-optim-plots", tmp_path)
    output, _ = python(f"{TRAIN} -n 64 --env gymnax/MountainCar-v0 {TINY}", tmp_path)
    assert "Python object" not in output  # normalised inside
    statistics = tmp_path / "logs/deepspi/gymnax-MountainCar-v0_1/gymnax-MountainCar-v0/vecnormalize.pkl"
    assert pickle.loads(statistics.read_bytes()).obs_rms.count > 64
    output, _ = python(f"{ENJOY} --env gymnax/MountainCar-v0 -n 20", tmp_path)
    assert "Loading running average" in output


@needs_gymnax
def test_hyperparameters_of_minatar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = manager("deepspi", "gymnax/Freeway-MinAtar", eval_freq=-1).setup_experiment()
    assert model.policy.convolutions == ((16, 3, 1),) and model.n_envs == 64 and model.fused


OUR_ALGORITHMS = [("deepspi", DeepSPI, 5e-4), ("deepmdp", DeepMDP, 1), ("dreamspi", DreamSPI, 0.1)]


@pytest.mark.parametrize(("algo", "algorithm", "coefficient"), OUR_ALGORITHMS)
def test_models_have_their_hyperparameters(
    algo: str, algorithm: type[DeepSPI], coefficient: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RL Zoo finds our environment and our algorithms by name, and has hyperparameters for each."""
    monkeypatch.chdir(tmp_path)
    model, _ = manager(algo, "ConfoundingGrid-v0", hyperparams={"n_envs": 4}, eval_freq=-1).setup_experiment()
    assert type(model) is algorithm
    assert isinstance(model.policy, CnnPolicy)  # by rl_zoo_hyperparams/
    assert model.n_steps == 64  # likewise
    assert model.transition_loss_coef == coefficient  # by default


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "algorithm", "coefficient"), OUR_ALGORITHMS)
def test_train_on_the_confounding_grid(algo: str, algorithm: type[DeepSPI], coefficient: float, tmp_path: Path) -> None:
    small = "-params n_envs:2 n_steps:8 batch_size:16 n_epochs:1"
    python(f"-m rl_zoo3.train --algo {algo} --env ConfoundingGrid-v0 -n 16 --eval-freq -1 {small}", tmp_path)
    model = algorithm.load(tmp_path / f"logs/{algo}/ConfoundingGrid-v0_1/ConfoundingGrid-v0.zip")
    assert model.observation_space.shape == (1, 84, 84)
    assert isinstance(model.policy, CnnPolicy)
    assert model.transition_loss_coef == coefficient


@pytest.mark.parametrize("algo", ["deepspi", "ppo"])
def test_a_run_that_fails_keeps_its_model(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our algorithms: for others, RL Zoo decides, and saves nothing."""
    monkeypatch.chdir(tmp_path)
    model = Mock()
    model.learn.side_effect = RuntimeError("on purpose")
    with pytest.raises(RuntimeError, match="on purpose"):
        manager(algo, "CartPole-v1").learn(model)
    saved = [call(f"logs/{algo}/CartPole-v1_1/CartPole-v1")]
    assert model.save.call_args_list == (saved if algo == "deepspi" else [])


class TestEnvPool:
    @pytest.fixture(autouse=True)
    def anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_is_the_default(self) -> None:
        experiment = manager()
        assert experiment.use_envpool
        assert experiment.n_envs == 128

    def test_environments(self) -> None:
        """EnvPool's environments have ALE's spaces, so that a model trained on one runs on the other."""
        normalize, seed = {"norm_obs": False}, 2**32 - 2  # RL Zoo's largest seed
        env = manager(hyperparams={"normalize": normalize}, seed=seed).create_envs(3, no_log=True)
        ale = manager(hyperparams={"normalize": normalize, "envpool": False}).create_envs(1, no_log=True)
        assert isinstance(env, VecNormalize)
        assert isinstance(env.venv, EnvPoolVecEnv)
        assert is_vecenv_wrapped(ale, VecFrameStack)
        assert env.reset().shape == (3, 4, 84, 84)
        assert env.observation_space == ale.observation_space
        assert env.action_space == ale.action_space
        env.close()
        ale.close()

    def test_evaluates_on_other_seeds(self) -> None:
        experiment = manager(seed=1)
        train, evaluation = experiment.create_envs(2), experiment.create_envs(2, eval_env=True)
        assert isinstance(train, EnvPoolVecEnv)
        assert isinstance(evaluation, EnvPoolVecEnv)
        assert list(Path(experiment.save_path).glob("*.monitor.csv"))
        assert (train.reset() != evaluation.reset()).any()

    def test_env_kwargs(self) -> None:
        experiment = manager(env_kwargs={"full_action_space": True}, eval_env_kwargs={"full_action_space": False})
        assert experiment.create_envs(1).action_space == gym.spaces.Discrete(18)
        assert experiment.create_envs(1, eval_env=True).action_space == gym.spaces.Discrete(4)

    def test_no_ops(self) -> None:
        experiment = manager(hyperparams={"env_wrapper": [{zoo.ATARI_WRAPPER: {"noop_max": 60}}]})
        assert experiment.use_envpool
        for is_eval in (False, True):
            assert experiment.create_envs(1, eval_env=is_eval, no_log=True).settings["noop_max"] == 60

    def test_the_57th_game(self) -> None:
        """ale-py has no id for it, EnvPool has the game."""
        experiment = manager(env_id="SurroundNoFrameskip-v4")
        env = experiment.create_envs(1, no_log=True)
        ale = manager(env_id="SurroundNoFrameskip-v4", hyperparams={"envpool": False}).create_envs(1, no_log=True)
        assert isinstance(env, EnvPoolVecEnv)
        assert env.action_space == ale.action_space

    @pytest.mark.parametrize(
        "options, reason",
        [
            ({"env_id": "ALE/Breakout-v5"}, "no counterpart of ALE/Breakout-v5"),
            ({"hyperparams": {"env_wrapper": [{zoo.ATARI_WRAPPER: {"screen_size": 42}}]}}, "env_wrapper"),
            ({"vec_env_type": "subproc"}, "--vec-env subproc"),
            ({"env_kwargs": {"sound_obs": False}}, "env_kwargs sound_obs"),
            ({"hyperparams": {"normalize": True}}, "normalises frames before it stacks them"),
            ({"hyperparams": {"monitor_kwargs": {"info_keywords": ("lives",)}}}, "monitor_kwargs"),
        ],
    )
    def test_gives_way_to_ale(self, options: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert not manager(**options).use_envpool
        notice = capsys.readouterr().out.splitlines()[-1]
        assert notice.startswith("Using ALE instead of EnvPool: ")
        assert reason in notice

    def test_is_not_needed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setitem(sys.modules, "envpool", None)
        env = manager(hyperparams={"n_envs": 1}).create_envs(1)
        assert "Using ALE instead of EnvPool: it cannot be imported" in capsys.readouterr().out
        assert env.observation_space.shape == (4, 84, 84)

    def test_unknown_env_kwargs(self) -> None:
        with pytest.raises(TypeError, match="nonsense"):
            manager(env_kwargs={"nonsense": 1}).create_envs(1)


@pytest.mark.parametrize("algo", zoo.OUR_ALGOS)
def test_hyperparameters_exist(algo: str) -> None:
    known_to_zoo = {"envpool", "env_wrapper", "frame_stack", "normalize", "n_envs", "n_timesteps"}
    algorithms = zoo.OUR_ALGOS[algo].__mro__[:2]
    known = known_to_zoo.union(*(inspect.signature(algorithm).parameters for algorithm in algorithms))
    entries = yaml.safe_load(zoo.HYPERPARAMS_FILES[algo].read_text())
    assert entries.keys() - gym.registry.keys() == {"default", "atari"}
    for env_id, hyperparams in entries.items():
        assert hyperparams.keys() <= known, env_id


def test_dreamspis_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = dict(model_learning_rate="lin_4e-4", dream_weight=0.5, n_envs=2)
    model, _ = manager("dreamspi", "ConfoundingGrid-v0", hyperparams=own, eval_freq=-1).setup_experiment()
    assert isinstance(model, DreamSPI) and model.step_sizes(0.5)["model"].learning_rate == pytest.approx(2e-4)
    assert model.dream_weight_schedule(0.3) == 0.5
    # BreakoutNoFrameskip-v4 has the paper's rates
    atari = yaml.safe_load(zoo.HYPERPARAMS_FILES["dreamspi"].read_text())["atari"]
    assert (atari["learning_rate"], atari["model_learning_rate"]) == ("lin_2.75e-5", "lin_2e-4")


def test_the_users_own_file_wins(tmp_path: Path) -> None:
    path = tmp_path / "own.yml"
    path.write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 1000, n_envs: 3}")
    assert manager(env_id="CartPole-v1", config=str(path)).n_envs == 3


def test_dictionaries_get_their_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dm_control has dictionary observations: "--gym-packages shimmy" works without further options."""

    class Dictionaries(gym.Env):
        observation_space = gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (2,)), y=gym.spaces.Box(-1, 1, (3,)))
        action_space = gym.spaces.Discrete(2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(gym.registry, "Dictionaries-v0", EnvSpec("Dictionaries-v0", lambda **kwargs: Dictionaries()))
    experiment = manager(env_id="Dictionaries-v0")
    model, _ = experiment.setup_experiment()
    assert type(model.policy) is MultiInputPolicy


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("n_envs", [1, 8, 128])
def test_search_space(policy: str, n_envs: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.set_user_attr("policy", policy)
    for _ in range(20):
        trial = study.ask()
        sampled = search_space.sample_hyperparams(trial, 0, n_envs, {})
        assert 256 <= sampled["n_steps"] * n_envs <= 8192
        assert sampled["n_steps"] * n_envs % sampled["batch_size"] == 0
        assert 1e-4 <= sampled["reward_loss_coef"] <= 1
        assert 1e-5 <= sampled["transition_loss_coef"] <= 1
        assert ("policy_kwargs" in sampled) == (policy == "MlpPolicy")
        sampled.pop("policy_kwargs", None)
        assert sampled.items() <= search_space.convert_hyperparams(trial.params).items()


class TestHook:
    def test_costs_nothing_without_rl_zoo(self, tmp_path: Path) -> None:
        imports = "import sys; print(*sys.modules); import json; print(sys.meta_path)"
        output, errors = python(f'-c "{imports}"', tmp_path)
        assert "ZooFinder" in output
        assert "sbx_deepspi." not in output
        assert "jax" not in output
        without, _ = python(f'-c "{imports}"', tmp_path, SBX_DEEPSPI_NO_ZOO_HOOK="1")
        modules, modules_without = (set(text.splitlines()[0].split()) for text in (output, without))
        assert modules == modules_without
        assert not errors

    @pytest.mark.parametrize(
        ("environ", "found"),
        [pytest.param({}, True, marks=pytest.mark.slow), ({"SBX_DEEPSPI_NO_ZOO_HOOK": "1"}, False)],
    )
    def test_off_switch(self, environ: dict[str, str], found: bool, tmp_path: Path) -> None:
        command = "-c \"import rl_zoo3, sys; print('deepspi' in rl_zoo3.ALGOS, 'jax' in sys.modules)\""
        assert python(command, tmp_path, **environ) == (f"{found} {found}\n", "")

    def test_survives_a_broken_rl_zoo(self, tmp_path: Path) -> None:
        (tmp_path / "rl_zoo3").mkdir()
        (tmp_path / "rl_zoo3/__init__.py").write_text("raise RuntimeError('broken')")
        program = "try: import rl_zoo3\nexcept RuntimeError as error: print(error)"
        assert python(f'-c "{program}"', tmp_path) == ("broken\n", "")
        (tmp_path / "rl_zoo3/__init__.py").write_text("")  # an RL Zoo without anything that we import from it
        _, errors = python('-c "import rl_zoo3"', tmp_path)
        assert errors.startswith("RL Zoo goes on without sbx-deepspi")
        assert len(errors.splitlines()) == 1

    def test_looking_for_rl_zoo_is_not_importing_it(self, tmp_path: Path) -> None:
        program = "import sys, importlib.util as u; print(u.find_spec('rl_zoo3').name, 'jax' in sys.modules)"
        assert python(f'-c "{program}"', tmp_path) == ("rl_zoo3 False\n", "")

    def test_is_installed_and_would_be_uninstalled(self) -> None:
        installed = {path.name: path for path in files("sbx-deepspi") or ()}
        assert "sbx_deepspi_zoo.pth" in installed
        installed_hook = installed["_sbx_deepspi_zoo_hook.py"]
        assert installed_hook.read_text() == Path(hook.__file__).read_text(), "pip install -e . --no-deps"


def test_other_algorithms_have_rl_zoos_environments_and_hyperparameters(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = manager("ppo", env_id="CartPole-v1")
    assert str(zoo.HYPERPARAMS) not in capsys.readouterr().out
    assert isinstance(experiment.create_envs(1, no_log=True), DummyVecEnv)
    assert manager("ppo", env_id="CartPole-v1", vec_env_type="subproc").vec_env_class is SubprocVecEnv
    assert manager("deepspi", env_id="CartPole-v1", vec_env_type="subproc").vec_env_class is TimeoutSubprocVecEnv


@pytest.mark.slow
def test_training_other_algorithms_is_the_same_without_the_hook(tmp_path: Path) -> None:
    command = (
        "-m rl_zoo3.train --algo ppo --env CartPole-v1 -n 64 --eval-freq -1 --seed 0 "
        "-params n_envs:2 n_steps:32 batch_size:32 n_epochs:1 -f "
    )
    runs = []
    for name, environ in {"with": {}, "without": {"SBX_DEEPSPI_NO_ZOO_HOOK": "1"}}.items():
        output, _ = python(command + name, tmp_path, **environ)
        run = tmp_path / name / "ppo/CartPole-v1_1"
        episodes = load_results(str(run))[["r", "l"]].to_string()
        read_from = next(line for line in output.splitlines() if line.startswith("Loading hyperparameters from"))
        runs.append((read_from, (run / "CartPole-v1/config.yml").read_text(), episodes))
    assert runs[0] == runs[1]
