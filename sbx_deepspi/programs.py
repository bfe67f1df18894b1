"""
The compiled functions of all models of one kind.

JAX keeps what it has compiled for as long as the function lives. So models of the same networks and optimiser share one
:class:`Programs`, and a second one compiles nothing; with the last of them the programs go, and give their memory back.
"""

from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp

from sbx_deepspi import agent, memory, ops
from sbx_deepspi.agent import Networks
from sbx_deepspi.collect.copies import CopiesState, Outcome
from sbx_deepspi.collect.jitted import Environments, collect
from sbx_deepspi.deepspi import Update, UpdateReport
from sbx_deepspi.devices import PER_ENV, PER_STEP, WHOLE, Layouts, OnDevices
from sbx_deepspi.guarantee.measure import Certificate, certify, importance_ratios, transition_lipschitz
from sbx_deepspi.guarantee.neighbourhood import project
from sbx_deepspi.hyperparameters import Hyperparameters
from sbx_deepspi.optimizer import Learner, Optimizer, Parameters, StepSizes
from sbx_deepspi.rollout import Observations, Rollout
from sbx_deepspi.state import TrainerState


class _Kind:
    """Networks and optimiser as a key whose hash is known: flax's modules cannot be hashed while Python shuts down."""

    def __init__(self, networks: Networks, optimizer: Optimizer) -> None:
        self.parts = networks, optimizer
        self.hash = hash(self.parts)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self.parts == other.parts


_OF_KIND: WeakValueDictionary[_Kind, "Programs"] = WeakValueDictionary()


class Programs:
    """
    Each attribute is compiled at its first call, for the shapes that it then gets.

    :param networks: without parameters
    :param optimizer: of all parameters
    """

    def __init__(self, networks: Networks, optimizer: Optimizer) -> None:
        self.networks, self.optimizer = networks, optimizer
        self.create = jax.jit(partial(create, networks, optimizer), compiler_options=ops.QUICKLY)
        self.certify = OnDevices(partial(certify_update, networks), layouts_of_certify, compiler_options=ops.QUICKLY)
        self.decide = jax.jit(partial(agent.decide, networks))
        self.most_likely_actions = jax.jit(partial(agent.most_likely_actions, networks))
        self.values = jax.jit(partial(agent.values, networks))
        self.iteration = OnDevices(
            partial(iteration, networks, optimizer), layouts_of_iteration, static_argnames=("update", "projects")
        )
        self.collect = OnDevices(partial(collect, networks), layouts_of_collect, static_argnames=("environments",))
        self.fused_iteration = OnDevices(
            partial(fused_iteration, networks, optimizer),
            layouts_of_fused_iteration,
            static_argnames=("environments", "update", "projects"),
        )
        self.fused_iterations = jax.jit(
            partial(fused_iterations, networks, optimizer), static_argnames=("environments", "update", "projects")
        )
        self.importance_ratios = jax.jit(partial(importance_ratios, networks))
        self.transition_lipschitz = jax.jit(partial(transition_lipschitz, networks))

    @classmethod
    def of(cls, networks: Networks, optimizer: Optimizer) -> "Programs":
        """
        :param networks: without parameters
        :param optimizer: of all parameters
        :return: the programs of models of this kind, which live as long as one of these models
        """
        try:
            kind = _Kind(networks, optimizer)
        except TypeError:  # a network of the user's own may have fields that cannot be compared
            return cls(networks, optimizer)
        programs = _OF_KIND.get(kind)
        if programs is None:
            memory.give_back()  # what programs of earlier models have left
            programs = _OF_KIND[kind] = cls(networks, optimizer)
        return programs


def layouts_of_iteration(state: TrainerState, *_: Any) -> Layouts:
    """
    :param state: before the iteration
    :return: layouts of :func:`iteration`
    """
    return (state.layout, PER_STEP, PER_ENV, WHOLE), (state.layout, WHOLE, WHOLE)


def layouts_of_fused_iteration(state: TrainerState, *_: Any) -> Layouts:
    """
    :param state: before the iteration
    :return: layouts of :func:`fused_iteration`
    """
    return (state.layout, WHOLE, WHOLE), (state.layout, WHOLE, WHOLE, WHOLE, PER_STEP)


def layouts_of_collect(parameters: Parameters, state: CopiesState, *_: Any) -> Layouts:
    """
    :param parameters: of the behaviour policy
    :param state: of the environments
    :return: layouts of :func:`~sbx_deepspi.collect.jitted.collect`
    """
    return (WHOLE, state.layout, WHOLE), (PER_STEP, PER_STEP, state.layout, WHOLE)


def layouts_of_certify(before: TrainerState, after: TrainerState, *_: Any) -> Layouts:
    """
    :param before: the state before the update
    :param after: the state after it
    :return: layouts of :func:`certify_update`
    """
    return (before.layout, after.layout, PER_STEP, WHOLE), WHOLE


def create(
    networks: Networks,
    optimizer: Optimizer,
    key: jax.Array,
    observations: Observations,
    actions: jax.Array,
    step_sizes: StepSizes,
) -> Learner:
    """
    :param networks: without parameters
    :param optimizer: of all parameters
    :param key: randomness
    :param observations: an example, shape (1, ...)
    :param actions: an example, shape (1, ...)
    :param step_sizes: the first ones
    :return: first parameters and optimiser
    """
    parameters = agent.create_parameters(networks, key, observations, actions)
    return Learner(parameters, optimizer.init(parameters, step_sizes))


