"""
Train on Atari and draw the learning curve: the scores of whole games, unclipped, over environment steps.

    python benchmarks/learning_curve.py --name breakout --algorithm deepspi

writes docs/results/breakout_deepspi.csv, one row per finished game and as they finish, and draws all algorithms that
have such a file into docs/results/breakout.png. The settings are the paper's, for all of them, the learning rate's
schedule made for 10 M steps however early the run stops. Ctrl-C stops it, too. docs/results has the commands behind
its figures.

SBX's PPO is its own but for the form of its convolutions, which are DeepSPI's matrix products on CPUs and done in
parts: the same function of the same parameters in less time. What is not the same is its initialisation, which is not
orthogonal, and that actor and critic step one after the other, each with a clip and an Adam of its own, so that the
network that they share takes two steps per minibatch. "alpha_0" tells these from the world model: DeepSPI with
α = 0, which is PPO. SB3's PPO tells them from each other: "sb3_ppo_two_steps" with SBX's steps, "sb3_ppo_as_sbx" with
its steps and its initialisation. "deepspi_flax_init" is DeepSPI with that initialisation alone, "deepspi_as_sbx" with
both.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"
NAMES = [
    "deepspi", "sbx_ppo", "sb3_ppo", "alpha_0", "sb3_ppo_two_steps", "sb3_ppo_as_sbx", "deepspi_flax_init",
    "deepspi_as_sbx",
]  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--algorithm", choices=NAMES, default="deepspi", metavar="NAME", help=f"one of {', '.join(NAMES)}"
    )
    parser.add_argument("--env", default="Breakout-v5", help="EnvPool's or ALE's id")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of all environments together: when to stop")
    parser.add_argument("--seed", type=int, default=0, help="of environments, networks and actions")
    parser.add_argument("--learning-rate", type=float, default=2.5e-4, help="at the beginning; it falls to 0")
    parser.add_argument("--name", required=True, help="of the files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files; otherwise docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import csv
from functools import partial
from typing import IO

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas as pd
import sbx
import stable_baselines3
import torch
from sbx.common import jax_layers
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from throughput import HYPERPARAMETERS

from sbx_deepspi import DeepSPI, deepspi, make_envpool_env
from sbx_deepspi.agent import Networks
from sbx_deepspi.deepspi import gradient, loss
from sbx_deepspi.hyperparameters import Hyperparameters, Metrics
from sbx_deepspi.lipschitz.normalizer import NormCache
from sbx_deepspi.ops import convolution
from sbx_deepspi.optimizer import Learner, Optimizer
from sbx_deepspi.rollout import Transitions

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCHEDULE_STEPS = 10_000_000
IMAGES_IN_A_PART = 32  # of SBX's network
# of SBX and SB3; vf_coef is half of DeepSPI's, since their loss of values lacks the ½
PPO_SETTINGS = HYPERPARAMETERS | {"n_steps": 8, "vf_coef": 0.25}
WINDOW = 200  # games in the running mean
COLOURS = {
    "deepspi": "tab:red",
    "sbx_ppo": "tab:gray",
    "sb3_ppo": "tab:green",
    "alpha_0": "tab:blue",
    "sb3_ppo_two_steps": "tab:olive",
    "sb3_ppo_as_sbx": "tab:purple",
    "deepspi_flax_init": "tab:orange",
    "deepspi_as_sbx": "tab:pink",
}


class Conv(nn.Module):
    """
    What SBX asks of flax's layer of this name, with its parameters and their initialisation.

    :param features: channels out
    :param kernel_size: of a square kernel
    :param strides: in both directions
    """

    features: int
    kernel_size: int
    strides: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """
        :param images: shape (B, H, W, C)
        :return: VALID convolution
        """
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return convolution(images, kernel, self.strides) + self.param("bias", nn.initializers.zeros, (self.features,))


class NatureCNN(jax_layers.NatureCNN):
    """SBX's own in less time. The name matters: by it SBX finds what actor and critic share."""

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """
        :param observations: shape (B, C, H, W), uint8
        :return: shape (B, n_features)
        """
        layers = Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1)

        def convolve(images: jax.Array) -> jax.Array:
            maps = images.transpose(0, 2, 3, 1).astype(np.float32) / 255.0
            for layer in layers:
                maps = self.activation_fn(layer(maps))
            return maps

        # written out: backend.in_parts would loop over as many, for which this gradient is too large
        n_parts = -(-len(observations) // IMAGES_IN_A_PART)
        maps = jnp.concatenate([convolve(part) for part in jnp.array_split(observations, n_parts)])
        return self.activation_fn(nn.Dense(self.n_features)(maps.reshape(len(maps), -1)))


class TwoStepPPO(stable_baselines3.PPO):
    """
    SB3's PPO that steps as SBX's does: first the actor, then the critic, each with a clip and an Adam of its own, and
    each through the network that they share.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        shared = list(self.policy.features_extractor.parameters())
        self.actor_optimizer, self.critic_optimizer = (
            torch.optim.Adam(shared + list(head.parameters()), eps=1e-5)
            for head in (self.policy.action_net, self.policy.value_net)
        )

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        """
        :param optimizer: actor's or critic's
        :param loss: of a minibatch
        """
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.max_grad_norm)
        optimizer.step()

    def train(self) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor_optimizer, self.critic_optimizer])
        clip_range = self.clip_range(self._current_progress_remaining)
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
                _, log_probs, entropies = self.policy.evaluate_actions(
                    batch.observations, batch.actions.long().flatten()
                )
                ratios = (log_probs - batch.old_log_prob).exp()
                clipped = ratios.clamp(1 - clip_range, 1 + clip_range)
                objective = torch.min(ratios * advantages, clipped * advantages) + self.ent_coef * entropies
                self.step(self.actor_optimizer, -objective.mean())
                values = self.policy.predict_values(batch.observations).flatten()
                self.step(self.critic_optimizer, self.vf_coef * torch.nn.functional.mse_loss(values, batch.returns))


def make_deepspi(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> DeepSPI:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: DeepSPI with its defaults, which are the paper's
    """
    return DeepSPI("CnnPolicy", env, learning_rate, seed=seed)


def make_deepspi_flax_init(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> DeepSPI:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: DeepSPI with SBX's initialisation, which is flax's
    """
    return DeepSPI("CnnPolicy", env, learning_rate, seed=seed, policy_kwargs={"ortho_init": False})


def two_steps(
    networks: Networks,
    optimizer: Optimizer,
    hyperparameters: Hyperparameters,
    learner: Learner,
    norms: NormCache,
    minibatch: Transitions,
    key: jax.Array,
) -> tuple[Learner, Metrics]:
    """
    SBX's steps: first by all but the values' loss, then by that, each with a clip and an Adam of its own.

    :param networks: without parameters
    :param optimizer: used twice, with two states, ``"actor"`` and ``"critic"``
    :param hyperparameters: of DeepSPI
    :param learner: before the steps
    :param norms: what is known of the Lipschitz kernels' norms
    :param minibatch: B transitions
    :param key: randomness of the latent samples
    :return: after both steps, and what the first one tells
    """
    parameters, states, h = learner.parameters, learner.optimizer_state, hyperparameters
    policy_alone = h.replace(vf_coef=0.0)
    gradients, metrics = gradient(loss, networks, parameters, norms, minibatch, key, policy_alone)
    between = optimizer.step(Learner(parameters, states["actor"]), gradients, h.step_sizes)

    values_alone = h.replace(ent_coef=0.0, reward_loss_coef=0.0, transition_loss_coef=0.0)
    minibatch = minibatch.replace(advantages=jnp.zeros_like(minibatch.advantages))
    gradients, of_values = gradient(loss, networks, between.parameters, norms, minibatch, key, values_alone)
    after = optimizer.step(Learner(between.parameters, states["critic"]), gradients, h.step_sizes)
    states = {"actor": between.optimizer_state, "critic": after.optimizer_state}
    # a fault in either gradient counts
    metrics = metrics.replace(gradient_norm=metrics.gradient_norm + of_values.gradient_norm)
    return Learner(after.parameters, states), metrics


class TwoStepDeepSPI(DeepSPI):
    """DeepSPI that steps as SBX's PPO does; see :func:`two_steps`."""

    update = staticmethod(partial(deepspi.update, two_steps))

    def _setup_model(self) -> None:
        super()._setup_model()
        learner = self.policy.learner
        states = {"actor": learner.optimizer_state, "critic": learner.optimizer_state}
        self.policy.learner = learner.replace(optimizer_state=states)


def make_deepspi_as_sbx(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> DeepSPI:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: DeepSPI with SBX's initialisation and SBX's steps
    """
    return TwoStepDeepSPI("CnnPolicy", env, learning_rate, seed=seed, policy_kwargs={"ortho_init": False})


def make_alpha_0(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> DeepSPI:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: DeepSPI without a world model, which is PPO
    """
    return DeepSPI("CnnPolicy", env, learning_rate, reward_loss_coef=0.0, transition_loss_coef=0.0, seed=seed)


def make_sbx_ppo(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> sbx.PPO:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: SBX's PPO with DeepSPI's settings
    """
    settings = PPO_SETTINGS | {"learning_rate": learning_rate, "seed": seed}
    # no hidden layers, which is SBX's default for its own NatureCNN alone
    policy_kwargs = {"features_extractor_class": NatureCNN, "net_arch": []}
    return sbx.PPO("CnnPolicy", env, policy_kwargs=policy_kwargs, **settings)


def make_sb3_ppo(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> stable_baselines3.PPO:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: SB3's PPO with DeepSPI's settings
    """
    settings = PPO_SETTINGS | {"learning_rate": learning_rate, "seed": seed}
    return stable_baselines3.PPO("CnnPolicy", env, **settings)


def make_sb3_ppo_two_steps(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> TwoStepPPO:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: SB3's PPO with DeepSPI's settings and SBX's steps
    """
    return TwoStepPPO("CnnPolicy", env, **(PPO_SETTINGS | {"learning_rate": learning_rate, "seed": seed}))


def make_sb3_ppo_as_sbx(env: VecEnv, seed: int, learning_rate: LinearSchedule) -> TwoStepPPO:
    """
    :param env: Atari
    :param seed: of everything
    :param learning_rate: its schedule
    :return: SB3's PPO with DeepSPI's settings, SBX's steps and SBX's initialisation, which is flax's
    """
    model = make_sb3_ppo_two_steps(env, seed, learning_rate)
    for layer in model.policy.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            deviation = (1 / layer.weight[0].numel()) ** 0.5 / 0.87962566  # of what is left between two deviations: 1
            torch.nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            torch.nn.init.zeros_(layer.bias)
    return model


ALGORITHMS = {
    "deepspi": make_deepspi,
    "sbx_ppo": make_sbx_ppo,
    "sb3_ppo": make_sb3_ppo,
    "alpha_0": make_alpha_0,
    "sb3_ppo_two_steps": make_sb3_ppo_two_steps,
    "sb3_ppo_as_sbx": make_sb3_ppo_as_sbx,
    "deepspi_flax_init": make_deepspi_flax_init,
    "deepspi_as_sbx": make_deepspi_as_sbx,
}


class RecordGames(BaseCallback):
    """
    Write a row for each finished game, and stop after some steps.

    :param file: of the CSV
    :param steps: environment steps of all environments together
    """

    def __init__(self, file: IO[str], steps: int) -> None:
        super().__init__()
        self.file, self.steps = file, steps
        self.writer = csv.writer(file)
        self.writer.writerow(["step", "score", "frames", "seconds"])

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                game = info["episode"]
                self.writer.writerow([self.num_timesteps, game["r"], game["l"], round(game["t"], 1)])
        return self.num_timesteps < self.steps

    def _on_rollout_end(self) -> None:
        self.file.flush()


def draw(runs: dict[str, pd.DataFrame], title: str, path: Path) -> None:
    """
    :param runs: algorithm → its games, with columns ``step`` and ``score``
    :param title: of the picture
    :param path: of the PNG
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    highest = 0.0
    for algorithm, games in runs.items():
        axes.scatter(games["step"], games["score"], s=3, alpha=0.15, color=COLOURS[algorithm])
        mean = games["score"].rolling(WINDOW, min_periods=WINDOW // 4).mean()
        axes.plot(games["step"], mean, color=COLOURS[algorithm], label=f"{algorithm}, mean of {WINDOW} games")
        highest = max(highest, mean.max())
    axes.set(xlabel="environment steps", ylabel="score of a whole game, unclipped", title=title)
    axes.set_ylim(0, 2.5 * highest)  # of single games, which are dots, a few are higher
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=100)


def main() -> None:
    arguments = parser().parse_args()

    arguments.results.mkdir(parents=True, exist_ok=True)
    paths = {name: arguments.results / f"{arguments.name}_{name}.csv" for name in ALGORITHMS}
    env = make_envpool_env(arguments.env, n_envs=128, seed=arguments.seed)
    schedule = LinearSchedule(arguments.learning_rate, 0.0, 1.0)
    model: BaseAlgorithm = ALGORITHMS[arguments.algorithm](env, arguments.seed, schedule)
    model.verbose = 1
    with paths[arguments.algorithm].open("w", newline="") as file:
        try:
            model.learn(SCHEDULE_STEPS, callback=RecordGames(file, arguments.steps), log_interval=20)
        except KeyboardInterrupt:
            print("Stopped early.")
    runs = {name: pd.read_csv(path) for name, path in paths.items() if path.is_file()}
    for name, games in runs.items():
        first, last = games.head(WINDOW), games.tail(WINDOW)
        print(
            f"{name}, {games['step'].iloc[-1]:,} steps: mean score of the first {len(first)} games "
            f"{first['score'].mean():.2f}, of the last {len(last)} {last['score'].mean():.2f}"
        )
    draw(runs, arguments.env, arguments.results / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
