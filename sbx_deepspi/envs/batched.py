"""The base class of vectorised environments whose copies are no Python objects: they live in arrays, or in C++."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices


class BatchedVecEnv(VecEnv):
    """A ``VecEnv`` whose copies differ only in their state. It answers SB3's questions about single copies."""

    # Attributes of this object that are also those of each copy
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
        # SB3 asks this to find out whether episodes are reported as a Monitor reports them. They are.
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]
