"""
One step of any of SB3's ``VecEnv``, checked: the one place where what comes from an environment gets its dtype.

Networks take images as bytes, other observations as float32 or, where they are choices, as int32 counted from 0; and
rewards as float32. Whether a number is finite is asked after that.
"""

import copy
import enum
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sbx_deepspi.rollout import Observations


class Step(NamedTuple):
    """
    What N environments returned.

    :param new_obs: as they returned them
    :param observations: the same as the networks take them, see :func:`observations_of`
    :param rewards: float32, shape (N,)
    :param dones: bool, shape (N,)
    :param infos: a dictionary for each
    """

    new_obs: Any
    observations: Observations
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


def step(env: VecEnv, actions: np.ndarray, number: int) -> Step:
    """
    One step of the environments. Where they are normalised, a number that is not finite is looked for in
    what they gave, and kept out of the running statistics.

    :param env: the environments
    :param actions: shape (N, ...)
    :param number: of the step, for messages
    :return: what they returned, in known dtypes and shapes
    :raises ValueError: something has another shape or kind, or is not finite
    """
    normalizer = normalizer_of(env)
    statistics: dict[str, Any] = {} if normalizer is None else vars(normalizer)
    # without norm_obs there is no obs_rms
    kept = {name: _copied(statistics[name]) for name in statistics.keys() & {"obs_rms", "ret_rms", "returns"}}
    new_obs, rewards, dones, infos = env.step(actions)
    try:
        if normalizer is not None:
            rewards_of(normalizer.get_original_reward(), env.num_envs, number)
            original = normalizer.get_original_obs()
            observations_of(original, normalizer.venv.observation_space, env.num_envs, number)
        observations = observations_of(new_obs, env.observation_space, env.num_envs, number)
        rewards = rewards_of(rewards, env.num_envs, number)
    except ValueError:
        statistics.update(kept)
        raise
    are_dicts = isinstance(infos, (list, tuple)) and all(isinstance(info, dict) for info in infos)
    if not are_dicts or len(infos) not in (0, env.num_envs):  # SB3 minds no empty list
        raise ValueError(f"The environments' infos must be a list of {env.num_envs} dicts, but are {infos!r:.200}.")
    infos = list(infos) or [{} for _ in range(env.num_envs)]
    return Step(new_obs, observations, rewards, dones_of(dones, env.num_envs), infos)


def _copied(statistics: Any) -> Any:
    # of Dict observations, a dictionary
    if isinstance(statistics, dict):
        return {key: copy.copy(value) for key, value in statistics.items()}
    return copy.copy(statistics)


def true_next_observations(made: Step, space: spaces.Space, number: int) -> tuple[Observations, np.ndarray]:
    """
    s' of one step. Where an episode ended, the new observation already belongs to the next one.

    :param made: what the environments returned, with ``terminal_observation`` in the infos where an episode ended
    :param space: of one observation
    :param number: of the step, for messages
    :return: s' of N environments, as the networks take it, and whether a time limit ended the episode, bools of shape
        (N,)
    :raises ValueError: an environment ended an episode without its last observation, or with one that does not fit
    """
    truncated = np.zeros(len(made.dones), bool)
    if not made.dones.any():
        return made.observations, truncated
    next_observations = jax.tree.map(np.copy, made.observations)
    for i in np.flatnonzero(made.dones):
        last = made.infos[i].get("terminal_observation")
        if last is None:
            raise ValueError(
                f"Environment {i} ended an episode without info['terminal_observation'], which DeepSPI's world model "
                "learns from: use one of SB3's VecEnvs, or add it to yours."
            )
        name = "info['terminal_observation']"
        check_shape(int(i), last, space, name)
        last = _with_axis(last, space)
        for array, value in zip(
            jax.tree.leaves(next_observations),
            jax.tree.leaves(observations_of(last, space, 1, number, name, int(i))),
            strict=True,
        ):
            array[i] = value[0]
        truncated[i] = bool(made.infos[i].get("TimeLimit.truncated", False))
    return next_observations, truncated


def _with_axis(observation: Any, space: spaces.Space) -> Any:
    # by the space, not by the tree: a vector may be a list
    if isinstance(space, spaces.Dict):
        return {key: _with_axis(observation[key], part) for key, part in space.spaces.items()}
    return np.asarray(observation)[None]


# --- arrays -----------------------------------------------------------------------------------------


def observation_spec(space: spaces.Space) -> Any:
    """
    :param space: of one observation
    :return: shape and dtype in which the networks take it: a ``jax.ShapeDtypeStruct``, or a dictionary of them
    """
    match space:
        case spaces.Dict():
            return {key: observation_spec(part) for key, part in space.spaces.items()}
        case spaces.Discrete() | spaces.MultiDiscrete():
            return jax.ShapeDtypeStruct(space.shape or (), np.int32)
        case spaces.Box() if is_image_space(space):
            return jax.ShapeDtypeStruct(space.shape, np.uint8)
    return jax.ShapeDtypeStruct(space.shape or (), np.float32)


