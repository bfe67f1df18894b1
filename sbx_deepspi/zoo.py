"""
What RL Zoo needs to know: our algorithms, their hyperparameters, a search space, and EnvPool for Atari.

Importing this module registers it all; ``zoo_hook`` does so as soon as a program imports ``rl_zoo3``.
"""

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import optuna
from rl_zoo3 import ALGOS, exp_manager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sbx_deepspi import DeepMDP, DeepSPI, make_envpool_env
from sbx_deepspi.envs import TimeoutSubprocVecEnv

OUR_ALGOS: dict[str, type[BaseAlgorithm]] = {"deepspi": DeepSPI, "deepmdp": DeepMDP}
HYPERPARAMS_FILE = Path(__file__).parent.parent / "rl_zoo_hyperparams" / "deepspi.yml"

ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
# What ALE and EnvPool call by the same name
SHARED_ENV_KWARGS = {"repeat_action_probability", "full_action_space", "mode", "difficulty"}

NET_ARCHS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}


class ExperimentManager(exp_manager.ExperimentManager):
    """
    RL Zoo's experiment manager. For our algorithms only, it reads ``rl_zoo_hyperparams/deepspi.yml`` and trains Atari
    on EnvPool where the hyperparameters say ``envpool: true``.

    :param args: the command line, to be saved beside the model
    :param algo: name of the algorithm
    :param others: RL Zoo's other arguments
    :param kwargs: and those by name: ``config`` is the user's own hyperparameter file
    """

    use_envpool = False

    def __init__(self, args: Namespace, algo: str, *others: Any, **kwargs: Any) -> None:
        if algo in OUR_ALGOS and not kwargs.get("config"):
            kwargs["config"] = str(HYPERPARAMS_FILE)
        super().__init__(args, algo, *others, **kwargs)
        if algo in OUR_ALGOS and self.vec_env_class is SubprocVecEnv:
            # says what fails there, and can be closed after Ctrl-C has ended the processes
            self.vec_env_class, self.vec_env_kwargs = TimeoutSubprocVecEnv, {"timeout": 3600.0}

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        wants_envpool = self.algo in OUR_ALGOS and hyperparams.pop("envpool", False)
        env_wrapper = hyperparams.get("env_wrapper")
        preprocessed = super()._preprocess_hyperparams(hyperparams)
        if wants_envpool:
            obstacle = self._envpool_obstacle(env_wrapper)
            self.use_envpool = obstacle is None
            print(f"Using ALE instead of EnvPool: {obstacle}" if obstacle else "Using EnvPool")
        return preprocessed

    def _envpool_obstacle(self, env_wrapper: Any) -> str | None:
        """
        EnvPool only replaces ALE where both play the same game, so that ``enjoy``, which uses ALE, does too.

        :param env_wrapper: the environment wrapper as the hyperparameters have it
        :return: what speaks against EnvPool, if anything
        """
        unknown_kwargs = {*self.env_kwargs, *self.eval_env_kwargs} - SHARED_ENV_KWARGS
        try:
            import envpool  # noqa: F401
        except ImportError:
            return "it cannot be imported (pip install 'sbx-deepspi[atari]')"
        if "NoFrameskip" not in self.env_name.gym_id:
            return f"it has no counterpart of {self.env_name.gym_id}"
        if env_wrapper not in (ATARI_WRAPPER, [ATARI_WRAPPER]):
            return f"it has no counterpart of env_wrapper {env_wrapper}"
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
        :param no_log: write no monitor file
        :return: the environments, EnvPool's where :meth:`_preprocess_hyperparams` has chosen it
        """
        if not self.use_envpool:
            return super().create_envs(n_envs, eval_env, no_log)
        env: VecEnv = make_envpool_env(
            self.env_name.gym_id,
            n_envs=n_envs,
            # The environments' seeds count up from this one: evaluate on others than those of training
            seed=self.seed + self.n_envs if eval_env else self.seed,
            monitor_dir=None if eval_env or no_log else self.save_path,
            stack_num=self.frame_stack or 1,
            **(self.eval_env_kwargs if eval_env else self.env_kwargs),
        )
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        return self._maybe_normalize(env, eval_env)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train; where that fails, our algorithms keep what they have learned.

        :param model: an initialised model
        """
        try:
            super().learn(model)
        except Exception:
            if self.algo in OUR_ALGOS:
                self.save_trained_model(model)
            raise


