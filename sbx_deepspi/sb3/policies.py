"""DeepSPI's policies: encoder, torso, heads and world model as one SB3 policy with one parameter tree."""

import difflib
import inspect
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sbx.ppo.policies
import torch as th
from gymnasium import spaces
from sbx.common.jax_layers import NatureCNN as JaxNatureCNN
from sbx.common.policies import BaseJaxPolicy
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, maybe_transpose
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule, is_vectorized_observation

from sbx_deepspi import valid
from sbx_deepspi.agent import ONE_LIPSCHITZ_ACTIVATIONS, Networks, WorldModel
from sbx_deepspi.collect.vec_env import observation_spec, observations_of
from sbx_deepspi.losses import CATEGORICAL_COSTS
from sbx_deepspi.networks.encoders import (
    NATURE_CNN,
    SMALL_CNN,
    Activation,
    CategoricalEncoder,
    CnnEncoder,
    CombinedEncoder,
    Convolutions,
    MlpEncoder,
    exact_gelu,
    latent_map_size,
)
from sbx_deepspi.networks.heads import Actor, CnnTorso, Critic, MlpTorso
from sbx_deepspi.optimizer import Learner, Optimizer, StepSize, StepSizes
from sbx_deepspi.programs import Programs, create
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.sb3 import checks
from sbx_deepspi.sb3.spaces import (
    action_distance,
    action_dtype,
    action_encoder,
    action_shape,
    choices_of,
    one_hot_sizes,
    to_environment,
)
from sbx_deepspi.world_model.densities import DENSITIES, LatentDensity, make_density
from sbx_deepspi.world_model.reward import RewardModel
from sbx_deepspi.world_model.termination import TerminationModel
from sbx_deepspi.world_model.transition import TokenTransitionModel, TransitionModel

SelfDeepSPIPolicy = TypeVar("SelfDeepSPIPolicy", bound="DeepSPIPolicy")

TORCH_ACTIVATIONS = {
    "CELU": "celu", "ELU": "elu", "GELU": "gelu", "Hardsigmoid": "hard_sigmoid", "Hardswish": "hard_swish",
    "Hardtanh": "hard_tanh", "Identity": "identity", "LeakyReLU": "leaky_relu", "LogSigmoid": "log_sigmoid",
    "Mish": "mish", "ReLU": "relu", "ReLU6": "relu6", "SELU": "selu", "SiLU": "silu", "Sigmoid": "sigmoid",
    "Softplus": "softplus", "Softsign": "soft_sign", "Tanh": "tanh",
}  # fmt: skip
"""``torch.nn``'s activations → the functions of ``jax.nn`` that do the same with default arguments."""

IDLE: dict[str, tuple[Any, ...]] = {
    "use_sde": (False,),
    "share_features_extractor": (True,),
    "full_std": (True, False),
    "use_expln": (True, False),
    "squash_output": (False,),
    "clip_mean": (2.0,),
}
"""Arguments of SB3's and SBX's policies that change nothing here → the values with which they do so."""

REASONS = {
    "share_features_extractor": "policy, values and world model share one encoder, which is what the method is about.",
    "features_extractor_class": "the encoder is a flax module whose latent states the world model predicts: subclass "
    "sbx_deepspi.sb3.policies.DeepSPIPolicy and give it a make_encoder.",
    "use_sde": "there is no state-dependent exploration.",
    "squash_output": "Box actions are normal, and clipped to their bounds.",
    "actor_class": "subclass sbx_deepspi.sb3.policies.DeepSPIPolicy and change what make_networks returns.",
    "critic_class": "subclass sbx_deepspi.sb3.policies.DeepSPIPolicy and change what make_networks returns.",
    "dist_kwargs": "there is no state-dependent exploration.",
}
"""Arguments of SB3's and SBX's policies that cannot be, and why."""

OF_TORCH = (
    "evaluate_actions", "get_distribution", "mlp_extractor", "action_net", "value_net", "features_extractor",
    "optimizer", "log_std", "action_dist", "pi_features_extractor", "vf_features_extractor", "actor_state", "vf_state",
    "actor", "vf", "use_sde", "dist_kwargs", "share_features_extractor", "lr_schedule",
)  # fmt: skip
"""What SB3's and SBX's policies have and ours do not."""

