"""README's map of the house is true: every room is in it, and imports only from rooms below."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gptstar"


def floors() -> dict[str, int]:
    """{room: line of the map}; a room is a folder of gptstar/ or a file beside them."""
    block = re.search(r"^## The house\n.*?^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert block is not None
    found = {}
    for n, line in enumerate(block[1].splitlines()):
        if line.startswith("gptstar/"):
            for name in re.match(r"gptstar/\S+(?: \S+\.py)*", line)[0].removeprefix("gptstar/").split():
                found[name.rstrip("/")] = n
    return found


def rooms() -> set[str]:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    return folders | {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}


def imported(file: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it; `if TYPE_CHECKING` too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "gptstar":
            names = [f"gptstar.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if first == "gptstar" and room:
                found.add(room if (PACKAGE / room).is_dir() else f"{room}.py")
    return found & rooms()


def test_every_room_is_on_the_map():
    assert set(floors()) == rooms()


def test_a_room_imports_only_from_below():
    floor = floors()
    for file in PACKAGE.rglob("*.py"):
        own = file.relative_to(PACKAGE).parts[0]
        if own == "__init__.py":  # names everything, and loads it on first use
            continue
        upward = {room for room in imported(file) - {own} if floor[room] < floor[own]}
        assert not upward, f"{file.relative_to(ROOT)} imports from {', '.join(sorted(upward))}, above it"


def test_no_room_is_called_after_nothing():
    assert not {"utils", "util", "common", "helpers", "misc"} & {path.stem for path in PACKAGE.rglob("*")}
