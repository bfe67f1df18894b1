"""The site builds strictly: no broken link, no missing page, and no code on a page that is gone from the source."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sbx_deepspi
from tests.docs.blocks import ROOT

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")


def test_the_site_builds_strictly_and_says_all(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    site = tmp_path / "site"
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}

    for name in sbx_deepspi.__all__:
        assert f'id="sbx_deepspi.{name}"' in pages["api/index.html"], f"{name} is not on the page of what you import"
    # what docstrings refer to is a link where it is on a page, and a name elsewhere
    assert not [name for name, page in pages.items() if re.search(r":(class|func|meth|mod|data|attr):<", page)]

    # each equation is drawn, and has its code and a link to it
    explained = pages["deepspi.html"]
    assert explained.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') > 8
    assert "$" not in re.sub(r"(?s)<(pre|code|script).*?</\1>", "", explained)
    assert re.search(
        r'<a href="source/sbx_deepspi/losses.py.html#__codelineno-0-\d+"><code>losses.utility</code>', explained
    )
    assert "transition_loss_coef" in explained

    # nothing is fetched from elsewhere
    for name, page in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]*src="?(?:https?:)?//|<link[^>]*stylesheet[^>]*//', page), (
            name
        )

    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    assert any("neighbourhood" in part["text"] for part in found)
    assert not any(part["location"].startswith("source/") for part in found)  # code is not what one searches for


@pytest.fixture
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_on_a_page_is_the_sources_or_the_build_ends(hooks: ModuleType, tmp_path: Path) -> None:
    from mkdocs.exceptions import PluginError

    path = ROOT / "sbx_deepspi" / "losses.py"
    ((line, text),) = hooks.statements(path, "utility", None)
    assert path.read_text().splitlines()[line - 1].strip() == text
    assert text.startswith("return advantages")
    parts = hooks.statements(ROOT / "sbx_deepspi" / "deepspi.py", "complete", ["entropy_loss =", "total ="])
    assert parts[0][1] == "entropy_loss = -policy.entropies.mean()"
    with pytest.raises(PluginError, match="has no futility"):
        hooks.statements(path, "futility", None)
    with pytest.raises(PluginError, match="no statement of utility"):
        hooks.statements(path, "utility", ["disadvantages"])


def test_mathematics_in_code_is_code(hooks: ModuleType) -> None:
    text = "`$x$` and\n\n```bash\necho $HOME $PATH\n```\n\n$y'$"
    drawn = hooks.MATH.sub(hooks.mathematics, text)
    assert drawn.startswith(text.removesuffix("$y'$"))
    assert "<mi>y</mi>" in drawn
