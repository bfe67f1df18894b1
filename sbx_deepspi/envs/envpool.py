"""EnvPool's environments as one Stable-Baselines3 ``VecEnv``."""

import difflib
import os
import time
from collections.abc import Collection
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sbx_deepspi.envs.batched import BatchedVecEnv

# The paper's settings. SB3's ``make_atari_env`` with four stacked frames has the same.
ATARI_SETTINGS: dict[str, Any] = {
    "img_height": 84,
    "img_width": 84,
    "gray_scale": True,
    "stack_num": 4,
    "frame_skip": 4,
    "noop_max": 30,
    "use_fire_reset": True,
    "episodic_life": True,
    "reward_clip": True,
    "full_action_space": False,
    "max_episode_steps": 27_000,  # 108,000 frames, the time limit of ale-py's ids
}
# Each form of Atari id that has a fixed frame-skip, and its probability of repeating the last action.
ATARI_IDS = {
    "{}-v5": 0.0,
    "{}NoFrameskip-v4": 0.0,
    "{}Deterministic-v4": 0.0,
    "{}NoFrameskip-v0": 0.25,
    "{}Deterministic-v0": 0.25,
    "ALE/{}-v5": 0.25,
}
# Options of EnvPool that are not fields of its configuration
RENDER_OPTIONS = {"from_pixels", "render_mode", "render_width", "render_height", "render_camera_id"}
# Fields of its configuration that the adapter sets itself
RESERVED_FIELDS = {"num_envs", "batch_size", "seed", "env_seed", "gym_reset_return_info", "task"}


def make_envpool_env(
    env_id: str,
    n_envs: int = 128,
    seed: int | None = None,
    monitor_dir: str | None = None,
    **kwargs: Any,
) -> "EnvPoolVecEnv":
    """
    Run many copies of one EnvPool environment, in parallel and in C++, as an SB3 ``VecEnv``.

    Atari games have EnvPool's ids (``Breakout-v5``) and those of the Arcade Learning Environment
    (``BreakoutNoFrameskip-v4``, ``ALE/Breakout-v5``). All ids give the preprocessing used in training: 84x84 grey
    frames, four of them stacked, channels first; a frame-skip of four; up to 30 no-ops and FIRE after a reset; an
    episode ends when a life is lost; rewards are clipped to their sign. Sticky actions depend on the id:
    ``ALE/Breakout-v5`` and all ids ending in ``-v0`` repeat the last action with probability 0.25, the others never.

    :param env_id: the id of the environment
    :param n_envs: number of copies
    :param seed: the seed of the first copy; each further copy has the next higher one. None draws one.
    :param monitor_dir: the folder for a ``0.monitor.csv`` with one line per finished game
    :param kwargs: EnvPool's own options, such as ``episodic_life=False``; they override the settings of the id
    :return: the environments; they need no ``Monitor``
    :raises ValueError: EnvPool does not have this environment, or not with the settings that the id stands for
    :raises TypeError: this environment does not have such an option
    :raises ImportError: EnvPool is not installed
    """
    task, settings = resolve_env_id(env_id)
    return EnvPoolVecEnv(task, n_envs, seed, monitor_dir, **{**settings, **kwargs})


def resolve_env_id(env_id: str) -> tuple[str, dict[str, Any]]:
    """
    Find the environment and the settings that an id stands for.

    :param env_id: an id of EnvPool or of the Arcade Learning Environment
    :return: EnvPool's id, and the options for making the environment
    :raises ValueError: EnvPool does not have this environment, or not with the settings that the id stands for
    """
    envpool = import_envpool()
    registered = envpool.registration.registry.specs
    # The name of a game as ids have it -> EnvPool's id
    games = {task.removesuffix("-v5"): task for task in registered if registered[task][0] == "envpool.atari"}
    games["JamesBond"] = games["Jamesbond"]

    for form, sticky in ATARI_IDS.items():
        prefix, suffix = form.split("{}")
        game = env_id.removeprefix(prefix).removesuffix(suffix)
        if game in games and env_id == form.format(game):
            settings = {**ATARI_SETTINGS, "repeat_action_probability": sticky}
            if env_id.startswith("SpaceInvadersDeterministic"):
                # Lasers blink, and would never be visible in every fourth frame
                settings.update(frame_skip=3, max_episode_steps=36_000)
            return games[game], settings
    if env_id in registered:
        return env_id, {}

    game, _, rest = env_id.removeprefix("ALE/").partition("-")
    if game in games and rest.startswith("ram"):
        raise ValueError(f"EnvPool shows Atari's screen, not the RAM of '{env_id}': use '{game}-v5'.")
    if game in games and rest in ("v0", "v4"):
        raise ValueError(f"'{env_id}' skips frames at random, EnvPool cannot: use '{game}NoFrameskip-{rest}'.")
    known = [*registered, *(form.format(game) for form in ATARI_IDS for game in games)]
    raise ValueError(f"EnvPool has no environment '{env_id}'{_did_you_mean(env_id, known)}")


