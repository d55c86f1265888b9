"""Every class of model from Hugging Face, against what transformers answers.

The answers are recorded in ``tests/data/huggingface_reference.npz``; where transformers is
installed, it also writes directories of its own, in sizes that are awkward, and answers live.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bertrt import Engine
from bertrt.model import Model

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "huggingface_reference.json").read_text())
# Of a model that predicts masked words
POSITIONS = np.array([[0, 3, 10], [0, 0, 0], [5, 2, 0]])


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_huggingface_reference", DATA / "make_huggingface_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()


def weights(architecture: str) -> dict[str, np.ndarray]:
    tensors = CASES[architecture]["tensors"]
    return {name: reference.draw(name, tuple(shape)) for name, shape in tensors.items()}


def write(hugging, architecture: str, config=None, changes=None, **options) -> Path:
    """The directory of a recorded case, with changes to its configuration and its tensors; a
    tensor that becomes None is left out."""
    tensors = weights(architecture) | (changes or {})
    return hugging.write(
        CASES[architecture]["config"] | (config or {}),
        {name: array for name, array in tensors.items() if array is not None},
        **options,
    )


def run(path: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine answers."""
    with Engine.load(path) as engine:
        limits = Model.open(path).limits
        inputs = dict(batch)
        if limits.type_vocab_size < 2:
            inputs["token_types"] = np.zeros_like(batch["token_ids"])
        if "masked_lm_outputs" in Model.open(path).outputs:
            inputs["masked_positions"] = POSITIONS
        return engine.run(**inputs)


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], batch) -> None:
    """Hold outputs against those of transformers, at every position that is no padding."""
    valid = np.arange(batch["token_ids"].shape[1]) < batch["valid_length"][:, None]
    for name, array in expected.items():
        if name == "masked_lm_outputs":
            array = np.take_along_axis(array, POSITIONS[:, :, None], axis=1)
            rows = found[name]
        elif array.ndim == 3:
            array, rows = array[valid], found[name][valid]
        else:
            rows = found[name]
        assert rows.shape == array.shape
        scale = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(rows / scale, array / scale, atol=2e-5, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "huggingface_reference.npz") as archive:
        return dict(archive)


def answers(recorded: dict[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    return {
        name.partition("/")[2]: array
        for name, array in recorded.items()
        if name.partition("/")[0] == architecture
    }


@pytest.mark.parametrize(
    "architecture", [name for name in CASES if name.endswith(("Model", "SequenceClassification"))]
)
def test_the_numbers_of_transformers(hugging, recorded, architecture) -> None:
    batch = reference.batch(23)
    expected = answers(recorded, architecture)
    assert expected
    check(run(write(hugging, architecture), batch), expected, batch)
