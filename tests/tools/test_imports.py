"""Imports run downward: what the parts of gradops stand on, read from its sources."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Lowest first; parts of one floor do not know each other. A part is a folder or a file right below gradops.
FLOORS = (
    (
        "_C",
        "_version",
        "figure",
        "grad_values",
        "notebook",
        "numbers",
        "page",
        "reference",
        "torch_before_2_7",
        "update_rule",
    ),
    ("building", "distributed", "stats"),
    ("policies",),
    ("settings",),
    ("settings_text", "backends"),
    ("ops", "one_pass", "env"),
    ("model", "optim"),
    ("shortcuts",),
    ("record", "range_test"),
    ("diagnose",),
    ("picture",),
    ("moved",),
    ("the door",),  # gradops itself
    ("_frameworks",),
    ("accelerate", "fastai", "lightning", "timm", "ultralytics"),
    ("transformers", "bench", "demo"),
    ("profile",),
    ("commands",),  # __main__, and the command.py of each part
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
# Imports upward, inside its functions, for methods that open a report or a picture.
UPWARD = "gradops.shortcuts"


def module_of(path, root):
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    return name.removesuffix(".__init__")


def executed(node):
    """The nodes below this one, without what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield child
            yield from executed(child)


def imported(tree):
    for node in executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(root):
    """The modules of `root`/gradops that each of them imports, at whatever time."""
    trees = {module_of(path, root): ast.parse(path.read_text()) for path in (root / "gradops").rglob("*.py")}
    graph = {"gradops._C": set()}
    for module, tree in trees.items():
        graph[module] = set()
        for name in imported(tree) if module != UPWARD else ():
            while name not in trees and name != "gradops._C" and "." in name:
                name = name.rpartition(".")[0]
            if name.partition(".")[0] == "gradops" and name != module:
                graph[module].add(name)
    return graph


def part_of(module):
    if module in ("gradops.__main__",) or module.endswith(".command"):
        return "commands"
    return module.split(".")[1] if "." in module else "the door"


def upward(graph):
    """Imports that run up, or along a floor, as "from -> to"."""
    arrows = [(module, other) for module, others in graph.items() for other in others]
    return sorted(
        f"{module} -> {other}"
        for module, other in arrows
        if part_of(module) != part_of(other) and FLOOR_OF[part_of(module)] <= FLOOR_OF[part_of(other)]
    )


def test_every_part_stands_on_a_floor():
    assert {part_of(module) for module in import_graph(ROOT)} == FLOOR_OF.keys()


def test_imports_run_downward():
    assert upward(import_graph(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(import_graph(ROOT)).prepare()


@pytest.mark.parametrize(
    ("text", "arrows"),
    [
        ("from gradops.optim import wrap\n", ["gradops.stats -> gradops.optim"]),
        ("def f():\n    import gradops.settings\n", ["gradops.stats -> gradops.settings"]),
        ("from gradops import building\n", ["gradops.stats -> gradops.building"]),
        ("if TYPE_CHECKING:\n    from gradops.optim import wrap\n", []),
        ("from gradops.numbers import number\n", []),
    ],
)
def test_an_arrow_upward_is_seen(text, arrows, tmp_path):
    for name in ("optim/__init__", "settings", "building", "numbers", "stats"):
        path = tmp_path / "gradops" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "gradops" / "stats.py").write_text(text)
    assert [arrow for arrow in upward(import_graph(tmp_path)) if "stats" in arrow] == arrows


def test_a_circle_is_seen(tmp_path):
    (tmp_path / "gradops" / "optim").mkdir(parents=True)
    (tmp_path / "gradops" / "optim" / "a.py").write_text("from gradops.optim import b\n")
    (tmp_path / "gradops" / "optim" / "b.py").write_text("def f():\n    from gradops.optim.a import g\n")
    (tmp_path / "gradops" / "optim" / "__init__.py").write_text("")
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(tmp_path)).prepare()


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "gradops").rglob("*.py") if "csrc" not in path.parts}
    assert [folder.name for folder in folders if not (folder / "__init__.py").exists()] == []
