"""
The confounding grid: two corridors that look alike, and an action that pays in only one of them.

The layout for the paper's n = 5 (``LOOKS`` explains the letters)::

    #####G##
    #....!W#
    I@###F##
    #....!W#
    ########

The hazard @ leads into the bottom corridor with probability ε, else into the top one. Each step to the right in a
corridor pays 1. At the cell !, going up pays a lot in the top corridor and costs even more in the bottom one. If an
agent distinguishes the two cells !, it should go up in the top corridor only; if it confuses them, it does best by
always going right.

The Gymnasium environment, its vectorised form and the exact values use the same tables of probabilities and rewards.
"""

import time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from flax import struct
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sbx_deepspi import valid
from sbx_deepspi.env_ids import GRID_STEPS
from sbx_deepspi.envs.batched import BatchedVecEnv

UP, DOWN, LEFT, RIGHT = range(4)
FRAME_SIZE = 84  # pixels of an observation's side
CELL_SIZE = 24  # pixels of a cell's side in rendered pictures


class Look(NamedTuple):
    """
    How one kind of cell looks.

    :param intensity: its grey level in observations
    :param colour: its red, green and blue in rendered pictures
    """

    intensity: int
    colour: tuple[int, int, int]


LOOKS = {
    "#": Look(50, (45, 45, 55)),  # wall: dark grey
    ".": Look(100, (225, 225, 225)),  # path: light grey
    "!": Look(100, (250, 205, 70)),  # the cell with the choice: yellow
    "@": Look(180, (150, 90, 190)),  # hazard: violet
    "I": Look(120, (130, 170, 230)),  # start: light blue
    "W": Look(200, (160, 220, 150)),  # the exit to the right: light green
    "G": Look(220, (30, 150, 60)),  # the good exit: green
    "F": Look(220, (205, 50, 45)),  # the bad exit: red
    "A": Look(255, (20, 60, 160)),  # the agent: dark blue
}


class TabularMDP(struct.PyTreeNode):
    """
    A Markov decision process with S states and A actions, given by its tables.

    :param transitions: P(s'|s, a), float64, shape (S, A, S); every action in a terminal state stays there
    :param rewards: r(s, a), float64, shape (S, A)
    :param terminal: whether an episode ends when it enters s, shape (S,)
    :param initial: the state in which every episode begins
    """

    transitions: np.ndarray
    rewards: np.ndarray
    terminal: np.ndarray
    initial: int


class Maze(struct.PyTreeNode):
    """
    The confounding grid: its process, its layout and the cell of each state. The order of the states is I, @, the top
    corridor from left to right (path, !, W), the bottom corridor likewise, G, F.

    :param mdp: the process
    :param layout: the letter of each cell, shape (5, n_path + 3)
    :param cells: the row and column of each state, shape (S, 2)
    """

    mdp: TabularMDP
    layout: np.ndarray
    cells: np.ndarray


