"""One model that several processes train: what they have to agree on, and what process 0 alone does."""

import re
import zlib
from typing import Any

import jax
import numpy as np
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

from sbx_deepspi.collect.vec_env import normalizer_of, wrappers_of
from sbx_deepspi.devices import WHOLE, everybody_takes_the_first
from sbx_deepspi.envs.jitted.vec_env import inside_jit
from sbx_deepspi.processes import is_first_process, waits_for_others
from sbx_deepspi.saving import trainer
from sbx_deepspi.saving.environment import (
    description_of,
    settings_of,
    statistics_of,
    with_typed_keys,
    without_typed_keys,
)

OWN = ("seed", "verbose", "tensorboard_log")
"""Arguments that may differ: the seed of environments is each process's own, the others are process 0's."""
CHANGING = ("n_steps", "neighbourhood", "certificate_freq", "fused")
"""What an update depends on, beside its hyperparameters, and a callback may change."""


def agree_on_beginning(model: Any) -> None:
    """
    Make sure that all processes train the same model, and begin with process 0's parameters, keys and counters.

    :param model: that is about to learn
    :raises ValueError: an argument differs
    """
    inner = inside_jit(model.env)
    if inner is not None and inner.copies.normalization is not None and model._fused_env is None:
        raise ValueError(
            "Environments that are normalised inside jit are collected step by step here (a wrapper, or fused=False), "
            "where processes would not know what others have seen: use make_jax_env(...) and VecNormalize around it."
        )
    message = {
        "arguments": arguments(model),
        "normalization": normalization_of(model.env),
        "certifies_each_update": model.certifies_each_update,
        "updates_since_certificate": model._updates_since_certificate,
    }
    of_all = model.processes.exchange(message)
    check_same([message["arguments"] for message in of_all])
    set_normalization(model.env, of_all[0]["normalization"])
    model.news.normalization = of_all[0]["normalization"]
    model.certifies_each_update = any(message["certifies_each_update"] for message in of_all)
    model._updates_since_certificate = of_all[0]["updates_since_certificate"]
    if inner is not None and inner.state is None:  # other environments than those that were reset
        model._last_obs = model.env.reset()
    environments: Any = None if inner is None else inner.state
    everybodys = model.policy.learner, model.key, model.episodes.replace(steps=None), model.rewards
    of_envs = None if inner is None else jax.tree.map(_where_whole, environments.layout, environments)
    with waits_for_others():
        (learner, key, episodes, rewards), common = jax.block_until_ready(
            everybody_takes_the_first(model.put((everybodys, without_typed_keys(of_envs))), mesh=model.mesh)
        )
    model.policy.learner, model.key = learner, key
    episodes, model.rewards = jax.device_get((episodes, rewards))
    model.episodes = model.episodes_of_all = episodes.replace(steps=model.episodes.steps)
    model.news.learner = model.policy.learner
    if inner is not None:
        inner.state = jax.tree.map(
            lambda layout, own, common: common if layout == WHOLE else own,
            environments.layout,
            environments,
            with_typed_keys(jax.device_get(common), of_envs),
        )


def _where_whole(layout: Any, arrays: Any) -> Any:
    return arrays if layout == WHOLE else None


def arguments(model: Any) -> dict[str, str]:
    """
    :param model: that is about to learn
    :return: what has to be the same in all processes, by name, in words
    """
    schedules, normalizer = trainer.SCHEDULES, normalizer_of(model.env)
    names = [name for name in trainer.configuration(type(model)) if name not in OWN]
    found = {
        "the algorithm": type(model).__name__,
        "the policy": model.policy_class.__name__,
        "n_envs": model.n_envs,
        "observation_space": model.observation_space,
        "action_space": model.action_space,
        "devices": [str(device) for device in model.mesh.devices.flat],
        "the environment's wrappers": [type(wrapper).__name__ for wrapper in wrappers_of(model.env)],
        "VecNormalize": None if normalizer is None else settings_of(normalizer),
        "the environment inside jit": description_of(model.env),
        "total_timesteps": model._total_timesteps,
        "num_timesteps": model.num_timesteps,
    }
    for name in names:
        value = getattr(model, name, None)
        if name in schedules and value is not None:
            value = [float(getattr(model, schedules[name])(progress)) for progress in (1.0, 0.5)]
        found[name] = value
    # without the addresses of functions
    return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in found.items()}


