"""Deep SPI for Stable-Baselines3, SBX and RL Zoo."""

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
