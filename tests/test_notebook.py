"""The notebook runs from top to bottom, with few steps."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from sbx_deepspi.report import make

NOTEBOOK = Path(__file__).parent.parent / "examples" / "confounding_grid.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert sum("STEPS = 307_200" in source for source in sources) == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make, "N_STEPS", 64)
    names: dict[str, Any] = {"__name__": "__main__"}
    for source in sources:
        exec(compile(source.replace("STEPS = 307_200", "STEPS = 2_048"), str(NOTEBOOK), "exec"), names)
    plt.close("all")
    printed = capsys.readouterr().out
    assert "value of the policy: " in printed and "K_R unbounded" in printed
    assert (tmp_path / "confounding_grid" / "report" / "index.html").is_file()
    # what is committed was printed by a whole run, and is small
    assert all(cell["execution_count"] == place for place, cell in enumerate(cells, start=1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 400_000
