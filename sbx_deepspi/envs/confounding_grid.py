"""
The confounding grid: two corridors that look alike, and one action that is right in only one of them.

With the paper's n = 5, and the letters as in ``LOOKS``::

    #####G##
    #....!W#
    I@###F##
    #....!W#
    ########

The hazard @ leads into the top corridor, or with probability ε into the bottom one. Each step to the right in a
corridor pays 1. At its end, at !, going up pays a lot in the top corridor, and in the bottom one costs more than that
is worth. Whoever tells the two cells ! apart goes up in the top one only; who confuses them does best by going right.

One set of tables is the environment: a Gymnasium environment, its vectorised form and the exact values all read it.
"""

import time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from flax import struct
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sbx_deepspi import checks
from sbx_deepspi.envs.batched import BatchedVecEnv

UP, DOWN, LEFT, RIGHT = range(4)
MAX_EPISODE_STEPS = 200
FRAME_SIZE = 84  # pixels
CELL_SIZE = 24  # pixels, in pictures


class Look(NamedTuple):
    """
    How a kind of cell looks.

    :param intensity: in observations
    :param colour: red, green and blue, in pictures
    """

    intensity: int
    colour: tuple[int, int, int]


LOOKS = {
    "#": Look(50, (45, 45, 55)),  # wall: dark grey
    ".": Look(100, (225, 225, 225)),  # path: light grey
    "!": Look(100, (250, 205, 70)),  # the cell where to choose: yellow
    "@": Look(180, (150, 90, 190)),  # hazard: violet
    "I": Look(120, (130, 170, 230)),  # start: light blue
    "W": Look(200, (160, 220, 150)),  # the modest exit, to the right: light green
    "G": Look(220, (30, 150, 60)),  # the good exit: green
    "F": Look(220, (205, 50, 45)),  # the bad exit: red
    "A": Look(255, (20, 60, 160)),  # the agent: dark blue
}


class TabularMDP(struct.PyTreeNode):
    """
    A Markov decision process with S states and A actions, exactly.

    :param transitions: P(s'|s, a), float64, shape (S, A, S); a terminal state leads to itself
    :param rewards: r(s, a), float64, shape (S, A)
    :param terminal: whether an episode ends on entering s, shape (S,)
    :param initial: the state in which every episode begins
    """

    transitions: np.ndarray
    rewards: np.ndarray
    terminal: np.ndarray
    initial: int


class Maze(struct.PyTreeNode):
    """
    The confounding grid: its process and where its states lie. They are I, @, the top corridor from left to right
    (its path, ! and W), the bottom one, G and F.

    :param mdp: the process
    :param layout: the letter of each cell, shape (5, n_path + 3)
    :param cells: row and column of each state's cell, shape (S, 2)
    """

    mdp: TabularMDP
    layout: np.ndarray
    cells: np.ndarray


