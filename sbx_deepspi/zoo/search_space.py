"""The hyperparameters that RL Zoo's ``-optimize`` varies for our algorithms, and their ranges."""

from math import ceil, log2
from typing import Any

import jax
import optuna

NET_ARCHS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}


def sample_hyperparams(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw one point of the search space. The range of ``n_steps`` depends on the number of environments, so that a
    rollout has about 256 to 8,192 transitions.

    :param trial: the trial that draws the point
    :param n_actions: number of continuous actions; not used
    :param n_envs: number of environments
    :param additional_args: arguments for other algorithms' samplers; not used
    :return: arguments of the algorithm
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
    # RL Zoo stores the hyperparameters that the study starts from in the study's user_attrs
    if trial.study.user_attrs["policy"] == "MlpPolicy":
        trial.suggest_categorical("net_arch", list(NET_ARCHS))
        trial.suggest_categorical("activation_fn", ["tanh", "relu", "elu"])

    hyperparams = convert_hyperparams(trial.params)
    for name in ("n_steps", "batch_size", "gamma", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    if "policy_kwargs" in hyperparams:
        net_arch, activation_fn = NET_ARCHS[trial.params["net_arch"]], trial.params["activation_fn"]
        hyperparams["policy_kwargs"] = dict(net_arch=net_arch, activation_fn=getattr(jax.nn, activation_fn))
    return hyperparams


def sample_dream_hyperparams(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    The same for DreamSPI.

    :param trial: the trial that draws the point
    :param n_actions: number of continuous actions; not used
    :param n_envs: number of environments
    :param additional_args: arguments for other algorithms' samplers; not used
    :return: arguments of the algorithm
    """
    of_dreams = {
        "model_learning_rate": trial.suggest_float("model_learning_rate", 1e-5, 2e-3, log=True),
        "imagination_horizon": trial.suggest_categorical("imagination_horizon", [4, 8, 16]),
        "dyna": trial.suggest_categorical("dyna", [False, True]),
        "dream_weight": trial.suggest_float("dream_weight", 0.03, 1.0, log=True),
    }
    return sample_hyperparams(trial, n_actions, n_envs, additional_args) | of_dreams


def convert_hyperparams(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a stored trial into hyperparameters, for ``--trial-id``.

    :param sampled_params: the parameters of a trial
    :return: hyperparameters as a YAML file has them. RL Zoo saves them as YAML, which cannot hold a JAX function, so
        ``policy_kwargs`` is a string.
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
