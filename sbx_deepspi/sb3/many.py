"""Many models that learn at once, in one program, from environments inside jit: seeds, or settings of numbers."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv
from sbx_deepspi.saving.environment import description_of
from sbx_deepspi.sb3.algorithm import FAULTY_UPDATES_IN_A_ROW, DeepSPI
from sbx_deepspi.sb3.fused import (
    Made,
    begin_rollout,
    check_finite,
    end_rollout,
    environments_of,
    memory_errors,
    tell_of_evaluations,
    tell_of_steps,
)
from sbx_deepspi.sb3.interruption import Interruption


class LearningCurve(NamedTuple):
    """
    The episodes that ended while a model learned, in this order; arrays of shape (episodes,).

    :param timesteps: steps of all copies together, up to and with the step that ended the episode
    :param returns: the episodes' rewards, as the environment gave them, summed
    :param lengths: their steps
    """

    timesteps: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray


def learn_together(
    models: Sequence[DeepSPI],
    total_timesteps: int,
    callbacks: Sequence[MaybeCallback] | None = None,
    log_interval: int = 1,
    tb_log_name: str | None = None,
    reset_num_timesteps: bool = True,
    progress_bar: bool = False,
) -> list[LearningCurve]:
    """
    Let models learn at once, each from its own environments, in one program. Each becomes what its own ``learn`` would
    have made of it, to float rounding.

    The models may differ in seed and in numbers: ``learning_rate``, ``gamma``, ``gae_lambda``, ``clip_range``,
    ``ent_coef``, ``vf_coef``, ``max_grad_norm``, ``target_kl``, the coefficients of the losses, and DreamSPI's
    ``model_learning_rate`` and ``dream_weight``. In all else that is compiled they have to be equal.

    :param models: of one class; each has copies of the same environment inside jit, of its own
    :param total_timesteps: steps of all of a model's copies together, at least
    :param callbacks: what ``learn`` takes, for each model, with the events that it gets there. One whose ``on_step``
        returns False ends the training of all, after this update
    :param log_interval: updates from one log of a model to the next
    :param tb_log_name: name of the runs for TensorBoard; ``None``: the algorithm's
    :param reset_num_timesteps: begin to count anew
    :param progress_bar: show one, of the first model's steps
    :return: a learning curve for each model
    :raises ValueError: the models cannot learn in one program, or an observation, a reward or three updates in a row
        were not finite: all models are as their last good updates left them
    :raises KeyboardInterrupt: SIGINT or SIGTERM came: the running update was finished first
    """
    if not isinstance(models, (list, tuple)):
        raise TypeError(f"learn_together takes a list of models, but got {models!r:.80}.")
    models = list(models)
    check_models(models)
    if callbacks is None:
        callbacks = [None] * len(models)
    if len(callbacks) != len(models):
        raise ValueError(
            f"learn_together takes a callback, a list of them, or None for each model: got {len(callbacks)} for "
            f"{len(models)} models."
        )
    first, interruption = models[0], Interruption()
    total, told = _begin(
        models, total_timesteps, callbacks, reset_num_timesteps, tb_log_name or type(first).__name__, progress_bar
    )
    recorders = [_Recorder() for _ in models]
    iteration, goes_on = 0, True
    for callback in told:
        callback.on_training_start({"total_timesteps": total}, {})
    try:
        with interruption:
            while first.num_timesteps < total and goes_on and not interruption.received:
                goes_on = _one_iteration(models, told, recorders)
                iteration += 1
                for model, callback in zip(models, told, strict=True):
                    callback.on_rollout_end()
                    if log_interval is not None and iteration % log_interval == 0:
                        model.dump_logs(iteration)
                    model.train()
                _check_updates(models)
    finally:
        with ExitStack() as stack:  # all of them, whatever one raises
            for callback in reversed(told):
                stack.callback(callback.on_training_end)
    if interruption.received:
        raise KeyboardInterrupt(f"{interruption.received.name} after {first.num_timesteps:,} steps")
    return [recorder.curve() for recorder in recorders]


def check_models(models: list[DeepSPI]) -> None:
    """
    :param models: to learn at once
    :raises ValueError: they cannot
    """
    if not models:
        raise ValueError("learn_together needs a model at least, but got none.")
    first = models[0]
    for index, model in enumerate(models):
        if not isinstance(model, DeepSPI) or not model.fused:
            what = "has fused=False" if isinstance(model, DeepSPI) else f"is {model!r:.80}"
            raise ValueError(f"Model {index} {what}: learn_together takes models of DeepSPI's that are fused.")
        if not isinstance(model.env, JaxVecEnv):
            raise ValueError(
                f"Model {index} learns from {type(model.env).__name__}, which is not inside jit: make its environments "
                "with make_jax_env or JaxVecEnv, without wrappers."
            )
        if model.mesh is not None:
            raise ValueError(
                f"Model {index} computes on {model.n_devices} devices: models do not learn together on several devices "
                "yet: make them with device='auto', in a program that is joined with no other."
            )
        if any(model.env is other.env or model is other for other in models[:index]):
            raise ValueError(f"Model {index} shares its environments with another: make some for each.")
        differs = next((name for name, value in _compiled(model).items() if value != _compiled(first)[name]), None)
        if differs is not None:
            hint = ""
            if differs == "environment" and first.env and description_of(model.env) == description_of(first.env):
                hint = " (equal environments have to say so: a @dataclass(frozen=True) does, and so does one object)"
            raise ValueError(
                f"Model {index} has another {differs} than model 0{hint}: models that learn together may differ in "
                "seeds and numbers only."
            )


def _compiled(model: DeepSPI) -> dict[str, Any]:
    assert isinstance(model.env, JaxVecEnv)
    model._n_collected = model.n_steps * model.n_envs
    return {
        "class": type(model),
        "environment": model.env.copies,
        "n_steps": model.n_steps,
        "policy": model.policy.programs,
        "neighbourhood": model.neighbourhood,
        "certificate_freq": model.certificate_freq,
        "number of updates since the last certificate": model._updates_since_certificate,
        "normalize_advantage": model.normalize_advantage,
        "stats_window_size": model._stats_window_size,
        "device": model.jax_device,
        "batch_size, n_epochs, imagination_horizon, n_dreams, dyna, or number that is None": jax.tree.structure(
            model.hyperparameters()
        ),
        "number of steps": model.num_timesteps,
    }


def _begin(
    models: list[DeepSPI],
    total_timesteps: int,
    callbacks: Sequence[MaybeCallback],
    reset_num_timesteps: bool,
    tb_log_name: str,
    progress_bar: bool,
) -> tuple[int, list[BaseCallback]]:
    total, told = total_timesteps, []
    for index, (model, callback) in enumerate(zip(models, callbacks, strict=True)):
        model._faulty_updates, model.certifies_each_update, model._made = 0, False, None
        assert model.env is not None
        tell_of_evaluations(model.env, callback)
        total, one = model._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar and index == 0
        )
        model._n_collected = model.n_steps * model.n_envs
        told.append(one)
    return total, told


def _one_iteration(models: list[DeepSPI], callbacks: list[BaseCallback], recorders: list["_Recorder"]) -> bool:
    """A rollout and an update of each model; False if the training is to stop."""
    befores = [begin_rollout(model, one, model.n_steps) for model, one in zip(models, callbacks, strict=True)]
    first, hyperparameters = models[0], [model.hyperparameters() for model in models]
    envs: list[Any] = [model.env for model in models]
    environments = environments_of(envs[0], first.n_steps)
    number, goes_on = first.num_timesteps // first.n_envs, True
    try:
        is_certified = True in [model.is_certified() for model in models]  # each of them counts
        arguments = jax.device_put((befores, hyperparameters, is_certified), first.jax_device)
        with memory_errors(first, environments.n_steps, [before.environments for before in befores], len(models)):
            results = first.policy.programs.fused_iterations(
                *arguments,
                environments=environments,
                update=type(first).update,
                projects=first.neighbourhood == "project",
            )
        made, episodes = [], []
        for numbers, (state, report, kept, certificate, outcome) in zip(hyperparameters, results, strict=True):
            certificate = certificate if is_certified else None
            of_model, outcome = Made.to_host(state, numbers, report, kept, certificate, outcome)
            made.append(of_model)
            episodes.append(outcome)
        for index, outcome in enumerate(episodes):
            check_finite(outcome, number, f" of model {index}")
        for model, env, callback, recorder, outcome in zip(models, envs, callbacks, recorders, episodes, strict=True):
            begin = model.num_timesteps
            goes_on &= not list(tell_of_steps(model, env, callback, outcome))
            recorder.add(begin, model.n_envs, outcome)
    except BaseException:
        for model in models:
            vars(model).update(model._before_rollout)  # the rollout was never made
        raise
    finally:
        for model in models:
            model._before_rollout = {}
    for model, env, of_model, outcome in zip(models, envs, made, episodes, strict=True):
        end_rollout(model, env, of_model, outcome)
    return goes_on


def _check_updates(models: list[DeepSPI]) -> None:
    for index, model in enumerate(models):
        if model._faulty_updates >= FAULTY_UPDATES_IN_A_ROW:
            raise ValueError(
                f"{FAULTY_UPDATES_IN_A_ROW} updates in a row of model {index} were not finite: lower learning_rate, or "
                f"look at the scale of the rewards. {model._last_fault}"
            )


class _Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, begin: int, n_envs: int, episodes: Any) -> None:
        steps, _ = ended = np.nonzero(episodes.dones)  # in the order in which they ended
        self.rows.append((begin + n_envs * (steps + 1), episodes.returns[ended], episodes.lengths[ended]))

    def curve(self) -> LearningCurve:
        if not self.rows:
            return LearningCurve(np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, np.int32))
        return LearningCurve(*(np.concatenate(column) for column in zip(*self.rows, strict=True)))
