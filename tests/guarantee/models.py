"""Small trained models with certificates."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepSPI
from tests.helpers import IMAGE, TINY_RUN, VECTOR, ToyEnv

DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-1, 1, (2,), np.float32)
CERTIFIABLE: dict[str, Any] = dict(
    gamma=0.9,
    policy_kwargs=dict(transition_density="deterministic", lipschitz_constant=0.8, lipschitz_policy=0.05),
)
CNN: dict[str, Any] = dict(
    transition_density="normal",
    lipschitz_constant=0.8,
    lipschitz_policy=0.05,
    features_extractor_kwargs=dict(features_dim=8),
)


def trained(action_space: spaces.Space = DISCRETE, policy: str = "MlpPolicy", **kwargs: Any) -> DeepSPI:
    """A model after two updates, the second of which is in its certificate."""
    observation_space = VECTOR if policy == "MlpPolicy" else IMAGE
    env = DummyVecEnv([lambda: ToyEnv(observation_space, action_space, length=4)] * 2)
    return DeepSPI(policy, env, **{**TINY_RUN, "certificate_freq": 1, **kwargs}).learn(32)
