"""The plan and the ONNX file compute what Gluon computes."""

from __future__ import annotations

import numpy as np
import pytest

from bertrt.compiler.pipeline import compile_graph
from bertrt.models.onnx.plan import compile_onnx
from bertrt.models.onnx.reader import read_onnx
from bertrt.models.symbol.reader import read_mxnet
from bertrt.plan.interpret import interpret

NETS = {
    "classifier": {"head": "classifier", "layers": 2},
    "regression": {"head": "regression", "dropout": 0.0, "activation": "relu", "eps": 1e-5},
    "approx_gelu": {"activation": "approx_gelu", "layers": 2, "units": 32, "heads": 4},
    "tanh": {"activation": "tanh", "eps": 1e-3},
    "one head": {"heads": 1, "units": 8},
    "bare": {"pooler": False},
    "no types": {"types": False},
    "no lengths": {"valid_length": False, "dropout": 0.0},
    "no lengths, one head": {"valid_length": False, "heads": 1, "units": 8, "pooler": False},
    "next sentence": {"nsp": True},
    "pretraining": {"nsp": True, "decoder": True, "layers": 3, "activation": "relu", "eps": 1e-5},
    "masked words": {"pooler": False, "decoder": True},
    "masked words, no lengths": {"decoder": True, "valid_length": False},
}
OUTPUTS = {
    "classifier": ["logits"],
    "regression": ["logits"],
    "bare": ["sequence_output"],
    "no lengths, one head": ["sequence_output"],
    "next sentence": ["sequence_output", "pooled_output", "next_sentence_classifier_output"],
    "pretraining": [
        "sequence_output",
        "pooled_output",
        "next_sentence_classifier_output",
        "masked_lm_outputs",
    ],
    "masked words": ["sequence_output", "masked_lm_outputs"],
    "masked words, no lengths": ["sequence_output", "pooled_output", "masked_lm_outputs"],
}
BATCHES = [([5, 1, 0, 3, 7], 7), ([1], 1), ([0], 1), ([2, 32], 32), ([4, 4], 4)]


def close(found: np.ndarray, expected: np.ndarray, bound: float) -> None:
    """Within ``bound``, relative to the largest magnitude where that is above 1."""
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    assert np.abs(found - expected).max(initial=0.0) <= bound * scale


def batches(exported, batch):
    for number, (lengths, width) in enumerate(BATCHES):
        inputs = batch(lengths, width, seed=number)
        if "valid_length" not in exported.roles:
            inputs["valid_length"] = np.full(len(lengths), width)
        if 0 in lengths and "masked_positions" in exported.roles:
            continue  # there is no position to ask for
        yield inputs


@pytest.mark.parametrize("name", NETS)
def test_plan_equals_gluon(gluon, batch, name):
    exported = gluon(**NETS[name])
    plan, coverage = compile_graph(read_mxnet(exported.symbol, exported.params))
    assert list(plan.outputs) == OUTPUTS.get(name, ["sequence_output", "pooled_output"])
    assert not coverage.unfused
    kwargs = NETS[name]
    facts = plan.architecture
    assert facts["layers"] == kwargs.get("layers", 1)
    assert facts["heads"] == kwargs.get("heads", 3)
    assert facts["layer_norm_eps"] == kwargs.get("eps", 1e-12)
    assert facts["type_vocab_size"] == (2 if kwargs.get("types", True) else 0)
    gelu = {"gelu": "gelu_erf", "approx_gelu": "gelu_tanh"}
    activation = kwargs.get("activation", "gelu")
    assert facts["activation"] == gelu.get(activation, activation)
    for inputs in batches(exported, batch):
        expected = exported.run(inputs)
        found = interpret(plan, inputs)
        for (output, array), reference in zip(found.items(), expected, strict=True):
            close(array, reference, 5e-6)
            if output == "sequence_output" and "valid_length" in exported.roles:
                padding = np.arange(array.shape[1]) >= inputs["valid_length"][:, None]
                assert np.all(reference[padding] == 0.0)


