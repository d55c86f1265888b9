"""Every converter against MXNet's operator, through the ONNX writer and onnxruntime."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from bertrt.compiler.ir import Graph
from bertrt.errors import BertrtError, ModelFormatError, UnsupportedModelError
from bertrt.models.symbol.context import Context
from bertrt.models.symbol.file import SymbolNode
from bertrt.models.symbol.operators import _reshaped
from bertrt.models.symbol.reader import read_mxnet

WIDTH = 12

# x is (batch, sequence, 12) float32, n is the valid length (batch,), w(...) a parameter
OPERATORS = {
    "reshape split": lambda f, x, n, w: f.reshape(x, shape=(0, 0, 3, -1)),
    "reshape split -4": lambda f, x, n, w: f.reshape(x, shape=(0, 0, -4, 3, -1)),
    "reshape split -4 -1": lambda f, x, n, w: f.reshape(x, shape=(0, 0, -4, -1, 4)),
    "reshape merge": lambda f, x, n, w: f.reshape(x, shape=(-3, 0)),
    "reshape merge reversed": lambda f, x, n, w: f.reshape(x, shape=(0, -3), reverse=True),
    "reshape rest": lambda f, x, n, w: f.reshape(x, shape=(0, -2)),
    "reshape rows": lambda f, x, n, w: f.reshape(x, shape=(-1, 0), reverse=True),
    "reshape flat": lambda f, x, n, w: f.reshape(x, shape=(-1,)),
    "reshape heads": lambda f, x, n, w: f.reshape(
        f.reshape(f.transpose(x, axes=(0, 2, 1)), shape=(-3, 0)), shape=(-1, 12, 0), reverse=True
    ),
    "reshape moved": lambda f, x, n, w: f.reshape(
        f.transpose(x, axes=(2, 0, 1)), shape=(-4, 3, 4, 0, 0)
    ),
    "flatten": lambda f, x, n, w: f.Flatten(x),
    "transpose": lambda f, x, n, w: f.transpose(x),
    "transpose axes": lambda f, x, n, w: f.transpose(x, axes=(1, 0, 2)),
    "expand_dims": lambda f, x, n, w: f.expand_dims(x, axis=-1),
    "expand_dims 1": lambda f, x, n, w: f.expand_dims(x, axis=1),
    "broadcast_axis": lambda f, x, n, w: f.broadcast_axis(f.expand_dims(x, axis=1), axis=1, size=3),
    "slice": lambda f, x, n, w: f.slice(x, begin=(None, 1, 2), end=(None, None, -3)),
    "slice first": lambda f, x, n, w: f.slice(x, begin=(0, 0, 0), end=(None, 1, None)),
    "slice nothing": lambda f, x, n, w: f.slice(x, begin=(0,), end=(None,)),
    "concat": lambda f, x, n, w: f.concat(x, x, dim=-1),
    "concat sequence": lambda f, x, n, w: f.concat(x, x, dim=1),
    "stack": lambda f, x, n, w: f.stack(x, x * 2, axis=1),
    "stack last": lambda f, x, n, w: f.stack(x, x, axis=-1),
    "elemwise": lambda f, x, n, w: f.elemwise_mul(x + x, f.elemwise_sub(x, f.tanh(x))),
    "broadcast": lambda f, x, n, w: f.broadcast_div(
        f.broadcast_add(f.broadcast_sub(x, w(12)), w(1, 1, 1)), f.broadcast_mul(w(12), w(1))
    ),
    "scalars": lambda f, x, n, w: ((x + 1.5) * 2 - 0.25) / 4,
    "power": lambda f, x, n, w: x**3,
    "relu": lambda f, x, n, w: f.Activation(x, act_type="relu"),
    "relu operator": lambda f, x, n, w: f.relu(x),
    "sigmoid": lambda f, x, n, w: f.Activation(x, act_type="sigmoid"),
    "tanh": lambda f, x, n, w: f.Activation(x, act_type="tanh"),
    "gelu": lambda f, x, n, w: f.LeakyReLU(x * 3, act_type="gelu"),
    "dropout": lambda f, x, n, w: f.Dropout(x, p=0.9),
    "layer_norm": lambda f, x, n, w: f.LayerNorm(x, w(12), w(12), eps=1e-3),
    "dense": lambda f, x, n, w: f.FullyConnected(x, w(5, 12), w(5), num_hidden=5, flatten=False),
    "dense without bias": lambda f, x, n, w: f.FullyConnected(
        x, w(5, 12), num_hidden=5, flatten=False, no_bias=True
    ),
    "dense flatten": lambda f, x, n, w: f.FullyConnected(
        f.reshape(f.slice(x, begin=(0, 0, 0), end=(None, 1, None)), shape=(0, 0, 3, 4)),
        w(5, 12),
        w(5),
        num_hidden=5,
    ),
    "softmax": lambda f, x, n, w: f.softmax(x * 5),
    "softmax axis": lambda f, x, n, w: f.softmax(x * 5, axis=1),
    "softmax temperature": lambda f, x, n, w: f.softmax(x * 5, temperature=3.0),
    "softmax length": lambda f, x, n, w: f.softmax(
        f.transpose(x, axes=(0, 2, 1)),
        f.cast(f.broadcast_axis(f.reshape(n, shape=(-1, 1)), axis=1, size=12), dtype="int32"),
        use_length=True,
    ),
    "sequence_mask": lambda f, x, n, w: f.SequenceMask(
        f.transpose(x, axes=(1, 0, 2)), n, use_sequence_length=True
    ),
    "sequence_mask axis value": lambda f, x, n, w: f.SequenceMask(
        x, n, use_sequence_length=True, axis=1, value=-7.5
    ),
    "sequence_mask unused": lambda f, x, n, w: f.SequenceMask(x),
    "zeros_like": lambda f, x, n, w: f.concat(f.zeros_like(x), x, dim=0),
    "arange_like": lambda f, x, n, w: f.broadcast_mul(
        x, f.reshape(f.contrib.arange_like(x, axis=1), shape=(1, -1, 1))
    ),
    "shape_array": lambda f, x, n, w: f.shape_array(x),
    "reshape_like": lambda f, x, n, w: f.reshape_like(
        f.reshape(x, shape=(-3, 0)), x, lhs_begin=0, lhs_end=1, rhs_begin=0, rhs_end=2
    ),
    "attention": lambda f, x, n, w: f.contrib.interleaved_matmul_selfatt_valatt(
        f.transpose(x, axes=(1, 0, 2)),
        f.softmax(f.contrib.interleaved_matmul_selfatt_qk(f.transpose(x, axes=(1, 0, 2)), heads=2)),
        heads=2,
    ),
}


@pytest.fixture
def build(tmp_path, recorded, write_params):
    """Makes the symbol of an operator, or takes the recorded one; returns (symbol or None,
    parameters, symbol path, params path)."""

    def make(name, operator):
        symbol = None
        arrays = {}
        rng = np.random.default_rng(0)

        def live():
            import mxnet as mx

            nonlocal symbol

            def weight(*shape):
                name = f"w{len(arrays)}"
                arrays[name] = (rng.normal(size=shape) + 2).astype(np.float32)
                return mx.sym.Variable(name)

            arrays["table"] = rng.normal(size=(9, WIDTH)).astype(np.float32)
            table = mx.sym.Variable("table")
            x = mx.sym.Embedding(mx.sym.Variable("data0"), table, input_dim=9, output_dim=WIDTH)
            symbol = operator(mx.sym, x, mx.sym.Variable("data1"), weight)
            return symbol.tojson()

        paths = tmp_path / "op-symbol.json", tmp_path / "op-0000.params"
        paths[0].write_text(recorded.symbol(f"operator {name}", live))
        values = recorded.arrays(f"operator {name}/parameters", lambda: list(arrays.values()))
        names = ["table", *(f"w{index}" for index in range(1, len(values)))]
        arrays = dict(zip(names, values, strict=True))
        write_params(paths[1], arrays.items())
        return symbol, arrays, *paths

    return make


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(build, recorded, name):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    symbol, arrays, symbol_path, params_path = build(name, OPERATORS[name])
    path = symbol_to_onnx(symbol_path, params_path, symbol_path.parent / "op.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    for shape in ((2, 5), (1, 1), (3, 4)):
        ids = rng.integers(0, 9, shape)
        lengths = np.array([shape[1], 0, 1][: shape[0]])
        feeds = {"token_ids": ids, "valid_length": lengths}

        def live(ids=ids, lengths=lengths):
            import mxnet as mx

            values = {"data0": ids, "data1": lengths, **arrays}
            values = {name: mx.nd.array(values[name]) for name in symbol.list_arguments()}
            return symbol.bind(mx.cpu(), values).forward()[0].asnumpy()

        expected = recorded.array(f"operator {name}/{shape}", live)
        (found,) = session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_every_converter_is_tested(build):
    """The tables above, and the whole models of the parity tests, reach every converter."""
    from bertrt.models.symbol.operators import _CONVERTERS

    reached = {"gather_nd"}  # the language-model decoder
    for name, operator in OPERATORS.items():
        reached |= {
            node["op"] for node in json.loads(build(name, operator)[2].read_text())["nodes"]
        }
    functions = {_CONVERTERS[op][2] for op in reached if op in _CONVERTERS}
    assert functions == {entry[2] for entry in _CONVERTERS.values()}


@pytest.mark.mxnet
def test_reshape_codes_against_mxnet():
    """All short combinations of codes: MXNet's shape, or an error of ours where MXNet refuses."""
    import mxnet as mx

    node = SymbolNode("Reshape", "r", (), {})
    context = Context(Graph("test"), node)
    x = mx.sym.Variable("x")
    agreed = 0
    for shape in ((2, 3, 4), (6,), (4, 6)):
        size = int(np.prod(shape))
        for length in (1, 2, 3):
            for codes in itertools.product((0, -1, -2, -3, 2, 3), repeat=length):
                for reverse in (False, True):
                    try:
                        found = tuple(_reshaped(context, shape, codes, reverse))
                    except BertrtError:
                        continue
                    # Context.reshape refuses the rest.
                    if int(np.prod(found)) == size:
                        y = mx.sym.reshape(x, shape=codes, reverse=reverse)
                        (expected,) = y.infer_shape(x=shape)[1]
                        if int(np.prod(expected)) != size:
                            continue  # it answers nonsense to some pairs of -1 and -2
                        assert found == expected, (shape, codes, reverse)
                        agreed += 1
    assert agreed > 100