def import_envpool() -> ModuleType:
    """
    Import EnvPool, or raise an error that says what to do without it.

    :return: the module
    :raises ImportError: EnvPool is not installed
    """
    try:
        import envpool
    except ImportError as error:
        raise ImportError(
            'EnvPool is missing: on Linux, run `pip install "sbx-deepspi[atari]"`. Where it has no wheel, '
            "use `make_atari_env` from `stable_baselines3.common.env_util`, inside a `VecFrameStack` of 4."
        ) from error
    return envpool


class EnvPoolVecEnv(BatchedVecEnv):
    """
    A synchronous EnvPool behind SB3's interface.

    It behaves as SB3's environments do where EnvPool does not: a finished environment restarts within the same step,
    ``info["terminal_observation"]`` is its last observation, and ``info["TimeLimit.truncated"]`` says whether the time
    limit ended the episode. As with SB3's ``Monitor``, ``info["episode"]`` comes at the end of a whole game, not of a
    life, and sums the rewards before they are clipped. For Atari its length is in frames, four per step, as with SB3's
    ``make_atari_env``. ``reset()`` always begins new games.

    :param task: EnvPool's id of the environment
    :param n_envs: number of copies
    :param seed: the seed of the first copy; each further copy has the next higher one. None draws one.
    :param monitor_dir: the folder for a ``0.monitor.csv`` with one line per finished game
    :param settings: EnvPool's options
    :raises TypeError: this environment does not have such an option
    :raises ValueError: the environment has several players
    """

    def __init__(
        self,
        task: str,
        n_envs: int = 128,
        seed: int | None = None,
        monitor_dir: str | None = None,
        **settings: Any,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, not {n_envs}.")
        make_spec = import_envpool().make_spec
        options = set(make_spec(task)._config_keys) - RESERVED_FIELDS | RENDER_OPTIONS
        for name in settings.keys() - options:
            hint = _did_you_mean(name, options | {"n_envs", "seed", "monitor_dir"})
            raise TypeError(f"'{task}' has no keyword '{name}'{hint}")
        spec = make_spec(task, **settings)
        if spec.config.max_num_players > 1:
            raise ValueError(f"'{task}' has several players, SB3 trains one.")

        self.task = task
        # EnvPool's default is one thread per core of the machine, including cores that this process may not use
        self.settings = {"num_threads": min(n_envs, _available_cores()), **settings}
        self.render_mode = settings.get("render_mode")
        super().__init__(n_envs, spec.observation_space, _sb3_action_space(spec.action_space))
        self._pool: Any = None  # made by reset(): in SB3 a seed takes effect at the next reset
        self._lowest_action, self._highest_action = _action_bounds(self.action_space)
        self._episodic_life: bool = getattr(spec.config, "episodic_life", False)
        is_atari = import_envpool().registration.registry.specs[task][0] == "envpool.atari"
        self._frames_per_step: int = spec.config.frame_skip if is_atari else 1
        self._scores = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=int)
        self._start_time = time.time()
        self._results_writer: ResultsWriter | None = None
        if monitor_dir is not None:
            header: dict[str, float | str] = {"t_start": self._start_time, "env_id": task}
            self._results_writer = ResultsWriter(os.path.join(monitor_dir, "0"), header)
        self.seed(seed)

    def __reduce__(self) -> tuple[Any, ...]:
        """
        :return: what pickle and deepcopy make a copy from: the same environments with new seeds, to be reset first.
            EnvPool cannot copy its games; nor is there a second writer of the monitor's file
        """
        return partial(type(self), **self.settings), (self.task, self.num_envs)

    def reset(self) -> VecEnvObs:
        """
        Begin new games in all environments.

        :return: their first observations, shape (n_envs, ...)
        """
        if self._seeds[0] is not None:
            # EnvPool takes its seeds only when it is made, and only 31 bits of each
            seeds = [seed % 2**31 for seed in self._seeds if seed is not None]
            make = import_envpool().make_gymnasium
            self._pool = make(self.task, num_envs=self.num_envs, env_seed=seeds, **self.settings)
            self._reset_seeds()
        obs, info = self._running_pool().reset()
        self.reset_infos = _split(info)
        self._lives: np.ndarray | None = info.get("lives")
        self._scores[:] = 0
        self._lengths[:] = 0
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """
        Store the actions of the next step.

        :param actions: shape (n_envs, ...)
        :raises ValueError: their shape or dtype is wrong, or one of them is not in the action space
        """
        actions = np.asarray(actions)
        shape = (self.num_envs, *(self.action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"Actions must have the shape {shape}, not {actions.shape}.")
        if not isinstance(self.action_space, spaces.Box) and not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"Actions must be integers, not {actions.dtype}.")
        if not np.all((actions >= self._lowest_action) & (actions <= self._highest_action)):
            raise ValueError(f"Some action is not in {self.action_space}: {actions}.")
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Make the step.

        :return: observations of shape (n_envs, ...), rewards (clipped if the settings say so) and dones of shape
            (n_envs,), and one info per environment
        """
        obs, rewards, terminated, truncated, info = self._running_pool().step(self._actions)
        dones = terminated | truncated
        self._scores += info.get("reward", rewards)  # Atari's info has the rewards before clipping
        self._lengths += 1
        if self._lives is not None:
            # If an episode ends exactly at the time limit, EnvPool reports the limit and SB3 the end
            truncated &= info["terminated"] == 0
            if self._episodic_life:
                truncated &= info["lives"] >= self._lives
            self._lives = info["lives"]
        infos = _split({**info, "TimeLimit.truncated": truncated})
        if dones.any():
            self._restart(np.flatnonzero(dones).astype(np.int32), obs, infos)
        return obs, rewards, dones, infos

    def _restart(self, finished: np.ndarray, obs: VecEnvObs, infos: list[dict[str, Any]]) -> None:
        """
        Restart the finished environments, and change the step's results to what SB3 expects.

        :param finished: the indices of the finished environments
        :param obs: the step's observations; those of finished environments become the first of their next episode
        :param infos: the step's infos; those of finished environments get the entries that SB3 and its ``Monitor`` add
        """
        last_obs = _take(obs, finished)
        # EnvPool ignores the action of the step after an end and restarts instead. Its reset() would begin a new game
        # even if only a life was lost.
        first_obs, _, _, _, info = self._pool.step(self._actions[finished], finished)
        _put(obs, finished, first_obs)
        game_over = info["elapsed_step"] == 0
        if self._lives is not None:
            # A game may end in the no-ops after a lost life (often in RoadRunner): EnvPool then begins the next game
            # and does not report the end
            game_over |= info["lives"] > self._lives[finished]
            self._lives[finished] = info["lives"]
        for i, (env, reset_info) in enumerate(zip(finished, _split(info), strict=True)):
            infos[env]["terminal_observation"] = _take(last_obs, i)
            if game_over[i]:
                infos[env]["episode"] = self._finish_game(env)
            self.reset_infos[env] = reset_info

    def _finish_game(self, env: int) -> dict[str, float]:
        """
        Report a finished game, and begin to count the next one.

        :param env: the index of the environment
        :return: score, length and time, as SB3's ``Monitor`` reports them
        """
        seconds = time.time() - self._start_time
        episode = {
            "r": round(float(self._scores[env]), 6),
            "l": int(self._lengths[env]) * self._frames_per_step,
            "t": round(seconds, 6),
        }
        if self._results_writer is not None:
            self._results_writer.write_row(episode)
        self._scores[env] = 0
        self._lengths[env] = 0
        return episode

    def close(self) -> None:
        self._pool = None  # this also ends its threads
        if self._results_writer is not None:
            self._results_writer.close()

    def get_images(self) -> list[np.ndarray | None]:
        return list(self._running_pool().render(np.arange(self.num_envs)))

    def _running_pool(self) -> Any:
        if self._pool is None:
            raise RuntimeError("The environments are not running: call reset() first, and make new ones after close().")
        return self._pool


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _did_you_mean(word: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else "."


def _sb3_action_space(space: spaces.Space) -> spaces.Space:
    """The same actions in a space that SB3's policies support: a box is float32, a box of integers is MultiDiscrete."""
    if not isinstance(space, spaces.Box):
        return space
    if np.issubdtype(space.dtype, np.integer):
        return spaces.MultiDiscrete(np.asarray(space.high) - np.asarray(space.low) + 1)
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))


