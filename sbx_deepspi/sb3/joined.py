"""One model that several processes train: what they have to agree on, and what process 0 alone does."""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi.collect.vec_env import normalizer_of
from sbx_deepspi.devices import WHOLE
from sbx_deepspi.envs.jitted.vec_env import inside_jit
from sbx_deepspi.processes import Processes, is_first_process
from sbx_deepspi.saving import trainer
from sbx_deepspi.saving.environment import description_of, statistics_of, with_typed_keys, without_typed_keys

OWN = ("seed", "verbose", "tensorboard_log")
"""Arguments that may differ: process 0's count for all."""


def agree_on_beginning(model: Any, all_processes: Processes) -> None:
    """
    Make sure that all processes train the same model, and begin with process 0's parameters and keys.

    :param model: that is about to learn
    :param all_processes: this one and the others
    :raises ValueError: an argument differs
    """
    of_all = all_processes.exchange({"arguments": arguments(model), "normalization": normalization_of(model.env)})
    check_same([message["arguments"] for message in of_all])
    set_normalization(model.env, of_all[0]["normalization"])
    model.news.normalization = of_all[0]["normalization"]
    inner = inside_jit(model.env)
    if inner is not None and inner.state is None:  # other environments than those that were reset
        model._last_obs = model.env.reset()
    environments: Any = None if inner is None else inner.state
    everybodys = model.policy.learner, model.key, model.episodes.replace(steps=None), model.rewards
    of_envs = None if inner is None else jax.tree.map(_where_whole, environments.layout, environments)
    (learner, key, episodes, rewards), common = multihost_utils.broadcast_one_to_all(
        (everybodys, without_typed_keys(of_envs))
    )
    model.policy.learner, model.key = model.put((learner, key))
    model.episodes, model.rewards = episodes.replace(steps=model.episodes.steps), rewards
    model.episodes_of_all = model.episodes
    if inner is not None:
        inner.state = jax.tree.map(
            lambda layout, own, common: common if layout == WHOLE else own,
            environments.layout,
            environments,
            with_typed_keys(common, of_envs),
        )


def _where_whole(layout: Any, arrays: Any) -> Any:
    return arrays if layout == WHOLE else None


def arguments(model: Any) -> dict[str, str]:
    """
    :param model: that is about to learn
    :return: what has to be the same in all processes, by name, in words
    """
    schedules = trainer.SCHEDULES
    names = [name for name in trainer.configuration(type(model)) if name not in OWN]
    found = {
        "the algorithm": type(model).__name__,
        "the policy": model.policy_class.__name__,
        "n_envs": model.n_envs,
        "observation_space": model.observation_space,
        "action_space": model.action_space,
        "the number of devices": model.n_devices,
        "the environment inside jit": description_of(model.env),
        "total_timesteps": model._total_timesteps,
        "num_timesteps": model.num_timesteps,
    }
    for name in names:
        value = getattr(model, name, None)
        if name in schedules and value is not None:
            value = [float(getattr(model, schedules[name])(progress)) for progress in (1.0, 0.5, 0.0)]
        found[name] = value
    # without the addresses of functions
    return {name: re.sub(r" at 0x[0-9a-f]+", "", f"{value!r:.500}") for name, value in found.items()}


Statistics = dict[str, tuple[Any, Any, float]]
"""Mean, variance and count of observations and of returns, by name; numbers and nested lists of them."""


class News:
    """
    What a process has to tell the others before the next program that they run together.

    :ivar episodes: what ended since the last time: SB3's statistics of episodes
    :ivar successes: whether they were successes, of those that say so
    :ivar lengths: steps of the episodes that ended in a rollout on the host
    :ivar normalization: what ``VecNormalize`` knew everywhere when they last talked, see :func:`normalization_of`
    :ivar stops: whether a callback of this process wants the training to stop
    :ivar all_stop: whether anybody does
    :ivar signal: that one of the processes has received, and which; empty: none
    """

    def __init__(self) -> None:
        self.episodes: list[dict[str, Any]] = []
        self.successes: list[Any] = []
        self.lengths: list[int] = []
        self.normalization: Statistics = {}
        self.stops = self.all_stop = False
        self.signal = ""

    def add(self, infos: list[dict[str, Any]], dones: np.ndarray | None) -> None:
        """
        :param infos: as SB3 counts them, with plain values
        :param dones: whether episodes ended, shape (N,)
        """
        self.episodes += [info["episode"] for info in infos if info["episode"] is not None]
        if dones is not None:
            found = zip(infos, dones, strict=True)
            self.successes += [info["is_success"] for info, done in found if done and info["is_success"] is not None]