def make_maze(n_path: int = 5, epsilon: float = 0.2, gamma: float = 0.99) -> Maze:
    """
    Lay out the grid and fill in its tables.

    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W. With 1,
        there is no room between the corridors: F takes the place of @ in the layout, though they stay two states.
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount for which the exits' rewards are set
    :return: the maze, of 2·n_path + 6 states
    :raises ValueError: a parameter is out of its range
    """
    longest = FRAME_SIZE - 3  # beyond, frames have fewer pixels than the grid has columns
    if not (isinstance(n_path, (int, np.integer)) and 1 <= n_path <= longest):
        raise ValueError(f"n_path must be a whole number from 1 to {longest}, but got {n_path!r}.")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must lie in (0, 1), for @ to lead into both corridors, but got {epsilon!r}.")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1], but got {gamma!r}.")

    columns = range(1, n_path + 2)
    cells = [(2, 0), (2, 1), *((row, column) for row in (1, 3) for column in columns), (0, n_path), (2, n_path)]
    corridor = "." * (n_path - 1) + "!W"
    layout = np.full((5, n_path + 3), "#")
    layout[tuple(np.transpose(cells))] = list(f"I@{corridor}{corridor}GF")

    start, hazard = 0, 1
    top = 2 + np.arange(n_path + 1)
    bottom = top + n_path + 1
    good, bad = len(cells) - 2, len(cells) - 1

    into = np.eye(len(cells))
    transitions = np.tile(into[:, None], (1, 4, 1))  # what is not said below stays in place
    rewards = np.zeros((len(cells), 4))
    transitions[start, RIGHT] = into[hazard]
    transitions[hazard, :] = (1 - epsilon) * into[top[0]] + epsilon * into[bottom[0]]
    for corridor_states, exit_up, reward_up in (
        (top, good, n_path / gamma**n_path),
        (bottom, bad, -(2 - epsilon) * n_path / (epsilon * gamma**n_path)),
    ):
        transitions[corridor_states[:-1], RIGHT] = into[corridor_states[1:]]
        rewards[corridor_states[:-1], RIGHT] = 1
        choice = corridor_states[-2]
        transitions[choice, UP] = into[exit_up]
        rewards[choice, UP] = reward_up
    terminal = np.isin(np.arange(len(cells)), [top[-1], bottom[-1], good, bad])
    return Maze(TabularMDP(transitions, rewards, terminal, start), layout, np.array(cells))


def policy_value(mdp: TabularMDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """
    What a policy is worth in each state, exactly: the solution of V = r_π + γ P_π V, without a time limit.

    :param mdp: the process
    :param policy: π(a|s), shape (S, A)
    :param gamma: the discount, below 1, without which an episode that never ends would have no value
    :return: V, float64, shape (S,); 0 in terminal states
    :raises ValueError: the discount or a probability is out of its range, or the policy has another shape
    """
    policy = np.asarray(policy, dtype=np.float64)
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1) for exact values, but got {gamma!r}.")
    if policy.shape != mdp.rewards.shape:
        raise ValueError(f"The policy must have the shape (states, actions) = {mdp.rewards.shape}, not {policy.shape}.")
    is_probability = (policy >= 0) & (policy <= 1)
    if not is_probability.all():
        raise ValueError(f"The policy's probabilities must lie in [0, 1], but got {policy[~is_probability][0]}.")
    if not np.allclose(policy.sum(axis=1), 1):
        raise ValueError("The policy's probabilities must sum to 1 in each state.")
    rewards = np.where(mdp.terminal, 0, np.einsum("sa,sa->s", policy, mdp.rewards))
    transitions = np.einsum("sa,sax->sx", policy, mdp.transitions)
    return np.linalg.solve(np.eye(len(rewards)) - gamma * transitions, rewards)


def draw_next_states(
    mdp: TabularMDP, states: np.ndarray | int, actions: np.ndarray | int, random: np.random.Generator
) -> np.ndarray:
    """
    Draw s' for each pair (s, a), at the price of one random number each.

    :param mdp: the process
    :param states: s, of any shape
    :param actions: a, of the same shape
    :param random: where the random numbers come from
    :return: s', of the same shape
    """
    cumulative = mdp.transitions[states, actions].cumsum(axis=-1)
    drawn = random.random(np.shape(states)) * cumulative[..., -1]  # which rounding may have left just below 1
    return (cumulative <= drawn[..., None]).sum(axis=-1)


def make_frames(maze: Maze) -> np.ndarray:
    """
    What is seen in each state: the cells' intensities, resized to the nearest neighbour as OpenCV does it.

    :param maze: the maze
    :return: uint8, shape (S, 1, 84, 84)
    """
    intensities = np.vectorize(lambda letter: LOOKS[letter].intensity, otypes=[np.uint8])(maze.layout)
    grids = np.tile(intensities, (len(maze.cells), 1, 1, 1))
    rows, columns = maze.cells.T
    grids[np.arange(len(grids)), 0, rows, columns] = LOOKS["A"].intensity
    for axis in (2, 3):
        nearest = np.arange(FRAME_SIZE) * grids.shape[axis] // FRAME_SIZE
        grids = grids.take(nearest, axis)
    return grids