def flatten_dict(env: gym.Env) -> gym.Env:
    """
    Turn dictionaries of arrays, dm_control's observations, into vectors; leave all others alone.

    :param env: any environment
    :return: the environment without dictionaries
    """
    is_dict = isinstance(env.observation_space, gym.spaces.Dict)
    return gym.wrappers.FlattenObservation(env) if is_dict else env


def sample_hyperparams(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    One point of the search space; a rollout has from about 256 to about 8,192 transitions, however many environments
    there are.

    :param trial: the trial that draws it
    :param n_actions: number of actions, if they are continuous; not used
    :param n_envs: number of environments
    :param additional_args: what the samplers of other algorithms need; not used
    :return: arguments for the algorithm
    """
    shortest = max(ceil(log2(256 / n_envs)), 0)
    trial.suggest_int("n_steps_pow", shortest, shortest + 5)
    trial.suggest_int("batch_size_pow", 5, 8)
    trial.suggest_categorical("n_epochs", [1, 4, 10, 20])
    trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True)
    trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True)
    trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True)
    trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3])
    trial.suggest_float("ent_coef", 1e-8, 0.1, log=True)
    trial.suggest_float("max_grad_norm", 0.3, 2)
    trial.suggest_float("reward_loss_coef", 1e-4, 1, log=True)
    trial.suggest_float("transition_loss_coef", 1e-5, 1, log=True)
    if trial.study.user_attrs["policy"] == "MlpPolicy":  # RL Zoo notes the hyperparameters it starts from
        trial.suggest_categorical("net_arch", list(NET_ARCHS))
        trial.suggest_categorical("activation_fn", ["tanh", "relu", "elu"])

    hyperparams = convert_hyperparams(trial.params)
    for name in ("n_steps", "batch_size", "gamma", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    if "policy_kwargs" in hyperparams:
        hyperparams["policy_kwargs"] = eval(hyperparams["policy_kwargs"])
    return hyperparams


def convert_hyperparams(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Read a trial's parameters back, for ``--trial-id``.

    :param sampled_params: the parameters of a trial
    :return: hyperparameters as in a YAML file, where RL Zoo saves them: no JAX function could be saved
    """
    hyperparams = dict(sampled_params)
    for name in ("n_steps", "batch_size"):
        hyperparams[name] = 2 ** hyperparams.pop(f"{name}_pow")
    for name in ("gamma", "gae_lambda"):
        hyperparams[name] = 1 - hyperparams.pop(f"one_minus_{name}")
    if "net_arch" in hyperparams:
        net_arch, activation_fn = NET_ARCHS[hyperparams.pop("net_arch")], hyperparams.pop("activation_fn")
        hyperparams["policy_kwargs"] = f"dict(net_arch={net_arch}, activation_fn=jax.nn.{activation_fn})"
    return hyperparams


def run_enjoy_from_any_folder(call: Callable[..., int]) -> Callable[..., int]:
    """
    ``rl_zoo3.benchmark`` runs ``python enjoy.py``, a file that only RL Zoo's own repository has: where it is
    missing, run the module that it stands for.

    :param call: ``subprocess.call``
    :return: the same, but for that command
    """

    def patched_call(command: Any, *args: Any, **kwargs: Any) -> int:
        is_enjoy = isinstance(command, list) and command[:2] == ["python", "enjoy.py"]
        if is_enjoy and not os.path.exists("enjoy.py"):
            command = [sys.executable, "-m", "rl_zoo3.enjoy", *command[2:]]
        return call(command, *args, **kwargs)

    return patched_call


def mend_push_to_hub() -> None:
    """``rl_zoo3.push_to_hub`` imports ``generate_metadata``, which ``huggingface_sb3`` has since renamed."""
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")  # the package has a function of that name
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *arguments: hub._generate_metadata(*arguments).to_dict()


for algo, algo_class in OUR_ALGOS.items():
    ALGOS[algo] = algo_class
    HYPERPARAMS_SAMPLER[algo] = sample_hyperparams
    HYPERPARAMS_CONVERTER[algo] = convert_hyperparams
exp_manager.ExperimentManager = ExperimentManager  # type: ignore[misc]
exp_manager.jax = jax  # type: ignore[attr-defined]  # policy_kwargs: "dict(activation_fn=jax.nn.relu)"
if "rl_zoo3.benchmark" in sys.orig_argv:
    subprocess.call = run_enjoy_from_any_folder(subprocess.call)
if "rl_zoo3.push_to_hub" in sys.orig_argv:
    mend_push_to_hub()
