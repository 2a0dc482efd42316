"""Imports point one way: a room takes from those below it alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; rooms of one floor do not know each other.
FLOORS = (
    {"place", "lines", "progress", "compression", "page", "kernels"},
    {"errors"},
    {"files"},
    {"device", "workers", "config"},
    {"parallel", "data"},
    {"mesh", "curation", "launch"},
    {"model", "optim"},
    {"checkpoint"},
    {"exchange"},
    {"training", "inference"},
    {"planning", "evaluation", "serving", "alignment"},
    {"command"},
    {"pretrain", "sft", "reward", "dpo", "generate", "chat", "evaluate", "serve"},
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def rooms() -> dict[str, list[Path]]:
    """The files of each room: a folder or a module of the package, or the kernels."""
    found = {"kernels": list((ROOT / "kernels").rglob("*.py"))}
    for entry in (ROOT / "megatron_lite").iterdir():
        if entry.suffix == ".py" and entry.stem != "__init__":
            found[entry.stem] = [entry]
        elif (entry / "__init__.py").exists():
            found[entry.name] = list(entry.rglob("*.py"))
    return found


def taken(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "megatron_lite":
            names = [f"megatron_lite.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found |= {name.split(".")[1] for name in names if name.startswith("megatron_lite.")}
    return found & FLOOR.keys()


def test_every_room_has_a_floor():
    assert rooms().keys() == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_from_lower_floors_alone(room):
    wrong = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in rooms()[room]
        for other in taken(path) - {room}
        if FLOOR[other] >= FLOOR[room]
    }
    assert not wrong


@pytest.mark.parametrize("room", ["data", "curation"])
def test_data_knows_nothing_of_parallel_training(room):
    below = {"parallel", "mesh", "model", "optim", "kernels", "device"}
    assert not {other for path in rooms()[room] for other in taken(path)} & below
