"""The command line: ``python -m sbx_deepspi`` lists the programs there are, ``python -m sbx_deepspi info`` versions."""

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from sbx_deepspi.command_line import HelpFormatter

PROGRAMS = """
Deep SPI for Stable-Baselines3, SBX and RL Zoo. Each of these programs has a --help of its own:

    train    trains with RL Zoo
             python -m rl_zoo3.train --algo deepspi --env CartPole-v1 -P
    report   shows what a model has learned, on one HTML page
             python -m sbx_deepspi.report logs/deepspi/CartPole-v1_1
    suite    trains many games, algorithms and seeds, and compares them
             python -m sbx_deepspi.suite run minatar --seeds 3
    bench    compares the speed with that of SBX and SB3 (in a clone of the
             repository)
             python benchmarks/throughput.py
    info     prints versions and devices, for bug reports
             python -m sbx_deepspi info
"""
PACKAGES = (
    "sbx-deepspi", "jax", "jaxlib", "flax", "optax", "numpy", "stable-baselines3", "sbx-rl", "gymnasium", "torch",
    "rl_zoo3", "envpool", "ale-py", "gymnax", "brax", "craftax", "ray",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser("python -m sbx_deepspi", description=PROGRAMS, formatter_class=HelpFormatter)
    parser.add_argument("info", nargs="?", choices=["info"], help="print versions and devices; otherwise this list")
    return parser


def info() -> Iterator[tuple[str, str]]:
    """
    :return: what a bug report has to say of an installation, name by name
    """
    yield "platform", platform.platform()
    yield "CPUs", str(os.cpu_count())
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    try:
        import jax

        yield "devices", ", ".join(f"{device.platform}: {device.device_kind}" for device in jax.devices())
    except Exception as error:  # whatever is wrong with JAX or a driver is what the report is about
        yield "devices", f"none, {type(error).__name__}: {' '.join(str(error).split())}"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line; ``None``: those of this process
    :return: exit status
    """
    if not parser().parse_args(arguments).info:
        parser().print_help()
        return 0
    # at once: `| head` closes the pipe after its tenth line
    print("\n".join(f"{name:18} {value}" for name, value in info()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
