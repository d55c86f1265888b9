"""The backends onnxruntime and mxnet on graphs small enough to check by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt.backends.base import BACKENDS, load_backend
from bertrt.batch import Limits, PackedBatch
from bertrt.errors import (
    DeviceError,
    InvalidInputError,
    MissingDependencyError,
    ModelFormatError,
    UnsupportedModelError,
)

LIMITS = Limits(vocab_size=10, type_vocab_size=2, max_length=8)
TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)
CPU = {"device": "cpu", "precision": "fp32", "threads": 1}


def model_of(path: Path, **changes: object) -> SimpleNamespace:
    """What the backends read of a model."""
    inputs = {"token_ids": "data0", "token_types": "data1", "valid_length": "data2"}
    fields = {
        "path": path,
        "onnx_path": None,
        "symbol_path": None,
        "params_path": None,
        "outputs": ["sequence_output", "pooled_output"],
        "rows": {"sequence_output": "tokens", "pooled_output": "seqs"},
        "plan": lambda: SimpleNamespace(inputs=inputs | {"masked_positions": None}),
    }
    return SimpleNamespace(**(fields | changes))


def batch_of(*rows: list[int]) -> PackedBatch:
    types = [[1] * len(row) for row in rows]
    return PackedBatch.from_ragged(list(rows), types, None, LIMITS)


def check(backend) -> None:
    """Rows are table[id] + type, packed; the pooled output is the first row, and the length."""
    batch = batch_of([3, 4, 5], [7], [0, 9])
    found = backend.run(batch, ["sequence_output", "pooled_output"])
    assert list(found) == ["sequence_output", "pooled_output"]
    assert found["sequence_output"].dtype == np.float32
    assert found["sequence_output"].tolist() == (TABLE[[3, 4, 5, 7, 0, 9]] + 1).tolist()
    assert found["pooled_output"].tolist() == [[7 + 3, 8 + 3], [15 + 1, 16 + 1], [1 + 2, 2 + 2]]
    assert list(backend.run(batch, ["pooled_output"])) == ["pooled_output"]
    # An empty sequence, alone and among others; its padding is a valid input to the graph.
    empty = backend.run(batch_of([]), ["sequence_output"])
    assert empty["sequence_output"].shape == (0, 2)
    some = backend.run(batch_of([], [2]), ["sequence_output"])
    assert some["sequence_output"].tolist() == [[5, 6]]
    assert backend.pads


# --- onnxruntime ------------------------------------------------------------------------------


def write_onnx(path: Path, names: dict[str, str], length_type: str = "INT64") -> Path:
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    ids, kinds, lengths = (names[role] for role in ("token_ids", "token_types", "valid_length"))
    length_type = getattr(types, length_type)
    nodes = [
        helper.make_node("Gather", ["table", ids], ["rows"], axis=0),
        helper.make_node("Cast", [kinds], ["kinds"], to=types.FLOAT),
        helper.make_node("Unsqueeze", ["kinds", "last"], ["column"]),
        helper.make_node("Add", ["rows", "column"], [names["sequence_output"]]),
        helper.make_node("Gather", [names["sequence_output"], "first"], ["row"], axis=1),
        helper.make_node("Cast", [lengths], ["length"], to=types.FLOAT),
        helper.make_node("Unsqueeze", ["length", "one"], ["lengths"]),
        helper.make_node("Add", ["row", "lengths"], [names["pooled_output"]]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            value(ids, types.INT64, ["batch", "sequence"]),
            value(kinds, types.INT32, ["batch", "sequence"]),
            value(lengths, length_type, ["batch"]),
        ],
        [
            value(names["sequence_output"], types.FLOAT, ["batch", "sequence", 2]),
            value(names["pooled_output"], types.FLOAT, ["batch", 2]),
        ],
        [
            onnx.numpy_helper.from_array(TABLE, "table"),
            onnx.numpy_helper.from_array(np.array([2]), "last"),
            onnx.numpy_helper.from_array(np.array([1]), "one"),
            onnx.numpy_helper.from_array(np.array(0), "first"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path)
    return path


OWN_NAMES = {
    name: name
    for name in ("token_ids", "token_types", "valid_length", "sequence_output", "pooled_output")
}
FOREIGN_NAMES = {
    "token_ids": "data0",
    "token_types": "data1",
    "valid_length": "data2",
    "sequence_output": "x",
    "pooled_output": "y",
}


@pytest.mark.parametrize("names", [OWN_NAMES, FOREIGN_NAMES], ids=["own names", "foreign names"])
@pytest.mark.parametrize("length_type", ["INT64", "FLOAT"])
def test_onnxruntime(tmp_path: Path, names: dict[str, str], length_type: str) -> None:
    pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "model.onnx", names, length_type)
    backend = load_backend(model_of(path, onnx_path=path), "onnxruntime", **CPU)
    check(backend)
    assert (backend.name, backend.device, backend.threads) == ("onnxruntime", "cpu", 1)
    assert "CPUExecutionProvider" in backend.provider
    assert names["token_ids"] in backend.explain()
    backend.close()


def test_onnxruntime_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "model.onnx", OWN_NAMES)
    model = model_of(path, onnx_path=path)
    with pytest.raises(DeviceError, match="'int8'"):
        load_backend(model, "onnxruntime", **CPU | {"precision": "int8"})
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceError, match=r"no CUDAExecutionProvider.*onnxruntime-gpu"):
            load_backend(model, "onnxruntime", **CPU | {"device": "cuda:1"})
    with pytest.raises(ModelFormatError, match="has no ONNX graph"):
        load_backend(model_of(path), "onnxruntime", **CPU)
    with pytest.raises(ModelFormatError, match=r"has 2 outputs .*; the model's outputs are logits"):
        load_backend(model_of(path, onnx_path=path, outputs=["logits"]), "onnxruntime", **CPU)
    strange = write_onnx(tmp_path / "s.onnx", FOREIGN_NAMES | {"token_types": "attention_mask"})
    with pytest.raises(UnsupportedModelError, match="'attention_mask'"):
        load_backend(model_of(strange, onnx_path=strange), "onnxruntime", **CPU)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelFormatError, match="onnxruntime cannot load it"):
        load_backend(model, "onnxruntime", **CPU)


def test_a_provider_that_falls_back_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """onnxruntime says that it has CUDA, and then quietly runs on the CPU."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "model.onnx", OWN_NAMES)
    real = onnxruntime.InferenceSession

    def fall_back(path, sess_options, providers):
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})
        return real(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(DeviceError, match="CUDAExecutionProvider did not start"):
        load_backend(model_of(path, onnx_path=path), "onnxruntime", **CPU | {"device": "cuda"})

    def fail(path, sess_options, providers):
        raise RuntimeError("CUDA failure 101: invalid device ordinal")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(DeviceError, match=r"cannot run on 'cuda:7'.*invalid device ordinal"):
        load_backend(model_of(path, onnx_path=path), "onnxruntime", **CPU | {"device": "cuda:7"})


def test_a_provider_that_leaves_nodes_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell where nodes run")
    path = write_onnx(tmp_path / "model.onnx", OWN_NAMES)

    class OnTheCpu(onnxruntime.InferenceSession):
        """Says that it runs on CUDA; its nodes are where they really are."""

        def __init__(self, path, sess_options, providers) -> None:
            super().__init__(path, sess_options=sess_options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheCpu)
    # All that this little graph has is what may be arithmetic on shapes.
    load_backend(model_of(path, onnx_path=path), "onnxruntime", **CPU | {"device": "cuda"})
    monkeypatch.setattr("bertrt.backends.onnxruntime._OF_SHAPES", frozenset())
    with pytest.raises(DeviceError, match=r"leaves \d+ nodes to the CPU"):
        load_backend(model_of(path, onnx_path=path), "onnxruntime", **CPU | {"device": "cuda"})


# --- mxnet ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mxnet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mxnet
    return mxnet


def write_symbol(mxnet, directory: Path) -> SimpleNamespace:
    sym = mxnet.sym
    ids, types, lengths, table = (sym.var(n) for n in ("data0", "data1", "data2", "table"))
    rows = sym.Embedding(ids, table, input_dim=10, output_dim=2)
    rows = sym.broadcast_add(rows, sym.expand_dims(types, axis=2))
    first = sym.reshape(sym.slice_axis(rows, axis=1, begin=0, end=1), shape=(-1, 2))
    pooled = sym.broadcast_add(first, sym.expand_dims(lengths, axis=1))
    symbol, params = directory / "m-symbol.json", directory / "m-0000.params"
    sym.Group([rows, pooled]).save(str(symbol))
    mxnet.nd.save(str(params), {"arg:table": mxnet.nd.array(TABLE)})
    return model_of(symbol, symbol_path=symbol, params_path=params)


@pytest.mark.mxnet
def test_mxnet(mxnet, tmp_path: Path) -> None:
    backend = load_backend(write_symbol(mxnet, tmp_path), "mxnet", **CPU)
    check(backend)
    assert (backend.name, backend.device) == ("mxnet", "cpu")
    assert backend.threads >= 1 and "mxnet 1." in backend.provider
    backend.close()


@pytest.mark.mxnet
def test_mxnet_in_threads(mxnet, tmp_path: Path) -> None:
    backend = load_backend(write_symbol(mxnet, tmp_path), "mxnet", **CPU)
    failures = []

    def work() -> None:
        try:
            for _ in range(10):
                check(backend)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


@pytest.mark.mxnet
def test_mxnet_refuses_what_it_cannot_do(mxnet, tmp_path: Path) -> None:
    model = write_symbol(mxnet, tmp_path)
    with pytest.raises(DeviceError, match="'cuda'"):
        load_backend(model, "mxnet", **CPU | {"device": "cuda"})
    with pytest.raises(DeviceError, match="'bf16'"):
        load_backend(model, "mxnet", **CPU | {"precision": "bf16"})
    with pytest.raises(ModelFormatError, match="has no MXNet symbol"):
        load_backend(model_of(tmp_path), "mxnet", **CPU)
    with pytest.raises(ModelFormatError, match="outputs"):
        load_backend(SimpleNamespace(**(vars(model) | {"outputs": ["logits"]})), "mxnet", **CPU)
    model.params_path.write_bytes(b"no parameters")
    with pytest.raises(ModelFormatError, match="mxnet cannot load it"):
        load_backend(model, "mxnet", **CPU)


@pytest.mark.parametrize(("told", "expected"), [(None, "2"), ("1", "1")])
@pytest.mark.mxnet
def test_mxnet_threads_are_the_process_s(mxnet, tmp_path: Path, told, expected: str) -> None:
    """The first engine's number of threads holds, unless OMP_NUM_THREADS says another; the
    variable is left as it was, and the import says nothing."""
    model = write_symbol(mxnet, tmp_path)
    program = f"""
import os
from pathlib import Path
from types import SimpleNamespace
from bertrt.backends.base import load_backend
inputs = dict(token_ids="data0", token_types="data1", valid_length="data2", masked_positions=None)
model = SimpleNamespace(
    symbol_path=Path({str(model.symbol_path)!r}),
    params_path=Path({str(model.params_path)!r}),
    outputs=["sequence_output", "pooled_output"],
    rows=dict(sequence_output="tokens", pooled_output="seqs"),
    plan=lambda: SimpleNamespace(inputs=inputs),
)
before = os.environ.get("OMP_NUM_THREADS")
first = load_backend(model, "mxnet", device="cpu", precision="fp32", threads=2)
second = load_backend(model, "mxnet", device="cpu", precision="fp32", threads=1)
assert os.environ.get("OMP_NUM_THREADS") == before
print(first.threads, second.threads)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if told is not None:
        environment["OMP_NUM_THREADS"] = told
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.split() == [expected, expected]


# --- what is not there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", r"bertrt\[onnxruntime\]"),
        ("mxnet", "mxnet", r"bertrt\[export\]"),
    ],
)
def test_missing_package(monkeypatch, tmp_path: Path, name: str, package: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=extra) as caught:
        load_backend(model_of(tmp_path), name, **CPU)
    assert isinstance(caught.value, ImportError)


def test_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="native, onnxruntime, mxnet"):
        load_backend(model_of(tmp_path), "torch", **CPU)


def test_importing_bertrt_imports_no_framework() -> None:
    program = """
import sys
import bertrt, bertrt.commands.main, bertrt.compiler, bertrt.models.model, bertrt.evaluation.verify
heavy = {"mxnet", "gluonnlp", "onnx", "onnxruntime", "torch", "transformers"}
print(sorted(heavy & set(sys.modules)), "bertrt._native" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[] False\n", done.stderr


def test_every_backend_has_a_module() -> None:
    assert list(BACKENDS) == ["native", "onnxruntime", "mxnet"]
