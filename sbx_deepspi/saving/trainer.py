"""
What a model's file holds, and how a model is made from it.

Its tensors are :class:`~sbx_deepspi.state.TrainerState`, everything that an iteration changes, and the key of
predictions. Its attributes are the configuration (the arguments of the constructor, by their names), SB3's
progress, and what the user has set.
"""

import inspect
import itertools
import warnings
from collections import deque
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from sbx import PPO
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi.collect.vec_env import normalizer_of, observations_of
from sbx_deepspi.envs.jitted.vec_env import inside_jit
from sbx_deepspi.processes import is_first_process
from sbx_deepspi.saving import environment
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.state import EpisodeStatistics, RewardStatistics

NOT_CONFIGURATION = ("self", "policy", "env", "device", "_init_setup_model", "args", "kwargs")
"""Arguments of constructors that are not saved, or under another name."""
RENAMED = {"stats_window_size": "_stats_window_size"}
"""Arguments that SB3 keeps under another name."""
MADE_FROM = ("policy_class", "observation_space", "action_space", "n_envs", "_automatic_n_steps")
"""What else a model is made from, beside whether its policy has a world model, ``world_model``."""
PROGRESS = (
    "num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_current_progress_remaining", "_episode_num",
    "ep_info_buffer", "ep_success_buffer", "_last_obs", "_last_episode_starts", "_last_original_obs", "start_time",
    "_last_fault", "_faulty_updates", "_last_verdict", "_updates_since_certificate",
)  # fmt: skip
"""What SB3 and the algorithm count while they learn, beside the trainer's state."""
STATE = "state/"
ENVIRONMENTS = f"{STATE}environments/"
STATISTICS = f"{ENVIRONMENTS}statistics/"


def configuration(algorithm: type) -> list[str]:
    """
    :param algorithm: a class
    :return: names of the attributes that hold its constructors' arguments
    """
    names: dict[str, None] = {}
    for cls in itertools.takewhile(lambda cls: cls is not PPO, algorithm.__mro__):
        if "__init__" in vars(cls):
            names |= dict.fromkeys(inspect.signature(vars(cls)["__init__"]).parameters)
    return [RENAMED.get(name, name) for name in names if name not in NOT_CONFIGURATION]


def contents_of(model: Any, exclude: set[str], include: set[str]) -> checkpoint.Checkpoint:
    """
    :param model: to be saved
    :param exclude: attributes to leave out
    :param include: attributes to save that otherwise would not be
    :return: what its file will hold
    """
    own = vars(model) | model._before_rollout
    set_by_user = own.keys() - model._set_by_constructor - set(model._excluded_save_params()) - {"rollout_buffer"}
    names = {*configuration(type(model)), *MADE_FROM, *PROGRESS, *set_by_user} - exclude | include
    state = model.state
    tensors = model.policy.tensors() | checkpoint.flatten(
        {"key": state.key, "episodes": state.episodes, "rewards": state.rewards, "n_epochs": state.n_epochs}, STATE
    )
    attributes = {name: own[name] for name in sorted(names & own.keys())}
    # each process has its own environments: those of one alone would be no beginning for all
    alone = model.processes is None
    attributes["_last_obs"] = jax.device_get(own["_last_obs"]) if alone else None
    if own["_last_obs"] is not None and state.environments is not None:
        of_envs = checkpoint.flatten(environment.without_typed_keys(state.environments), ENVIRONMENTS)
        tensors |= {name: of_envs[name] for name in of_envs if alone or name.startswith(STATISTICS)}
    return checkpoint.Checkpoint(
        written_by=type(model).__name__,
        # not by the coefficients, which may have been changed since
        attributes=attributes
        | {"world_model": model.policy.world_model, "termination_model": model.policy.termination_model},
        environment=None if model.env is None else environment.state_of(model.env, attributes["_last_obs"] is not None),
        tensors=tensors,
    )


