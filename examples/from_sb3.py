"""An SB3 script with one word changed: ``PPO`` became ``DeepSPI``."""

import torch.nn as nn
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sbx_deepspi import DeepSPI

env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=4, seed=0))
model = DeepSPI(
    "MlpPolicy",
    env,
    learning_rate=1e-3,
    n_steps=256,
    batch_size=64,
    n_epochs=10,
    gamma=0.9,
    clip_range=0.2,
    ent_coef=0.0,
    policy_kwargs=dict(net_arch=[64, 64], activation_fn=nn.Tanh),
    verbose=1,
)
model.learn(total_timesteps=50_000)

env.training, env.norm_reward = False, False
mean_reward, std_reward = evaluate_policy(model, env, n_eval_episodes=20)
print(f"mean reward {mean_reward:.1f} ± {std_reward:.1f}")
