"""The EnvPool adapter behaves as SB3's environments do, also where EnvPool does not."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.results_plotter import load_results
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize, VecTransposeImage

from sbx_deepspi import DeepSPI
from sbx_deepspi.envs import EnvPoolVecEnv, make_envpool_env
from sbx_deepspi.envs.envpool import resolve_env_id

envpool = pytest.importorskip("envpool")
ale_py = pytest.importorskip("ale_py")
gym.register_envs(ale_py)

Policy = Callable[[VecEnv, np.random.Generator], np.ndarray]


def random_actions(env: VecEnv, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(env.action_space.n, size=env.num_envs)


def always_up(env: VecEnv, rng: np.random.Generator) -> np.ndarray:
    return np.ones(env.num_envs, dtype=int)


def sb3_atari_env(env_id: str, n_envs: int) -> VecEnv:
    return VecTransposeImage(VecFrameStack(make_atari_env(env_id, n_envs, seed=0), 4))


def play(env: VecEnv, n_games: int, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Scores and lengths of the first games of each environment, counted independently of the adapter."""
    rng = np.random.default_rng(0)
    scores: list[list[float]] = [[] for _ in range(env.num_envs)]
    lengths: list[list[int]] = [[] for _ in range(env.num_envs)]
    steps = np.zeros(env.num_envs, dtype=int)
    env.reset()
    while min(map(len, scores)) < n_games:
        _, _, dones, infos = env.step(policy(env, rng))
        steps += 1
        for i in np.flatnonzero(dones):
            if "episode" in infos[i]:
                scores[i].append(infos[i]["episode"]["r"])
                lengths[i].append(steps[i])
                # Both count frames. SB3's monitor also counts up to 30 no-ops and FIRE.
                extra_frames = infos[i]["episode"]["l"] - 4 * steps[i]
                assert extra_frames == 0 if isinstance(env, EnvPoolVecEnv) else -4 <= extra_frames <= 100
                steps[i] = 0
    return np.array([s[:n_games] for s in scores]), np.array([n[:n_games] for n in lengths])


# --- ids and options


def test_every_registered_game_is_in_envpool() -> None:
    ids = [env_id for env_id in gym.registry if env_id.endswith("NoFrameskip-v4")]
    assert len(ids) > 50
    tasks = envpool.list_all_envs()
    for env_id in ids:
        assert resolve_env_id(env_id)[0] in tasks
        frames = gym.spec(env_id).kwargs["max_num_frames_per_episode"]
        assert resolve_env_id(env_id)[1]["max_episode_steps"] * 4 == frames


@pytest.mark.parametrize(
    ("env_id", "task", "sticky", "frame_skip"),
    [
        ("Breakout-v5", "Breakout-v5", 0.0, 4),
        ("BreakoutNoFrameskip-v4", "Breakout-v5", 0.0, 4),
        ("BreakoutNoFrameskip-v0", "Breakout-v5", 0.25, 4),
        ("BreakoutDeterministic-v4", "Breakout-v5", 0.0, 4),
        ("BreakoutDeterministic-v0", "Breakout-v5", 0.25, 4),
        ("SpaceInvadersDeterministic-v4", "SpaceInvaders-v5", 0.0, 3),
        ("ALE/MsPacman-v5", "MsPacman-v5", 0.25, 4),
        ("JamesBondNoFrameskip-v4", "Jamesbond-v5", 0.0, 4),
        ("JamesbondNoFrameskip-v4", "Jamesbond-v5", 0.0, 4),
    ],
)
def test_an_atari_id_means_its_settings(env_id: str, task: str, sticky: float, frame_skip: int) -> None:
    env = make_envpool_env(env_id, n_envs=1)
    settings = env.settings
    assert env.task == task
    assert settings["repeat_action_probability"] == sticky
    assert settings["frame_skip"] == frame_skip
    assert settings["max_episode_steps"] * frame_skip == 108_000
    assert settings["episodic_life"] and settings["reward_clip"] and settings["use_fire_reset"]
    assert settings["noop_max"] == 30 and not settings["full_action_space"]


