"""Tables for a paper, in LaTeX with booktabs."""

import re
from collections.abc import Sequence

SPECIAL = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    ">": "$>$", "<": "$<$", "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "×": r"$\times$", "ζ": r"$\zeta$", "−": "$-$",
}  # fmt: skip


def escaped(text: str) -> str:
    """
    :param text: plain
    :return: the same for LaTeX; a minus before a number is one
    """
    text = re.sub(r"(?<![\w-])-(?=\d)", "−", text)
    return "".join(SPECIAL.get(character, character) for character in text)


def table(rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """
    :param rows: of cells, the first of which are headings
    :param caption: below it
    :param label: to refer to it
    :return: a floating table
    """
    # square brackets after \\ would be its argument, braces before a cell keep them apart
    lines = [" & ".join("{}" * cell.startswith("[") + escaped(cell) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{label}}}",
            r"\end{table}",
            "",
        ]
    )


def document(tables: Sequence[str]) -> str:
    """
    :param tables: of :func:`table`
    :return: what a file of them holds
    """
    return "\n".join(["% needs \\usepackage{booktabs}", *tables])
