"""Deep SPI for Stable-Baselines3, SBX and RL Zoo."""

from sbx_deepspi.callbacks import SPICertificateCallback
from sbx_deepspi.deepmdp import DeepMDP
from sbx_deepspi.deepspi import DeepSPI
from sbx_deepspi.envs import ConfoundingGrid, ConfoundingGridVecEnv, make_envpool_env
from sbx_deepspi.policies import CnnPolicy, MlpPolicy

__all__ = [
    "CnnPolicy",
    "ConfoundingGrid",
    "ConfoundingGridVecEnv",
    "DeepMDP",
    "DeepSPI",
    "MlpPolicy",
    "SPICertificateCallback",
    "make_envpool_env",
]