def test_options_override_the_id() -> None:
    env = make_envpool_env("ALE/Breakout-v5", 1, repeat_action_probability=0.3, noop_max=60, stack_num=2)
    assert env.observation_space.shape == (2, 84, 84)
    env.reset()
    assert env._pool.config["repeat_action_probability"] == pytest.approx(0.3)
    assert env._pool.config["noop_max"] == 60
    assert make_envpool_env("Breakout-v5", 1, full_action_space=True).action_space == spaces.Discrete(18)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Breakot-v5", "did you mean 'Breakout-v5'"),
        ("breakout-v5", "did you mean 'Breakout-v5'"),
        ("BreakoutNoFrameskp-v4", "did you mean 'BreakoutNoFrameskip-v4'"),
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("Breakout-v4", "use 'BreakoutNoFrameskip-v4'"),
        ("Breakout-v0", "use 'BreakoutNoFrameskip-v0'"),
        ("Breakout-ram-v4", "use 'Breakout-v5'"),
        ("Breakout-ramNoFrameskip-v4", "use 'Breakout-v5'"),
        ("Go9x9-v1", "several players"),
    ],
)
def test_a_wrong_id_gets_a_suggestion(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_envpool_env(env_id, n_envs=1)


def test_a_wrong_keyword_gets_a_suggestion() -> None:
    with pytest.raises(TypeError, match="did you mean 'frame_skip'"):
        make_envpool_env("Breakout-v5", frame_skp=2)
    with pytest.raises(TypeError, match="did you mean 'n_envs'"):
        make_envpool_env("Breakout-v5", num_envs=2)
    with pytest.raises(ValueError, match="n_envs must be at least 1"):
        make_envpool_env("Breakout-v5", n_envs=0)


def test_without_envpool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"(?s)sbx-deepspi\[atari\].*make_atari_env"):
        make_envpool_env("Breakout-v5")


def test_copies_are_the_same_environments_in_other_games() -> None:
    env = make_envpool_env("FrozenLake-v1", n_envs=2, seed=0)
    env.reset()
    for copied in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert (copied.task, copied.num_envs, copied.settings) == (env.task, env.num_envs, env.settings)
        with pytest.raises(RuntimeError, match="call reset"):
            copied.step(np.zeros(2, int))
        assert copied.reset().shape == (2,)


def test_envpool_is_imported_only_when_used() -> None:
    code = "import sys, sbx_deepspi.envs; sys.exit('envpool' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- SB3's semantics


def test_steps_equal_those_of_bare_envpool() -> None:
    """Bare EnvPool takes an extra step after each end. Without these steps, both give the same transitions."""
    n_envs, n_steps = 5, 150
    actions = np.random.default_rng(0).integers(4, size=(n_steps, n_envs))
    env = make_envpool_env("Breakout-v5", n_envs, seed=3)
    pool = envpool.make_gymnasium("Breakout-v5", num_envs=n_envs, seed=3, **env.settings)

    obs, _ = pool.reset()
    np.testing.assert_array_equal(env.reset(), obs)
    # Each environment's transitions: observation after the action, reward, done, observation for the next action
    bare: list[list[list[Any]]] = [[] for _ in range(n_envs)]
    ended = np.zeros(n_envs, dtype=bool)
    while min(map(len, bare)) <= n_steps:
        now = [min(len(transitions), n_steps - 1) for transitions in bare]
        obs, rewards, terminated, truncated, info = pool.step(actions[now, range(n_envs)])
        assert info["env_id"].tolist() == list(range(n_envs))
        for i in range(n_envs):
            if ended[i]:
                bare[i][-1][3] = obs[i]
            else:
                bare[i].append([obs[i], rewards[i], terminated[i] or truncated[i], obs[i]])
        ended = np.where(ended, False, terminated | truncated)

    n_ends = 0
    for t in range(n_steps):
        obs, rewards, dones, infos = env.step(actions[t])
        for i in range(n_envs):
            last_obs, reward, done, next_obs = bare[i][t]
            assert rewards[i] == reward and dones[i] == done
            np.testing.assert_array_equal(infos[i]["terminal_observation"] if done else obs[i], last_obs)
            np.testing.assert_array_equal(obs[i], next_obs)
        n_ends += dones.sum()
    assert n_ends > n_envs


