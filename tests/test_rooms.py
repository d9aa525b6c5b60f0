"""The one-way order of the rooms: each imports only what stands before it."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

GROUND = (
    "files",
    "folders",
    "messages",
    "bounds",
    "recipe",
    "config",
    "checks",
    "distributed",
    "versions",
    "dashboard",
    "command_line",
)
DATA = ("registry", "layouts", "data", "preparation")
MODEL = ("checkpoints", "model", "scans", "prediction")
NETWORK = (*MODEL, "metrics", "results", "reports", "evaluation", "training", "benchmarks")
BEFORE = {room: (*GROUND, *DATA[:i]) for i, room in enumerate(DATA)}
BEFORE |= {room: (*GROUND, *DATA[:3], *NETWORK[:i]) for i, room in enumerate(NETWORK)}
BEFORE |= {
    "files": (),
    "folders": (),
    "messages": (),
    "bounds": (),
    "distributed": ("messages",),
    "versions": (),
    "recipe": (),
    "config": ("recipe",),
    "dashboard": ("files",),
    "checks": ("bounds", "config", "messages", "recipe"),
    "command_line": ("checks", "config", "distributed", "folders", "messages", "recipe"),
    "checkpoints": (*GROUND, "registry"),
    "demo": (*GROUND, *DATA[:3], *MODEL),
}
MODULES = sorted(path for path in (ROOT / "medsam3").rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_before_it(path):
    room = path.relative_to(ROOT / "medsam3").parts[0].removesuffix(".py")
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):  # imports inside functions count too
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medsam3":
            within = node.module.split(".")[1:2]
            modules += within or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("medsam3.")]
    assert set(modules) <= {room, *BEFORE[room]}
