"""Bundles of every class of model from Hugging Face: the bits of the directory, and verified."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from bertrt.export import import_huggingface

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import InvalidInputError, ModelFormatError, OutputExistsError
from bertrt.evaluation.verify import verify
from bertrt.models.bundle import Bundle
from bertrt.models.safetensors import read_safetensors

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "huggingface_reference.json").read_text())
IN_GLUON = ("BertModel", "BertForSequenceClassification")


def write(hugging, architecture: str, config=None, **options) -> Path:
    spec = importlib.util.spec_from_file_location(
        "make_huggingface_reference", DATA / "make_huggingface_reference.py"
    )
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    case = CASES[architecture]
    tensors = {name: reference.draw(name, tuple(shape)) for name, shape in case["tensors"].items()}
    return hugging.write(case["config"] | (config or {}), tensors, **options)


@pytest.mark.parametrize("architecture", CASES)
def test_bundles(hugging, tmp_path, architecture) -> None:
    path = write(hugging, architecture)
    bundle = import_huggingface(path, tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["origin"]["architecture"] == architecture.partition(":")[0]
    (inputs, *_) = (case.inputs for case in Bundle.open(bundle).golden())
    with Engine.load(path) as one, Engine.load(bundle) as other:
        assert (one.task, one.labels, one.max_length) == (
            other.task,
            other.labels,
            other.max_length,
        )
        np.testing.assert_equal(one.run(**inputs), other.run(**inputs))
    report = verify(bundle)
    assert report.ok, report
    assert {check.output for check in report.checks} == set(manifest["outputs"])
    if architecture not in IN_GLUON:
        assert manifest["origin"]["golden"] == "the plan in double precision"
        assert "model-symbol.json" not in manifest["files"]


def test_weights_are_stored_once_and_in_place(hugging, tmp_path) -> None:
    path = write(hugging, "RobertaModel")
    bundle = Bundle.open(import_huggingface(path, tmp_path / "bundle"))
    stored = read_safetensors(bundle.directory / "model.safetensors")
    plan = bundle.plan()
    assert stored.keys() == plan.weights.keys()
    for name, constant in plan.weights.items():
        assert (constant.file, constant.offset) == (stored[name].file, stored[name].offset)
        np.testing.assert_array_equal(constant.array, stored[name].array)
    # The rows before the first position are nobody's.
    assert plan.weights["embeddings.position_embeddings.weight"].array.shape == (12, 12)


def test_other_backends_have_nothing_to_run(hugging, with_mxnet, tmp_path) -> None:
    bundle = import_huggingface(write(hugging, "DistilBertModel"), tmp_path / "bundle")
    pytest.importorskip("onnxruntime")
    for backend in ("onnxruntime", "mxnet") if with_mxnet else ("onnxruntime",):
        with pytest.raises(ModelFormatError, match=r"has no (ONNX graph|MXNet symbol) for"):
            Engine.load(bundle, backend=backend)


def test_a_task_of_several(hugging, tmp_path, capsys) -> None:
    path = str(write(hugging, "BertForMaskedLM"))
    out = str(tmp_path / "bundle")
    assert main(["import", path, "--out", out, "--task", "embedding"]) == 0
    assert Bundle.open(out).manifest["task"] == "embedding"
    assert main(["import", path, "--out", f"{out} 2", "--task", "regression"]) == 1
    assert "a model for fill-mask, embedding" in capsys.readouterr().err
    with pytest.raises(OutputExistsError):
        import_huggingface(path, out, "embedding")


def test_bundles_of_other_files(hugging, tmp_path) -> None:
    """Weights of torch.save, several labels at once, the same name for two, tokens without a row:
    a bundle answers as the directory does."""
    case = CASES["BertForSequenceClassification"]
    path = write(
        hugging,
        "BertForSequenceClassification",
        config={
            "id2label": {"0": "no", "1": "yes", "2": "no"},
            "problem_type": "multi_label_classification",
        },
    )
    weights = read_safetensors(path / "model.safetensors")
    arrays = {name: weights[name].array for name in case["tensors"]}
    hugging.write_torch(path / "pytorch_model.bin", arrays)
    (path / "model.safetensors").unlink()
    (path / "vocab.txt").write_text("\n".join([*hugging.words, *map(str, range(20))]))
    bundle = import_huggingface(path, tmp_path / "bundle")
    assert verify(bundle).ok
    with Engine.load(path) as one, Engine.load(bundle) as other:
        assert one.labels == other.labels == ["no", "yes", "no"]
        assert one.predict(["the boat", "sea 3"]) == other.predict(["the boat", "sea 3"])
        for engine in (one, other):
            with pytest.raises(
                InvalidInputError, match=r"batch\[0\]: the token '12' has the id 23"
            ):
                engine.predict("12 boats")
