"""Environments inside jit as SB3 knows environments; their ids; what is wrong with a user's own."""

import builtins
import copy
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sbx
import stable_baselines3
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from sbx_deepspi import DeepSPI, JaxVecEnv, make_jax_env
from sbx_deepspi.envs.jitted.make import IDS, known_ids
from sbx_deepspi.memory import total_memory
from tests.jax_envs import Breaks, Line, line_env, needs_gymnax

SLOW = pytest.mark.slow

# --- a VecEnv ---------------------------------------------------------------------------------------


def test_a_step_is_what_sb3_expects() -> None:
    env = line_env(max_episode_steps=3)
    observations = env.reset()
    assert observations.shape == (4, 2) and observations.dtype == np.float32
    seen = {"TimeLimit.truncated": set(), "r": [], "l": []}
    returns = np.zeros(4)
    for _ in range(12):
        before = observations
        observations, rewards, dones, infos = env.step(np.ones(4, int))
        returns += rewards
        assert (rewards.dtype, dones.dtype, rewards.shape, len(infos)) == (np.float32, np.bool_, (4,), 4)
        for i, info in enumerate(infos):
            assert set(info) == ({"terminal_observation", "episode", "TimeLimit.truncated"} if dones[i] else set())
            if dones[i]:
                assert info["episode"]["r"] == pytest.approx(returns[i], abs=1e-5)
                assert info["TimeLimit.truncated"] == (info["terminal_observation"][0] < 1)
                assert info["TimeLimit.truncated"] <= (info["episode"]["l"] == 3)
                seen["TimeLimit.truncated"].add(info["TimeLimit.truncated"])
                returns[i] = 0
            else:
                assert abs(observations[i] - before[i]).max() <= 1 / 3 + 1e-6
    assert seen["TimeLimit.truncated"] == {True, False}
    observations[:] = 7  # the caller's own
    assert np.asarray(env.state.observations).max() <= 1


def test_a_seed_gives_the_same_environments() -> None:
    def run(env: JaxVecEnv) -> np.ndarray:
        return np.concatenate([env.reset(), *(env.step(np.ones(4, int))[0] for _ in range(5))])

    first, second, other = line_env(seed=1), line_env(seed=1), line_env(seed=2)
    np.testing.assert_array_equal(run(first), run(second))
    assert not np.array_equal(run(first), run(other))
    once = run(first)
    assert not np.array_equal(once, run(first))  # without a new seed the sequence goes on
    first.seed(5), second.seed(5)
    np.testing.assert_array_equal(run(first), run(second))
    np.testing.assert_array_equal(run(copy.deepcopy(first)), run(second))