def make_maze(n_path: int = 5, epsilon: float = 0.2, gamma: float = 0.99) -> Maze:
    """
    Make the layout and the tables.

    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W. With 1,
        F and @ lie in the same cell, which shows F; they are two states all the same.
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount in the exits' rewards
    :return: the maze, which has 2·n_path + 6 states
    :raises ValueError: a parameter is out of its range
    """
    longest = FRAME_SIZE - 3  # a longer grid would have more columns than a frame has pixels
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
    transitions = np.tile(into[:, None], (1, 4, 1))  # the default: stay in place
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
    The exact value of a policy in each state: the solution of V = r_π + γ P_π V. There is no time limit.

    :param mdp: the process
    :param policy: π(a|s), shape (S, A)
    :param gamma: the discount, below 1, so that an episode that never ends has a value
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
    Draw s' for each pair (s, a), each with one random number.

    :param mdp: the process
    :param states: s, of any shape
    :param actions: a, of the same shape
    :param random: the generator of the random numbers
    :return: s', of the same shape
    """
    cumulative = mdp.transitions[states, actions].cumsum(axis=-1)
    drawn = random.random(np.shape(states)) * cumulative[..., -1]  # the last sum may be rounded to just below 1
    return (cumulative <= drawn[..., None]).sum(axis=-1)


def make_frames(maze: Maze) -> np.ndarray:
    """
    The observation of each state: the cells' intensities, resized as OpenCV's nearest-neighbour interpolation does.

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
    :return: the layout with one line per row, and A where the agent is
    """
    letters = maze.layout.copy()
    letters[tuple(maze.cells[state])] = "A"
    return "\n".join("".join(row) for row in letters)


def draw_picture(maze: Maze, state: int) -> np.ndarray:
    """
    :param maze: the maze
    :param state: where the agent is
    :return: the layout in the colours of ``LOOKS``, and a disc where the agent is: uint8, shape (height, width, 3)
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
    :return: the space of grey frames, channel first
    """
    return spaces.Box(0, 255, (1, FRAME_SIZE, FRAME_SIZE), np.uint8)


def make_observations(maze: Maze, numbered: bool) -> tuple[spaces.Space, np.ndarray]:
    """
    :param maze: the maze
    :param numbered: whether the numbers of the frames are observed, not the frames
    :return: the space of observations, and the observation of each state
    """
    frames = make_frames(maze)
    if numbered:
        return spaces.Discrete(len(frames)), np.arange(len(frames))
    return make_observation_space(), frames


class ConfoundingGrid(gym.Env[Any, np.integer]):
    """
    The confounding grid as a Gymnasium environment, registered as ``ConfoundingGrid-v0`` with a limit of 200 steps.

    An observation is a frame, uint8 of shape (1, 84, 84). The actions are 0 up, 1 down, 2 left and 3 right. An action
    that the layout does not allow stays in place and pays 0.

    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount in the exits' rewards: n/γⁿ for G, -(2-ε)n/(εγⁿ) for F
    :param render_mode: ``"rgb_array"``, ``"ansi"`` or ``None``
    :param numbered: an observation is the number of its frame
    :raises ValueError: a parameter is out of its range
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 5}  # noqa: RUF012  # Gymnasium's own form

    def __init__(
        self,
        n_path: int = 5,
        epsilon: float = 0.2,
        gamma: float = 0.99,
        render_mode: str | None = None,
        numbered: bool = False,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array', 'ansi' or None, but got {render_mode!r}.")
        self.maze = make_maze(n_path, epsilon, gamma)
        self.mdp = self.maze.mdp
        self.render_mode = render_mode
        self.observation_space, self._observations = make_observations(self.maze, numbered)
        self.action_space = spaces.Discrete(4)
        self.state = self.mdp.initial

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """
        Go back to the start.

        :param seed: the seed of all random draws from now on; None continues the present sequence
        :param options: not used
        :return: the observation and an empty info
        """
        super().reset(seed=seed)
        self.state = self.mdp.initial
        return self._observations[self.state].copy(), {}

    def step(self, action: np.integer) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: 0 up, 1 down, 2 left or 3 right
        :return: observation, reward, terminated, truncated (always False: a wrapper of Gymnasium has the time limit),
            and an empty info
        :raises ValueError: there is no such action
        """
        if not self.action_space.contains(action):
            raise ValueError(f"An action must be a whole number from 0 to 3, but got {action}.")
        reward = float(self.mdp.rewards[self.state, action])
        self.state = int(draw_next_states(self.mdp, self.state, int(action), self.np_random))
        return self._observations[self.state].copy(), reward, bool(self.mdp.terminal[self.state]), False, {}

    def render(self) -> Any:
        """
        :return: the result of :func:`draw_picture` or :func:`draw_text`, depending on ``render_mode``
        """
        match self.render_mode:
            case "rgb_array":
                return draw_picture(self.maze, self.state)
            case "ansi":
                return draw_text(self.maze, self.state)
        return None


class ConfoundingGridVecEnv(BatchedVecEnv):
    """
    Many copies of ``ConfoundingGrid-v0`` in one SB3 ``VecEnv``, all stepped at once by looking up the tables.

    It behaves as SB3's ``DummyVecEnv`` with copies that are wrapped in a ``Monitor`` and share one random generator.
    ``states`` holds the state of each copy; each step replaces this array and never writes into it. A subclass that
    overrides ``_observe`` has other observations than frames.

    :param n_envs: number of copies
    :param n_path: the paper's n, from 1 to 81: the steps to the right from a corridor's first cell to its W
    :param epsilon: probability with which @ leads into the bottom corridor
    :param gamma: the discount in the exits' rewards: n/γⁿ for G, -(2-ε)n/(εγⁿ) for F
    :param seed: the seed of all random draws; None draws one
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
        valid.positive_integer(n_envs=n_envs)
        super().__init__(n_envs, make_observation_space(), spaces.Discrete(4))
        self.maze = make_maze(n_path, epsilon, gamma)
        self.mdp = self.maze.mdp
        self.states = np.full(n_envs, self.mdp.initial)
        self._frames = make_frames(self.maze)
        self._random: np.random.Generator | None = None  # made by reset(): in SB3 a seed takes effect at the next reset
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=int)
        self._start_time = time.time()
        self.seed(seed)

    def _observe(self, states: np.ndarray) -> np.ndarray:
        """
        :param states: shape (batch,)
        :return: their observations, a new array of shape (batch, 1, 84, 84)
        """
        return self._frames[states]

    def reset(self) -> np.ndarray:
        """
        Send all copies back to the start.

        :return: observations, shape (n_envs, 1, 84, 84)
        """
        if self._seeds[0] is not None:
            self._random = np.random.default_rng(self._seeds[0])
            self._reset_seeds()
        self.states = np.full_like(self.states, self.mdp.initial)  # a new array: a caller may have kept the old one
        self._returns[:] = 0
        self._lengths[:] = 0
        return self._observe(self.states)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Store the actions of the next step.

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
        Make the step. A copy whose episode ends goes back to the start within the same step.

        :return: observations of shape (n_envs, 1, 84, 84), float32 rewards and dones of shape (n_envs,), and one info
            per copy
        :raises ResetNeeded: reset() has not been called yet
        """
        if self._random is None:
            raise ResetNeeded("Call reset() before the first step().")
        rewards = self.mdp.rewards[self.states, self._actions]
        self.states = draw_next_states(self.mdp, self.states, self._actions, self._random)
        self._returns += rewards
        self._lengths += 1
        terminated = self.mdp.terminal[self.states]
        truncated = ~terminated & (self._lengths == GRID_STEPS)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": cut} for cut in truncated.tolist()]
        if dones.any():
            self._restart(np.flatnonzero(dones), infos)
        return self._observe(self.states), rewards.astype(np.float32), dones, infos

    def _restart(self, finished: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        Send the finished copies back to the start, and report their episodes.

        :param finished: the indices of the finished copies
        :param infos: the step's infos; those of finished copies get the entries that SB3 and its ``Monitor`` add
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
        """Do nothing: there is nothing to close."""

    def get_images(self) -> list[np.ndarray | None]:
        return [draw_picture(self.maze, state) for state in self.states]
