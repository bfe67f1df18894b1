"""Rollout and update as one program: the same run as step by step, with SB3's callbacks after the fact."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import sbx_deepspi
from sbx_deepspi import (
    DeepMDP,
    DeepSPI,
    DreamSPI,
    JaxVecEnv,
    LearningCurve,
    SPICertificateCallback,
    learn_together,
    make_jax_env,
)
from sbx_deepspi.memory import total_memory
from tests.helpers import TINY_RUN, params, same
from tests.jax_envs import Breaks, Line, line_env, needs_gymnax

SLOW = pytest.mark.slow

FAST: dict[str, Any] = TINY_RUN | dict(
    batch_size=16, policy_kwargs=dict(net_arch=[], transition_density="deterministic", lipschitz_constant=None)
)
PER_ROLLOUT = 32  # 8 steps of 4 environments


class Recorder(BaseCallback):
    """What a callback is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.stop_at = stop_at

    def _on_rollout_start(self) -> None:
        self.events.append(("start", self.num_timesteps))

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        episodes = [(i, info["episode"]["r"], info["episode"]["l"], info["TimeLimit.truncated"])
                    for i, info in enumerate(infos) if "episode" in info]  # fmt: skip
        rewards, dones = self.locals["rewards"], self.locals["dones"]
        self.events.append((self.num_timesteps, self.n_calls, len(infos), rewards.tolist(), dones.tolist(), episodes))
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append(("end", self.num_timesteps))


def learned(fused: bool, algorithm: type[DeepSPI] = DeepSPI, **kwargs: Any) -> tuple[DeepSPI, list[Any]]:
    env = kwargs.pop("env", None) or line_env()
    model, recorder = algorithm("MlpPolicy", env, fused=fused, **FAST | kwargs), Recorder()
    model.learn(4 * PER_ROLLOUT, callback=recorder)
    return model, recorder.events


def assert_close(first: Any, second: Any) -> None:
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6), first, second)


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        (DeepSPI, {}),
        pytest.param(DeepMDP, {}, marks=pytest.mark.slow),
        pytest.param(DreamSPI, dict(imagination_horizon=3), marks=pytest.mark.slow),
        pytest.param(DeepSPI, dict(neighbourhood="project", target_kl=0.01), marks=pytest.mark.slow),
        pytest.param(DeepSPI, dict(reward_loss_coef=0.0, transition_loss_coef=0.0), marks=pytest.mark.slow),
    ],
    ids=["deepspi", "deepmdp", "dreamspi", "project", "ppo"],
)
def test_the_run_is_the_same_step_by_step(algorithm: type[DeepSPI], kwargs: dict[str, Any]) -> None:
    (one, events), (other, events_step_by_step) = (learned(fused, algorithm, **kwargs) for fused in (True, False))
    assert events == events_step_by_step
    assert events.count(("start", 0)) == 1 and events[-1] == ("end", 4 * PER_ROLLOUT)
    assert_close(params(one), params(other))
    np.testing.assert_array_equal(one.key, other.key)
    np.testing.assert_array_equal(one.episodes.lengths, other.episodes.lengths)
    assert_close((one.rewards, one.certificate), (other.rewards, other.certificate))
    assert (one.certificate is None) == ("reward_loss_coef" in kwargs)
    assert [dict(e, t=0) for e in one.ep_info_buffer] == [dict(e, t=0) for e in other.ep_info_buffer]
    assert_close(one.env.state.observations, other.env.state.observations)
    assert one._n_updates == other._n_updates == 8
    for name, number in one.logger.name_to_value.items():
        if not name.startswith("time/") and isinstance(number, float):
            assert number == pytest.approx(other.logger.name_to_value[name], rel=1e-3, abs=1e-6, nan_ok=True), name


@SLOW
def test_normalised_inside_jit() -> None:
    (one, events), (other, others) = (learned(fused, env=line_env(normalize=True)) for fused in (True, False))
    assert events == others
    assert_close(params(one), params(other))
    assert_close(one.env.state.statistics, other.env.state.statistics)


