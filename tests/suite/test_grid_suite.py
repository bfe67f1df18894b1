"""The grid by its frames' numbers, exact values of policies on it, and the suite that logs them."""

import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

pytest.importorskip("rl_zoo3")

from sbx_deepspi import CnnPolicy, DeepSPI, make_jax_env
from sbx_deepspi.envs.confounding_grid import RIGHT, UP, make_frames, make_maze, policy_value
from sbx_deepspi.envs.jitted.gym_env import JaxGymEnv
from sbx_deepspi.networks.encoders import CnnEncoder
from sbx_deepspi.sb3.grid import FrameEncoder, GridCallback, GridPolicy, measure
from sbx_deepspi.suite.definition import SuiteError, find, load, parse
from sbx_deepspi.suite.folder import Folder
from sbx_deepspi.suite.training import train
from sbx_deepspi.zoo.registration import ExperimentManager

LATENT = dict(transition_density="categorical", n_variables=3, n_classes=2)
SMALL = dict(convolutions=[[4, 8, 8], [4, 3, 2]], features_extractor_kwargs=dict(features_dim=8))


def model_on(policy: Any, numbered: bool = True, of_env: dict[str, Any] | None = None, **kwargs: Any) -> DeepSPI:
    env = make_jax_env("ConfoundingGrid", 16, seed=0, numbered=numbered, **of_env or {})
    given = dict(n_steps=4, batch_size=32, n_epochs=2, seed=0, policy_kwargs=LATENT | SMALL)
    return DeepSPI(policy, env, **given | kwargs)


# --- the environment --------------------------------------------------------------------------------


def test_numbers_stand_for_frames() -> None:
    frames = make_frames(make_maze(3))
    envs = [make_jax_env("ConfoundingGrid", 8, seed=3, n_path=3, numbered=numbered) for numbered in (True, False)]
    numbers, seen = (env.reset() for env in envs)
    rng, n_ends = np.random.default_rng(0), 0
    for _ in range(30):
        np.testing.assert_array_equal(frames[numbers], seen)
        actions = rng.choice(4, 8, p=[0.2, 0.1, 0.1, 0.6])
        (numbers, *first, infos), (seen, *second, others) = (env.step(actions) for env in envs)
        np.testing.assert_array_equal(first, second)
        for info, other in zip(infos, others, strict=True):
            if info:
                n_ends += 1
                np.testing.assert_array_equal(frames[info["terminal_observation"]], other["terminal_observation"])
    assert n_ends > 8 and envs[0].observation_space == spaces.Discrete(12)


def test_gymnasium_makes_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with pytest.warns(UserWarning, match="latest versioned environment `ConfoundingGrid-v0`"):
        env = gym.make("ConfoundingGrid", numbered=True)
    inside = JaxGymEnv("ConfoundingGrid", numbered=True)
    assert env.observation_space == inside.observation_space == spaces.Discrete(16)
    for one in (env, inside):
        assert one.reset(seed=0)[0] == 0
        observation, *_ = one.step(RIGHT)
        assert observation == 1 and one.observation_space.contains(observation)


# --- the policy -------------------------------------------------------------------------------------