def test_questions_about_single_copies(tmp_path: Path) -> None:
    env = line_env(3, monitor_dir=str(tmp_path))
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.ones(3, int))
    env.reset()
    assert env.get_attr("size") == [3] * 3 and env.get_attr("render_mode", 1) == ["rgb_array"]
    assert env.env_method("observe", jnp.int32(3), indices=[0, 2])[1].tolist() == [1, 1]
    with pytest.raises(AttributeError, match="no attribute 'speed'"):
        env.get_attr("speed")
    with pytest.raises(NotImplementedError, match="no method 'fly'"):
        env.env_method("fly")
    with pytest.raises(NotImplementedError, match="nothing to set"):
        env.set_attr("size", 4)
    for actions, message in [
        (np.ones(2, int), "must be 3, .* but got 2"), (np.ones((3, 1), int), r"shape \(3,\), not \(3, 1\)"),
        (np.array([0, 1, 2]), r"whole numbers in Discrete\(2\)"), (np.array([0, 1, -1]), "whole numbers"),
        (np.array([0, 1, 0.5]), "whole numbers"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            env.step(actions)
    assert [image.shape for image in env.get_images()] == [(1, 7, 3)] * 3
    assert env.render("rgb_array").ndim == 3
    for _ in range(12):
        env.step(np.ones(3, int))
    env.close()
    lines = (tmp_path / "0.monitor.csv").read_text().splitlines()[1:]
    assert len(list(csv.DictReader(lines))) >= 3 and lines[0] == "r,l,t"


class Both(Line):
    """A dictionary of observations, one of them a choice."""

    observation_space = spaces.Dict({"where": spaces.Box(-1, 1, (2,), np.float32), "side": spaces.Discrete(2, start=1)})

    def observe(self, position: jax.Array) -> Any:
        return {"where": super().observe(position), "side": jnp.where(position > 0, 2, 1)}


def test_dictionaries() -> None:
    env = JaxVecEnv(Both(), 3, 0, max_episode_steps=2)
    assert env.observation_space.contains({key: array[0] for key, array in env.reset().items()})
    env.step(np.ones(3, int))
    observations, _, dones, infos = env.step(np.ones(3, int))
    assert observations["side"].dtype == np.int64 and dones.any()
    last = infos[int(np.argmax(dones))]["terminal_observation"]
    assert last.keys() == {"where", "side"} and last["where"].shape == (2,)


@pytest.mark.parametrize(
    "wrap",
    [pytest.param(VecMonitor, marks=SLOW), VecNormalize, pytest.param(lambda env: VecFrameStack(env, 2), marks=SLOW)],
)
def test_sb3s_wrappers_and_ppo(wrap: Any) -> None:
    env, evaluated = wrap(line_env()), wrap(line_env(2, seed=5))
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=2, seed=0, device="cpu")
    model.learn(128, callback=EvalCallback(evaluated, eval_freq=16, n_eval_episodes=2, verbose=0, warn=False))
    assert model.ep_info_buffer and model.num_timesteps == 128
    mean, _ = evaluate_policy(model, evaluated, n_eval_episodes=3, warn=False)
    assert -0.2 <= mean <= 1


@pytest.mark.slow
def test_sb3s_and_sbxs_ppo_learn() -> None:
    for library in (stable_baselines3, sbx):
        model = library.PPO("MlpPolicy", line_env(8), n_steps=32, batch_size=64, seed=0, device="cpu")
        model.learn(6_000)
        assert evaluate_policy(model, line_env(4, seed=9), 20, warn=False)[0] > 0.8, library


# --- ids --------------------------------------------------------------------------------------------


def test_ids_are_the_suites_own() -> None:
    gymnax = pytest.importorskip("gymnax")
    assert set(IDS["gymnax"]) == set(gymnax.registered_envs) and len(IDS["gymnax"]) == 26
    assert {f"gymnax/{name}" for name in IDS["gymnax"]} <= set(gym.registry) and "brax/ant" in known_ids()


@needs_gymnax
@pytest.mark.parametrize(
    ("env_id", "nearest"),
    [
        ("gymnax/breakout-minatar", "gymnax/Breakout-MinAtar"), ("Breakout-MinAtar", "gymnax/Breakout-MinAtar"),
        ("gymnaxx/CartPole-v1", "gymnax/CartPole-v1"), ("confounding-grid", "ConfoundingGrid"),
        ("brax/Ant", "brax/ant"),
        ("gymnax/Braekout-MinAtar", "gymnax/Breakout-MinAtar"), ("CartPole-v0", "gymnax/CartPole-v1"),
    ],
)  # fmt: skip
def test_a_slip_in_an_id_names_the_nearest(env_id: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        make_jax_env(env_id)


def test_an_id_like_no_other_names_all() -> None:
    with pytest.raises(ValueError, match=r"there are gymnax/CartPole-v1, .*, ConfoundingGrid"):
        make_jax_env("qqqq")


@pytest.mark.parametrize(("env_id", "extra"), [("gymnax/CartPole-v1", "jax"), ("brax/ant", "brax")])
def test_a_missing_library_names_its_extra(env_id: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, original = env_id.split("/")[0], builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == suite:
            raise ModuleNotFoundError(f"No module named {suite!r}")
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, f"sbx_deepspi.envs.jitted.{suite}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf"pip install 'sbx-deepspi\[{extra}\]'"):
        make_jax_env(env_id)


@needs_gymnax
def test_arguments_of_the_environment() -> None:
    env = make_jax_env("gymnax/Breakout-MinAtar", 2, use_minimal_action_set=False, max_steps_in_episode=7)
    assert env.action_space.n == 6 and env.env.parameters.max_steps_in_episode == 7
    with pytest.raises(TypeError, match=r"takes .*gravity.*but got.*gravty"):
        make_jax_env("gymnax/CartPole-v1", gravty=1.0)
    assert make_jax_env("ConfoundingGrid", 2, n_path=3).env.maze.layout.shape == (5, 6)
    with pytest.raises(ValueError, match="n_envs must be a whole number"):
        make_jax_env("gymnax/CartPole-v1", n_envs=0)
    with pytest.raises(TypeError, match=r"normalize takes .*clip_obs.*but got 'clip'"):
        make_jax_env("gymnax/CartPole-v1", normalize={"clip": 3})
    with pytest.raises(ValueError, match="Only Box observations"):
        make_jax_env("gymnax/FrozenLake-misc", normalize=True)


@needs_gymnax
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IDS["gymnax"] if name != "MNISTBandit-bsuite"])  # it downloads
def test_every_environment_of_gymnax(name: str) -> None:
    env = make_jax_env(f"gymnax/{name}", 3, seed=0)
    observations = env.reset()
    for _ in range(5):
        actions = np.array([env.action_space.sample() for _ in range(3)])
        assert observations.dtype == env.observation_space.dtype
        observations, rewards, _, _ = env.step(actions)
        assert rewards.dtype == np.float32 and observations.shape == (3, *env.observation_space.shape)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["brax/inverted_pendulum", "craftax/Craftax-Classic-Symbolic-v1"])
