"""
A rollout and its update as one program, for environments inside jit, with SB3's callbacks after the fact.

The program runs first. Then the callbacks get their events, while the model still has the parameters that collected the
rollout; then :meth:`~sbx_deepspi.DeepSPI.train` takes over what the program has made of them.
"""

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi import memory
from sbx_deepspi.collect.copies import Outcome
from sbx_deepspi.collect.jitted import Environments
from sbx_deepspi.collect.vec_env import observation_spec
from sbx_deepspi.deepspi import UpdateReport
from sbx_deepspi.devices import WHOLE
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv, inside_jit
from sbx_deepspi.guarantee.measure import Certificate
from sbx_deepspi.hyperparameters import Hyperparameters
from sbx_deepspi.processes import waits_for_others
from sbx_deepspi.sb3 import joined
from sbx_deepspi.sb3.spaces import InSpace, action_shape, log_policy_shape, to_environment, to_networks
from sbx_deepspi.state import TrainerState


class Made(NamedTuple):
    """
    What was made of a rollout: parameters and state of training on the device, the rest on the host.

    :param state: after the update
    :param hyperparameters: of the update
    :param report: of the update
    :param kept: how much of it was kept, in [0, 1]
    :param log_std: of Box actions; ``None`` for others
    :param certificate: ``None``: not certified
    """

    state: TrainerState
    hyperparameters: Hyperparameters
    report: UpdateReport
    kept: Any
    log_std: Any
    certificate: Certificate | None

    @classmethod
    def to_host(
        cls,
        state: TrainerState,
        hyperparameters: Hyperparameters,
        report: UpdateReport,
        kept: jax.Array,
        certificate: Certificate | None,
        *others: Any,
    ) -> "tuple[Made, *tuple[Any, ...]]":
        """
        :param state: after the update
        :param hyperparameters: of the update
        :param report: of the update
        :param kept: how much of it was kept
        :param certificate: ``None``: not certified
        :param others: what else the host is told
        :return: what was made of a rollout, and the others, after one transfer
        """
        seen = state.replace(learner=None, key=None, environments=None)
        log_std = state.learner.parameters["actor"].get("log_std")
        seen, report, kept, log_std, certificate, others = jax.device_get(
            (seen, report, kept, log_std, certificate, others)
        )
        state = state.replace(episodes=seen.episodes, rewards=seen.rewards, n_epochs=seen.n_epochs)
        return cls(state, hyperparameters, report, kept, log_std, certificate), *others


COUNTED = ("num_timesteps", "ep_info_buffer", "ep_success_buffer", "_episode_num", "_updates_since_certificate")
"""What counts on while callbacks are told of a rollout. Until they have been, a file holds it as it was before."""


