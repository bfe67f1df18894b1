"""The confounding grid: its rules, its exact values, and that its two forms agree."""

import time
import warnings
from typing import Any

import flax.linen as nn
import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sbx_deepspi import ConfoundingGrid, ConfoundingGridVecEnv
from sbx_deepspi.envs.confounding_grid import (
    DOWN,
    LEFT,
    LOOKS,
    RIGHT,
    UP,
    TabularMDP,
    draw_next_states,
    make_frames,
    make_maze,
    policy_value,
)
from sbx_deepspi.networks.encoders import NATURE_CNN, CnnEncoder

Cell = tuple[int, int]
MAZES = [(5, 0.2, 0.99), (2, 0.5, 0.9), (9, 0.01, 0.95), (1, 0.7, 0.8)]


def rules(cell: Cell, action: int, n: int, epsilon: float, gamma: float) -> tuple[dict[Cell, float], float]:
    """The grid's rules, written independently: the next cells of an action with their probabilities, and its reward."""
    row, column = cell
    if cell == (2, 1):
        return {(1, 1): 1 - epsilon, (3, 1): epsilon}, 0
    if cell == (2, 0) and action == RIGHT:
        return {(2, 1): 1}, 0
    if row in (1, 3) and column <= n and action == RIGHT:
        return {(row, column + 1): 1}, 1
    if cell == (1, n) and action == UP:
        return {(0, n): 1}, n / gamma**n
    if cell == (3, n) and action == UP:
        return {(2, n): 1}, -(2 - epsilon) * n / (epsilon * gamma**n)
    return {cell: 1}, 0


def right_but_up(n: int, up_in_top: bool, up_in_bottom: bool) -> np.ndarray:
    """The policy that goes right everywhere, except for the cells ! in which it goes up as asked."""
    policy = np.zeros((2 * n + 6, 4))
    policy[:, RIGHT] = 1
    for row, up in ((1, up_in_top), (3, up_in_bottom)):
        (choice,) = np.flatnonzero((make_maze(n).cells == (row, n)).all(axis=1))
        policy[choice] = np.eye(4)[UP if up else RIGHT]
    return policy


def start_value(n: int, epsilon: float, gamma: float, policy: np.ndarray) -> float:
    mdp = make_maze(n, epsilon, gamma).mdp
    return float(policy_value(mdp, policy, gamma)[mdp.initial])


# --- the process


@pytest.mark.parametrize(("n", "epsilon", "gamma"), MAZES)
def test_tables_follow_the_rules(n: int, epsilon: float, gamma: float) -> None:
    maze = make_maze(n, epsilon, gamma)
    assert len(maze.cells) == 2 * n + 6
    ends = {(0, n), (2, n), (1, n + 1), (3, n + 1)}
    for state, cell in enumerate(maze.cells):
        # with n = 1, F lies in the cell of @, which is state 1
        assert maze.mdp.terminal[state] == (tuple(cell) in ends and state != 1)
        for action in range(4):
            if maze.mdp.terminal[state]:
                where, reward = {tuple(cell): 1.0}, 0.0
            else:
                where, reward = rules(tuple(cell), action, n, epsilon, gamma)
            assert maze.mdp.rewards[state, action] == pytest.approx(reward)
            reached = np.flatnonzero(maze.mdp.transitions[state, action])
            probabilities = {tuple(maze.cells[s]): maze.mdp.transitions[state, action, s] for s in reached}
            assert probabilities == pytest.approx(where)


def test_every_state_can_be_reached() -> None:
    mdp = make_maze().mdp
    steps = mdp.transitions.sum(axis=1) > 0
    reached = np.linalg.matrix_power(steps.astype(float), len(steps))[mdp.initial] > 0
    assert reached.all() and len(reached) == 16


def test_values_of_the_paper() -> None:
    default = (5, 0.2, 0.99)
    assert start_value(*default, right_but_up(5, False, False)) == pytest.approx(4.8035, abs=5e-5)
    assert start_value(*default, right_but_up(5, True, False)) == pytest.approx(8.0103, abs=5e-5)
    assert start_value(*default, right_but_up(5, True, True)) == pytest.approx(-1.0880, abs=5e-5)