STATE = "state/learner/"
"""How the names of a model's parameters and optimiser begin in a file."""


class DeepSPIPolicy(BaseJaxPolicy):
    """
    Encoder, torso, actor, critic and world model under one optimiser.

    ``policy_kwargs`` are what SBX's PPO policies take, and from ``transition_density`` on the world model's.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these
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
        ``"categorical"``, which makes z a set of one-hot vectors (without a world model, too), or one of your own (see
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
    :param termination_model: whether the world model predicts ends; the algorithm says so
    :param optimizer_groups: parts of the parameters of each group that has an optimiser of its own; the algorithm says
        so. ``None``: one optimiser for all
    :param unsupported: anything else is an error that names it
    :raises TypeError: an argument is not supported
    :raises ValueError: a value is not
    """

    default_net_arch: tuple[int, ...]
    default_features_dim: int
    reward_model_units: int
    termination_model_units: int
    encodes_images = False
    """Whether the encoder sees images so large that it pays to encode φ(s') once where it is the next step's φ(s)."""
    features_extractor_arguments: tuple[str, ...] = ("features_dim",)
    own_features_extractors: tuple[type, ...] = (FlattenExtractor,)
    """SB3's and SBX's that say what this policy does anyway."""
    algorithm_defaults: ClassVar[dict[str, Any]] = dict(
        learning_rate=3e-4, batch_size=64, n_epochs=10, clip_range=0.2, ent_coef=0.0
    )
    """Of :class:`~sbx_deepspi.DeepSPI`'s arguments that are not given: SB3's PPO's."""
    dream_defaults: ClassVar[dict[str, Any]] = dict(learning_rate=3e-4, model_learning_rate=3e-4)
    """Of :class:`~sbx_deepspi.DreamSPI`'s arguments that are not given."""

    def __init__(
        self,
        observation_space: spaces.Space,
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
        termination_model: bool = False,
        optimizer_groups: dict[str, tuple[str, ...]] | None = None,
        **unsupported: Any,
    ):
        # what SB3 and SBX scripts may spell out, and DeepSPI does anyway, or what only counts with gSDE
        idle = IDLE | {"features_extractor_class": (None, *self.own_features_extractors)}
        unsupported = {name: value for name, value in unsupported.items() if value not in idle.get(name, ())}
        if unsupported:
            raise TypeError(_unsupported_message(unsupported))
        valid.one_of(DENSITIES, transition_density=transition_density)
        valid.one_of(CATEGORICAL_COSTS, categorical_cost=categorical_cost)
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
        if set(features_extractor_kwargs) - set(self.features_extractor_arguments):
            raise TypeError(
                f"features_extractor_kwargs takes {' and '.join(map(repr, self.features_extractor_arguments))}, "
                f"but got {sorted(features_extractor_kwargs)}."
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
        if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
            warnings.warn(
                "As SB3 since 1.8.0, take net_arch=dict(...) directly instead of net_arch=[dict(...)].", stacklevel=3
            )
            net_arch = net_arch[0]
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
        self.termination_model = termination_model
        self.optimizer_groups = optimizer_groups
        valid.positive_integer(
            n_components=n_components,
            n_variables=n_variables,
            n_classes=n_classes,
            features_dim=self.features_dim,
            **{f"net_arch[{head!r}]": width for head, widths in self.net_arch.items() for width in widths},
        )

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        """
        :return: shape of what :meth:`make_encoder` makes of one observation
        """
        raise NotImplementedError

    @property
    def n_image_numbers(self) -> int:
        """
        :return: how many numbers the largest image has; 0 where the encoder has no convolutions
        """
        return 0

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
        density = make_density(
            self.transition_density,
            lipschitz_constant=self.lipschitz_constant,
            n_components=self.n_components,
            n_variables=self.n_variables,
            n_classes=self.n_classes,
            categorical_cost=self.categorical_cost,
        )
        if density.one_hot is not None:  # also without a world model, so that PPO is compared on the same latent state
            latent_shape = density.one_hot
            encoder = CategoricalEncoder(encoder, *latent_shape)
        return Networks(
            encoder=encoder,
            torso=self.make_torso(),
            actor=Actor(
                n_outputs=sum(choices_of(self.action_space)) or action_shape(self.action_space)[0],
                choices=choices_of(self.action_space),
                is_one_choice=isinstance(self.action_space, spaces.Discrete),
                net_arch=tuple(self.net_arch["pi"]),
                activation_fn=self.activation_fn,
                ortho_init=self.ortho_init,
                log_std_init=self.log_std_init,
            ),
            critic=Critic(tuple(self.net_arch["vf"]), self.activation_fn, self.ortho_init),
            world_model=self._make_world_model(density) if self.world_model else None,
            latent_shape=latent_shape,
            lipschitz_policy=self.lipschitz_policy,
            action_distance=action_distance(self.action_space),
        )

    def _make_world_model(self, density: LatentDensity) -> WorldModel:
        n_actions = int(self.action_space.n) if isinstance(self.action_space, spaces.Discrete) else None
        embed_actions = self.lipschitz_policy is not None
        return WorldModel(
            transition_model=TransitionModel(n_actions, density, embed_actions)
            if density.one_hot is None
            else TokenTransitionModel(n_actions, density),
            reward_model=RewardModel(n_actions, self.reward_model_units, self.lipschitz_constant, embed_actions),
            density=density,
            encode_actions=action_encoder(self.action_space),
            termination_model=TerminationModel(self.termination_model_units) if self.termination_model else None,
        )

    def build(self, key: jax.Array, step_sizes: StepSizes) -> jax.Array:
        """
        Make the networks, their parameters and the optimiser, on the device of ``key``.

        :param key: randomness
        :param step_sizes: the optimiser's first learning rate and limit of the gradient's norm, or those of each group
        :return: a fresh key
        """
        key, init_key, self.key = jax.random.split(key, 3)
        self.programs = self._make_programs()
        # not jnp.zeros, which would be compiled
        examples = jax.tree.map(lambda example: jnp.asarray(np.zeros(example.shape, example.dtype)), self._examples())
        self.learner: Learner = self.programs.create(init_key, *examples, jax.tree.map(np.float32, step_sizes))
        return key

    def _make_programs(self) -> Programs:
        optimizer = Optimizer.create(self.optimizer_class, self.optimizer_kwargs, self.optimizer_groups)
        return Programs.of(self.make_networks(), optimizer)

    def _examples(self) -> tuple[Any, jax.ShapeDtypeStruct]:
        """Of an observation and an action, the shapes and dtypes."""
        action = jax.ShapeDtypeStruct(action_shape(self.action_space), action_dtype(self.action_space))
        return jax.tree.map(
            lambda one: jax.ShapeDtypeStruct((1, *one.shape), one.dtype),
            (observation_spec(self.observation_space), action),
        )

    # --- torch's interface, as far as scripts use it ---

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """
        :return: copies of all parameters as tensors, by name
        """
        arrays = checkpoint.flatten(self.learner.parameters)
        return OrderedDict((name, th.from_numpy(np.array(array))) for name, array in arrays.items())

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:  # type: ignore[override]
        """
        :param state_dict: tensors or arrays by name, as :meth:`state_dict` returns them
        :param strict: whether all of them have to be there; if not, those given are set
        :param assign: not used
        :raises RuntimeError: a name is missing or unknown, or a shape differs
        :raises CheckpointError: a parameter is not finite
        """
        given = {name: np.asarray(tensor) for name, tensor in state_dict.items()}
        parameters = checkpoint.merge(checkpoint.flatten(self.learner.parameters), given, strict)
        checkpoint.finite(parameters, {})
        like = self.learner.parameters
        on_device = jax.tree.map(
            lambda new, old: jax.device_put(new, old.sharding), checkpoint.unflatten(parameters, like), like
        )
        self.learner = self.learner.replace(parameters=on_device)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """
        :return: names and copies of all parameters: to change them, use :meth:`load_state_dict`
        """
        for name, tensor in self.state_dict().items():
            yield name, th.nn.Parameter(tensor)

    def parameters(self, recurse: bool = True) -> Iterator[Any]:  # type: ignore[override]
        """
        :param recurse: not used
        :return: copies of all parameters: to change them, use :meth:`load_state_dict`
        """
        for _, parameter in self.named_parameters():
            yield parameter

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """
        :param requires_grad: of all parameters
        :raises NotImplementedError: it is False
        """
        if not requires_grad:
            raise NotImplementedError(
                f"{type(self).__name__} computes with JAX, where parameters cannot be frozen this way: subclass it and "
                "let its networks stop the gradient (jax.lax.stop_gradient)."
            )
        return self

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        """
        :param args: not used
        :param kwargs: not used
        :raises AttributeError: always
        """
        raise AttributeError(self._not_torch("extract_features"))

    def load_from_vector(self, vector: np.ndarray) -> None:
        """
        :param vector: all parameters, as ``parameters_to_vector`` returns them
        """
        flat, taken = {}, 0
        for name, tensor in self.named_parameters():
            flat[name] = np.asarray(vector[taken : taken + tensor.numel()]).reshape(tuple(tensor.shape))
            taken += tensor.numel()
        self.load_state_dict(flat)

    def __getattr__(self, name: str) -> Any:
        if name in OF_TORCH:
            raise AttributeError(self._not_torch(name))
        return super().__getattr__(name)

    def _not_torch(self, name: str) -> str:
        return (
            f"{type(self).__name__} computes with JAX and has no {name!r}: use predict, predict_values, state_dict or "
            "the model's get_parameters(); its networks are policy.programs.networks."
        )

    def __repr__(self) -> str:
        if "learner" not in vars(self):
            return f"{type(self).__name__}(not built)"
        parts = {
            part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in self.learner.parameters.items()
        }
        latent = self.programs.networks.latent_shape
        lines = [f"  ({part}): {size:,} parameters" for part, size in parts.items()]
        return "\n".join(
            [f"{type(self).__name__}(", f"  {self.observation_space} -> latent {latent} -> {self.action_space}", *lines,
             f"  {sum(parts.values()):,} parameters", ")"]
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        """
        :return: what pickle and deepcopy take: all but the compiled programs
        """
        state = {name: checkpoint.to_names(value) for name, value in vars(self).items() if name != "programs"}
        return state | {name: jax.device_get(state[name]) for name in ("learner", "key") if name in state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(checkpoint.from_names(state))
        if "learner" in state:
            self.programs = self._make_programs()
            self.learner, self.key = jax.device_put((state["learner"], state["key"]))

    # --- files ---

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
        of_group = StepSize(number, number)  # type: ignore[arg-type]
        groups = dict.fromkeys(self.optimizer_groups or {}, of_group)
        learner = jax.eval_shape(make, key, *self._examples(), groups or of_group)
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
        :raises OSError: it could not be written
        """
        contents = checkpoint.Checkpoint(
            written_by=type(self).__name__,
            attributes=self._get_constructor_parameters(),
            environment=None,
            tensors=self.tensors(),
        )
        for missing in checkpoint.write(path, contents):
            warnings.warn(
                f"{missing.name} = {missing.description} has no plain form: load asks for it.",
                stacklevel=2,
            )

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfDeepSPIPolicy], path: Any, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfDeepSPIPolicy:
        """
        Load a policy that was saved alone.

        :param path: of the file, or a file open for reading
        :param device: where JAX computes
        :param kwargs: arguments of the policy that the file could not hold, or others in their place
        :return: the policy, ready to predict
        :raises CheckpointError: the file is none of ours or damaged, lacks an argument, or holds another kind of policy
        """
        contents = checkpoint.read(path)
        checkpoint.written_by(cls.__name__, contents)
        with checkpoint.building(cls.__name__), jax.default_device(checks.jax_device(device)):
            arguments = contents.attributes | kwargs
            for missing in checkpoint.missing_in(arguments):
                raise checkpoint.CheckpointError(missing.request)
            policy = cls(lr_schedule=ConstantSchedule(1.0), **arguments)
            policy.restore(contents.tensors)
        return policy

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # every argument of the constructor is kept under its own name
        names = [*inspect.signature(DeepSPIPolicy).parameters][:-1]
        return {name: getattr(self, name) for name in names if name != "lr_schedule"}

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Choose actions, as SB3's ``BasePolicy.predict`` does.

        :param observation: of one environment, or of several with an axis in front; or a dictionary of such
        :param state: not used: the policy has no memory
        :param episode_start: not used
        :param deterministic: the most likely actions instead of samples
        :return: actions in the environment's space, and ``state``
        :raises ValueError: the observation does not fit its space, or is not finite
        """
        observations, is_vectorized = self.prepare_obs(observation)
        actions = to_environment(np.asarray(self._predict(observations, deterministic)), self.action_space)
        return actions if is_vectorized else actions.squeeze(axis=0), state

    def prepare_obs(self, observation: Any) -> tuple[Any, bool]:
        """
        :param observation: see :meth:`predict`
        :return: the same as the networks take it, shape (N, ...), and whether it was of several environments
        :raises ValueError: it does not fit its space, or is not finite
        """
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "You have passed a tuple to the predict() function instead of a Numpy array or a Dict. You are "
                "probably mixing Gym API with SB3 VecEnv API: `obs, info = env.reset()` (Gym) vs `obs = "
                "vec_env.reset()` (SB3 VecEnv)."
            )
        batches, is_vectorized = {}, False
        whole = {"": self.observation_space}
        parts = self.observation_space.spaces if isinstance(self.observation_space, spaces.Dict) else whole
        given = observation if isinstance(self.observation_space, spaces.Dict) else {"": observation}
        if not isinstance(given, dict) or given.keys() != parts.keys():
            keys = sorted(given) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"The observation must be a dictionary with {sorted(parts)}, but is {keys}.")
        for key, space in parts.items():
            array = maybe_transpose(np.asarray(given[key]), space)
            is_vectorized = is_vectorized_observation(array, space)
            batches[key] = array.reshape(-1, *(space.shape or ()))
        n = len(next(iter(batches.values())))
        values = batches if isinstance(self.observation_space, spaces.Dict) else batches[""]
        return observations_of(values, self.observation_space, n), is_vectorized

    def predict_values(self, obs: Any) -> jax.Array:
        """
        :param obs: of several environments, shape (N, ...): arrays or tensors
        :return: V(s), shape (N,)
        """
        return self.programs.values(self.learner.parameters, self.prepare_obs(obs)[0])

    def forward(self, obs: Any, deterministic: bool = False) -> np.ndarray:
        """
        :param obs: of several environments, shape (N, ...): arrays or tensors
        :param deterministic: the most likely actions instead of samples
        :return: actions as they are sampled, shape (N, ...)
        """
        return self._predict(self.prepare_obs(obs)[0], deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> np.ndarray:  # type: ignore[override]
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
    termination_model_units = 64

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        return (self.features_dim,)

    def make_encoder(self) -> nn.Module:
        return self._vector_encoder(self.observation_space)

    def _vector_encoder(self, space: spaces.Space) -> MlpEncoder:
        divides = self.normalize_images and is_image_space(space)
        return MlpEncoder(self.features_dim, divides, self.activation_fn, self.ortho_init, one_hot_sizes(space))

    def make_torso(self) -> nn.Module:
        return MlpTorso()


class MultiInputPolicy(MlpPolicy):
    """
    DeepSPI's policy for dictionaries of observations; see :class:`DeepSPIPolicy`.

    Each observation has an encoder of its own: an image of at least 36 x 36 pixels the convolutions of
    :class:`CnnPolicy`, then a dense layer of ``features_extractor_kwargs=dict(cnn_output_dim=256)``, both with ReLU;
    any other, flat, the dense layer of :class:`MlpPolicy`. Their outputs side by side are the latent state.
    """

    default_cnn_output_dim = 256

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(
                f"MultiInputPolicy needs a Dict of observations, but got {observation_space}: use 'MlpPolicy', or "
                "'CnnPolicy' for images."
            )
        super().__init__(observation_space, *args, **kwargs)

    features_extractor_arguments = ("features_dim", "cnn_output_dim")
    own_features_extractors = (CombinedExtractor,)
    observation_space: spaces.Dict

    @property
    def images(self) -> list[str]:
        """
        :return: keys of the observations that are images, large enough for the convolutions
        """
        return [
            key
            for key, space in self.observation_space.spaces.items()
            if is_image_space(space, normalized_image=not self.normalize_images)
            and latent_map_size(min(rows_and_columns(space)), NATURE_CNN) >= 1
        ]

    @property
    def encodes_images(self) -> bool:  # type: ignore[override]
        return bool(self.images)

    @property
    def n_image_numbers(self) -> int:
        return max((math.prod(self.observation_space[key].shape or ()) for key in self.images), default=0)

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        n_others = len(self.observation_space.spaces) - len(self.images)
        return (len(self.images) * self.cnn_output_dim + n_others * self.features_dim,)

    @property
    def cnn_output_dim(self) -> int:
        """
        :return: numbers that stand for one image in the latent state
        """
        return self.features_extractor_kwargs.get("cnn_output_dim", self.default_cnn_output_dim)

    def make_encoder(self) -> nn.Module:
        return CombinedEncoder(
            tuple(
                (key, self._image_encoder(space) if key in self.images else self._vector_encoder(space))
                for key, space in sorted(self.observation_space.spaces.items())  # a file may have another order
            )
        )

    def _image_encoder(self, space: spaces.Space) -> nn.Module:
        assert isinstance(space, spaces.Box)
        divides = self.normalize_images and is_image_space(space)
        convolutions = CnnEncoder(NATURE_CNN, is_channels_first(space), divides, nn.relu, self.ortho_init)
        return nn.Sequential((convolutions, CnnTorso(self.cnn_output_dim, nn.relu, self.ortho_init)))


class CnnPolicy(DeepSPIPolicy):
    """
    DeepSPI's policy for images, channels first or last; see :class:`DeepSPIPolicy`.

    Images are uint8 from 0 to 255; or floats, which are taken as they are.

    :param observation_space: of one image
    :param action_space: Discrete, Box, MultiDiscrete or MultiBinary
    :param lr_schedule: learning rate as a function of the remaining progress
    :param activation_fn: activation of encoder, torso, actor and critic
    :param convolutions: (channels, kernel size, stride) of each layer of the encoder; ``None``: the Nature CNN, or
        [(16, 3, 1)] for images below 36 x 36 pixels
    :param kwargs: see :class:`DeepSPIPolicy`
    :raises ValueError: observations are no images, or a convolution does not fit them
    """

    default_net_arch = ()
    default_features_dim = 512
    reward_model_units = 256
    termination_model_units = 512
    encodes_images = True
    own_features_extractors = (NatureCNN, JaxNatureCNN)
    # the paper's, for Atari
    algorithm_defaults: ClassVar[dict[str, Any]] = dict(
        learning_rate=LinearSchedule(2.5e-4, 0.0, 1.0), batch_size=256, n_epochs=4, clip_range=0.1, ent_coef=0.01
    )
    dream_defaults: ClassVar[dict[str, Any]] = dict(
        learning_rate=LinearSchedule(2.75e-5, 0.0, 1.0), model_learning_rate=LinearSchedule(2e-4, 0.0, 1.0)
    )

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        activation_fn: Activation = nn.relu,
        convolutions: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ):
        normalize_images = kwargs.get("normalize_images", True)
        is_floats = isinstance(observation_space, spaces.Box) and np.issubdtype(observation_space.dtype, np.floating)
        normalized = is_floats or not normalize_images
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized):
            raise ValueError(
                f"You should use CnnPolicy only with images, not with {observation_space} (you are probably using "
                "`CnnPolicy` instead of `MlpPolicy` or `MultiInputPolicy`): images have three dimensions, and are "
                "uint8 from 0 to 255, or floats. If they are normalised already, pass "
                "`policy_kwargs=dict(normalize_images=False)`."
            )
        size = rows_and_columns(observation_space)
        self.convolutions = chosen_convolutions(convolutions, size)
        self.latent_map = tuple(latent_map_size(side, self.convolutions) for side in size)
        self.encodes_images = latent_map_size(min(size), NATURE_CNN) >= 1
        super().__init__(observation_space, action_space, lr_schedule, activation_fn=activation_fn, **kwargs)

    @property
    def n_image_numbers(self) -> int:
        return math.prod(self.observation_space.shape or ())

    @property
    def encoder_shape(self) -> tuple[int, ...]:
        return (*self.latent_map, self.convolutions[-1][0])

    def make_encoder(self) -> nn.Module:
        divides = self.normalize_images and is_image_space(self.observation_space)
        channels_first = is_channels_first(self.observation_space)
        return CnnEncoder(self.convolutions, channels_first, divides, self.activation_fn, self.ortho_init)

    def make_torso(self) -> nn.Module:
        return CnnTorso(self.features_dim, self.activation_fn, self.ortho_init)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"convolutions": self.convolutions}


