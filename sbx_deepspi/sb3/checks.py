"""What can be wrong with the user's input, each in one sentence: what it is, what was given, what to do."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from gymnasium import spaces


def not_supported(**arguments: tuple[Any, Any]) -> None:
    """
    :param arguments: name → (value given, the only value supported)
    :raises ValueError: at the first that differs
    """
    for name, (given, supported) in arguments.items():
        if given != supported:
            raise ValueError(f"DeepSPI does not support {name}={given!r}: leave it at {supported!r}.")


def in_unit_interval(**numbers: float) -> None:
    """
    :param numbers: name → value
    :raises ValueError: at the first outside [0, 1]
    """
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], but got {number!r}.")


def one_of(names: Iterable[str], **choices: str) -> None:
    """
    :param names: what can be chosen
    :param choices: name → value
    :raises ValueError: at the first that is not among them
    """
    for name, choice in choices.items():
        if choice not in names:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, but got {choice!r}.")


def positive_integer(**numbers: int) -> None:
    """
    :param numbers: name → value
    :raises ValueError: at the first that is not a whole number of at least 1
    """
    for name, number in numbers.items():
        if not (isinstance(number, (int, np.integer)) and number >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, but got {number!r}.")


def positive(**numbers: Any) -> None:
    """
    :param numbers: name → value; ``None`` and schedules are left to themselves
    :raises ValueError: at the first that is not positive
    """
    for name, number in numbers.items():
        if isinstance(number, (int, float)) and not number > 0:
            raise ValueError(f"{name} must be positive, but got {number!r}.")


def batch_size(batch_size: int, n_steps: int, n_envs: int) -> None:
    """
    SB3's warning where a rollout does not come out even.

    :param batch_size: transitions in a minibatch
    :param n_steps: of each environment in a rollout
    :param n_envs: number of environments
    """
    buffer_size = n_steps * n_envs
    if buffer_size % batch_size:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, but because a rollout has `n_steps * n_envs = "
            f"{buffer_size}` transitions, after every {buffer_size // batch_size} untruncated mini-batches there will "
            f"be a truncated mini-batch of size {buffer_size % batch_size}. We recommend a `batch_size` that is a "
            f"factor of `n_steps * n_envs` (n_steps={n_steps} and n_envs={n_envs}).",
            stacklevel=4,
        )


def rollout_size(n_steps: int, n_envs: int) -> None:
    """
    :param n_steps: of each environment in a rollout
    :param n_envs: number of environments
    :raises ValueError: JAX cannot count its transitions
    """
    if n_steps * n_envs >= 2**31:
        raise ValueError(f"A rollout must have less than 2^31 transitions, but got n_steps={n_steps}, n_envs={n_envs}.")


def jax_device(device: Any) -> jax.Device:
    """
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"``, ``"gpu"`` or a ``torch.device``
    :return: the device on which JAX computes
    :raises ValueError: JAX has no such device
    """
    name, _, index = str(device).partition(":")
    if name == "auto":
        return jax.devices()[0]
    platform = {"cuda": "gpu"}.get(name, name)
    try:
        return jax.devices(platform)[int(index or 0)]
    except (RuntimeError, IndexError, ValueError):
        raise ValueError(
            f"JAX has no device {str(device)!r} here, only {', '.join(map(str, jax.devices()))}: "
            "use device='auto', or install JAX for your accelerator (pip install 'jax[cuda12]')."
        ) from None


def supported_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param observation_space: the environment's
    :param action_space: the environment's
    :raises ValueError: DeepSPI cannot learn from these spaces
    """
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(
            f"DeepSPI needs Box observations (vectors or images), but got {observation_space}: "
            "wrap each environment in gymnasium.wrappers.FlattenObservation before it goes into a VecEnv."
        )
    match action_space:
        case spaces.Discrete(start=0) | spaces.Box():
            return
        case spaces.MultiDiscrete() if action_space.nvec.ndim == 1 and not action_space.start.any():
            return
        case spaces.MultiBinary() if isinstance(action_space.n, int):
            return
    raise ValueError(
        "DeepSPI needs Box, Discrete (from 0), one-dimensional MultiDiscrete (from 0) or one-dimensional MultiBinary "
        f"actions, but got {action_space}: wrap the environment so that its actions take one of these forms."
    )


def reachable(conditions: Iterable[str], gamma: float, all_actions: bool, unbounded: dict[str, str]) -> None:
    """
    :param conditions: of a certificate, that training is to be held to
    :param gamma: γ
    :param all_actions: whether importance ratios are over every action
    :param unbounded: conditions that networks of this kind never meet → what is unbounded
    :raises ValueError: no update could ever meet one of them
    """
    conditions = set(conditions)
    if not gamma < 1 and conditions & {"importance_ratio", "finite"}:
        raise ValueError(
            f"With gamma={gamma!r} the bound means nothing, since it needs importance ratios below 1/γ: "
            "choose a gamma below 1, or do not require 'importance_ratio' or 'finite'."
        )
    if "all_actions" in conditions and not all_actions:
        raise ValueError(
            "The condition 'all_actions' is never met with Box actions, whose importance ratios are computed for the "
            "sampled actions only: do not require it."
        )
    never_met = dict(unbounded)
    if unbounded:
        never_met["finite"] = next(iter(unbounded.values()))
    for condition, what in never_met.items():
        if condition in conditions:
            raise ValueError(
                f"The condition {condition!r} is never met, since {what}: set policy_kwargs=dict(lipschitz_policy=..., "
                "transition_density='normal'), or 'deterministic', or do not require it."
            )


def met_before_training(condition: str, violation: str | None) -> None:
    """
    :param condition: of a certificate, that training is to be held to
    :param violation: how the first parameters break it, or ``None``
    :raises ValueError: they do
    """
    if violation is not None:
        raise ValueError(
            f"The condition {condition!r} is violated before the first update, since {violation}: set a smaller "
            "lipschitz_constant or lipschitz_policy in policy_kwargs, or a smaller gamma, or do not require it."
        )


def neighbourhood(clip_range: float) -> None:
    """
    :param clip_range: ε
    :raises ValueError: C = 1 + ε is not in (1, 2)
    """
    if not 0 < clip_range < 1:
        raise ValueError(
            f"clip_range must lie in (0, 1), so that the neighbourhood [2 - C, C] with C = 1 + ε is one, but got "
            f"{clip_range!r}."
        )
