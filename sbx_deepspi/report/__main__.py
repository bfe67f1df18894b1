"""The command line: ``python -m sbx_deepspi.report MODEL.zip``."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sbx_deepspi.command_line import HelpFormatter


def parser() -> argparse.ArgumentParser:
    """
    :return: of the command line
    """
    parser = argparse.ArgumentParser(
        "python -m sbx_deepspi.report",
        description="Plays some episodes and makes one HTML page that shows what a model has learned.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a model's file, or the folder of one of RL Zoo's runs")
    parser.add_argument(
        "--env", metavar="ID", help="of the environment; otherwise the one that the file, or the run's folder, names"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="of the report; otherwise MODEL_report")
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
    from sbx_deepspi.report.make import report
    from sbx_deepspi.saving.format import CheckpointError

    try:
        page = report(given.model, given.env, given.output)
    except (ReportError, CheckpointError, OSError, ImportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"The report is in {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
