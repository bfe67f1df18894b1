"""An environment of your own inside jit: a ball on a beam. Learned in less than a minute on two cores."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from sbx_deepspi import DeepSPI, JaxVecEnv


@dataclass(frozen=True)  # equal environments share compiled programs
class BallOnBeam:
    """Tilt the beam so that the ball comes to rest in its middle. It is lost beyond the ends, at -1 and 1."""

    gravity: float = 9.81
    observation_space: ClassVar[spaces.Space] = spaces.Box(-2, 2, (2,), np.float32)  # position, velocity
    action_space: ClassVar[spaces.Space] = spaces.Box(-0.2, 0.2, (1,), np.float32)  # the beam's angle, in radians

    def reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        state = jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)
        return state, state

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[jax.Array, Any, Any, Any, Any]:
        position, velocity = state
        velocity = jnp.clip(velocity + 0.05 * self.gravity * jnp.sin(action[0]), -2, 2)
        position = position + 0.05 * velocity
        state = jnp.stack([position, velocity])
        is_lost = jnp.abs(position) > 1
        reward = 1 - position**2 - 0.1 * velocity**2
        return state, state, reward, is_lost, jnp.array(False)  # the copies have the time limit


env = JaxVecEnv(BallOnBeam(), n_envs=256, seed=0, max_episode_steps=100)
model = DeepSPI("MlpPolicy", env, n_steps=16, batch_size=512, learning_rate=1e-3, gamma=0.95, seed=0, verbose=1)
model.learn(100_000, log_interval=10)

mean_reward, std_reward = evaluate_policy(model, JaxVecEnv(BallOnBeam(), 10, seed=1, max_episode_steps=100), 50)
print(f"mean reward {mean_reward:.1f} ± {std_reward:.1f} of 100")
