"""A suite that is trained in seconds."""

from pathlib import Path
from typing import Any

import yaml

TINY: dict[str, Any] = {
    "title": "a suite for tests",
    "n_timesteps": 6_400,
    "seeds_at_once": 2,
    "seconds_between_checkpoints": 1,
    "hyperparams": {
        "policy": "MlpPolicy", "n_envs": 4, "n_steps": 8, "batch_size": 32, "n_epochs": 1, "learning_rate": "lin_1e-3",
        "policy_kwargs": "dict(net_arch=[8])", "clip_range": 0.2, "normalize": False,
    },
    "algorithms": {"broken": {"algo": "deepspi", "hyperparams": {"n_steps": -1}}},
    "games": {"gymnax/CartPole-v1": {"low": 20, "high": 500}},
}  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    """
    :param path: of the suite's file
    :param changes: of the tiny suite
    :return: the path
    """
    path.write_text(yaml.safe_dump(TINY | changes))
    return path
