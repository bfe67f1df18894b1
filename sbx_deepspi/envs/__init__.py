"""Environments: the EnvPool adapter, the confounding grid, and environments in processes with a timeout."""

from sbx_deepspi.envs.confounding_grid import ConfoundingGrid, ConfoundingGridVecEnv
from sbx_deepspi.envs.envpool import EnvPoolVecEnv, make_envpool_env
from sbx_deepspi.envs.jitted.make import make_jax_env
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv
from sbx_deepspi.envs.subprocess import TimeoutSubprocVecEnv

__all__ = [
    "ConfoundingGrid", "ConfoundingGridVecEnv", "EnvPoolVecEnv", "JaxVecEnv", "TimeoutSubprocVecEnv",
    "make_envpool_env", "make_jax_env",
]  # fmt: skip
