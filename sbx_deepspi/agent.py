"""What the networks are asked, as plain functions of their parameters: actions, policy terms, model losses, bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tensorflow_probability.substrates.jax as tfp
from flax import struct

from sbx_deepspi import devices, losses
from sbx_deepspi.lipschitz import normalizer
from sbx_deepspi.lipschitz.norms import limit_kernels, lipschitz_bound
from sbx_deepspi.networks.choices import Choices
from sbx_deepspi.networks.heads import Actor
from sbx_deepspi.ops import in_parts
from sbx_deepspi.optimizer import Parameters
from sbx_deepspi.rollout import Observations
from sbx_deepspi.world_model.actions import LipschitzBounds
from sbx_deepspi.world_model.densities import LatentDensity
from sbx_deepspi.world_model.reward import RewardModel
from sbx_deepspi.world_model.termination import TerminationModel

tfd = tfp.distributions

ONE_LIPSCHITZ_ACTIVATIONS = (nn.relu, nn.tanh, jnp.tanh, nn.elu, nn.leaky_relu)


@dataclass(frozen=True)
class WorldModel:
    """
    The latent MDP's dynamics.

    :param transition_model: (z, a) → outputs of which the density is made
    :param reward_model: (z, a) → R̄
    :param density: P̄'s family
    :param encode_actions: actions as both models take them
    :param termination_model: z' → Ē; ``None``: the latent MDP never ends
    """

    transition_model: Any
    reward_model: RewardModel
    density: LatentDensity
    encode_actions: Callable[[jax.Array], jax.Array]
    termination_model: TerminationModel | None = None


@dataclass(frozen=True)
class Networks:
    """
    Everything that DeepSPI learns, without the parameters. These are one tree {encoder, torso, actor, critic,
    transition_model, reward_model, termination_model}, without the last three where there is no world model.

    :param encoder: φ, observation → latent z
    :param torso: z → features
    :param actor: π̄, features → action distribution
    :param critic: V, features → value
    :param world_model: P̄, R̄ and, where asked for, Ē; ``None``: none, which is PPO
    :param latent_shape: of one latent state
    :param lipschitz_policy: bound of the Lipschitz constant of torso and actor in z; ``None``: none
    :param action_distance: Lipschitz constant of the distribution over actions, as vectors, in the actor's outputs
    """

    encoder: nn.Module
    torso: nn.Module
    actor: Actor
    critic: nn.Module
    world_model: WorldModel | None
    latent_shape: tuple[int, ...]
    lipschitz_policy: float | None
    action_distance: float

    @property
    def latent_map(self) -> tuple[int, ...]:
        """
        :return: rows and columns of the latent state, if it is a map
        """
        return self.latent_shape[:2] if len(self.latent_shape) == 3 else ()

    @property
    def has_ends(self) -> bool:
        """
        :return: whether the latent MDP may end
        """
        return self.world_model is not None and self.world_model.termination_model is not None

    @property
    def n_predicted(self) -> int:
        """
        :return: how many numbers the transition model puts out for one latent state
        """
        n_outputs = 0 if self.world_model is None else sum(self.world_model.density.n_outputs)
        return math.prod(self.latent_shape) * n_outputs

    def lipschitz(self, parameters: Parameters) -> Parameters:
        """
        :param parameters: of all of them
        :return: of those parts of the world model that have Lipschitz layers
        """
        if self.world_model is None:
            return {}
        models = {
            "transition_model": self.world_model.transition_model,
            "reward_model": self.world_model.reward_model,
        }
        return {name: parameters[name] for name, model in models.items() if model.lipschitz_constant is not None}


class PolicyTerms(struct.PyTreeNode):
    """
    What the objective asks of policy and values, for ``B`` latent states; every array is (B,).

    :param log_probs: log π'(a|s)
    :param entropies: H(π'(·|s)), in nats
    :param values: V(s)
    """

    log_probs: jax.Array
    entropies: jax.Array
    values: jax.Array


class ModelLosses(struct.PyTreeNode):
    """
    What the objective asks of the world model, for ``B`` transitions; every array is (B,).

    :param reward: ℓ_R
    :param transition: ℓ_P
    :param termination: ℓ_E; 0 without a termination model
    """

    reward: jax.Array
    transition: jax.Array
    termination: jax.Array


class Decision(struct.PyTreeNode):
    """
    What the behaviour policy did in ``N`` states.

    :param actions: shape (N, ...)
    :param log_probs: log π(a|s), shape (N,)
    :param log_policy: log π(·|s), see :func:`log_policy`, shape (N, ...)
    :param values: V(s), shape (N,)
    """

    actions: jax.Array
    log_probs: jax.Array
    log_policy: jax.Array
    values: jax.Array


class NetworkBounds(struct.PyTreeNode):
    """
    Upper bounds of the networks' Lipschitz constants in z; infinite where nothing is proven.

    :param policy: of π̄'s distribution over actions as vectors, in the 1-Wasserstein distance
    :param reward: of R̄
    :param transition: of P̄
    :param termination: of Ē; 0 where there is none
    """

    policy: jax.Array | float
    reward: LipschitzBounds
    transition: LipschitzBounds
    termination: jax.Array | float


def apply(module: nn.Module, parameters: dict[str, Any], *inputs: Any) -> Any:
    """
    :param module: a network
    :param parameters: its part of the tree
    :param inputs: what it takes
    :return: what it makes of them
    """
    return module.apply({"params": parameters}, *inputs)


def create_parameters(networks: Networks, key: jax.Array, observations: Observations, actions: jax.Array) -> Parameters:
    """
    :param networks: without parameters
    :param key: randomness
    :param observations: an example, shape (1, ...)
    :param actions: an example, shape (1, ...)
    :return: first parameters
    """
    names = "encoder", "torso", "actor", "critic", "transition_model", "reward_model", "termination_model"
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    parameters: Parameters = {}

    def create(name: str, module: nn.Module, *inputs: Any) -> Any:
        outputs, variables = module.init_with_output(keys[name], *inputs)
        parameters[name] = variables.get("params", {})
        return outputs

    latents = create("encoder", networks.encoder, observations)
    features = create("torso", networks.torso, latents)
    create("actor", networks.actor, features)
    create("critic", networks.critic, features)
    if networks.world_model is not None:
        model, encoded = networks.world_model, networks.world_model.encode_actions(actions)
        create("transition_model", model.transition_model, latents, encoded)
        create("reward_model", model.reward_model, latents, encoded)
        if model.termination_model is not None:
            create("termination_model", model.termination_model, latents)
    return limit_policy(networks, parameters)


# --- policy and values ------------------------------------------------------------------------------


def encode(networks: Networks, parameters: Parameters, observations: Observations) -> jax.Array:
    """
    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :param observations: shape (B, ...)
    :return: z = φ(s), shape (B, ...)
    """
    latents: jax.Array = apply(networks.encoder, parameters["encoder"], observations)
    return latents


def policy_and_values(networks: Networks, parameters: Parameters, latents: jax.Array) -> tuple[Any, jax.Array]:
    """
    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :param latents: z, shape (B, ...)
    :return: π̄(·|z), a distribution, and V(z) of shape (B,)
    """
    features = apply(networks.torso, parameters["torso"], latents)
    return apply(networks.actor, parameters["actor"], features), apply(networks.critic, parameters["critic"], features)


def action_noise(networks: Networks, key: jax.Array, n: int) -> jax.Array:
    """
    The randomness of actions, which can be drawn before the policy is known: all that a rollout needs at once, in a
    fraction of the time that as many small draws take.

    :param networks: see :class:`Networks`
    :param key: randomness
    :param n: N, number of actions
    :return: numbers of Gumbel's distribution for Discrete and several choices, normal ones for Box; shape (N, outputs
        of the actor)
    """
    draw = jax.random.gumbel if networks.actor.choices or networks.actor.is_one_choice else jax.random.normal
    return draw(key, (n, networks.actor.n_outputs))


def sample(distribution: Any, noise: jax.Array) -> jax.Array:
    """
    :param distribution: π(·|s), from the actor
    :param noise: of :func:`action_noise`
    :return: actions, shape (N, ...)
    """
    match distribution:
        case tfd.Categorical():  # the largest of logits and Gumbel noise is one of their softmax
            return jnp.argmax(distribution.logits + noise, axis=-1)
        case Choices():
            return distribution.sample(noise)
    actions: jax.Array = distribution.mean() + distribution.stddev() * noise
    return actions


def act(networks: Networks, parameters: Parameters, latents: jax.Array, noise: jax.Array) -> Decision:
    """
    Sample actions, with what an update needs to know of them.

    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :param latents: z, shape (N, ...)
    :param noise: of :func:`action_noise`
    :return: the decision
    """
    distribution, values = policy_and_values(networks, parameters, latents)
    actions = sample(distribution, noise)
    return Decision(actions, distribution.log_prob(actions), log_policy(distribution, actions), values)


def decide(
    networks: Networks, parameters: Parameters, observations: Observations, key: jax.Array
) -> tuple[Decision, jax.Array]:
    """
    :param networks: without parameters
    :param parameters: of all of them
    :param observations: shape (N, ...)
    :param key: randomness, used up
    :return: sampled actions with what an update needs to know of them, and a key for the next ones
    """
    latents = encode(networks, parameters, observations)
    key, own_key = next_keys(key)
    return act(networks, parameters, latents, action_noise(networks, own_key, len(latents))), key


def next_keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """
    :param key: randomness of all further steps, used up
    :return: that of the steps after the next one, and the next one's on this device
    """
    key, step_key = jax.random.split(key)
    return key, devices.own(step_key)


def most_likely_actions(networks: Networks, parameters: Parameters, observations: Observations) -> jax.Array:
    """
    :param networks: without parameters
    :param parameters: of all of them
    :param observations: shape (N, ...)
    :return: actions, shape (N, ...)
    """
    latents = encode(networks, parameters, observations)
    actions: jax.Array = policy_and_values(networks, parameters, latents)[0].mode()
    return actions


def values(networks: Networks, parameters: Parameters, observations: Observations) -> jax.Array:
    """
    :param networks: without parameters
    :param parameters: of all of them
    :param observations: shape (N, ...)
    :return: V(s), shape (N,)
    """
    latents = encode(networks, parameters, observations)
    return policy_and_values(networks, parameters, latents)[1]


def policy_terms(networks: Networks, parameters: Parameters, latents: jax.Array, actions: jax.Array) -> PolicyTerms:
    """
    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :param latents: z, shape (B, ...)
    :param actions: a, shape (B, ...)
    :return: log-probabilities, entropies and values
    """
    distribution, values = policy_and_values(networks, parameters, latents)
    return PolicyTerms(distribution.log_prob(actions), distribution.entropy(), values)


def log_policy(distribution: Any, actions: jax.Array) -> jax.Array:
    """
    log π of all that can be compared between two policies: of every action where there are finitely many, of the
    sampled one for Box.

    :param distribution: π(·|s), from the actor
    :param actions: the sampled ones, shape (B, ...)
    :return: shape (B, n) for Discrete; (B, Σ n) for several choices of n options, side by side; (B, 1) for Box
    """
    match distribution:
        case tfd.Categorical():
            return jax.nn.log_softmax(distribution.logits)
        case Choices():
            return distribution.log_policy
    log_probs: jax.Array = distribution.log_prob(actions)
    return log_probs[:, None]


def limit_policy(networks: Networks, parameters: Parameters) -> Parameters:
    """
    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :return: the same, with kernels of torso and actor scaled down until these are as Lipschitz as ``lipschitz_policy``
        asks for
    """
    if networks.lipschitz_policy is None:
        return parameters
    last = f"Dense_{len(networks.actor.net_arch)}"
    actor = {
        name: limit_kernels(layer, networks.lipschitz_policy if name == last else 1.0)
        if name.startswith("Dense_")
        else layer
        for name, layer in parameters["actor"].items()
    }
    return parameters | {"actor": actor, "torso": limit_kernels(parameters["torso"], 1.0)}


# --- world model ------------------------------------------------------------------------------------


def model_losses(
    networks: Networks,
    parameters: Parameters,
    latents: jax.Array,
    actions: jax.Array,
    rewards: jax.Array,
    terminated: jax.Array,
    next_latents: jax.Array,
    key: jax.Array,
) -> ModelLosses:
    """
    ℓ_R, ℓ_P and ℓ_E. Gradient flows through both φ(s) and φ(s').

    :param networks: see :class:`Networks`
    :param parameters: of all networks, normalised
    :param latents: φ(s), shape (B, ...)
    :param actions: a, shape (B, ...)
    :param rewards: r/σ, shape (B,)
    :param terminated: whether s' is terminal, shape (B,)
    :param next_latents: φ(s'), shape (B, ...)
    :param key: randomness of the latent sample ẑ'
    :return: one number of each per transition; 0 without a world model
    """
    model = networks.world_model
    if model is None:
        zeros = jnp.zeros(len(latents))
        return ModelLosses(reward=zeros, transition=zeros, termination=zeros)
    actions = model.encode_actions(actions)

    def transition_losses(
        latents: jax.Array, actions: jax.Array, next_latents: jax.Array, keys: jax.Array
    ) -> jax.Array:
        outputs = apply(model.transition_model, parameters["transition_model"], latents, actions)
        return model.density.loss(outputs, model.transition_model.as_outputs(next_latents), keys[0])

    # where there are parts, one key per transition, so that each has its own
    keys = jax.random.split(key, len(latents) if networks.latent_map else 1)
    arguments = latents, actions, next_latents, keys
    transition = (
        in_parts(transition_losses, *arguments, n_numbers=networks.n_predicted)
        if networks.latent_map
        else transition_losses(*arguments)
    )
    rewards_predicted = apply(model.reward_model, parameters["reward_model"], latents, actions)
    return ModelLosses(
        reward=losses.reward_loss(rewards_predicted, rewards),
        transition=transition,
        termination=jnp.zeros(len(latents))
        if model.termination_model is None
        else losses.termination_loss(end_probabilities(networks, parameters, next_latents), terminated),
    )


def predict(
    networks: Networks, parameters: Parameters, latents: jax.Array, actions: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """
    One step of the latent MDP.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z, shape (B, ...)
    :param actions: a, shape (B, ...)
    :param key: randomness of the next latents
    :return: R̄(z, a) of shape (B,), in units of σ, and ẑ', one sample of P̄(·|z, a), of shape (B, ...)
    """
    model = networks.world_model
    assert model is not None
    actions = model.encode_actions(actions)

    def sample(latents: jax.Array, actions: jax.Array, keys: jax.Array) -> jax.Array:
        outputs = apply(model.transition_model, parameters["transition_model"], latents, actions)
        sampled: jax.Array = model.transition_model.as_latents(model.density.sample(outputs, keys[0]))
        return sampled

    # one key per latent state, so that parts have their own
    keys = jax.random.split(key, len(latents))
    next_latents = in_parts(sample, latents, actions, keys, n_numbers=networks.n_predicted)
    return apply(model.reward_model, parameters["reward_model"], latents, actions), next_latents


def end_probabilities(networks: Networks, parameters: Parameters, next_latents: jax.Array) -> jax.Array:
    """
    :param networks: with a world model
    :param parameters: of all networks
    :param next_latents: z', shape (B, ...)
    :return: Ē(z'), shape (B,); 0 without a termination model
    """
    assert networks.world_model is not None
    model = networks.world_model.termination_model
    if model is None:
        return jnp.zeros(len(next_latents))
    probabilities: jax.Array = apply(model, parameters["termination_model"], next_latents)
    return probabilities


def normalized(networks: Networks, parameters: Parameters) -> Parameters:
    """
    :param networks: see :class:`Networks`
    :param parameters: of all of them
    :return: the same, with a world model that is as Lipschitz as asked for
    """
    return parameters | normalizer.normalize(networks.lipschitz(parameters), networks.latent_map)


def gradient_penalties(
    networks: Networks, parameters: Parameters, latents: jax.Array, actions: jax.Array, key: jax.Array
) -> jax.Array:
    """
    How much steeper than 1 the world model is at z: max(0, ‖∇_z R̄‖ - 1)² + max(0, ‖∇_z vᵀẑ'‖ - 1)², v a random
    direction. The penalty of Gulrajani et al. (2017) that DeepMDP uses, for slopes above 1 only.

    :param networks: with a world model
    :param parameters: of all networks, normalised
    :param latents: z, shape (B, ...); no gradient goes on to them
    :param actions: a, shape (B, ...)
    :param key: randomness of ẑ' and v
    :return: shape (B,)
    """
    sample_key, direction_key = jax.random.split(key)
    directions = jax.random.normal(direction_key, latents.shape)
    axes = tuple(range(1, latents.ndim))
    directions /= jnp.sqrt((directions**2).sum(axis=axes, keepdims=True))

    def outputs(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        rewards, next_latents = predict(networks, parameters, latents, actions, sample_key)
        return rewards, (next_latents * directions).sum(axis=axes)

    _, pull_back = jax.vjp(outputs, jax.lax.stop_gradient(latents))
    ones, zeros = jnp.ones(len(latents)), jnp.zeros(len(latents))
    slopes = (pull_back(cotangents)[0] for cotangents in ((ones, zeros), (zeros, ones)))
    # 1e-12: the norm has no gradient at 0
    return sum(nn.relu(jnp.sqrt((slope**2).sum(axis=axes) + 1e-12) - 1.0) ** 2 for slope in slopes)  # type: ignore[return-value]


def lipschitz_bounds(networks: Networks, parameters: Parameters) -> NetworkBounds:
    """
    :param networks: with a world model
    :param parameters: of all networks, normalised
    :return: Lipschitz constants of policy and world model in z
    """
    model = networks.world_model
    assert model is not None
    policy: jax.Array | float = math.inf
    # where two actions may differ without bound, the policy's constant would tell nothing
    if "actions" in parameters["reward_model"] and networks.actor.activation_fn in ONE_LIPSCHITZ_ACTIVATIONS:
        policy = networks.action_distance * lipschitz_bound(parameters["torso"]) * lipschitz_bound(parameters["actor"])
    return NetworkBounds(
        policy,
        model.reward_model.lipschitz_bounds(parameters["reward_model"]),
        model.transition_model.lipschitz_bounds(parameters["transition_model"], networks.latent_map),
        0.0
        if model.termination_model is None
        else model.termination_model.lipschitz_bound(parameters["termination_model"]),
    )
