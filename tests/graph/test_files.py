"""Broken files: every kind of damage is an error of bertrt's own, and says where."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest

from bertrt import Engine
from bertrt.compiler.pipeline import compile_graph
from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.models.symbol.params import read_params, write_params
from bertrt.models.symbol.reader import read_mxnet


def ndarray(
    array: np.ndarray, flag: int = 0, magic: int = 0xF993FAC9, storage: int | None = 0
) -> bytes:
    """One record of a .params file."""
    head = struct.pack("<I", magic)
    if storage is not None:
        head += struct.pack("<i", storage)
    head += struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape)
    return head + struct.pack("<iii", 1, 0, flag) + array.tobytes()


def params_file(records: list[bytes], names: list[bytes], magic: int = 0x112) -> bytes:
    data = struct.pack("<QQQ", magic, 0, len(records)) + b"".join(records)
    data += struct.pack("<Q", len(names))
    return data + b"".join(struct.pack("<Q", len(name)) + name for name in names)


A = np.arange(6, dtype="<f4").reshape(2, 3)


# .params


@pytest.mark.mxnet
def test_params_against_mxnet(tmp_path):
    import mxnet as mx

    path = tmp_path / "x.params"
    rng = np.random.default_rng(0)
    arrays = {
        "arg:a": mx.nd.array(rng.normal(size=(3, 5))),
        "aux:b": mx.nd.array(rng.integers(0, 9, 7), dtype="int8"),  # shifts what follows it
        "c": mx.nd.array(rng.normal(size=(2, 1, 2)), dtype="float16"),
        "d": mx.nd.array([1, 2], dtype="int64"),
        "e": mx.nd.array([[1.5]], dtype="float64"),
    }
    mx.nd.save(str(path), arrays)
    constants = read_params(path)
    assert list(constants) == ["a", "b", "c", "d", "e"]
    raw = path.read_bytes()
    for (name, expected), constant in zip(arrays.items(), constants.values(), strict=True):
        assert constant.name == name.split(":")[-1]
        np.testing.assert_array_equal(constant.array, expected.asnumpy())
        assert constant.array.dtype == expected.asnumpy().dtype
        assert constant.array.flags.aligned and not constant.array.flags.writeable
        assert raw[constant.offset :].startswith(constant.array.tobytes())


@pytest.mark.mxnet
def test_params_written_as_mxnet_writes_them(tmp_path):
    mx = pytest.importorskip("mxnet")
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 5)).astype("f4"), "b": np.array([1, 2], np.int64)}
    own, theirs = tmp_path / "own.params", tmp_path / "theirs.params"
    write_params(own, arrays)
    mx.nd.save(str(theirs), {f"arg:{k}": mx.nd.array(v, dtype=v.dtype) for k, v in arrays.items()})
    assert own.read_bytes() == theirs.read_bytes()


@pytest.mark.mxnet
def test_half_precision_of_a_symbol_is_widened(gluon, batch):
    """A file that was halved, and a net that was cast on a GPU: its symbol says so, too."""
    mx = pytest.importorskip("mxnet")
    exported = gluon(head="classifier")
    inputs = {role: batch([9, 4], 9)[role] for role in exported.roles}
    arrays = mx.nd.load(str(exported.params))
    halved = {name: array.astype("float16") for name, array in arrays.items()}
    mx.nd.save(str(exported.params), halved)
    content = json.loads(exported.symbol.read_text())
    for node in content["nodes"]:
        attrs = node.get("attrs", {})
        attrs |= {"__dtype__": "2"} if "__dtype__" in attrs else {}
        attrs |= {"dtype": "float16"} if attrs.get("dtype") == "float32" else {}
    exported.symbol.write_text(json.dumps(content))
    with Engine.load(exported.symbol) as engine:
        (found,) = engine.run(**inputs).values()
        for constant in engine._model.plan().weights.values():
            assert constant.array.dtype == np.float32
    for name, parameter in exported.net.collect_params().items():
        parameter.set_data(halved[f"arg:{name}"].astype("float32"))
    (expected,) = exported.run(inputs)
    assert np.abs(found - expected).max() < 2e-5


@pytest.mark.parametrize("magic, storage", [(0xF993FAC8, None), (0xF993FAC9, 0), (0xF993FACA, 0)])
def test_params_versions(tmp_path, magic, storage):
    path = tmp_path / "x.params"
    path.write_bytes(params_file([ndarray(A, 0, magic, storage)], [b"arg:w"]))
    np.testing.assert_array_equal(read_params(path)["w"].array, A)


PARAMS = {
    "empty": (b"", "cannot be read: it is empty"),
    "magic": (params_file([], [], 0x113), "magic number 0x113"),
    "header": (b"\x12\x01", "truncated or damaged: the header"),
    "count": (struct.pack("<QQQ", 0x112, 0, 1 << 62), "arrays announced in a file of 24 bytes"),
    "array magic": (params_file([ndarray(A, magic=7)], [b"w"]), "array 0.*magic number 0x7"),
    "element type": (params_file([ndarray(A, flag=99)], [b"w"]), "unknown element type 99"),
    "storage": (params_file([ndarray(A, storage=9)], [b"w"]), "unknown storage type 9"),
    "names missing": (params_file([ndarray(A)], []), "0 names for 1 arrays"),
    "name twice": (params_file([ndarray(A)] * 2, [b"arg:w", b"w"]), "name 1 is 'w'"),
    "name not text": (params_file([ndarray(A)], [b"\xff\xfe"]), "not UTF-8"),
    "name empty": (params_file([ndarray(A)], [b"arg:"]), "name 0 is ''"),
    "rest": (params_file([ndarray(A)], [b"w"]) + b"!", "1 bytes after the last name"),
    "no rank": (params_file([ndarray(np.float32(1).reshape(()))], [b"w"]), "rank 0"),
    "huge": (
        params_file(
            [struct.pack("<Iii2q", 0xF993FAC9, 0, 2, 1 << 40, 1 << 40) + bytes(12)], [b"w"]),
        r"array 0 has shape \(1099511627776, 1099511627776\)",
    ),
    "huge beside zero": (
        params_file(
            [struct.pack("<Iii3q", 0xF993FAC9, 0, 3, 0, 1 << 62, 1 << 62) + bytes(12)], [b"w"]),
        r"array 0 has shape \(0, ",
    ),
    "long": (
        params_file([struct.pack("<Iii1q", 0xF993FAC9, 0, 1, 1 << 40) + bytes(12)], [b"w"]),
        "truncated or damaged: the data of array 0",
    ),
    "negative": (
        params_file([struct.pack("<Iii1q", 0xF993FAC9, 0, 1, -4) + bytes(12)], [b"w"]),
        r"shape \(-4,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMS)
def test_broken_params(tmp_path, name):
    data, message = PARAMS[name]
    path = tmp_path / "broken.params"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_params(path)
    assert "broken.params" in str(caught.value)


def test_sparse_and_missing_params(tmp_path):
    path = tmp_path / "x.params"
    with pytest.raises(MissingFileError, match="no such file"):
        read_params(path)
    path.write_bytes(params_file([ndarray(A, storage=1)], [b"w"]))
    with pytest.raises(UnsupportedModelError, match="array 0 is sparse"):
        read_params(path)


def test_params_cut_or_flipped_anywhere(tmp_path):
    """At every byte: an error of ours, or the same number of arrays."""
    data = params_file([ndarray(A), ndarray(A[0])], [b"arg:weight", b"aux:bias"])
    path = tmp_path / "x.params"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError):
            read_params(path)
    for index in range(len(data)):
        for bit in (0x01, 0x80, 0xFF):
            path.write_bytes(data[:index] + bytes([data[index] ^ bit]) + data[index + 1 :])
            with contextlib.suppress(ModelFormatError):
                assert len(read_params(path)) == 2


# Symbols: a tiny one that needs no MXNet


def tiny(tmp_path, **changes):
    """token ids -> Embedding -> FullyConnected; returns (content, params path)."""
    table, weight = np.ones((5, 3), "<f4"), np.ones((2, 3), "<f4")
    params = tmp_path / "tiny-0000.params"
    params.write_bytes(params_file([ndarray(table), ndarray(weight)], [b"arg:table", b"arg:w"]))
    nodes = [
        {"op": "null", "name": "data0", "inputs": []},
        {"op": "null", "name": "table", "inputs": [], "attrs": {"__shape__": "(5, 0)"}},
        {
            "op": "Embedding",
            "name": "embed",
            "inputs": [[0, 0, 0], [1, 0, 0]],
            "attrs": {"input_dim": "5", "output_dim": "3"},
        },
        {"op": "null", "name": "w", "inputs": []},
        {
            "op": "FullyConnected",
            "name": "dense",
            "inputs": [[2, 0, 0], [3, 0, 0]],
            "attrs": {"num_hidden": "2", "no_bias": "True", "flatten": "False"},
        },
    ]
    return {"nodes": nodes, "arg_nodes": [0, 1, 3], "heads": [[4, 0, 0]]}, params


def read(tmp_path, content, params):
    path = tmp_path / "tiny-symbol.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_mxnet(path, params)


def test_tiny_symbol_is_read(tmp_path):
    content, params = tiny(tmp_path)
    graph = read(tmp_path, content, params)
    assert [node.op for node in graph.nodes.values()] == ["Gather", "Transpose", "MatMul"]
    assert graph.inputs == ["token_ids"] and graph.sources == {"token_ids": "data0"}
    assert graph.shape(graph.outputs["dense"]) == ("batch", "sequence", 2)


def test_operations_may_share_a_name(tmp_path):
    content, params = tiny(tmp_path)
    content["nodes"][4]["name"] = "embed"
    graph = read(tmp_path, content, params)
    assert [node.op for node in graph.nodes.values()] == ["Gather", "Transpose", "MatMul"]
    assert graph.shape(*graph.outputs.values()) == ("batch", "sequence", 2)


@pytest.mark.parametrize("key", ["attr", "param"])
def test_older_attribute_keys(tmp_path, key):
    content, params = tiny(tmp_path)
    for node in content["nodes"]:
        node["inputs"] = [i[:2] for i in node["inputs"]]
        if "attrs" in node:
            node[key] = node.pop("attrs")
    assert len(read(tmp_path, content, params).nodes) == 3


def node(index: int, **changes):
    return lambda c: c["nodes"][index].update(changes)


SYMBOLS = {
    "no nodes": (lambda c: c.pop("nodes"), "no list of nodes"),
    "nodes empty": (lambda c: c["nodes"].clear(), "list of heads"),
    "no heads": (lambda c: c.pop("heads"), "list of heads"),
    "heads empty": (lambda c: c["heads"].clear(), "no outputs"),
    "head out of range": (lambda c: c.update(heads=[[9, 0, 0]]), "node 9.*5 nodes"),
    "no name": (lambda c: c["nodes"][4].pop("name"), "node 4 has no operator or no name"),
    "name twice": (node(3, name="table"), "two nodes are called 'table'"),
    "forward reference": (node(2, inputs=[[4, 0, 0], [1, 0, 0]]), "'embed' refers to .* node 4"),
    "cycle": (node(2, inputs=[[2, 0, 0], [1, 0, 0]]), "'embed' refers to .* node 2"),
    "negative reference": (node(2, inputs=[[-1, 0, 0], [1, 0, 0]]), "node -1"),
    "no such output": (node(4, inputs=[[2, 1, 0], [3, 0, 0]]), "output 1 of node 'embed'"),
    "inputs of another kind": (node(2, inputs=["data0", "table"]), "'embed' holds 'data0'"),
    "too few inputs": (node(2, inputs=[[0, 0, 0]]), "'embed'.*1 inputs, expected 2"),
    "no list of inputs": (node(2, inputs=3), "'embed' has no list of inputs"),
    "attributes no table": (node(2, attrs=[1]), "'embed'.*not a table of strings"),
    "attribute missing": (node(4, attrs={"flatten": "False", "no_bias": "True"}),
                          "'dense'.*'num_hidden' is None"),
    "attribute no number": (node(4, attrs={"num_hidden": "two(", "no_bias": "True"}),
                            "'num_hidden' is 'two"),
    "attribute too large": (node(4, attrs={"num_hidden": str(10**30), "no_bias": "True"}),
                            "'num_hidden' is '1000"),
    "parameter missing": (node(1, name="lost"), "no array for parameter 'lost'"),
    "parameter of other shape": (node(1, attrs={"__shape__": "(5, 4)"}),
                                 r"'table' has shape \(5, 3\).*\(5, 4\)"),
    "parameter against its use": (node(4, inputs=[[2, 0, 0], [1, 0, 0]], attrs={
        "num_hidden": "2", "no_bias": "True"}), "'dense'.*num_hidden is 2.*float32.5, 3."),
    "table of other width": (node(2, attrs={"input_dim": "5", "output_dim": "4"}),
                             "'embed'.*output_dim is 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", SYMBOLS)
def test_broken_symbols(tmp_path, name):
    content, params = tiny(tmp_path)
    break_it, message = SYMBOLS[name]
    break_it(content)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read(tmp_path, content, params)
    assert "tiny-" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"nodes": 3}', "[" * 100_000, "\x00"])
def test_no_symbol_at_all(tmp_path, text):
    _, params = tiny(tmp_path)
    with pytest.raises(ModelFormatError, match=r"tiny-symbol\.json"):
        read(tmp_path, text, params)


def test_unknown_operators_and_settings_name_operator_and_node(tmp_path):
    content, params = tiny(tmp_path)
    extra = {"op": "Convolution", "name": "conv0", "inputs": [[4, 0, 0]]}
    content["nodes"].append(extra)
    content["heads"] = [[5, 0, 0]]
    with pytest.raises(UnsupportedModelError, match="operator 'Convolution' at node 'conv0'"):
        read(tmp_path, content, params)
    extra.update(op="Activation", attrs={"act_type": "softrelu"})
    with pytest.raises(UnsupportedModelError, match=r"'Activation' at node 'conv0'.*softrelu"):
        read(tmp_path, content, params)
    with pytest.raises(MissingFileError):
        read_mxnet(tmp_path / "none-symbol.json", params)


def test_symbol_damaged_anywhere(gluon, tmp_path):
    """Cut, or a byte changed: an error of ours, or a model that compiles."""
    exported = gluon(head="classifier")
    data = exported.symbol.read_bytes()
    # Without the spaces that MXNet writes, nearly every byte matters.
    data = json.dumps(json.loads(data), separators=(",", ":")).encode()
    path = tmp_path / "damaged-symbol.json"
    rng = np.random.default_rng(0)
    survivors = 0
    for trial in range(600):
        place = int(rng.integers(len(data)))
        if trial % 6 == 0:
            damaged = data[:place]
        else:
            new = bytes(rng.choice(list(b'0123456789-,[]{}"(aN\x00\xff'), 1).astype("u1"))
            damaged = data[:place] + new + data[place + 1 :]
        path.write_bytes(damaged)
        try:
            compile_graph(read_mxnet(path, exported.params))
            survivors += 1
        except ModelFormatError as error:
            assert str(error)
    assert 0 < survivors < 600


# ONNX


def test_onnx_damaged_anywhere(gluon, tmp_path):
    pytest.importorskip("onnx")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    from bertrt.models.onnx.reader import read_onnx

    exported = gluon(head="classifier", activation="relu")
    directory = exported.symbol.parent
    data = symbol_to_onnx(exported.symbol, exported.params, directory / "m.onnx").read_bytes()
    path = directory / "damaged.onnx"
    rng = np.random.default_rng(0)
    for trial in range(240):
        place = int(rng.integers(len(data)))
        flipped = bytes([data[place] ^ (1 << int(rng.integers(8)))])
        rest = b"" if trial % 6 == 0 else flipped + data[place + 1 :]
        path.write_bytes(data[:place] + rest)
        try:
            compile_graph(read_onnx(path))
        except (ModelFormatError, MissingFileError) as error:
            assert str(error)


def test_broken_onnx_says_what(gluon, tmp_path):
    onnx = pytest.importorskip("onnx")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    from bertrt.models.onnx.reader import read_onnx

    exported = gluon(head="classifier")
    directory = exported.symbol.parent
    whole = symbol_to_onnx(exported.symbol, exported.params, directory / "m.onnx").read_bytes()

    def refused(message: str, change) -> None:
        model = onnx.ModelProto.FromString(whole)
        change(model)
        (directory / "x.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BertrtError, match=message):
            compile_graph(read_onnx(directory / "x.onnx"))

    def external(model):
        return next(t for t in model.graph.initializer if t.external_data)

    def entry(model, key):
        return next(e for e in external(model).external_data if e.key == key)

    refused("has operator 'LSTM'", lambda m: setattr(m.graph.node[3], "op_type", "LSTM"))
    refused("operator com.microsoft", lambda m: setattr(m.graph.node[3], "domain", "com.microsoft"))
    refused("opset", lambda m: setattr(m.opset_import[0], "version", 6))
    refused("reads 'ghost'", lambda m: m.graph.node[9].input.__setitem__(0, "ghost"))
    refused("reads 'ghost'", lambda m: setattr(m.graph.output[0], "name", "ghost"))
    refused("no nodes", lambda m: m.ClearField("graph"))
    refused("leaves the directory", lambda m: setattr(entry(m, "location"), "value", "../x"))
    refused("no such file", lambda m: setattr(entry(m, "location"), "value", "lost.params"))
    refused("needs", lambda m: setattr(entry(m, "offset"), "value", str(1 << 60)))
    refused("bad offset", lambda m: setattr(entry(m, "offset"), "value", "here"))
    refused("needs", lambda m: external(m).dims.append(2))
    refused("element type", lambda m: setattr(external(m), "data_type", 16))
    refused("does not fit", lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop())

    def square(model):
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = 8

    refused("expected token ids of a batch", square)
    with pytest.raises(MissingFileError):
        read_onnx(directory / "none.onnx")
    (directory / "x.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ModelFormatError, match=r"x\.onnx"):
        read_onnx(directory / "x.onnx")


def test_onnx_refers_to_weights_beside_it_only(gluon, tmp_path):
    pytest.importorskip("onnx")
    from bertrt.export.symbol_to_onnx import symbol_to_onnx

    exported = gluon()
    with pytest.raises(InvalidInputError, match="must lie beside"):
        symbol_to_onnx(exported.symbol, exported.params, tmp_path / "model.onnx")