def draw_text(maze: Maze, state: int) -> str:
    """
    :param maze: the maze
    :param state: where the agent is
    :return: the layout, a line for each row, with A for the agent
    """
    letters = maze.layout.copy()
    letters[tuple(maze.cells[state])] = "A"
    return "\n".join("".join(row) for row in letters)


def draw_picture(maze: Maze, state: int) -> np.ndarray:
    """
    :param maze: the maze
    :param state: where the agent is
    :return: the layout in the colours of ``LOOKS``, with a disc for the agent: uint8, shape (height, width, 3)
    """
    colours = np.array([[LOOKS[letter].colour for letter in row] for row in maze.layout], dtype=np.uint8)
    picture = colours.repeat(CELL_SIZE, axis=0).repeat(CELL_SIZE, axis=1)
    row, column = maze.cells[state] * CELL_SIZE
    from_centre = np.arange(CELL_SIZE) - (CELL_SIZE - 1) / 2
    disc = np.hypot(from_centre[:, None], from_centre) < 0.38 * CELL_SIZE
    picture[row : row + CELL_SIZE, column : column + CELL_SIZE][disc] = LOOKS["A"].colour
    return picture


def make_observation_space() -> spaces.Box:
    """
    :return: grey frames with the channel first
    """
    return spaces.Box(0, 255, (1, FRAME_SIZE, FRAME_SIZE), np.uint8)


