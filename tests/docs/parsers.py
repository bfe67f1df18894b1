"""
Says of each command whether its argument parser takes it: reads a JSON list of commands, prints one of errors.

Every command is begun as Python would begin it, and stopped once its arguments are parsed.
"""

import argparse
import contextlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any


class Taken(Exception):
    """The parser has taken the arguments."""


parse_args = argparse.ArgumentParser.parse_args


def parse_and_stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
    parse_args(parser, *args, **kwargs)
    raise Taken


def error_of(command: list[str]) -> str:
    """
    :param command: of Python: ``-m`` and a module, or a file, and its arguments
    :return: what its parser says against it; empty if nothing
    """
    is_module = command[0] == "-m"
    name, sys.argv = command[is_module], command[is_module:]
    sys.path[0] = "" if is_module else str(Path(name).parent)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            (runpy.run_module if is_module else runpy.run_path)(name, run_name="__main__")
    except Taken:
        return ""
    except SystemExit:
        return said.getvalue()[-1000:]
    except Exception as error:
        return repr(error)
    return "has no parser"


if __name__ == "__main__":
    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[assignment,method-assign]
    print(json.dumps([error_of(command) for command in json.load(sys.stdin)]))
