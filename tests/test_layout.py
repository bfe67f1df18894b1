"""How the package is laid out: who may import what, and what stays short."""

import ast
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sbx_deepspi"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"  # the public door
}
MODULES = {
    ".".join(("sbx_deepspi", *path.removesuffix(".py").removesuffix("/__init__").split("/"))): path for path in TREES
}


def imports(path: str) -> Iterator[str]:
    """Everything a file imports, wherever in it: modules, and names that may be modules."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The package's module that has the name, or is it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def import_graph(node_of: Callable[[str], str]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        targets = {node_of(found) for name in imports(path) if (found := module_of(name)) is not None}
        graph.setdefault(node_of(module), set()).update(targets - {node_of(module)})
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a circle, or none: what is left after all that imports nothing left is taken away."""
    left = {node: set(targets) for node, targets in graph.items()}
    while ends := {node for node, targets in left.items() if not targets & left.keys()}:
        left = {node: targets for node, targets in left.items() if node not in ends}
    return sorted(left)


def test_circles_are_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    graph = import_graph(lambda module: module)
    assert {"sbx_deepspi.losses", "sbx_deepspi.agent", "sbx_deepspi.segments"} <= graph["sbx_deepspi.deepspi"]


def test_modules_import_in_no_circle() -> None:
    assert circle(import_graph(lambda module: module)) == []


def test_folders_import_in_no_circle() -> None:
    assert circle(import_graph(lambda module: module.split(".")[1])) == []


OUTSIDE = {"stable_baselines3", "sbx", "torch", "gymnasium", "rl_zoo3"}
MAY_IMPORT_THEM = (
    "sb3/", "saving/", "zoo/", "suite/", "envs/", "collect/vec_env.py",
    "report/__main__.py", "report/make.py", "report/environment.py", "report/play.py",
)  # fmt: skip


@pytest.mark.parametrize("path", [path for path in TREES if not path.startswith(MAY_IMPORT_THEM)])
def test_the_algorithm_knows_neither_sb3_nor_torch_nor_gymnasium(path: str) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & OUTSIDE
    # nor by way of a module that does
    ours = (module_of(name) for name in imports(path))
    assert not [MODULES[name] for name in ours if name is not None and MODULES[name].startswith(MAY_IMPORT_THEM)]


def test_types_are_strict_wherever_neither_sb3_nor_gymnasium_is() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["mypy"]
    (relaxed,) = (part for part in settings["overrides"] if part.get("disallow_any_generics") is False)
    assert settings["strict"] is True
    assert set(relaxed["module"]) == {
        "sbx_deepspi." + path.removesuffix(".py").replace("/", ".") + ("*" if path.endswith("/") else "")
        for path in MAY_IMPORT_THEM
    }


def test_no_method_is_called_by_its_name() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "method":
                assert not isinstance(node.value, ast.Constant), f"{path}, line {node.value.lineno}"


def test_the_algorithm_fits_on_a_page_or_two() -> None:
    assert len((PACKAGE / "deepspi.py").read_text().splitlines()) <= 250


def functions(path: str) -> dict[str, set[str]]:
    """The functions and methods of a file by name, with the names of all that it calls."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef):
            calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
            names = {getattr(function, "attr", getattr(function, "id", "")) for function in calls}
            found.setdefault(node.name, set()).update(names)
    return found


@pytest.mark.parametrize("algorithm", ["deepspi.py", "deepmdp.py"])
def test_the_formula_of_a_models_loss_is_three_hops_from_the_objective(algorithm: str) -> None:
    """loss → agent.model_losses → density.loss → losses.transition_loss."""
    assert "model_losses" in functions(algorithm)["loss"]
    assert {"reward_loss", "loss"} <= functions("agent.py")["model_losses"]
    assert "transition_loss" in functions("world_model/densities.py")["loss"]
