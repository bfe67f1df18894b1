"""Environments inside jit as SB3 knows environments."""

import copy
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sbx_deepspi import memory, ops, valid
from sbx_deepspi.collect.copies import Copies, CopiesState
from sbx_deepspi.collect.jax_env import JaxEnv
from sbx_deepspi.collect.normalization import Moments, Statistics
from sbx_deepspi.envs.batched import BatchedVecEnv
from sbx_deepspi.envs.jitted import checks


class JaxVecEnv(BatchedVecEnv):
    """
    Copies of an environment inside jit, as one SB3 ``VecEnv``.

    Each step of all copies is one compiled program, and episodes are reported as a ``Monitor`` reports them. DeepSPI,
    DeepMDP and DreamSPI do not step it at all: they compile whole iterations, see ``fused`` of
    :class:`~sbx_deepspi.DeepSPI`.

    :param env: two pure functions and two spaces, see :class:`~sbx_deepspi.collect.jax_env.JaxEnv`
    :param n_envs: number of copies
    :param seed: of all random draws; ``None`` draws one
    :param max_episode_steps: a time limit, beside the environment's own; ``None``: none
    :param n_initial_states: episodes begin in one of so many states, drawn anew at each reset of all copies: for
        environments whose reset takes longer than a step; ``None``: each episode begins with a reset of its own
    :param normalize: normalise observations and rewards inside jit as ``VecNormalize`` does: True, or a dictionary of
        its arguments (``norm_obs``, ``norm_reward``, ``clip_obs``, ``clip_reward``, ``gamma``, ``epsilon``,
        ``training``); or the environments that a model learns from, whose statistics are then used and not changed,
        and rewards left as they are: for an evaluation
    :param monitor_dir: where to write ``0.monitor.csv``, as a ``Monitor`` does; ``None``: nowhere
    :raises TypeError: the environment is none
    :raises ValueError: what it returns does not fit its spaces, or an argument is out of its range
    """

    def __init__(
        self,
        env: JaxEnv,
        n_envs: int = 1,
        seed: int | None = None,
        max_episode_steps: int | None = None,
        n_initial_states: int | None = None,
        normalize: "bool | dict[str, Any] | JaxVecEnv" = False,
        monitor_dir: str | None = None,
    ) -> None:
        state_dtypes = checks.follows_protocol(env)
        limits = {"max_episode_steps": max_episode_steps, "n_initial_states": n_initial_states}
        valid.positive_integer(n_envs=n_envs, **{name: limit for name, limit in limits.items() if limit is not None})
        if seed is not None:
            valid.whole_number(0, 2**32 - 1, seed=seed)
        if isinstance(normalize, VecEnv):
            normalize = normalize.unwrapped  # type: ignore[assignment]
        self.statistics_from = normalize if isinstance(normalize, JaxVecEnv) else None
        normalization = checks.normalization(normalize, env.observation_space)
        self.env = env
        self.copies = Copies(env, n_envs, state_dtypes, max_episode_steps, n_initial_states, normalization)
        self.render_mode = "rgb_array" if hasattr(env, "render") else None
        super().__init__(n_envs, checks.normalized_space(env.observation_space, normalization), env.action_space)
        self.state: CopiesState | None = None  # made by reset(): in SB3 a seed takes effect at the next reset
        self.statistics: Statistics | None = None  # to begin with, instead of those of nothing
        self._start_time = time.time()
        self._monitor: ResultsWriter | None = None
        if monitor_dir is not None:
            os.makedirs(monitor_dir, exist_ok=True)
            self._monitor = ResultsWriter(
                os.path.join(monitor_dir, "0"), {"t_start": self._start_time, "env_id": str(env)}
            )
        self._compile()
        self.seed(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: of all random draws from the next reset on; ``None``: the present sequence goes on
        :return: the same, for each copy
        """
        self._seeds = [seed] * self.num_envs
        return self._seeds

    def reset(self) -> Any:
        """
        Begin an episode in each copy.

        :return: observations, shape (n_envs, ...)
        """
        self._take_statistics()
        seed, state = self._seeds[0], self.state
        if seed is not None or state is None:
            # not the key that a model makes from the same seed
            key = jax.random.fold_in(
                jax.random.PRNGKey(np.random.default_rng().integers(2**31) if seed is None else seed), 1
            )
        else:
            key = state.key
        self._reset_seeds()
        if state is None:
            needed = memory.bytes_of(jax.eval_shape(self.copies.reset, key))
            # first those of all processes, of which this one takes its part
            memory.check(needed * jax.process_count(), jax.local_devices()[0], f"{self.num_envs} environments")
        # from the host, wherever they are: arrays that are bound to a device would be compiled for anew
        known = jax.device_get((key, self.statistics if state is None else state.statistics))
        new = self._programs["reset"](*known)
        for leaf in jax.tree.leaves(jax.device_get(new.observations)):
            if not np.isfinite(leaf).all():
                first = int(np.argwhere(~np.isfinite(leaf))[0, 0])
                raise ValueError(f"Environment {first} returned a non-finite observation when it was reset.")
        self.state = new
        return self._on_host(self.state.observations)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Store the actions of the next step.

        :param actions: in the action space, shape (n_envs, ...)
        :raises ValueError: there are not as many as copies, or they are not in the space
        """
        actions = np.asarray(actions)
        if len(actions) != self.num_envs:
            raise ValueError(f"Actions must be {self.num_envs}, one for each copy, but got {len(actions)}.")
        self._actions = checks.actions(actions, self.action_space)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Make the step. A copy whose episode ends begins the next one within the same step.

        :return: observations, float32 rewards and dones, of shape (n_envs, ...), and one info per copy
        :raises ResetNeeded: reset() has not been called yet
        """
        if self.state is None:
            raise ResetNeeded("Call reset() before the first step().")
        self._take_statistics()
        state, outcome = self._programs["step"](self.state, self._actions)
        if self.copies.normalization is not None:
            # here, where it can be told whose it is; who learns from others looks for himself
            for name, finite in (("observation", outcome.finite_observations), ("reward", outcome.finite_rewards)):
                if not np.asarray(finite).all():
                    raise ValueError(
                        f"Environment {int(np.argmin(finite))} returned a non-finite {name}: it is not normalised, and "
                        "the environments stay as they were before the step."
                    )
        self.state = state
        ends = jax.device_get((outcome.rewards, outcome.dones, outcome.truncated, outcome.returns, outcome.lengths))
        rewards, dones, truncated, returns, lengths = ends
        infos = self.infos(dones, truncated, returns, lengths)
        if dones.any():
            last = self._on_host(outcome.next_observations)
            for i in np.flatnonzero(dones):
                infos[i]["terminal_observation"] = jax.tree.map(lambda array: array[i], last)  # noqa: B023
        return self._on_host(self.state.observations), np.array(rewards), np.array(dones), infos

    def infos(
        self, dones: np.ndarray, truncated: np.ndarray, returns: np.ndarray, lengths: np.ndarray
    ) -> list[dict[str, Any]]:
        """
        What SB3 and its ``Monitor`` put into the infos of one step; arrays of shape (n_envs,).

        :param dones: whether an episode ended
        :param truncated: whether a time limit ended it
        :param returns: rewards of the episode up to now, summed
        :param lengths: its steps up to now
        :return: a dictionary for each copy
        """
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            episode = {
                "r": round(float(returns[i]), 6),
                "l": int(lengths[i]),
                "t": round(time.time() - self._start_time, 6),
            }
            infos[i] = {"TimeLimit.truncated": bool(truncated[i]), "episode": episode}
            if self._monitor is not None:
                self._monitor.write_row(episode)
        return infos

    def vec_normalize(self) -> VecNormalize | None:
        """
        :return: ``VecNormalize`` around these environments without their normalisation, with their statistics: to be
            saved, for programs that know no other; ``None`` where nothing is normalised
        """
        settings = self.copies.normalization
        statistics = self.statistics if self.state is None else self.state.statistics
        if settings is None:
            return None
        plain = copy.copy(self)  # the environment is not traced again: EvalCallback asks at each evaluation
        plain.copies, plain.state = dataclasses.replace(self.copies, normalization=None), None
        plain._compile()
        normalizer = VecNormalize(plain, **dataclasses.asdict(settings))
        if statistics is None:
            return normalizer

        def fill(running: RunningMeanStd, moments: Moments) -> None:
            running.mean, running.var = np.asarray(moments.mean, np.float64), np.asarray(moments.variance, np.float64)
            running.count = float(moments.count)

        if statistics.observations is not None:
            if isinstance(normalizer.obs_rms, dict):
                for key, running in normalizer.obs_rms.items():
                    fill(running, statistics.observations[key])
            else:
                fill(normalizer.obs_rms, statistics.observations)
        if statistics.returns is not None:
            fill(normalizer.ret_rms, statistics.returns)
        return normalizer

    def _take_statistics(self) -> None:
        """In an evaluation: those of the environments in training, as they are now."""
        source = None if self.statistics_from is None else self.statistics_from.state
        if source is None or source.statistics is None:
            return
        own = Statistics(source.statistics.observations, jax.numpy.zeros(self.num_envs), None)
        if self.state is None:
            self.statistics = own
        else:
            self.state = self.state.replace(statistics=own)

    def _on_host(self, observations: Any) -> Any:
        # in the space's dtypes, and the caller's own: it may write into them
        def convert(array: jax.Array, space: spaces.Space) -> np.ndarray:
            return np.array(array, dtype=space.dtype)

        if isinstance(self.observation_space, spaces.Dict):
            return {key: convert(observations[key], part) for key, part in self.observation_space.spaces.items()}
        return convert(observations, self.observation_space)

    def close(self) -> None:
        """Close the monitor file, if there is one."""
        if self._monitor is not None:
            self._monitor.close()

    def get_images(self) -> list[np.ndarray | None]:
        """
        :return: a picture of each copy; ``None`` where the environment draws none
        :raises ResetNeeded: reset() has not been called yet
        """
        if self.render_mode is None:
            return [None] * self.num_envs
        if self.state is None:
            raise ResetNeeded("Call reset() before render().")
        states = jax.device_get(self.state.states)
        render = self.env.render  # type: ignore[attr-defined]
        return [render(jax.tree.map(lambda leaf: leaf[i], states)) for i in range(self.num_envs)]  # noqa: B023

    # --- questions about single copies ---

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in self.SHARED_ATTRIBUTES or not hasattr(self.env, attr_name):
            return super().get_attr(attr_name, indices)
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: of the environment: its state is an argument, as for ``render``
        :param method_args: its arguments
        :param indices: of copies
        :param method_kwargs: its arguments by name
        :return: what it returned, for each copy
        """
        if not hasattr(self.env, method_name):
            return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        method = getattr(self.env, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def __getstate__(self) -> dict[str, Any]:
        """
        :return: what pickle and deepcopy take: all but the compiled programs
        """
        return {name: value for name, value in vars(self).items() if name != "_programs"} | {"_monitor": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    def _compile(self) -> None:
        # of this object, so that their memory goes with it; a reset is rare
        self._programs = {
            "reset": jax.jit(self.copies.reset_part, compiler_options=ops.QUICKLY),
            "step": jax.jit(self.copies.step),
        }


def inside_jit(env: VecEnv | None) -> JaxVecEnv | None:
    """
    :param env: environments in any number of wrappers
    :return: the innermost, if they are inside jit
    """
    inner = None if env is None else env.unwrapped
    return inner if isinstance(inner, JaxVecEnv) else None
