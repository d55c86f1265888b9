"""From a bare graph, as a symbol pair or an ONNX file, to a bundle."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from bertrt.engine import Engine
from bertrt.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.host.files import read_object
from bertrt.host.paths import check_path
from bertrt.host.writing import appending_file, copy_file, write_bytes, write_text, writing_file
from bertrt.models.bundle import write_plan, writing
from bertrt.models.golden import GoldenCase
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.graph import width_of
from bertrt.models.huggingface.tokenizer.make import make_tokenizer
from bertrt.models.huggingface.weights import WEIGHTS
from bertrt.models.manifest import ONNX, PARAMS, SYMBOL
from bertrt.models.model import Model
from bertrt.models.onnx import quantized
from bertrt.models.onnx.directory import find_onnx, home_of
from bertrt.models.onnx.plan import compile_onnx
from bertrt.models.safetensors import write_safetensors
from bertrt.models.settings import with_settings
from bertrt.models.symbol.params import read_params, write_params
from bertrt.models.symbol.plan import compile_symbol
from bertrt.plan.interpret import interpret
from bertrt.plan.plan import Plan
from bertrt.tasks.settings import complete_settings
from bertrt.text.huggingface import HuggingFaceTokenizer

from .golden import record_golden
from .model import TokenizerFile, seal
from .symbol_to_onnx import symbol_to_onnx
from .task import check_labels, check_pooling, check_task

__all__ = ["import_graph"]

_T = TypeVar("_T")
_ONNX_DATA = "model.onnx.data"
# Weights begin at a cache line, for readers that map them.
_ALIGNMENT = 64
# The special tokens that vocabularies begin with
_SPECIAL = 5
# MXNet's number for float32 in a symbol
_FLOAT32 = "0"


# The constants of both GELUs, by what half precision makes of them
_EXACT = {
    float(np.float16(number)): number
    for number in (2**0.5, 0.5**0.5, (2 / math.pi) ** 0.5, 0.044715)
}


def import_graph(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    task: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Make a bundle of a graph.

    An ONNX file has the task, the labels and the tokenizer of the ``config.json`` and the tokenizer
    beside it, or in the directory that is given as `tokenizer`. Without them, and for a symbol
    pair, ``run`` works and ``predict`` does not, and the outputs say what it is for: a graph with
    one logit becomes a regression, with several a classification; with two for each token question
    answering, with others tagging; and any other an embedding.

    Args:
        path: a ``*-symbol.json`` with its ``-0000.params`` beside it, an ``.onnx`` file, or a
            directory with one (`bertrt.models.onnx.directory.find_onnx`).
        out: where the bundle goes; nothing may be there yet.
        task: see `bertrt.models.huggingface.model.HuggingFaceModel.open`.
        tokenizer: a Hugging Face directory with a ``config.json`` and a tokenizer; or with a
            tokenizer alone that names its class, and then the outputs say what the model is for.
        settings: what goes before the model's own settings; see `bertrt.Engine.load`.

    Returns:
        The path of the bundle. Its golden outputs come from MXNet for a symbol pair, where that
        is installed, and from onnxruntime otherwise; without either it has none. A quantised ONNX
        file's bundle has its plan, and its golden outputs are those of the plan in double
        precision.

    Raises:
        MissingFileError: there is nothing at `path`, or at `tokenizer`.
        ModelFormatError: the graph is broken, or (UnsupportedModelError) does not fuse; or what
            belongs to the tokenizer is broken, or does not fit.
        InvalidInputError: the model is not for `task`, or nothing says what it is for; it does not
            have a setting.
        OutputExistsError: `out` exists.
        MissingDependencyError: onnx is not installed.
        WriteError: the system refuses a file; there is nothing at `out`.
        BertrtError: the finished bundle gives other numbers than the graph; it is not kept.
    """
    model = with_settings(_open(check_path("path", path), task, tokenizer), settings)
    model.plan()  # compiles the graph: its errors come before anything is written
    with writing(out) as draft:
        if model.symbol_path is not None and model.params_path is not None:
            source = model.symbol_path
            graph, params = draft.directory / SYMBOL, draft.directory / PARAMS
            _copy_symbol(source, model.params_path, graph, params)
            symbol_to_onnx(graph, params, draft.directory / ONNX)
            plan, _ = compile_symbol(graph, params)
            golden, recorder = _record(plan, draft.directory, ["mxnet", "onnxruntime"])
        else:
            assert model.onnx_path is not None
            source = model.onnx_path
            graph = draft.directory / ONNX
            if _copy_onnx(source, graph):
                plan, _ = compile_onnx(graph)
                plan = _place_weights(plan, draft.directory / _ONNX_DATA)
                golden, recorder = _record(plan, draft.directory, ["onnxruntime"])
                # What an output is called may be told by the task alone.
                names = dict(zip(plan.outputs, model.outputs, strict=True))
                plan = dataclasses.replace(plan, outputs=_renamed(plan.outputs, names))
                golden = [GoldenCase(c.inputs, _renamed(c.outputs, names)) for c in golden]
            else:
                weights = {name: c.array for name, c in model.plan().weights.items()}
                placed = write_safetensors(draft.directory / WEIGHTS, weights)
                plan = dataclasses.replace(model.plan(), weights=placed)
                golden, recorder = _interpret(plan)
        write_plan(plan, draft.directory)
        classes = width_of(plan)
        made_for, labels = model.task, model.labels
        pooling, settings = model.pooling, model.settings
        if made_for is None:
            if task is not None:
                check_task(task, list(plan.outputs))
            made_for = task or _task(plan, classes)
            labels = check_labels(None, made_for, classes)
            pooling = check_pooling(_pooling(plan, made_for), made_for, list(plan.outputs))
            settings = complete_settings(None, made_for, model.max_length)
        found = model.tokenizer
        assert found is None or isinstance(found, HuggingFaceTokenizer)
        seal(
            draft,
            plan,
            tokenizer=None if found is None else TokenizerFile.of(found),
            task=made_for,
            labels=labels,
            pooling=pooling,
            settings=settings,
            origin={"framework": "graph", "source": source.name, "golden": recorder},
            golden=golden,
            modules=model.modules,
        )
    return Path(out)


