"""The report as a user gets it: from a model's file to the page, or to one sentence."""

import csv
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sbx_deepspi import DeepMDP, DeepSPI, DreamSPI, SPICertificateCallback, make_jax_env
from sbx_deepspi.report import __main__ as report
from sbx_deepspi.report import environment, make, pictures
from sbx_deepspi.report.play import play
from sbx_deepspi.saving.environment import description_of
from tests.helpers import TINY_RUN, VECTOR, ToyEnv
from tests.jax_envs import needs_gymnax

SECTIONS = {"rewards", "ends", "open_loop", "returns", "dreams", "latent_space", "lipschitz", "certificates"}


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "N_STEPS", 64)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "numbers.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check_page(folder: Path) -> str:
    """Every section is there, every picture is in the page, with a sentence, and nothing comes from elsewhere."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<section id="(\w+)">', page)) == SECTIONS
    images = re.findall(r'<img src="([^"]{0,40})', page)
    assert images and all(image.startswith("data:image/png;base64,") for image in images)
    assert len(images) == len(list(folder.glob("*.png"))) == len(re.findall(r"<figcaption>Good: ", page))
    assert set(re.findall(r'href="([^#"][^"]*)"', page)) == {"numbers.csv"} and "<script" not in page
    assert 'name="viewport"' in page
    rows = rows_of(folder)
    assert SECTIONS - {"ends", "certificates"} <= {row["section"] for row in rows} <= SECTIONS
    for row in rows:
        float(row["value"])
    return page


@pytest.mark.slow
def test_a_report_on_dreamspi(tmp_path: Path, few_steps: None, capsys: pytest.CaptureFixture[str]) -> None:
    """On images, with ends, and with certificates; the environment is named in the file."""
    env = make_jax_env("ConfoundingGrid", n_envs=2, seed=0)
    kwargs: dict[str, Any] = dict(imagination_horizon=2, policy_kwargs=dict(net_arch=[8]), certificate_freq=1)
    model = DreamSPI("MlpPolicy", env, **TINY_RUN, **kwargs)
    model.learn(32, callback=SPICertificateCallback(tmp_path / "certificates.csv"))
    model.save(tmp_path / "model")

    assert report.main([str(tmp_path / "model.zip"), "-o", str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out == f"The report is in {tmp_path / 'page' / 'index.html'}\n"
    page = check_page(tmp_path / "page")
    assert "DreamSPI on ConfoundingGrid" in page and "certificates.csv" in page
    pictures_of = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert {"rewards", "ends", "open_loop", "dreams", "certificates_conditions"} <= pictures_of
    rows = rows_of(tmp_path / "page")
    assert {row["value"] for row in rows if row["quantity"] == "timesteps"} == {"16.0", "32.0"}
    # slopes found never exceed a bound that is proven
    of_rewards = [row for row in rows if row["section"] == "lipschitz" and row["series"] == "reward"]
    bound, *slopes = (float(row["value"]) for row in of_rewards)
    assert max(slopes) <= bound * 1.0001


@pytest.mark.slow
def test_a_report_on_deepspi_with_a_latent_map(tmp_path: Path, few_steps: None) -> None:
    env = make_jax_env("ConfoundingGrid", n_envs=2, seed=0, n_path=3)
    kwargs = dict(features_extractor_kwargs=dict(features_dim=8))
    DeepSPI("CnnPolicy", env, **TINY_RUN, policy_kwargs=kwargs).learn(16).save(tmp_path / "model")
    assert report.main([str(tmp_path / "model"), "-o", str(tmp_path / "page")]) == 0
    page = check_page(tmp_path / "page")
    assert "this model does not predict ends" in page and "There is no file of them beside the model" in page


@pytest.mark.slow
@needs_gymnax
def test_a_report_on_deepspi_that_normalises_inside_jit(tmp_path: Path, few_steps: None) -> None:
    """Box actions, and observations that are no images."""
    env = make_jax_env("gymnax/Pendulum-v1", n_envs=2, seed=0, normalize=True)
    kwargs: dict[str, Any] = dict(gamma=0.9, policy_kwargs=dict(transition_density="categorical"))
    model = DeepSPI("MlpPolicy", env, **TINY_RUN, **kwargs).learn(64)
    model.save(tmp_path / "model")
    loaded, env_id = environment.open_model(tmp_path / "model.zip", None, 3, seed=0)
    assert env_id == "gymnax/Pendulum-v1" and loaded.env is not None
    loaded.env.reset()
    statistics, learned = (some.get_vec_normalize_env().obs_rms.mean for some in (loaded, model))  # type: ignore[union-attr]
    np.testing.assert_array_equal(statistics, learned)
    assert report.main([str(tmp_path / "model.zip"), "-o", str(tmp_path / "page")]) == 0
    assert "one-hot" in check_page(tmp_path / "page")


@pytest.mark.slow
def test_a_report_on_deepmdp_in_a_folder_of_rl_zoos(tmp_path: Path, few_steps: None) -> None:
    """With the statistics of VecNormalize, from the file and not from RL Zoo's pickle."""
    env = VecNormalize(make_vec_env("CartPole-v1", 2), clip_obs=5.0)
    DeepMDP("MlpPolicy", env, **TINY_RUN, policy_kwargs=dict(transition_density="normal")).learn(64).save(
        tmp_path / "CartPole-v1.zip"
    )
    write_zoo_files(tmp_path / "CartPole-v1", env="CartPole-v1")
    assert report.main([str(tmp_path), "-o", str(tmp_path / "page")]) == 0
    assert "DeepMDP on CartPole-v1" in check_page(tmp_path / "page")