def test_going_up_at_the_top_alone_is_optimal() -> None:
    mdp = make_maze().mdp
    values = np.zeros(len(mdp.terminal))
    for _ in range(5_000):
        values = np.where(mdp.terminal, 0, (mdp.rewards + 0.99 * mdp.transitions @ values).max(axis=1))
    assert values[mdp.initial] == pytest.approx(8.0103, abs=5e-5)


@pytest.mark.slow
def test_many_grids_are_never_the_bottleneck() -> None:
    """A step of all copies takes less than half the time of encoding their observations, which training does anyway."""
    env = ConfoundingGridVecEnv(128, seed=0)
    encoder = CnnEncoder(
        NATURE_CNN, channels_first=True, normalize_images=True, activation_fn=nn.relu, ortho_init=False
    )
    frames, rng = env.reset(), np.random.default_rng(0)
    params = encoder.init(jax.random.key(0), frames)
    encode = jax.jit(encoder.apply)
    times: list[tuple[float, float]] = []
    for _ in range(50):
        actions = rng.choice(4, size=128, p=[0.2, 0.1, 0.1, 0.6])  # most episodes reach an exit
        start = time.perf_counter()
        env.step(actions)
        middle = time.perf_counter()
        jax.block_until_ready(encode(params, frames))
        times.append((middle - start, time.perf_counter() - middle))
    step, encoding = np.median(times, axis=0)
    assert step < encoding / 2


@pytest.mark.parametrize(("n", "epsilon", "gamma"), MAZES)
def test_values_by_hand(n: int, epsilon: float, gamma: float) -> None:
    """Two steps lead to the corridor, whose rewards form a geometric series; going up at ! comes after n + 1 steps."""
    to_the_end = gamma**2 * (1 - gamma**n) / (1 - gamma)
    to_the_choice = gamma**2 * (1 - gamma ** (n - 1)) / (1 - gamma)
    up_in_top = to_the_choice + gamma * n
    up_in_bottom = to_the_choice - gamma * n * (2 - epsilon) / epsilon
    expected = {
        (False, False): to_the_end,
        (True, False): (1 - epsilon) * up_in_top + epsilon * to_the_end,
        (False, True): (1 - epsilon) * to_the_end + epsilon * up_in_bottom,
        (True, True): (1 - epsilon) * up_in_top + epsilon * up_in_bottom,
    }
    for where, value in expected.items():
        assert start_value(n, epsilon, gamma, right_but_up(n, *where)) == pytest.approx(value)


