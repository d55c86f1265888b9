"""ONNX files of other exporters become bundles that both backends run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bertrt.export import import_graph

from bertrt import Engine
from bertrt.errors import UnsupportedModelError
from bertrt.evaluation.verify import verify

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DIRECTORY = Path(__file__).parents[1] / "data" / "onnx"
TASKS = {
    "script14_fixed": "classification",
    "script14_answering": "question-answering",
    "script14_pretraining": "fill-mask",
    "script14_softmax": "classification",
    "script14_mean": "embedding",
    "dynamo18_tagger": "tagging",
    "dynamo18_ids_only": "embedding",
    "converted_half": "embedding",
    "optimized_half": "embedding",
    "script14_roberta": "embedding",
    "dynamo18_positions": "embedding",
    "dynamo18_discriminator": "tagging",
    "script14_max": "embedding",
}


@pytest.mark.parametrize("name", TASKS)
def test_bundle(tmp_path, name):
    source = DIRECTORY / f"{name}.onnx"
    bundle = import_graph(source, tmp_path / "bundle")
    report = verify(bundle)
    assert report.ok and {check.backend for check in report.checks} == {"native", "onnxruntime"}
    with Engine.load(bundle) as engine, Engine.load(source) as bare:
        assert engine.task == TASKS[name]
        ids = np.arange(3, 11)[None]
        arguments = {"masked_positions": [[2, 5]]} if name == "script14_pretraining" else {}
        found, expected = engine.run(ids, **arguments), bare.run(ids, **arguments)
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array)


def test_weights_are_stored_once(tmp_path):
    bundle = import_graph(DIRECTORY / "script17_classifier.onnx", tmp_path / "bundle")
    with Engine.load(bundle) as engine:
        weights = engine._model.plan().weights
    assert {constant.file.name for constant in weights.values()} == {"model.onnx.data"}
    size = sum(constant.array.nbytes for constant in weights.values())
    assert (bundle / "model.onnx.data").stat().st_size < 1.5 * size


def test_files_of_other_people(data_directory, tmp_path):
    """onnxruntime refuses one of them as it is; its bundle is mended."""
    for number, (name, task) in enumerate(
        (
            ("ort_bert_toy_optimized.opset10", "fill-mask"),
            ("ort_bert_squad_pytorch1.4_opset11_1", "question-answering"),
            ("ort_bert_squad_pytorch1.4_opset11_fp16", "question-answering"),
            ("ort_bert_mrpc_tf2.1_keras2onnx_opset10", "classification"),
        )
    ):
        bundle = import_graph(data_directory / "onnx" / f"{name}.onnx", tmp_path / str(number))
        assert verify(bundle).ok
        with Engine.load(bundle) as engine:
            assert engine.task == task


def test_nothing_is_left_of_what_is_refused(data_directory, tmp_path):
    with pytest.raises(UnsupportedModelError, match="pass embed stopped"):
        import_graph(data_directory / "onnx" / "vespa_dummy_transformer.onnx", tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