def iteration(
    networks: Networks,
    optimizer: Optimizer,
    state: TrainerState,
    rollout: Rollout,
    last_observations: Observations,
    hyperparameters: Hyperparameters,
    *,
    update: Update,
    projects: bool,
) -> tuple[TrainerState, UpdateReport, jax.Array]:
    """
    What follows a rollout: an update and, where asked for, the way back into the neighbourhood.

    :param networks: without parameters
    :param optimizer: of all parameters
    :param state: before
    :param rollout: T steps of N environments
    :param last_observations: what follows the rollout's last step, shape (N, ...)
    :param hyperparameters: see :class:`~sbx_deepspi.hyperparameters.Hyperparameters`
    :param update: of the algorithm
    :param projects: whether the update is drawn back until it is in the neighbourhood
    :return: the state after it, what to tell the user, and how much of the update was kept, in [0, 1]
    """
    key, update_key = jax.random.split(state.key)
    rewards = state.rewards.including(rollout.rewards)
    learner, report = update(
        networks, optimizer, state.learner, rollout, last_observations, rewards.scale, update_key, hyperparameters
    )
    kept = jnp.float32(1)
    if projects:
        parameters, kept = project(
            networks, state.learner.parameters, learner.parameters, rollout, hyperparameters.clip_range
        )
        learner = learner.replace(parameters=parameters)
    n_epochs = state.n_epochs + report.epochs.n_epochs
    return state.replace(learner=learner, key=key, rewards=rewards, n_epochs=n_epochs), report, kept


def fused_iteration(
    networks: Networks,
    optimizer: Optimizer,
    state: TrainerState,
    hyperparameters: Hyperparameters,
    is_certified: bool | jax.Array,
    *,
    environments: Environments,
    update: Update,
    projects: bool,
) -> tuple[TrainerState, UpdateReport, jax.Array, Certificate | None, Outcome]:
    """
    A rollout and what follows it.

    :param networks: without parameters
    :param optimizer: of all parameters
    :param state: before, with that of the environments
    :param hyperparameters: see :class:`~sbx_deepspi.hyperparameters.Hyperparameters`
    :param is_certified: whether the update gets a certificate
    :param environments: that the rollout is collected from
    :param update: of the algorithm
    :param projects: whether the update is drawn back until it is in the neighbourhood
    :return: what :func:`iteration` returns, the certificate (``None`` without a world model, zeros where there was none
        to be), and what the host is told of the rollout
    """
    rollout, episodes, copies, key = collect(
        networks, state.learner.parameters, state.environments, state.key, environments=environments
    )
    lengths = state.episodes.including(episodes.lengths, rollout.dones)
    before = state.replace(key=key, episodes=lengths, environments=copies)
    last_observations = environments.observed(copies.observations)
    after, report, kept = iteration(
        networks, optimizer, before, rollout, last_observations, hyperparameters, update=update, projects=projects
    )
    if networks.world_model is None:
        return after, report, kept, None, episodes

    def certificate() -> Certificate:
        return certify_update(networks, before, after, rollout, hyperparameters.gamma)

    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(certificate))
    return after, report, kept, jax.lax.cond(is_certified, certificate, lambda: none), episodes


def fused_iterations(
    networks: Networks,
    optimizer: Optimizer,
    states: tuple[TrainerState, ...],
    hyperparameters: tuple[Hyperparameters, ...],
    is_certified: bool | jax.Array,
    *,
    environments: Environments,
    update: Update,
    projects: bool,
) -> list[tuple[TrainerState, UpdateReport, jax.Array, Certificate | None, Outcome]]:
    """
    :func:`fused_iteration` of several models at once, each with a state and hyperparameters of its own.

    :param networks: without parameters
    :param optimizer: of all parameters
    :param states: of the models
    :param hyperparameters: of the models
    :param is_certified: whether the updates get certificates
    :param environments: that the rollouts are collected from
    :param update: of the algorithm
    :param projects: whether updates are drawn back until they are in the neighbourhood
    :return: what :func:`fused_iteration` returns, for each model
    """
    one = partial(fused_iteration, networks, optimizer, environments=environments, update=update, projects=projects)
    all_states, all_hyperparameters = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (states, hyperparameters)
    )
    made = jax.vmap(one, in_axes=(0, 0, None))(all_states, all_hyperparameters, is_certified)
    return [jax.tree.map(lambda leaf: leaf[index], made) for index in range(len(states))]  # noqa: B023


def certify_update(
    networks: Networks, before: TrainerState, after: TrainerState, rollout: Rollout, gamma: float | jax.Array
) -> Certificate:
    """
    What is known of the step from one policy and world model to the next.

    :param networks: without parameters
    :param before: the state before the update
    :param after: the state after it
    :param rollout: of the policy before, T steps of N environments
    :param gamma: discount factor
    :return: the certificate
    """
    # randomness of its own, so that the run is the same however often it is certified: an iteration splits the key
    # into those of 0 and 1
    key = jax.random.fold_in(before.key, 2)
    return certify(
        networks,
        before.learner.parameters,
        after.learner.parameters,
        rollout,
        before.episodes.mean_length,
        (before.rewards.scale, after.rewards.scale),
        key,
        gamma,
    )
