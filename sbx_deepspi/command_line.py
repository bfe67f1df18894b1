"""How the programs of this project explain themselves; imports nothing that would make ``--help`` wait."""

import argparse
import textwrap
from pathlib import Path


class HelpFormatter(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal, leaves indented lines as they are, and tells defaults."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        filled = (part if part.startswith(" ") else textwrap.fill(part, width) for part in paragraphs)
        return textwrap.indent("\n\n".join(filled), indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default is None or default is False or default is argparse.SUPPRESS or isinstance(default, Path):
            return action.help
        values = default if isinstance(default, list) else [default]
        # argparse fills in what has a percent sign
        return f"{action.help} (default: {' '.join(map(str, values))})".replace("%", "%%")
