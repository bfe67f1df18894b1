"""Environments: the EnvPool adapter, the confounding grid, and environments in processes with a timeout."""

import gymnasium as gym

from sbx_deepspi.envs.confounding_grid import MAX_EPISODE_STEPS, ConfoundingGrid, ConfoundingGridVecEnv
from sbx_deepspi.envs.envpool import EnvPoolVecEnv, make_envpool_env
from sbx_deepspi.envs.jitted.make import CONFOUNDING_GRID, IDS, make_jax_env
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv
from sbx_deepspi.envs.subprocess import TimeoutSubprocVecEnv

__all__ = [
    "ConfoundingGrid", "ConfoundingGridVecEnv", "EnvPoolVecEnv", "JaxVecEnv", "TimeoutSubprocVecEnv",
    "make_envpool_env", "make_jax_env",
]  # fmt: skip

gym.register(
    "ConfoundingGrid-v0",
    entry_point="sbx_deepspi.envs.confounding_grid:ConfoundingGrid",
    max_episode_steps=MAX_EPISODE_STEPS,
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
