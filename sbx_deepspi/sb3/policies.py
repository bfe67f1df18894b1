"""DeepSPI's policies: encoder, torso, heads and world model as one SB3 policy with one parameter tree."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch as th
from gymnasium import spaces
from sbx.common.policies import BaseJaxPolicy
from sbx.ppo.policies import Actor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule

from sbx_deepspi.agent import ONE_LIPSCHITZ_ACTIVATIONS, Networks, WorldModel
from sbx_deepspi.losses import CATEGORICAL_COSTS
from sbx_deepspi.networks.encoders import (
    CONVOLUTIONS,
    Activation,
    CategoricalEncoder,
    CnnEncoder,
    MlpEncoder,
    latent_map_size,
)
from sbx_deepspi.networks.heads import CnnTorso, Critic, MlpTorso
from sbx_deepspi.optimizer import Learner, Optimizer, StepSize
from sbx_deepspi.programs import Programs, create
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.sb3 import checks
from sbx_deepspi.sb3.spaces import action_distance, action_dtype, action_encoder, action_shape, actor_kwargs
from sbx_deepspi.world_model.densities import DENSITIES, make_density
from sbx_deepspi.world_model.reward import RewardModel
from sbx_deepspi.world_model.transition import TokenTransitionModel, TransitionModel

SelfDeepSPIPolicy = TypeVar("SelfDeepSPIPolicy", bound="DeepSPIPolicy")

STATE = "state/learner/"
"""How the names of a model's parameters and optimiser begin in a file."""


