"""Many models that learn at once, in one program, from environments inside jit: seeds, or settings of numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from stable_baselines3.common.callbacks import ProgressBarCallback

from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv
from sbx_deepspi.saving.environment import description_of
from sbx_deepspi.sb3.algorithm import FAULTY_UPDATES_IN_A_ROW, DeepSPI
from sbx_deepspi.sb3.fused import Made, check_finite, environments_of, memory_errors, steps_of
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
    ``model_learning_rate`` and ``dream_weight``. In all else that is
    compiled they have to be equal.

    :param models: of one class; each has copies of the same environment inside jit, of its own
    :param total_timesteps: steps of all of a model's copies together, at least
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
    first, envs = models[0], [model.env for model in models]
    assert isinstance(first.env, JaxVecEnv)
    interruption, recorders = Interruption(), [_Recorder() for _ in models]
    bar = ProgressBarCallback() if progress_bar else None
    total = _begin(models, total_timesteps, reset_num_timesteps, tb_log_name or type(first).__name__)
    environments = environments_of(first.env, first.n_steps)
    if bar is not None:
        bar.init_callback(first)
        bar.on_training_start({"total_timesteps": total}, {})
    states = jax.device_put(_stack([model.state for model in models]), first.jax_device)
    iteration = 0
    try:
        with interruption:
            while first.num_timesteps < total and not interruption.received:
                number = first.num_timesteps // first.n_envs
                new_states, told, episodes = _one_iteration(models, states, environments)
                for index in range(len(models)):
                    check_finite(jax.tree.map(lambda array: array[index], episodes), number, f" of model {index}")  # noqa: B023
                states, iteration = new_states, iteration + 1
                for index, (model, env, recorder, made) in enumerate(zip(models, envs, recorders, told, strict=True)):
                    of_model = jax.tree.map(lambda array: array[index], episodes)  # noqa: B023
                    _tell(model, env, recorder, made, of_model)
                    if log_interval is not None and iteration % log_interval == 0:
                        model.dump_logs(iteration)
                    model.tell(made)
                if bar is not None:
                    bar.pbar.update(first.n_steps * first.n_envs)
                for index, model in enumerate(models):
                    if model._faulty_updates >= FAULTY_UPDATES_IN_A_ROW:
                        raise ValueError(
                            f"{FAULTY_UPDATES_IN_A_ROW} updates in a row of model {index} were not finite: lower "
                            f"learning_rate, or look at the scale of the rewards. {model._last_fault}"
                        )
    finally:
        for index, model in enumerate(models):
            _finish(model, jax.tree.map(lambda array: array[index], states))  # noqa: B023
        if bar is not None:
            bar.on_training_end()
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


def _begin(models: list[DeepSPI], total_timesteps: int, reset_num_timesteps: bool, tb_log_name: str) -> int:
    total = total_timesteps
    for model in models:
        total, _ = model._setup_learn(total_timesteps, None, reset_num_timesteps, tb_log_name, False)
        model._faulty_updates, model.certifies_each_update = 0, False
        model._n_collected = model.n_steps * model.n_envs
    return total


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _one_iteration(models: list[DeepSPI], states: Any, environments: Any) -> tuple[Any, list[Made], Any]:
    first = models[0]
    for model in models:
        after = model.num_timesteps + environments.n_steps * model.n_envs
        model._update_current_progress_remaining(after, model._total_timesteps)
    hyperparameters = [model.hyperparameters() for model in models]
    is_certified = {model.is_certified() for model in models}.pop()  # the same for all
    with memory_errors(first, environments.n_steps, states.environments, len(models)):
        states, *told, episodes = first.policy.programs.fused_iterations(
            states,
            _stack(hyperparameters),
            is_certified,
            environments=environments,
            update=type(first).update,
            projects=first.neighbourhood == "project",
        )
    log_std = states.learner.parameters["actor"].get("log_std")
    seen = states.replace(learner=None, key=None, environments=None)
    *told, log_std, seen, episodes = jax.device_get((*told, log_std, seen, episodes))
    made = []
    for index, numbers in enumerate(hyperparameters):
        report, kept, certificate, std, state = jax.tree.map(lambda leaf: leaf[index], (*told, log_std, seen))  # noqa: B023
        made.append(Made(state, numbers, report, kept, std, certificate if is_certified else None))
    return states, made, episodes


def _tell(model: DeepSPI, env: Any, recorder: "_Recorder", made: Made, episodes: Any) -> None:
    for number, done, infos in steps_of(env, episodes):
        model.num_timesteps += model.n_envs
        if done.any():
            model._update_info_buffer([infos[i] for i in np.flatnonzero(done)])
            recorder.add(model.num_timesteps, episodes.returns[number][done], episodes.lengths[number][done])
    model._last_episode_starts = episodes.dones[-1]
    model.episodes, model.rewards = made.state.episodes, made.state.rewards
    model._n_updates = int(made.state.n_epochs)


def _finish(model: DeepSPI, state: Any) -> None:
    host = jax.device_get((state.episodes, state.rewards))
    model.state = state.replace(episodes=host[0], rewards=host[1])
    model._last_obs = state.environments.observations


class _Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, timesteps: int, returns: np.ndarray, lengths: np.ndarray) -> None:
        self.rows.append((np.full(len(returns), timesteps), returns, lengths))

    def curve(self) -> LearningCurve:
        if not self.rows:
            return LearningCurve(np.zeros(0, int), np.zeros(0, np.float32), np.zeros(0, np.int32))
        return LearningCurve(*(np.concatenate(column) for column in zip(*self.rows, strict=True)))