Statistics = dict[str, tuple[Any, Any, float]]
"""Mean, variance and count of observations and of returns, by name; numbers and nested lists of them."""


class News:
    """
    What a process has to tell the others before the next program that they run together.

    :ivar episodes: what ended since the last time: SB3's statistics of episodes
    :ivar successes: whether they were successes, of those that say so
    :ivar lengths: steps of the episodes that ended in a rollout on the host
    :ivar normalization: what ``VecNormalize`` knew everywhere when they last talked, see :func:`normalization_of`
    :ivar learner: what the last update left, or process 0 began with
    :ivar stops: whether a callback of this process wants the training to stop
    :ivar all_stop: whether anybody does
    :ivar signal: that one of the processes has received, and which; empty: none
    """

    def __init__(self) -> None:
        self.episodes: list[dict[str, Any]] = []
        self.successes: list[Any] = []
        self.lengths: list[int] = []
        self.normalization: Statistics = {}
        self.learner: Any = None
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


def agree(model: Any, hyperparameters: Any) -> None:
    """
    Before an update: the same hyperparameters and parameters, episodes that count everywhere, and who wants to stop
    stops all.

    :param model: that learns
    :param hyperparameters: of the update
    :raises ValueError: one of them differs
    :raises ProcessLostError: a process is gone
    """
    news, received, window = model.news, model.interruption.received, model._stats_window_size
    given = vars(hyperparameters) | {name: getattr(model, name) for name in CHANGING}
    if model.policy.learner is not news.learner:
        given["parameters"] = checksum(model.policy.learner)  # a callback has set them
    message = {
        "hyperparameters": {name: repr(value) for name, value in given.items()},
        "episodes": news.episodes[-window:],
        "successes": news.successes[-window:],
        "lengths": news.lengths[-window:],
        "normalization": normalization_of(model.env),
        "stops": news.stops,
        "signal": received.name if received else "",
    }
    of_all = model.processes.exchange(message)
    check_same([message["hyperparameters"] for message in of_all])
    for index, message in enumerate(of_all):
        if index != model.processes.index:
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
    news.signal = signal_of(of_all)
    news.all_stop = bool(news.signal) or any(message["stops"] for message in of_all)


def agree_on_end(model: Any) -> None:
    """
    Wait until all have told their callbacks that the training ends: a signal that came in the meantime is everybody's.

    :param model: that has learned
    :raises ProcessLostError: a process is gone
    """
    received, news = model.interruption.received, model.news
    if received and not news.all_stop and model.num_timesteps < model._total_timesteps:
        model.processes.leave(received.name)  # its environments have ended, and the others train on
        return
    news.signal = news.signal or signal_of(model.processes.exchange({"signal": received.name if received else ""}))


def signal_of(of_all: list[dict[str, Any]]) -> str:
    """
    :param of_all: messages of all processes
    :return: which signal came, and where; empty: none
    """
    return next((f"{m['signal']} in process {i}" for i, m in enumerate(of_all) if m["signal"]), "")


def checksum(tree: Any) -> int:
    """
    :param tree: of arrays
    :return: a number that is the same for the same bytes
    """
    return zlib.crc32(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))))


def check_statistics(statistics: Any) -> None:
    """
    :param statistics: of environments that are normalised inside jit; ``None``: they are not
    :raises ValueError: they are not finite: the environments of one process have returned what is not
    """
    of_all = None if statistics is None else statistics.replace(discounted=None)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(of_all))):
        raise ValueError(
            "An environment of another process returned a non-finite observation or reward, which that process names: "
            "nothing was learned from this rollout."
        )


def check_same(of_all: list[dict[str, str]]) -> None:
    """
    :param of_all: arguments of all processes, in words by name
    :raises ValueError: one differs
    """
    for index, others in enumerate(of_all):
        for name in of_all[0] | others:
            first, other = (given.get(name, "not there") for given in (of_all[0], others))
            if first != other:
                raise ValueError(
                    f"All processes must train with the same arguments, but {name} is {first:.200} in process 0 and "
                    f"{other:.200} in process {index}."
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
