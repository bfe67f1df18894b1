"""
Tell RL Zoo about our algorithms when, and only when, a program imports it.

RL Zoo has no plugins, so the wheel puts this file at the top of site-packages, as ``_sbx_deepspi_zoo_hook``,
beside ``sbx_deepspi_zoo.pth``, which makes every Python start call ``install``. Hence the rules of this file:
the standard library only, no import that Python has not done for itself, and never an exception.
``SBX_DEEPSPI_NO_ZOO_HOOK=1`` switches it off.
"""

import os
import sys

TYPE_CHECKING = False  # importing ``typing`` would cost every start; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class ZooFinder:
    """Finds ``rl_zoo3`` where the other finders do, and registers our algorithms once it is imported."""

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != "rl_zoo3":
            return None
        try:
            specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not cls)
            spec = next(filter(None, specs))
            loader: Any = spec.loader
            exec_module = loader.exec_module

            def exec_then_register(module: "ModuleType") -> None:
                loader.exec_module = exec_module
                exec_module(module)
                register()

            loader.exec_module = exec_then_register
            return spec
        except Exception:  # no RL Zoo, or a broken one: Python's own finders say it best
            return None


def register() -> None:
    """Import ``sbx_deepspi.zoo``, which registers our algorithms; if that fails, RL Zoo goes on without."""
    try:
        import sbx_deepspi.zoo  # noqa: F401
    except Exception as error:
        print(f"RL Zoo goes on without sbx-deepspi, which failed to load: {error!r}", file=sys.stderr)


def install() -> None:
    """Wait for ``import rl_zoo3``, unless the off switch is set."""
    if ZooFinder not in sys.meta_path and not os.environ.get("SBX_DEEPSPI_NO_ZOO_HOOK"):
        sys.meta_path.insert(0, ZooFinder)