def _renamed(outputs: Mapping[str, _T], names: Mapping[str, str]) -> dict[str, _T]:
    return {names.get(name, name): value for name, value in outputs.items()}


def _open(source: Path, task: str | None, tokenizer: str | os.PathLike[str] | None) -> Model:
    """The model of a graph, with what says what it is for."""
    file = find_onnx(source) if source.is_dir() else source
    if file is None or not file.exists():
        raise MissingFileError(
            f"{source} is no file, and no directory with an ONNX file; a *-symbol.json or an .onnx "
            "file is wanted"
        )
    if file.suffix != ".onnx" and tokenizer is not None:
        raise InvalidInputError(f"{file} is no .onnx file: a tokenizer can go with one only")
    if tokenizer is not None:
        home: Path | None = check_path("tokenizer", tokenizer)
    elif task is None:
        return Model.open(source)
    else:
        home = source if source.is_dir() else home_of(file)
    if home is not None and (home / "config.json").is_file():
        return Model.open_onnx(file, home, task)
    if task is not None and tokenizer is None:
        raise InvalidInputError(
            f"task {task}: {file} is a bare graph, with no config.json and tokenizer of its own; "
            "its outputs say what it is for"
        )
    assert home is not None
    return _with_tokenizer(file, home)


def _with_tokenizer(file: Path, home: Path) -> Model:
    """A bare graph with a tokenizer from a directory without a ``config.json``."""
    settings = home / "tokenizer_config.json"
    named = read_object(settings).get("tokenizer_class") if settings.is_file() else None
    if named is None:
        raise MissingFileError(
            f"{home} holds no config.json, and no tokenizer_config.json with a tokenizer_class: "
            "one of them has to say which tokenizer it is"
        )
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        if (home / name).exists():
            raise UnsupportedModelError(
                f"{home / name} says how texts are taken, and there is no config.json beside it, "
                "without which it is not read: add the model's"
            )
    model = Model.open_bare(file)
    facts = model.architecture
    sizes = {"vocab_size": facts["vocab_size"], "max_position_embeddings": facts["max_length"]}
    config = Config(home / "config.json", {"model_type": "bert", **sizes})
    return dataclasses.replace(model, tokenizer=make_tokenizer(home, config))


def _interpret(plan: Plan) -> tuple[list[GoldenCase], str | None]:
    """Golden cases by the plan itself, in double precision, and what they come from."""
    if "pairs" in plan.rows.values():  # which it does not return
        return [], None
    masked = plan.inputs["masked_positions"] is not None
    padded = plan.inputs["valid_length"] is not None
    cases = record_golden(
        functools.partial(interpret, plan), plan.architecture, masked=masked, padded=padded
    )
    return cases, "the plan in double precision"


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
            mxnet = name == "mxnet"
            # RoBERTa's graphs count positions from the ids, and not those of padding, which is
            # among the first and in no text.
            lowest = 0 if mxnet else min(_SPECIAL, plan.architecture["vocab_size"] - 1)
            cases = record_golden(
                run,
                plan.architecture,
                masked=masked,
                empty=mxnet,
                padded=padded,
                lowest=lowest,
            )
            return cases, name
    return [], None


def _copy_symbol(symbol: Path, params: Path, new_symbol: Path, new_params: Path) -> None:
    """Copy a symbol pair. Half precision becomes float32 in both files, as in the plan: MXNet has
    no half precision on a CPU."""
    arrays = {name: constant.array for name, constant in read_params(params).items()}
    half = {name: a.astype(np.float32) for name, a in arrays.items() if a.dtype == np.float16}
    if not half:
        copy_file(symbol, new_symbol)
        copy_file(params, new_params)
        return
    content = read_object(symbol)
    for node in content["nodes"]:
        attrs = node.get("attrs", {})
        if node["name"] in half and "__dtype__" in attrs:
            attrs["__dtype__"] = _FLOAT32
        if attrs.get("dtype") == "float16":
            attrs["dtype"] = "float32"
    write_text(new_symbol, json.dumps(content))
    write_params(new_params, arrays | half)


def _copy_onnx(source: Path, target: Path) -> bool:
    """Copy an ONNX model, its float initialisers going to one data file beside the copy; False, and
    no copy, for a quantised one, which computes something else than the plan.

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
    operators = {f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node}
    if operators & (set(quantized.CONVERSIONS) - {"Mul"}):
        return False
    _widen(model.graph, onnx)
    _drop_copies(model.graph)
    joined = {v for node in model.graph.node if node.op_type == "Concat" for v in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in joined and not tensor.dims:
            tensor.dims.append(1)
    with writing_file(target.with_name(_ONNX_DATA)) as data:
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
    write_bytes(target, model.SerializeToString())
    return True


def _drop_copies(graph: Any) -> None:
    """Take away the outputs that are others again, under another name: a plan has them once."""
    behind = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    seen = set()
    for output in list(graph.output):
        value = output.name
        while value in behind:
            value = behind[value]
        if value in seen:
            graph.output.remove(output)
        seen.add(value)


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
    with appending_file(data_path) as data:
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
