"""
What DreamSPI costs: imagined steps a second, and an iteration beside DeepSPI's.

    python benchmarks/imagination.py

Vectors of 64 and MinAtar's Breakout (64 environments x 128 steps, H = 8), with the deterministic and the mixture
density. In one process, in turn: each round times one call of each, and the table has medians over the rounds, and
over the ratios within a round. The floor is the time that the multiplications of the networks would take at the speed
of one large matrix product, measured in the same round.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="how often each is timed")
    parser.add_argument("--name", default="imagination", help="of the CSV in docs/results")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from sbx_deepspi import DeepSPI, DreamSPI, agent, make_jax_env
from sbx_deepspi.imagination import imagine
from sbx_deepspi.sb3.fused import environments_of

SETTINGS: dict[str, Any] = dict(
    n_steps=128, batch_size=512, n_epochs=4, ent_coef=0.01, reward_loss_coef=0.1, transition_loss_coef=0.005, seed=0
)
DENSITIES = ("deterministic", "mixture")
N_DREAMS, HORIZON = 8192, 8
SIZE = 2048
"""Rows and columns of the matrix product."""


def model_of(algorithm: type[DeepSPI], density: str, **kwargs: Any) -> DeepSPI:
    """
    :param algorithm: a class
    :param density: of the transition model
    :param kwargs: further arguments
    :return: a model whose environments are reset
    """
    env = make_jax_env("gymnax/Breakout-MinAtar", n_envs=64, seed=0)
    networks = dict(net_arch=[64], activation_fn=jax.nn.relu, transition_density=density)
    model = algorithm("MlpPolicy", env, policy_kwargs=networks, **SETTINGS | kwargs)
    model._setup_learn(10**9)
    model._n_collected = model.n_steps * model.n_envs
    return model


def iteration(model: DeepSPI) -> Callable[[], Any]:
    """
    :param model: on environments inside jit
    :return: one whole iteration of it, without a certificate
    """
    state, hyperparameters = jax.device_put((model.state, model.hyperparameters()))
    return partial(
        model.policy.programs.fused_iteration, state, hyperparameters, False,
        environments=environments_of(model.env, model.n_steps), update=type(model).update, projects=False,  # type: ignore[arg-type]
    )  # fmt: skip


def imagination(model: DeepSPI) -> Callable[[], Any]:
    """
    :param model: with a world model
    :return: :data:`N_DREAMS` dreams of :data:`HORIZON` steps
    """
    networks, parameters = model.policy.programs.networks, model.policy.learner.parameters
    normalized = jax.jit(partial(agent.normalized, networks))(parameters)
    latents = jax.random.normal(jax.random.key(0), (N_DREAMS, *networks.latent_shape))
    program = jax.jit(partial(imagine, networks), static_argnames="horizon")
    # what the policy step needs of it
    needed = jax.jit(lambda *arguments: _needed(program(*arguments, horizon=HORIZON, key=jax.random.key(1))))
    return partial(needed, normalized, latents)


def _needed(imagined: Any) -> Any:
    return imagined.replace(next_observations=imagined.next_observations[-1], log_policy=None)


def multiplications(model: DeepSPI) -> int:
    """
    :param model: with dense layers alone
    :return: of one imagined step: all kernels, each once
    """
    parts = {name: part for name, part in model.policy.learner.parameters.items() if name != "encoder"}
    return sum(leaf.size for leaf in jax.tree.leaves(parts) if leaf.ndim == 2)


def main() -> None:
    arguments = parser().parse_args()
    calls: dict[str, Callable[[], Any]] = {}
    sizes: dict[str, int] = {}
    for density in DENSITIES:
        calls[f"deepspi {density}"] = iteration(model_of(DeepSPI, density))
        dreams = model_of(DreamSPI, density, imagination_horizon=HORIZON)
        calls[f"dreamspi {density}"] = iteration(dreams)
        calls[f"imagination {density}"] = imagination(dreams)
        sizes[density] = multiplications(dreams)
    matrix = jax.random.normal(jax.random.key(0), (SIZE, SIZE))
    calls["product"] = partial(jax.jit(jnp.matmul), matrix, matrix)
    rows = []
    for round_ in range(arguments.rounds + 1):
        times = {}
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name] = time.perf_counter() - start
        if round_:  # the first one compiles
            rows.append({"round": round_ - 1, **times})
    times = pd.DataFrame(rows).set_index("round")
    times.to_csv(RESULTS / f"{arguments.name}.csv", float_format="%.5g")
    per_second = SIZE**3 / times["product"]
    print(f"matrix product: {2e-9 * per_second.median():.0f} GFLOP/s")
    for density in DENSITIES:
        ratio = times[f"dreamspi {density}"] / times[f"deepspi {density}"]
        steps = N_DREAMS * HORIZON / times[f"imagination {density}"]
        floor = N_DREAMS * HORIZON * sizes[density] / per_second / times[f"imagination {density}"]
        print(
            f"{density}: an iteration takes {times[f'dreamspi {density}'].median():.3f} s, DeepSPI's "
            f"{times[f'deepspi {density}'].median():.3f} s, ratio {ratio.median():.2f} (from {ratio.min():.2f} to "
            f"{ratio.max():.2f}); imagination makes {steps.median() / 1e3:.0f} thousand steps/s (from "
            f"{steps.min() / 1e3:.0f} to {steps.max() / 1e3:.0f}), {100 * floor.median():.0f} % of that time are its "
            f"{sizes[density] / 1e3:.0f} thousand multiplications a step at the product's speed"
        )


if __name__ == "__main__":
    main()
