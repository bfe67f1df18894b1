"""Environments: the EnvPool adapter, and processes that are not waited for for ever."""

from sbx_deepspi.envs.envpool import EnvPoolVecEnv, make_envpool_env
from sbx_deepspi.envs.subprocess import TimeoutSubprocVecEnv

__all__ = ["EnvPoolVecEnv", "TimeoutSubprocVecEnv", "make_envpool_env"]