def load(
    cls: Any,
    path: Any,
    env: Any,
    device: Any,
    custom_objects: dict[str, Any] | None,
    print_system_info: bool,
    *,
    force_reset: bool | None,
    trust: bool,
    changes: dict[str, Any],
) -> Any:
    """
    :param cls: class of the model
    :param path: of the file, or a file open for reading
    :param env: what to go on learning from, or ``None``
    :param device: where JAX computes
    :param custom_objects: attributes to take from here instead of from the file
    :param print_system_info: print the system that saved the model, and this one
    :param force_reset: reset the environment before learning goes on; ``None``: only where it is not inside jit
    :param trust: load also what is pickled
    :param changes: attributes to change
    :return: the model
    :raises CheckpointError: the file is none of ours, is damaged, newer, older, pickled, or another class's
    :raises ValueError: the environment has other spaces than the model
    """
    # the number of environments is the file's, or that of ``env``
    others = {name: value for name, value in (custom_objects or {}).items() if name != "n_envs"}
    contents = checkpoint.read(path, trust, others, suffix="zip")
    if print_system_info:
        print("== CURRENT SYSTEM INFO ==")
        get_system_info()
        print(f"== SAVED MODEL SYSTEM INFO ==\n{contents.system_info}")
    checkpoint.written_by(cls.__name__, contents)
    saved = contents.attributes
    if "n_steps" in changes:
        changes["_automatic_n_steps"] = changes["n_steps"] is None
    for name in [name for name in saved if name not in SCHEDULES and checkpoint.missing_in(saved[name])]:
        if name in changes:
            saved[name] = changes[name]
        elif name in MADE_FROM or name in configuration(cls):
            raise checkpoint.CheckpointError(checkpoint.missing_in(saved[name])[0].request)
        else:
            del saved[name]
    given = changes.get("termination_model", saved.get("termination_model"))
    if given != saved.get("termination_model"):
        raise ValueError(
            f"The model was made with termination_model={saved.get('termination_model')}, and cannot be loaded with "
            f"termination_model={given!r}: make a new one."
        )
    if changes.get("policy_kwargs", saved.get("policy_kwargs")) != saved.get("policy_kwargs"):
        raise ValueError(
            "The specified policy kwargs do not equal the stored policy kwargs: "
            f"stored {saved.get('policy_kwargs')!r:.200}, specified {changes['policy_kwargs']}."
        )
    with checkpoint.building(cls.__name__):
        cls.check_spaces(saved["observation_space"], saved["action_space"])
        world_model = saved.pop("world_model")
        if type(world_model) is not bool:
            raise ValueError(f"world_model must be a bool, but got {world_model!r:.80}.")
        n_envs = saved["n_envs"]
    if not is_first_process():
        saved["verbose"] = changes["verbose"] = 0
    if env is not None:
        env = cls._wrap_env(env, saved.get("verbose", 0))
        check_for_correct_spaces(env, saved["observation_space"], saved["action_space"])
        saved["n_envs"] = env.num_envs
        if force_reset is None:
            force_reset = not environment.is_same_inside_jit(env, contents.environment)
        if force_reset:
            saved["_last_obs"] = None

    with checkpoint.building(cls.__name__):
        model = cls(saved["policy_class"], env, device=device, _init_setup_model=False)
        check_attributes(model, saved, () if trust else model._excluded_save_params())
        vars(model).update(saved)
        model.policy = model._make_policy(world_model)
        tensors = dict(contents.tensors)
        state = {name: tensors.pop(name) for name in list(tensors) if not name.startswith(("state/learner/", "pred"))}
        environments = {name: state.pop(name) for name in list(state) if name.startswith(ENVIRONMENTS)}
        model.policy.restore(tensors)
        vars(model).update(changes)
        key, prediction_key = restored_state(model, state, n_envs), model.policy.key
        model._setup_model()  # draws new keys from the seed
        for name, function in SCHEDULES.items():
            if (given := getattr(model, name, None)) is not None and not checkpoint.missing_in(given):
                getattr(model, function)(1.0)  # whether it is one shows when it is called
        if "seed" not in changes:
            model.key, model.policy.key = model.put((key, prediction_key))
    model._environment_tensors = environments
    if env is not None:
        if model._last_obs is not None:
            with checkpoint.building(cls.__name__):
                observations_of(model._last_obs, env.observation_space, env.num_envs)
        with checkpoint.building("environment"):
            restore_environment(model, env, contents.environment, environments, bool(force_reset))
    return model


def restored_state(model: Any, tensors: dict[str, np.ndarray], n_envs: int) -> Any:
    """
    Put all of a trainer's state but parameters and optimiser into a model.

    :param model: gets it
    :param tensors: by name
    :param n_envs: number of environments that the model was saved with
    :return: the key of training
    :raises CheckpointError: names, shapes or dtypes are not the model's, or a number is negative
    """

    def integers(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.int32)

    like = {
        "key": jax.ShapeDtypeStruct((2,), np.uint32),
        "episodes": EpisodeStatistics(integers(n_envs), integers(model._stats_window_size), integers()),
        "rewards": jax.eval_shape(RewardStatistics.empty),
        "n_epochs": integers(),
    }
    state = checkpoint.unflatten(tensors, like, STATE)
    for name, tensor in tensors.items():
        if not ((tensor >= 0) & np.isfinite(tensor)).all() or tensor.size == 0:
            raise checkpoint.CheckpointError(f"The checkpoint's {name!r} must be finite numbers of at least 0.")
    if model.env is None or n_envs == model.env.num_envs:
        model.episodes = state["episodes"]
    else:
        fresh = EpisodeStatistics.empty(model.env.num_envs, 1)
        model.episodes = state["episodes"].replace(steps=fresh.steps)
    model.rewards, model._n_updates = state["rewards"], int(state["n_epochs"])
    return state["key"]


