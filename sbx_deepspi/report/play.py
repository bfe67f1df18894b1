"""Episodes, played by the policy as it was trained."""

from collections.abc import Callable

import jax
import numpy as np

from sbx_deepspi.collect import vec_env
from sbx_deepspi.report.environment import ReportError
from sbx_deepspi.report.measure import Played
from sbx_deepspi.sb3.algorithm import DeepSPI
from sbx_deepspi.sb3.spaces import to_environment


def play(model: DeepSPI, n_steps: int, seed: int, tick: Callable[[], object]) -> Played:
    """
    :param model: with environments
    :param n_steps: T, of each of them
    :param seed: of the policy's choices
    :param tick: called after each step
    :return: what happened
    :raises ReportError: an environment returned what is not finite, or does not fit its space
    """
    env, space, parameters = model.env, model.observation_space, model.policy.learner.parameters
    assert env is not None
    key = jax.random.PRNGKey(seed)
    observations = vec_env.observations_of(env.reset(), space, env.num_envs)
    steps = np.zeros(env.num_envs, int)
    rows = []
    for number in range(n_steps):
        decision, key = model.policy.programs.decide(parameters, observations, key)
        actions = np.asarray(decision.actions)
        try:
            made = vec_env.step(env, to_environment(actions, model.action_space), number)
            next_observations, truncated = vec_env.true_next_observations(made, space, number)
        except ValueError as error:
            what = str(error).partition(": nothing was learned")[0]
            raise ReportError(f"The environment could not be played to the end: {what}") from error
        terminated = made.dones & ~truncated
        rows.append((observations, next_observations, actions, made.rewards, terminated, truncated, steps))
        observations, steps = made.observations, np.where(made.dones, 0, steps + 1)
        tick()
    return Played(*jax.tree.map(lambda *arrays: np.stack(arrays), *rows))
