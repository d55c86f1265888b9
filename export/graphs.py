"""From a bare graph, as a symbol pair or an ONNX file, to a bundle."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bertrt.engine import Engine
from bertrt.errors import (
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.host.files import read_object
from bertrt.host.paths import check_path
from bertrt.models.bundle import write_plan, writing
from bertrt.models.golden import GoldenCase
from bertrt.models.manifest import ONNX, PARAMS, SYMBOL
from bertrt.models.model import Model
from bertrt.models.onnx.plan import compile_onnx
from bertrt.models.symbol.params import read_params, write_params
from bertrt.models.symbol.plan import compile_symbol
from bertrt.plan.plan import Plan
from bertrt.tasks.settings import complete_settings

from .golden import record_golden
from .model import check_labels, check_pooling, seal
from .symbol_to_onnx import symbol_to_onnx

__all__ = ["import_graph"]

_ONNX_DATA = "model.onnx.data"
# Weights begin at a cache line, so that they can be used where they are mapped.
_ALIGNMENT = 64
# MXNet's number for float32 in a symbol
_FLOAT32 = "0"


# The constants of both GELUs, by what half precision makes of them
_EXACT = {
    float(np.float16(number)): number
    for number in (2**0.5, 0.5**0.5, (2 / math.pi) ** 0.5, 0.044715)
}


def import_graph(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Make a bundle of a bare graph. It has no tokenizer: ``run`` works, ``predict`` does not.

    A graph with one logit becomes a regression, with several a classification; with two for each
    token question answering, with others tagging; and any other an embedding.

    Args:
        path: a ``*-symbol.json`` with its ``-0000.params`` beside it, or an ``.onnx`` file.
        out: where the bundle goes; nothing may be there yet.

    Returns:
        The path of the bundle. Its golden outputs come from MXNet for a symbol pair, where that
        is installed, and from onnxruntime otherwise; without either it has none.

    Raises:
        MissingFileError: there is nothing at `path`.
        ModelFormatError: the graph is broken, or (UnsupportedModelError) does not fuse.
        OutputExistsError: `out` exists.
        MissingDependencyError: onnx is not installed.
        BertrtError: the finished bundle gives other numbers than the graph; it is not kept.
    """
    source = check_path("path", path)
    if source.is_dir() or not source.exists():
        raise MissingFileError(f"{source} is no file; a *-symbol.json or an .onnx file is wanted")
    model = Model.open(source)
    model.plan()  # compiles the graph: its errors come before anything is written
    with writing(out) as draft:
        if model.symbol_path is not None and model.params_path is not None:
            graph, params = draft.directory / SYMBOL, draft.directory / PARAMS
            _copy_symbol(model.symbol_path, model.params_path, graph, params)
            symbol_to_onnx(graph, params, draft.directory / ONNX)
            plan, _ = compile_symbol(graph, params)
            sources = ["mxnet", "onnxruntime"]
        else:
            graph = draft.directory / ONNX
            _copy_onnx(source, graph)
            plan, _ = compile_onnx(graph)
            plan = _place_weights(plan, draft.directory / _ONNX_DATA)
            sources = ["onnxruntime"]
        write_plan(plan, draft.directory)
        golden, recorder = _record(plan, draft.directory, sources)
        classes = _classes(plan)
        task = _task(plan, classes)
        seal(
            draft,
            plan,
            tokenizer=None,
            task=task,
            labels=check_labels(None, task, classes),
            pooling=check_pooling(_pooling(plan, task), task, list(plan.outputs)),
            settings=complete_settings(None, task, plan.architecture["max_length"]),
            origin={"framework": "graph", "source": source.name, "golden": recorder},
            golden=golden,
        )
    return Path(out)


def _task(plan: Plan, classes: int) -> str:
    """The task that a graph's outputs are for."""
    if plan.rows.get("logits") == "tokens":
        return "question-answering" if classes == 2 else "tagging"
    if classes:
        one = classes == 1 and "logits" in plan.outputs
        return "regression" if one else "classification"
    for output, task in (
        ("sequence_output", "embedding"),
        ("pooled_output", "embedding"),
        ("masked_lm_outputs", "fill-mask"),
        ("next_sentence_classifier_output", "next-sentence"),
    ):
        if output in plan.outputs:
            return task
    raise UnsupportedModelError(
        f"the graph's outputs, {', '.join(plan.outputs)}, are those of no task"
    )


def _pooling(plan: Plan, task: str) -> dict[str, Any] | None:
    """How a graph makes one vector of a text's, where it does; None for the default."""
    if task != "embedding" or "sequence_output" in plan.outputs:
        return None
    return {"mode": "pooled", "normalize": False}


