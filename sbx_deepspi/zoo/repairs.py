"""Two of RL Zoo's programs that fail as installed, and what makes them work."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def run_enjoy_from_any_folder(call: Callable[..., int]) -> Callable[..., int]:
    """
    ``rl_zoo3.benchmark`` runs ``python enjoy.py``, but only a clone of RL Zoo's repository has that file. Where it does
    not exist, run the module ``rl_zoo3.enjoy`` instead.

    :param call: ``subprocess.call``
    :return: a function that runs this one command differently, and any other as ``call`` does
    """

    def patched_call(command: Any, *args: Any, **kwargs: Any) -> int:
        is_enjoy = isinstance(command, list) and command[:2] == ["python", "enjoy.py"]
        if is_enjoy and not os.path.exists("enjoy.py"):
            command = [sys.executable, "-m", "rl_zoo3.enjoy", *command[2:]]
        return call(command, *args, **kwargs)

    return patched_call


def repair_push_to_hub() -> None:
    """``rl_zoo3.push_to_hub`` imports ``generate_metadata``, which has another name in newer ``huggingface_sb3``."""
    # import_module, because `from huggingface_sb3 import push_to_hub` gives a function of the same name
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *arguments: hub._generate_metadata(*arguments).to_dict()