@pytest.mark.parametrize(
    "stop_at", [pytest.param(3 * 4, marks=SLOW), PER_ROLLOUT + 5 * 4, pytest.param(2 * PER_ROLLOUT, marks=SLOW)]
)
def test_a_callback_stops_where_it_says(stop_at: int) -> None:
    """The rest of that rollout was never made, and the next one begins where it led."""
    models = [DeepSPI("MlpPolicy", line_env(), fused=fused, **FAST) for fused in (True, False)]
    for model in models:
        recorder = Recorder(stop_at)
        model.learn(4 * PER_ROLLOUT, callback=recorder)
        assert model.num_timesteps == stop_at and recorder.events[-1][0] == stop_at
        model.learn(2 * PER_ROLLOUT, reset_num_timesteps=False)
        assert model.num_timesteps == stop_at + 2 * PER_ROLLOUT
    assert_close(*map(params, models))
    np.testing.assert_array_equal(*(model.episodes.lengths for model in models))


def test_sb3s_callbacks(tmp_path: Path) -> None:
    model = DeepSPI("MlpPolicy", line_env(), **FAST)
    evaluation = EvalCallback(
        line_env(2, seed=7), n_eval_episodes=2, eval_freq=8, best_model_save_path=str(tmp_path), verbose=0
    )
    seen: list[Any] = []

    class Parameters(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(jax.tree.leaves(params(self.model))[0].copy())
            return True

    checkpoints = CheckpointCallback(16, str(tmp_path / "checkpoints"))
    certificates = SPICertificateCallback(tmp_path / "certificates.csv")
    model.learn(2 * PER_ROLLOUT, callback=[evaluation, checkpoints, certificates, Parameters()], progress_bar=True)
    assert evaluation.n_calls == 16 and -1 < evaluation.best_mean_reward <= 1
    assert (tmp_path / "best_model.zip").exists() and len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert "verdict" in (tmp_path / "certificates.csv").read_text()
    # at every step, the parameters that made it
    assert len({array.tobytes() for array in seen[:8]}) == len({array.tobytes() for array in seen[8:]}) == 1
    assert not np.array_equal(seen[0], seen[8])

    stopped = DeepSPI("MlpPolicy", line_env(), **FAST)
    stopped.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=1))
    assert 0 < stopped.num_timesteps < 10_000 and stopped.num_timesteps % 4 == 0
    good = EvalCallback(line_env(2), callback_on_new_best=StopTrainingOnRewardThreshold(-9), eval_freq=8, verbose=0)
    stopped.learn(10_000, callback=good)
    assert stopped.num_timesteps == PER_ROLLOUT


def test_what_is_not_on_the_host_says_so() -> None:
    model, _ = learned(True)
    with pytest.raises(AttributeError, match=r"rollout's 'values' is not on the host.*fused=False"):
        model.rollout_buffer.values  # noqa: B018
    unfused, _ = learned(False)
    assert unfused.rollout_buffer.values.shape == (8, 4)

    class Meddler(BaseCallback):
        def _on_step(self) -> bool:
            self.model.set_parameters(self.model.get_parameters())
            return True

    with pytest.warns(UserWarning, match="set parameters during a rollout.*overwritten"):
        DeepSPI("MlpPolicy", line_env(), **FAST).learn(PER_ROLLOUT, callback=Meddler())


@pytest.mark.parametrize("wrap", [VecNormalize, pytest.param(VecMonitor, marks=SLOW)])
def test_a_python_wrapper_means_step_by_step(wrap: Any) -> None:
    model = DeepSPI("MlpPolicy", wrap(line_env()), **FAST)
    with pytest.warns(UserWarning, match=f"{wrap.__name__} is a Python object around environments inside jit"):
        model.learn(PER_ROLLOUT)
    assert model.rollout_buffer.values.shape == (8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fused = False
        model.learn(PER_ROLLOUT)


@pytest.mark.parametrize("where", ["observation", pytest.param("reward", marks=SLOW)])
def test_numbers_that_are_not_finite_change_nothing(where: str) -> None:
    env = JaxVecEnv(Breaks(where=where, after=13), 4, 0)
    model = DeepSPI("MlpPolicy", env, **FAST)
    recorder = Recorder()
    with pytest.raises(ValueError, match=f"Environment 0 returned a non-finite {where} at step 13: nothing"):
        model.learn(10 * PER_ROLLOUT, callback=recorder)
    assert model.num_timesteps == PER_ROLLOUT and recorder.events[-1] == ("start", PER_ROLLOUT)
    untouched = DeepSPI("MlpPolicy", JaxVecEnv(Breaks(where=where, after=13), 4, 0), **FAST)
    untouched.learn(PER_ROLLOUT)
    assert same(params(model), params(untouched))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params(model)))
    assert same(model.env.state, untouched.env.state)
    # as if the rollout had not been: a file of it, and the next certificate
    assert model._before_rollout == {} and model._updates_since_certificate == untouched._updates_since_certificate


