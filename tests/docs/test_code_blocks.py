"""
Every code block of the README and of all pages.

Python blocks are compiled, what they import is imported, and their keywords are looked up. The blocks of a page run one
after the other in an empty folder, with the smaller numbers of :data:`tests.docs.blocks.SMALL`, in a test that is slow.
Of bash blocks every command has to be one that we know: the argument parser of a Python program takes it, a script and
a target of make are there, an extra is one of ours.
"""

import ast
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sbx_deepspi.suite import definition
from tests.docs.blocks import BLOCKS, ROOT, STEPS, Block, commands
from tests.jax_envs import needs_gymnax

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"(?m)^([\w./-]+):", (ROOT / "Makefile").read_text())


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_blocks_are_found_and_their_languages_known() -> None:
    assert {block.language for block in BLOCKS} == {"python", "bash", "yaml", "bibtex", ""}
    assert {block.page for block in of("python")} >= {"README.md", "docs/index.md", "docs/deepspi.md"}
    for block in of(""):  # what a program prints
        assert "import " not in block.text and "python " not in block.text, block


def test_commands_are_split_as_bash_does() -> None:
    text = 'a 1  # no\nfor worker in 1 2; do\n  b \\\n  --seed $worker &\ndone\nwait\nX=1 c -c "x; y\nz"  # c; d'
    assert commands(text) == [["a", "1"], ["b", "--seed", "1"], ["c", "-c", "x; y\nz"]]


def test_numbers_become_small() -> None:
    block = Block(
        "", 0, "python", "make(n_envs=128).learn(10_000_000, clip=1_000)\nx.learn(5_000_000 - y.num_timesteps)"
    )
    assert block.small == f"make(n_envs=32).learn({STEPS}, clip={STEPS})\nx.learn({2 * STEPS} - y.num_timesteps)"


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_blocks_name_what_there_is(block: Block) -> None:
    """Also where a block is too slow to be run each time."""
    tree = ast.parse(block.text)
    names: dict[str, Any] = {}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, type_ignores=[]), str(block), "exec"), names)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = call.func
        path = ast.unparse(called).split(".")
        if not isinstance(called, ast.Name | ast.Attribute) or path[0] not in names:
            continue
        target = names[path[0]]
        for part in path[1:]:
            target = getattr(target, part)
        if inspect.isroutine(target) or inspect.isclass(target):
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            try:
                signature = inspect.signature(target)
            except ValueError:  # a builtin
                continue
            signature.bind_partial(**keywords)


def python_pages() -> list[str]:
    return sorted({block.page for block in of("python")})


ATARI = {"README.md", "docs/index.md"}
OF_SEVERAL_DEVICES = {"docs/scaling.md"}  # which need a launcher, and have tests of their own


@pytest.mark.slow
@needs_gymnax
@pytest.mark.parametrize("page", sorted({*python_pages()} - OF_SEVERAL_DEVICES))
def test_python_blocks_run(page: str, tmp_path: Path) -> None:
    """As a reader would, top to bottom in one folder."""
    if page in ATARI:
        pytest.importorskip("envpool")
    blocks = [block for block in of("python") if block.page == page]
    if any("brax/" in block.text for block in blocks):
        pytest.importorskip("brax")
    for i, block in enumerate(blocks):
        (tmp_path / f"block_{i}.py").write_text(block.small)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # the tests' own are for programs that run for an instant
    for i, block in enumerate(blocks):
        process = subprocess.run(
            [sys.executable, f"block_{i}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, f"{block}\n{process.stderr}"


def test_exact_value_of_the_grid_is_the_one_that_its_page_names(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in of("python") if "policy_value" in block.text)
    exec(block.text, {})
    assert capsys.readouterr().out.startswith("4.80")


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_suites_on_pages_are_suites(block: Block, tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text(block.text)
    assert definition.load(tmp_path / "my.yml").games


def extras(words: list[str]) -> set[str]:
    in_brackets = [part for word in words for found in re.findall(r"^\.\[(.+)\]$", word) for part in found.split(",")]
    return {*in_brackets, *(extra for option, extra in itertools.pairwise(words) if option == "--extra")}


def test_bash_blocks_are_commands_that_exist() -> None:
    of_python: dict[str, list[str]] = {}
    for block in of("bash"):
        assert subprocess.run(["bash", "-n"], input=block.text, text=True).returncode == 0, block
        saved = [*re.findall(r"Save this as `(\w+\.py)`", (ROOT / block.page).read_text()), "train.py"]
        for words in commands(block.text):
            command = " ".join(words)
            match words:
                case ["python", "-c", code]:
                    ast.parse(code)
                case ["python", script, *_] if script in saved:
                    pass
                case ["python", *arguments]:
                    of_python[f"{block}: {command}"] = arguments
                case ["make", target, *_]:
                    assert target in TARGETS, f"{block}: {command}"
                case ["pip" | "uv", *_]:
                    assert extras(words) <= EXTRAS.keys(), f"{block}: {command}"
                case ["tensorboard", "--logdir", _] | ["source", ".venv/bin/activate"]:
                    pass
                case _:
                    raise AssertionError(f"{block}: nothing is known of {command}")
    process = subprocess.run(
        [sys.executable, ROOT / "tests" / "docs" / "parsers.py"],
        input=json.dumps(list(of_python.values())), cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    errors = dict(zip(of_python, json.loads(process.stdout.splitlines()[-1]), strict=True))
    assert len(errors) > 40
    assert [f"{command}: {error}" for command, error in errors.items() if error] == []
