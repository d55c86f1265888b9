"""ONNX Runtime: runs a model's ONNX graph, padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.backends.base import Backend, check_outputs
from bertrt.batch import PackedBatch, pack_rows
from bertrt.errors import (
    DeviceError,
    InvalidInputError,
    MissingDependencyError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.plan.steps import INPUTS, POSITIONS

if TYPE_CHECKING:
    from bertrt.models.model import Model

__all__ = ["OnnxRuntimeBackend", "load"]

# What onnxruntime leaves to the CPU on purpose where the rest runs on a GPU: arithmetic on shapes.
_OF_SHAPES = frozenset(
    [
        "Shape",
        "Size",
        "Constant",
        "ConstantOfShape",
        "Range",
        "Gather",
        "Slice",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Cast",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Equal",
        "Where",
        "ReduceProd",
    ]
)

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
}


def load(model: Model, *, device: str, precision: str, threads: int) -> OnnxRuntimeBackend:
    """Load a model's ONNX graph. Arguments and errors: see `bertrt.backends.base.load_backend`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"backend onnxruntime needs the package onnxruntime ({error}): "
            "pip install 'bertrt[onnxruntime]'"
        ) from error
    if precision != "fp32":
        raise DeviceError(
            f"backend onnxruntime cannot run in {precision!r}: the model's ONNX graph is fp32; use "
            "precision='fp32'"
        )
    if "," in device:
        raise DeviceError(f"backend onnxruntime cannot run on {device!r}: it takes one device")
    if model.onnx_path is None:
        raise ModelFormatError(
            f"{model.path} has no ONNX graph for backend onnxruntime; a bundle has one that is "
            "made of a graph, of a Gluon net (bertrt export), or, where MXNet is installed, of a "
            "Hugging Face BertModel or BertForSequenceClassification (bertrt import DIR --out "
            "BUNDLE)"
        )
    session = _session(onnxruntime, model, device, threads)
    return OnnxRuntimeBackend(session, model, device, threads, onnxruntime.__version__)


def _session(onnxruntime: Any, model: Model, device: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # 3: errors only. Warnings about constant folding and the like are no news to a user.
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        wanted = "CUDAExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            raise DeviceError(
                f"backend onnxruntime cannot run on {device!r}: this onnxruntime has no {wanted} "
                f"(it has {', '.join(onnxruntime.get_available_providers())}); "
                "pip install 'bertrt[onnxruntime-gpu]'"
            )
        number = device.partition(":")[2] or "0"
        # fp32 means fp32: by default the provider rounds what products read to TF32.
        providers.insert(0, (wanted, {"device_id": number, "use_tf32": "0"}))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(model.onnx_path), sess_options=options, providers=providers
        )
    # Its exceptions share no base class but Exception.
    except Exception as error:
        if device != "cpu" and "CUDA" in str(error):
            raise DeviceError(f"backend onnxruntime cannot run on {device!r}: {error}") from error
        raise ModelFormatError(
            f"{model.onnx_path}: onnxruntime cannot load it ({error})"
        ) from error
    # onnxruntime goes on without a provider that fails to start; we do not.
    session.disable_fallback()
    active = session.get_providers()
    if device != "cpu" and active[0] != "CUDAExecutionProvider":
        raise DeviceError(
            f"backend onnxruntime cannot run on {device!r}: CUDAExecutionProvider did not start "
            f"(active: {', '.join(active)}); CUDA or cuDNN libraries, or the device, are missing"
        )
    if device != "cpu":
        _check_assignment(session, device)
    return session


