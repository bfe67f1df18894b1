"""What can be wrong with the user's input, each in one sentence: what it is, what was given, what to do."""

import warnings
from collections.abc import Iterable
from typing import Any

import jax
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sbx_deepspi import valid
from sbx_deepspi.saving.format import Missing


def can_be_saved(name: str, missing: list[Missing]) -> None:
    """
    Warn of an argument that a file cannot hold whole.

    :param name: of the argument
    :param missing: what a file cannot hold of it
    """
    for part in missing:
        instead = "sbx_deepspi.saving.format.NAMED lists the functions and classes that are saved"
        if name != "policy_kwargs":
            instead = (
                "LinearSchedule(start, end, end_fraction) and ConstantSchedule(value) of "
                "stable_baselines3.common.utils do the same and are saved"
            )
        warnings.warn(
            f"{name} = {part.description} is a function or class without a name that a file could hold: a saved model "
            f"does without it, and to train on it has to be given again, load(..., {name}=...). {instead}.",
            stacklevel=3,
        )


def schedule(name: str, value: Any) -> FloatSchedule:
    """
    :param name: of the argument
    :param value: a number, or a function of the remaining progress
    :return: the function
    :raises ValueError: it is neither
    """
    if callable(value):
        return FloatSchedule(value)
    if not valid.is_number(value):
        raise ValueError(f"{name} must be a number or a function of the remaining progress, but got {value!r:.80}.")
    return FloatSchedule(float(value))


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


def jax_devices(device: Any) -> list[jax.Device]:
    """
    :param device: what :func:`jax_device` takes; ``"all"``: every device of this process; or a list of names
    :return: the devices on which JAX computes
    :raises ValueError: a name is no device's, or one of a list is not there, or is there twice
    """
    if not isinstance(device, (list, tuple)):
        return jax.local_devices() if str(device) == "all" else [jax_device(device)]
    if not device:
        raise ValueError("device must name one device at least, but is an empty list.")
    devices: list[jax.Device] = []
    for name in device:
        found = find_device(name)
        if found is None:
            there = ", ".join(map(str, jax.local_devices()))
            raise ValueError(f"JAX has no device {str(name)!r} here, only {there}: leave it out, or use device='all'.")
        if found in devices:
            raise ValueError(f"device={device!r} names {found} twice: each device has environments of its own.")
        devices.append(found)
    return devices


def devices_again(names: list[str]) -> list[jax.Device]:
    """
    :param names: of the devices on which a model computed that was copied or pickled
    :return: the same; one, with a warning, where JAX has not all of them here
    """
    if len(names) > 1 and None in map(find_device, names):
        warnings.warn(
            f"The model computed on {len(names)} devices, of which JAX has not all here: it goes on with one.",
            stacklevel=4,
        )
        names = names[:1]
    return jax_devices(names) if len(names) > 1 else [jax_device(names[0])]


def divide_among_devices(n_envs: int, batch_size: int, n_devices: int) -> None:
    """
    :param n_envs: number of environments of this process
    :param batch_size: transitions in a minibatch
    :param n_devices: number of devices of all processes, of which each has as many
    :raises ValueError: they do not get equal shares
    """
    shares = {"n_envs": (n_envs, n_devices // jax.process_count()), "batch_size": (batch_size, n_devices)}
    for name, (number, devices) in shares.items():
        if number % devices:
            raise ValueError(
                f"{name} must be a multiple of the {devices} devices, which get equal shares, but is {number}: "
                f"choose {-(-number // devices) * devices}, or fewer devices (device=...)."
            )


def jax_device(device: Any) -> jax.Device:
    """
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:<index>"``, ``"gpu"`` or a ``torch.device``
    :return: the device on which JAX computes; its first one, with a warning, where it has not the one asked for
    :raises ValueError: the name is no device's
    """
    found = find_device(device)
    if found is None:
        found = jax.local_devices()[0]
        warnings.warn(
            f"JAX has no device {str(device)!r} here, only {', '.join(map(str, jax.local_devices()))}: it computes on "
            f"{found}. For an accelerator, install JAX for it (pip install 'jax[cuda12]').",
            stacklevel=4,
        )
    return found


def find_device(device: Any) -> jax.Device | None:
    """
    :param device: as :func:`jax_device` takes it
    :return: the device; ``None``: JAX has not that one
    :raises ValueError: the name is no device's
    """
    name, _, index = str(device).partition(":")
    if name == "auto":
        return jax.local_devices()[0]
    if name not in DEVICES or not (index or "0").isdecimal():
        raise ValueError(f"device must be 'auto' or one of {', '.join(map(repr, DEVICES))}, but got {str(device)!r}.")
    platform = {"cuda": "gpu"}.get(name, name)
    try:
        return jax.local_devices(backend=platform)[int(index or 0)]
    except (RuntimeError, IndexError):
        return None


DEVICES = ("cpu", "cuda", "gpu", "tpu", "mps", "rocm", "xpu", "metal")
"""What scripts for PyTorch and JAX call devices."""


def supported_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :param observation_space: the environment's
    :param action_space: the environment's
    :raises ValueError: DeepSPI cannot learn from these spaces
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    observed = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not parts or not all(isinstance(part, observed) for part in parts):
        raise ValueError(
            "DeepSPI needs Box, Discrete, MultiDiscrete or MultiBinary observations, or a Dict of these, but got "
            f"{observation_space}: wrap each environment in gymnasium.wrappers.FlattenObservation before it goes into "
            "a VecEnv."
        )
    match action_space:
        case spaces.Discrete() | spaces.Box():
            return
        case spaces.MultiDiscrete() if action_space.nvec.ndim == 1:
            return
        case spaces.MultiBinary() if isinstance(action_space.n, int):
            return
    raise ValueError(
        "DeepSPI needs Box, Discrete, one-dimensional MultiDiscrete or one-dimensional MultiBinary "
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
