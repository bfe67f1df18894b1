"""Environments inside jit by their ids."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv

SUITES = {"gymnax": "jax", "brax": "brax", "craftax": "craftax"}
"""How ids begin → the extra that installs the library."""


def make_jax_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    n_initial_states: int | None = None,
    normalize: bool | dict[str, Any] = False,
    **arguments: Any,
) -> JaxVecEnv:
    """
    Copies of an environment that is compiled together with what learns from it.

    :param env_id: ``"gymnax/<id>"``, ``"brax/<name>"``, ``"craftax/<id>"`` or ``"ConfoundingGrid"``
    :param n_envs: number of copies
    :param seed: of all random draws; ``None`` draws one
    :param max_episode_steps: a time limit, beside the environment's own; ``None``: the suite's
    :param n_initial_states: see :class:`JaxVecEnv`; ``None``: the suite's
    :param normalize: see :class:`JaxVecEnv`
    :param arguments: of the environment, such as gymnax's ``max_steps_in_episode``
    :return: the copies
    :raises ImportError: the library of this suite is not installed
    :raises ValueError: there is no such id, or an argument is out of its range
    """
    env, defaults = make_one(env_id, n_envs, **arguments)
    given = {"max_episode_steps": max_episode_steps, "n_initial_states": n_initial_states}
    settings = defaults | {name: value for name, value in given.items() if value is not None}
    return JaxVecEnv(env, n_envs, seed, normalize=normalize, **settings)


def is_jax_env_id(env_id: str) -> bool:
    """
    :param env_id: of any environment
    :return: whether it is one of a suite inside jit
    """
    return env_id.partition("/")[0] in SUITES and "/" in env_id


def make_one(env_id: str, n_envs: int = 1, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """
    :param env_id: see :func:`make_jax_env`
    :param n_envs: how many copies of it there will be
    :param arguments: of the environment
    :return: the environment, and the arguments of :class:`JaxVecEnv` that its suite wants
    :raises ImportError: the library of this suite is not installed
    :raises ValueError: there is no such id
    """
    if env_id == "ConfoundingGrid":
        from sbx_deepspi.envs.confounding_grid import MAX_EPISODE_STEPS
        from sbx_deepspi.envs.jitted.confounding_grid import JaxConfoundingGrid

        return JaxConfoundingGrid(**arguments), {"max_episode_steps": MAX_EPISODE_STEPS}
    suite, _, name = env_id.partition("/")
    if suite not in SUITES or not name:
        raise ValueError(_unknown(env_id, [*(f"{suite}/..." for suite in SUITES), "ConfoundingGrid", *_known_ids()]))
    try:
        adapter = importlib.import_module(f"sbx_deepspi.envs.jitted.{suite}")
    except ImportError as error:
        raise ImportError(
            f"{env_id!r} needs the {suite} library, which cannot be imported ({error}): pip install "
            f"'sbx-deepspi[{SUITES[suite]}]'."
        ) from error
    if name not in adapter.ids():
        raise ValueError(_unknown(env_id, [f"{suite}/{known}" for known in adapter.ids()]))
    return adapter.make(name, n_envs, **arguments)


def _known_ids() -> Iterable[str]:
    for suite in SUITES:
        try:
            adapter = importlib.import_module(f"sbx_deepspi.envs.jitted.{suite}")
        except ImportError:
            continue
        yield from (f"{suite}/{name}" for name in adapter.ids())


def _unknown(env_id: str, known: list[str]) -> str:
    folded = {name.lower(): name for name in known}
    by_name = {name.lower().partition("/")[2]: name for name in known if "/" in name}
    nearest = difflib.get_close_matches(env_id.lower(), folded, n=1) or difflib.get_close_matches(
        env_id.lower().rpartition("/")[2], by_name, n=1
    )
    hint = f"did you mean {(folded | by_name)[nearest[0]]!r}?" if nearest else f"there are {', '.join(known)}."
    return f"There is no environment {env_id!r} inside jit: {hint}"
