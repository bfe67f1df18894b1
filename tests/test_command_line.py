"""What programs say of themselves: whole, within 80 columns, and without waiting for JAX or PyTorch."""

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sbx_deepspi
from sbx_deepspi import __main__ as command_line
from sbx_deepspi.report.__main__ import parser as report_parser
from sbx_deepspi.suite.__main__ import parser as suite_parser

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "examples")
    for path in (ROOT / folder).glob("*.py")
    if "ArgumentParser" in path.read_text()
)
COMMANDS = (
    ["sbx_deepspi"], ["sbx_deepspi", "--help"], ["sbx_deepspi.report", "--help"], ["sbx_deepspi.suite", "--help"],
    ["sbx_deepspi.suite", "run", "--help"], ["sbx_deepspi.suite", "report", "--help"],
    *([script, "--help"] for script in SCRIPTS),
)  # fmt: skip
# all of them in one process, which ends as soon as one imports what takes long
ASK_ALL = """
import contextlib, io, json, runpy, sys
said = {}
for command in json.loads(sys.argv[1]):
    sys.argv = command
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        (runpy.run_path if command[0].endswith(".py") else runpy.run_module)(command[0], run_name="__main__")
    slow = {"jax", "torch", "matplotlib", "pandas", "ray"} & sys.modules.keys()
    assert not slow, f"{' '.join(command)} has imported {slow}"
    said[" ".join(command)] = output.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """Command → what it prints on a terminal of 80 columns."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK_ALL, json.dumps(COMMANDS)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_help_is_fast_and_fits_80_columns(said: dict[str, str]) -> None:
    assert len(SCRIPTS) >= 14
    for command, text in said.items():
        assert "usage: " in text, command
        assert [line for line in text.splitlines() if len(line) > 80] == [], command


def test_the_list_has_an_example_of_each_program(said: dict[str, str]) -> None:
    modules = "rl_zoo3.train --algo deepspi", "sbx_deepspi.report logs", "sbx_deepspi.suite run", "sbx_deepspi info"
    for example in (*(f"python -m {module}" for module in modules), "python benchmarks/throughput.py"):
        assert f"             {example}" in said["sbx_deepspi"]


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def of_script(path: Path) -> argparse.ArgumentParser:
    """The parser of a script, made without what the script imports behind it."""
    body = ast.parse(path.read_text()).body
    end = next(i for i, node in enumerate(body) if isinstance(node, ast.If))
    names: dict[str, object] = {"__file__": str(path)}
    exec(compile(ast.Module(body[:end], []), str(path), "exec"), names)
    return names["parser"]()  # type: ignore[operator]


def test_every_argument_says_what_it_is() -> None:
    scripts = [of_script(ROOT / script) for script in SCRIPTS]
    for top in (command_line.parser(), report_parser(), suite_parser(), *scripts):
        for parser in parsers(top):
            assert parser.description
            told = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
            assert [action.dest for action in told if not action.help] == [], parser.prog


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "\nNAMES = " in (ROOT / script).read_text()])
def test_names_that_a_program_takes_are_those_that_it_has(script: str) -> None:
    tables: dict[str, ast.expr] = {}
    for node in ast.parse((ROOT / script).read_text()).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                tables[name] = value
    algorithms = tables["ALGORITHMS"]
    assert isinstance(algorithms, ast.Dict)
    known = [ast.literal_eval(key) for key in algorithms.keys if key is not None]
    assert [name for name in ast.literal_eval(tables["NAMES"]) if name != "rejax"] == known


def test_info_has_versions_and_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "PACKAGES", (*command_line.PACKAGES, "no-such-package"))
    assert command_line.main(["info"]) == 0
    told = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["no-such-package"] == "not installed"
    assert told["numpy"][0].isdigit() and told["devices"].startswith(("cpu", "gpu"))


def test_the_public_names_are_those_listed() -> None:
    assert {name for names in sbx_deepspi._MODULES.values() for name in names} == set(sbx_deepspi.__all__)
    assert set(sbx_deepspi.__all__) <= set(dir(sbx_deepspi))
    for name in sbx_deepspi.__all__:
        assert getattr(sbx_deepspi, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'DeepPSI'"):
        sbx_deepspi.DeepPSI  # type: ignore[attr-defined]  # noqa: B018
