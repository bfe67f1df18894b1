"""The certificate's callback, how often there is a certificate, and arguments that promise what cannot be held."""

import csv
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from sbx_deepspi import DeepSPI, SPICertificateCallback
from tests.guarantee.models import CERTIFIABLE, DISCRETE, trained
from tests.helpers import TINY_RUN, VECTOR, ToyEnv, params, same


def test_restores_the_last_good_parameters_and_not_the_first() -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 1e-5})
    before = params(model)
    callback = SPICertificateCallback(require="neighbourhood", on_violation="restore", verbose=0)
    good = params(model.learn(8, callback=callback))
    assert not same(before, good)

    class Worsen(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 9:
                self.model.learning_rate = 0.3
                self.model._setup_lr_schedule()
            return True

    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 1e-5})
    model.learn(24, callback=[Worsen(), callback])
    assert same(good, params(model))


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificates.csv"
    path.write_text("something,else\n")
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN)
    with pytest.raises(ValueError, match="has other columns than this run's certificates: choose another path"):
        model.learn(8, callback=SPICertificateCallback(path))
    assert path.read_text() == "something,else\n"


def test_writes_a_row_for_each_update(tmp_path: Path) -> None:
    path = tmp_path / "new" / "certificates.csv"
    model = DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, certificate_freq=1)
    model.learn(24, callback=SPICertificateCallback(path))
    model.learn(8, callback=SPICertificateCallback(path), reset_num_timesteps=False)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["timesteps"] for row in rows] == ["8", "16", "24", "32"]
    assert all(float(row["importance_ratio_sup"]) >= 1 and row["verdict"] for row in rows)
    assert {"L_R", "L_P", "K_R", "K_P", "K_V", "zeta", "average_episode_length"} <= rows[0].keys()
    assert {"L_R_standard_error", "L_P_standard_error", "L_end_standard_error"} <= rows[0].keys()


def test_stops(capsys: pytest.CaptureFixture) -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 0.1})
    model.learn(80, callback=SPICertificateCallback(require=["neighbourhood"]))
    assert model.num_timesteps == 9  # the violation is seen once the next rollout begins
    assert "At 8 steps D_IR [" in capsys.readouterr().out


def test_restores() -> None:
    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, "learning_rate": 0.1})
    before = params(model)
    model.learn(24, callback=SPICertificateCallback(require=["neighbourhood"], on_violation="restore", verbose=0))
    assert model.num_timesteps == 24
    assert same(before, params(model))


def test_conditions_that_are_met_change_nothing() -> None:
    runs = []
    for callback in (
        None,
        SPICertificateCallback(require=["importance_ratio", "transition_lipschitz", "reward_lipschitz"]),
    ):
        model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **CERTIFIABLE, "learning_rate": 1e-4})
        runs.append(params(model.learn(16, callback=callback)))
    assert same(*runs)


@pytest.mark.parametrize(
    ("certificate_freq", "require", "certified"),
    [(3, (), [8, 32]), (16, (), [8]), (3, ("importance_ratio",), [8, 16, 24, 32, 40])],
)
def test_how_often_updates_are_certified(
    certificate_freq: int, require: tuple[str, ...], certified: list[int], tmp_path: Path
) -> None:
    """The first one, and then each n-th; where conditions are required, all of them."""
    path = tmp_path / "certificates.csv"
    run = {**TINY_RUN, "learning_rate": 1e-5, "gamma": 0.5}
    model = DeepSPI("MlpPolicy", "CartPole-v1", **run, certificate_freq=certificate_freq)
    model.learn(40, callback=SPICertificateCallback(path, require=require))
    with path.open() as file:
        assert [int(row["timesteps"]) for row in csv.DictReader(file)] == certified


def test_a_run_is_the_same_however_often_it_is_certified() -> None:
    runs = [DeepSPI("MlpPolicy", "CartPole-v1", **TINY_RUN, certificate_freq=n).learn(24) for n in (1, 16)]
    assert same(*map(params, runs))


