"""Which environment a saved model is to play in, and the model in it."""

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sbx_deepspi.envs.envpool import make_envpool_env
from sbx_deepspi.envs.jitted.make import is_jax_env_id, make_jax_env
from sbx_deepspi.report.pictures import as_pictures
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.saving.environment import load_normalization
from sbx_deepspi.sb3.algorithm import DeepSPI
from sbx_deepspi.sb3.deepmdp import DeepMDP
from sbx_deepspi.sb3.dreamspi import DreamSPI
from sbx_deepspi.sb3.policies import is_channels_first

ALGORITHMS: dict[str, type[DeepSPI]] = {cls.__name__: cls for cls in (DeepSPI, DeepMDP, DreamSPI)}
SUITES = {"GymnaxEnv": "gymnax/", "BraxEnv": "brax/", "CraftaxEnv": "craftax/", "JaxConfoundingGrid": ""}
"""Classes of environments inside jit → how their ids begin."""


class ReportError(ValueError):
    """Why there can be no report, in one sentence."""


@dataclass(frozen=True)
class Described:
    """
    An environment, as far as what is beside a model, or in its file, tells.

    :param env_id: its id; ``None``: not known
    :param arguments: of the environment
    :param settings: of :func:`~sbx_deepspi.make_jax_env`, where it is inside jit
    :param hyperparameters: RL Zoo's, where the model comes from there, else empty
    """

    env_id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def open_model(path: Path, env_id: str | None, n_envs: int, seed: int) -> tuple[DeepSPI, str]:
    """
    :param path: of a model's file, or of the folder of one of RL Zoo's runs
    :param env_id: of the environment; ``None``: what the file, or RL Zoo's folder, says
    :param n_envs: number of environments
    :param seed: of the environments
    :return: the model, with environments to play in, and their id
    :raises ReportError: the model is of another kind, or its environment is not known, or does not fit
    :raises CheckpointError: the file is damaged, or not of ours
    :raises OSError: the file cannot be read
    """
    file = model_file(path)
    contents = checkpoint.read(file)
    algorithm = ALGORITHMS.get(contents.written_by)
    if algorithm is None:
        raise ReportError(f"{file} was saved by {contents.written_by}: reports are for {', '.join(ALGORITHMS)}.")
    if not contents.attributes.get("world_model"):
        raise ReportError(
            f"The model in {file} has no world model to report on: it was trained with reward_loss_coef and "
            "transition_loss_coef 0."
        )
    saved = contents.environment or {}
    known = known_of(file, saved.get("inside_jit"))
    if env_id is not None and env_id != known.env_id:
        known = replace(known, env_id=env_id, arguments={})
    if known.env_id is None:
        raise ReportError(f"{file} does not say which environment its model played in: give its id with --env.")
    try:
        env = make_environment(known, n_envs, seed)
        if saved.get("normalization") is not None:
            env = load_normalization(file, env)
            env.training = False  # type: ignore[attr-defined]
        if n_frames := stacked_in_python(known):
            env = VecFrameStack(env, n_frames)
        return algorithm.load(file, env=env, force_reset=True, verbose=0, n_steps=None), known.env_id
    except (ValueError, TypeError, gym.error.Error) as error:
        raise ReportError(f"The model in {file} cannot play in {known.env_id}: {error}") from error


def model_file(path: Path) -> Path:
    """
    :param path: of a model's file, or of the folder of one of RL Zoo's runs
    :return: of the file: in a folder the last model, or, where training goes on, the best so far
    :raises ReportError: there is none
    """
    if not path.is_dir():
        found = path if path.exists() or path.suffix else path.with_suffix(".zip")
        if not found.exists():
            raise ReportError(f"There is no file {path}: give the path of a model, or of the folder of RL Zoo's run.")
        return found
    names = [f"{arguments.parent.name}.zip" for arguments in path.glob("*/args.yml")]
    for candidate in (path / name for name in [*names, "best_model.zip"]):
        if candidate.exists():
            return candidate
    raise ReportError(
        f"There is no model in the folder {path}: give that of one run, such as logs/deepspi/CartPole-v1_1."
    )


def known_of(file: Path, description: str | None) -> Described:
    """
    :param file: a model's
    :param description: of environments inside jit, from the file; ``None``: of others
    :return: what is known of its environment
    """
    zoo, inside_jit = from_zoo(file), from_description(description)
    return zoo if inside_jit.env_id is None else replace(inside_jit, hyperparameters=zoo.hyperparameters)


