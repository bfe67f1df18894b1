"""Environments: the EnvPool adapter."""

from sbx_deepspi.envs.envpool import EnvPoolVecEnv, make_envpool_env

__all__ = ["EnvPoolVecEnv", "make_envpool_env"]
