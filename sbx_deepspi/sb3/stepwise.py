"""A rollout step by step, from environments on the host, with SB3's callbacks at every step."""

from typing import Any

import jax
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sbx_deepspi.collect import vec_env
from sbx_deepspi.rollout import Rollout
from sbx_deepspi.sb3.spaces import to_environment


def collect(self: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: Rollout, n_rollout_steps: int) -> bool:
    """
    Run the behaviour policy and fill the rollout. Callbacks find the names of this function, as SB3 has them, in their
    ``locals``.

    :param self: the model
    :param env: the environments
    :param callback: called at every step, and at the rollout's start and end
    :param rollout_buffer: what to fill
    :param n_rollout_steps: steps of each environment
    :return: False if the training is to stop: by the callback or by a signal
    :raises ValueError: an observation or a reward is not finite
    """
    rollout, programs, space = rollout_buffer, self.policy.programs, self.observation_space
    number = self.num_timesteps // self.n_envs_of_all  # of the step, for messages
    observations = vec_env.observations_of(self._last_obs, space, env.num_envs, number)
    callback.on_rollout_start()

    n_steps = 0
    while n_steps < n_rollout_steps:
        decision, self.key = programs.decide(self.policy.learner.parameters, observations, self.key)
        decision = jax.device_get(decision)
        # callbacks know them by these names and shapes
        actions, values, log_probs = decision.actions, decision.values[:, None], decision.log_probs
        clipped_actions = to_environment(actions, self.action_space)
        number += 1
        try:
            made = vec_env.step(env, clipped_actions, number)
        except (EOFError, OSError) as error:
            if self.was_interrupted(error):
                return False
            raise
        new_obs, rewards, dones, infos = made.new_obs, made.rewards, made.dones, made.infos
        self.num_timesteps += self.n_envs_of_all
        lengths = np.where(np.asarray(self._last_episode_starts), 0, self.episodes.steps) + 1
        if self.processes is not None:
            self.news.lengths += lengths[dones].tolist()
        self.episodes = self.episodes.including(lengths.astype(np.int32)[None], dones[None])
        callback.update_locals(locals())
        if not self.goes_on_after(callback):
            # this step is not learned from, but the next rollout begins where it led
            self._last_obs, self._last_episode_starts = new_obs, dones
            return False
        self._update_info_buffer(infos, dones)

        next_observations, truncated = vec_env.true_next_observations(made, space, number)
        truncated_values = np.zeros_like(decision.values)
        if truncated.any():
            # by the program that is compiled already; its actions and its key are not used
            next_values = programs.decide(self.policy.learner.parameters, next_observations, self.key)[0].values
            truncated_values = np.where(truncated, next_values, 0.0)

        row = Rollout(
            observations=observations,
            next_observations=next_observations,
            actions=actions,
            rewards=rewards,
            terminated=dones & ~truncated,
            truncated=truncated,
            truncated_values=truncated_values,
            values=decision.values,
            log_probs=log_probs,
            log_policy=decision.log_policy,
        )
        jax.tree.map(lambda array, values: array.__setitem__(n_steps, values), rollout, row)  # noqa: B023
        observations = made.observations
        self._last_obs, self._last_episode_starts = new_obs, dones
        n_steps += 1

    callback.update_locals(locals())
    callback.on_rollout_end()
    return True