def test_episodes_are_played_as_the_algorithm_sees_them() -> None:
    env = DummyVecEnv([lambda: ToyEnv(VECTOR, spaces.Discrete(3), length=3)] * 2)
    ticks: list[int] = []
    played = play(DeepSPI("MlpPolicy", env, **TINY_RUN), 5, seed=0, tick=lambda: ticks.append(1))
    assert played.rewards.shape == played.actions.shape == (5, 2) and len(ticks) == 5
    np.testing.assert_array_equal(played.steps[:, 0], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(played.truncated[:, 1], [False, False, True, False, False])
    assert not played.terminated.any()
    # the last observation of an episode, not the first of the next one
    same = (played.next_observations[:-1] == played.observations[1:]).all(axis=(1, 2))
    np.testing.assert_array_equal(same, [True, True, False, True])


# --- environments -----------------------------------------------------------------------------------


def write_zoo_files(folder: Path, frame_stack: int = 1, **arguments: Any) -> None:
    """As RL Zoo writes them."""
    folder.mkdir()
    given = OrderedDict({"env_kwargs": None, "gym_packages": [], **arguments})
    (folder / "args.yml").write_text(yaml.dump(given))
    (folder / "config.yml").write_text(yaml.dump(OrderedDict(normalize=True, frame_stack=frame_stack)))


def test_what_rl_zoo_wrote_is_read(tmp_path: Path) -> None:
    write_zoo_files(tmp_path / "CartPole-v1", frame_stack=4, env="CartPole-v1", env_kwargs={"render_mode": "rgb_array"})
    known = environment.from_zoo(tmp_path / "CartPole-v1.zip")
    assert known.env_id == "CartPole-v1" and known.arguments == {"render_mode": "rgb_array"}
    assert known.hyperparameters == {"normalize": True, "frame_stack": 4}
    with pytest.raises(environment.ReportError, match="no model in the folder"):
        environment.model_file(tmp_path)
    for name in ("best_model.zip", "CartPole-v1.zip"):
        (tmp_path / name).touch()
        assert environment.model_file(tmp_path) == tmp_path / name
    for text, sentence in (("{[", "cannot be read"), ("- 1", "must hold names and values"), ("{}", "does not name an")):
        (tmp_path / "CartPole-v1" / "args.yml").write_text(text)
        with pytest.raises(environment.ReportError, match=sentence):
            environment.from_zoo(tmp_path / "CartPole-v1.zip")


def test_descriptions_lead_back_to_environments_inside_jit() -> None:
    settings = dict(max_episode_steps=50, normalize=dict(clip_obs=5.0))
    env = make_jax_env("ConfoundingGrid", n_envs=2, n_path=3, max_episode_steps=50)
    known = environment.from_description(description_of(env))
    again = make_jax_env(known.env_id or "", 2, **known.settings, **known.arguments)
    assert description_of(again) == description_of(env)
    assert environment.from_description("([], 'Line(size=3)', (2, None, None, None))").env_id is None
    assert environment.from_description(None).env_id is None
    normalized = "([], \"GymnaxEnv('CartPole-v1', [('gravity', 5.0)])\", (2, 50, None, Normalization(clip_obs=5.0)))"
    known = environment.from_description(normalized)
    assert (known.env_id, known.arguments) == ("gymnax/CartPole-v1", {"gravity": 5.0})
    assert known.settings == settings | {"n_initial_states": None, "normalize": {"clip_obs": 5.0, "training": False}}


def test_images_become_pictures() -> None:
    frames = np.zeros((2, 4, 6, 5), np.uint8)
    frames[:, -1] = 255
    assert pictures.as_pictures(frames, channels_first=True).shape == (2, 6, 5, 3)
    assert (pictures.as_pictures(frames, channels_first=True) == 1).all()
    channels = np.zeros((1, 6, 5, 2), np.float32)
    channels[0, 0, 0, 1] = 1
    drawn = pictures.as_pictures(channels, channels_first=False)
    np.testing.assert_allclose(drawn[0, 0, 0], pictures.CHANNEL_COLOURS[1])
    image = spaces.Box(0, 255, (4, 36, 36), np.uint8)
    draw = environment.drawing_of(spaces.Dict({"image": image, "vector": spaces.Box(0, 1, (3,))}))
    assert draw is not None and draw({"image": np.zeros((2, 4, 36, 36), np.uint8)}).shape == (2, 36, 36, 3)
    assert environment.drawing_of(spaces.Box(0, 1, (3,))) is None


# --- one sentence -----------------------------------------------------------------------------------


def sentence(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a user reads instead of a report: one line, and no traceback."""
    assert report.main([str(argument) for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return printed.err


def test_a_file_that_is_no_model_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no file" in sentence(capsys, tmp_path / "nowhere.zip")
    assert "There is no model in the folder" in sentence(capsys, tmp_path)
    (tmp_path / "damaged.zip").write_bytes(b"PK damaged")
    assert "damaged" in sentence(capsys, tmp_path / "damaged.zip")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs=dict(net_arch=[4])).save(tmp_path / "ppo")
    assert "Stable-Baselines3's pickling format" in sentence(capsys, tmp_path / "ppo.zip")


def test_a_model_or_environment_that_does_not_fit_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = TINY_RUN | dict(policy_kwargs=dict(net_arch=[4]))
    DeepSPI("MlpPolicy", "CartPole-v1", **small, reward_loss_coef=0, transition_loss_coef=0).save(tmp_path / "ppo")
    assert "has no world model" in sentence(capsys, tmp_path / "ppo.zip")
    model = DeepSPI("MlpPolicy", "CartPole-v1", **small)
    model.save(tmp_path / "model")
    assert "give its id with --env" in sentence(capsys, tmp_path / "model.zip")
    assert "cannot play in Pendulum-v1: Observation spaces do not match" in sentence(
        capsys, tmp_path / "model.zip", "--env", "Pendulum-v1"
    )
    assert "did you mean" in sentence(capsys, tmp_path / "model.zip", "--env", "gymnax/CartPole-v9")
    model.policy.save(tmp_path / "policy.zip")
    assert "MlpPolicy: reports are for DeepSPI, DeepMDP, DreamSPI" in sentence(capsys, tmp_path / "policy.zip")


def test_without_the_extra_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda package: None)
    assert "jinja2 and matplotlib: pip install 'sbx-deepspi[report]'" in sentence(capsys, "model.zip")
