"""A report, from a model's file to its page."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from sbx_deepspi.report import certificates, page, sections
from sbx_deepspi.report.environment import ReportError, drawing_of, model_file, open_model
from sbx_deepspi.report.play import play

N_ENVS, N_STEPS, SEED = 4, 512, 0


def report(path: Path, env_id: str | None, output: Path | None) -> Path:
    """
    :param path: of a model's file, or of the folder of one of RL Zoo's runs
    :param env_id: of the environment; ``None``: what the file says
    :param output: folder of the report; ``None``: ``<model>_report`` in the present folder
    :return: path of the page
    """
    model, env_id = open_model(path, env_id, N_ENVS, SEED)
    folder = output or Path(f"{path.stem if path.is_file() else path.name}_report")
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"The report goes into a folder, but {folder} is a file: name another with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)
    with jax.default_device(model.jax_device):
        with tqdm(total=N_STEPS, desc="playing", unit="step") as bar:
            played = play(model, N_STEPS, SEED, bar.update)
        with tqdm(total=10, desc="measuring", bar_format="{l_bar}{bar}| {elapsed}") as bar:
            subject = sections.Subject.of(
                model.policy.programs.networks,
                model.policy.learner.parameters,
                played,
                reward_scale=float(model.rewards.scale),
                gamma=model.gamma,
                draw=drawing_of(model.observation_space),
            )
            bar.update()
            imagined = sections.Imagined.of(subject, generator)
            bar.update()
            todo: list[Callable[[], page.Section]] = [
                lambda: sections.rewards(subject),
                lambda: sections.ends(subject),
                lambda: sections.open_loop(subject, imagined, generator),
                lambda: sections.returns(subject, generator),
                lambda: sections.dreams(subject, imagined),
                lambda: sections.latent_space(subject, generator),
                lambda: sections.lipschitz(subject, generator),
                lambda: sections.certified(
                    certificates.find(model_file(path).parent, model.num_timesteps), model.num_timesteps, model.gamma
                ),
            ]
            made = []
            for make in todo:
                made.append(make())
                bar.update()
    n_ended = int(played.dones.sum())
    summary = (
        f"{path.name}, after {model.num_timesteps:,} steps of training. Played: {played.rewards.size:,} steps in "
        f"{N_ENVS} environments, in which {n_ended} episodes ended; the mean reward of a step, as the algorithm sees "
        f"it, was {played.rewards.mean():.3g}."
    )
    return page.write(folder, f"{type(model).__name__} on {env_id}", summary, made)