@pytest.mark.parametrize("name", NETS)
def test_onnx_equals_gluon(gluon, batch, name):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    exported = gluon(**NETS[name])
    path = exported.symbol.parent / "model.onnx"
    assert symbol_to_onnx(exported.symbol, exported.params, path) == path
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == OUTPUTS.get(name, ["sequence_output", "pooled_output"])
    for inputs in batches(exported, batch):
        feeds = {i.name: inputs[i.name].astype(np.int64) for i in session.get_inputs()}
        assert set(feeds) == set(exported.roles)
        for output, array, reference in zip(
            names, session.run(None, feeds), exported.run(inputs), strict=True
        ):
            close(array, reference, 5e-5 if output == "sequence_output" else 2e-5)
            assert np.isfinite(array).all()

    # Both files give one plan, but for the names of inputs and the layout of the folded biases.
    from_symbol, _ = compile_graph(read_mxnet(exported.symbol, exported.params))
    from_onnx, _ = compile_graph(read_onnx(path))
    assert from_onnx.architecture == from_symbol.architecture
    assert from_onnx.outputs == from_symbol.outputs
    for step, other in zip(from_onnx.steps, from_symbol.steps, strict=True):
        assert (step.op, step.name, step.inputs, step.output) == (
            other.op, other.name, other.inputs, other.output
        )  # fmt: skip
        assert step.fields == other.fields | (
            {"bias_layout": "interleaved"} if step.op == "qkv_linear" else {}
        )
        for role, arrays in step.weights.items():
            if role != "bias" or step.op != "qkv_linear":
                assert arrays == other.weights[role]
    inputs = next(batches(exported, batch))
    found, other = interpret(from_onnx, inputs), interpret(from_symbol, inputs)
    for output in found:
        np.testing.assert_array_equal(found[output], other[output])
    # Its weights all lie in files, those of the symbol in the very same place.
    again = type(from_onnx).from_dict(from_onnx.to_dict(path.parent), path.parent)
    for weight, constant in from_onnx.weights.items():
        np.testing.assert_array_equal(again.weights[weight].array, constant.array)
        if weight in from_symbol.weights:
            assert constant.file.samefile(exported.params)
            assert constant.offset == from_symbol.weights[weight].offset


def test_what_every_layer_returns(gluon, batch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    exported = gluon(layers=2, output_attention=True, output_all_encodings=True, dropout=0.0)
    path = exported.symbol.parent / "model.onnx"
    symbol_to_onnx(exported.symbol, exported.params, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = batch([4, 0, 2], 5)
    feeds = {i.name: inputs[i.name] for i in session.get_inputs()}
    expected = exported.run(inputs)
    assert len(expected) == 5
    for array, reference in zip(session.run(None, feeds), expected, strict=True):
        close(array, reference, 5e-5)
    plan, _ = compile_graph(read_mxnet(exported.symbol, exported.params))
    assert plan.rows == {
        "encoding_0": "tokens",
        "sequence_output": "tokens",
        "attention_weights_0": "pairs",
        "attention_weights_1": "pairs",
        "pooled_output": "seqs",
    }
    assert [output.name for output in session.get_outputs()] == list(plan.outputs)
    found = interpret(plan, inputs)
    lengths = inputs["valid_length"].astype(int).tolist()
    for name in ("attention_weights_0", "attention_weights_1"):
        reference = expected[list(plan.outputs).index(name)]
        own = [a[:, :n, :n].transpose(1, 2, 0) for a, n in zip(reference, lengths, strict=True)]
        close(found[name], np.concatenate([a.reshape(-1, 3) for a in own]), 5e-6)
    from_onnx, _ = compile_onnx(path)
    assert [step.name for step in from_onnx.steps] == [step.name for step in plan.steps]
    assert (from_onnx.outputs, from_onnx.rows) == (plan.outputs, plan.rows)


def test_onnx_file_is_small_and_its_size_does_not_grow_with_the_weights(gluon):
    onnx = pytest.importorskip("onnx")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    exported = gluon(head="classifier", layers=12, units=96, heads=12, ffn=384)
    path = symbol_to_onnx(exported.symbol, exported.params, exported.symbol.parent / "model.onnx")
    model = onnx.load(str(path), load_external_data=False)
    assert len(model.graph.node) < 450
    inline = sum(
        len(t.raw_data)
        for t in model.graph.initializer
        if t.data_location != onnx.TensorProto.EXTERNAL
    )
    assert inline < 12 * 3 * 96 * 4 + 1000  # the folded biases, and shapes
    # One mask, shared by all layers
    assert sum(node.op_type == "Less" for node in model.graph.node) == 2
