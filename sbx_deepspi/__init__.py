"""Deep SPI for Stable-Baselines3, SBX and RL Zoo."""

from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium as gym

from sbx_deepspi.env_ids import CONFOUNDING_GRID, GRID_STEPS, IDS

if TYPE_CHECKING:
    from sbx_deepspi.envs import ConfoundingGrid, ConfoundingGridVecEnv, JaxVecEnv, make_envpool_env, make_jax_env
    from sbx_deepspi.saving.environment import load_normalization
    from sbx_deepspi.saving.format import CheckpointError
    from sbx_deepspi.sb3.algorithm import DeepSPI
    from sbx_deepspi.sb3.callbacks import CheckpointCallback, SPICertificateCallback
    from sbx_deepspi.sb3.deepmdp import DeepMDP
    from sbx_deepspi.sb3.dreamspi import DreamSPI
    from sbx_deepspi.sb3.many import LearningCurve, learn_together
    from sbx_deepspi.sb3.policies import CnnPolicy, MlpPolicy

__all__ = [
    "CheckpointCallback",
    "CheckpointError",
    "CnnPolicy",
    "ConfoundingGrid",
    "ConfoundingGridVecEnv",
    "DeepMDP",
    "DeepSPI",
    "DreamSPI",
    "JaxVecEnv",
    "LearningCurve",
    "MlpPolicy",
    "SPICertificateCallback",
    "learn_together",
    "load_normalization",
    "make_envpool_env",
    "make_jax_env",
]

# Command lines answer --help without waiting for JAX and PyTorch: modules are imported when a name of theirs is used
_MODULES = {
    "envs": {"ConfoundingGrid", "ConfoundingGridVecEnv", "JaxVecEnv", "make_envpool_env", "make_jax_env"},
    "saving.environment": {"load_normalization"},
    "saving.format": {"CheckpointError"},
    "sb3.algorithm": {"DeepSPI"},
    "sb3.callbacks": {"CheckpointCallback", "SPICertificateCallback"},
    "sb3.deepmdp": {"DeepMDP"},
    "sb3.dreamspi": {"DreamSPI"},
    "sb3.many": {"LearningCurve", "learn_together"},
    "sb3.policies": {"CnnPolicy", "MlpPolicy"},
}

if not TYPE_CHECKING:  # type checkers take the names from above

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"sbx_deepspi.{module}"), name)
        try:
            return import_module(f"sbx_deepspi.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"sbx_deepspi.{name}":
                raise
        raise AttributeError(f"module 'sbx_deepspi' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


def _register_environments() -> None:
    """Tell Gymnasium the ids of ours."""
    gym.register(
        "ConfoundingGrid-v0",
        entry_point="sbx_deepspi.envs.confounding_grid:ConfoundingGrid",
        max_episode_steps=GRID_STEPS,
    )
    # RL Zoo looks ids up here; Gymnasium takes the newest version of an id without one
    gym.registry[CONFOUNDING_GRID] = gym.registry["ConfoundingGrid-v0"]
    for suite, names in IDS.items():
        for name in names:
            gym.register(
                f"{suite}/{name}",
                entry_point="sbx_deepspi.envs.jitted.gym_env:JaxGymEnv",
                kwargs={"env_id": f"{suite}/{name}"},
            )


_register_environments()