def from_zoo(file: Path) -> Described:
    """
    :param file: a model's
    :return: what RL Zoo wrote beside it, if it comes from there
    """
    written = next(file.parent.glob("*/args.yml"), None)
    if written is None:
        return Described()
    arguments, hyperparameters = (read_yaml(written.with_name(name)) for name in ("args.yml", "config.yml"))
    if "env" not in arguments:
        raise ReportError(f"{written} does not name an environment: RL Zoo writes it as 'env'.")
    for package in arguments.get("gym_packages") or []:
        importlib.import_module(package)
    env_kwargs = arguments.get("env_kwargs") or hyperparameters.get("env_kwargs") or {}
    return Described(arguments["env"], env_kwargs, hyperparameters=hyperparameters)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    :param path: of a file in which RL Zoo keeps an ``OrderedDict``
    :return: the same, without running anything that is in the file
    :raises ReportError: it cannot be read
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """With ordered dictionaries."""

    def ordered(loader: yaml.SafeLoader, node: Any) -> dict[str, Any]:
        return dict(loader.construct_sequence(node, deep=True)[0])

    Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ordered)
    try:
        found = yaml.load(path.read_text(), Loader)
    except (OSError, UnicodeError, yaml.YAMLError, IndexError) as error:
        raise ReportError(f"RL Zoo's file {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ReportError(f"RL Zoo's file {path} must hold names and values, but holds {str(found)!r:.40}.")
    return found


def from_description(description: str | None) -> Described:
    """
    The way back from what a file holds of environments inside jit.

    :param description: see :func:`~sbx_deepspi.saving.environment.description_of`; ``None``: of others
    :return: the environment; without an id where it is of nobody's suite
    """
    try:
        _, environment, limits = ast.parse(description or "", mode="eval").body.elts  # type: ignore[attr-defined]
        call = ast.parse(ast.literal_eval(environment), mode="eval").body
        suite = SUITES[call.func.id]  # type: ignore[attr-defined]
        name, arguments = map(ast.literal_eval, call.args)  # type: ignore[attr-defined]
    except (SyntaxError, AttributeError, ValueError, KeyError):
        return Described()
    _, max_episode_steps, n_initial_states, normalization = limits.elts
    settings = {
        "max_episode_steps": ast.literal_eval(max_episode_steps),
        "n_initial_states": ast.literal_eval(n_initial_states),
    }
    if isinstance(normalization, ast.Call):
        arguments_of = {keyword.arg: ast.literal_eval(keyword.value) for keyword in normalization.keywords}
        settings["normalize"] = arguments_of | {"training": False}
    return Described(suite + name, dict(arguments), settings)


def make_environment(known: Described, n_envs: int, seed: int) -> VecEnv:
    """
    :param known: with an id
    :param n_envs: number of environments
    :param seed: of the first one
    :return: the environments, neither normalised in Python nor stacked there
    """
    env_id, zoo = known.env_id, known.hyperparameters
    assert env_id is not None
    module, _, _ = env_id.rpartition(":")
    if module:  # which registers it, as Gymnasium knows such ids
        importlib.import_module(module)
    if is_jax_env_id(env_id):
        return make_jax_env(env_id, n_envs, seed, **known.settings, **known.arguments)
    if uses_envpool(known):
        stack = {"stack_num": zoo["frame_stack"]} if "frame_stack" in zoo else {}
        return make_envpool_env(env_id, n_envs, seed, **stack, **known.arguments)
    wrapper, vec_wrapper = zoo_wrapper(zoo, "env_wrapper"), zoo_wrapper(zoo, "vec_env_wrapper")
    env = make_vec_env(env_id, n_envs, seed, wrapper_class=wrapper, env_kwargs=known.arguments)
    return env if vec_wrapper is None else vec_wrapper(env)


def zoo_wrapper(hyperparameters: dict[str, Any], name: str) -> Any:
    """
    :param hyperparameters: RL Zoo's
    :param name: of the one that names wrappers
    :return: what wraps an environment so; ``None``: nothing does
    """
    if not hyperparameters.get(name):
        return None
    from rl_zoo3.utils import get_wrapper_class

    return get_wrapper_class(hyperparameters, name)


def is_atari(env_id: str) -> bool:
    """
    :param env_id: of an environment outside jit
    :return: whether it is one of Atari's, or none of Gymnasium's, so that it may be one of EnvPool's
    """
    try:
        return "ale_py" in str(gym.spec(env_id.rpartition(":")[2]).entry_point)
    except gym.error.Error:
        return True


def uses_envpool(known: Described) -> bool:
    """
    :param known: with an id
    :return: whether EnvPool plays: where RL Zoo says so, and for Atari's games that do not come from RL Zoo
    """
    assert known.env_id is not None
    return is_atari(known.env_id) and bool(known.hyperparameters.get("envpool", not known.hyperparameters))


def stacked_in_python(known: Described) -> int:
    """
    :param known: with an id
    :return: how many frames ``VecFrameStack`` stacks; 0 where none are, or the environment does it by itself
    """
    assert known.env_id is not None
    return 0 if uses_envpool(known) else known.hyperparameters.get("frame_stack") or 0


def drawing_of(space: spaces.Space) -> Callable[[Any], np.ndarray] | None:
    """
    :param space: of one observation
    :return: observations → pictures of shape (B, height, width, 3), in [0, 1]; of a dictionary, its first image;
        ``None``: there is no image
    """
    if isinstance(space, spaces.Dict):
        drawings = {key: drawing for key, part in space.spaces.items() if (drawing := drawing_of(part)) is not None}
        return next((lambda seen, key=key: drawings[key](seen[key]) for key in drawings), None)
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return None
    return partial(as_pictures, channels_first=is_channels_first(space))
