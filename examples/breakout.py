"""Train DeepSPI on Breakout with EnvPool, evaluating it now and then; see the README for the RL Zoo command."""

from stable_baselines3.common.callbacks import EvalCallback

from sbx_deepspi import DeepSPI, make_envpool_env

env = make_envpool_env("Breakout-v5", n_envs=128, seed=0)
eval_env = make_envpool_env("Breakout-v5", n_envs=8, seed=1000)

model = DeepSPI("CnnPolicy", env, verbose=1)
model.learn(
    10_000_000,
    callback=EvalCallback(
        eval_env, n_eval_episodes=8, eval_freq=1000, best_model_save_path="logs", deterministic=False
    ),
    progress_bar=True,
)
model.save("breakout")