def test_bad_input_of_the_callback() -> None:
    with pytest.raises(ValueError, match=r"require must be one of 'importance_ratio'.*but got 'K_Q'"):
        SPICertificateCallback(require=["K_Q"])
    with pytest.raises(ValueError, match="on_violation must be one of 'stop', 'restore', but got 'retry'"):
        SPICertificateCallback(on_violation="retry")
    with pytest.raises(ValueError, match="needs DeepSPI, DeepMDP or DreamSPI, but got PPO"):
        PPO("MlpPolicy", "CartPole-v1").learn(8, callback=SPICertificateCallback("certificates.csv"))
    with pytest.raises(ValueError, match="nothing to do: give it a path, or conditions to require"):
        SPICertificateCallback()
    with pytest.raises(ValueError, match=r"on_violation=.restore. needs conditions.*require is empty"):
        SPICertificateCallback("certificates.csv", on_violation="restore")
    never_met = {
        "importance_ratio": (dict(gamma=1.0), DISCRETE, r"gamma=1\.0 the bound means nothing"),
        "all_actions": ({}, spaces.Box(-1, 1, (1,), np.float32), "never met with Box actions"),
        "transition_lipschitz": ({}, DISCRETE, "never met, since K_P is unbounded: set policy_kwargs"),
        "reward_lipschitz": ({}, DISCRETE, "never met, since K_R is unbounded: set policy_kwargs"),
        "finite": ({}, DISCRETE, "'finite' is never met, since K_R is unbounded: set policy_kwargs"),
    }
    for condition, (kwargs, action_space, message) in never_met.items():
        model = DeepSPI("MlpPolicy", ToyEnv(VECTOR, action_space), **TINY_RUN, **kwargs)
        with pytest.raises(ValueError, match=message):
            model.learn(8, callback=SPICertificateCallback(require=[condition]))
    policy_kwargs = CERTIFIABLE["policy_kwargs"] | dict(lipschitz_constant=1.2)
    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **CERTIFIABLE, "policy_kwargs": policy_kwargs})
    for condition in ("transition_lipschitz", "finite"):
        for reaction in ("stop", "restore"):
            callback = SPICertificateCallback(require=condition, on_violation=reaction)
            with pytest.raises(
                ValueError, match=rf"'{condition}' is violated before the first.*K_P 1\.2.* >= 1/gamma = 1\.1"
            ):
                model.learn(8, callback=callback)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(neighbourhood="trust"), "neighbourhood must be one of 'clip', 'project', but got 'trust'"),
        (dict(clip_range=1.0), r"clip_range must lie in \(0, 1\), so that the neighbourhood.*but got 1.0"),
        (dict(clip_range=0.0), r"clip_range must lie in \(0, 1\).*but got 0.0"),
        (dict(gamma=1.5), r"gamma must.*\[0, 1\], but got 1.5"),
        (dict(gae_lambda=-0.1), r"gae_lambda must.*\[0, 1\], but got -0.1"),
        (dict(gradient_penalty_coef=-1.0), "gradient_penalty_coef must be positive, but got -1.0"),
        (dict(policy_kwargs=dict(transition_density="cubic")), "transition_density must be one of.*'categorical'"),
        (dict(policy_kwargs=dict(categorical_cost="l2")), "categorical_cost must be one of 'huber'.*but got 'l2'"),
        (dict(policy_kwargs=dict(n_classes=0)), "n_classes must be a whole number of at least 1, but got 0"),
        (dict(policy_kwargs=dict(lipschitz_policy=0.0)), "lipschitz_policy must be positive.*but got 0.0"),
        (
            dict(policy_kwargs=dict(lipschitz_policy=1.0, activation_fn=jax.nn.silu)),
            "lipschitz_policy needs an activation_fn that is 1-Lipschitz",
        ),
    ],
)
def test_bad_arguments_of_the_model(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **kwargs})


@pytest.mark.parametrize("neighbourhood", ["clip", "project"])
def test_clip_range_of_a_schedule(neighbourhood: str) -> None:
    """Only where training starts: RL Zoo's enjoy replaces schedules in models that it loads."""
    kwargs = dict(neighbourhood=neighbourhood, clip_range=LinearSchedule(2.0, 0.0, 1.0))
    model = DeepSPI("MlpPolicy", "CartPole-v1", **{**TINY_RUN, **kwargs})
    with pytest.raises(ValueError, match=r"clip_range must lie in \(0, 1\).*got 2.0"):
        model.learn(8)


def test_new_arguments_are_saved_and_loaded(tmp_path: Path) -> None:
    model = trained(neighbourhood="project", gradient_penalty_coef=0.5, **CERTIFIABLE)
    model.save(tmp_path / "model")
    loaded = DeepSPI.load(tmp_path / "model", model.env)
    assert (loaded.neighbourhood, loaded.gradient_penalty_coef) == ("project", 0.5)
    assert loaded.policy.lipschitz_policy == 0.05
    assert loaded.episodes.mean_length == model.episodes.mean_length == 4
    assert same(params(model), params(loaded))
    loaded.learn(16, reset_num_timesteps=False)