class OnFrames(CnnPolicy):
    """With minibatches of single transitions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.encodes_images = False


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.slow
def test_numbers_and_frames_learn_the_same(coefficient: float) -> None:
    of_loss = dict(reward_loss_coef=coefficient, transition_loss_coef=coefficient)
    numbers, frames = model_on(GridPolicy, **of_loss), model_on(OnFrames, numbered=False, **of_loss)
    first = numbers.policy.state_dict()
    numbers.learn(192), frames.learn(192)
    learned, others = numbers.policy.state_dict(), frames.policy.state_dict()
    assert learned.keys() == others.keys()
    moved = {name: float(abs(learned[name] - first[name]).max()) for name in learned}
    assert moved["encoder/encoder/kernel_0"] > 1e-3
    for name in learned:
        np.testing.assert_allclose(learned[name], others[name], atol=2e-5, err_msg=name)


def test_a_latent_state_is_categorical_without_a_world_model_too() -> None:
    networks = model_on(GridPolicy, reward_loss_coef=0.0, transition_loss_coef=0.0).policy.programs.networks
    assert networks.latent_shape == (3, 2) and networks.world_model is None


@pytest.mark.parametrize("n_path", [1, 5])
def test_each_window_is_multiplied_once(n_path: int) -> None:
    frames = make_frames(make_maze(n_path))
    fields = (((8, 8, 4), (8, 4, 2), (4, 3, 1)), True, True, jax.nn.relu, True)
    expected, parameters = jax.jit(CnnEncoder(*fields).init_with_output)(jax.random.key(0), frames)
    found = jax.jit(lambda parameters: FrameEncoder(*fields).apply(parameters, frames))(parameters)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_files(tmp_path: Path) -> None:
    model = model_on(GridPolicy)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    states = np.arange(16)
    for policy in (DeepSPI.load(tmp_path / "model").policy, GridPolicy.load(tmp_path / "policy")):
        assert type(policy) is GridPolicy
        np.testing.assert_array_equal(policy.predict_values(states), model.policy.predict_values(states))


@pytest.mark.parametrize("space", [spaces.Discrete(7), spaces.Box(0, 255, (1, 84, 84), np.uint8)])
def test_other_observations_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"GridPolicy needs the numbers .* numbered=True, or use 'CnnPolicy'"):
        GridPolicy(space, spaces.Discrete(4), lambda progress: 1.0)


# --- exact values -----------------------------------------------------------------------------------


def test_values_and_distance_by_hand() -> None:
    maze = make_maze()
    top, bottom = 6, 12  # the cells with the choice
    latents = np.zeros((16, 2))
    latents[top], latents[bottom] = (3, 0), (0, 4)
    policy = np.full((16, 4), 0.1)
    policy[:, RIGHT] = 0.7
    found = measure(maze, np.log(policy), latents, 0.99)
    assert found["value"] == pytest.approx(policy_value(maze.mdp, policy, 0.99)[0])
    # two steps to a corridor, then 1 for each of five
    right = 0.99**2 * sum(0.99**step for step in range(5))
    assert found["most_likely_value"] == pytest.approx(right) and right == pytest.approx(4.8035, abs=1e-4)
    assert found["distance"] == pytest.approx(5)
    policy[top] = policy[bottom] = 0.1
    policy[top, UP] = policy[bottom, RIGHT] = 0.7
    # four steps that pay 1, and n / 0.99^n instead of the fifth, in the top corridor only
    best = 0.99**2 * (sum(0.99**step for step in range(4)) + 0.99**4 * (0.8 * 5 / 0.99**5 + 0.2))
    assert measure(maze, np.log(policy), latents, 0.99)["most_likely_value"] == pytest.approx(best)
    assert best == pytest.approx(8.0103, abs=1e-4)


@pytest.mark.parametrize("numbered", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_callback_logs_the_policy_that_the_update_has_made(numbered: bool) -> None:
    of_env = dict(n_path=3, epsilon=0.4)
    model = model_on(GridPolicy if numbered else "CnnPolicy", numbered, of_env, gamma=0.9)
    model.set_logger(Logger(None, []))
    model.learn(64, callback=GridCallback())
    maze, policy = make_maze(**of_env), model.policy
    observations = np.arange(12) if numbered else make_frames(maze)
    decision, _ = policy.programs.decide(policy.learner.parameters, observations, jax.random.PRNGKey(0))
    value = policy_value(maze.mdp, np.exp(np.float64(decision.log_policy)), 0.9)[0]
    assert model.logger.name_to_value["grid/value"] == pytest.approx(value, rel=1e-5)
    assert {"grid/most_likely_value", "grid/distance"} <= model.logger.name_to_value.keys()


# --- the suite --------------------------------------------------------------------------------------


def test_its_hyperparameters() -> None:
    suite = load(find("confounding-grid"))
    assert suite.score == "grid/value" and [*suite.games] == ["1x16", "4x2", "8x2"]
    of_dreamspi = suite.hyperparams_of(suite.games["4x2"], suite.algorithms["dreamspi"])
    assert of_dreamspi["learning_rate"] == "lin_4e-5" and of_dreamspi["batch_size"] == 256
    assert of_dreamspi["policy_kwargs"] == {  # a game's and an algorithm's add up
        "transition_density": "categorical", "n_variables": 4, "n_classes": 2,
        "lipschitz_constant": 4.0, "optimizer_kwargs": {"eps": 1e-8},
    }  # fmt: skip
    for other in ("sb3_ppo", "sbx_ppo"):
        with pytest.raises(SuiteError, match=f"confounding-grid has no algorithm '{other}'"):
            suite.select("algorithms", [other])
    assert parse(yaml.safe_load(yaml.safe_dump(suite.plain())), Path("confounding-grid.yml")) == suite


@pytest.mark.slow
def test_a_run_has_exact_values_and_one_is_its_score(tmp_path: Path) -> None:
    suite = load(find("confounding-grid"))
    small = dict(n_envs=8, n_steps=4, batch_size=16, n_epochs=1, policy_kwargs=SMALL)
    suite = replace(suite, n_timesteps=96, hyperparams=suite.hyperparams | small)
    folder = Folder.of(tmp_path, suite)
    runs = folder.runs(["deepspi"], ["1x16"], range(2))
    train(runs)
    for run in runs:
        progress, now = run.progress(), run.read()
        assert progress.timesteps.tolist() == [32, 64, 96] and now["state"] == "done"
        assert progress[["grid/value", "grid/most_likely_value", "grid/distance"]].notna().all(axis=None)
        assert now["score"] == progress["grid/value"].iloc[-1]
    assert runs[0].read()["score"] != runs[1].read()["score"]
    with pytest.raises(SuiteError, match="another score"):
        Folder.of(tmp_path, replace(suite, score="return"))


@pytest.mark.parametrize("name", ["sbx_deepspi.sb3.grid.GirdPolicy", "sbx_deepspi.gird.GridPolicy", ".GridPolicy"])
def test_a_slip_in_a_policys_name_gives_one_sentence(name: str) -> None:
    experiment = ExperimentManager(Namespace(), "deepspi", "ConfoundingGrid", "logs", hyperparams={"policy": name})
    hyperparams, _ = experiment.read_hyperparameters()
    with pytest.raises(ValueError, match=r"The policy '.*' of the hyperparameters cannot be imported") as raised:
        experiment._preprocess_hyperparams(hyperparams)
    assert "\n" not in str(raised.value)


def test_a_policys_import_path_is_taken() -> None:
    own = {"policy": "sbx_deepspi.sb3.grid.GridPolicy"}
    experiment = ExperimentManager(Namespace(), "dreamspi", "ConfoundingGrid", "logs", hyperparams=own)
    hyperparams, _ = experiment.read_hyperparameters()
    hyperparams, *_ = experiment._preprocess_hyperparams(hyperparams)
    assert hyperparams["policy"] is GridPolicy
    assert hyperparams["ent_coef"] == 0.05  # by rl_zoo_hyperparams/