def test_a_lost_life_ends_an_episode_but_not_the_game() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=3, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    lives, score, length = [np.full(3, 5), np.zeros(3), np.zeros(3, dtype=int)]
    n_lives, n_games = 0, 0
    for _ in range(400):
        obs, _, dones, infos = env.step(random_actions(env, rng))
        score += [info["reward"] for info in infos]
        length += 1
        for i, info in enumerate(infos):
            assert info["TimeLimit.truncated"] is False
            assert ("terminal_observation" in info) == dones[i] == (info["lives"] < lives[i])
            assert ("episode" in info) == (info["lives"] == 0)
            lives[i] = info["lives"]
            if not dones[i]:
                continue
            assert not np.shares_memory(info["terminal_observation"], obs)
            n_lives += 1
            if "episode" in info:
                assert info["episode"]["r"] == score[i] and info["episode"]["l"] == 4 * length[i]
                assert env.reset_infos[i]["elapsed_step"] == 0
                lives[i], score[i], length[i] = 5, 0, 0
                n_games += 1
            else:
                assert env.reset_infos[i]["lives"] == lives[i]
                assert env.reset_infos[i]["elapsed_step"] == length[i]
    assert n_games >= 3 and n_lives >= 5 * n_games


def test_without_episodic_life_only_games_end() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=2, seed=0, episodic_life=False)
    env.reset()
    rng = np.random.default_rng(0)
    dones = 0
    for _ in range(300):
        _, _, done, infos = env.step(random_actions(env, rng))
        assert [("episode" in info) for info in infos] == done.tolist()
        dones += done.sum()
    assert dones >= 2


