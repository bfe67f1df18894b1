"""The commands behind the figures of docs/results, with very few steps."""

import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import sbx
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import ConfoundingGridVecEnv, DeepSPI, LearningCurve, agent, deepspi, losses, make_jax_env
from sbx_deepspi.envs.confounding_grid import make_frames
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.rollout import Transitions, to_transitions
from tests.helpers import CHANNELS_FIRST, ToyEnv, collected, updated
from tests.jax_envs import needs_gymnax

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
EXAMPLES = BENCHMARKS.parent / "examples"


def run(script: str, *arguments: str, folder: Path = BENCHMARKS) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, folder / script, *arguments], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1"])
def test_learns_trains_scores_and_fails_below_the_target(env: str) -> None:
    process = run("learns.py", env, "--steps", "64", "--seeds", "5", "--episodes", "2")
    assert "seed 5:" in process.stdout, process.stderr
    assert process.returncode == 1
    assert "stayed below" in process.stderr


@pytest.mark.slow
def test_soak_survives_faults_and_draws(tmp_path: Path) -> None:
    # the first environments of this seed return NaN and raise; to wait for one that hangs would take ten seconds
    short = ["--minutes", "0.2", "--mean-delay", "4", "--seed", "111", "--games", "CartPole-v1"]
    short += ["--results", str(tmp_path)]
    process = run("soak.py", *short)
    assert process.returncode == 0, process.stderr
    assert len(pd.read_csv(tmp_path / "soak_faults.csv")) > 0
    samples = pd.read_csv(tmp_path / "soak.csv")
    assert len(samples) > 0 and samples["memory_mb"].gt(0).all()
    assert (tmp_path / "soak.png").is_file()
    assert "CartPole-v1" in process.stdout


@pytest.mark.slow
def test_costs_of_the_guarantee_are_told() -> None:
    costs = run("guarantee_cost.py", "--env", "CartPole-v1", "--rounds", "1", "--updates", "1")
    assert costs.returncode == 0, costs.stderr
    for name in ("certificate", "importance ratios", "Lipschitz layers"):
        assert re.search(rf"{name} +-?\d+\.\d% of an update", costs.stdout), costs.stdout