class DeepSPIPolicy(BaseJaxPolicy):
    """
    Encoder, torso, actor, critic and world model under one optimiser.

    ``policy_kwargs`` are what SBX's PPO policies take, and from ``transition_density`` on the world model's.

    :param observation_space: a Box
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :param lr_schedule: learning rate as a function of the remaining progress
    :param net_arch: hidden layers of actor and critic on top of the torso, one list for both or
        ``dict(pi=[...], vf=[...])``
    :param ortho_init: orthogonal initialisation of encoder, torso, critic and the actor's last layer; if not,
        flax's own
    :param log_std_init: initial log standard deviation for Box actions
    :param activation_fn: activation of encoder, torso, actor and critic
    :param features_extractor_kwargs: ``dict(features_dim=...)``, the size of the torso's output for images
        and of the latent state for vectors
    :param normalize_images: divide 8-bit images by 255
    :param optimizer_class: an optax optimiser that takes ``learning_rate``
    :param optimizer_kwargs: further arguments of the optimiser; eps 1e-5 for Adam when not given
    :param transition_density: P̄'s family, a registered name: ``"mixture"``, ``"normal"``, ``"deterministic"``,
        ``"categorical"``, which makes z a set of one-hot vectors, or one of your own (see
        :mod:`sbx_deepspi.world_model.densities`)
    :param n_components: number of normals in the mixture
    :param lipschitz_constant: L of the world model in z; ``None``: plain layers, which a categorical P̄ always has
    :param lipschitz_policy: bound of the Lipschitz constant in z of the actor's logits (or means), kept by scaling
        kernels down after every step. The world model then takes discrete actions as an embedding, so that no
        two actions differ without bound. ``None``: no bound
    :param n_variables: one-hot vectors of a categorical latent state
    :param n_classes: their length
    :param categorical_cost: ℓ_P of a categorical P̄: ``"huber"``, ``"hamming"``, ``"cross_entropy"`` or
        ``"jensen_shannon"``
    :param world_model: whether to have one; the algorithm says no where both its coefficients are 0
    :param unsupported: anything else is an error that names it
    :raises TypeError: an argument is not supported
    :raises ValueError: a value is not
    """

    default_net_arch: tuple[int, ...]
    default_features_dim: int
    reward_model_units: int
    encodes_images = False

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        ortho_init: bool = True,
        log_std_init: float = 0.0,
        activation_fn: Activation = nn.tanh,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: Callable[..., optax.GradientTransformation] = optax.adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        transition_density: str = "mixture",
        n_components: int = 5,
        lipschitz_constant: float | None = 1.0,
        lipschitz_policy: float | None = None,
        n_variables: int = 32,
        n_classes: int = 32,
        categorical_cost: str = "huber",
        world_model: bool = True,
        **unsupported: Any,
    ):
        # what SB3 and SBX scripts may spell out, and DeepSPI does anyway
        idle = {"use_sde": False, "share_features_extractor": True, "features_extractor_class": None}
        unsupported = {name: value for name, value in unsupported.items() if value != idle.get(name, ...)}
        if unsupported:
            raise TypeError(_unsupported_message(unsupported))
        checks.one_of(DENSITIES, transition_density=transition_density)
        checks.one_of(CATEGORICAL_COSTS, categorical_cost=categorical_cost)
        for name, constant in {"lipschitz_constant": lipschitz_constant, "lipschitz_policy": lipschitz_policy}.items():
            if constant is not None and not 0 < constant < np.inf:
                raise ValueError(f"{name} must be positive, or None for plain layers, but got {constant!r}.")
        if lipschitz_policy is not None and as_activation(activation_fn) not in ONE_LIPSCHITZ_ACTIVATIONS:
            raise ValueError(
                "lipschitz_policy needs an activation_fn that is 1-Lipschitz itself (tanh, relu, elu or leaky_relu), "
                f"but got {activation_fn!r}."
            )
        if isinstance(optimizer_class, type):
            raise ValueError(
                f"optimizer_class must be an optax optimiser such as optax.adam, but got {optimizer_class}."
            )
        features_extractor_kwargs = features_extractor_kwargs or {}
        if set(features_extractor_kwargs) - {"features_dim"}:
            raise TypeError(
                f"features_extractor_kwargs takes 'features_dim', but got {sorted(features_extractor_kwargs)}."
            )
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is optax.adam else {}

        super().__init__(
            observation_space,
            action_space,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        net_arch = list(self.default_net_arch) if net_arch is None else net_arch
        heads = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        if not heads.keys() <= {"pi", "vf"}:
            raise ValueError(
                f"net_arch must be a list of widths, or a dictionary with 'pi' and 'vf', but got {net_arch!r}."
            )
        self.net_arch = {head: list(heads.get(head, [])) for head in ("pi", "vf")}
        self.ortho_init = ortho_init
        self.log_std_init = log_std_init
        self.activation_fn = as_activation(activation_fn)
        self.features_dim = features_extractor_kwargs.get("features_dim", self.default_features_dim)
        self.transition_density = transition_density
        self.n_components = n_components
        self.lipschitz_constant = lipschitz_constant
        self.lipschitz_policy = lipschitz_policy
        self.n_variables, self.n_classes = n_variables, n_classes
        self.categorical_cost = categorical_cost
        self.world_model = world_model
        checks.positive_integer(
            n_components=n_components,
            n_variables=n_variables,
            n_classes=n_classes,
            features_dim=self.features_dim,
            **{f"net_arch[{head!r}]": width for head, widths in self.net_arch.items() for width in widths},
        )

    @property
    def divides_images(self) -> bool:
        """
        :return: whether observations are 8-bit images that are to be divided by 255
        """
        return self.normalize_images and is_image_space(self.observation_space)

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """
        :return: shape of what :meth:`make_encoder` makes of one observation
        """
        raise NotImplementedError

    def make_encoder(self) -> nn.Module:
        """
        What the module depends on has to be its fields: equal modules share compiled programs.

        :return: observation → latent, or → what a categorical latent state is made from
        """
        raise NotImplementedError

    def make_torso(self) -> nn.Module:
        """
        What the module depends on has to be its fields, as for the encoder.

        :return: latent → features
        """
        raise NotImplementedError

    def make_networks(self) -> Networks:
        """
        :return: everything that is learned, without parameters
        """
        encoder, latent_shape = self.make_encoder(), self.encoder_shape
        world_model = self._make_world_model() if self.world_model else None
        if world_model is not None and world_model.density.one_hot is not None:
            latent_shape = world_model.density.one_hot
            encoder = CategoricalEncoder(encoder, *latent_shape)
        return Networks(
            encoder=encoder,
            torso=self.make_torso(),
            actor=Actor(
                net_arch=tuple(self.net_arch["pi"]),
                log_std_init=self.log_std_init,
                activation_fn=self.activation_fn,
                ortho_init=self.ortho_init,
                **actor_kwargs(self.action_space),
            ),
            critic=Critic(tuple(self.net_arch["vf"]), self.activation_fn, self.ortho_init),
            world_model=world_model,
            latent_shape=latent_shape,
            lipschitz_policy=self.lipschitz_policy,
            action_distance=action_distance(self.action_space),
        )

    def _make_world_model(self) -> WorldModel:
        n_actions = int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else None
        embed_actions = self.lipschitz_policy is not None
        density = make_density(
            self.transition_density,
            lipschitz_constant=self.lipschitz_constant,
            n_components=self.n_components,
            n_variables=self.n_variables,
            n_classes=self.n_classes,
            categorical_cost=self.categorical_cost,
        )
        return WorldModel(
            transition_model=TransitionModel(n_actions, density, embed_actions)
            if density.one_hot is None
            else TokenTransitionModel(n_actions, density),
            reward_model=RewardModel(n_actions, self.reward_model_units, self.lipschitz_constant, embed_actions),
            density=density,
            encode_actions=action_encoder(self.action_space),
        )

    def build(self, key: jax.Array, step_size: StepSize) -> jax.Array:
        """
        Make the networks, their parameters and the optimiser, on the device of ``key``.

        :param key: randomness
        :param step_size: the optimiser's first learning rate and limit of the gradient's norm
        :return: a fresh key
        """
        key, init_key, self.key = jax.random.split(key, 3)
        self.programs = self._make_programs()
        # not jnp.zeros, which would be compiled
        examples = (jnp.asarray(np.zeros(example.shape, example.dtype)) for example in self._examples())
        self.learner: Learner = self.programs.create(init_key, *examples, jax.tree.map(np.float32, step_size))
        return key

    def _make_programs(self) -> Programs:
        return Programs.of(self.make_networks(), Optimizer.create(self.optimizer_class, self.optimizer_kwargs))

    def _examples(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Of an observation and an action, the shapes and dtypes."""
        observations, actions = self.observation_space, self.action_space
        dtype = jax.dtypes.canonicalize_dtype(observations.dtype)
        return (
            jax.ShapeDtypeStruct((1, *(observations.shape or ())), dtype),
            jax.ShapeDtypeStruct((1, *action_shape(actions)), action_dtype(actions)),
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """
        :return: parameters, optimiser and key as a checkpoint holds them
        """
        return checkpoint.flatten(self.learner, STATE) | checkpoint.flatten({"prediction_key": self.key})

    def restore(self, tensors: dict[str, np.ndarray]) -> None:
        """
        Make the networks, and take parameters, optimiser and key from a checkpoint. The shapes are compared before
        anything is allocated.

        :param tensors: what :meth:`tensors` returned
        :raises CheckpointError: names, shapes or dtypes are not this policy's, or parameters are not finite
        """
        # what takes memory or time before there are shapes to compare
        n_layers, n_actions = sum(map(len, self.net_arch.values())), np.prod(self.action_space.shape or ())
        if n_layers > len(tensors) or n_actions > sum(tensor.size for tensor in tensors.values()):
            raise checkpoint.CheckpointError("The checkpoint describes more layers or actions than it has tensors for.")
        self.programs = self._make_programs()
        key, number = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
        make = partial(create, self.programs.networks, self.programs.optimizer)
        learner = jax.eval_shape(make, key, *self._examples(), StepSize(number, number))  # type: ignore[arg-type]
        own = {name: array for name, array in tensors.items() if name != "prediction_key"}
        learner = checkpoint.unflatten(own, learner, STATE)
        prediction = {name: array for name, array in tensors.items() if name == "prediction_key"}
        key = checkpoint.unflatten(prediction, {"prediction_key": key})["prediction_key"]
        checkpoint.finite(
            checkpoint.subtree(tensors, f"{STATE}parameters/"), checkpoint.subtree(tensors, f"{STATE}optimizer_state/")
        )
        self.learner, self.key = jax.device_put((learner, key))

    def save(self, path: Any) -> None:
        """
        Save the policy alone, atomically and without code.

        :param path: of the file, or a file open for writing
        :raises CheckpointError: an argument of the policy has no plain form
        :raises OSError: it could not be written
        """
        contents = checkpoint.Checkpoint(
            written_by=type(self).__name__,
            attributes=self._get_constructor_parameters(),
            environment=None,
            tensors=self.tensors(),
        )
        checkpoint.write(path, contents)

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfDeepSPIPolicy], path: Any, device: th.device | str = "auto"
    ) -> SelfDeepSPIPolicy:
        """
        Load a policy that was saved alone.

        :param path: of the file, or a file open for reading
        :param device: where JAX computes
        :return: the policy, ready to predict
        :raises CheckpointError: the file is none of ours, is damaged, or holds another kind of policy
        """
        contents = checkpoint.read(path)
        checkpoint.written_by(cls.__name__, contents)
        with checkpoint.building(cls.__name__), jax.default_device(checks.jax_device(device)):
            policy = cls(lr_schedule=ConstantSchedule(1.0), **contents.attributes)
            policy.restore(contents.tensors)
        return policy

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # every argument of the constructor is kept under its own name
        names = [*inspect.signature(DeepSPIPolicy).parameters][:-1]
        return {name: getattr(self, name) for name in names if name != "lr_schedule"}

    def predict_values(self, obs: np.ndarray) -> jax.Array:
        """
        :param obs: shape (N, ...)
        :return: V(s), shape (N,)
        """
        return self.programs.values(self.learner.parameters, obs)

    def forward(self, obs: np.ndarray, deterministic: bool = False) -> np.ndarray:
        """
        :param obs: shape (B, ...), as the encoder takes them
        :param deterministic: the most likely actions instead of samples
        :return: actions, shape (B, ...)
        """
        return self._predict(obs, deterministic)

    def _predict(self, observation: np.ndarray, deterministic: bool = False) -> np.ndarray:  # type: ignore[override]
        if deterministic:
            return self.programs.most_likely_actions(self.learner.parameters, observation)
        decision, self.key = self.programs.decide(self.learner.parameters, observation, self.key)
        return decision.actions


class MlpPolicy(DeepSPIPolicy):
    """
    DeepSPI's policy for vectors (other observations are flattened); see :class:`DeepSPIPolicy`.

    One dense layer makes the latent state, which both heads share; each has ``net_arch`` on top of it.
    """

    default_net_arch = (64, 64)
    default_features_dim = 64
    reward_model_units = 64

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        return (self.features_dim,)

    def make_encoder(self) -> nn.Module:
        return MlpEncoder(self.features_dim, self.divides_images, self.activation_fn, self.ortho_init)

    def make_torso(self) -> nn.Module:
        return MlpTorso()


class CnnPolicy(DeepSPIPolicy):
    """DeepSPI's policy for images, channels first or last; see :class:`DeepSPIPolicy`."""

    default_net_arch = ()
    default_features_dim = 512
    reward_model_units = 256
    encodes_images = True

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        activation_fn: Activation = nn.relu,
        **kwargs: Any,
    ):
        shape = observation_space.shape
        if len(shape) != 3:
            raise ValueError(
                f"CnnPolicy needs images with three dimensions, but the observations have shape {shape}: "
                "use 'MlpPolicy' for vectors."
            )
        self.channels_first = is_image_space_channels_first(observation_space)
        height, width = shape[1:] if self.channels_first else shape[:2]
        self.latent_map = latent_map_size(height), latent_map_size(width)
        if min(self.latent_map) < 1:
            raise ValueError(
                f"CnnPolicy's convolutions need images of at least 36 x 36 pixels, but these have {height} x {width}: "
                "resize them, or use 'MlpPolicy'."
            )
        super().__init__(observation_space, action_space, lr_schedule, activation_fn=activation_fn, **kwargs)

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        return (*self.latent_map, CONVOLUTIONS[-1][0])

    def make_encoder(self) -> nn.Module:
        return CnnEncoder(self.channels_first, self.divides_images, self.activation_fn, self.ortho_init)

    def make_torso(self) -> nn.Module:
        return CnnTorso(self.features_dim, self.activation_fn, self.ortho_init)


def as_activation(activation_fn: Any) -> Activation:
    """
    SB3 scripts name activations by their ``torch.nn`` class, SBX scripts by a JAX function: both are taken.

    :param activation_fn: a function of arrays, or a class such as ``torch.nn.Tanh``
    :return: a function of arrays
    :raises ValueError: JAX has no such activation
    """
    if not isinstance(activation_fn, type):
        return activation_fn
    names = {"Tanh": "tanh", "ReLU": "relu", "ELU": "elu", "LeakyReLU": "leaky_relu", "SiLU": "silu", "GELU": "gelu"}
    if activation_fn.__name__ not in names:
        raise ValueError(
            f"activation_fn must be a JAX function or one of torch.nn's {', '.join(names)}, but got {activation_fn!r}."
        )
    return getattr(jax.nn, names[activation_fn.__name__])


def _unsupported_message(unsupported: dict[str, Any]) -> str:
    taken = [*inspect.signature(DeepSPIPolicy).parameters][3:-1]
    name = next(iter(unsupported))
    nearest = difflib.get_close_matches(name, taken, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"they take {', '.join(taken)}."
    return f"DeepSPI's policies do not support the policy_kwargs {name!r}: {hint}"