def test_other_suites(env_id: str) -> None:
    pytest.importorskip(env_id.split("/")[0])
    env = make_jax_env(env_id, 2, seed=0, n_initial_states=2)
    env.reset()
    for _ in range(3):
        observations, rewards, _, _ = env.step(np.array([env.action_space.sample() for _ in range(2)]))
    assert np.isfinite(observations).all() and rewards.shape == (2,)


def test_the_grid_inside_jit_has_the_grids_tables() -> None:
    env = make_jax_env("ConfoundingGrid", 512, seed=0)
    mdp, rng = env.env.mdp, np.random.default_rng(0)
    counts = np.zeros_like(mdp.transitions)
    frames, step = env.reset(), jax.jit(env.copies.step)
    assert frames.shape == (512, 1, 84, 84) and frames.dtype == np.uint8
    for _ in range(30):
        states, actions = np.asarray(env.state.states), rng.choice(4, 512, p=[0.1, 0.0, 0.0, 0.9])
        env.state, outcome = step(env.state, jnp.asarray(actions))
        np.testing.assert_allclose(outcome.rewards, mdp.rewards[states, actions], rtol=1e-6)
        following = [
            (env.env._observations == frame).all(axis=(1, 2, 3)).argmax() for frame in outcome.next_observations[:64]
        ]
        np.testing.assert_array_equal(outcome.terminated[:64], mdp.terminal[following])
        np.add.at(counts, (states[:64], actions[:64], following), 1)
    tried = counts.sum(axis=-1) > 100
    errors = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1) - mdp.transitions
    assert tried.sum() >= 3 and np.abs(errors[tried]).max() < 0.1


