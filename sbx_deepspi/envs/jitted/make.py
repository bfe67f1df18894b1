"""Environments inside jit by their ids."""

import difflib
import importlib
from typing import Any

from sbx_deepspi.env_ids import CONFOUNDING_GRID, EXTRAS, GRID_STEPS, IDS
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv


def make_jax_env(
    env_id: str,
    n_envs: int = 1,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    n_initial_states: int | None = None,
    normalize: bool | dict[str, Any] | JaxVecEnv = False,
    monitor_dir: str | None = None,
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
    :param monitor_dir: see :class:`JaxVecEnv`
    :param arguments: of the environment, such as gymnax's ``max_steps_in_episode``, or the grid's ``numbered``
    :return: the copies
    :raises ImportError: the library of this suite is not installed
    :raises ValueError: there is no such id, or an argument is out of its range
    """
    env, defaults = make_one(env_id, **arguments)
    given = {"max_episode_steps": max_episode_steps, "n_initial_states": n_initial_states}
    settings = defaults | {name: value for name, value in given.items() if value is not None}
    return JaxVecEnv(env, n_envs, seed, normalize=normalize, monitor_dir=monitor_dir, **settings)


def is_jax_env_id(env_id: str) -> bool:
    """
    :param env_id: of any environment
    :return: whether it is one of those inside jit
    """
    return env_id == CONFOUNDING_GRID or (env_id.partition("/")[0] in EXTRAS and "/" in env_id)


def known_ids() -> list[str]:
    """
    :return: what :func:`make_jax_env` takes
    """
    return [*(f"{suite}/{name}" for suite, names in IDS.items() for name in names), CONFOUNDING_GRID]


def make_one(env_id: str, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """
    :param env_id: see :func:`make_jax_env`
    :param arguments: of the environment
    :return: the environment, and the arguments of :class:`JaxVecEnv` that its suite wants
    :raises ImportError: the library of this suite is not installed
    :raises ValueError: there is no such id
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id must be a string such as 'gymnax/CartPole-v1', but got {env_id!r:.80}.")
    if env_id == CONFOUNDING_GRID:
        from sbx_deepspi.envs.jitted.confounding_grid import JaxConfoundingGrid

        return JaxConfoundingGrid(**arguments), {"max_episode_steps": GRID_STEPS}
    suite, _, name = env_id.partition("/")
    if suite not in EXTRAS or not name:
        raise ValueError(_unknown(env_id))
    try:
        adapter = importlib.import_module(f"sbx_deepspi.envs.jitted.{suite}")
    except ImportError as error:
        if name not in IDS[suite]:
            raise ValueError(_unknown(env_id)) from None
        raise ImportError(
            f"{env_id!r} needs {suite}, which cannot be imported ({error}): pip install 'sbx-deepspi[{EXTRAS[suite]}]'."
        ) from error
    if not adapter.has(name):
        raise ValueError(_unknown(env_id))
    return adapter.make(name, **arguments)


def _unknown(env_id: str) -> str:
    by_form = {known.lower(): known for known in known_ids()}
    by_name = {known.lower().rpartition("/")[2]: known for known in known_ids()}
    nearest = difflib.get_close_matches(env_id.lower(), by_form, n=1) or difflib.get_close_matches(
        env_id.lower().rpartition("/")[2], by_name, n=1
    )
    hint = f"did you mean {(by_name | by_form)[nearest[0]]!r}?" if nearest else f"there are {', '.join(known_ids())}."
    return f"There is no environment {env_id!r} inside jit: {hint}"