def test_the_time_limit_ends_the_game() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=4, seed=0, max_episode_steps=60)
    env.reset()
    for step in range(1, 121):
        _, _, dones, infos = env.step(np.full(4, 2 + (step // 30) % 2))
        at_limit = step % 60 == 0
        for info, done, reset_info in zip(infos, dones, env.reset_infos, strict=True):
            assert info["TimeLimit.truncated"] is at_limit
            assert ("episode" in info) == at_limit
            if at_limit:
                assert done and info["episode"]["l"] == 4 * 60 and info["lives"] > 0
                assert reset_info["lives"] == 5 and reset_info["elapsed_step"] == 0


def test_a_life_lost_at_the_time_limit_is_no_truncation() -> None:
    # If the paddle does not move, most balls are lost at the 24th step
    for episodic_life in (True, False):
        env = make_envpool_env("Breakout-v5", 8, seed=0, max_episode_steps=24, episodic_life=episodic_life)
        env.reset()
        for _ in range(24):
            _, _, dones, infos = env.step(np.zeros(8, dtype=int))
        lost = [info["lives"] == 4 for info in infos]
        assert dones.all() and all("episode" in info for info in infos) and any(lost)
        truncated = [info["TimeLimit.truncated"] for info in infos]
        assert truncated == [not (episodic_life and life_lost) for life_lost in lost]


def test_a_game_that_ends_between_two_lives_is_reported() -> None:
    # In RoadRunner the game can end during the no-ops after a lost life
    env = make_envpool_env("RoadRunner-v5", n_envs=8, seed=1)
    env.reset()
    rng = np.random.default_rng(0)
    score = np.zeros(8)
    hidden_ends, largest = 0, 0.0
    for _ in range(300):
        _, rewards, dones, infos = env.step(random_actions(env, rng))
        assert np.isin(rewards, (-1, 0, 1)).all()
        score += [info["reward"] for info in infos]
        for i in np.flatnonzero(dones):
            new_game = env.reset_infos[i]["lives"] == 3
            assert ("episode" in infos[i]) == new_game
            if new_game:
                hidden_ends += not infos[i]["terminated"]
                assert infos[i]["episode"]["r"] == score[i]
                largest = max(largest, score[i])
                score[i] = 0
    assert hidden_ends > 0 and largest >= 100


def test_reset_begins_new_games() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=2, seed=0)
    env.reset()
    while env.reset_infos[0]["lives"] == 5:
        env.step(np.zeros(2, dtype=int))
    env.reset()
    assert [info["lives"] for info in env.reset_infos] == [5, 5]
    _, _, _, infos = env.step(np.zeros(2, dtype=int))
    assert [info["elapsed_step"] for info in infos] == [1, 1]
    assert env._lengths.tolist() == [1, 1] and env._scores.tolist() == [0, 0]


def test_returned_observations_are_not_overwritten() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=3, seed=0)
    rng = np.random.default_rng(0)
    kept = [env.reset()]
    for _ in range(60):
        obs, _, _, infos = env.step(random_actions(env, rng))
        kept.append(obs)
        kept.extend(info["terminal_observation"] for info in infos if "terminal_observation" in info)
        if len(kept) < 40:
            copies = [array.copy() for array in kept]
    for array, before in zip(kept, copies, strict=False):
        np.testing.assert_array_equal(array, before)


def test_a_seed_decides_everything() -> None:
    def trajectory(env: VecEnv) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        steps = [(env.reset(),)] + [env.step(random_actions(env, rng))[:3] for _ in range(80)]
        return [array for step in steps for array in step]

    def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    env = make_envpool_env("ALE/Breakout-v5", n_envs=3, seed=5)
    first, second = trajectory(env), trajectory(env)
    assert not same(first, second)
    assert same(first, trajectory(make_envpool_env("ALE/Breakout-v5", n_envs=3, seed=5, num_threads=1)))
    assert env.seed(5) == [5, 6, 7]
    assert same(first, trajectory(env))
    env.seed(2**32 - 1)  # SB3 draws seeds of 32 bits, EnvPool takes 31
    assert not same(first, trajectory(env))


@pytest.mark.parametrize(
    ("env_id", "policy", "n_envs", "n_games"),
    [
        ("BreakoutNoFrameskip-v4", random_actions, 8, 2),
        pytest.param("PongNoFrameskip-v4", random_actions, 4, 1, marks=pytest.mark.slow),
        # a game of Freeway always lasts 136 seconds, and its score varies little
        pytest.param("FreewayNoFrameskip-v4", always_up, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_games_are_those_of_sb3(env_id: str, policy: Policy, n_envs: int, n_games: int) -> None:
    ours, theirs = make_envpool_env(env_id, n_envs, seed=0), sb3_atari_env(env_id, n_envs)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    for own, sb3s in zip(play(ours, n_games, policy), play(theirs, n_games, policy), strict=True):
        standard_error = np.hypot(own.std(), sb3s.std()) / np.sqrt(own.size)
        assert abs(own.mean() - sb3s.mean()) <= 3 * standard_error + 0.01 * abs(sb3s.mean())


def test_frames_are_those_of_sb3() -> None:
    ours, theirs = make_envpool_env("Pong-v5", 1, seed=0), sb3_atari_env("PongNoFrameskip-v4", 1)
    before = ours.reset()
    theirs.reset()
    for _ in range(5):
        obs, sb3_obs = ours.step(np.zeros(1, dtype=int))[0], theirs.step(np.zeros(1, dtype=int))[0]
        np.testing.assert_array_equal(obs[:, :-1], before[:, 1:])  # the newest frame is the last of the stack
        before = obs
    assert obs.shape == sb3_obs.shape and obs.dtype == sb3_obs.dtype
    different = np.abs(obs.astype(int) - sb3_obs) > 2
    assert different.mean() < 0.02  # only the ball and the paddles are elsewhere


# --- SB3's tools


def test_training_with_sb3(tmp_path: Any) -> None:
    env = make_envpool_env("CartPole-v1", n_envs=4, monitor_dir=str(tmp_path))
    eval_env = make_envpool_env("CartPole-v1", n_envs=2)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0)
    callback = EvalCallback(eval_env, eval_freq=40, n_eval_episodes=3, verbose=0)
    model.learn(300, callback=callback)
    assert callback.last_mean_reward > 0
    assert len(model.ep_info_buffer) > 0
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=env)
    assert loaded.observation_space == env.observation_space

    rewards, lengths = evaluate_policy(model, eval_env, n_eval_episodes=4, return_episode_rewards=True)
    assert rewards == lengths  # a reward of one for each step

    env.close()
    env.close()
    results = load_results(str(tmp_path))
    assert len(results) > 4 and (results["r"] == results["l"]).all()


def test_evaluation_counts_whole_games() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=2, seed=0)

    class Random:
        def predict(self, obs: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, None]:
            return random_actions(env, np.random.default_rng(0)), None

    _, lengths = evaluate_policy(Random(), env, n_eval_episodes=2, return_episode_rewards=True)  # type: ignore
    assert min(lengths) > 5 * 20


def test_continuous_control_and_normalisation() -> None:
    env = make_envpool_env("HalfCheetah-v5", n_envs=2, seed=0, max_episode_steps=20)
    assert env.action_space == spaces.Box(-1, 1, (6,), np.float32)
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (17,), np.float64)
    for space in (env.observation_space, env.action_space):
        assert copy.deepcopy(space) == space == pickle.loads(pickle.dumps(space))

    venv = VecNormalize(env)
    obs = venv.reset()
    assert env.observation_space.dtype == env.reset().dtype
    rewards = []
    for _ in range(20):
        obs, _, dones, infos = venv.step(np.stack([env.action_space.sample() for _ in range(2)]))
        rewards.append(venv.get_original_reward())
    assert np.isfinite(obs).all() and dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["episode"]["l"] == 20
        assert info["episode"]["r"] == pytest.approx(np.sum(rewards, axis=0)[i], abs=1e-3)


