"""Environment wrappers that hyperparameter files name, as ``sbx_deepspi.zoo.flatten_dict``."""

import gymnasium as gym


def flatten_dict(env: gym.Env) -> gym.Env:
    """
    Turn dictionary observations (dm_control has them) into vectors; return other environments unchanged.

    :param env: any environment
    :return: an environment whose observations are not dictionaries
    """
    is_dict = isinstance(env.observation_space, gym.spaces.Dict)
    return gym.wrappers.FlattenObservation(env) if is_dict else env