class NotOnHost:
    """What stands for a rollout that never came to the host."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"The rollout's {name!r} is not on the host, because rollout and update are one program: DeepSPI(..., "
            "fused=False) collects it step by step."
        )


def environments_of(env: JaxVecEnv, n_steps: int, n_devices: int = 1) -> Environments:
    """
    :param env: environments inside jit
    :param n_steps: T
    :param n_devices: that share them and those of other processes
    :return: what a program collects rollouts from on each device
    """
    copies = dataclasses.replace(env.copies, n_envs=env.num_envs * jax.process_count() // n_devices)
    return Environments(
        copies, InSpace(to_networks, env.observation_space), InSpace(to_environment, env.action_space), n_steps
    )


def tell_of_wrappers(env: VecEnv) -> None:
    """
    :param env: what a model learns from
    """
    if inside_jit(env) not in (None, env):
        warnings.warn(
            f"{type(env).__name__} is a Python object around environments inside jit: rollouts are collected step by "
            "step, which is slower. make_jax_env(..., normalize=True) does inside what VecNormalize does.",
            stacklevel=3,
        )


def collect_and_update(model: Any, env: JaxVecEnv, callback: BaseCallback, n_steps: int) -> bool:
    """
    Run the program, and give the callbacks their events.

    :param model: that learns; gets :class:`Made`
    :param env: environments inside jit
    :param callback: called at every step, and at the rollout's start and end
    :param n_steps: steps of each environment
    :return: False if the training is to stop
    :raises ValueError: an observation or a reward is not finite
    """
    before, hyperparameters = begin_rollout(model, callback, n_steps), model.hyperparameters()
    learner = model.policy.learner
    try:
        if model.processes is not None:
            joined.agree(model, hyperparameters)
            if model.news.all_stop:
                return False
        is_certified = model.is_certified()
        arguments = model.put((before, hyperparameters, is_certified), (before.layout, WHOLE, WHOLE))
        with memory_errors(model, n_steps, before.environments), waits_for_others():
            state, report, kept, certificate, episodes = model.policy.programs.fused_iteration(
                *arguments,
                mesh=model.mesh,
                environments=environments_of(env, n_steps, model.n_devices),
                update=type(model).update,
                projects=model.neighbourhood == "project",
            )
            certificate = certificate if is_certified else None
            made, episodes = Made.to_host(state, hyperparameters, report, kept, certificate, episodes)
        check_finite(episodes, model.num_timesteps // model.n_envs_of_all)
        if model.processes is not None:
            joined.check_statistics(state.environments.statistics)
        stopped_after = next(tell_of_steps(model, env, callback, episodes), None)
    except BaseException:
        # the rollout was never made: the environments are where they were
        vars(model).update(model._before_rollout)
        raise
    finally:
        before_rollout, model._before_rollout = model._before_rollout, {}
    if stopped_after is not None:
        model._updates_since_certificate = before_rollout["_updates_since_certificate"]
        _make_again(model, env, episodes, stopped_after + 1)
        return False
    end_rollout(model, env, made, episodes)
    callback.on_rollout_end()
    if model.policy.learner is not learner:
        warnings.warn(
            "A callback has set parameters during a rollout, whose update was made already: they are overwritten. Set "
            "them in _on_rollout_start, or use DeepSPI(..., fused=False).",
            stacklevel=4,
        )
    return True


def begin_rollout(model: Any, callback: BaseCallback, n_steps: int) -> TrainerState:
    """
    :param model: that learns: its schedules move on, and a file that is saved from now on holds it as it is
    :param callback: that is told
    :param n_steps: steps of each environment
    :return: what the iteration begins with
    """
    env = model.env
    if env.state is None:  # other environments than those that were reset
        model._last_obs = env.reset()
    callback.on_rollout_start()
    model._update_current_progress_remaining(
        model.num_timesteps + n_steps * model.n_envs_of_all, model._total_timesteps
    )
    model._before_rollout = {name: copy.copy(getattr(model, name)) for name in COUNTED}
    return model.state


def end_rollout(model: Any, env: JaxVecEnv, made: Made, episodes: Outcome) -> None:
    """
    :param model: that learned; its :meth:`~sbx_deepspi.DeepSPI.train` will take over what was made
    :param env: its environments, which are now where the rollout left them
    :param made: of the rollout
    :param episodes: of the rollout, on the host
    """
    env.state = made.state.environments
    model._last_obs, model._last_episode_starts = made.state.environments.observations, episodes.dones[-1]
    model._made = made


def tell_of_evaluations(env: VecEnv, callback: Any) -> None:
    """
    :param env: what a model learns from
    :param callback: of the training: one, several, or none
    """
    inner = inside_jit(env)
    normalization = None if inner is None else inner.copies.normalization
    if normalization is None or not normalization.norm_obs:
        return
    callbacks = callback.callbacks if isinstance(callback, CallbackList) else callback
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    for one in callbacks:
        evaluated = inside_jit(one.eval_env) if isinstance(one, EvalCallback) else None
        if evaluated is not None and evaluated.copies.normalization is None:
            warnings.warn(
                "The model learns from normalised observations, but EvalCallback's environments are not normalised: "
                "make them with normalize=env, the environments that the model learns from.",
                stacklevel=3,
            )


@contextmanager
def memory_errors(model: Any, n_steps: int, states: Any, n_models: int = 1) -> Iterator[None]:
    """
    Where a rollout is too large for the memory, say so before, or in words that tell what to do.

    :param model: that learns
    :param n_steps: T
    :param states: of the environments
    :param n_models: that learn at once
    :raises MemoryError: it is too large
    """
    observation = memory.bytes_of(observation_spec(model.observation_space))
    others = 4 * (math.prod(log_policy_shape(model.action_space)) + math.prod(action_shape(model.action_space)) + 10)
    n_envs = model.n_envs_of_all // model.n_devices
    rollout = n_models * n_steps * n_envs * (2 * observation + others)
    needed = memory.COPIES_OF_A_ROLLOUT * rollout + memory.bytes_of(states) * n_envs // model.n_envs
    what = f"{n_steps} steps of {n_envs} environments"
    memory.check(needed, model.jax_device, what)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise MemoryError(
            f"{what} need {needed / 2**30:.3g} GiB and what the networks make of them, which did not fit into the "
            f"memory of {model.jax_device}: make n_envs, n_steps or batch_size smaller ({reason:.200})."
        ) from error


def steps_of(env: JaxVecEnv, episodes: Any) -> Iterator[tuple[int, np.ndarray, list[dict[str, Any]]]]:
    """
    :param env: environments inside jit
    :param episodes: an :class:`~sbx_deepspi.collect.copies.Outcome` of T steps, on the host
    :return: for each step its number, whether episodes ended, shape (N,), and N infos, empty but where one did
    """
    nothing: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
    for number, done in enumerate(episodes.dones):
        infos = nothing
        if done.any():
            infos = env.infos(done, episodes.truncated[number], episodes.returns[number], episodes.lengths[number])
        yield number, done, infos


def tell_of_steps(model: Any, env: JaxVecEnv, callback: BaseCallback, episodes: Any) -> Iterator[int]:
    """
    Tell a callback of the steps of a rollout that was made.

    :param model: that learns
    :param env: environments inside jit
    :param callback: called at every step
    :param episodes: an :class:`~sbx_deepspi.collect.copies.Outcome` of T steps, on the host
    :return: the numbers of the steps after which the training is to stop
    """
    for number, done, infos in steps_of(env, episodes):
        model.num_timesteps += model.n_envs_of_all
        callback.update_locals(dict(n_steps=number, rewards=episodes.rewards[number], dones=done, infos=infos))
        if not model.goes_on_after(callback):
            yield number
        if done.any():
            model._update_info_buffer([infos[i] for i in np.flatnonzero(done)])


def _make_again(model: Any, env: JaxVecEnv, episodes: Any, n_steps: int) -> None:
    """
    The first steps of a rollout that a callback has stopped: the next one begins where they led.

    :param model: that learned
    :param env: environments inside jit, as they were before the rollout
    :param episodes: of the whole rollout
    :param n_steps: how many were made before the stop
    """
    state = model.state
    parameters, copies, key = model.put(
        (state.learner.parameters, state.environments, state.key), (WHOLE, state.environments.layout, WHOLE)
    )
    environments = environments_of(env, n_steps, model.n_devices)
    _, _, env.state, model.key = model.policy.programs.collect(
        parameters, copies, key, mesh=model.mesh, environments=environments
    )
    model.episodes = model.episodes.including(episodes.lengths[:n_steps], episodes.dones[:n_steps])
    model._last_obs, model._last_episode_starts = env.state.observations, episodes.dones[n_steps - 1]


def check_finite(episodes: Outcome, number: int, whose: str = "") -> None:
    """
    :param episodes: of a rollout
    :param number: of the last step before it
    :param whose: the environments are, where there are several models
    :raises ValueError: naming the first step and environment with a number that is not finite
    """
    are_finite = {"observation": episodes.finite_observations, "reward": episodes.finite_rewards}
    # the earliest first: what follows may follow from it
    found = sorted((*np.argwhere(~finite)[0], name) for name, finite in are_finite.items() if not finite.all())
    for step, env, name in found:
        raise ValueError(
            f"Environment {env}{whose} returned a non-finite {name} at step {number + step + 1}: nothing was "
            "learned from this rollout; check the environment (fused=False and SB3's VecCheckNan help to "
            "find the cause)."
        )
