"""The house stands: imports never go up, the library does not print, importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import worldmodel

PACKAGE = Path(worldmodel.__file__).parent
GROUND = ["config", "presets", "errors", "storage", "codec", "manifest", "lock", "options",
          "distributions", "returns", "nets", "optim", "randomness"]  # fmt: skip
FLOORS = [GROUND, "envs", "models", "policies", "replay", "agent", "eval", "train", ["cli", "__main__"]]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in ([names] if isinstance(names, str) else names)}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`worldmodel.models.rssm`; packages without `.__init__`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, package: bool) -> Iterator[str]:
    """Full names of what a file imports, at any depth: inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: len(module.split(".")) - node.level + package]
                base = ".".join([*up, base] if base else up)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str | None:
    """The part of the house that a full name belongs to: `nets` of `worldmodel.nets.MLP`; None outside of it."""
    parts = name.split(".")
    return parts[1] if parts[0] == "worldmodel" and len(parts) > 1 else None


def upward(source: str, module: str, package: bool = False) -> list[str]:
    """Imports of a file that go up."""
    own = part_of(module)
    if own is None:
        return []
    targets = {name: part_of(name) for name in imports(ast.parse(source), module, package)}
    return [name for name, part in targets.items() if part in FLOOR and FLOOR[part] > FLOOR[own]]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_never_go_up(path: Path) -> None:
    module = module_of(path)
    assert part_of(module) is None or part_of(module) in FLOOR, f"{module} stands on no floor: add it to FLOORS"
    assert upward(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worldmodel.nets", "from worldmodel.models.base import Batch"),
        ("worldmodel.envs.dream", "def f():\n    from worldmodel import agent"),
        ("worldmodel.eval.real", "import worldmodel.train.loop as loop"),
        ("worldmodel.models.rssm", "from ..policies import actor_critic"),
        ("worldmodel.replay", "if TYPE_CHECKING:\n    from worldmodel.agent import Agent"),
    ],
)
def test_an_import_that_goes_up_would_be_seen(module: str, source: str) -> None:
    assert len(upward(source, module)) == 1
    assert upward("from worldmodel import __version__\nimport torch, worldmodel.errors", module) == []


def test_ground_floor_has_no_cycle() -> None:
    """The ground floor's files may use each other, but in one direction."""
    uses = {}
    for name in GROUND:
        path = PACKAGE / f"{name}.py"
        found = {part_of(target) for target in imports(ast.parse(path.read_text()), f"worldmodel.{name}", False)}
        uses[name] = (found & set(GROUND)) - {name}
    while free := [name for name, needs in uses.items() if not needs & uses.keys()]:
        for name in free:
            del uses[name]
    assert uses == {}


def prints(source: str) -> list[int]:
    """Lines that call `print`."""
    return [node.lineno for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]  # fmt: skip


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "cli.py"], ids=module_of)
def test_the_library_does_not_print(path: Path) -> None:
    assert prints(path.read_text()) == []


def test_a_print_would_be_seen() -> None:
    assert prints("x = 1\nif x:\n    print('hello')\n'print(1)'") == [3]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("worldmodel", ("torch", "numpy", "gymnasium", "tyro", "rich")),
        ("worldmodel.cli", ("torch", "gymnasium", "tyro", "rich")),
        ("worldmodel.options", ("torch", "gymnasium")),
        ("worldmodel.envs", ("torch", "pygame", "Box2D", "cv2")),
    ],
)
def test_importing_is_cheap(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.split() == []