class ConfoundingGrid(gym.Env[np.ndarray, np.integer]):
    """
    The confounding grid in Gymnasium, there as ``ConfoundingGrid-v0`` with a limit of 200 steps.

    An observation is a frame, uint8 of shape (1, 84, 84). The actions are 0 up, 1 down, 2 left and 3 right; one that
    leads nowhere stays in place and pays 0.

    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount for which the exits' rewards are set: n/γⁿ in G, -(2-ε)n/(εγⁿ) in F
    :param render_mode: ``"rgb_array"``, ``"ansi"`` or ``None``
    :raises ValueError: a parameter is out of its range
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 5}  # noqa: RUF012  # as Gymnasium has it

    def __init__(
        self, n_path: int = 5, epsilon: float = 0.2, gamma: float = 0.99, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array', 'ansi' or None, but got {render_mode!r}.")
        self.maze = make_maze(n_path, epsilon, gamma)
        self.mdp = self.maze.mdp
        self.render_mode = render_mode
        self.observation_space = make_observation_space()
        self.action_space = spaces.Discrete(4)
        self.state = self.mdp.initial
        self._frames = make_frames(self.maze)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Go back to the start.

        :param seed: of all that is random from now on; None goes on as before
        :param options: not used
        :return: the observation, and nothing more to know
        """
        super().reset(seed=seed)
        self.state = self.mdp.initial
        return self._frames[self.state].copy(), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: 0 up, 1 down, 2 left or 3 right
        :return: observation, reward, whether the episode ended, whether it was cut (never here: the time limit is a
            wrapper's), and nothing more to know
        :raises ValueError: there is no such action
        """
        if not self.action_space.contains(action):
            raise ValueError(f"An action must be a whole number from 0 to 3, but got {action}.")
        reward = float(self.mdp.rewards[self.state, action])
        self.state = int(draw_next_states(self.mdp, self.state, int(action), self.np_random))
        return self._frames[self.state].copy(), reward, bool(self.mdp.terminal[self.state]), False, {}

    def render(self) -> Any:
        """
        :return: :func:`draw_picture` or :func:`draw_text`, as ``render_mode`` says
        """
        match self.render_mode:
            case "rgb_array":
                return draw_picture(self.maze, self.state)
            case "ansi":
                return draw_text(self.maze, self.state)
        return None


class ConfoundingGridVecEnv(BatchedVecEnv):
    """
    Many copies of ``ConfoundingGrid-v0`` in one SB3 ``VecEnv``, stepped together by looking up their tables.

    It does what SB3's ``DummyVecEnv`` does with copies that a ``Monitor`` wraps and that share one random generator.
    ``states`` has the state of each copy, an array that is replaced and never changed; whoever wants other observations
    than frames overrides ``_observe``.

    :param n_envs: how many copies to run
    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount for which the exits' rewards are set: n/γⁿ in G, -(2-ε)n/(εγⁿ) in F
    :param seed: of all that is random; None draws one
    :raises ValueError: a parameter is out of its range
    """

    SHARED_ATTRIBUTES = (*BatchedVecEnv.SHARED_ATTRIBUTES, "maze", "mdp")
    render_mode = "rgb_array"

    def __init__(
        self,
        n_envs: int = 128,
        n_path: int = 5,
        epsilon: float = 0.2,
        gamma: float = 0.99,
        seed: int | None = None,
    ) -> None:
        checks.positive_integer(n_envs=n_envs)
        super().__init__(n_envs, make_observation_space(), spaces.Discrete(4))
        self.maze = make_maze(n_path, epsilon, gamma)
        self.mdp = self.maze.mdp
        self.states = np.full(n_envs, self.mdp.initial)
        self._frames = make_frames(self.maze)
        self._random: np.random.Generator | None = None  # made by reset(), as SB3 wants a seed to wait for it
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=int)
        self._start_time = time.time()
        self.seed(seed)

    def _observe(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: shape (batch,)
        :return: what is to be seen in them, a new array of shape (batch, 1, 84, 84)
        """
        return self._frames[states]

    def reset(self) -> np.ndarray:
        """
        Go back to the start in all copies.

        :return: observations, shape (n_envs, 1, 84, 84)
        """
        if self._seeds[0] is not None:
            self._random = np.random.default_rng(self._seeds[0])
            self._reset_seeds()
        self.states = np.full_like(self.states, self.mdp.initial)  # a new array: someone may hold the old one
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._observe(self.states)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Take note of the actions of the next step.

        :param actions: 0 up, 1 down, 2 left or 3 right, shape (n_envs,)
        :raises ValueError: their shape is wrong, or there is no such action
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"Actions must have the shape {(self.num_envs,)}, not {actions.shape}.")
        if not (np.issubdtype(actions.dtype, np.integer) and np.all((actions >= 0) & (actions <= 3))):
            raise ValueError(f"Actions must be whole numbers from 0 to 3, but got {actions}.")
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Make the step; a copy whose episode ends with it goes back to the start at once.

        :return: observations of shape (n_envs, 1, 84, 84), float32 rewards and dones of shape (n_envs,), and an info
            for each copy
        :raises ResetNeeded: there was no reset yet
        """
        if self._random is None:
            raise ResetNeeded("Call reset() before the first step().")
        rewards = self.mdp.rewards[self.states, self._actions]
        self.states = draw_next_states(self.mdp, self.states, self._actions, self._random)
        self._returns += rewards
        self._lengths += 1
        terminated = self.mdp.terminal[self.states]
        truncated = ~terminated & (self._lengths == MAX_EPISODE_STEPS)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": cut} for cut in truncated.tolist()]
        if dones.any():
            self._restart(np.flatnonzero(dones), infos)
        return self._observe(self.states), rewards.astype(np.float32), dones, infos

    def _restart(self, finished: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Send the finished copies back to the start, and tell of their episodes.

        :param finished: the indices of the copies
        :param infos: the step's infos, which get what SB3 and its ``Monitor`` say at an episode's end
        """
        seconds = round(time.time() - self._start_time, 6)
        for env, last_observation in zip(finished, self._observe(self.states[finished]), strict=True):
            infos[env]["terminal_observation"] = last_observation
            infos[env]["episode"] = {
                "r": round(float(self._returns[env]), 6),
                "l": int(self._lengths[env]),
                "t": seconds,
            }
        self.states[finished] = self.mdp.initial
        self._returns[finished] = 0
        self._lengths[finished] = 0

    def close(self) -> None:
        """There is nothing to close."""

    def get_images(self) -> list[np.ndarray | None]:
        return [draw_picture(self.maze, state) for state in self.states]
