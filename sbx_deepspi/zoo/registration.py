"""
Adds our algorithms to RL Zoo: their hyperparameters, their search space, and EnvPool for Atari.

Importing this module is enough. The hook (``hook.py``) imports it as soon as a program imports ``rl_zoo3``.
"""

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import jax
import sbx
from gymnasium import spaces
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack

from sbx_deepspi import DeepMDP, DeepSPI, DreamSPI, make_envpool_env, make_jax_env
from sbx_deepspi.envs import JaxVecEnv, TimeoutSubprocVecEnv
from sbx_deepspi.envs.jitted.make import is_jax_env_id
from sbx_deepspi.processes import is_first_process
from sbx_deepspi.zoo.repairs import repair_push_to_hub, run_enjoy_from_any_folder
from sbx_deepspi.zoo.search_space import convert_hyperparams, sample_dream_hyperparams, sample_hyperparams

OUR_ALGOS: dict[str, type[BaseAlgorithm]] = {"deepspi": DeepSPI, "deepmdp": DeepMDP, "dreamspi": DreamSPI}
HYPERPARAMS = Path(__file__).parents[2] / "rl_zoo_hyperparams"
# SBX's PPO, to compare with: RL Zoo's own file for PPO has PyTorch's functions in it
HYPERPARAMS_FILES = dict.fromkeys([*OUR_ALGOS, "sbx_ppo"], HYPERPARAMS / "deepspi.yml") | {
    "dreamspi": HYPERPARAMS / "dreamspi.yml"
}
# RL Zoo's own has none of the environments inside jit, ours only what our networks know
PPO_FILE = HYPERPARAMS / "ppo.yml"

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
# Options that ALE and EnvPool both have, under the same name
SHARED_ENV_KWARGS = {"repeat_action_probability", "full_action_space", "mode", "difficulty"}
# Arguments of SB3's wrapper that are options of EnvPool, under the same name
SHARED_WRAPPER_KWARGS = {"noop_max"}


