"""One step of any of SB3's ``VecEnv``, checked."""

import copy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize


def step(
    env: VecEnv, actions: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """
    One step of the environments. Where they are normalised, a number that is not finite is looked for in
    what they gave, and kept out of the running statistics.

    :param env: the environments
    :param actions: shape (N, ...)
    :param number: of the step, for messages
    :return: observations, rewards, dones and infos
    :raises ValueError: an observation or a reward is not finite, or observations have another shape than before
    """
    normalizer = normalizer_of(env)
    statistics: dict[str, Any] = {} if normalizer is None else vars(normalizer)
    # without norm_obs there is no obs_rms
    names = statistics.keys() & {"obs_rms", "ret_rms", "returns"}
    kept = {name: copy.copy(statistics[name]) for name in names}
    new_obs, rewards, dones, infos = env.step(actions)
    assert isinstance(new_obs, np.ndarray)
    check_observations(new_obs, env)
    try:
        if normalizer is not None:
            check_finite("reward", normalizer.get_original_reward(), number)
            check_finite("observation", np.asarray(normalizer.get_original_obs()), number)
        check_finite("reward", rewards, number)
        check_finite("observation", new_obs, number)
    except ValueError:
        statistics.update(kept)
        raise
    return new_obs, rewards, dones, infos


def true_next_observations(
    new_obs: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """
    s' of one step. Where an episode ended, ``new_obs`` already belongs to the next one.

    :param new_obs: what the environments returned, shape (N, ...)
    :param dones: whether each episode ended, shape (N,)
    :param infos: of each environment, with ``terminal_observation`` where an episode ended
    :return: s' of shape (N, ...), and whether a time limit ended the episode, bools of shape (N,)
    :raises ValueError: an environment ended an episode without its last observation, or with one of another shape
    """
    truncated = np.zeros(len(dones), bool)
    if not dones.any():
        return new_obs, truncated
    next_observations = new_obs.copy()
    for i in np.flatnonzero(dones):
        if infos[i].get("terminal_observation") is None:
            raise ValueError(
                f"Environment {i} ended an episode without info['terminal_observation'], which DeepSPI's world model "
                "learns from: use one of SB3's VecEnvs, or add it to yours."
            )
        last = infos[i]["terminal_observation"]
        check_shape("info['terminal_observation']", int(i), last, new_obs.shape[1:])
        next_observations[i] = last
        truncated[i] = infos[i].get("TimeLimit.truncated", False)
    return next_observations, truncated


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


def check_observations(values: Any, env: VecEnv) -> None:
    """
    :param values: what is to be an observation of each environment
    :param env: the environments
    :raises ValueError: they have another shape than their space
    """
    shape = (env.num_envs, *(env.observation_space.shape or ()))
    if np.shape(values) != shape:
        raise ValueError(f"The environments' observations must have shape {shape}, but have {np.shape(values)}.")


def check_shape(name: str, env_index: int, value: Any, shape: tuple[int, ...] | None) -> None:
    """
    :param name: what it is called
    :param env_index: of the environment that it is from
    :param value: an observation
    :param shape: of its space
    :raises ValueError: it has another
    """
    if np.shape(value) != shape:
        raise ValueError(
            f"Environment {env_index} returned {name} of shape {np.shape(value)}, but its observation space has shape "
            f"{shape}."
        )


def check_finite(name: str, values: np.ndarray, step: int) -> None:
    """
    :param name: what the values are, in the singular
    :param values: one entry per environment, shape (N, ...)
    :param step: how many steps each environment has made
    :raises ValueError: naming the first environment with a value that is NaN or infinite
    """
    if not np.issubdtype(values.dtype, np.floating):
        return
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"Environment {index[0]} returned a non-finite {name} ({values[index]}) at step {step}: nothing was "
            "learned from this rollout; check the environment (SB3's VecCheckNan helps to find the cause)."
        )