@needs_gymnax
def test_one_copy_as_a_gymnasium_environment() -> None:
    env = gym.make("gymnax/Catch-bsuite", render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    first, second = (env.reset(seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert env.render().shape[2] == 3
    limited = gym.make("gymnax/CartPole-v1", max_steps_in_episode=3)
    limited.reset(seed=0)
    assert [limited.step(0)[3] for _ in range(3)] == [False, False, True]


# --- a user's own -----------------------------------------------------------------------------------


def broken(**parts: Any) -> Any:
    return type("Mine", (Line,), parts)()


def step_with(**changes: Any) -> Any:
    def step(self: Any, key: Any, state: Any, action: Any) -> Any:
        names = "observation", "state", "reward", "terminated", "truncated"
        made = dict(zip(names, Line().step(key, state, action), strict=True))
        return tuple({**made, **{name: change(made[name]) for name, change in changes.items()}}.values())

    return step


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        (object(), TypeError, "object has no reset and no step and no observation_space and no action_space"),
        (broken(observation_space=(2,)), TypeError, r"Mine.observation_space must be one of Gymnasium's Box.*\(2,\)"),
        (broken(action_space=spaces.Text(3)), TypeError, "Mine.action_space must be one of Gymnasium's Box"),
        (broken(observation_space=spaces.Box(0, 1, (3,))), ValueError, r"reset\(key\)'s .* the shape \(3,\)"),
        (broken(observation_space=spaces.Discrete(4)), ValueError, r"must have the shape \(\) of its space Discrete"),
        (broken(observation_space=spaces.MultiDiscrete([3, 3])), ValueError, "must be int64, as its space"),
        (broken(observation_space=spaces.Dict(a=spaces.Box(0, 1, (2,)))), ValueError, r"a dictionary with \['a'\]"),
        (broken(reset=lambda self, key: jnp.zeros(2)), ValueError, r"must return \(observation, state\)"),
        (broken(step=step_with(observation=lambda o: o[:1])), ValueError, r"step's observation .* \(2,\)"),
        (broken(step=step_with(reward=lambda r: jnp.stack([r]))), ValueError, r"reward must be .*shape \(1,\)"),
        (broken(step=step_with(terminated=lambda t: t * 1)), ValueError, "terminated must be a bool, but is int32"),
        (broken(step=step_with(truncated=lambda t: None)), ValueError, "truncated must be one number, but is NoneType"),
        (broken(step=lambda *a: Line().step(*a[1:])[:4]), ValueError, "but returns a tuple of 4"),
        (broken(step=step_with(state=lambda s: {**s, "more": s["time"]})), ValueError, "a state of the same structure"),
        (broken(step=step_with(state=lambda s: {**s, "time": jnp.zeros(2)})), ValueError, r"state\['time'\] is int32"),
        (broken(step=step_with(reward=lambda r: 1.0 if r > 0 else 0.0)), ValueError, "cannot be compiled.*jnp.where"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(env: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        JaxVecEnv(env, 2)
    assert "\n" not in str(raised.value)


def test_an_environment_without_a_hash() -> None:
    with pytest.raises(TypeError, match=r"Mine has no hash .*@dataclass\(frozen=True\)"):
        JaxVecEnv(broken(__hash__=None), 2)


def test_an_error_of_its_own_is_named() -> None:
    def fails(self: Any, key: Any) -> Any:
        return jnp.ones(3) @ jnp.ones(2), {}

    with pytest.raises(ValueError, match=r"Mine.reset\(key\) cannot be traced: .*dot_general"):
        JaxVecEnv(broken(reset=fails), 2)


def test_numbers_take_their_spaces_dtype() -> None:
    """Whole numbers from reset and floats from step, or the other way round, are one dtype outside."""
    mine = broken(reset=lambda self, key: (jnp.zeros(2, jnp.int32), {"position": 0, "time": 0}))
    env = JaxVecEnv(mine, 2, 0)
    assert env.reset().dtype == env.step([1, 1])[0].dtype == np.float32
    assert env.state.states["position"].dtype == jnp.int32


class Keyed(Line):
    """Its state holds a random key with a type of its own."""

    def reset(self, key: jax.Array) -> Any:
        observation, state = super().reset(key)
        return observation, state | {"key": jax.random.key(3)}

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
        following, own = jax.random.split(state["key"])
        observation, new, *others = super().step(jax.random.key_data(own), state, action)
        return observation, new | {"key": following}, *others


@pytest.mark.slow
def test_typed_keys_in_a_state_are_saved(tmp_path: Path) -> None:
    env = JaxVecEnv(Keyed(), 4, 0, max_episode_steps=10)
    model = DeepSPI("MlpPolicy", env, n_steps=4, batch_size=16, policy_kwargs=dict(net_arch=[]), seed=0).learn(16)
    model.save(tmp_path / "model")
    again = DeepSPI.load(tmp_path / "model", env=JaxVecEnv(Keyed(), 4, 5, max_episode_steps=10))
    keys = (jax.random.key_data(one.env.state.states["key"]) for one in (model, again))
    np.testing.assert_array_equal(*keys)
    assert again.learn(16, reset_num_timesteps=False).num_timesteps == 32


def test_the_first_observation_and_one_copys_fault_are_named() -> None:
    with pytest.raises(ValueError, match="Environment 0 returned a non-finite observation"):
        first = broken(reset=lambda self, key: (jnp.full(2, jnp.nan), {"position": 0, "time": 0}))
        JaxVecEnv(first, 2, 0).reset()
    env = JaxVecEnv(Breaks(after=3), 4, 0, normalize=True)
    env.reset()
    env.state = env.state.replace(states=env.state.states | {"time": jnp.array([0, 0, 2, 0])})
    before = env.state
    with pytest.raises(ValueError, match="Environment 2 returned a non-finite observation"):
        env.step(np.ones(4, int))
    assert env.state is before  # no statistics of it


@needs_gymnax
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(seed=1.5), "seed must be a whole number from 0"), (dict(seed=-1), "seed must be a whole number"),
        (dict(n_envs=2.5), "n_envs must be a whole number"), (dict(max_episode_steps=0), "max_episode_steps must be"),
        (dict(normalize="yes"), "normalize must be True, False"), (dict(normalize={"gamma": 2}), "gamma must lie in"),
        (dict(normalize={"clip_obs": -1}), "clip_obs must be positive"), (dict(n_initial_states=0), "n_initial_states"),
    ],
)  # fmt: skip
def test_arguments_out_of_their_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_jax_env("gymnax/CartPole-v1", **arguments)


@needs_gymnax
def test_an_evaluation_sees_through_wrappers_and_looks_at_the_space() -> None:
    training = line_env(normalize=True)
    assert line_env(2, normalize=VecMonitor(training)).statistics_from is training
    with pytest.raises(ValueError, match="normalize names environments that observe Box"):
        make_jax_env("gymnax/CartPole-v1", normalize=training)
    with pytest.raises(ValueError, match="not normalised themselves"):
        line_env(normalize=line_env())


@needs_gymnax
def test_an_id_is_enough_and_one_environment_is_told_to_be_copied() -> None:
    model = DeepSPI("MlpPolicy", "gymnax/CartPole-v1", n_steps=8, batch_size=8)
    assert isinstance(model.env, JaxVecEnv) and model.env.num_envs == 1
    with pytest.raises(ValueError, match=r"Line is one environment inside jit: make copies of it, JaxVecEnv"):
        DeepSPI("MlpPolicy", Line())
    with pytest.raises(TypeError, match="env_id must be a string"):
        make_jax_env(None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Huge(Line):
    """Its states would fill the memory many times over."""

    def reset(self, key: jax.Array) -> Any:
        observation, state = super().reset(key)
        return observation, {**state, "ballast": jnp.zeros(2**20)}

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
        observation, new, *others = super().step(key, state, action)
        return observation, {**new, "ballast": state["ballast"]}, *others


def test_too_many_environments_for_the_memory() -> None:
    n_envs = int(total_memory(jax.devices()[0]) // 2**22) * 2
    env = JaxVecEnv(Huge(), n_envs)
    with pytest.raises(MemoryError, match=rf"{n_envs} environments need about \S+ GiB, but .* has \S+ GiB"):
        env.reset()