class ExperimentManager(exp_manager.ExperimentManager):
    """
    RL Zoo's experiment manager. For our algorithms only, it reads this project's ``rl_zoo_hyperparams/``, trains Atari
    on EnvPool where the hyperparameters say ``envpool: true``, takes ``MultiInputPolicy`` for dictionaries of
    observations, runs environments in processes with a timeout, and saves the model when training fails. Where
    ``JAX_COORDINATOR_ADDRESS`` is set, several such programs train one model, of which process 0 writes the files.

    :param args: the parsed command line, which RL Zoo saves beside the model
    :param algo: name of the algorithm
    :param others: RL Zoo's other positional arguments
    :param kwargs: RL Zoo's keyword arguments; ``config`` is the user's own hyperparameter file
    """

    use_envpool = False
    _of_wrapper: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, args: Namespace, algo: str, *others: Any, **kwargs: Any) -> None:
        env_id = kwargs.get("env_id") or next(iter(others), "")
        self._is_inside_jit = is_jax_env_id(env_id)
        self._evaluated: list[JaxVecEnv] = []
        self._learned_from: JaxVecEnv | None = None
        file = PPO_FILE if self._is_inside_jit and algo in ("ppo", "sbx_ppo") else HYPERPARAMS_FILES.get(algo)
        if file is not None and not kwargs.get("config"):
            kwargs["config"] = str(file)
        is_train = algo in OUR_ALGOS and type(self) is ExperimentManager  # programs of suites train by themselves
        if is_train:
            join_processes()
        super().__init__(args, algo, *others, **kwargs)
        if is_train and jax.process_count() > 1:
            self._share()
        if algo in OUR_ALGOS and self.vec_env_class is SubprocVecEnv:
            # It says which environment failed, and can be closed after Ctrl-C has ended the environments' processes
            self.vec_env_class, self.vec_env_kwargs = TimeoutSubprocVecEnv, {"timeout": 3600.0}

    def _share(self) -> None:
        """The training with other programs: all count steps together, and process 0's alone prints and writes."""
        if self.optimize_hyperparameters:
            raise ValueError(
                "-optimize draws other hyperparameters in each program, but JAX_COORDINATOR_ADDRESS joins them: unset "
                "it, and let them share their trials through --storage."
            )
        self.eval_freq, self.save_freq = (
            max(freq // jax.process_count(), 1) if freq > 0 else freq for freq in (self.eval_freq, self.save_freq)
        )
        if is_first_process():
            return
        self._nowhere = tempfile.TemporaryDirectory()
        self.log_path = self.save_path = self._nowhere.name
        self.params_path = f"{self.save_path}/{self.env_name}"
        self.tensorboard_log = None
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    @classmethod
    def _preprocess_schedules(cls, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        :param hyperparams: in which ``"lin_2e-4"`` stands for a schedule
        :return: the same, with the schedules that RL Zoo knows, and DreamSPI's
        """
        hyperparams = super()._preprocess_schedules(hyperparams)
        for name in {"model_learning_rate", "dream_weight"} & hyperparams.keys():
            as_rate = super()._preprocess_schedules({"learning_rate": hyperparams[name]})
            hyperparams[name] = as_rate["learning_rate"]
        return hyperparams

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        wants_envpool = self.algo in HYPERPARAMS_FILES and hyperparams.pop("envpool", False)
        wrappers = wrappers_of(hyperparams.get("env_wrapper"))
        check_policy(hyperparams.get("policy"))
        preprocessed = super()._preprocess_hyperparams(hyperparams)
        if wants_envpool:
            obstacle = self._envpool_obstacle(wrappers)
            self._of_wrapper = wrappers.get(ATARI_WRAPPER, {})
            self.use_envpool = obstacle is None
            print(f"Using ALE instead of EnvPool: {obstacle}" if obstacle else "Using EnvPool")
        return preprocessed

    def _envpool_obstacle(self, wrappers: dict[str, dict[str, Any]]) -> str | None:
        """
        Find out why EnvPool cannot be used. It is used only where it plays the same game as ALE, because ``enjoy``
        runs the trained model on ALE.

        :param wrappers: names of the wrappers in the hyperparameters → their arguments
        :return: the reason, or ``None`` if EnvPool can be used
        """
        unknown_kwargs = {*self.env_kwargs, *self.eval_env_kwargs} - SHARED_ENV_KWARGS
        try:
            import envpool  # noqa: F401
        except ImportError:
            return "it cannot be imported (pip install 'sbx-deepspi[atari]')"
        if "NoFrameskip" not in self.env_name.gym_id:
            return f"it has no counterpart of {self.env_name.gym_id}"
        if list(wrappers) != [ATARI_WRAPPER] or wrappers[ATARI_WRAPPER].keys() - SHARED_WRAPPER_KWARGS:
            return f"it has no counterpart of env_wrapper {wrappers}"
        if issubclass(self.vec_env_class, SubprocVecEnv):
            return "--vec-env subproc was asked for"
        if self.monitor_kwargs:
            return "monitor_kwargs were asked for"
        if self.normalize and self.normalize_kwargs.get("norm_obs", True):
            return "ALE normalises frames before it stacks them"
        if unknown_kwargs:
            return f"it has no counterpart of env_kwargs {', '.join(sorted(unknown_kwargs))}"
        return None

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: number of environments
        :param eval_env: whether they are for evaluation
        :param no_log: whether to write no monitor file
        :return: the environments, from EnvPool if :meth:`_preprocess_hyperparams` has chosen it
        """
        if self._is_inside_jit:
            return self._create_jax_envs(n_envs, eval_env, no_log)
        if not self.use_envpool:
            return super().create_envs(n_envs, eval_env, no_log)
        env: VecEnv = make_envpool_env(
            self.env_name.gym_id,
            n_envs=n_envs,
            # The training environments have the seeds from self.seed to self.seed + self.n_envs - 1
            seed=self.seed + self.n_envs * jax.process_count() if eval_env else self.seed,
            monitor_dir=None if eval_env or no_log else self.save_path,
            stack_num=self.frame_stack or 1,
            **self._of_wrapper,
            **(self.eval_env_kwargs if eval_env else self.env_kwargs),
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        return self._maybe_normalize(env, eval_env)

    def _create_jax_envs(self, n_envs: int, eval_env: bool, no_log: bool) -> VecEnv:
        if self.env_wrapper is not None:
            raise ValueError(
                f"{self.env_name.gym_id} is inside jit, where env_wrapper has nothing to wrap: leave it out of the "
                "hyperparameters."
            )
        # our algorithms normalise inside jit, too: a Python wrapper would collect step by step
        inside = self.normalize and self.algo in OUR_ALGOS and not self.frame_stack
        normalize: Any = {"training": not eval_env, **self.normalize_kwargs} if inside else False
        if inside and eval_env:
            normalize["norm_reward"] = False
        env: Any = make_jax_env(
            self.env_name.gym_id,
            n_envs=n_envs,
            seed=self.seed + self.n_envs * jax.process_count() if eval_env else self.seed,
            normalize=normalize,
            monitor_dir=None if eval_env or no_log else self.save_path,
            **(self.eval_env_kwargs if eval_env else self.env_kwargs),
        )
        if eval_env:
            self._evaluated.append(env)
        else:
            self._learned_from = env
        for evaluated in self._evaluated:  # RL Zoo makes those for evaluation first
            evaluated.statistics_from = self._learned_from if inside else None
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        if not inside:
            env = self._maybe_normalize(env, eval_env)
        return VecFrameStack(env, self.frame_stack) if self.frame_stack else env

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        # the first place where RL Zoo has both the environment and what the model will be made from
        hyperparams = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        is_vectors = hyperparams.get("policy") == "MlpPolicy"
        if self.algo in OUR_ALGOS and is_vectors and isinstance(env.observation_space, spaces.Dict):
            hyperparams["policy"] = "MultiInputPolicy"
        return hyperparams

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train. If training fails, save the model of our algorithms before the error is raised again.

        :param model: the model to train
        """
        try:
            super().learn(model)
        except Exception:
            if self.algo in OUR_ALGOS:
                self.save_trained_model(model)
            raise


def join_processes() -> None:
    """
    Join the programs that were given one ``JAX_COORDINATOR_ADDRESS``; none, where there is no such variable. How many
    they are and which this is, SLURM and MPI tell JAX, or ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    :raises ValueError: nobody tells
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ or jax.distributed.is_initialized():
        return
    told = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    try:
        count, index = (None if number is None else int(number) for number in told)
        jax.distributed.initialize(num_processes=count, process_id=index)
    except ValueError as error:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS is {os.environ['JAX_COORDINATOR_ADDRESS']}, but {str(error).rstrip('.')}. Set "
            "JAX_NUM_PROCESSES, the same in all, and JAX_PROCESS_ID, from 0 on; or start the programs with SLURM or "
            "MPI, which JAX knows."
        ) from error


def wrappers_of(env_wrapper: Any) -> dict[str, dict[str, Any]]:
    """
    :param env_wrapper: in hyperparameters: a name, a mapping from it to arguments, a list of these, or ``None``
    :return: names of the wrappers → their arguments
    """
    wrappers = env_wrapper if isinstance(env_wrapper, list) else [env_wrapper]
    named: dict[Any, dict[str, Any]] = {}
    for wrapper in wrappers:
        named |= wrapper if isinstance(wrapper, dict) else {wrapper: {}}
    named.pop(None, None)
    return named


def check_policy(name: Any) -> None:
    """
    RL Zoo imports policies that have a dot in their names.

    :param name: of a policy
    :raises ValueError: it has a dot, and there is no such class
    """
    if not isinstance(name, str) or "." not in name:
        return
    try:
        get_class_by_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The policy {name!r} of the hyperparameters cannot be imported ({error}): give the import path of a "
            "class, such as sbx_deepspi.sb3.grid.GridPolicy."
        ) from error


for algo, algo_class in OUR_ALGOS.items():
    ALGOS[algo] = algo_class
    HYPERPARAMS_SAMPLER[algo] = sample_dream_hyperparams if algo_class is DreamSPI else sample_hyperparams
    HYPERPARAMS_CONVERTER[algo] = convert_hyperparams
ALGOS["sbx_ppo"] = sbx.PPO
if "SurroundNoFrameskip-v4" not in gym.registry:  # of the 57 games, the one that ale-py leaves out
    gym.register(
        "SurroundNoFrameskip-v4",
        entry_point="ale_py.env:AtariEnv",
        kwargs=dict(
            game="surround", repeat_action_probability=0.0, full_action_space=False, frameskip=1,
            max_num_frames_per_episode=108_000,
        ),
    )  # fmt: skip
exp_manager.ExperimentManager = ExperimentManager  # type: ignore[misc]
# RL Zoo evaluates policy_kwargs strings in this module: "dict(activation_fn=jax.nn.relu)" needs jax there
exp_manager.jax = jax  # type: ignore[attr-defined]
if "rl_zoo3.benchmark" in sys.orig_argv:
    subprocess.call = run_enjoy_from_any_folder(subprocess.call)
if "rl_zoo3.push_to_hub" in sys.orig_argv:
    repair_push_to_hub()