def _classes(plan: Plan) -> int:
    """The number of logits; 0 for a graph without any."""
    name = "logits" if "logits" in plan.outputs else "probabilities"
    value = plan.tail_of(name)[0] if name in plan.outputs else None
    for step in plan.steps:
        if step.output == value:
            shape = plan.weights[step.weights["weight"][0]].array.shape
            return shape[1] if step.fields["transposed"] else shape[0]
    return 0


def _record(
    plan: Plan, directory: Path, backends: Sequence[str]
) -> tuple[list[GoldenCase], str | None]:
    """Golden cases by the first of `backends` that is installed, and its name."""
    masked = plan.inputs.get("masked_positions") is not None
    padded = plan.inputs.get("valid_length") is not None
    for name in backends:
        graph = directory / (SYMBOL if name == "mxnet" else ONNX)
        try:
            engine = Engine.load(graph, backend=name)
        except MissingDependencyError:
            continue
        with engine:
            run = lambda inputs, engine=engine: engine.run(**inputs)  # noqa: E731
            cases = record_golden(
                run, plan.architecture, masked=masked, empty=name == "mxnet", padded=padded
            )
            return cases, name
    return [], None


def _copy_symbol(symbol: Path, params: Path, new_symbol: Path, new_params: Path) -> None:
    """Copy a symbol pair. Half precision becomes float32 in both files, as in the plan: MXNet has
    no half precision on a CPU."""
    arrays = read_params(params)
    half = [name for name, constant in arrays.items() if constant.file is None]
    if not half:
        shutil.copyfile(symbol, new_symbol)
        shutil.copyfile(params, new_params)
        return
    content = read_object(symbol)
    for node in content["nodes"]:
        attrs = node.get("attrs", {})
        if node["name"] in half and "__dtype__" in attrs:
            attrs["__dtype__"] = _FLOAT32
        if attrs.get("dtype") == "float16":
            attrs["dtype"] = "float32"
    new_symbol.write_text(json.dumps(content), encoding="utf-8")
    write_params(new_params, {name: constant.array for name, constant in arrays.items()})


def _copy_onnx(source: Path, target: Path) -> None:
    """Copy an ONNX model, its float initialisers going to one data file beside the copy.

    The plan refers to that file, so that the weights are stored once. The other initialisers are
    shapes and indices, which shape inference wants to see in the model itself. Half precision
    becomes float32, as in the plan, and scalars in a Concat become vectors, as the standard wants.
    """
    import onnx
    import onnx.numpy_helper
    from onnx.external_data_helper import set_external_data

    try:
        model = onnx.load(str(source))
    except Exception as error:  # protobuf's, onnx's and the file system's share no base class
        raise ModelFormatError(f"{source} is not a readable ONNX model: {error}") from error
    _widen(model.graph, onnx)
    joined = {v for node in model.graph.node if node.op_type == "Concat" for v in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in joined and not tensor.dims:
            tensor.dims.append(1)
    with open(target.with_name(_ONNX_DATA), "wb") as data:
        for tensor in model.graph.initializer:
            if tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            array = np.asarray(onnx.numpy_helper.to_array(tensor), dtype="<f4")
            offset = _append(data, array)
            tensor.ClearField("float_data")
            # set_external_data wants to see raw bytes, and takes them away itself.
            tensor.raw_data = b""
            set_external_data(tensor, _ONNX_DATA, offset=offset, length=array.nbytes)
            tensor.ClearField("raw_data")
    target.write_bytes(model.SerializeToString())


def _widen(graph: Any, onnx: Any) -> None:
    """Make a graph's half precision float32: tensors, casts, inputs and outputs.

    The constants of a GELU get the digits back that half precision took, since a plan has the GELU
    itself.
    """
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                tensors.append(attribute.t)
            elif attribute.name == "to" and attribute.i == half:
                attribute.i = single
    for tensor in tensors:
        if tensor.data_type == half:
            array = onnx.numpy_helper.to_array(tensor)
            exact = _EXACT.get(array.item()) if array.size == 1 else None
            array = (
                array.astype(np.float32) if exact is None else np.full(array.shape, exact, "<f4")
            )
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single


def _place_weights(plan: Plan, data_path: Path) -> Plan:
    """The plan with the weights that lie in no file, being computed or inline, put at the end of
    `data_path`."""
    weights = dict(plan.weights)
    with open(data_path, "ab") as data:
        for name, constant in plan.weights.items():
            if constant.file is None:
                offset = _append(data, constant.array)
                weights[name] = dataclasses.replace(constant, file=data_path, offset=offset)
    return dataclasses.replace(plan, weights=weights)


def _append(data: BinaryIO, array: np.ndarray) -> int:
    """Write an array at the next aligned place; returns its offset."""
    data.write(b"\0" * (-data.tell() % _ALIGNMENT))
    offset = data.tell()
    data.write(array.tobytes())
    return offset