def _action_bounds(space: spaces.Space) -> tuple[Any, Any]:
    """The lowest and the highest action, with a tolerance for rounding in rescaled actions."""
    if isinstance(space, spaces.Discrete):
        return 0, int(space.n) - 1
    if isinstance(space, spaces.MultiDiscrete):
        return 0, np.subtract(space.nvec, 1)
    assert isinstance(space, spaces.Box)
    rounding = 1e-6 * (space.high - space.low)
    return space.low - rounding, space.high + rounding


def _split(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn one dictionary of arrays into one dictionary per environment."""
    arrays = {name: value for name, value in info.items() if isinstance(value, np.ndarray)}
    columns = [value.tolist() if value.ndim == 1 else value for value in arrays.values()]
    return [dict(zip(arrays, row, strict=True)) for row in zip(*columns, strict=True)]


def _take(obs: VecEnvObs, index: Any) -> Any:
    """The observations at an index (a view) or at several indices (a copy)."""
    if isinstance(obs, dict):
        return {name: _take(value, index) for name, value in obs.items()}
    return obs[index]


def _put(obs: Any, index: np.ndarray, values: Any) -> None:
    """Write ``values`` into the observations of some environments."""
    if isinstance(obs, dict):
        for name in obs:
            _put(obs[name], index, values[name])
    else:
        obs[index] = values
