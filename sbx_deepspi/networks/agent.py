"""Everything that DeepSPI learns as one flax module, and what it is asked for: actions, losses, certificates."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tensorflow_probability.substrates.jax as tfp
from flax import struct

from sbx_deepspi.networks.backend import in_parts
from sbx_deepspi.networks.lipschitz import (
    KernelNorm,
    are_stale,
    kernel_norms,
    limit_kernels,
    lipschitz_bound,
    normalize_kernels,
)
from sbx_deepspi.networks.world_model import LipschitzBounds
from sbx_deepspi.objective import reward_loss
from sbx_deepspi.rollout import Transitions, share_observations

tfd = tfp.distributions

Norms = dict[str, list[KernelNorm]]
"""Of the Lipschitz kernels of each part of the world model, by its name."""

ONE_LIPSCHITZ_ACTIVATIONS = (nn.relu, nn.tanh, jnp.tanh, nn.elu, nn.leaky_relu)


class Evaluation(struct.PyTreeNode):
    """
    What the objective asks of the networks, for ``B`` transitions; every array is (B,).

    :param log_probs: log π'(a|s)
    :param entropies: H(π'(·|s)), in nats
    :param values: V(s)
    :param reward_losses: ℓ_R
    :param transition_losses: ℓ_P
    :param gradient_penalties: 0 unless asked for
    """

    log_probs: jax.Array
    entropies: jax.Array
    values: jax.Array
    reward_losses: jax.Array
    transition_losses: jax.Array
    gradient_penalties: jax.Array


class LatentStep(struct.PyTreeNode):
    """
    One imagined step of ``B`` latent states.

    :param rewards: R̄(z, a), shape (B,)
    :param latents: ẑ', one sample of P̄(·|z, a), shape (B, ...)
    """

    rewards: jax.Array
    latents: jax.Array


class NetworkBounds(struct.PyTreeNode):
    """
    Upper bounds of the networks' Lipschitz constants in z; infinite where nothing is proven.

    :param policy: of π̄'s distribution over actions as vectors, in the 1-Wasserstein distance
    :param reward: of R̄
    :param transition: of P̄
    """

    policy: jax.Array | float
    reward: LipschitzBounds
    transition: LipschitzBounds


class Networks(nn.Module):
    """
    Everything that DeepSPI learns; one tree {encoder, torso, actor, critic, transition_model, reward_model}.

    :param encoder: φ, observation → latent z
    :param torso: z → features
    :param actor: π̄, features → action distribution
    :param critic: V, features → value
    :param transition_model: P̄(·|z, a)
    :param reward_model: R̄(z, a)
    :param encode_actions: actions as the world model takes them
    :param latent_shape: of one latent state
    :param lipschitz_policy: bound of the Lipschitz constant of torso and actor in z; ``None``: none
    :param action_distance: Lipschitz constant of the distribution over actions, as vectors, in the actor's outputs
    """

    encoder: nn.Module
    torso: nn.Module
    actor: nn.Module
    critic: nn.Module
    transition_model: nn.Module
    reward_model: nn.Module
    encode_actions: Callable[[jax.Array], jax.Array]
    latent_shape: tuple[int, ...]
    lipschitz_policy: float | None
    action_distance: float

    def __call__(self, observations: jax.Array) -> tuple[Any, jax.Array]:
        """
        :param observations: shape (B, ...)
        :return: the action distribution π(·|s), and the values V(s) of shape (B,)
        """
        features = self.torso(self.encoder(observations))
        return self.actor(features), self.critic(features)

    @property
    def latent_map(self) -> tuple[int, ...]:
        """
        :return: rows and columns of the latent state, if it is a map
        """
        return self.latent_shape[:2] if len(self.latent_shape) == 3 else ()

    @property
    def lipschitz_models(self) -> list[str]:
        """
        :return: names of the world model's parts that have Lipschitz layers
        """
        models = {"transition_model": self.transition_model, "reward_model": self.reward_model}
        return [name for name, model in models.items() if model.lipschitz_constant is not None]

    def norms(self) -> Norms:
        """
        :return: of the kernels of Lipschitz layers
        """
        params = self.variables["params"]
        return {name: kernel_norms(params[name], *self.latent_map) for name in self.lipschitz_models}

    def are_stale(self, norms: Norms) -> jax.Array:
        """
        :param norms: of what the kernels were
        :return: whether one of them is so far from there that norms should be computed anew
        """
        params = self.variables["params"]
        return jnp.array([are_stale(norms[name], params[name]) for name in self.lipschitz_models]).any()

    def constrain(self, norms: Norms | None = None) -> dict[str, Any]:
        """
        The parameters with a world model that is Lipschitz, as :meth:`evaluate` wants them.

        :param norms: of these kernels, or of what they were; ``None``: of these
        :return: a tree of the parameters' structure; with plain layers, the parameters themselves
        """
        params = dict(self.variables["params"])
        norms = self.norms() if norms is None else norms
        for name in self.lipschitz_models:
            params[name] = normalize_kernels(params[name], norms[name])
        return {"params": params}

    def limit_policy(self) -> dict[str, Any]:
        """
        The parameters with kernels of torso and actor scaled down until these are as Lipschitz as asked for.

        :return: a tree of the parameters' structure; without ``lipschitz_policy``, the parameters themselves
        """
        params = dict(self.variables["params"])
        if self.lipschitz_policy is not None:
            last = f"Dense_{len(self.actor.net_arch)}"
            limits = {name: self.lipschitz_policy if name == last else 1.0 for name in params["actor"]}
            limited = {
                name: limit_kernels(layer, limits[name])
                for name, layer in params["actor"].items()
                if name.startswith("Dense_")
            }
            params["actor"] = {**params["actor"], **limited}
            if "torso" in params:
                params["torso"] = limit_kernels(params["torso"], 1.0)
        return {"params": params}

    def evaluate(self, transitions: Transitions, key: jax.Array, gradient_penalty: bool = False) -> Evaluation:
        """
        One pass over a minibatch, with constrained parameters. Gradient flows through both φ(s) and φ(s').

        :param transitions: B transitions
        :param key: randomness of the latent sample ẑ'
        :param gradient_penalty: whether to compute :meth:`gradient_penalties`
        :return: policy, values and the world model's losses
        """
        latents, next_latents = self.encode_both(transitions)
        features = self.torso(latents)
        distribution = self.actor(features)
        actions = self.encode_actions(transitions.actions)
        penalties = jnp.zeros(len(latents))
        if gradient_penalty:
            penalties = self.gradient_penalties(latents, actions, jax.random.fold_in(key, 1))
        return Evaluation(
            log_probs=distribution.log_prob(transitions.actions),
            entropies=distribution.entropy(),
            values=self.critic(features),
            reward_losses=reward_loss(self.reward_model(latents, actions), transitions.rewards),
            transition_losses=self.transition_losses(latents, actions, next_latents, key),
            gradient_penalties=penalties,
        )

    def encode_both(self, transitions: Transitions) -> tuple[jax.Array, jax.Array]:
        """
        :param transitions: B transitions; if in segments, such that :func:`share_observations` fits them
        :return: φ(s) and φ(s'), each of shape (B, ...)
        """
        if transitions.segment_length == 1:
            return self.encoder(transitions.observations), self.encoder(transitions.next_observations)
        shared = share_observations(transitions)
        latents = self.encoder(shared.observations)
        return latents[: len(shared.following)], latents[shared.following]

    def transition_losses(
        self, latents: jax.Array, actions: jax.Array, next_latents: jax.Array, key: jax.Array
    ) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :param actions: as the world model takes them
        :param next_latents: φ(s'), shape (B, ...)
        :param key: randomness of ẑ'
        :return: ℓ_P, shape (B,)
        """

        def losses(latents: jax.Array, actions: jax.Array, next_latents: jax.Array, keys: jax.Array) -> jax.Array:
            return self.transition_model(latents, actions).transition_losses(next_latents, keys[0])

        # a key for each transition, of which a part takes the first
        arguments = latents, actions, next_latents, jax.random.split(key, len(latents))
        return in_parts(losses, *arguments) if self.latent_map else losses(*arguments)

    def gradient_penalties(self, latents: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
        """
        How much steeper than 1 the world model is at z: max(0, ‖∇_z R̄‖ - 1)² + max(0, ‖∇_z vᵀẑ'‖ - 1)², v a random
        direction. The penalty of Gulrajani et al. (2017) that DeepMDP uses, for slopes above 1 only.

        :param latents: z, shape (B, ...); no gradient goes on to them
        :param actions: as the world model takes them
        :param key: randomness of ẑ' and v
        :return: shape (B,)
        """
        sample_key, direction_key = jax.random.split(key)
        directions = jax.random.normal(direction_key, latents.shape)
        axes = tuple(range(1, latents.ndim))
        directions /= jnp.sqrt((directions**2).sum(axis=axes, keepdims=True))

        transition_model, transition_params = self.transition_model.unbind()
        reward_model, reward_params = self.reward_model.unbind()

        def outputs(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
            density: Any = transition_model.apply(transition_params, latents, actions)
            rewards: Any = reward_model.apply(reward_params, latents, actions)
            return rewards, (density.sample(sample_key) * directions).sum(axis=axes)

        _, pull_back = jax.vjp(outputs, jax.lax.stop_gradient(latents))
        ones, zeros = jnp.ones(len(latents)), jnp.zeros(len(latents))
        slopes = (pull_back(cotangents)[0] for cotangents in ((ones, zeros), (zeros, ones)))
        # 1e-12: the norm has no gradient at 0
        return sum(nn.relu(jnp.sqrt((slope**2).sum(axis=axes) + 1e-12) - 1.0) ** 2 for slope in slopes)  # type: ignore[return-value]

    def log_policy(self, observations: jax.Array, actions: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, ...)
        :param actions: shape (B, ...), which matter for Box only
        :return: log π(·|s), see :func:`log_policy`
        """
        return log_policy(self(observations)[0], actions)

    def encode(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, ...)
        :return: φ(s), shape (B, ...)
        """
        return self.encoder(observations)

    def latent_values(self, latents: jax.Array) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :return: what the critic says of them, shape (B,)
        """
        return self.critic(self.torso(latents))

    def act(self, latents: jax.Array, key: jax.Array) -> jax.Array:
        """
        :param latents: z, shape (B, ...)
        :param key: randomness
        :return: actions sampled from π̄, shape (B, ...)
        """
        return self.actor(self.torso(latents)).sample(seed=key)

    def imagine(self, latents: jax.Array, actions: jax.Array, key: jax.Array) -> LatentStep:
        """
        One step of the latent MDP, with constrained parameters.

        :param latents: z, shape (B, ...)
        :param actions: a, shape (B, ...)
        :param key: randomness of the next latents
        :return: rewards and next latents
        """
        actions = self.encode_actions(actions)
        next_latents = self.transition_model(latents, actions).sample(key)
        return LatentStep(self.reward_model(latents, actions), next_latents)

    def lipschitz_bounds(self) -> NetworkBounds:
        """
        :return: Lipschitz constants of policy and world model, with constrained parameters
        """
        params = self.variables["params"]
        reward, transition = (
            self.reward_model.lipschitz_bounds(),
            self.transition_model.lipschitz_bounds(*self.latent_map),
        )
        policy: jax.Array | float = math.inf
        # where two actions may differ without bound, the policy's constant would tell nothing
        if "actions" in params["reward_model"] and self.actor.activation_fn in ONE_LIPSCHITZ_ACTIVATIONS:
            policy = self.action_distance * lipschitz_bound(params.get("torso", {})) * lipschitz_bound(params["actor"])
        return NetworkBounds(policy, reward, transition)


def log_policy(distribution: Any, actions: jax.Array) -> jax.Array:
    """
    log π of all that can be compared between two policies: of every action where there are finitely many, of the
    sampled one for Box. Several choices at once (MultiDiscrete) have an axis of their own before the last.

    :param distribution: π(·|s), from SBX's actor
    :param actions: the sampled ones, shape (B, ...)
    :return: shape (B, n) for Discrete, (B, choices, n) for MultiDiscrete and MultiBinary, (B, 1) for Box
    """
    match distribution:
        case tfd.Categorical():
            logits = distribution.logits
        case tfd.Independent():
            logits = distribution.distribution.logits
        case _:
            return distribution.log_prob(actions)[:, None]
    # a choice with fewer options than others is padded: 0 there changes no ratio
    return jnp.where(jnp.isneginf(logits), 0.0, jax.nn.log_softmax(logits))
