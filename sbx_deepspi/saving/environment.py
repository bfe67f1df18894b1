"""The state of environments that a resumed run needs to be the run that was interrupted."""

import dataclasses
import re
import warnings
import zlib
from typing import Any

import jax
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from sbx_deepspi.collect.vec_env import normalizer_of, wrappers_of
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv, inside_jit
from sbx_deepspi.saving import format as checkpoint

NORMALIZATION_SETTINGS = (
    "training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys",
)  # fmt: skip
KNOWN_WRAPPERS = (
    VecCheckNan, VecExtractDictObs, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage, VecVideoRecorder,
)  # fmt: skip
"""Those that keep nothing from step to step, or something that is saved."""


def state_of(env: VecEnv, started: bool) -> dict[str, Any]:
    """
    What can be known of the environments' state, as plain values.

    The statistics of ``VecNormalize`` always; the rest only where every environment has ``get_state()``, which
    returns its state as arrays, numbers, strings, lists and dictionaries, and ``set_state(state)``.

    :param env: what the model learns from
    :param started: whether it has been reset, so that there are episodes
    :return: ``normalization`` (``None`` without ``VecNormalize``), ``episodes`` (``None`` where they cannot be
        restored), and ``inside_jit``, what describes environments inside jit (``None`` for others)
    """
    normalizer = normalizer_of(env)
    return {
        "normalization": None if normalizer is None else normalization_of(normalizer),
        "episodes": _episodes_of(env) if started else None,
        "inside_jit": description_of(env),
    }


