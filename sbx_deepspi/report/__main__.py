"""The command line: ``python -m sbx_deepspi.report MODEL.zip``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

N_ENVS, N_STEPS, SEED = 4, 512, 0


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser("python -m sbx_deepspi.report", description="Shows what a model has learned.")
    parser.add_argument("model", type=Path, help="a model's file, or the folder of one of RL Zoo's runs")
    parser.add_argument("--env", help="id of the environment, where the file does not say it")
    parser.add_argument("-o", "--output", type=Path, help="folder of the report; otherwise <model>_report")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line; ``None``: those of this process
    :return: exit status: 1 where there is no report, and a sentence on stderr says why
    """
    given = parser().parse_args(arguments)
    missing = [package for package in ("jinja2", "matplotlib") if find_spec(package) is None]
    if missing:
        print(f"The report needs {' and '.join(missing)}: pip install 'sbx-deepspi[report]'.", file=sys.stderr)
        return 1
    from sbx_deepspi.report.environment import ReportError
    from sbx_deepspi.saving.format import CheckpointError

    try:
        page = report(given.model, given.env, given.output)
    except (ReportError, CheckpointError, OSError, ImportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"The report is in {page}")
    return 0


def report(path: Path, env_id: str | None, output: Path | None) -> Path:
    """
    :param path: of a model's file, or of the folder of one of RL Zoo's runs
    :param env_id: of the environment; ``None``: what the file says
    :param output: folder of the report; ``None``: ``<model>_report`` in the present folder
    :return: path of the page
    """
    import jax
    import numpy as np
    from tqdm import tqdm

    from sbx_deepspi.report import certificates, page, sections
    from sbx_deepspi.report.environment import ReportError, drawing_of, model_file, open_model
    from sbx_deepspi.report.play import play

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


if __name__ == "__main__":
    sys.exit(main())
