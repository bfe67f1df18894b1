"""DeepSPI as SB3 knows it: collect → update → certify → log, save and load."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import jax
import numpy as np
import torch as th
from gymnasium import spaces
from sbx import PPO
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sbx_deepspi import deepspi, devices, ops, valid
from sbx_deepspi.collect import vec_env
from sbx_deepspi.collect.jax_env import JaxEnv
from sbx_deepspi.devices import PER_ENV, PER_STEP, WHOLE
from sbx_deepspi.envs.jitted.make import is_jax_env_id, make_jax_env
from sbx_deepspi.envs.jitted.vec_env import JaxVecEnv, inside_jit
from sbx_deepspi.epochs import EpochsReport
from sbx_deepspi.guarantee.measure import Certificate
from sbx_deepspi.hyperparameters import Hyperparameters
from sbx_deepspi.optimizer import StepSize, StepSizes
from sbx_deepspi.processes import Processes, is_first_process, processes, waits_for_others
from sbx_deepspi.rollout import Rollout, automatic_n_steps
from sbx_deepspi.saving import format as checkpoint
from sbx_deepspi.saving import trainer
from sbx_deepspi.saving.environment import restore_statistics
from sbx_deepspi.sb3 import checks, joined, logs
from sbx_deepspi.sb3.fused import Made, NotOnHost, collect_and_update, tell_of_evaluations, tell_of_wrappers
from sbx_deepspi.sb3.interruption import Interruption, mute
from sbx_deepspi.sb3.policies import CnnPolicy, DeepSPIPolicy, MlpPolicy, MultiInputPolicy, our_policy
from sbx_deepspi.sb3.spaces import action_dtype, action_shape, log_policy_shape
from sbx_deepspi.sb3.stepwise import collect
from sbx_deepspi.segments import segment_length
from sbx_deepspi.state import EpisodeStatistics, RewardStatistics, TrainerState

# One faulty update may be an outlier among the rollouts; after three, of n_epochs passes each, no other will help
FAULTY_UPDATES_IN_A_ROW = 3

# so long may the world model's losses outweigh the advantages before there is a warning
UPDATES_OF_A_LARGE_PENALTY = 10

NEIGHBOURHOODS = ("clip", "project")

# keeps certificates below 2 % of the time of training, on Atari and on CartPole
CERTIFICATE_FREQ = 32

SelfDeepSPI = TypeVar("SelfDeepSPI", bound="DeepSPI")


def _schedule_of(argument: str) -> property:
    """
    :param argument: a number or a function of the remaining progress, an attribute of the model
    :return: a property that is the function, and sets the attribute: what is set after construction counts
    """

    def get(model: "DeepSPI") -> FloatSchedule | None:
        value = getattr(model, argument)
        return None if value is None else checks.schedule(argument, value)

    return property(get, lambda model, value: setattr(model, argument, value))


class DeepSPI(PPO):
    """
    Safe policy improvement with a latent world model, clipped as PPO is.

    Policy, values and world model share one encoder. The world model's losses, one number per transition,
    are subtracted from the advantage inside PPO's clipped objective, so that the clip bounds how far an
    update moves the representation as well as the policy. With ``reward_loss_coef = transition_loss_coef
    = 0`` this is PPO, and costs what PPO costs: there is no world model then.

    Paper: https://arxiv.org/abs/2510.12312. Where ``None`` is said to be the policy's, ``"CnnPolicy"`` has the paper's
    settings for Atari (learning rate 2.5e-4, linearly to 0; minibatches of 256, 4 epochs, ε = 0.1, c_e = 0.01), and the
    others have those of SB3's PPO (3e-4; 64, 10, 0.2, 0). A function of the remaining progress, from 1 to 0, is asked
    where a rollout begins.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of :class:`DeepSPIPolicy`
    :param env: the environment to learn from (a Gymnasium id, an environment or a ``VecEnv``)
    :param learning_rate: learning rate, or a function of the remaining progress; ``None``: the policy's
    :param n_steps: steps of each environment per update; ``None``: about 1,024 transitions an update,
        spread over the environments there are
    :param batch_size: minibatch size; ``None``: the policy's. The last minibatch of an epoch is smaller if it does not
        divide the rollout. With a world model, those of images of at least 36 x 36 pixels are runs of up to eight
        successive steps, whose encodings are shared
    :param n_epochs: passes over the rollout per update; ``None``: the policy's
    :param gamma: discount factor
    :param gae_lambda: bias-variance trade-off of the generalised advantages
    :param clip_range: ε, or a function of the remaining progress; ``None``: the policy's. The neighbourhood is
        [1 - ε, 1 + ε]
    :param clip_range_vf: largest change of a value in one update, or a function of the remaining progress;
        ``None``: no limit. It depends on the scale of the rewards.
    :param normalize_advantage: normalise advantages per minibatch
    :param ent_coef: entropy coefficient; ``None``: the policy's
    :param vf_coef: value coefficient, of ½(V - return)² as in the paper (SB3 has no ½)
    :param max_grad_norm: bound of the global norm of all gradients
    :param use_sde: not supported
    :param sde_sample_freq: not used
    :param rollout_buffer_class: SB3's, whose place :class:`~sbx_deepspi.rollout.Rollout` takes, or ``None``
    :param rollout_buffer_kwargs: not supported
    :param target_kl: stop an update once the estimated divergence passes 1.5 times this; ``None``: never
    :param stats_window_size: episodes over which the logged reward, length and success rate are averaged
    :param tensorboard_log: where to log for TensorBoard; ``None``: nowhere
    :param policy_kwargs: arguments of the policy, see :class:`DeepSPIPolicy`
    :param verbose: 0 for no output, 1 for information, 2 for debugging
    :param seed: seed of all pseudo-random generators
    :param device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:<index>"``: where JAX computes; its first device, with a
        warning, where it has not that one. ``"all"``, or a list such as ``["cuda:0", "cuda:1"]``: several devices, each
        with its share of the environments and of each minibatch; they make together the steps that one would make.
        Processes that ``jax.distributed`` has joined train one model, each on its own devices and environments
    :param reward_loss_coef: α_R, in [0, 1]
    :param transition_loss_coef: α_P, in [0, 1]
    :param gradient_penalty_coef: weight of a penalty on slopes of the world model above 1, the alternative to Lipschitz
        layers; ``None``: none
    :param neighbourhood: ``"clip"``: the objective's clip alone keeps the policy near the one that collected the data;
        ``"project"``: after each update the parameters are drawn back until every importance ratio on the rollout's
        states (over all actions; for Box, over the sampled ones) lies in [1 - ε, 1 + ε]
    :param fused: whether rollouts and updates are one program where environments are inside jit
        (:func:`~sbx_deepspi.make_jax_env`); callbacks then get their events once a rollout is over
    :param certificate_freq: updates from one certificate to the next; the first update has one. A callback that
        requires conditions gets one for each update
    :param termination_model: whether the world model learns where episodes end (time limits are no ends), too: then the
        latent MDP ends, and certificates count what the model gets wrong about ends
    :param _init_setup_model: whether to build the networks at once
    :raises ValueError: an argument, a space or the device is not supported
    """

    policy_aliases: ClassVar[dict[str, type[DeepSPIPolicy]]] = {  # type: ignore[assignment]
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    update: ClassVar[deepspi.Update] = staticmethod(partial(deepspi.update, deepspi.step))
    optimizer_groups: ClassVar[dict[str, tuple[str, ...]] | None] = None
    policy: DeepSPIPolicy  # type: ignore[assignment]
    certificate: Certificate | None = None
    certifies_each_update = False
    _rollout: Rollout | None = None
    _made: Made | None = None
    _environment_tensors: dict[str, np.ndarray] | None = None  # of the file that the model comes from
    lr_schedule = _schedule_of("learning_rate")  # type: ignore[assignment]
    clip_range_schedule = _schedule_of("clip_range")  # type: ignore[assignment]
    clip_range_vf_schedule = _schedule_of("clip_range_vf")

    def __init__(
        self,
        policy: str | type[DeepSPIPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int | None = None,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | None = None,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | None = None,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str | Sequence[str] = "auto",
        reward_loss_coef: float = 0.01,
        transition_loss_coef: float = 5e-4,
        gradient_penalty_coef: float | None = None,
        neighbourhood: str = "clip",
        certificate_freq: int = CERTIFICATE_FREQ,
        fused: bool = True,
        termination_model: bool = False,
        _init_setup_model: bool = True,
    ):
        valid.not_supported(
            use_sde=(use_sde, (False,)),
            rollout_buffer_class=(rollout_buffer_class, (None, RolloutBuffer, DictRolloutBuffer)),
            rollout_buffer_kwargs=(rollout_buffer_kwargs, (None, {})),
        )
        if isinstance(env, str) and is_jax_env_id(env):
            env = make_jax_env(env, seed=seed)
        policy = our_policy(policy)
        policy_class = self.policy_aliases.get(policy, MlpPolicy) if isinstance(policy, str) else policy
        given = dict(
            learning_rate=learning_rate, batch_size=batch_size, n_epochs=n_epochs, clip_range=clip_range,
            ent_coef=ent_coef,
        )  # fmt: skip
        settings = self.defaults_of(policy_class) | {name: value for name, value in given.items() if value is not None}
        batch_size = settings["batch_size"]
        valid.positive_integer(batch_size=batch_size, stats_window_size=stats_window_size)
        ops.keep_compiled_programs()
        processes()  # from here on, others notice where this one ends
        found = checks.jax_devices(device)
        self.jax_device, self.mesh = found[0], devices.mesh_of(found)
        if not is_first_process():
            verbose = 0
        n_envs = env.num_envs if isinstance(env, VecEnv) else 1
        with warnings.catch_warnings():
            # load() comes here with default arguments: _setup_model warns when it knows the real ones
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
            super().__init__(
                policy,  # type: ignore[arg-type]
                env,  # type: ignore[arg-type]
                **settings,
                n_steps=automatic_n_steps(n_envs * jax.process_count(), batch_size) if n_steps is None else n_steps,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range_vf=clip_range_vf,
                normalize_advantage=normalize_advantage,
                vf_coef=vf_coef,
                max_grad_norm=max_grad_norm,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                _init_setup_model=False,
            )
        self.device = th.device("cpu")  # where SB3 holds tensors; jax_device is where DeepSPI computes
        if verbose >= 1:
            print(f"{type(self).__name__} computes on {', '.join(map(str, found))}")
        self._automatic_n_steps = n_steps is None
        self.target_kl = target_kl
        self._stats_window_size = stats_window_size
        self.reward_loss_coef = reward_loss_coef
        self.transition_loss_coef = transition_loss_coef
        self.gradient_penalty_coef = gradient_penalty_coef
        self.neighbourhood = neighbourhood
        self.certificate_freq = certificate_freq
        self.fused = fused
        self.termination_model = termination_model
        self.episodes = self.episodes_of_all = EpisodeStatistics.empty(n_envs, stats_window_size)
        self.rewards = RewardStatistics.empty()
        self.interruption = Interruption()
        self._before_rollout: dict[str, Any] = {}  # see sb3.fused.COUNTED
        self._n_collected = 0  # transitions of the rollout that was collected last
        self.news = joined.News()
        self._last_fault = ""
        self._faulty_updates = 0
        self._last_verdict = ""
        self._updates_of_a_large_penalty = 0
        self._updates_since_certificate = 0
        self._left_out_infos: set[str] = set()
        self._told_missing: set[str] = set()
        self._set_by_constructor: frozenset[str] = frozenset()
        if _init_setup_model:
            self._setup_model()
            for name in (*trainer.SCHEDULES, "policy_kwargs"):
                checks.can_be_saved(name, missing := checkpoint.left_out(getattr(self, name, None), name))
                self._told_missing |= {part.name for part in missing}
        self._set_by_constructor = frozenset(vars(self))

    @classmethod
    def defaults_of(cls, policy_class: type[DeepSPIPolicy]) -> dict[str, Any]:
        """
        :param policy_class: of the policy
        :return: arguments that count where they are not given, by name
        """
        return policy_class.algorithm_defaults

    check_spaces = staticmethod(checks.supported_spaces)

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, str):  # the constructor made its own
            env = make_jax_env(env) if is_jax_env_id(env) else maybe_make_env(env, verbose)
            assert env is not None
        if isinstance(env, JaxEnv) and not isinstance(env, (gym.Env, VecEnv)):
            raise ValueError(
                f"{type(env).__name__} is one environment inside jit: make copies of it, JaxVecEnv(env, n_envs=...)."
            )
        checks.supported_spaces(env.observation_space, env.action_space)
        if isinstance(env, JaxVecEnv):  # images with channels last need no wrapper
            return env
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """
        :param env: to learn from, with as many environments and the same spaces, or its id
        :param force_reset: reset it before learning goes on
        """
        super().set_env(env, force_reset)  # type: ignore[arg-type]
        inner = inside_jit(self.env)
        if self._environment_tensors and inner is not None:
            restore_statistics(inner, self._environment_tensors, trainer.ENVIRONMENTS)

    def _setup_model(self) -> None:
        if self._automatic_n_steps:
            self.n_steps = automatic_n_steps(self.n_envs_of_all, self.batch_size)
        valid.positive_integer(
            n_steps=self.n_steps, n_envs=self.n_envs, batch_size=self.batch_size, n_epochs=self.n_epochs
        )
        checks.rollout_size(self.n_steps, self.n_envs_of_all)
        checks.batch_size(self.batch_size, self.n_steps, self.n_envs_of_all)
        if self.env is not None:  # to predict, no environments are shared
            checks.divide_among_devices(self.n_envs, self.batch_size, self.n_devices)
        valid.positive(
            clip_range_vf=self.clip_range_vf,
            max_grad_norm=self.max_grad_norm,
            target_kl=self.target_kl,
        )
        valid.in_unit_interval(
            reward_loss_coef=self.reward_loss_coef,
            transition_loss_coef=self.transition_loss_coef,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
        )
        valid.one_of(NEIGHBOURHOODS, neighbourhood=self.neighbourhood)
        if self.gradient_penalty_coef is not None:
            valid.positive(gradient_penalty_coef=self.gradient_penalty_coef)
        valid.positive_integer(certificate_freq=self.certificate_freq)
        valid.boolean(fused=self.fused, termination_model=self.termination_model)
        if self.termination_model and not self.reward_loss_coef > 0:
            raise ValueError(
                "termination_model=True needs a world model that learns from rewards, but reward_loss_coef, which "
                f"weighs what it gets wrong about ends, too, is {self.reward_loss_coef!r}."
            )
        self.set_random_seed(self.seed)
        if isinstance(self.clip_range, (int, float)):
            checks.neighbourhood(self.clip_range)
        if getattr(self, "policy", None) is None:
            self.policy = self._make_policy(self.learns_model)
            with jax.default_device(self.jax_device):
                self.key = self.policy.build(self.key, self.step_sizes(1.0))
        self.policy.learner, self.key = self.put((self.policy.learner, self.key))

    @property
    def n_devices(self) -> int:
        """
        :return: number of devices of all processes, each of which has its share of the environments
        """
        return 1 if self.mesh is None else self.mesh.size

    @property
    def n_envs_of_all(self) -> int:
        """
        :return: number of environments of all processes, of which each has ``n_envs``
        """
        return self.n_envs * jax.process_count()

    @property
    def processes(self) -> Processes | None:
        """
        :return: those that train the model together; ``None``: this one alone
        """
        return processes()

    def put(self, tree: Any, layouts: Any = WHOLE) -> Any:
        """
        :param tree: of arrays, wherever they are
        :param layouts: see :mod:`sbx_deepspi.devices`
        :return: the arrays on the devices of this process where JAX computes
        """
        return devices.put(tree, layouts, self.jax_device if self.mesh is None else self.mesh.local_mesh)

    def _setup_lr_schedule(self) -> None:
        """Nothing to do: the schedule is made from the learning rate whenever it is asked for."""

    @property
    def learns_model(self) -> bool:
        """
        :return: whether any loss of the world model counts
        """
        return self.reward_loss_coef > 0 or self.transition_loss_coef > 0

    def step_sizes(self, progress: float) -> StepSizes:
        """
        :param progress: remaining, from 1 to 0
        :return: the optimiser's learning rate and limit of the gradient's norm
        """
        return StepSize(self.lr_schedule(progress), self.max_grad_norm)

    def _make_policy(self, world_model: bool) -> DeepSPIPolicy:
        of_algorithm = dict(
            world_model=world_model,
            termination_model=world_model and self.termination_model,
            optimizer_groups=self.optimizer_groups,
        )
        return self.policy_class(  # type: ignore[return-value]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            **{**of_algorithm, **self.policy_kwargs},
        )

    @property
    def state(self) -> TrainerState:
        """
        :return: everything that an iteration changes
        """
        inner = inside_jit(self.env)
        return TrainerState(
            learner=self.policy.learner,
            key=self.key,
            episodes=self.episodes,
            rewards=self.rewards,
            n_epochs=np.int32(self._n_updates),
            environments=None if inner is None else inner.state,
        )

    @state.setter
    def state(self, state: TrainerState) -> None:
        self.policy.learner, self.key = state.learner, state.key
        self.episodes, self.rewards = state.episodes, state.rewards
        self._n_updates = int(state.n_epochs)
        if (inner := inside_jit(self.env)) is not None:
            inner.state = state.environments

    @property
    def rollout_buffer(self) -> Rollout:  # type: ignore[override]
        """
        :return: the present rollout; made when learning starts: a model that only predicts has none
        """
        if self._fused_env is not None:
            return NotOnHost()  # type: ignore[return-value]
        if self._rollout is None or self._rollout.rewards.shape != (self.n_steps, self.n_envs):
            self._rollout = Rollout.empty(
                self.n_steps,
                self.n_envs,
                observation=vec_env.observation_spec(self.observation_space),
                action=jax.ShapeDtypeStruct(action_shape(self.action_space), action_dtype(self.action_space)),
                log_policy=log_policy_shape(self.action_space),
            )
        return self._rollout

    @property
    def rollout(self) -> Rollout:
        """
        :return: the rollout that was collected last, whatever ``n_steps`` has been set to since
        """
        return self.rollout_buffer if self._rollout is None else self._rollout

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """
        :return: ``VecNormalize`` with the statistics of the environments, if they are normalised, be it inside jit
        """
        inner = inside_jit(self.env)
        return super().get_vec_normalize_env() or (None if inner is None else inner.vec_normalize())

    @property
    def _fused_env(self) -> JaxVecEnv | None:
        return self.env if self.fused and isinstance(self.env, JaxVecEnv) else None

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: Rollout,  # type: ignore[override]
        n_rollout_steps: int,
    ) -> bool:
        """
        Run the behaviour policy and fill the rollout.

        :param env: the environments
        :param callback: called at every step, and at the rollout's start and end
        :param rollout_buffer: what to fill
        :param n_rollout_steps: steps of each environment
        :return: False if the training is to stop: by the callback, by a signal, or because updates were faulty
        :raises ValueError: an observation or a reward is not finite
        """
        self._n_collected = n_rollout_steps * self.n_envs_of_all
        if self._is_to_stop:
            return False
        if env is self._fused_env:
            return collect_and_update(self, env, callback, n_rollout_steps)
        return collect(self, env, callback, rollout_buffer, n_rollout_steps)

    @property
    def _is_to_stop(self) -> bool:
        if self._faulty_updates >= FAULTY_UPDATES_IN_A_ROW:
            return True
        return bool(self.interruption.received) if self.processes is None else self.news.all_stop

    def goes_on_after(self, callback: BaseCallback) -> bool:
        """
        :param callback: whose ``on_step`` is called
        :return: False if the training is to stop: by the callback or by a signal. Where several processes train, they
            stop together, after the next update: until then True is returned, and the callback is called no more
        :raises ConnectionError: the process of an environment for evaluation has ended
        """
        if self.news.stops:
            return True
        try:
            goes_on = callback.on_step()
        except (EOFError, OSError) as error:
            if not self.was_interrupted(error):
                raise
            goes_on = False
        if self.processes is None:
            return goes_on
        self.news.stops = not goes_on
        return True

    def was_interrupted(self, error: Exception) -> bool:
        """
        :param error: of an environment's process
        :return: True if a signal, of which the training knows, ended the process, too
        :raises ConnectionError: the process has ended for another reason
        """
        # Ctrl-C also ends the processes of a SubprocVecEnv, this one or that of an EvalCallback
        if self.interruption.received:
            return True
        if isinstance(error, EOFError):
            raise ConnectionError(
                "The process of an environment, for training or for evaluation, has ended: if the environment "
                "raised an error, its traceback is above (TimeoutSubprocVecEnv says which one it was)."
            ) from error
        return False

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        # an episode's statistics go into every file: numbers as Python has them, and nothing that a file cannot hold
        plain = []
        for info in infos:
            episode, success = info.get("episode"), vec_env.plain(info.get("is_success"))
            if episode is not None:
                episode = {name: vec_env.plain(value) for name, value in episode.items()}
                for name in [name for name, value in episode.items() if value is None]:
                    del episode[name]
                    self._warn_of_info(name)
            if success is None and info.get("is_success") is not None:
                self._warn_of_info("is_success")
            plain.append({"episode": episode, "is_success": None if isinstance(success, str) else success})
        super()._update_info_buffer(plain, dones)
        if self.processes is not None:
            self.news.add(plain, dones)

    def _warn_of_info(self, name: str) -> None:
        if name not in self._left_out_infos:
            self._left_out_infos.add(name)
            warnings.warn(
                f"info[{name!r}] is neither a number nor a string: it is left out of the episodes' statistics.",
                stacklevel=4,
            )

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # where the rollout began, so that no schedule has come to its end before the last update
        began = num_timesteps - self._n_collected
        super()._update_current_progress_remaining(began, total_timesteps)

    def hyperparameters(self) -> Hyperparameters:
        """
        :return: what the next update depends on, at the present progress of training
        """
        progress, policy = self._current_progress_remaining, self.policy
        if self.learns_model and not policy.world_model:
            raise ValueError(
                f"{type(self).__name__} was made without a world model (with both coefficients 0, or with "
                f"world_model=False), but now reward_loss_coef={self.reward_loss_coef!r} and "
                f"transition_loss_coef={self.transition_loss_coef!r}: give them when it is made."
            )
        if self.termination_model != policy.termination_model and policy.world_model:
            raise ValueError(
                f"{type(self).__name__} was made with termination_model={policy.termination_model}, but now it is "
                f"{self.termination_model!r}: give it when the model is made."
            )
        checks.divide_among_devices(self.n_envs, self.batch_size, self.n_devices)
        batch_size = self.batch_size // self.n_devices
        networks, large_images = policy.programs.networks, policy.encodes_images
        n_numbers = max(policy.n_image_numbers, networks.n_predicted if networks.latent_map else 0)
        given = Hyperparameters(
            step_sizes=self.step_sizes(progress),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            clip_range=self.clip_range_schedule(progress),
            clip_range_vf=None if self.clip_range_vf is None else self.clip_range_vf_schedule(progress),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            reward_loss_coef=self.reward_loss_coef,
            transition_loss_coef=self.transition_loss_coef,
            target_kl=self.target_kl,
            gradient_penalty_coef=self.gradient_penalty_coef if policy.world_model else None,
            batch_size=batch_size,
            n_epochs=self.n_epochs,
            normalize_advantage=self.normalize_advantage,
            microbatch_size=ops.microbatch_size(self.jax_device.platform, n_numbers),
            segment_length=segment_length(
                large_images and policy.world_model, self._n_collected // self.n_envs_of_all, batch_size
            ),
        )
        return jax.tree.map(float, given)  # also a 1 that stands for 1.0, which would be another type to the compiler

    def train(self) -> None:
        """Update policy, values and world model from the collected rollout, certify the update, log what happened."""
        made, self._made = self._made or self._update(), None
        self.state = made.state
        self.news.learner = self.policy.learner
        self.tell(made)

    def tell(self, made: Made) -> None:
        """
        Log an update, warn of what is wrong with it, and keep its certificate.

        :param made: of a rollout
        """
        report, hyperparameters = made.report, made.hyperparameters
        of_epochs = [report.epochs] if report.dreams is None else [report.epochs, report.dreams.epochs]
        for epochs in of_epochs:
            if epochs.stopped and self.verbose >= 1:
                what = "Early stopping" if epochs is report.epochs else "Early stopping of dreams"
                print(f"{what} at step {epochs.n_epochs - 1} due to reaching max kl: {epochs.last_kl:.2f}")
        logs.record_update(
            self.logger, report, hyperparameters, made.log_std, self.rewards, self._n_updates,
            self.policy.termination_model,
        )  # fmt: skip
        if self.neighbourhood == "project":
            self.logger.record("spi/kept_fraction", float(made.kept))
        if made.certificate is not None:
            self.certificate = made.certificate
            verdict = logs.record_certificate(self.logger, made.certificate, self.gamma, self.all_actions)
            if self.verbose >= 1 and verdict != self._last_verdict:
                print(f"After {self.num_timesteps:,} steps: {verdict}")
            self._last_verdict = verdict
        self._watch(of_epochs)
        self._watch_penalty(logs.penalty(report, hyperparameters))

    def _update(self) -> Made:
        hyperparameters = self.hyperparameters()
        if self.processes is not None:
            joined.agree(self, hyperparameters)
        before = self.state
        last_observations = vec_env.observations_of(self._last_obs, self.observation_space, self.n_envs)
        before, rollout, last_observations = self.put(
            (before, self.rollout, last_observations), (before.layout, PER_STEP, PER_ENV)
        )
        with waits_for_others():
            state, report, kept = self.policy.programs.iteration(
                before,
                rollout,
                last_observations,
                hyperparameters,
                mesh=self.mesh,
                update=type(self).update,
                projects=self.neighbourhood == "project",
            )
            certificate = None
            if self.is_certified():
                certificate = self.policy.programs.certify(
                    before, state, rollout, hyperparameters.gamma, mesh=self.mesh
                )
            return Made.to_host(state, hyperparameters, report, kept, certificate)[0]

    def is_certified(self) -> bool:
        """
        :return: whether the next update gets a certificate; asked once for each
        """
        if not self.policy.world_model:
            return False
        due = self._updates_since_certificate % self.certificate_freq == 0
        self._updates_since_certificate = 1 if due else self._updates_since_certificate + 1
        return due or self.certifies_each_update

    def _watch(self, reports: list[EpochsReport]) -> None:
        report = next((report for report in reports if report.faults.any), None)
        if report is None:
            self._faulty_updates = 0
            return
        self._faulty_updates += 1
        quantity = next(name for name in ("loss", "gradient", "parameters") if getattr(report.faults, name))
        what = "minibatches" if report is reports[0] else "minibatches of dreams"
        self._last_fault = (
            f"The update after {self.num_timesteps:,} steps had a non-finite {quantity} in "
            f"{getattr(report.faults, quantity)} of {report.n_minibatches} {what}: their steps were not applied."
        )
        if is_first_process():
            warnings.warn(self._last_fault, RuntimeWarning, stacklevel=3)

    def _watch_penalty(self, penalty: float) -> None:
        """Warn once where mean(α_R ℓ_R + α_P ℓ_P) stays above 1, the standard deviation of the advantages."""
        self._updates_of_a_large_penalty = self._updates_of_a_large_penalty + 1 if penalty > 1 else 0
        if self._updates_of_a_large_penalty == UPDATES_OF_A_LARGE_PENALTY and is_first_process():
            warnings.warn(
                f"The world model's losses outweigh the advantages: alpha_R l_R + alpha_P l_P has been above 1 for "
                f"{UPDATES_OF_A_LARGE_PENALTY} updates and is now {penalty:.3g}: lower reward_loss_coef "
                f"({self.reward_loss_coef:g}) or transition_loss_coef ({self.transition_loss_coef:g}).",
                stacklevel=4,
            )

    @property
    def all_actions(self) -> bool:
        """
        :return: whether importance ratios are over every action, and not only over the sampled ones
        """
        return not isinstance(self.action_space, spaces.Box)

    def learn(
        self: SelfDeepSPI,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDeepSPI:
        """
        Learn; see SB3's ``BaseAlgorithm.learn``. Where it is interrupted, callbacks still get their
        ``on_training_end``, and the model is as its last good update left it.

        :param total_timesteps: steps of all environments together, at least
        :param callback: called at every step, and at the beginning and end of rollouts and training
        :param log_interval: updates from one logged table to the next
        :param tb_log_name: name of the run for TensorBoard; ``None``: the algorithm's
        :param reset_num_timesteps: begin to count anew; if not, ``total_timesteps`` come on top of those made
        :param progress_bar: show one
        :return: the model
        :raises KeyboardInterrupt: SIGINT or SIGTERM came: the running update was finished first
        :raises ValueError: three updates in a row were not finite, or the environment returned what is not, or
            ``clip_range`` does not begin within (0, 1)
        """
        # not before: RL Zoo's enjoy puts schedules of 0 into models that it loads
        checks.neighbourhood(self.clip_range_schedule(1.0))
        self._faulty_updates, self.certifies_each_update = 0, False  # callbacks that need them say so
        self._made = None
        if self.env is not None:
            if self.fused:
                tell_of_wrappers(self.env)
            tell_of_evaluations(self.env, callback)
        if not reset_num_timesteps and self.num_timesteps > 0 and is_first_process():
            self._tell_of_falling_rate(total_timesteps)
        with self.interruption, self.processes or nullcontext():
            super().learn(
                total_timesteps,
                callback,
                log_interval,
                tb_log_name or type(self).__name__,
                reset_num_timesteps,
                progress_bar,
            )
            if self.processes is not None:
                joined.agree_on_end(self)
        if self._faulty_updates >= FAULTY_UPDATES_IN_A_ROW:
            raise ValueError(
                f"{self._faulty_updates} updates in a row were not finite, the model has its last good parameters: "
                f"lower learning_rate, or look at the scale of the rewards. {self._last_fault}"
            )
        if self.interruption.received or self.news.signal:
            by = self.news.signal or self.interruption.received.name  # type: ignore[union-attr]
            raise KeyboardInterrupt(f"{by} after {self.num_timesteps:,} steps")
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if not is_first_process():
            self.set_logger(joined.silent_logger())
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self.processes is not None:
            joined.let_process_0_speak(callback)
            self.news = joined.News()
            joined.agree_on_beginning(self)
        return total_timesteps, callback

    def _tell_of_falling_rate(self, total_timesteps: int) -> None:
        first, rate = self.lr_schedule(1.0), self.lr_schedule(total_timesteps / (self.num_timesteps + total_timesteps))
        if rate != first:
            warnings.warn(
                f"With reset_num_timesteps=False the learning rate's schedule goes on over all steps: this call of "
                f"learn begins at {rate:.3g} instead of {first:.3g}. For the same rate in every call, set "
                f"learning_rate={first:.3g}.",
                stacklevel=3,
            )

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log, also where Ctrl-C has ended the program that reads it.

        :param iteration: number of the update
        """
        try:
            super().dump_logs(iteration)
        except BrokenPipeError:
            if not self.interruption.received:
                raise
            mute()

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed everything that draws random numbers: Python's and NumPy's generators, training, and prediction.

        :param seed: ``None`` draws one for training alone
        """
        super().set_random_seed(seed)
        if seed is not None and self.processes is not None:
            joined.seed_environments(self, seed)
        if seed is not None and getattr(self, "policy", None) is not None:
            self.policy.key = jax.random.fold_in(self.key, 1)

    def get_parameters(self) -> dict[str, dict[str, np.ndarray]]:
        """
        The parameters, as SB3 names them.

        :return: ``policy`` and ``policy.optimizer``, each with NumPy arrays by name
        """
        learner = self.policy.learner
        return {
            "policy": checkpoint.flatten(learner.parameters),
            "policy.optimizer": checkpoint.flatten(learner.optimizer_state),
        }

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Set parameters in place; all of them, or, where one does not fit, none.

        :param load_path_or_dict: a saved model, or what :meth:`get_parameters` returns
        :param exact_match: whether every parameter has to be given; if not, those given are set
        :param device: not used: the model stays where it is
        :raises ValueError: an object is unknown or missing, or a parameter is not finite
        :raises RuntimeError: a parameter is unknown or missing, or has another shape
        """
        given = load_path_or_dict
        if not isinstance(given, dict):
            tensors = checkpoint.read(given, suffix="zip").tensors
            given = {
                "policy": checkpoint.subtree(tensors, "state/learner/parameters/"),
                "policy.optimizer": checkpoint.subtree(tensors, "state/learner/optimizer_state/"),
            }
        own = self.get_parameters()
        for name in given.keys() - own.keys():
            raise ValueError(f"Key {name} is an invalid object name.")
        if exact_match and given.keys() != own.keys():
            raise ValueError(
                f"Names of parameters do not match agents' parameters: expected {set(own)}, got {set(given)}"
            )
        merged = {name: checkpoint.merge(own[name], given.get(name, {}), exact_match) for name in own}
        checkpoint.finite(merged["policy"], merged["policy.optimizer"])
        learner = self.policy.learner
        self.policy.learner = self.put(
            learner.replace(
                parameters=checkpoint.unflatten(merged["policy"], learner.parameters),
                optimizer_state=checkpoint.unflatten(merged["policy.optimizer"], learner.optimizer_state),
            )
        )

    def save(
        self,
        path: Any,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        pickle: bool = False,
    ) -> None:
        """
        Save the model, atomically and without code: its configuration as JSON, its state as safetensors. What has no
        plain form, such as a lambda, is left out: to train on after ``load``, it has to be given again.

        With it go the statistics of ``VecNormalize``, and the state of environments that have ``get_state()``. Where
        several processes train, process 0 saves, without that state, and the others do nothing.

        :param path: of the file, which gets the suffix ``.zip`` if it has none, or a file open for writing
        :param exclude: attributes to leave out
        :param include: attributes to save that otherwise would not be
        :param pickle: pickle what has no plain form; such a file loads only with ``trust=True``
        :raises OSError: it could not be written; a file that was there is as it was
        """
        if not is_first_process():
            return
        contents = trainer.contents_of(self, set(exclude or ()), set(include or ()))
        for missing in checkpoint.write(path, contents, pickle, suffix="zip"):
            if missing.name not in self._told_missing:
                warnings.warn(
                    f"{missing.name} = {missing.description} has no plain form, and a saved model holds no code: it is "
                    "left out (pickle=True saves it, too).",
                    stacklevel=2,
                )

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfDeepSPI],
        path: Any,
        env: GymEnv | str | None = None,
        device: th.device | str | Sequence[str] = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool | None = None,
        trust: bool = False,
        **kwargs: Any,
    ) -> SelfDeepSPI:
        """
        Load a saved model, without running anything that is in the file.

        :param path: of the file, or a file open for reading
        :param env: what to go on learning from, or its id; ``None``: for predictions only
        :param device: where JAX computes, whatever it computed on when the model was saved
        :param custom_objects: attributes to take from here instead of from the file
        :param print_system_info: print the system that saved the model, and this one
        :param force_reset: reset the environment before learning goes on; if not, it is put into the state in which
            it was saved, so that the run goes on as if it had not been interrupted (where that state is not known,
            there is a warning and a reset). A ``VecNormalize`` that has seen no observation gets the saved statistics.
            ``None``: not where the environment is inside jit and the same as then
        :param trust: load also what was saved with ``pickle=True``, which may run any code
        :param kwargs: attributes to change; ``n_steps=None`` chooses it for the environments that there are
        :return: the model
        :raises CheckpointError: the file is none of ours, is damaged, newer, pickled, or another class's
        :raises ValueError: the environment has other spaces than the model
        """
        return trainer.load(
            cls,
            path,
            env,
            device,
            custom_objects,
            print_system_info,
            force_reset=force_reset,
            trust=trust,
            changes=kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        """
        :return: what pickle and deepcopy take: all but what only this program has, such as the logger
        """
        live = {"jax_device", "mesh", "interruption", "news", "_rollout", "_made", "_logger"}
        state = {name: checkpoint.to_names(value) for name, value in vars(self).items() if name not in live}
        found = [self.jax_device] if self.mesh is None else list(self.mesh.local_devices)
        names = [f"{one.platform}:{jax.local_devices(backend=one.platform).index(one)}" for one in found]
        return state | {"device_names": names, "_custom_logger": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = checks.devices_again(state.pop("device_names"))
        self.jax_device, self.mesh = found[0], devices.mesh_of(found)
        vars(self).update(checkpoint.from_names(state))
        self.interruption, self.news = Interruption(), joined.News()
        self.policy.learner, self.key = self.put((self.policy.learner, self.key))

    def _excluded_save_params(self) -> list[str]:
        # what only a running program has, or is made anew from the arguments that it comes from
        return [
            *super()._excluded_save_params(),
            *(
                "policy",
                "jax_device",
                "mesh",
                "interruption",
                "news",
                "certificate",
                "episodes",
                "episodes_of_all",
                "rewards",
                "key",
                "_rollout",
                "_made",
                "_environment_tensors",
            ),
            *("certifies_each_update", "_n_collected", "_before_rollout", "_left_out_infos", "_told_missing"),
            *("lr_schedule", "clip_range_schedule", "clip_range_vf_schedule", "_set_by_constructor"),
        ]