def _check_assignment(session: Any, device: str) -> None:
    """Refuse a session that has left nodes to the CPU, which it does one by one and silently.

    onnxruntime tells since 1.24; with an older one that is not known.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    left = [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != "CUDAExecutionProvider"
        for node in part.get_nodes()
        if node.op_type not in _OF_SHAPES
    ]
    if left:
        raise DeviceError(
            f"backend onnxruntime cannot run on {device!r}: CUDAExecutionProvider leaves "
            f"{len(left)} nodes to the CPU, {left[0]} first"
        )


class OnnxRuntimeBackend(Backend):
    """See `bertrt.backends.base.Backend`."""

    name = "onnxruntime"
    precision = "fp32"
    pads = True

    def __init__(self, session: Any, model: Model, device: str, threads: int, version: str) -> None:
        self.device = "cuda:0" if device == "cuda" else device
        self.threads = threads
        self.provider = f"onnxruntime {version}, {session.get_providers()[0]}"
        self._session = session
        self._inputs = _input_roles(session, model)
        self._roles = {role for role, *_ in self._inputs.values()}
        self._batch, self._sequence = _fixed_axes(session)
        self._path = model.onnx_path
        self._rows = model.rows
        found = [output.name for output in session.get_outputs()]
        # Our own graphs name their outputs as the model does; others have them in the same order.
        # The start and the end of an answer may be two outputs there, and are one here.
        self._outputs: dict[str, tuple[str, ...]]
        if self._rows == {"logits": "tokens"} and len(found) == 2:
            self._outputs = {"logits": tuple(found)}
        elif set(found) == set(model.outputs):
            self._outputs = {name: (name,) for name in found}
        else:
            check_outputs(str(model.onnx_path), found, model.outputs)
            self._outputs = {a: (b,) for a, b in zip(model.outputs, found, strict=True)}

    def run(self, batch: PackedBatch, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """See `bertrt.backends.base.Backend.run`.

        Raises:
            InvalidInputError: a sequence is longer than the graph's fixed axis, or empty where the
                graph takes a mask; or sequences differ in length where it takes neither.
        """
        feeds = self._feeds(batch)
        names = [own for name in outputs for own in self._outputs[name]]
        size = self._batch or batch.seqs
        parts = [
            self._session.run(names, {k: _piece(v, start, size) for k, v in feeds.items()})
            for start in range(0, batch.seqs, size)
        ]
        arrays = {
            name: np.concatenate(pieces)[: batch.seqs].astype(np.float32, copy=False)
            for name, pieces in zip(names, zip(*parts, strict=True), strict=True)
        }
        results = {}
        for name in outputs:
            own = [arrays[part] for part in self._outputs[name]]
            value = own[0] if len(own) == 1 else np.stack(own, axis=-1)
            if self._rows[name] == "tokens" and value.ndim == 2:  # a number a token
                value = value[..., None]
            if self._rows[name] == "positions" and "masked_positions" not in self._roles:
                # The graph gives every token's.
                assert batch.masked_positions is not None
                value = np.take_along_axis(value, batch.masked_positions[..., None], axis=1)
            results[name] = pack_rows(value, batch, self._rows[name])
        return results

    def _feeds(self, batch: PackedBatch) -> dict[str, np.ndarray]:
        """The graph's inputs by name, padded to its fixed sequence length where it has one."""
        if "valid_length" not in self._roles and len(set(batch.lengths.tolist())) > 1:
            raise InvalidInputError(
                f"the sequences have {batch.lengths.min()} to {batch.longest} tokens; {self._path} "
                "takes neither lengths nor a mask: run sequences of one length at a time"
            )
        values = batch.padded()
        sequence = self._sequence or values["token_ids"].shape[1]
        if values["token_ids"].shape[1] > sequence:
            raise InvalidInputError(
                f"a sequence has {batch.longest} tokens; {self._path} is fixed at {sequence}"
            )
        feeds = {}
        for name, (role, dtype, rank) in self._inputs.items():
            if role == POSITIONS:
                feeds[name] = np.tile(np.arange(sequence, dtype=dtype), (batch.seqs, 1))
                continue
            value = values[role]
            if role in ("token_ids", "token_types"):
                value = np.pad(value, ((0, 0), (0, sequence - value.shape[1])))
            elif role == "valid_length" and rank == 2:
                if not value.all():
                    raise InvalidInputError(
                        f"sequence {int(np.argmin(value))} is empty; {self._path} takes a mask, "
                        "and what it computes for one that hides every token has no meaning"
                    )
                value = np.arange(sequence) < value[:, None]
            feeds[name] = value.astype(dtype)
        return feeds

    def explain(self) -> str:
        """The graph's inputs and outputs; onnxruntime does not tell its steps."""
        lines = ["inputs:"]
        lines += [f"  {node.name}  {node.type} {node.shape}" for node in self._session.get_inputs()]
        lines.append("outputs:")
        lines += [
            f"  {node.name}  {node.type} {node.shape}" for node in self._session.get_outputs()
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """See `bertrt.backends.base.Backend.close`."""
        del self._session


def _piece(value: np.ndarray, start: int, size: int) -> np.ndarray:
    """`size` rows from `start` on; the last one again where there are no more."""
    return value[np.minimum(np.arange(start, start + size), len(value) - 1)]


def _fixed_axes(session: Any) -> tuple[int | None, int | None]:
    """The batch and the sequence length that a graph is fixed at, None where it is not."""
    for node in session.get_inputs():
        if len(node.shape) == 2:
            batch, sequence = (dim if isinstance(dim, int) else None for dim in node.shape)
            return batch, sequence
    return None, None


def _input_roles(session: Any, model: Model) -> dict[str, tuple[str, Any, int]]:
    """The graph's inputs: name -> (what it is for, dtype, number of axes)."""
    inputs = {node.name: node.type for node in session.get_inputs()}
    ranks = {node.name: len(node.shape) for node in session.get_inputs()}
    if set(inputs) <= set(INPUTS):
        roles = {name: name for name in inputs}
    else:
        roles = {name: role for role, name in model.plan().inputs.items() if name is not None}
    roles[POSITIONS] = POSITIONS
    found = {}
    for name, dtype in inputs.items():
        if name not in roles or dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"{model.onnx_path}: the input {name!r} ({dtype}) is none of "
                f"{', '.join(roles)}, of int64, int32 or float"
            )
        found[name] = (roles[name], _DTYPES[dtype], ranks[name])
    return found
