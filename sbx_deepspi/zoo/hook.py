"""
Adds our algorithms to RL Zoo, but only in programs that import it.

RL Zoo has no plugins. The wheel therefore installs this file in site-packages as ``_sbx_deepspi_zoo_hook``, and beside
it ``sbx_deepspi_zoo.pth``, which makes Python call ``install`` whenever it starts. So that this costs other programs
nothing, this file uses the standard library only, imports nothing that Python has not imported already, and never
raises an exception. The environment variable ``SBX_DEEPSPI_NO_ZOO_HOOK=1`` switches it off.
"""

import os
import sys

TYPE_CHECKING = False  # type checkers know this name; importing ``typing`` would slow down every start of Python
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class ZooFinder:
    """Finds ``rl_zoo3`` as Python's other finders do, and adds our algorithms once ``rl_zoo3`` is imported."""

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
        except Exception:  # RL Zoo is missing or broken: leave the error message to Python's own finders
            return None


def register() -> None:
    """Add our algorithms to RL Zoo. If that fails, print one line and let RL Zoo continue without them."""
    try:
        import sbx_deepspi.zoo.registration  # noqa: F401
    except Exception as error:
        print(f"RL Zoo goes on without sbx-deepspi, which failed to load: {error!r}", file=sys.stderr)


def install() -> None:
    """Call :func:`register` after the next ``import rl_zoo3``, unless the hook is switched off."""
    if ZooFinder not in sys.meta_path and not os.environ.get("SBX_DEEPSPI_NO_ZOO_HOOK"):
        sys.meta_path.insert(0, ZooFinder)
