"""Environments that live together, in arrays or in C++, with no object for each."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices


class BatchedVecEnv(VecEnv):
    """What SB3 asks of single environments, answered for environments that share everything but their state."""

    # the attributes that each of them has
    SHARED_ATTRIBUTES: tuple[str, ...] = ("action_space", "observation_space", "render_mode")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name not in self.SHARED_ATTRIBUTES:
            raise AttributeError(f"The environments of {type(self).__name__} have no attribute '{attr_name}'.")
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError(
            f"The environments of {type(self).__name__} have nothing to set: give '{attr_name}' when you make them."
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError(f"The environments of {type(self).__name__} have no method '{method_name}'.")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        # their episodes are reported as a Monitor would, which is what SB3 wants to know
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]
