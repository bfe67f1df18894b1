"""Whether an environment keeps to the protocol, found out by tracing it: no number is computed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from sbx_deepspi import valid
from sbx_deepspi.collect.normalization import Normalization
from sbx_deepspi.envs.batched import BatchedVecEnv


def action_of(space: spaces.Space) -> jax.ShapeDtypeStruct:
    """
    :param space: of actions
    :return: shape and dtype of one action inside jit
    """
    return jax.ShapeDtypeStruct(space.shape or (), jax.dtypes.canonicalize_dtype(space.dtype))


def follows_protocol(env: Any) -> tuple[Any, ...]:
    """
    :param env: an environment
    :return: dtypes of the leaves of its states after a step
    :raises TypeError: it lacks a method or a space
    :raises ValueError: what its methods return does not fit its spaces, or cannot be traced
    """
    name = type(env).__name__
    lacking = [part for part in ("reset", "step", "observation_space", "action_space") if not hasattr(env, part)]
    if lacking:
        raise TypeError(
            f"{name} has no {' and no '.join(lacking)}: an environment inside jit needs reset(key), step(key, state, "
            "action), observation_space and action_space (see sbx_deepspi.collect.jax_env.JaxEnv)."
        )
    for part, kinds in {
        "observation_space": (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict),
        "action_space": (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    }.items():
        if not isinstance(getattr(env, part), kinds):
            names = ", ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name}.{part} must be one of Gymnasium's {names}, but is {getattr(env, part)!r:.200}.")
    try:
        hash(env)
    except TypeError as error:
        raise TypeError(
            f"{name} has no hash ({error}), by which equal environments share compiled programs: make it a "
            "@dataclass(frozen=True) whose fields are numbers, strings or tuples, or give it __eq__ and __hash__."
        ) from error
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    first = _traced(f"{name}.reset(key)", env.reset, key)
    if not (isinstance(first, tuple) and len(first) == 2):
        raise ValueError(f"{name}.reset(key) must return (observation, state), but returns {_described(first)}.")
    observation, state = first
    _fits(f"{name}.reset(key)'s observation", observation, env.observation_space)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    stepped = _traced(f"{name}.step(key, state, action)", env.step, key, state, action_of(env.action_space))
    if not (isinstance(stepped, tuple) and len(stepped) == 5):
        raise ValueError(
            f"{name}.step(key, state, action) must return (observation, state, reward, terminated, truncated), but "
            f"returns {_described(stepped)}."
        )
    observation, new_state, reward, terminated, truncated = stepped
    _fits(f"{name}.step's observation", observation, env.observation_space)
    _same_state(name, state, new_state)
    for part, value in {"reward": reward, "terminated": terminated, "truncated": truncated}.items():
        if not hasattr(value, "shape") or value.shape != ():
            raise ValueError(f"{name}.step's {part} must be one number, but is {_described(value)}.")
        if part != "reward" and value.dtype != bool:
            raise ValueError(f"{name}.step's {part} must be a bool, but is {_described(value)}.")
    if jnp.issubdtype(reward.dtype, jnp.complexfloating):
        raise ValueError(f"{name}.step's reward must be a real number, but is {_described(reward)}.")
    return tuple(leaf.dtype for leaf in jax.tree.leaves(new_state))


def _traced(call: str, function: Any, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except jax.errors.JAXTypeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{call} cannot be compiled: it needs the value of something that is only known when it runs; use "
            f"jnp.where or jax.lax.cond instead of Python's if, and jnp instead of np ({reason})."
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{call} cannot be traced: {reason:.300}") from error


def _fits(what: str, observation: Any, space: spaces.Space) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
            raise ValueError(
                f"{what} must be a dictionary with {sorted(space.spaces)}, but is {_described(observation)}."
            )
        for key, part in space.spaces.items():
            _fits(f"{what}[{key!r}]", observation[key], part)
        return
    if not hasattr(observation, "shape") or observation.shape != (space.shape or ()):
        raise ValueError(
            f"{what} must have the shape {space.shape or ()} of its space {space}, but is {_described(observation)}."
        )
    assert space.dtype is not None
    choices = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
    if choices and not (jnp.issubdtype(observation.dtype, jnp.integer) or observation.dtype == bool):
        raise ValueError(f"{what} must be {space.dtype}, as its space {space} says, but is {_described(observation)}.")
    if jnp.issubdtype(observation.dtype, jnp.complexfloating):
        raise ValueError(f"{what} must be real numbers, but is {_described(observation)}.")


def _same_state(name: str, before: Any, after: Any) -> None:
    structures = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if structures[0] != structures[1]:
        raise ValueError(
            f"{name}.step must return a state of the same structure as {name}.reset: {structures[0]}, but returns "
            f"{structures[1]}."
        )
    named = jax.tree_util.tree_leaves_with_path(before)
    for (path, old), new in zip(named, jax.tree.leaves(after), strict=True):
        if old.shape != new.shape or not _can_become(old.dtype, new.dtype):
            part = jax.tree_util.keystr(path)
            raise ValueError(
                f"{name}.step must return a state of the same shapes and dtypes as {name}.reset, but state{part} is "
                f"{_described(old)} after reset and {_described(new)} after step."
            )


def _can_become(old: Any, new: Any) -> bool:
    if jax.dtypes.issubdtype(old, jax.dtypes.extended) or jax.dtypes.issubdtype(new, jax.dtypes.extended):
        return old == new
    return np.can_cast(old, new, "same_kind")


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return type(value).__name__


def actions(given: np.ndarray, space: spaces.Space) -> np.ndarray:
    """
    :param given: of N copies
    :param space: of one action
    :return: the same as the environment takes them inside jit
    :raises ValueError: they are not in the space; Box actions may lie outside of its bounds
    """
    spec = action_of(space)
    if given.shape[1:] != spec.shape:
        raise ValueError(f"Actions must have the shape {(len(given), *spec.shape)}, not {given.shape}.")
    if not isinstance(space, spaces.Box):
        first, size = getattr(space, "start", 0), getattr(space, "nvec", getattr(space, "n", 2))
        within = (given >= first) & (given < first + (2 if isinstance(space, spaces.MultiBinary) else size))
        if not np.issubdtype(given.dtype, np.integer) or not within.all():
            raise ValueError(f"Actions must be whole numbers in {space}, but got {given!r:.200}.")
    elif not np.isfinite(given).all():
        raise ValueError(f"Actions must be finite, but got {given!r:.200}.")
    return given.astype(spec.dtype, copy=False)


def normalization(given: Any, space: spaces.Space) -> Normalization | None:
    """
    :param given: True or False, arguments of ``VecNormalize``, or environments that are normalised themselves
    :param space: of one observation
    :return: what is normalised, and how; ``None``: nothing
    :raises TypeError: there is no such argument
    :raises ValueError: observations are no numbers that can be normalised
    """
    if given is False or given is None:
        return None
    if isinstance(given, BatchedVecEnv):
        source = given.copies.normalization  # type: ignore[attr-defined]
        if source is None:
            raise ValueError("normalize names environments that are not normalised themselves: leave it at False.")
        if given.observation_space != space:
            raise ValueError(f"normalize names environments that observe {given.observation_space}, not {space}.")
        return dataclasses.replace(source, training=False, norm_reward=False)
    if given is not True and not isinstance(given, dict):
        raise TypeError(f"normalize must be True, False, a dictionary, or environments, but got {given!r:.80}.")
    arguments = given if isinstance(given, dict) else {}
    taken = [field.name for field in dataclasses.fields(Normalization)]
    for name in arguments.keys() - set(taken):
        raise TypeError(f"normalize takes VecNormalize's {', '.join(taken)}, but got {name!r}.")
    made = Normalization(**arguments)
    valid.positive(clip_obs=made.clip_obs, clip_reward=made.clip_reward, epsilon=made.epsilon)
    valid.in_unit_interval(gamma=made.gamma)
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if made.norm_obs and not all(isinstance(part, spaces.Box) for part in parts):
        raise ValueError(
            f"Only Box observations can be normalised, but they are {space}: set normalize=dict(norm_obs=False)."
        )
    return made


def normalized_space(space: spaces.Space, normalization: Normalization | None) -> spaces.Space:
    """
    :param space: of one observation, as the environment gives it
    :param normalization: of observations and rewards, if any
    :return: of one observation as it leaves the copies
    """
    # bounds stay the environment's, as VecNormalize leaves them
    if normalization is None or not normalization.norm_obs or space.dtype == np.float32:
        return space
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: normalized_space(part, normalization) for key, part in space.spaces.items()})
    return spaces.Box(-normalization.clip_obs, normalization.clip_obs, space.shape, np.float32)
