"""The rooms of the package: what may import what. docs/architecture.md draws the same picture."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Each room, a folder or a module right below bertrt, with the rooms that it may import from. A room
# only names rooms above it in this table, so that no arrow leads back up.
ROOMS = {
    "_native": "",
    "_cuda": "",
    "errors": "",
    "results": "",
    "version": "",
    "vectors": "errors",
    "batch": "errors",
    "host": "errors _native",
    "text": "errors host",
    "plan": "errors host",
    "tasks": "errors results batch text",
    "compiler": "errors plan",
    "models": "errors batch host text plan tasks compiler",
    "backends": "errors version batch host plan models _native _cuda",
    "engine": "errors results batch host text plan tasks models backends",
    "adapters": "errors results host engine",
    "bench": "errors batch host plan models backends engine _native",
    "evaluation": "errors version batch host text plan tasks models backends engine _native",
    "export": "errors host text plan tasks compiler models engine evaluation",
    "serve": "errors results version text engine",
    "ray": "errors results host engine",
    "spark": "errors host engine",
    "commands": "errors results version host tasks models engine bench evaluation export serve",
}
# What is imported, and never imports its way back in: the package's own names, `python -m bertrt`,
# and the places of version 0.1.0 that are still imported from.
FACES = {
    "__init__": "errors results version vectors engine",
    "__main__": "commands",
    "tokenizer": "text",
    "datasets": "evaluation",
}
# Files with more lines than this have a reason here.
MOST_LINES = 500
LONGER: dict[str, str] = {}

ROOT = Path(__file__).parents[2]


def modules(root: Path) -> dict[str, Path]:
    """Every module by its full name; those of export/ are bertrt.export."""
    found = {}
    for top in ("bertrt", "export"):
        for path in (root / top).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            if top == "export":
                parts = ("bertrt", *parts)
            found[".".join(parts)] = path
    return found


def imports(
    name: str, path: Path, known: dict[str, Path], *, spelled: bool = True
) -> Iterator[str]:
    """The modules of bertrt that a module imports, at its top or anywhere in it; with `spelled`
    also those whose names it spells out in a string."""
    package = name.split(".")[:-1]
    here = {*known, "bertrt._native", "bertrt._cuda"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif spelled and isinstance(node, ast.Constant) and isinstance(node.value, str):
            # For importlib, or a table of modules to be imported when they are wanted.
            inner = "." in node.value and {node.value, f"{node.value}.__init__"} & here
            names = [node.value] if inner else []
        else:
            continue
        for found in names:
            if found.split(".")[0] == "export":
                found = f"bertrt.{found}"
            while found and not {found, f"{found}.__init__"} & here:
                found = found.rpartition(".")[0]
            if found:
                yield found if found in here else f"{found}.__init__"


def room(module: str) -> str:
    """The room of a module; a face is its own."""
    return module.split(".")[1]


def wrong_arrows(root: Path) -> list[str]:
    """The imports that the tables above do not allow."""
    known = modules(root)
    wrong = []
    for name, path in sorted(known.items()):
        allowed = {**ROOMS, **FACES}.get(room(name))
        if allowed is None:
            wrong.append(f"{name} is in no room")
            continue
        for target in imports(name, path, known):
            to = room(target)
            if to != room(name) and to not in allowed.split():
                wrong.append(f"{name} imports {target}")
    return wrong


def test_imports_go_one_way() -> None:
    assert wrong_arrows(ROOT) == []


def test_the_table_has_no_arrow_back_up() -> None:
    above: set[str] = set()
    for name, allowed in ROOMS.items():
        assert set(allowed.split()) <= above, name
        above.add(name)


def test_the_table_has_no_arrow_that_nothing_uses() -> None:
    known = modules(ROOT)
    used: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = {room(target) for target in imports(name, path, known)}
        used.setdefault(room(name), set()).update(targets - {room(name)})
    assert used | {"_native": set(), "_cuda": set()} == {
        name: set(allowed.split()) for name, allowed in (ROOMS | FACES).items()
    }


def test_no_module_imports_its_way_back_to_itself() -> None:
    known = modules(ROOT)
    # A table of the backends may spell their modules out, which build on the table's own.
    arrows = {name: set(imports(name, path, known, spelled=False)) for name, path in known.items()}
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name in done:
            return
        for target in arrows.get(name, ()):
            follow(target, (*way, name))
        done.add(name)

    for name in arrows:
        follow(name, ())


@pytest.mark.parametrize(
    ("where", "line", "told"),
    [
        ("bertrt/text/new.py", "from bertrt.tasks.base import Task", "bertrt.tasks.base"),
        ("bertrt/compiler/new.py", "import bertrt.engine", "bertrt.engine.__init__"),
        ("bertrt/plan/new.py", "from bertrt import Engine", "bertrt.__init__"),
        (
            "bertrt/models/new.py",
            "def f():\n    from ..engine import engine",
            "bertrt.engine.engine",
        ),
        (
            "bertrt/host/new.py",
            "if TYPE_CHECKING:\n    from bertrt.models.model import Model",
            "bertrt.models.model",
        ),
        ("bertrt/evaluation/new.py", "from bertrt.export import zoo", "bertrt.export.zoo"),
        ("export/new.py", "from bertrt.commands.main import main", "bertrt.commands.main"),
        ("bertrt/engine/new.py", "from bertrt.bench import run", "bertrt.bench.run"),
        ("bertrt/engine/new.py", "import bertrt.adapters.mteb", "bertrt.adapters.mteb"),
        ("bertrt/text/new.py", "import_module('bertrt.models.model')", "bertrt.models.model"),
        ("bertrt/models/new.py", "from export.zoo import MODELS", "bertrt.export.zoo"),
        ("bertrt/text/new.py", "import bertrt._cuda", "bertrt._cuda"),
    ],
)
def test_an_import_put_the_wrong_way_is_found(tmp_path, where, line, told) -> None:
    for path in modules(ROOT).values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / where).write_text(line + "\n")
    name = ".".join(Path(where).with_suffix("").parts)
    name = name if name.startswith("bertrt") else f"bertrt.{name}"
    assert wrong_arrows(tmp_path) == [f"{name} imports {told}"]


def test_what_serves_a_model_loads_no_compiler(hugging) -> None:
    program = """