def chosen_convolutions(given: Sequence[Sequence[int]] | None, size: tuple[int, int]) -> Convolutions:
    """
    :param given: (channels, kernel size, stride) of each layer; ``None``: what suits the size
    :param size: rows and columns of the images
    :return: the convolutions
    :raises ValueError: a layer is none, or does not fit what comes into it
    """
    if given is None:
        given = NATURE_CNN if latent_map_size(min(size), NATURE_CNN) >= 1 else SMALL_CNN
    layers = [tuple(layer) if isinstance(layer, Sequence) else layer for layer in given]
    if not layers:
        raise ValueError("convolutions must have a layer at least, but got none.")
    for number, layer in enumerate(layers):
        whole = isinstance(layer, tuple) and all(isinstance(n, (int, np.integer)) and n >= 1 for n in layer)
        if not whole or len(layer) != 3:
            raise ValueError(
                f"convolutions[{number}] must be (channels, kernel size, stride), three whole numbers of at least 1, "
                f"but got {layer!r}."
            )
        before = [latent_map_size(side, layers[:number]) for side in size]  # type: ignore[arg-type]
        if layer[1] > min(before):
            hint = "choose smaller ones, larger images, or 'MlpPolicy'."
            raise ValueError(
                f"convolutions[{number}] has a kernel of {layer[1]} x {layer[1]}, but what comes into it has only "
                f"{before[0]} x {before[1]} cells: {hint}"
            )
    return tuple((int(channels), int(kernel), int(stride)) for channels, kernel, stride in layers)