def test_a_rollout_too_large_for_the_memory() -> None:
    n_steps = int(total_memory(jax.devices()[0]) // (4 * 2**10 * 2 * 2)) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch that does not divide it
        model = DeepSPI("MlpPolicy", line_env(2**10), **FAST | dict(n_steps=min(n_steps, 2**20)))
    if n_steps > 2**20:
        model.n_steps = n_steps
    with pytest.raises(MemoryError, match=r"steps of 1024 environments need about \S+ GiB, but .* has \S+ GiB"):
        model.learn(1)


# --- saving -----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from stable_baselines3.common.callbacks import BaseCallback
from sbx_deepspi import CheckpointCallback, DeepSPI
from tests.contract.test_fused import FAST, PER_ROLLOUT
from tests.jax_envs import line_env

class Kill(BaseCallback):
    def _on_step(self):
        if self.num_timesteps > 3 * PER_ROLLOUT + 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

model = DeepSPI("MlpPolicy", line_env(normalize=True), **FAST)
model.learn(8 * PER_ROLLOUT, callback=[CheckpointCallback(8, {folder!r}), Kill()])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    """There is nothing to do for it: the environments' state is in the file."""
    root = str(Path(sbx_deepspi.__file__).parents[1])
    script = KILLED.format(root=root, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = DeepSPI.load(tmp_path / "rl_model_latest.zip", env=line_env(seed=99, normalize=True))
    assert resumed.num_timesteps == 3 * PER_ROLLOUT
    resumed.learn(5 * PER_ROLLOUT, reset_num_timesteps=False)
    whole = DeepSPI("MlpPolicy", line_env(normalize=True), **FAST)
    whole.learn(8 * PER_ROLLOUT)
    assert same(params(resumed), params(whole)) and same(resumed.env.state, whole.env.state)


def test_other_environments_are_reset(tmp_path: Path) -> None:
    model, _ = learned(True, env=line_env(normalize=True))
    model.save(tmp_path / "model")
    for env, force_reset in ((line_env(8, normalize=True), None), (line_env(normalize=True), True)):
        resumed = DeepSPI.load(tmp_path / "model", env=env, force_reset=force_reset)
        assert resumed._last_obs is None
        env.reset()  # with the statistics of the file
        assert float(env.state.statistics.returns.count) > 4 * PER_ROLLOUT
    longer = DeepSPI.load(tmp_path / "model", env=JaxVecEnv(Line(size=4), 4, normalize=True, max_episode_steps=10))
    assert longer._last_obs is None
    assert DeepSPI.load(tmp_path / "model").predict(np.zeros(2, np.float32))[0] in (0, 1)


class Plain(Line):
    """Not a dataclass: what tells two of them apart are their attributes."""

    def __init__(self, slips: float, function: Any = np.tanh) -> None:
        object.__setattr__(self, "slips", slips)
        object.__setattr__(self, "function", function)


def test_an_environment_is_known_by_its_attributes(tmp_path: Path) -> None:
    model, _ = learned(True, env=JaxVecEnv(Plain(0.1), 4, 0))
    model.save(tmp_path / "model")
    for env, goes_on in ((JaxVecEnv(Plain(0.1), 4), True), (JaxVecEnv(Plain(0.2), 4), False)):
        assert (DeepSPI.load(tmp_path / "model", env=env)._last_obs is not None) == goes_on
    wrapped = DeepSPI.load(tmp_path / "model", env=VecMonitor(JaxVecEnv(Plain(0.1), 4)))
    assert wrapped._last_obs is None  # a wrapper more


def test_what_is_saved_amid_a_rollout_is_its_beginning(tmp_path: Path) -> None:
    """Nothing is counted twice when it goes on."""
    model = DeepSPI("MlpPolicy", line_env(), **FAST)
    model.learn(4 * PER_ROLLOUT, callback=CheckpointCallback(12, str(tmp_path)))
    resumed = DeepSPI.load(tmp_path / "rl_model_48_steps.zip", env=line_env(seed=5))
    assert resumed.num_timesteps == PER_ROLLOUT
    resumed.learn(3 * PER_ROLLOUT, reset_num_timesteps=False)
    assert same(params(resumed), params(model)) and resumed.num_timesteps == model.num_timesteps
    assert [dict(e, t=0) for e in resumed.ep_info_buffer] == [dict(e, t=0) for e in model.ep_info_buffer]

    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps > PER_ROLLOUT + 8:
                raise RuntimeError("mine")
            return True

    failed = DeepSPI("MlpPolicy", line_env(), **FAST)
    with pytest.raises(RuntimeError, match="mine"):
        failed.learn(4 * PER_ROLLOUT, callback=Fails())
    assert failed.num_timesteps == PER_ROLLOUT
    failed.learn(3 * PER_ROLLOUT, reset_num_timesteps=False)
    assert same(params(failed), params(model))


def test_statistics_find_their_way(tmp_path: Path) -> None:
    model, _ = learned(True, env=line_env(normalize=True))
    model.save(tmp_path / "model")
    loaded, env = DeepSPI.load(tmp_path / "model"), line_env(normalize=True)
    loaded.set_env(env)
    env.reset()
    assert float(env.state.statistics.returns.count) > 4 * PER_ROLLOUT
    for give in (lambda env: DeepSPI.load(tmp_path / "model", env=env), loaded.set_env):
        with pytest.warns(UserWarning, match="normalised inside jit, but these environments are not"):
            give(line_env())
    with pytest.warns(UserWarning, match="EvalCallback's environments are not normalised"):
        evaluation = EvalCallback(line_env(2), eval_freq=100, verbose=0)
        model.learn(PER_ROLLOUT, callback=CallbackList([evaluation]))


def test_other_environments_without_a_reset() -> None:
    model, _ = learned(True)
    model.set_env(line_env(seed=3), force_reset=False)
    assert model.learn(PER_ROLLOUT, reset_num_timesteps=False).num_timesteps == 5 * PER_ROLLOUT


# --- several models ---------------------------------------------------------------------------------


def model_of(seed: int, **numbers: Any) -> DeepSPI:
    return DeepSPI("MlpPolicy", line_env(seed=seed), **FAST | dict(seed=seed) | numbers)


SETTINGS: list[dict[str, Any]] = [
    dict(seed=0), dict(seed=1, learning_rate=3e-3, reward_loss_coef=0.5), dict(seed=2, gamma=0.9, ent_coef=0.1),
]  # fmt: skip


@pytest.mark.slow
def test_dreams_that_are_learned_together_are_what_each_would_be_alone() -> None:
    settings = [dict(seed=0), dict(seed=1, model_learning_rate=3e-3, dream_weight=0.5)]

    def models() -> list[DreamSPI]:
        return [
            DreamSPI("MlpPolicy", line_env(seed=given["seed"]), **FAST | dict(imagination_horizon=2) | given)
            for given in settings
        ]

    together, alone = models(), models()
    learn_together(together, 2 * PER_ROLLOUT)
    for model, other in zip(together, alone, strict=True):
        other.learn(2 * PER_ROLLOUT)
        assert_close(params(model), params(other))


def test_models_that_learn_together_are_what_each_would_be_alone() -> None:
    together, recorders = [model_of(**settings) for settings in SETTINGS], [Recorder() for _ in SETTINGS]
    told = [Recorder() for _ in SETTINGS]
    curves = learn_together(together, 4 * PER_ROLLOUT, told, progress_bar=True)
    for model, settings, curve, recorder, of_together in zip(together, SETTINGS, curves, recorders, told, strict=True):
        alone = model_of(**settings)
        alone.learn(4 * PER_ROLLOUT, callback=recorder)
        assert_close(params(model), params(alone))
        assert of_together.events == recorder.events
        ended = [(event[0], *episode[1:3]) for event in recorder.events if len(event) > 2 for episode in event[-1]]
        assert_close(curve, LearningCurve(*(np.array(column) for column in zip(*ended, strict=True))))
        assert (model.num_timesteps, model._n_updates) == (alone.num_timesteps, alone._n_updates)
        np.testing.assert_array_equal(model.episodes.lengths, alone.episodes.lengths)
        assert_close(model.certificate, alone.certificate)
        for one in (model, alone):
            one.learn(PER_ROLLOUT, reset_num_timesteps=False)  # an ordinary model
        assert_close(params(model), params(alone))
    assert not same(params(together[0]), params(together[1]))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda: [DeepSPI("MlpPolicy", VecMonitor(line_env()), **FAST)], "Model 1 learns from VecMonitor"),
        (lambda: [model_of(1, n_steps=16)], "Model 1 has another n_steps than model 0"),
        (lambda: [model_of(1, n_epochs=3)], "Model 1 has another batch_size, n_epochs"),
        (lambda: [model_of(1, policy_kwargs=dict(net_arch=[8]))], "Model 1 has another policy"),
        (lambda: [DeepMDP("MlpPolicy", line_env(), **FAST)], "Model 1 has another class"),
        (lambda: [DeepSPI("MlpPolicy", line_env(8), **FAST)], "Model 1 has another environment"),
        (lambda: [model := model_of(1), model], "Model 2 shares its environments"),
        (lambda: [model_of(1, fused=False)], "Model 1 has fused=False"),
        (lambda: ["model"], "Model 1 is 'model'"),
        (lambda: [model_of(1, normalize_advantage=False)], "Model 1 has another normalize_advantage"),
        (lambda: [model_of(1, stats_window_size=10)], "Model 1 has another stats_window_size"),
    ],
)  # fmt: skip
def test_models_that_cannot_learn_together(others: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn_together([model_of(0), *others()], PER_ROLLOUT)


@SLOW
def test_a_callback_of_one_ends_the_training_of_all(tmp_path: Path) -> None:
    """After the update: what is saved then goes on as if nothing had been."""

    def models() -> list[DeepSPI]:
        return [model_of(0), model_of(1)]

    stopped, whole = models(), models()
    saves = CheckpointCallback(PER_ROLLOUT // 4, tmp_path)
    learn_together(stopped, 3 * PER_ROLLOUT, [Recorder(stop_at=PER_ROLLOUT - 4), [saves]])
    assert [model.num_timesteps for model in stopped] == [PER_ROLLOUT] * 2
    files = []
    for index, model in enumerate(stopped):
        model.save(tmp_path / f"{index}.zip")
        files.append(DeepSPI.load(tmp_path / f"{index}.zip", env=line_env()))
    learn_together(files, 2 * PER_ROLLOUT, reset_num_timesteps=False)
    learn_together(whole, 3 * PER_ROLLOUT)
    for file, model in zip(files, whole, strict=True):
        assert same(params(file), params(model))
    # as in learn(), a file that is saved at a step holds the model before the rollout
    assert DeepSPI.load(tmp_path / f"rl_model_{PER_ROLLOUT}_steps.zip").num_timesteps == 0


def test_a_callback_for_each_or_none() -> None:
    with pytest.raises(ValueError, match="got 1 for 2 models"):
        learn_together([model_of(0), model_of(1)], PER_ROLLOUT, [None])


def test_no_models_at_all() -> None:
    with pytest.raises(ValueError, match="needs a model at least"):
        learn_together([], PER_ROLLOUT)


@SLOW
def test_a_fault_in_one_of_several_names_it() -> None:
    models = [DeepSPI("MlpPolicy", JaxVecEnv(Breaks(after=13), 4, seed), **FAST | dict(seed=seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="Environment 0 of model 0 returned a non-finite observation at step 13"):
        learn_together(models, 4 * PER_ROLLOUT)
    assert [model.num_timesteps for model in models] == [PER_ROLLOUT] * 2
    assert jnp.isfinite(jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params(models[1]))])).all()


# --- it learns --------------------------------------------------------------------------------------


@needs_gymnax
@pytest.mark.slow
def test_cartpole_is_learned() -> None:
    env = make_jax_env("gymnax/CartPole-v1", n_envs=32, seed=0)
    model = DeepSPI("MlpPolicy", env, n_steps=32, batch_size=256, n_epochs=10, learning_rate=1e-3, gamma=0.98, seed=0)
    model.learn(200_000)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 400
