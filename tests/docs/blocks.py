"""The code blocks of the README and of all pages."""

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?ms)^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$")

COMMENT = re.compile(r"(?m)(?P<quoted>\"[^\"]*\"|'[^']*')|(?:^|(?<=\s))#.*$")

STEPS = 1024
SMALL = [
    (re.compile(r"n_envs=(\d{3,})"), "n_envs=32"),
    (re.compile(r"[\d_]+(?= - \w+\.num_timesteps)"), str(2 * STEPS)),  # where training goes on
    (re.compile(r"(?<![\w.])\d{1,3}(?:_000)+(?![\w.])"), str(STEPS)),  # 10_000_000
    (re.compile(r"n_eval_episodes=\d+"), "n_eval_episodes=1"),
]
"""What is made smaller before a Python block is run: environments, steps, and episodes of an evaluation."""


@dataclass(frozen=True)
class Block:
    """
    A block of code.

    :param page: of the repository
    :param line: where it begins
    :param language: as it is marked; empty where it is not
    :param text: without its margin
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def small(self) -> str:
        """
        :return: the text with smaller numbers, see :data:`SMALL`
        """
        text = self.text
        for pattern, number in SMALL:
            text = pattern.sub(number, text)
        return text


def blocks_of(page: Path) -> list[Block]:
    """
    :param page: a Markdown file
    :return: its blocks
    """
    source = page.read_text()
    return [
        Block(
            page.relative_to(ROOT).as_posix(),
            source[: match.start()].count("\n") + 1,
            match["language"],
            re.sub(rf"(?m)^{match['indent']}", "", match["text"]),
        )
        for match in FENCE.finditer(source)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands(text: str) -> list[list[str]]:
    """
    :param text: of a bash block
    :return: the words of each command, without comments, loops' heads, and what comes before the command itself
    """
    text = COMMENT.sub(lambda match: match["quoted"] or "", text)
    lexer = shlex.shlex(text.replace("\\\n", " ").replace("$worker", "1"), posix=True, punctuation_chars=";&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&\n"):
            found.append([])
        else:
            found[-1].append(word)
    bare = [list(itertools.dropwhile(is_before_a_command, words)) for words in found]
    return [words for words in bare if words and words[0] not in ("for", "done", "wait", "export")]


def is_before_a_command(word: str) -> bool:
    """
    :param word: of a line of bash
    :return: whether it only says how the command that follows is run
    """
    return word in ("do", "srun") or re.match(r"[A-Z_]+=", word) is not None
