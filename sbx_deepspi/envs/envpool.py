"""EnvPool's environments as one Stable-Baselines3 ``VecEnv``."""

import difflib
import os
import time
from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sbx_deepspi.envs.batched import BatchedVecEnv

# The settings of the paper, and of SB3's ``make_atari_env`` with four stacked frames.
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
    "max_episode_steps": 27_000,  # the 108,000 frames after which ale-py's ids end a game
}
# Every form of Atari id with a fixed frame-skip, and its probability of repeating the last action.
ATARI_IDS = {
    "{}-v5": 0.0,
    "{}NoFrameskip-v4": 0.0,
    "{}Deterministic-v4": 0.0,
    "{}NoFrameskip-v0": 0.25,
    "{}Deterministic-v0": 0.25,
    "ALE/{}-v5": 0.25,
}
# EnvPool's options that are not fields of its configuration, and fields that the adapter sets itself.
RENDER_OPTIONS = {"from_pixels", "render_mode", "render_width", "render_height", "render_camera_id"}
RESERVED_FIELDS = {"num_envs", "batch_size", "seed", "env_seed", "gym_reset_return_info", "task"}


def make_envpool_env(
    env_id: str,
    n_envs: int = 128,
    seed: int | None = None,
    monitor_dir: str | None = None,
    **kwargs: Any,
) -> "EnvPoolVecEnv":
    """
    Run many copies of one of EnvPool's environments, in parallel and in C++, as an SB3 ``VecEnv``.

    Atari games answer to EnvPool's ids (``Breakout-v5``) and to those of the Arcade Learning Environment
    (``BreakoutNoFrameskip-v4``, ``ALE/Breakout-v5``). All are preprocessed for training: 84x84 grey frames,
    four stacked, channels first; a frame-skip of four; at a reset up to 30 no-ops and FIRE; episodes that end
    with a life; rewards clipped to their sign. The id decides about sticky actions: ``ALE/Breakout-v5`` and
    each ``-v0`` repeat the last action with probability 0.25, the others never.

    :param env_id: the id of the environment
    :param n_envs: how many copies to run
    :param seed: the seed of the first copy, the others count up from it; None draws one
    :param monitor_dir: the folder that gets a ``0.monitor.csv`` with one line for each finished game
    :param kwargs: EnvPool's own options, which override the settings of the id (e.g. ``episodic_life=False``)
    :return: the environments; their episodes are monitored already
    :raises ValueError: EnvPool has no such environment, or not with the settings that the id means
    :raises TypeError: EnvPool has no such option for this environment
    :raises ImportError: EnvPool is not installed
    """
    task, settings = resolve_env_id(env_id)
    return EnvPoolVecEnv(task, n_envs, seed, monitor_dir, **{**settings, **kwargs})