def observations_of(
    values: Any, space: spaces.Space, n: int, number: int | None = None, name: str = "observation", first: int = 0
) -> Observations:
    """
    Observations as the networks take them.

    :param values: of n environments: an array or what becomes one, or a dictionary of such
    :param space: of one observation
    :param n: number of environments
    :param number: of the step, for messages; ``None``: they belong to no step
    :param name: what they are called
    :param first: index of the first environment
    :return: arrays of the dtypes and shapes of :func:`observation_spec`, with an axis of size n in front
    :raises ValueError: they do not fit the space, or are not finite
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(values, dict) or values.keys() != space.spaces.keys():
            keys = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"The {name} must be a dictionary with {sorted(space.spaces)}, but is {keys}.")
        return {
            key: observations_of(values[key], part, n, number, f"{name}[{key!r}]", first)
            for key, part in space.spaces.items()
        }
    spec = observation_spec(space)
    given = _array(values, name, (n, *spec.shape), first)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        start, size = np.asarray(space.start), np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        index = given - start
        _whole_and_within(given, (index >= 0) & (index < size) & (index == np.floor(index)), space, name, first)
        return index.astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        array = given.astype(spec.dtype, copy=False)
    if spec.dtype == np.uint8 and given.dtype != np.uint8:
        _whole_and_within(given, array == given, space, name, first)
    check_finite(name, array, number, first)
    return array


def rewards_of(values: Any, n: int, number: int) -> np.ndarray:
    """
    :param values: of n environments
    :param n: number of environments
    :param number: of the step, for messages
    :return: float32, shape (n,)
    :raises ValueError: they are no n numbers, or one is not finite
    """
    with np.errstate(over="ignore"):
        rewards = _array(values, "reward", (n,)).astype(np.float32, copy=False)
    check_finite("reward", rewards, number)
    return rewards


def dones_of(values: Any, n: int) -> np.ndarray:
    """
    :param values: whether each of n episodes ended, as bools or as numbers 0 and 1
    :param n: number of environments
    :return: bool, shape (n,)
    :raises ValueError: they are anything else
    """
    dones = _array(values, "done", (n,))
    if not ((dones == 0) | (dones == 1)).all():
        raise ValueError(f"The environments' dones must be bools, or 0 and 1, but are {dones!r:.200}.")
    return dones.astype(bool)


def _array(values: Any, name: str, shape: tuple[int, ...], first: int = 0) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != shape or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        whose = "The environments'" if len(shape) and shape[0] != 1 else f"Environment {first}'s"
        raise ValueError(
            f"{whose} {name} must be numbers of shape {shape}, but got {array.dtype} of shape {array.shape}."
        )
    return array


def _whole_and_within(given: np.ndarray, fits: np.ndarray, space: spaces.Space, name: str, first: int) -> None:
    if not fits.all():
        index = tuple(np.argwhere(~fits)[0])
        raise ValueError(f"Environment {first + index[0]} returned {name} {given[index]}, which is not in {space}.")


def check_finite(name: str, values: np.ndarray, number: int | None, first: int = 0) -> None:
    """
    :param name: what the values are, in the singular
    :param values: one entry per environment, shape (N, ...)
    :param number: how many steps each environment has made; ``None``: they belong to no step
    :param first: index of the first environment
    :raises ValueError: naming the first environment with a value that is NaN or infinite
    """
    if not np.issubdtype(values.dtype, np.floating):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        if number is None:
            raise ValueError(f"The {name} has a number that is not finite in float32 ({values[index]} at {index}).")
        raise ValueError(
            f"Environment {first + index[0]} returned a non-finite {name} ({values[index]}) at step {number}: nothing "
            "was learned from this rollout; check the environment (SB3's VecCheckNan helps to find the cause)."
        )


def plain(value: Any) -> bool | int | float | str | None:
    """
    :param value: of an info
    :return: the same as Python's number or string; ``None``: it is neither
    """
    if isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum):
        return value
    try:
        array = np.asarray(value)
    except Exception:  # whatever an object's conversion raises
        return None
    is_number = array.ndim == 0 and (np.issubdtype(array.dtype, np.number) or array.dtype == bool)
    return array.item() if is_number and not np.iscomplexobj(array) else None


def check_shape(env_index: int, value: Any, space: spaces.Space, name: str = "an observation") -> None:
    """
    :param env_index: of an environment
    :param value: its observation
    :param space: of one observation
    :param name: what it is called
    :raises ValueError: it has another shape than its space
    """
    if isinstance(space, spaces.Dict) and isinstance(value, dict) and value.keys() == space.spaces.keys():
        for key, part in space.spaces.items():
            check_shape(env_index, value[key], part, name)
    elif isinstance(space, spaces.Dict):
        raise ValueError(f"Environment {env_index} returned {name} that is no dictionary with {sorted(space.spaces)}.")
    elif np.shape(value) != (space.shape or ()):
        raise ValueError(
            f"Environment {env_index} returned {name} of shape {np.shape(value)}, but its observation space has shape "
            f"{space.shape or ()}."
        )


# --- wrappers ---------------------------------------------------------------------------------------


def normalizer_of(env: VecEnv) -> VecNormalize | None:
    """
    :param env: environments in any number of wrappers
    :return: the outermost ``VecNormalize`` among them
    """
    return next((wrapper for wrapper in wrappers_of(env) if isinstance(wrapper, VecNormalize)), None)


def wrappers_of(env: VecEnv) -> list[VecEnvWrapper]:
    """
    :param env: environments in any number of wrappers
    :return: the wrappers, from the outermost
    """
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers
