"""
What :mod:`tests.test_devices` asks of four devices, in one process, since XLA makes them of the CPU when JAX starts.

Each check is a function; what they return goes out as one line of JSON, by name.
"""

import json
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sbx_deepspi import DeepMDP, DeepSPI, DreamSPI, devices, epochs, learn_together, programs
from sbx_deepspi.collect.vec_env import observations_of
from sbx_deepspi.devices import WHOLE
from sbx_deepspi.sb3 import checks
from sbx_deepspi.sb3.fused import environments_of
from sbx_deepspi.segments import shuffled
from tests.helpers import IMAGE, VECTOR, ToyEnv
from tests.jax_envs import line_env

N_DEVICES, N_ENVS, N_STEPS = 4, 8, 8
PPO = dict(reward_loss_coef=0, transition_loss_coef=0)
PLAIN = dict(transition_density="normal", lipschitz_constant=None)  # compiles in half the time
SMALL = dict(
    n_steps=N_STEPS, batch_size=16, n_epochs=2, learning_rate=1e-3, seed=0, device="all",
    policy_kwargs=dict(net_arch=[], features_extractor_kwargs=dict(features_dim=8)) | PLAIN,
)  # fmt: skip


def model_of(algorithm: type[DeepSPI], **given: Any) -> DeepSPI:
    kwargs = SMALL["policy_kwargs"] | given.pop("policy_kwargs", {})
    return algorithm("MlpPolicy", toy_env(), **SMALL | given | dict(policy_kwargs=kwargs))


def toy_env() -> DummyVecEnv:
    return DummyVecEnv([partial(ToyEnv, VECTOR, spaces.Discrete(3), length=3 + i) for i in range(N_ENVS)])


def arguments_of(model: DeepSPI) -> tuple[Any, ...]:
    """Of an iteration on a rollout that the model collects, on the host."""
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    last_observations = observations_of(model._last_obs, model.observation_space, model.n_envs)
    rollout = model.rollout.replace(rewards=np.random.default_rng(0).normal(size=(N_STEPS, N_ENVS)).astype(np.float32))
    return jax.device_get((model.state, rollout, last_observations, model.hyperparameters()))


def in_groups(program: Callable[..., Any], layouts: Any) -> Callable[..., Any]:
    """On one device, told to draw minibatches in as many groups: ``vmap`` fails where a result is not everybody's."""
    takes, gives = layouts

    def axes_of(layouts: Any) -> Any:
        return jax.tree.map(lambda layout: len(layout) - 1 if layout else None, layouts)

    def each(change: Callable[[Any, int], Any], layouts: Any, tree: Any) -> Any:
        layouts = jax.tree.broadcast(layouts, tree)
        return jax.tree.map(lambda layout, leaf: change(leaf, len(layout) - 1) if layout else leaf, layouts, tree)

    def split(leaf: Any, axis: int) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.reshape(*leaf.shape[:axis], N_DEVICES, -1, *leaf.shape[axis + 1 :])

    def join(leaf: Any, axis: int) -> Any:
        return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])

    mapped = jax.jit(jax.vmap(program, axes_of(takes), axes_of(gives), axis_name=devices.AXIS))
    return lambda *arguments: jax.device_get(each(join, gives, mapped(*each(split, takes, arguments))))


def difference(first: Any, second: Any) -> float:
    """The largest between numbers of two trees, relative above 1; infinite where only one of them is not finite."""

    def of_leaves(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        a, b = np.where(same, 0, a), np.where(same, 0, b)
        apart = np.abs(a - b) / np.maximum(1, np.abs(a))
        return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))

    return max(jax.tree.leaves(jax.tree.map(of_leaves, jax.device_get(first), jax.device_get(second))))


def iteration_alone(model: DeepSPI, arguments: Any) -> Any:
    """On one device, which knows nothing of groups."""
    program = partial(programs.iteration, model.policy.programs.networks, model.policy.programs.optimizer)
    return jax.jit(partial(program, update=type(model).update, projects=False))(*arguments)


def iterations(model: DeepSPI, arguments: Any) -> Callable[..., tuple[Any, Any]]:
    """An iteration on all devices, and the same in groups on one."""
    of_model, static = model.policy.programs, dict(update=type(model).update, projects=model.neighbourhood == "project")
    layouts = programs.layouts_of_iteration(*arguments)
    program = partial(programs.iteration, of_model.networks, of_model.optimizer, **static)
    grouped = in_groups(program, layouts)

    def both(*arguments: Any) -> tuple[Any, Any]:
        ours = of_model.iteration(*model.put(arguments, layouts[0]), mesh=model.mesh, **static)
        return jax.device_get(ours), grouped(*arguments)

    return both


def check_deepspi() -> dict[str, Any]:
    """With a limit of the divergence that is not reached, is reached, and a fault in one environment."""
    model = model_of(DeepSPI, neighbourhood="project", target_kl=1.0, reward_loss_coef=0.5, transition_loss_coef=0.1)
    arguments = arguments_of(model)
    state, rollout, last_observations, h = arguments
    parameters = state.learner.parameters
    iterated = iterations(model, arguments)
    ours, grouped = iterated(*arguments)
    found: dict[str, Any] = {"difference": difference(ours, grouped)}
    found["moved"] = difference(ours[0].learner.parameters, parameters)

    drawn_back = iterated(state, rollout, last_observations, h.replace(clip_range=0.002))
    found["kept"] = [float(kept) for _, _, kept in drawn_back]
    found["difference where it is drawn back"] = difference(*drawn_back)

    stopping = iterated(state, rollout, last_observations, h.replace(target_kl=1e-6))
    found["stopped"] = [bool(report.epochs.stopped) for _, report, _ in stopping]
    found["difference where it stops"] = difference(*stopping)

    broken = rollout.observations.copy()
    broken[:, -1] = np.nan  # of the last device
    ours, grouped = iterated(state, rollout.replace(observations=broken), last_observations, h)
    found["faults"] = [int(report.epochs.faults.loss) for _, report, _ in (ours, grouped)]
    found["n_minibatches"] = int(ours[1].epochs.n_minibatches)
    found["moved by faulty steps"] = [
        difference(state.learner.parameters, parameters) for state, _, _ in (ours, grouped)
    ]
    return found


def check_certificate() -> dict[str, Any]:
    """Of the same update on all devices, and in groups on one."""
    kwargs = dict(lipschitz_constant=1.0, lipschitz_policy=1.0)
    model = model_of(DeepSPI, termination_model=True, policy_kwargs=kwargs)
    state, rollout, _, h = arguments_of(model)
    rollout = rollout.replace(terminated=rollout.truncated, truncated=np.zeros_like(rollout.truncated))
    parameters = jax.tree.map(lambda leaf: leaf + np.float32(0.01), state.learner.parameters)
    rewards = state.rewards.replace(root_mean_square=np.float32(1.5))
    episodes = state.episodes
    state = state.replace(
        episodes=episodes.replace(lengths=np.full_like(episodes.lengths, 4), n_ended=np.ones_like(episodes.n_ended))
    )
    after = state.replace(learner=state.learner.replace(parameters=parameters), rewards=rewards)
    arguments = state, after, rollout, h.gamma
    takes, _ = programs.layouts_of_certify(*arguments)
    ours = model.policy.programs.certify(*model.put(arguments, takes), mesh=model.mesh)
    networks = model.policy.programs.networks
    program = partial(programs.certify_update, networks)
    grouped = in_groups(program, programs.layouts_of_certify(*arguments))(*arguments)
    alone = jax.jit(program)(*arguments)
    exact = [
        difference(one(ours), one(alone))
        for one in (
            lambda c: c.importance_ratio, lambda c: c.model.reward_lipschitz, lambda c: c.model.transition_lipschitz,
            lambda c: c.episode_ended,
        )
    ]  # fmt: skip
    sampled = {
        name: [float(getattr(c.model, name)) for c in (ours, alone)]
        for name in ("reward_error", "transition_error", "end_value")
    }
    return {
        "difference": difference(ours, grouped), "from one device": max(exact), "sampled": sampled,
        "finite": bool(np.isfinite(ours.zeta)), "latent_improvement": float(ours.latent_improvement),
    }  # fmt: skip


def check_deepmdp() -> dict[str, Any]:
    """Against the program of one device as it is, but for the order in which it draws: no noise in this algorithm."""
    model = model_of(DeepMDP, policy_kwargs=dict(transition_density="deterministic"))
    arguments = arguments_of(model)
    ours, grouped = iterations(model, arguments)(*arguments)
    state, rollout, last_observations, h = arguments
    n_own = rollout.rewards.size // N_DEVICES

    # the keys of the epochs: of each device's own, and of one device, for which the same orders are looked up
    _, update_key = jax.random.split(state.key)

    def shuffle_keys(key: jax.Array) -> jax.Array:
        return jnp.stack([jax.random.split(one)[1] for one in jax.random.split(key, h.n_epochs)])

    own = [shuffle_keys(jax.random.fold_in(update_key, device)) for device in range(N_DEVICES)]
    orders = jnp.stack([
        jnp.stack([n_own * device + shuffled(keys[epoch], n_own, 1) for device, keys in enumerate(own)])
        for epoch in range(h.n_epochs)
    ])  # fmt: skip

    def shuffled_in_groups(key: jax.Array, n_transitions: int, segment_length: int) -> jax.Array:
        order = orders[jnp.argmax((shuffle_keys(update_key) == key).all(axis=-1))]
        return order.reshape(N_DEVICES, -1, h.batch_size).swapaxes(0, 1).reshape(n_transitions)

    with mock.patch.object(epochs, "shuffled", shuffled_in_groups):
        of_one = h.replace(batch_size=N_DEVICES * h.batch_size)
        alone = iteration_alone(model, (state, rollout, last_observations, of_one))
    return {"difference": difference(ours, grouped), "difference from one device": difference(ours, alone)}


def check_images() -> dict[str, Any]:
    """In segments, whose room for ends of episodes is each device's own."""
    env = DummyVecEnv([partial(ToyEnv, IMAGE, spaces.Discrete(2), length=3 + 4 * i) for i in range(N_ENVS)])
    kwargs = dict(net_arch=[], transition_density="deterministic")
    model = DeepSPI("CnnPolicy", env, **SMALL | dict(batch_size=32, n_epochs=1, policy_kwargs=kwargs))
    arguments = arguments_of(model)
    ours, grouped = iterations(model, arguments)(*arguments)
    return {"difference": difference(ours, grouped), "segment_length": arguments[-1].segment_length}


def check_dreamspi() -> dict[str, Any]:
    kwargs = dict(transition_density="mixture", lipschitz_constant=1.0)
    model = model_of(DreamSPI, imagination_horizon=3, dyna=True, n_dreams=2, policy_kwargs=kwargs)
    arguments = arguments_of(model)
    ours, grouped = iterations(model, arguments)(*arguments)
    return {
        "difference": difference(ours, grouped),
        "moved": difference(ours[0].learner.parameters, arguments[0].learner.parameters),
        "length": float(ours[1].dreams.length),
    }


def check_fused() -> dict[str, Any]:
    """Normalised observations and rewards, episodes, certificate: all of a program's results."""
    env = line_env(N_ENVS, normalize=True, n_initial_states=5)
    model = DeepSPI("MlpPolicy", env, **SMALL)
    model._setup_learn(10_000)
    model._n_collected = N_STEPS * N_ENVS
    arguments = jax.device_get((model.state, model.hyperparameters(), np.True_))
    static = dict(environments=environments_of(env, N_STEPS, N_DEVICES), update=DeepSPI.update, projects=False)
    takes, _ = programs.layouts_of_fused_iteration(*arguments)
    ours = model.policy.programs.fused_iteration(*model.put(arguments, takes), mesh=model.mesh, **static)
    program = partial(
        programs.fused_iteration, model.policy.programs.networks, model.policy.programs.optimizer, **static
    )
    grouped = in_groups(program, programs.layouts_of_fused_iteration(*arguments))(*arguments)
    episodes = jax.device_get(ours[4])
    # what the devices count together is what the host counts
    counted = arguments[0].episodes.including(episodes.lengths, episodes.dones)
    return {
        "difference": difference(ours, grouped),
        "difference from the host's count": difference(ours[0].episodes, counted),
        "n_ended": int(counted.n_ended),
        "devices draw numbers of their own": len(np.unique(episodes.returns, axis=1)[0]) > 1,
        "shards": [shard.data.shape[0] for shard in ours[0].environments.observations.addressable_shards],
    }


def check_work() -> dict[str, Any]:
    """What one device does, by the compiler's count, and what it asks of the others."""
    model = model_of(DeepMDP, n_steps=32, batch_size=256)  # its plain layers have no norms, which each would compute
    model._n_collected, iteration = model.n_steps * N_ENVS, model.policy.programs.iteration
    h, static = model.hyperparameters(), dict(update=DeepMDP.update, projects=True)
    arguments = jax.device_get((model.state, model.rollout, np.zeros((N_ENVS, *VECTOR.shape), np.float32)))
    takes, _ = programs.layouts_of_iteration(*arguments, h)
    on_all = iteration.lower(*model.put((*arguments, h), takes), mesh=model.mesh, **static).compile()
    on_one = iteration.lower(*arguments, h.replace(batch_size=model.batch_size), **static).compile()
    flops = [compiled.cost_analysis()["flops"] for compiled in (on_all, on_one)]
    return {"part": flops[0] / flops[1], "collectives": collectives_of(on_all)}


def collectives_of(compiled: Any) -> list[str]:
    """What devices ask of each other in a compiled program, by name, and what all-reduces reduce by."""
    text = compiled.as_text()
    names = "all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    found = set(re.findall(rf" ({names})(?:-start)?\(", text))
    for region in re.findall(r" all-reduce(?:-start)?\(.*to_apply=%?([\w.-]+)", text):
        body = text.split(f"\n%{region} (", 1)[1].split("\n}", 1)[0]
        found.add(re.search(r"ROOT .* (\w+)\(", body)[1])
    return sorted(found)


def check_learning() -> dict[str, Any]:
    """From host environments, and from environments inside jit; a callback that stops within a rollout; files."""
    found: dict[str, Any] = {}

    class Stops(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 3 * N_ENVS

    for name, make_env in {"host": toy_env, "jit": partial(line_env, N_ENVS)}.items():
        model, whole = (DeepSPI("MlpPolicy", make_env(), **SMALL | PPO).learn(2 * N_STEPS * N_ENVS) for _ in range(2))
        found[name] = model.num_timesteps
        found[f"{name} on"] = len(jax.tree.leaves(model.policy.learner)[0].devices())
        with tempfile.TemporaryDirectory() as folder:
            model.save(f"{folder}/model")
            loaded = {
                str(device): DeepSPI.load(f"{folder}/model", make_env(), device=device)
                for device in ("auto", ["cpu:0", "cpu:1"], "all")
            }
        found[f"{name} loaded"] = [difference(one.policy.learner, model.policy.learner) for one in loaded.values()]
        copied = pickle.loads(pickle.dumps(loaded["all"]))
        found[f"{name} copied on"] = copied.n_devices
        with mock.patch.object(checks, "find_device", lambda name: jax.devices()[0] if "0" in name else None):
            found[f"{name} copied where there is one"] = pickle.loads(pickle.dumps(model)).n_devices
        observations = model.env.reset()
        actions = [one.predict(observations, deterministic=True)[0] for one in (*loaded.values(), copied, model)]
        found[f"{name} acts the same"] = all(np.array_equal(one, actions[0]) for one in actions)
        for one in (*loaded.values(), copied, whole):
            one.learn(N_STEPS * N_ENVS, reset_num_timesteps=False)
        found[f"{name} goes on"] = [one.num_timesteps for one in loaded.values()]
        resumed = {"file": loaded["all"], "copy": copied}
        found[f"{name} resumed"] = {
            how: difference(one.policy.learner, whole.policy.learner) for how, one in resumed.items()
        }
    stopped = DeepSPI("MlpPolicy", line_env(N_ENVS), **SMALL | PPO).learn(2 * N_STEPS * N_ENVS, callback=Stops())
    found["stopped after"] = stopped.num_timesteps
    # the first steps of the rollout that the program has made
    again = DeepSPI("MlpPolicy", line_env(N_ENVS), **SMALL | PPO)
    again._setup_learn(10_000)
    state, static = again.state, dict(mesh=again.mesh, environments=environments_of(again.env, N_STEPS, N_DEVICES))
    arguments = again.put(
        (state.learner.parameters, state.environments, state.key), (WHOLE, state.environments.layout, WHOLE)
    )
    rollout, *_ = again.policy.programs.collect(*arguments, **static)
    found["difference where it stopped"] = difference(stopped._last_obs, rollout.observations[3])
    return found


def check_bad_input() -> dict[str, tuple[str, str]]:
    """What the message should say, and what it says."""
    cases: dict[str, tuple[str, Callable[[], Any]]] = {
        "environments": ("n_envs must be a multiple of the 4 devices", lambda: model_with(line_env(6))),
        "batch size": ("batch_size must be a multiple of the 4 devices", lambda: model_with(batch_size=18)),
        "batch size, later": ("batch_size must be a multiple", lambda: learn_with(batch_size=18)),
        "missing": ("JAX has no device 'cpu:7' here", lambda: model_with(device=["cpu:0", "cpu:7"])),
        "none": ("is an empty list", lambda: model_with(device=[])),
        "twice": ("twice", lambda: model_with(device=["cpu:0", "cpu"])),
        "unknown": ("must be 'auto' or one of", lambda: model_with(device="every")),
        "together": ("several devices yet", lambda: learn_together([model_with()], 8)),
    }
    found = {}
    for name, (expected, make) in cases.items():
        try:
            make()
            found[name] = expected, "nothing was wrong"
        except ValueError as error:
            found[name] = expected, str(error)
    return found


def model_with(env: Any = None, **given: Any) -> DeepSPI:
    return DeepSPI("MlpPolicy", env or line_env(N_ENVS), **SMALL | given)


def learn_with(**changes: Any) -> None:
    model = model_with()
    vars(model).update(changes)
    model.learn(8)


if __name__ == "__main__":
    names = sys.argv[1:] or [name.removeprefix("check_") for name in globals() if name.startswith("check_")]
    print(json.dumps({name: globals()[f"check_{name}"]() for name in names}))
