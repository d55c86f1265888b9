"""The examples of docs/adapters.md run as they stand there."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def _libraries(block: str) -> set[str]:
    """The libraries that a block needs, those of bertrt's adapters among them."""
    names = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).removeprefix("bertrt.adapters."))
    tops = {name.split(".")[0] for name in names} - {"bertrt"}
    return {"langchain_core" if name == "langchain" else name for name in tops}


def test_every_adapter_has_an_example() -> None:
    modules = Path(__file__).parents[2].glob("bertrt/adapters/[a-z]*.py")
    names = {path.stem for path in modules} - {"common"}
    assert names == set(re.findall(r"from bertrt\.adapters\.(\w+) import", PAGE))


@pytest.mark.parametrize("block", BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_an_example_runs(block, embedder, reranker, tmp_path, monkeypatch) -> None:
    for name in sorted(_libraries(block)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed here")
    monkeypatch.chdir(tmp_path)
    if "mteb" in _libraries(block):
        import mteb
        from mteb.mocks import MOCK_TASK_REGISTRY

        # In the place of a task whose data would have to be downloaded.
        monkeypatch.setattr(mteb, "get_tasks", lambda names: [MOCK_TASK_REGISTRY["MockSTSTask"]()])
        monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(block, "docs/adapters.md", "exec"), names)
    if "mteb" in names:
        assert names["results"].task_results[0].scores["test"]
    if "best" in names:
        assert names["best"]