def restore(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Put environments into a saved state.

    :param env: as many environments, in the same wrappers
    :param state: what :func:`state_of` returned, with episodes
    """
    episodes = state["episodes"]
    env.reset()  # makes what the wrappers keep; set_state() comes after it
    for i, inner_state in enumerate(episodes["states"]):
        env.env_method("set_state", inner_state, indices=[i])
        if episodes["rewards"] is not None:
            env.env_method("set_wrapper_attr", "rewards", episodes["rewards"][i].tolist(), indices=[i])
        if episodes["elapsed_steps"] is not None:
            env.env_method("set_wrapper_attr", "_elapsed_steps", episodes["elapsed_steps"][i], indices=[i])
    for wrapper, saved in zip(wrappers_of(env), episodes["wrappers"], strict=True):
        for name, array in saved.items():
            _arrays_of(wrapper)[name][...] = array
    normalizer = normalizer_of(env)
    if normalizer is not None and state["normalization"] is not None:
        set_normalization(normalizer, state["normalization"])


def has_seen_nothing(normalizer: VecNormalize) -> bool:
    """
    :param normalizer: with running statistics
    :return: whether they are those of its constructor, which counts a small fraction of an observation
    """
    return all(running.count < 1 for running in statistics_of(normalizer).values())


def normalization_of(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: with running statistics
    :return: its settings and statistics as plain values
    """
    statistics = {
        name: {"mean": running.mean, "var": running.var, "count": running.count}
        for name, running in statistics_of(normalizer).items()
    }
    return {"settings": settings_of(normalizer), "statistics": statistics, "returns": normalizer.returns}


def settings_of(normalizer: VecNormalize) -> dict[str, Any]:
    """
    :param normalizer: of environments
    :return: its arguments, by name
    """
    return {name: getattr(normalizer, name) for name in NORMALIZATION_SETTINGS}


def set_normalization(normalizer: VecNormalize, saved: dict[str, Any]) -> None:
    """
    :param normalizer: gets the statistics; its settings stay
    :param saved: what :func:`normalization_of` returned
    :raises CheckpointError: they are of other observations, or are no statistics
    """
    with checkpoint.building("VecNormalize"):
        own = statistics_of(normalizer)
        for name, values in saved["statistics"].items():
            if name.startswith("obs_rms") and not normalizer.norm_obs:
                warnings.warn(
                    "The model learned from normalised observations, but this VecNormalize has norm_obs=False.",
                    stacklevel=4,
                )
                continue
            mean, var, count = (np.array(values[key], np.float64) for key in ("mean", "var", "count"))
            if name not in own or not (own[name].mean.shape == mean.shape == var.shape):
                raise checkpoint.CheckpointError(
                    f"The checkpoint's VecNormalize statistics {name!r:.80}, of shape {mean.shape}, are not of this "
                    "environment's observations."
                )
            numbers = np.concatenate([mean.ravel(), var.ravel(), count.ravel()])
            if count.shape or not np.isfinite(numbers).all() or (var < 0).any() or count <= 0:
                raise checkpoint.CheckpointError(
                    f"The checkpoint's VecNormalize statistics {name!r} must be finite, with var >= 0 and count > 0."
                )
            own[name].mean, own[name].var, own[name].count = mean, var, float(count)
        returns = np.array(saved["returns"], np.float64)
        if returns.shape == (normalizer.num_envs,) and np.isfinite(returns).all():
            normalizer.returns = returns


def statistics_of(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    """
    :param normalizer: with running statistics
    :return: these, by name
    """
    # without norm_obs there is no obs_rms; of dictionaries of observations, it is a dictionary
    of_observations = getattr(normalizer, "obs_rms", None)
    if isinstance(of_observations, dict):
        named = {f"obs_rms[{key!r}]": running for key, running in of_observations.items()}
    else:
        named = {"obs_rms": of_observations}
    named["ret_rms"] = normalizer.ret_rms
    return {name: running for name, running in named.items() if isinstance(running, RunningMeanStd)}


def load_normalization(path: Any, venv: VecEnv) -> VecNormalize:
    """
    ``VecNormalize`` as it was when a model was saved: SB3's ``VecNormalize.load``, without a pickle.

    :param path: of a model that learned under ``VecNormalize``
    :param venv: environments, not normalised
    :return: the environments, normalised as then
    :raises CheckpointError: the file is none of ours, or its model did not learn under ``VecNormalize``
    """
    contents = checkpoint.read(path, suffix="zip")
    with checkpoint.building("VecNormalize"):
        saved = None if contents.environment is None else contents.environment["normalization"]
        if saved is None:
            raise checkpoint.CheckpointError(
                f"{path} holds no VecNormalize statistics: its model learned without them, or from environments that "
                "normalise inside jit (DeepSPI.load(path, env=make_jax_env(..., normalize=True)) gives them theirs)."
            )
        settings = saved["settings"]
        numbers = [settings[name] for name in ("clip_obs", "clip_reward", "gamma", "epsilon")]
        flags = [settings[name] for name in ("training", "norm_obs", "norm_reward")]
        if not (all(type(flag) is bool for flag in flags) and all(number >= 0 for number in numbers)):
            raise checkpoint.CheckpointError(
                f"The checkpoint's VecNormalize settings must be bools and numbers of at least 0: {settings!r:.200}."
            )
        normalizer = VecNormalize(venv, **settings)
        set_normalization(normalizer, saved)
    return normalizer


def _episodes_of(env: VecEnv) -> dict[str, Any] | None:
    try:
        if getattr(env.unwrapped, "waiting", False):
            raise RuntimeError("a step of theirs is still under way")
        is_inside_jit = inside_jit(env) is not None  # their state is among the tensors
        if not is_inside_jit and not (env.has_attr("get_state") and env.has_attr("set_state")):
            return None
        states = [] if is_inside_jit else env.env_method("get_state")
        monitored = not is_inside_jit and all(env.env_is_wrapped(Monitor))
        rewards = [np.asarray(rewards, np.float64) for rewards in env.get_attr("rewards")] if monitored else None
        # not by the class TimeLimit: RL Zoo puts another in its place, and then Gymnasium's own has no name by which
        # it could be sent to a process
        elapsed_steps = env.get_attr("_elapsed_steps") if env.has_attr("_elapsed_steps") else None
        wrappers = [{name: array.copy() for name, array in _arrays_of(wrapper).items()} for wrapper in wrappers_of(env)]
        episodes = {"states": states, "rewards": rewards, "elapsed_steps": elapsed_steps, "wrappers": wrappers}
        for missing in checkpoint.to_bytes(checkpoint.Checkpoint("VecEnv", {}, episodes, {}))[1]:
            raise checkpoint.CheckpointError(f"{missing.name} = {missing.description} has no plain form")
    except Exception as error:
        # A model is worth more than its environment: RL Zoo, for one, closes the environment before it saves.
        warnings.warn(f"The environment's state could not be saved ({error!r}).", stacklevel=4)
        return None
    for wrapper in wrappers_of(env):
        if type(wrapper) not in KNOWN_WRAPPERS:
            warnings.warn(
                f"What {type(wrapper).__name__} keeps from step to step, if anything, is not saved: a resumed run may "
                "be another one.",
                stacklevel=4,
            )
    return episodes


# --- environments inside jit ------------------------------------------------------------------------


def description_of(env: VecEnv) -> str | None:
    """
    :param env: environments in any number of wrappers
    :return: what tells environments inside jit apart; ``None`` of others
    """
    inner = inside_jit(env)
    if inner is None:
        return None
    copies, wrappers = inner.copies, [type(wrapper).__name__ for wrapper in wrappers_of(env)]
    limits = copies.n_envs, copies.max_episode_steps, copies.n_initial_states, copies.normalization
    return repr((wrappers, describe(inner.env), limits))


def describe(value: Any, depth: int = 4) -> str:
    """
    :param value: an environment, or a part of one
    :param depth: to which parts of parts are looked at
    :return: what it is made of, without addresses in memory: the same in every process
    """
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.asarray(value)
        return f"array({array.dtype}, {array.shape}, {zlib.crc32(array.tobytes())})"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(describe(item, depth - 1) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {describe(item, depth - 1)}' for key, item in value.items())}}}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    parts = getattr(value, "__dict__", {})
    if type(value).__repr__ is not object.__repr__ and not dataclasses.is_dataclass(value):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    inside = (
        ", ".join(f"{name}={describe(part, depth - 1)}" for name, part in sorted(parts.items())) if depth else "..."
    )
    return f"{type(value).__qualname__}({inside})"


def is_same_inside_jit(env: VecEnv, saved: dict[str, Any] | None) -> bool:
    """
    :param env: environments in any number of wrappers
    :param saved: what a file has of the environments that a model learned from
    :return: whether both are inside jit, and the same
    """
    return saved is not None and description_of(env) is not None and description_of(env) == saved.get("inside_jit")


def without_typed_keys(tree: Any) -> Any:
    """
    :param tree: of JAX arrays
    :return: the same with random keys as the numbers that they are
    """
    return jax.tree.map(
        lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, tree
    )


def with_typed_keys(tree: Any, like: Any) -> Any:
    """
    :param tree: what :func:`without_typed_keys` has made of a tree
    :param like: that tree, or one of the same dtypes
    :return: it again, as JAX arrays
    """

    def typed(leaf: Any, spec: Any) -> Any:
        is_key = jax.dtypes.issubdtype(spec.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(leaf, impl=spec.dtype._impl.name) if is_key else jax.numpy.asarray(leaf)

    leaves = map(typed, jax.tree.leaves(tree), jax.tree.leaves(like))
    return jax.tree.unflatten(jax.tree.structure(like), list(leaves))


def state_inside_jit(env: JaxVecEnv, tensors: dict[str, np.ndarray], prefix: str) -> Any:
    """
    :param env: environments inside jit
    :param tensors: their state from a file, by name
    :param prefix: of these names
    :return: their state
    :raises CheckpointError: it is not of these environments
    """
    like = jax.eval_shape(env.copies.reset, jax.ShapeDtypeStruct((2,), np.uint32))
    return with_typed_keys(checkpoint.unflatten(tensors, jax.eval_shape(without_typed_keys, like), prefix), like)


def restore_statistics(env: JaxVecEnv, tensors: dict[str, np.ndarray], prefix: str) -> None:
    """
    Of normalised environments that have seen nothing, as a ``VecNormalize`` gets its statistics.

    :param env: environments inside jit
    :param tensors: the state of such environments from a file, by name
    :param prefix: of these names
    """
    name = f"{prefix}statistics/"
    normalized = any(key.startswith(f"{name}observations") for key in tensors)
    if normalized and (env.copies.normalization is None or not env.copies.normalization.norm_obs):
        warnings.warn(
            "The model learned from observations that were normalised inside jit, but these environments are not: make "
            "them with normalize=True.",
            stacklevel=4,
        )
    if env.copies.normalization is None or env.state is not None:
        return
    like = jax.eval_shape(env.copies.reset, jax.ShapeDtypeStruct((2,), np.uint32)).statistics
    saved = {key: tensor for key, tensor in tensors.items() if key.startswith(name)}
    if not saved:
        return
    saved[f"{name}discounted"] = np.zeros(env.num_envs, np.float32)  # of other episodes, perhaps of other copies
    env.statistics = checkpoint.unflatten(saved, like, name)


def _arrays_of(wrapper: VecEnvWrapper) -> dict[str, Any]:
    """The arrays in which SB3's wrappers keep something from step to step (VecNormalize is treated on its own)."""
    if isinstance(wrapper, VecFrameStack):
        return {"stacked_obs": wrapper.stacked_obs.stacked_obs}
    if isinstance(wrapper, VecMonitor):
        return {"episode_returns": wrapper.episode_returns, "episode_lengths": wrapper.episode_lengths}
    return {}