def our_policy(policy: Any) -> Any:
    """
    :param policy: name or class of a policy
    :return: the same, or the policy that stands for SB3's or SBX's own
    :raises ValueError: it is another library's
    """
    if isinstance(policy, str) or (isinstance(policy, type) and issubclass(policy, DeepSPIPolicy)):
        return policy
    own = {
        ActorCriticPolicy: MlpPolicy,
        ActorCriticCnnPolicy: CnnPolicy,
        MultiInputActorCriticPolicy: MultiInputPolicy,
        sbx.ppo.policies.PPOPolicy: MlpPolicy,
        sbx.ppo.policies.CnnPolicy: CnnPolicy,
    }
    if isinstance(policy, type) and policy in own:
        return own[policy]
    raise ValueError(
        "policy must be 'MlpPolicy', 'CnnPolicy', 'MultiInputPolicy' or a subclass of "
        f"sbx_deepspi.sb3.policies.DeepSPIPolicy, whose make_encoder may be your own, but got {policy!r}."
    )


def is_channels_first(space: spaces.Space) -> bool:
    """
    :param space: of one image
    :return: whether its channels come first; where sides are equal, SB3's answer for bytes, and last for floats, which
        is how environments inside jit have them
    """
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8:
        return is_image_space_channels_first(space)
    return space.shape[0] < min(space.shape[1:])