@pytest.mark.slow
def test_throughput_compares_and_draws(tmp_path: Path) -> None:
    """Without DeepSPI, whose Breakout takes long to compile; the parts of its iteration are tested below."""
    short = ["--settings", "4x64", "--rounds", "1", "--algorithms", "sb3_ppo"]
    process = run("throughput.py", *short, "--name", "short", "--results", str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert len(re.findall(r"sb3_ppo +\d+ .* +\d+\.\d\d GB", process.stdout)) == 1, process.stdout
    times = pd.read_csv(tmp_path / "short.csv")
    assert list(times["setting"]) == ["4x64"]
    assert times["seconds"].gt(0).all() and times["peak_memory_bytes"].gt(1e8).all()
    assert (tmp_path / "short.png").is_file()


@pytest.mark.slow
def test_commits_times_both_and_sbx_in_turn() -> None:
    process = run("commits.py", "HEAD", "--settings", "CartPole", "--rounds", "1", "--processes", "1")
    assert process.returncode == 0, process.stderr
    for worker in ("now", "before", "sbx_ppo"):
        assert len(re.findall(rf"^ +{worker} +\d+\.\d+ s +\d+\.\d\d ", process.stdout, re.M)) == 3, process.stdout


@pytest.mark.slow
def test_the_parts_of_an_iteration_all_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import update_parts

    env = DummyVecEnv([lambda: ToyEnv(CHANNELS_FIRST, spaces.Discrete(3))] * 8)
    times = update_parts.in_turn(update_parts.parts(update_parts.prepared(env, 32)), rounds=1)
    seconds = {name: values[0] for name, values in times.items()}
    assert {"environment", "encoder", "certificate", "the whole update"} <= seconds.keys()
    assert all(value > 0 for value in seconds.values())
    assert seconds["encoder"] < 2 * seconds["the whole update"]
    assert "the whole update" in update_parts.table(seconds)


@pytest.mark.slow
def test_scaling_times_random_images_and_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    monkeypatch.setattr(scaling, "EPISODE_LENGTH", 3)
    monkeypatch.setattr(scaling, "GRID", {"environments": [(4, 3, 2)], "actions": [], "steps": []})
    monkeypatch.setattr(scaling, "BATCH_SIZE", 8)
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--name", "short", "--results", str(tmp_path)])
    scaling.main()
    (row,) = pd.read_csv(tmp_path / "short.csv").itertuples()
    assert (row.changes, row.n_envs, row.n_actions, row.n_steps) == ("environments", 4, 3, 2)
    assert row.steps_per_second > 0
    assert (tmp_path / "short.png").is_file()


@pytest.mark.slow
def test_example_of_the_grid_trains_and_draws(tmp_path: Path) -> None:
    short = ["--latent", "4x2", "--seeds", "1", "--steps", "2048", "--algorithms", "DeepSPI", "--processes", "1"]
    process = run("confounding_grid.py", *short, "--name", "short", "--results", str(tmp_path), folder=EXAMPLES)
    assert process.returncode == 0, process.stderr
    rows = pd.read_csv(tmp_path / "short.csv")
    assert list(rows["step"]) == [0, 1024, 2048]
    assert rows["value"].between(-5, 8.0103).all()
    none, first, second = rows["ratio_sup"]
    assert none == 1 < min(first, second)
    assert (tmp_path / "short.png").is_file()


def test_example_of_the_grid_encodes_the_frames_of_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy on states' numbers is CnnPolicy on their frames, with the same parameters."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import confounding_grid as example

    numbered = DeepSPI(example.GridPolicy, example.NumberedGrid(2, seed=0), seed=0).policy
    frames = DeepSPI("CnnPolicy", ConfoundingGridVecEnv(2), seed=1).policy
    theirs_like = jax.tree.structure(frames.learner.parameters["encoder"])
    parameters = jax.tree.unflatten(theirs_like, jax.tree.leaves(numbered.learner.parameters["encoder"]))
    numbers = np.array([3, 0, 15, 3], np.int32)
    ours, theirs = (
        np.asarray(jax.jit(partial(agent.encode, policy.programs.networks))({"encoder": encoder}, observations))
        for policy, encoder, observations in (
            (numbered, numbered.learner.parameters["encoder"], numbers),
            (frames, parameters, make_frames(example.MAZE)[numbers]),
        )
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(ours[0] - ours[1]).max() > 0.01


@pytest.mark.slow
def test_ppo_of_the_learning_curve_is_sbxs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same parameters at the same names, the same function and gradient of them, and what is shared is shared."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning_curve

    env = DummyVecEnv([lambda: ToyEnv(CHANNELS_FIRST, spaces.Discrete(3))] * 5)
    ours, theirs = (
        learning_curve.make_sbx_ppo(env, 3, LinearSchedule(3e-4, 0.0, 1.0)),
        sbx.PPO("CnnPolicy", env, n_steps=8, seed=3),
    )
    params = theirs.policy.actor_state.params
    jax.tree.map(np.testing.assert_array_equal, ours.policy.actor_state.params, params)
    jax.tree.map(np.testing.assert_array_equal, ours.policy.vf_state.params, theirs.policy.vf_state.params)

    observations = np.stack([CHANNELS_FIRST.sample() for _ in range(40)])

    def values_and_gradients(model: sbx.PPO) -> tuple[jax.Array, jax.Array]:
        def entropy(params: dict) -> jax.Array:
            return model.policy.actor.apply(params, observations).entropy().sum()

        return jax.jit(jax.value_and_grad(entropy))(params)

    for our, their in zip(*(jax.tree.leaves(values_and_gradients(model)) for model in (ours, theirs)), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4 * float(jnp.abs(their).max()))

    ours.learn(80)  # two updates: at the end of the schedule the learning rate is 0
    shared = (state.params["params"]["NatureCNN_0"] for state in (ours.policy.actor_state, ours.policy.vf_state))
    jax.tree.map(np.testing.assert_array_equal, *shared)
    assert jnp.abs(ours.policy.actor_state.params["params"]["NatureCNN_0"]["Dense_0"]["bias"]).max() > 0


@pytest.mark.slow
def test_two_steps_of_the_learning_curve_are_sbxs(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same parameters and the same rollout, SB3's PPO with SBX's steps comes to SBX's parameters."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning_curve

    env = DummyVecEnv([lambda: ToyEnv(CHANNELS_FIRST, spaces.Discrete(3))] * 5)
    schedule = LinearSchedule(1e-3, 1e-3, 1.0)
    ours = learning_curve.make_sb3_ppo_two_steps(env, 3, schedule)
    sbx_model = learning_curve.make_sbx_ppo(env, 3, schedule)
    actor, critic = sbx_model.policy.actor_state, sbx_model.policy.vf_state
    cnn = ours.policy.features_extractor.cnn

    def theirs() -> dict[torch.Tensor, np.ndarray]:
        """Our parameters, and SBX's where they have their place and order of axes."""
        shared = actor.params["params"]["NatureCNN_0"]
        last = shared["Dense_0"]["kernel"].reshape(1, 1, 64, 512)  # this observation's map has one cell
        kernels = [shared[f"Conv_{i}"]["kernel"] for i in range(3)] + [last]
        layers = cnn[0], cnn[2], cnn[4], ours.policy.features_extractor.linear[0]
        placed = {
            layer.weight: np.transpose(kernel, (3, 2, 0, 1)).reshape(layer.weight.shape)
            for layer, kernel in zip(layers, kernels, strict=True)
        }
        biases = *(shared[f"Conv_{i}"]["bias"] for i in range(3)), shared["Dense_0"]["bias"]
        placed |= {layer.bias: bias for layer, bias in zip(layers, biases, strict=True)}
        for head, state in ((ours.policy.action_net, actor), (ours.policy.value_net, critic)):
            placed |= {head.weight: state.params["params"]["Dense_0"]["kernel"].T}
            placed |= {head.bias: state.params["params"]["Dense_0"]["bias"]}
        return placed

    with torch.no_grad():
        for parameter, value in theirs().items():
            parameter.copy_(torch.tensor(np.asarray(value)))
    ours.n_epochs = 0
    ours.learn(40)
    ours.n_epochs = 1
    before = {parameter: parameter.detach().clone() for parameter in theirs()}
    for scale in (1, 100, 1):  # with the clip and without: Adam's averages tell
        ours.rollout_buffer.returns *= scale
        batch = next(ours.rollout_buffer.get(40))
        # normalised here as SB3 does, by n - 1
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        ours.train()
        (actor, critic), _ = sbx_model._one_update(
            actor,
            critic,
            batch.observations.numpy(),
            batch.actions.flatten().numpy().astype(np.int32),
            advantages.numpy(),
            batch.returns.numpy(),
            batch.old_log_prob.numpy(),
            clip_range=0.1,
            ent_coef=ours.ent_coef,
            vf_coef=ours.vf_coef,
            normalize_advantage=False,
            share_features_extractor=True,
        )
    for parameter, value in theirs().items():
        moved = float((parameter.detach() - before[parameter]).abs().max())
        assert moved > 1e-3
        np.testing.assert_allclose(parameter.detach(), value, rtol=0, atol=0.02 * moved)


@pytest.mark.slow
def test_deepspi_of_the_learning_curve_takes_sbxs_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minibatches, each a whole rollout: first a step without the values' loss, then one by that, from there."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning_curve

    env = DummyVecEnv([lambda: ToyEnv(CHANNELS_FIRST, spaces.Discrete(3))] * 4)
    schedule = LinearSchedule(1e-3, 1e-3, 1.0)
    model = learning_curve.TwoStepDeepSPI("CnnPolicy", env, schedule, n_steps=5, seed=3)
    model.batch_size, model.n_epochs, model.transition_loss_coef = 20, 2, 0.0  # without noise
    model.max_grad_norm = 0.01  # clips both, so far that Adam's epsilon counts
    rollout, _ = collected(model)
    learner, networks, h = model.policy.learner, model.policy.programs.networks, model.hyperparameters()
    last_values = model.policy.predict_values(model._last_obs)
    transitions = jax.jit(to_transitions)(rollout, last_values, h.gamma, h.gae_lambda)
    transitions = transitions.replace(advantages=jax.jit(losses.normalize)(transitions.advantages))

    @jax.jit
    def norms_of(parameters: dict) -> Any:
        lipschitz = networks.lipschitz(parameters)
        return normalizer.refresh(normalizer.init(lipschitz, networks.latent_map), lipschitz, networks.latent_map)

    def loss(parameters: dict, norms: Any, of_values: bool) -> jax.Array:
        normalized = normalizer.apply(norms, networks.lipschitz(parameters))
        total, metrics = deepspi.loss(networks, parameters | normalized, transitions, jax.random.PRNGKey(0), h)
        return h.vf_coef * metrics.value_loss if of_values else total - h.vf_coef * metrics.value_loss

    adam = optax.chain(optax.clip_by_global_norm(h.step_sizes.max_grad_norm), optax.adam(1e-3, eps=1e-5))

    @partial(jax.jit, static_argnums=3)
    def take_step(params: dict, adam_state: Any, norms: Any, of_values: bool) -> tuple[dict, Any, jax.Array]:
        gradient = jax.grad(loss)(params, norms, of_values)
        step, adam_state = adam.update(gradient, adam_state)
        return optax.apply_updates(params, step), adam_state, optax.tree.norm(gradient)

    norms: Any = None
    params, states = learner.parameters, [jax.jit(adam.init)(learner.parameters)] * 2
    for of_values in (False, True) * 2:
        norms = norms if of_values else norms_of(params)  # as each epoch begins
        params, states[of_values], norm = take_step(params, states[of_values], norms, of_values)
        assert norm > 1.5 * model.max_grad_norm

    trained = updated(model, rollout, h, seed=1)[0].parameters
    for before, ours, theirs in zip(*map(jax.tree.leaves, (learner.parameters, trained, params)), strict=True):
        moved = float(jnp.abs(theirs - before).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * moved)


@pytest.mark.slow
def test_initialisation_of_the_learning_curve_is_sbxs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import learning_curve

    env = DummyVecEnv([lambda: ToyEnv(CHANNELS_FIRST, spaces.Discrete(3))] * 5)
    arguments = env, 3, LinearSchedule(1e-3, 1e-3, 1.0)
    params = learning_curve.make_sbx_ppo(*arguments).policy.actor_state.params["params"]
    shared = params["NatureCNN_0"]
    layers = [shared["Conv_0"], shared["Conv_1"], shared["Conv_2"], shared["Dense_0"], params["Dense_0"]]
    assert not any(layer["bias"].any() for layer in layers)
    theirs = [np.asarray(layer["kernel"]) for layer in layers]

    sb3 = learning_curve.make_sb3_ppo_as_sbx(*arguments).policy
    cnn = sb3.features_extractor.cnn
    modules = [cnn[0], cnn[2], cnn[4], sb3.features_extractor.linear[0], sb3.action_net]
    assert not any(module.bias.any() for module in modules)
    deepspi = learning_curve.make_deepspi_flax_init(*arguments).policy.learner.parameters
    kernels = [deepspi["encoder"][f"kernel_{i}"] for i in range(3)]
    kernels += [deepspi["torso"]["Dense_0"]["kernel"], deepspi["actor"]["Dense_0"]["kernel"]]
    for ours in [module.weight.detach().numpy() for module in modules], map(np.asarray, kernels):
        for our, their in zip(ours, theirs, strict=True):
            assert our.size == their.size
            assert our.std() == pytest.approx(their.std(), rel=0.1)  # the smallest has 1,500 numbers
            assert np.abs(our).max() == pytest.approx(np.abs(their).max(), rel=0.02)


# --- environments inside jit ------------------------------------------------------------------------


@needs_gymnax
def test_points_of_a_learning_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import minatar

    curve = LearningCurve(np.array([1, 20, 21, 999, 1000, 1010]), np.array([1.0, 3.0, 5.0, 7.0, 8.0, 9.0]), np.ones(6))
    assert minatar.points(curve, 1000) == [(20, 2.0), (40, 5.0), (1000, 8.0)]


@needs_gymnax
@pytest.mark.parametrize("variant", ["ppo_wide", "deepspi"])
def test_products_of_an_update_are_counted(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """Against those in the gradient of the loss itself."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import jax_envs

    settings = jax_envs.VARIANTS[variant].copy()
    networks = dict(net_arch=[64], activation_fn=jax.nn.relu) | settings.pop("policy_kwargs", {})
    model = DeepSPI("MlpPolicy", make_jax_env("gymnax/CartPole-v1", 2), policy_kwargs=networks, **settings)
    learner, h, rows = model.policy.learner, model.hyperparameters(), 8
    zeros = jnp.zeros(rows)
    transitions = Transitions(
        observations=jnp.zeros((rows, 4)), next_observations=jnp.zeros((rows, 4)), actions=jnp.zeros(rows, jnp.int32),
        rewards=zeros, terminated=zeros > 0, truncated=zeros > 0, values=zeros, log_probs=zeros, advantages=zeros,
        returns=zeros,
    )  # fmt: skip
    loss = partial(deepspi.loss, model.policy.programs.networks)
    slope = jax.make_jaxpr(jax.grad(lambda parameters: loss(parameters, transitions, jax.random.PRNGKey(0), h)[0]))
    of_all = multiplications(slope(learner.parameters).jaxpr)
    counted = jax_envs.flop_of_a_step(variant, "CartPole-v1") / (2 * jax_envs.N_EPOCHS) * rows
    # what is not counted: the next observation's encoding and the action's embedding
    assert counted <= of_all <= 1.02 * counted


def multiplications(jaxpr: Any) -> int:
    """Of numbers, in all products of matrices of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += multiplications(inner)
    return total


@needs_gymnax
@pytest.mark.slow
def test_speeds_of_environments_inside_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import jax_envs

    for arguments in (("ppo", "gymnax/CartPole-v1", "8", "64", "0.1"), ("deepspi", "host", "8", "64", "0.1")):
        measured = jax_envs.in_a_process(*arguments)
        assert measured["steps_per_s"] > 10 and measured["compile_s"] > 0
    assert jax_envs.in_a_process("product")["flop_per_s"] > 1e9


@pytest.mark.slow
def test_example_of_ones_own_environment_learns_within_a_minute() -> None:
    process = run("own_jax_environment.py", folder=EXAMPLES)
    assert process.returncode == 0, process.stderr
    found = re.search(r"mean reward ([\d.]+)", process.stdout)
    assert found is not None and float(found[1]) > 90