def test_values_are_mean_returns() -> None:
    """The exact value of a random policy is the mean return of many episodes."""
    n, epsilon, gamma = 3, 0.3, 0.95
    env = ConfoundingGridVecEnv(4000, n, epsilon, gamma, seed=0)
    rng = np.random.default_rng(0)
    policy = rng.dirichlet([1, 1, 1, 3], size=len(env.mdp.rewards))
    env.reset()
    returns, running = np.zeros(4000), np.ones(4000, dtype=bool)
    for step in range(200):
        actions = (policy[env.states].cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
        _, rewards, dones, _ = env.step(actions)
        returns += running * gamma**step * rewards
        running &= ~dones
    standard_error = returns.std() / np.sqrt(len(returns))
    assert standard_error < 0.1
    assert abs(returns.mean() - start_value(n, epsilon, gamma, policy)) < 3 * standard_error


def test_the_solver_on_a_loop() -> None:
    """One state pays 2 and is left with probability 1/4. Rewards in a terminal state do not count."""
    transitions = np.array([[[0.75, 0.25]], [[0.0, 1.0]]])
    mdp = TabularMDP(transitions, np.array([[2.0], [9.0]]), np.array([False, True]), 0)
    assert policy_value(mdp, np.ones((2, 1)), 0.8) == pytest.approx([2 / (1 - 0.8 * 0.75), 0])


def test_draws_have_their_probabilities() -> None:
    mdp = make_maze(epsilon=0.3).mdp
    states = np.full(20_000, 1)
    for action in range(4):
        drawn = draw_next_states(mdp, states, np.full_like(states, action), np.random.default_rng(action))
        counts = np.bincount(drawn, minlength=16)
        assert counts[2] + counts[8] == 20_000
        assert abs(counts[8] - 6000) < 3 * np.sqrt(20_000 * 0.3 * 0.7)


# --- observations and pictures


def test_frames() -> None:
    cv2 = pytest.importorskip("cv2")
    maze = make_maze()
    frames = make_frames(maze)
    assert frames.shape == (16, 1, 84, 84) and frames.dtype == np.uint8
    assert len(np.unique(frames, axis=0)) == 16
    grid = [
        [50, 50, 50, 50, 50, 220, 50, 50],
        [50, 100, 100, 100, 100, 100, 200, 50],
        [120, 180, 50, 50, 50, 220, 50, 50],
        [50, 100, 100, 100, 100, 100, 200, 50],
        [50, 50, 50, 50, 50, 50, 50, 50],
    ]
    for cell, frame in zip(maze.cells, frames, strict=True):
        seen = np.array(grid, dtype=np.uint8)
        seen[tuple(cell)] = 255
        np.testing.assert_array_equal(frame[0], cv2.resize(seen, (84, 84), interpolation=cv2.INTER_NEAREST))


def test_no_cell_is_lost_in_the_longest_grid() -> None:
    assert len(np.unique(make_frames(make_maze(81)), axis=0)) == 2 * 81 + 6


def test_text() -> None:
    env = gym.make("ConfoundingGrid-v0", n_path=3, render_mode="ansi")
    env.reset()
    assert env.render() == "###G##\n#..!W#\nA@#F##\n#..!W#\n######"
    env.step(np.int64(RIGHT))
    assert env.render() == "###G##\n#..!W#\nIA#F##\n#..!W#\n######"


def test_picture() -> None:
    env = gym.make("ConfoundingGrid-v0", render_mode="rgb_array")
    env.reset()
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (5 * 24, 8 * 24, 3) and picture.dtype == np.uint8
    corners, centres = picture[::24, ::24], picture[12::24, 12::24]
    letters = ["#####G##", "#....!W#", "I@###F##", "#....!W#", "########"]
    colours = np.array([[LOOKS[letter].colour for letter in row] for row in letters])
    np.testing.assert_array_equal(corners, colours)
    colours[2, 0] = LOOKS["A"].colour
    np.testing.assert_array_equal(centres, colours)
    assert gym.make("ConfoundingGrid-v0").unwrapped.render() is None


# --- Gymnasium


@pytest.mark.parametrize("kwargs", [{}, {"n_path": 1, "epsilon": 0.9}])
def test_environment_checkers_find_nothing(kwargs: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("ConfoundingGrid-v0", **kwargs).unwrapped)
        sb3_check_env(gym.make("ConfoundingGrid-v0", **kwargs))


def test_the_way_to_an_exit() -> None:
    env = gym.make("ConfoundingGrid-v0", epsilon=1e-9)
    env.reset(seed=0)
    steps = [env.step(np.int64(action))[1:4] for action in [DOWN, RIGHT, LEFT, LEFT, *[RIGHT] * 4, DOWN, UP]]
    rewards = [0, 0, 0, 0, 1, 1, 1, 1, 0, 5 / 0.99**5]
    assert [reward for reward, _, _ in steps] == pytest.approx(rewards)
    assert [end for _, end, _ in steps] == [False] * 9 + [True]
    assert not any(cut for _, _, cut in steps)


def test_the_time_limit() -> None:
    env = gym.make("ConfoundingGrid-v0")
    env.reset(seed=0)
    ends = [env.step(np.int64(LEFT))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_returned_observations_are_not_overwritten() -> None:
    for env in (ConfoundingGrid(), ConfoundingGridVecEnv(2, seed=0)):
        first = env.reset()[0]
        before = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(env.reset()[0], before)


def test_states_are_not_overwritten() -> None:
    env = ConfoundingGridVecEnv(2, n_path=1, seed=0)
    env.reset()
    kept = [env.states]
    for _ in range(7):  # two episodes and one step of a third
        env.step(np.full(2, RIGHT))
        kept.append(env.states)
    copies = np.array(kept)
    env.reset()
    np.testing.assert_array_equal(kept, copies)
    assert (copies[-1] == 1).all()


# --- SB3


def gymnasium_copies(n_envs: int, seed: int) -> DummyVecEnv:
    """Copies of the Gymnasium environment that share one random generator."""
    env = DummyVecEnv([lambda: Monitor(gym.make("ConfoundingGrid-v0"))] * n_envs)
    env.reset()
    random = np.random.default_rng(seed)
    for copy in env.envs:
        copy.unwrapped.np_random = random
    return env


def test_both_forms_agree() -> None:
    """They return the same at every step, through every exit, the time limit and a reset."""
    ours, theirs = ConfoundingGridVecEnv(5, seed=3), gymnasium_copies(5, seed=3)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    rng = np.random.default_rng(0)
    all_rewards: set[float] = set()
    n_truncated = 0
    for step in range(1000):
        # stand still for a while, so that all episodes reach the time limit
        actions = np.full(5, LEFT) if 400 <= step < 620 else rng.choice(4, size=5, p=[0.2, 0.1, 0.1, 0.6])
        obs, rewards, dones, infos = ours.step(actions)
        their_obs, their_rewards, their_dones, their_infos = theirs.step(actions)
        np.testing.assert_array_equal(obs, their_obs)
        np.testing.assert_array_equal(rewards, their_rewards)
        assert rewards.dtype == their_rewards.dtype
        np.testing.assert_array_equal(dones, their_dones)
        np.testing.assert_array_equal(ours.states, [env.unwrapped.state for env in theirs.envs])
        for info, their_info in zip(infos, their_infos, strict=True):
            assert info.keys() == their_info.keys()
            assert info["TimeLimit.truncated"] is their_info["TimeLimit.truncated"]
            n_truncated += info["TimeLimit.truncated"]
            if "episode" in info:
                np.testing.assert_array_equal(info["terminal_observation"], their_info["terminal_observation"])
                assert info["episode"].keys() == their_info["episode"].keys()
                assert [info["episode"][key] for key in "rl"] == [their_info["episode"][key] for key in "rl"]
        all_rewards.update(rewards.round(3).tolist())
        if step == 700:
            np.testing.assert_array_equal(ours.reset(), theirs.reset())
    assert len(all_rewards) == 4 and n_truncated >= 5


def test_an_exit_at_the_time_limit_is_no_truncation() -> None:
    for env in (ConfoundingGridVecEnv(1, seed=0), gymnasium_copies(1, seed=0)):
        env.reset()
        for action in [LEFT] * 193 + [RIGHT] * 7:
            _, _, dones, infos = env.step(np.array([action]))
        assert dones[0] and infos[0]["episode"]["l"] == 200
        assert infos[0]["TimeLimit.truncated"] is False


def test_a_seed_decides_everything() -> None:
    def states(env: VecEnv) -> np.ndarray:
        env.reset()
        rng = np.random.default_rng(0)
        story = []
        for _ in range(50):
            env.step(rng.choice([UP, RIGHT], size=20))
            story.append(env.states)
        return np.array(story)

    env = ConfoundingGridVecEnv(20, seed=7)
    first, second = states(env), states(env)
    assert (first != second).any()
    np.testing.assert_array_equal(states(ConfoundingGridVecEnv(20, seed=7)), first)
    assert env.seed(7) == list(range(7, 27))
    env.step(np.full(20, RIGHT))  # a seed takes effect at the next reset
    np.testing.assert_array_equal(states(env), first)
    assert (states(ConfoundingGridVecEnv(20)) != first).any()


def test_attributes_methods_and_pictures() -> None:
    env = ConfoundingGridVecEnv(3, n_path=4)
    assert env.get_attr("mdp", indices=[0, 2]) == [env.mdp, env.mdp]
    assert env.has_attr("render_mode") and not env.has_attr("spec")
    with pytest.raises(NotImplementedError, match="ConfoundingGridVecEnv have nothing to set: give 'epsilon'"):
        env.set_attr("epsilon", 0.5)
    with pytest.raises(NotImplementedError, match="no method 'jump'"):
        env.env_method("jump")
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    env.reset()
    picture = env.render()
    assert picture is not None and picture.shape == (2 * 5 * 24, 2 * 7 * 24, 3)  # 2 x 2 tiles, one of them empty


def test_other_observations() -> None:
    class StateIndices(ConfoundingGridVecEnv):
        def __init__(self, n_envs: int) -> None:
            super().__init__(n_envs, seed=0)
            self.observation_space = spaces.Discrete(len(self.mdp.rewards))

        def _observe(self, states: np.ndarray) -> np.ndarray:
            return states.copy()

    env = StateIndices(2)
    assert env.reset().tolist() == [0, 0]
    assert env.step(np.array([RIGHT, LEFT]))[0].tolist() == [1, 0]
    for _ in range(6):
        obs, _, dones, infos = env.step(np.array([RIGHT, LEFT]))
    assert obs.tolist() == [0, 0] and dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"] in (7, 13)  # the two cells W


def test_evaluation() -> None:
    class AlwaysRight:
        def predict(self, obs: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, None]:
            return np.full(len(obs), RIGHT), None

    env = ConfoundingGridVecEnv(3, n_path=4, seed=0)
    rewards, lengths = evaluate_policy(AlwaysRight(), env, 5, return_episode_rewards=True)  # type: ignore[arg-type]
    assert rewards == [4.0] * 5 and lengths == [6] * 5


# --- bad input


@pytest.mark.parametrize("make", [ConfoundingGrid, ConfoundingGridVecEnv])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epsilon": 0}, r"epsilon must lie in \(0, 1\), .*, but got 0"),
        ({"epsilon": 1.0}, r"epsilon must lie in \(0, 1\), .*, but got 1\.0"),
        ({"epsilon": float("nan")}, r"epsilon must lie in \(0, 1\), .*, but got nan"),
        ({"n_path": 0}, "n_path must be a whole number from 1 to 81, but got 0"),
        ({"n_path": 2.5}, "n_path must be a whole number from 1 to 81, but got 2.5"),
        ({"n_path": 82}, "n_path must be a whole number from 1 to 81, but got 82"),
        ({"gamma": 0}, r"gamma must lie in \(0, 1\], but got 0"),
        ({"gamma": 1.01}, r"gamma must lie in \(0, 1\], but got 1\.01"),
    ],
)
def test_parameters_out_of_range(make: Any, kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_a_wrong_policy() -> None:
    mdp = make_maze().mdp
    uniform = np.full((16, 4), 0.25)
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\) for exact values, but got 1"):
        policy_value(mdp, uniform, 1)
    with pytest.raises(ValueError, match=r"shape \(states, actions\) = \(16, 4\), not \(4,\)"):
        policy_value(mdp, uniform[0], 0.9)
    for probability in (-0.1, 1.5, np.nan):
        wrong = uniform.copy()
        wrong[3, 2] = probability
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], but got {probability}"):
            policy_value(mdp, wrong, 0.9)
    with pytest.raises(ValueError, match="must sum to 1"):
        policy_value(mdp, uniform / 2, 0.9)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="render_mode must be 'rgb_array', 'ansi' or None, but got 'human'"):
        ConfoundingGrid(render_mode="human")
    with pytest.raises(ValueError, match="An action must be a whole number from 0 to 3, but got -1"):
        ConfoundingGrid().step(np.int64(-1))
    with pytest.raises(ValueError, match="n_envs must be a whole number of at least 1, but got 0"):
        ConfoundingGridVecEnv(0)
    env = ConfoundingGridVecEnv(2)
    with pytest.raises(ResetNeeded, match="Call reset"):
        env.step(np.zeros(2, dtype=int))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2,\), not \(3,\)"):
        env.step(np.zeros(3, dtype=int))
    for actions in ([0, 4], [-1, 0], [0.0, 1.0]):
        with pytest.raises(ValueError, match="whole numbers from 0 to 3"):
            env.step(np.array(actions))
