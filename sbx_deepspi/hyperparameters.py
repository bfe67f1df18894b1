"""What an update depends on beside parameters and data, and what its steps tell."""

import jax
from flax import struct

from sbx_deepspi.optimizer import StepSizes


class DreamHyperparameters(struct.PyTreeNode):
    """What DreamSPI's update depends on beside; :class:`~sbx_deepspi.DreamSPI` documents each by its name."""

    horizon: int = struct.field(pytree_node=False)
    n_dreams: int = struct.field(pytree_node=False)
    dyna: bool = struct.field(pytree_node=False)


class Hyperparameters(struct.PyTreeNode):
    """
    What an update depends on beside parameters and data; :class:`~sbx_deepspi.DeepSPI` documents each by its name.

    Numbers are traced: changing them compiles nothing anew. From ``batch_size`` to ``segment_length``, and whether an
    optional one is ``None``, they shape the compiled program.

    :param step_sizes: learning rate and ``max_grad_norm``, for all parameters or for groups of them
    :param microbatch_size: the most transitions that go through the networks at a time
    :param segment_length: successive steps of one environment that stay together when minibatches are drawn
    :param dream: DreamSPI's; ``None`` of the others
    """

    step_sizes: StepSizes
    gamma: float
    gae_lambda: float
    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    vf_coef: float
    reward_loss_coef: float
    transition_loss_coef: float
    target_kl: float | None
    gradient_penalty_coef: float | None
    batch_size: int = struct.field(pytree_node=False)
    n_epochs: int = struct.field(pytree_node=False)
    normalize_advantage: bool = struct.field(pytree_node=False)
    microbatch_size: int = struct.field(pytree_node=False)
    segment_length: int = struct.field(pytree_node=False)
    dream: DreamHyperparameters | None = None


class Metrics(struct.PyTreeNode):
    """
    What a step tells the user; scalars.

    :param loss: -J
    :param policy_gradient_loss: the policy's part of it; DeepSPI's has the world model's losses in it
    :param entropy_loss: -H(π), in nats
    :param value_loss: ½ (V - return)²
    :param reward_loss: ℓ_R
    :param transition_loss: ℓ_P
    :param termination_loss: ℓ_E
    :param gradient_penalty: 0 unless asked for
    :param approx_kl: divergence from the behaviour policy, estimated, in nats
    :param clip_fraction: part of the importance ratios outside [1 - ε, 1 + ε]
    :param gradient_norm: of the whole gradient, before it is clipped
    """

    loss: jax.Array
    policy_gradient_loss: jax.Array
    entropy_loss: jax.Array
    value_loss: jax.Array
    reward_loss: jax.Array
    transition_loss: jax.Array
    termination_loss: jax.Array
    gradient_penalty: jax.Array
    approx_kl: jax.Array
    clip_fraction: jax.Array
    gradient_norm: jax.Array
