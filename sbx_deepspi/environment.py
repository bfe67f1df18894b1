"""The state of the environment a model learns from: what a resumed run needs to be the run that was interrupted."""

import warnings
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize

from sbx_deepspi import checkpoint

NORMALIZATION_SETTINGS = (
    "training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys",
)  # fmt: skip


def state_of(env: VecEnv, started: bool) -> dict[str, Any]:
    """
    What can be known of the environments' state, as plain values.

    The statistics of ``VecNormalize`` always; the rest only where every environment has ``get_state()``, which
    returns its state as arrays, numbers, strings, lists and dictionaries, and ``set_state(state)``.

    :param env: what the model learns from
    :param started: whether it has been reset, so that there are episodes
    :return: ``normalization`` (``None`` without ``VecNormalize``) and ``episodes`` (``None`` where they cannot be
        restored)
    """
    normalizer = next((wrapper for wrapper in wrappers_of(env) if isinstance(wrapper, VecNormalize)), None)
    return {
        "normalization": None if normalizer is None else normalization_of(normalizer),
        "episodes": _episodes_of(env) if started else None,
    }


def restore(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Put environments into a saved state.

    :param env: as many environments, in the same wrappers
    :param state: what :func:`state_of` returned
    """
    episodes = state["episodes"]
    if episodes is not None:
        env.reset()  # makes what the wrappers keep; set_state() comes after it
        for i, inner_state in enumerate(episodes["states"]):
            env.env_method("set_state", inner_state, indices=[i])
            if episodes["rewards"] is not None:
                env.env_method("set_wrapper_attr", "rewards", list(episodes["rewards"][i]), indices=[i])
        for wrapper, saved in zip(wrappers_of(env), episodes["wrappers"], strict=True):
            for name, array in saved.items():
                _arrays_of(wrapper)[name][...] = array
    for wrapper in wrappers_of(env):
        if isinstance(wrapper, VecNormalize) and state["normalization"] is not None:
            set_normalization(wrapper, state["normalization"])


def wrappers_of(env: VecEnv) -> list[VecEnvWrapper]:
    """
    :param env: environments in any number of wrappers
    :return: the wrappers, from the outermost
    """
    wrappers = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers


def normalization_of(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: with running statistics
    :return: its settings and statistics as plain values
    """
    settings = {name: getattr(normalizer, name) for name in NORMALIZATION_SETTINGS}
    statistics = {
        name: {"mean": running.mean, "var": running.var, "count": running.count}
        for name in ("obs_rms", "ret_rms")
        if isinstance(running := getattr(normalizer, name, None), RunningMeanStd)
    }
    return {"settings": settings, "statistics": statistics, "returns": normalizer.returns}


def set_normalization(normalizer: VecNormalize, saved: dict[str, Any]) -> None:
    """
    :param normalizer: gets the statistics; its settings stay
    :param saved: what :func:`normalization_of` returned
    :raises CheckpointError: they are of other observations
    """
    for name, values in saved["statistics"].items():
        running = getattr(normalizer, name, None)
        if not isinstance(running, RunningMeanStd) or running.mean.shape != values["mean"].shape:
            raise checkpoint.CheckpointError(
                f"The checkpoint's VecNormalize statistics {name!r}, of shape {values['mean'].shape}, are not of this "
                "environment's observations."
            )
        vars(running).update(values)
    if len(saved["returns"]) == normalizer.num_envs:
        normalizer.returns = saved["returns"].copy()


def load_normalization(path: Any, venv: VecEnv) -> VecNormalize:
    """
    ``VecNormalize`` as it was when a model was saved: SB3's ``VecNormalize.load``, without a pickle.

    :param path: of a model that learned under ``VecNormalize``
    :param venv: environments, not normalised
    :return: the environments, normalised as then
    :raises CheckpointError: the file is none of ours, or its model did not learn under ``VecNormalize``
    """
    saved = (checkpoint.read(path, suffix="zip").environment or {}).get("normalization")
    if saved is None:
        raise checkpoint.CheckpointError(f"{path} holds no VecNormalize statistics: its model learned without them.")
    normalizer = VecNormalize(venv, **saved["settings"])
    set_normalization(normalizer, saved)
    return normalizer


def _episodes_of(env: VecEnv) -> dict[str, Any] | None:
    try:
        if not (env.has_attr("get_state") and env.has_attr("set_state")):
            return None
        states = env.env_method("get_state")
        monitored = all(env.env_is_wrapped(Monitor))
        rewards = [list(rewards) for rewards in env.get_attr("rewards")] if monitored else None
    except Exception as error:
        # A model is worth more than its environment: RL Zoo, for one, closes the environment before it saves.
        warnings.warn(f"The environment's state could not be saved ({error!r}).", stacklevel=4)
        return None
    wrappers = [{name: array.copy() for name, array in _arrays_of(wrapper).items()} for wrapper in wrappers_of(env)]
    return {"states": states, "rewards": rewards, "wrappers": wrappers}


def _arrays_of(wrapper: VecEnvWrapper) -> dict[str, Any]:
    """The arrays in which SB3's wrappers keep something from step to step (VecNormalize is treated on its own)."""
    if isinstance(wrapper, VecFrameStack):
        return {"stacked_obs": wrapper.stacked_obs.stacked_obs}
    if isinstance(wrapper, VecMonitor):
        return {"episode_returns": wrapper.episode_returns, "episode_lengths": wrapper.episode_lengths}
    return {}
