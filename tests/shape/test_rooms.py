# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package: which may import which, and how long a function may be.

`pytest -s tests/shape/test_rooms.py` prints the order of the rooms, which ARCHITECTURE.md quotes.
"""

from __future__ import annotations

import ast
import re
from importlib.util import resolve_name
from pathlib import Path

from lib.machine import require

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "sandboxlib"
LONGEST = 60  # lines of a function without its docstring: what fits on a screen

#: The rooms that may import very little, and that. All others are held by the order alone.
IMPORTS_ONLY = {
    "errors": set(),
    "_values": {"errors"},
    "_host": {"errors"},
    "_core": {"errors"},
    "_seccomp": {"errors", "_values"},
    "_reapi": {"errors"},
    "_spec": {"errors", "_values", "_reapi", "_seccomp", "_types"},
    "_cgroups": {"errors", "_core", "_host"},
}
#: Modules that are imported by their names: with these `import sandboxlib` has less to do.
EXECUTORS = {"chroot", "linux_user_chroot", "user_namespace", "bubblewrap"}
BY_NAME = {
    "__init__.py": {*EXECUTORS, "api", "compat"},
    "load/__init__.py": set(),  # appc and oci, its own
    "_choice/choose.py": EXECUTORS,
    "api.py": {
        *("_choice.doctor", "_concurrent.aio", "_concurrent.map", "_concurrent.process"),
        *("_digest.action", "_digest.hermetic", "_reproduce.writing"),
        *("_digest.action", "_digest.hermetic", "_changes.changes", "_changes.outputs"),
    },
    "_concurrent/session.py": {
        *("_concurrent.aio", "_concurrent.map", "_concurrent.process"),
        "_concurrent.async_process",
    },
    "_types.py": set(),  # Later, which the two above use
}


def name_of(path: Path) -> str:
    """The dotted name of a module, without the package's; "__init__" is the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of the package that a file imports, inside functions as well. What only type
    checkers import is left out.
    """
    parts = ("sandboxlib", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set(BY_NAME.get(str(path.relative_to(PACKAGE)), ()))
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        todo += ast.iter_child_nodes(node)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            whence = resolve_name("." * node.level + (node.module or ""), ".".join(parts))
            names = [f"{whence}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "sandboxlib":
                found.add(nearest(name.partition(".")[2], modules))
    return found - {name_of(path), "_sandbox"}


def nearest(name: str, modules: set[str]) -> str:
    """The module that a name is, or is defined in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or "__init__"


def graph() -> dict[str, set[str]]:
    """The imports of each module of the package."""
    paths = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    modules = {*paths, "_sandbox"}
    return {name: imported(path, modules) for name, path in paths.items()}


def room_of(module: str) -> str:
    """A folder is a room, and so is a file on top; the executors are one. The programs that
    unpack and read are rooms of their own, in the folders of others.
    """
    for child in ("_images.child", "_changes.child"):
        if module.startswith(child):
            return child.replace(".", "/")
    top = module.split(".")[0]
    return "executors" if top in EXECUTORS else top


def rooms(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports from."""
    found: dict[str, set[str]] = {}
    for name, others in modules.items():
        room = room_of(name)
        found.setdefault(room, set()).update({room_of(other) for other in others} - {room})
    return found


def floors(imports: dict[str, set[str]]) -> list[list[str]]:
    """Each row imports from the rows above it only. AssertionError if there is a circle."""
    rows: list[list[str]] = []
    left = dict(imports)
    while left:
        row = sorted(name for name, others in left.items() if not others & left.keys())
        assert row, f"these import each other in a circle: {sorted(left)}"
        rows.append(row)
        for name in row:
            del left[name]
    return rows


def order() -> str:
    """The rooms, as ARCHITECTURE.md has them."""
    rows = enumerate(floors(rooms(graph())), start=1)
    return "\n".join(f"    {number:2}  {'  '.join(row)}" for number, row in rows)


def test_no_files_import_each_other_in_a_circle() -> None:
    floors(graph())


def test_the_rooms_stand_on_each_other_as_architecture_says() -> None:
    require((TOP / "ARCHITECTURE.md").exists(), "this is not the source tree")
    print(order())
    assert order() in (TOP / "ARCHITECTURE.md").read_text(), f"the order is now\n{order()}"


def test_the_lower_rooms_import_what_is_said_of_them() -> None:
    found = rooms(graph())
    for room, may in IMPORTS_ONLY.items():
        assert found[room] <= may, f"{room} imports {found[room] - may}"


def test_the_program_that_unpacks_imports_its_neighbours_alone() -> None:
    for name, others in graph().items():
        for child in ("_images.child", "_changes.child"):
            if name.startswith(child):
                assert all(other.startswith(child) for other in others), name


def test_modules_are_imported_by_name_where_that_is_said() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"import_module\(|__import__\(| Later\(", path.read_text())
    }
    assert found == set(BY_NAME)


def test_every_function_fits_on_a_screen() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node):
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                assert lines <= LONGEST, f"{path.name}: {node.name} has {lines} lines"