def test_other_spaces() -> None:
    env = make_envpool_env("MiniGrid-Empty-5x5-v0", n_envs=2, seed=0, max_episode_steps=4)
    obs = env.reset()
    assert isinstance(env.observation_space, spaces.Dict) and obs.keys() == env.observation_space.keys()
    first_direction = obs["direction"][0]
    for _ in range(3):
        env.step(np.zeros(2, dtype=int))  # turn left
    obs, _, dones, infos = env.step(np.array([0, 2]))
    assert dones.all()
    last_obs = infos[0]["terminal_observation"]
    assert last_obs.keys() == obs.keys()
    assert last_obs["image"].shape == obs["image"][0].shape
    assert last_obs["direction"] == first_direction == obs["direction"][0]

    env = make_envpool_env("Connector-v2", n_envs=2, seed=0)
    assert env.action_space == spaces.MultiDiscrete([5] * 10)
    env.reset()
    env.step(np.stack([env.action_space.sample() for _ in range(2)]))

    env = make_envpool_env("FrozenLake-v1", n_envs=1, seed=0)
    assert env.reset().shape == (1,)


@pytest.mark.parametrize(
    ("env_id", "actions", "message"),
    [
        ("CartPole-v1", np.zeros(3, dtype=int), "shape"),
        ("CartPole-v1", np.zeros((2, 1), dtype=int), "shape"),
        ("CartPole-v1", np.zeros(2), "integers"),
        ("CartPole-v1", np.array([0, 2]), "not in Discrete"),
        ("CartPole-v1", np.array([-1, 0]), "not in Discrete"),
        ("Pendulum-v1", np.array([[0.0], [2.1]]), "not in Box"),
        ("Pendulum-v1", np.array([[0.0], [np.nan]]), "not in Box"),
    ],
)
def test_actions_are_checked(env_id: str, actions: np.ndarray, message: str) -> None:
    env = make_envpool_env(env_id, n_envs=2)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_attributes_and_methods() -> None:
    env = make_envpool_env("CartPole-v1", n_envs=3)
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
    assert env.get_attr("render_mode") == [None] * 3
    assert env.get_attr("action_space", indices=[0, 2]) == [env.action_space] * 2
    assert env.has_attr("render_mode") and not env.has_attr("gravity")
    with pytest.raises(AttributeError, match="gravity"):
        env.get_attr("gravity")
    with pytest.raises(NotImplementedError, match="gravity"):
        env.set_attr("gravity", 1)
    with pytest.raises(NotImplementedError, match="fly"):
        env.env_method("fly")
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(3, dtype=int))


def test_rendering() -> None:
    env = make_envpool_env("Breakout-v5", n_envs=2, render_mode="rgb_array")
    env.reset()
    image = env.render()
    assert image is not None and image.shape == (420, 160, 3)


def test_deepspi_trains_and_is_evaluated_on_it(tmp_path: Path) -> None:
    def run() -> DeepSPI:
        model = DeepSPI("CnnPolicy", make_envpool_env("Breakout-v5", n_envs=4), n_steps=8, batch_size=16, seed=5)
        evaluation = EvalCallback(
            make_envpool_env("Breakout-v5", n_envs=2, seed=9, max_episode_steps=40),
            n_eval_episodes=2,
            eval_freq=8,
            best_model_save_path=str(tmp_path),
            verbose=0,
        )
        return model.learn(64, callback=evaluation)

    first, second = run().policy.learner.parameters, run().policy.learner.parameters
    assert (tmp_path / "best_model.zip").is_file()
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))
