"""
The models behind the pictures of docs/report.md, and their reports.

    python examples/reports.py FOLDER

trains DeepSPI with a termination model on the confounding grid, with a small categorical latent state, and saves it on
the way, before and after the latent states of the two choice cells have come apart; then on MinAtar's Breakout. What
has been trained is not trained again.
"""

import argparse
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="of the models and their reports")
    return parser


if __name__ == "__main__":
    parser().parse_args()  # --help and mistakes are answered before JAX and PyTorch are imported

from typing import Any

import jax

from sbx_deepspi import CheckpointCallback, DeepSPI, SPICertificateCallback, make_jax_env
from sbx_deepspi.report.make import report

GRID_STEPS, BREAKOUT_STEPS = 102_400, 2_007_040
SAVED = 20_480  # steps of the grid from one file to the next
SHOWN = {"grid": (40_960, GRID_STEPS), "breakout": (BREAKOUT_STEPS,)}


def train(folder: Path, env_id: str, steps: int, save_freq: int, policy: str, n_envs: int, **kwargs: Any) -> None:
    """
    :param folder: gets the files
    :param env_id: of environments inside jit
    :param steps: of all environments together
    :param save_freq: steps from one file to the next
    :param policy: name
    :param n_envs: number of environments
    :param kwargs: of the algorithm
    """
    if (folder / f"rl_model_{steps}_steps.zip").exists():
        return
    env = make_jax_env(env_id, n_envs=n_envs, seed=0)
    model = DeepSPI(policy, env, seed=0, termination_model=True, **kwargs)
    callbacks = [
        CheckpointCallback(save_freq // n_envs, str(folder), keep=100),
        SPICertificateCallback(folder / "certificates.csv"),
    ]
    model.learn(steps, callback=callbacks, progress_bar=True)


def main() -> None:
    folder = parser().parse_args().folder
    train(
        folder / "grid", "ConfoundingGrid", GRID_STEPS, SAVED, "CnnPolicy", 128,
        reward_loss_coef=1.0, transition_loss_coef=0.1,
        policy_kwargs=dict(transition_density="categorical", n_variables=8, n_classes=2),
    )  # fmt: skip
    train(
        folder / "breakout", "gymnax/Breakout-MinAtar", BREAKOUT_STEPS, BREAKOUT_STEPS, "MlpPolicy", 64,
        n_steps=128, batch_size=512, n_epochs=4, ent_coef=0.01, learning_rate=1e-3,
        reward_loss_coef=0.1, transition_loss_coef=0.005,
        policy_kwargs=dict(net_arch=[64], activation_fn=jax.nn.relu, transition_density="deterministic"),
    )  # fmt: skip
    for name, steps in SHOWN.items():
        for at in steps:
            print(report(folder / name / f"rl_model_{at}_steps.zip", None, folder / f"{name}_{at}"))


if __name__ == "__main__":
    main()
