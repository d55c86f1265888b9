"""benchmarks/gpu/tiles.py with kernels that pretend: what it times, and what it says of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu" / "tiles.py"


@pytest.fixture
def tiles() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tiles", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("inputs", [64, 2048])
def test_best_and_chosen(tiles, capsys, inputs):
    asked = []

    def seconds(element, x, weight, name, repeats):
        asked.append((element, x.shape, weight.shape, name, repeats))
        return {"small": 4e-6, "medium": 2e-6, "large": 3e-6, "wide": 1e-6}[name]

    kernels = SimpleNamespace(
        linear_seconds=seconds,
        choose_tiles=lambda element, rows, *shape: "medium" if rows < 100 else "large",
    )
    found = tiles.compare(kernels, 132, (8, inputs), (3, 2000), 7)
    # A deep layer has no wide tiles, and is not asked for them.
    names = ["small", "medium", "large", "wide"][: 4 if inputs == 64 else 3]
    assert asked == [
        ("bf16", (rows, inputs), (8, inputs), name, 7) for rows in (3, 2000) for name in names
    ]
    few, many = (found[f"{rows} x 8 x {inputs}"] for rows in (3, 2000))
    best = "wide" if inputs == 64 else "medium"
    assert few["best"] == many["best"] == best
    assert few["chosen"] == "medium" and many["chosen"] == "large"
    assert few["loses"] == pytest.approx(1.0 if inputs == 64 else 0.0)
    assert many["loses"] == pytest.approx(2.0 if inputs == 64 else 0.5)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all(line.startswith("   ") for line in printed)
    assert f"best {best}" in printed[1] and "chosen large" in printed[1]


def test_shapes_of_a_layer(tiles):
    assert tiles.shapes_of(768) == [(2304, 768), (768, 768), (3072, 768), (768, 3072)]