def rows_and_columns(space: spaces.Space) -> tuple[int, int]:
    """
    :param space: of one image
    :return: its size in pixels
    """
    assert isinstance(space, spaces.Box)
    height, width = space.shape[1:] if is_channels_first(space) else space.shape[:2]
    return height, width


def as_activation(activation_fn: Any) -> Activation:
    """
    SB3 scripts name activations by their ``torch.nn`` class, SBX scripts by a JAX function: both are taken.

    :param activation_fn: a function of arrays, or a class such as ``torch.nn.Tanh``
    :return: a function of arrays
    :raises ValueError: JAX has no such activation
    """
    if not isinstance(activation_fn, type):
        return activation_fn
    name = TORCH_ACTIVATIONS.get(activation_fn.__name__)
    if name is None:
        raise ValueError(
            f"activation_fn must be a JAX function or one of torch.nn's {', '.join(TORCH_ACTIVATIONS)}, but got "
            f"{activation_fn!r}."
        )
    return exact_gelu if name == "gelu" else getattr(jax.nn, name)


def _unsupported_message(unsupported: dict[str, Any]) -> str:
    taken = [*inspect.signature(DeepSPIPolicy).parameters][3:-1]
    name = next(iter(unsupported))
    if name in REASONS:
        return f"DeepSPI's policies do not support {name}={unsupported[name]!r}: {REASONS[name]}"
    nearest = difflib.get_close_matches(name, taken, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"they take {', '.join(taken)}."
    return f"DeepSPI's policies do not support the policy_kwargs {name!r}: {hint}"