def resolve_env_id(env_id: str) -> tuple[str, dict[str, Any]]:
    """
    Find the environment that an id means, and the settings it means for it.

    :param env_id: an id of EnvPool or of the Arcade Learning Environment
    :return: EnvPool's id, and the options to make it with
    :raises ValueError: EnvPool has no such environment, or not with the settings that the id means
    """
    envpool = import_envpool()
    registered = envpool.registration.registry.specs
    # From the name of a game in ids to EnvPool's id for it.
    games = {task.removesuffix("-v5"): task for task in registered if registered[task][0] == "envpool.atari"}
    games["JamesBond"] = games["Jamesbond"]

    for form, sticky in ATARI_IDS.items():
        prefix, suffix = form.split("{}")
        game = env_id.removeprefix(prefix).removesuffix(suffix)
        if game in games and env_id == form.format(game):
            settings = {**ATARI_SETTINGS, "repeat_action_probability": sticky}
            if env_id.startswith("SpaceInvadersDeterministic"):
                # With every fourth frame the lasers, which blink, would be invisible.
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
    Import EnvPool, or say what to do without it.

    :return: the module
    :raises ImportError: there is none
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

    It keeps SB3's promises where EnvPool makes others: a finished environment starts again within the same
    step, its last observation is ``info["terminal_observation"]``, and ``info["TimeLimit.truncated"]`` tells
    a time limit from an end. As under SB3's ``Monitor``, ``info["episode"]`` comes at the end of a whole
    game, however many lives it took, with the sum of the rewards from before their clipping. Its length
    counts frames where EnvPool skips some (Atari: four a step), as it does with SB3's ``make_atari_env``, whose
    ``Monitor`` sits below the frame-skip. ``reset()`` always begins new games.

    :param task: EnvPool's id of the environment
    :param n_envs: how many copies to run
    :param seed: the seed of the first copy, the others count up from it; None draws one
    :param monitor_dir: the folder that gets a ``0.monitor.csv`` with one line for each finished game
    :param settings: EnvPool's options
    :raises TypeError: EnvPool has no such option for this environment
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
        # Left to itself, EnvPool starts a thread for each core, also for those this process may not use.
        self.settings = {"num_threads": min(n_envs, _available_cores()), **settings}
        self.render_mode = settings.get("render_mode")
        super().__init__(n_envs, spec.observation_space, _sb3_action_space(spec.action_space))
        self._pool: Any = None  # made by reset(), which knows the seeds
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

    def reset(self) -> VecEnvObs:
        """
        Begin new games in all environments.

        :return: their first observations, shape (n_envs, ...)
        """
        if self._seeds[0] is not None:
            # EnvPool is seeded once, as it is made, and with no more than 31 bits.
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
        Take note of the actions of the next step.

        :param actions: shape (n_envs, ...)
        :raises ValueError: their shape or dtype is wrong, or one is not in the action space
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
            (n_envs,), and an info for each environment
        """
        obs, rewards, terminated, truncated, info = self._running_pool().step(self._actions)
        dones = terminated | truncated
        self._scores += info.get("reward", rewards)  # Atari's, from before their clipping
        self._lengths += 1
        if self._lives is not None:
            # Where an end and the time limit coincide, EnvPool tells the limit, SB3 the end.
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
        Start the finished environments again, and write into the step's results what SB3 expects of it.

        :param finished: the indices of the environments
        :param obs: the step's observations, in which the first ones replace the last ones
        :param infos: the step's infos
        """
        last_obs = _take(obs, finished)
        # The step after an end ignores its action and restarts. The pool's reset() would end the whole game
        # where only a life is lost.
        first_obs, _, _, _, info = self._pool.step(self._actions[finished], finished)
        _put(obs, finished, first_obs)
        game_over = info["elapsed_step"] == 0
        if self._lives is not None:
            # Where a game ends in the no-ops after a lost life (often in RoadRunner), EnvPool goes on to the
            # next one without a word.
            game_over |= info["lives"] > self._lives[finished]
            self._lives[finished] = info["lives"]
        for i, (env, reset_info) in enumerate(zip(finished, _split(info), strict=True)):
            infos[env]["terminal_observation"] = _take(last_obs, i)
            if game_over[i]:
                infos[env]["episode"] = self._finish_game(env)
            self.reset_infos[env] = reset_info

    def _finish_game(self, env: int) -> dict[str, float]:
        """
        Close the account of a game.

        :param env: the index of the environment
        :return: score, length and time, as SB3's ``Monitor`` gives them
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
        self._pool = None  # its threads end with it
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
    """Say the same in spaces that SB3's policies know: boxes of float32, and none of integers."""
    if not isinstance(space, spaces.Box):
        return space
    if np.issubdtype(space.dtype, np.integer):
        return spaces.MultiDiscrete(space.high - space.low + 1)
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))


def _action_bounds(space: spaces.Space) -> tuple[Any, Any]:
    """The lowest and the highest action, with room for the rounding of a rescaled one."""
    if isinstance(space, spaces.Discrete):
        return 0, space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return 0, space.nvec - 1
    assert isinstance(space, spaces.Box)
    rounding = 1e-6 * (space.high - space.low)
    return space.low - rounding, space.high + rounding


def _split(info: dict[str, Any]) -> list[dict[str, Any]]:
    """From one dictionary of arrays to a dictionary for each environment."""
    arrays = {name: value for name, value in info.items() if isinstance(value, np.ndarray)}
    columns = [value.tolist() if value.ndim == 1 else value for value in arrays.values()]
    return [dict(zip(arrays, row, strict=True)) for row in zip(*columns, strict=True)]


def _take(obs: VecEnvObs, index: Any) -> Any:
    """The observations of some environments, copied where there are several."""
    if isinstance(obs, dict):
        return {name: _take(value, index) for name, value in obs.items()}
    return obs[index]


def _put(obs: Any, index: np.ndarray, values: Any) -> None:
    """The other way round: write the observations of some environments."""
    if isinstance(obs, dict):
        for name in obs:
            _put(obs[name], index, values[name])
    else:
        obs[index] = values
