"""The walls of the house: arrows point down, no circle, and third parties keep their rooms.

Imports inside functions count too.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "salon"

# What each room may import of ours. A room not named here may import nothing of ours.
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "files": set(),
    "faults": set(),
    "slurm": set(),
    "digests": set(),
    "ranks": set(),
    "job": set(),
    "after": set(),
    "shapes": set(),
    "nn": {"types"},
    "losses": {"types"},
    "diffusion": {"types"},
    "text": {"nn", "types"},
    "data": {"files", "shapes", "types"},
    "metrics": {"digests", "shapes", "text", "types"},
    "models": {"losses", "diffusion", "nn", "shapes", "text", "types"},
    "pictures": {"metrics"},
    "versions": {"salon"},
    "jury": {"files", "metrics", "models", "ranks", "shapes", "text", "types"},
    "callbacks": {"files", "jury", "models", "metrics", "pictures", "ranks", "slurm", "versions"},
    "config": {"job"},
    "checkpoint": {"config", "digests", "models"},
    "parallel": {"models"},
    "stages": {"checkpoint", "config", "job", "parallel", "ranks"},
    "precompute": {"checkpoint", "data", "files", "models", "types"},
    "doors": {"config", "slurm"},
    "checks": {"config", "models", "parallel"},
    "run": {
        "callbacks", "checkpoint", "checks", "config", "faults", "files", "models", "parallel",
        "precompute", "ranks", "stages",
    },
    "rank": set(),  # a door
    "multirun": {
        "callbacks", "checkpoint", "checks", "config", "files", "parallel", "ranks", "run",
        "stages",
    },
    "search": {
        "after", "callbacks", "checks", "config", "files", "jury", "multirun", "run", "stages",
    },
    "interpolate": {"models", "text", "types"},
    "draw": {"checkpoint", "config", "interpolate", "models", "pictures", "salon"},
    "salon": set(),
    "benchmark": set(),  # a door
}  # fmt: skip
# Doors join everything, and nothing imports them.
DOORS = {
    "salon.benchmark", "salon.rank", "salon.jury.evaluate", "salon.jury.publish",
    "salon.jury.__main__", "salon.data.__main__", "salon.search.__main__",
}  # fmt: skip
THIRD_PARTIES: dict[str, set[str]] = {
    "hydra": {"doors", "job", "multirun", "search", "stages"},
    "omegaconf": {
        "checks", "config", "doors", "draw", "multirun", "parallel", "run", "search", "stages",
    },
    "optuna": {"callbacks", "search"},
    "wandb": {"callbacks"},
    "webdataset": {"data"},
    "open_clip": {"text", "metrics"},
    "torchmetrics": {"losses", "metrics"},
    "diffusers": set(),
    "transformers": set(),
}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = ("salon", *path.relative_to(SRC).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it; a module by its name, not its package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow points"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("module", sorted(set(MODULES) - DOORS))
def test_arrows_point_down(module: str) -> None:
    here = room(module)
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] == "salon"}
    assert not ours & DOORS, f"{module} imports a door"
    above = {name for name in ours if room(name) not in ROOMS[here] | {here}}
    assert not above, f"{module} may import {sorted(ROOMS[here])}, not {sorted(above)}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - DOORS))
def test_third_parties_keep_their_rooms(module: str) -> None:
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    for party, rooms in THIRD_PARTIES.items():
        assert party not in tops or room(module) in rooms, f"{module} imports {party}"


def test_a_family_imports_no_family() -> None:
    shared = {f"salon.models{part}" for part in ("", ".base", ".schedules", ".adversarial")}
    for module, path in MODULES.items():
        if room(module) == "models":
            families = {n for n in imports(path) if room(n) == "models" and n.startswith("salon.")}
            assert families <= shared, f"{module} imports {sorted(families - shared)}"


def test_no_circles() -> None:
    ours = {m: {n for n in imports(p) if n in MODULES and n != m} for m, p in MODULES.items()}
    TopologicalSorter(ours).prepare()  # raises CycleError


def test_every_room_is_known() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)
    assert set(MODULES) >= DOORS


def test_files_have_their_size() -> None:
    long = {m: n for m, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 430}
    assert not long