REFUSED = {
    "activation": lambda f, x, n, w: f.Activation(x, act_type="softrelu"),
    "leaky": lambda f, x, n, w: f.LeakyReLU(x, act_type="leaky"),
    "norm axis": lambda f, x, n, w: f.LayerNorm(f.transpose(x), w(12), w(12), axis=0),
    "slice step": lambda f, x, n, w: f.slice(
        x, begin=(0, 0, 0), end=(None, None, 9), step=(1, 1, 2)
    ),
    "cast": lambda f, x, n, w: f.cast(x, dtype="uint8"),
    "arange start": lambda f, x, n, w: f.contrib.arange_like(x, start=1, axis=1),
    "unknown operator": lambda f, x, n, w: f.broadcast_maximum(x, w(12)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_not_supported_are_refused(build, name):
    *_, symbol_path, params_path = build(f"refused {name}", REFUSED[name])
    with pytest.raises(UnsupportedModelError, match=r"operator '\w+' at node '\w+'"):
        read_mxnet(symbol_path, params_path)


MISFITS = {
    "inner extent": lambda f, x, n, w: f.FullyConnected(
        x, w(5, 11), w(5), num_hidden=5, flatten=False
    ),
    "bias": lambda f, x, n, w: f.FullyConnected(x, w(5, 12), w(4), num_hidden=5, flatten=False),
    "gamma": lambda f, x, n, w: f.LayerNorm(x, w(11), w(11)),
    "heads": lambda f, x, n, w: f.contrib.interleaved_matmul_selfatt_qk(x, heads=5),
    "broadcast": lambda f, x, n, w: f.broadcast_add(x, w(11)),
    "flatten": lambda f, x, n, w: f.FullyConnected(
        f.slice(x, begin=(0, 0, 0), end=(None, 1, None)), w(5, 24), w(5), num_hidden=5
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_parameters_that_do_not_fit_their_use(build, name):
    *_, symbol_path, params_path = build(f"misfit {name}", MISFITS[name])
    with pytest.raises(ModelFormatError, match="node '"):
        read_mxnet(symbol_path, params_path)