def restore_environment(
    model: Any, env: VecEnv, saved: dict[str, Any] | None, tensors: dict[str, np.ndarray], force_reset: bool
) -> None:
    """
    :param model: that goes on learning
    :param env: from these environments
    :param saved: their state from the file, if it has one
    :param tensors: the state of environments inside jit, by name
    :param force_reset: whether they are reset all the same
    """
    if saved is not None and saved["episodes"] is not None and not force_reset:
        environment.restore(env, saved)
        if tensors and (inner := inside_jit(env)) is not None:
            inner.state = environment.state_inside_jit(inner, tensors, ENVIRONMENTS)
        return
    if tensors and (inner := inside_jit(env)) is not None:
        environment.restore_statistics(inner, tensors, ENVIRONMENTS)
    if model._last_obs is not None:
        warnings.warn(
            "The file does not hold the environment's state: it is reset, in spite of force_reset=False.", stacklevel=4
        )
        model._last_obs = None
    normalizer = normalizer_of(env)
    if normalizer is None or saved is None or saved["normalization"] is None:
        return
    if not force_reset or environment.has_seen_nothing(normalizer):
        environment.set_normalization(normalizer, saved["normalization"])


OPTIONAL_NUMBERS = ("clip_range_vf", "gradient_penalty_coef", "target_kl")
SCHEDULES = {
    "learning_rate": "lr_schedule", "clip_range": "clip_range_schedule", "clip_range_vf": "clip_range_vf_schedule",
    "model_learning_rate": "model_lr_schedule", "dream_weight": "dream_weight_schedule",
}  # fmt: skip
"""Arguments that may be schedules → the functions of the remaining progress that are made from them."""
BUFFERS: dict[str, Any] = {"ep_info_buffer": dict, "ep_success_buffer": (bool, int, float)}


def check_attributes(model: Any, saved: dict[str, Any], live: Collection[str]) -> None:
    """
    :param model: as its constructor leaves it
    :param saved: attributes from a file, by name
    :param live: attributes that only a running program has
    :raises ValueError: one is no attribute to set, or not of the kind that the model has
    """
    for name, value in saved.items():
        of_class = getattr(type(model), name, None)
        of_class_alone = of_class is not None and name not in vars(model)
        if name in live or of_class_alone or callable(of_class) or isinstance(of_class, property):
            raise ValueError(f"{name!r} is not an attribute that a file may set.")
        own = vars(model).get(name)
        number = isinstance(value, (int, float, np.number, np.bool_)) and not np.isnan(value)
        number_or_schedule = (number and (np.isfinite(value) or name == "max_grad_norm")) or (
            name in SCHEDULES and callable(value)
        )
        if isinstance(own, (int, float)) and not number_or_schedule:
            raise ValueError(f"{name} must be a number, but got {value!r}.")
        if name in OPTIONAL_NUMBERS and not (value is None or number_or_schedule):
            raise ValueError(f"{name} must be a finite number or None, but got {value!r}.")
        # the last two are None before a model learns
        fits = isinstance(value, deque) and all(isinstance(item, BUFFERS.get(name, object)) for item in value)
        if name in BUFFERS and not (fits or (own is None and value is None)):
            raise ValueError(f"{name} must be a deque of what episodes left, but got {value!r:.200}.")
        if name == "_last_episode_starts" and not (value is None or getattr(value, "dtype", None) == np.bool_):
            raise ValueError(f"{name} must be an array of bools, but got {value!r:.200}.")
        if isinstance(own, np.ndarray) and (np.ndim(value), getattr(value, "dtype", None)) != (own.ndim, own.dtype):
            raise ValueError(f"{name} must be an array with {own.ndim} dimensions and of {own.dtype}.")
        if isinstance(own, jax.Array) and (np.shape(value), getattr(value, "dtype", None)) != (own.shape, own.dtype):
            raise ValueError(f"{name} must be an array of shape {own.shape} and {own.dtype}.")