def agree(model: Any, all_processes: Processes) -> None:
    """
    Before a program that all processes run together: the same hyperparameters, episodes that count everywhere, and who
    wants to stop stops all.

    :param model: that learns
    :param all_processes: this one and the others
    :raises ValueError: hyperparameters differ
    :raises ProcessLostError: a process is gone
    """
    news, received = model.news, model.interruption.received
    of_all = all_processes.exchange(
        {
            "hyperparameters": {name: repr(value) for name, value in vars(model.hyperparameters()).items()},
            "episodes": news.episodes,
            "successes": news.successes,
            "lengths": news.lengths,
            "normalization": normalization_of(model.env),
            "stops": news.stops,
            "signal": received.name if received else "",
        }
    )
    check_same([message["hyperparameters"] for message in of_all])
    for index, message in enumerate(of_all):
        if index != all_processes.index:
            model.ep_info_buffer.extend(message["episodes"])
            model.ep_success_buffer.extend(message["successes"])
    lengths = np.array([length for message in of_all for length in message["lengths"]], np.int32)[:, None]
    if len(lengths):
        # in the same order everywhere: the certificate is computed from them
        counted = model.episodes_of_all.including(lengths, np.ones(lengths.shape, bool))
        model.episodes_of_all = model.episodes = counted.replace(steps=model.episodes.steps)
    news.normalization = combined(news.normalization, [message["normalization"] for message in of_all])
    set_normalization(model.env, news.normalization)
    news.episodes, news.successes, news.lengths = [], [], []
    news.signal = next((f"{m['signal']} in process {i}" for i, m in enumerate(of_all) if m["signal"]), "")
    news.all_stop = bool(news.signal) or any(message["stops"] for message in of_all)


def check_same(of_all: list[dict[str, str]]) -> None:
    """
    :param of_all: arguments of all processes, in words by name
    :raises ValueError: one differs
    """
    for index, others in enumerate(of_all):
        for name, value in of_all[0].items():
            if others.get(name) != value:
                raise ValueError(
                    f"All processes must train with the same arguments, but {name} is {value} in process 0 and "
                    f"{others.get(name)} in process {index}."
                )


def normalization_of(env: VecEnv) -> Statistics:
    """
    :param env: what the model learns from
    :return: what its ``VecNormalize`` knows; empty: it has none
    """
    normalizer = normalizer_of(env)
    found = {} if normalizer is None else statistics_of(normalizer)
    return {name: (one.mean.tolist(), one.var.tolist(), float(one.count)) for name, one in found.items()}


def set_normalization(env: VecEnv, statistics: Statistics) -> None:
    """
    :param env: whose ``VecNormalize``, if it has one, gets them
    :param statistics: see :func:`normalization_of`
    """
    normalizer = normalizer_of(env)
    own = {} if normalizer is None else statistics_of(normalizer)
    for name, (mean, variance, count) in statistics.items():
        one = own[name]
        one.mean, one.var, one.count = np.asarray(mean, np.float64), np.asarray(variance, np.float64), count


def combined(before: Statistics, of_all: list[Statistics]) -> Statistics:
    """
    What one ``VecNormalize`` would know that had seen the observations of all processes.

    :param before: what each of them knew
    :param of_all: what each knows now, after observations of its own
    :return: what they know together
    """

    def of_one(name: str) -> tuple[Any, Any, float]:
        mean, variance, count = map(np.asarray, before[name])
        means, variances, counts = (np.array([one[name][i] for one in of_all], np.float64) for i in range(3))
        weights = counts.reshape(-1, *[1] * mean.ndim)
        # sums about the old mean: of a mean far from 0, squares would cancel
        repeated, total = (len(of_all) - 1) * count, counts.sum() - (len(of_all) - 1) * count
        shift = (weights * (means - mean)).sum(axis=0) / total
        squares = (weights * (variances + (means - mean) ** 2)).sum(axis=0) - repeated * variance
        return (mean + shift).tolist(), np.maximum(squares / total - shift**2, 0).tolist(), float(total)

    return {name: of_one(name) for name in before}


def seed_environments(model: Any, seed: int) -> None:
    """
    Seed a process's environments and generators so that no two processes have the same.

    :param model: whose environments they are
    :param seed: of the model, the same in all processes
    """
    own = seed + jax.process_index() * model.n_envs  # environment i of all has seed + i, as in one process
    set_random_seed(own % 2**32)
    model.action_space.seed(own)
    if model.env is not None and inside_jit(model.env) is None:  # those draw together, and take their part
        model.env.seed(own)


def silent_logger() -> Logger:
    """
    :return: that writes nowhere
    """
    return Logger(folder=None, output_formats=[])


def let_process_0_speak(callback: BaseCallback) -> None:
    """
    Let process 0 alone write and print, and its progress bar count all environments.

    :param callback: of a training
    """
    for one in parts_of(callback):
        if type(one) is ProgressBarCallback:
            one.__class__ = ProgressBar  # RL Zoo makes its own
        if is_first_process():
            continue
        one.verbose = 0
        if isinstance(one, EvalCallback):
            one.log_path = one.best_model_save_path = None
        if isinstance(one, CheckpointCallback):
            one.save_vecnormalize = False


class ProgressBar(ProgressBarCallback):
    """SB3's, which counts the environments of one process alone: process 0's counts all, and the others have none."""

    def _on_training_start(self) -> None:
        if is_first_process():
            super()._on_training_start()

    def _on_step(self) -> bool:
        if is_first_process():
            self.pbar.update(self.model.n_envs_of_all)  # type: ignore[attr-defined]
        return True

    def _on_training_end(self) -> None:
        if is_first_process():
            super()._on_training_end()


def parts_of(callback: BaseCallback) -> list[BaseCallback]:
    """
    :param callback: of a training
    :return: it and all that it calls
    """
    inner: list[Any] = []
    if isinstance(callback, CallbackList):
        inner = callback.callbacks
    elif isinstance(callback, EventCallback):
        inner = [callback.callback, getattr(callback, "callback_on_new_best", None)]
    return [callback, *(part for one in inner if one is not None for part in parts_of(one))]