import sys, bertrt
bertrt.Engine.load(sys.argv[1]).predict("the boats")
print([name for name in sys.modules if name.startswith("bertrt.compiler")])
"""
    run = subprocess.run(
        [sys.executable, "-c", program, hugging.write()], capture_output=True, text=True
    )
    assert run.stdout == "[]\n", run.stderr


def test_no_framework_is_imported_before_it_is_asked_for() -> None:
    frameworks = {"mxnet", "gluonnlp", "onnx", "onnxruntime", "torch", "transformers", "openvino"}
    for name, path in modules(ROOT).items():
        # Who imports an adapter asks for its library.
        if room(name) == "adapters":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {(node.module or "").split(".")[0]}
            else:
                continue
            assert not found & frameworks, name


def test_a_module_in_no_room_is_found(tmp_path) -> None:
    (tmp_path / "bertrt").mkdir()
    (tmp_path / "bertrt" / "attic.py").write_text("")
    assert wrong_arrows(tmp_path) == ["bertrt.attic is in no room"]


def test_every_folder_is_installed() -> None:
    folders = {
        ".".join(("bertrt", *path.parent.relative_to(ROOT).parts))
        if path.is_relative_to(ROOT / "export")
        else ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("bertrt", "export")
        for path in (ROOT / top).rglob("__init__.py")
    }
    told = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^packages = \[(.*?)\]", told, re.DOTALL | re.MULTILINE)
    assert packages and set(re.findall(r'"([^"]+)"', packages[1])) == folders


def test_no_file_is_long_without_a_reason() -> None:
    files = [*(ROOT / "bertrt").rglob("*.py"), *(ROOT / "export").rglob("*.py")]
    for kind in ("*.h", "*.cpp", "*.cu", "*.cuh"):
        files += (ROOT / "csrc").rglob(kind)
    long = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if len(path.read_bytes().splitlines()) > MOST_LINES
    }
    assert long == LONGER.keys()
