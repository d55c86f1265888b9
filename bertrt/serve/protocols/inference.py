"""Inference by the Open Inference Protocol, version 2, whatever the road: tensors to inputs, and
results to tensors. docs/serving-inference-protocol.md lists them."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertrt.engine import Encoding, Report
from bertrt.errors import BertrtError, DeadlineExceeded
from bertrt.serve.aside import Turns
from bertrt.serve.endpoint import Call, State
from bertrt.serve.protocols.inference_models import (
    IDS,
    Face,
    Tell,
    check_name,
    check_parameters,
    face_of,
)
from bertrt.serve.protocols.tensors import DTYPES, Tensor
from bertrt.serve.refusals import Refusal
from bertrt.serve.served import Served

__all__ = ["Asked", "infer"]

# Triton's levels of priority go from 1, the most urgent; this one is ours where nothing is said.
_USUAL = 11
# Requests for raw outputs that run at a time, and that may wait.
_RUNS, _WAIT = 2, 64


@dataclass(frozen=True)
class Asked:
    """A request for inference.

    Attributes:
        inputs: its tensors, by their names.
        outputs: the names of what it asks for; none: the usual ones.
        parameters: its parameters.
        seconds: what is left of its time; None: nobody has said.
    """

    inputs: Mapping[str, Tensor]
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


def _whole(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name, 0)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise Refusal(400, f"the parameter {name!r} is {str(value)[:50]!r}; expected 0 or more")
    return value


@dataclass(frozen=True)
class _Options:
    prompt: str | None
    truncate: bool
    priority: int | None
    deadline: float | None


def _options(call: Call, asked: Asked) -> _Options:
    given = asked.parameters
    check_parameters("the request", given, ("priority", "timeout", "prompt", "truncate"))
    prompt, truncate = given.get("prompt"), given.get("truncate", call.state.settings.auto_truncate)
    if prompt is not None and not isinstance(prompt, str):
        raise Refusal(400, f"the parameter 'prompt' is {str(prompt)[:50]!r}; expected a string")
    if not isinstance(truncate, bool):
        raise Refusal(400, f"the parameter 'truncate' is {str(truncate)[:50]!r}; expected a bool")
    level, timeout = _whole(given, "priority"), _whole(given, "timeout")
    times = [timeout / 1e6] if timeout else []
    if asked.seconds is not None:
        times.append(max(0.0, asked.seconds))
    return _Options(
        prompt, truncate, max(-10, _USUAL - level) if level else None, min(times, default=None)
    )


def _choose(face: Face, names: Sequence[str]) -> list[Tell]:
    known = {tell.name: tell for tell in (*face.results, *face.raw)}
    if len(set(names)) != len(names):
        raise Refusal(400, "an output is asked for twice")
    for name in names:
        if name not in known:
            raise Refusal(
                400, f"there is no output {name[:50]!r}; the model has {', '.join(known)}"
            )
    chosen = [known[name] for name in names] or [tell for tell in known.values() if tell.usual]
    if not chosen:
        raise Refusal(400, "the model has no output that this protocol gives")
    return chosen


# --- inputs ---------------------------------------------------------------------------------------


def _check_inputs(face: Face, inputs: Mapping[str, Tensor]) -> bool:
    """Refuse what a model does not take; whether the inputs are ids."""
    known = {tell.name: tell for tell in face.inputs}
    for name, tensor in inputs.items():
        if name not in known:
            raise Refusal(400, f"there is no input {name[:50]!r}; the model has {', '.join(known)}")
        texts = known[name].datatype == "BYTES"
        if (tensor.datatype == "BYTES") != texts:
            expected = "BYTES" if texts else "INT64 or INT32"
            raise Refusal(400, f"the input {name!r} is of {tensor.datatype}; expected {expected}")
        columns = tensor.shape[1] if len(tensor.shape) == 2 else None
        if (columns not in (None, 1)) if texts else columns is None:
            expected = "[inputs] or [inputs, 1]" if texts else "[inputs, tokens]"
            raise Refusal(
                400,
                f"the input {name!r} has the shape {list(tensor.shape)}; expected {expected}",
            )
    ids = "input_ids" in inputs
    first = "input_ids" if ids else "text"
    if first not in inputs:
        raise Refusal(400, "there is neither 'text' nor 'input_ids' among the inputs")
    shape = inputs[first].shape
    for name, tensor in inputs.items():
        if (name in IDS) != ids:
            raise Refusal(400, f"there are both {first!r} and {name!r}; expected texts, or ids")
        if tensor.shape[0] != shape[0] or (ids and tensor.shape != shape):
            raise Refusal(
                400,
                f"the input {name!r} has the shape {list(tensor.shape)}, and {first!r} has "
                f"{list(shape)}; they have to match",
            )
    return ids


def _texts(inputs: Mapping[str, Tensor]) -> list[Any]:
    first = _decode(inputs["text"])
    if (second := inputs.get("text_pair")) is None:
        return list(first)
    return list(zip(first, _decode(second), strict=True))


def _decode(tensor: Tensor) -> list[str]:
    found = []
    for i, value in enumerate(tensor.values):
        try:
            found.append(bytes(value).decode())
        except UnicodeDecodeError:
            raise Refusal(400, f"{tensor.name}[{i}] is not UTF-8") from None
    return found


@dataclass(frozen=True, eq=False)
class _Ids:
    """Sequences of ids: int32 arrays (sequences, tokens), and each one's length."""

    ids: np.ndarray
    types: np.ndarray
    lengths: np.ndarray

    def encodings(self) -> list[Encoding]:
        return [
            Encoding(ids[:length], types[:length])
            for ids, types, length in zip(self.ids, self.types, self.lengths.tolist(), strict=True)
        ]


def _ids(inputs: Mapping[str, Tensor]) -> _Ids:
    ids = _narrow(inputs["input_ids"])
    types = inputs.get("token_type_ids")
    mask = inputs.get("attention_mask")
    lengths = np.full(len(ids), ids.shape[1])
    if mask is not None:
        ones = np.asarray(mask.values)
        lengths = (ones == 1).sum(axis=1)
        wrong = np.argwhere(ones != (np.arange(ids.shape[1]) < lengths[:, None]))
        if wrong.size:
            row, column = wrong[0].tolist()
            raise Refusal(
                400,
                f"attention_mask[{row}, {column}] is {ones[row, column]}; expected ones and then "
                "zeros in each row: pad on the right",
            )
        if (empty := np.flatnonzero(lengths == 0)).size:
            raise Refusal(
                400,
                f"attention_mask[{empty[0]}] has no 1; expected one or more in each row: leave out "
                "a sequence without tokens",
            )
    return _Ids(ids, np.zeros_like(ids) if types is None else _narrow(types), lengths)


def _narrow(tensor: Tensor) -> np.ndarray:
    values = np.asarray(tensor.values)
    narrow = values.astype(np.int32)
    if (wrong := np.argwhere(narrow != values)).size:
        row, column = wrong[0].tolist()
        raise Refusal(400, f"{tensor.name}[{row}, {column}] is {values[row, column]}: no such id")
    return narrow


# --- answers --------------------------------------------------------------------------------------


async def infer(call: Call, model: str, asked: Asked) -> list[Tensor]:
    """Answer a request: the tensors that it asks for.

    Raises:
        Refusal: for the request as a whole, also where one of its inputs cannot be answered.
    """
    options = _options(call, asked)
    with call.state.models.use(check_name(model)) as served:
        face = face_of(served.engine)
        chosen = _choose(face, asked.outputs)
        by_ids = _check_inputs(face, asked.inputs)
        given = _ids(asked.inputs) if by_ids else None
        raw = [tell.name for tell in chosen if tell.read is None]
        if raw and given is None:
            raise Refusal(400, f"the output {raw[0]!r} is of ids; expected 'input_ids', no texts")
        results: list[Any] = []
        if len(raw) < len(chosen):
            answered = await call.answer(
                given.encodings() if given else _texts(asked.inputs),
                model=served.name,
                prompt=options.prompt,
                priority=options.priority,
                deadline=options.deadline,
            )
            results = answered.results
            _check_results(results, options)
        found: Mapping[str, np.ndarray] = {}
        if raw:
            assert given is not None
            call.fields |= {"model": served.name, "inputs": len(given.ids)}
            found = await _run(call, served, given, options.deadline)
            if not results:
                call.state.metrics.asked(served.name, len(given.ids))
    return [
        _tensor(tell.name, "FP32", found[tell.name])
        if tell.read is None
        else _joined(tell, [tell.read(result) for result in results])
        for tell in chosen
    ]


def _check_results(results: Sequence[Any], options: _Options) -> None:
    for i, result in enumerate(results):
        if isinstance(result, BertrtError):
            raise result
        if result.truncated and not options.truncate:
            raise Refusal(
                422,
                f"input[{i}] is longer than the model takes, and truncate is false: shorten it, or "
                "let it be cut",
            )


def _joined(tell: Tell, values: list[Any]) -> Tensor:
    if tell.datatype == "BYTES":
        return Tensor(tell.name, tell.datatype, (len(values),), values)
    return _tensor(tell.name, tell.datatype, np.array(values))


def _tensor(name: str, datatype: str, values: np.ndarray) -> Tensor:
    values = np.ascontiguousarray(values, DTYPES[datatype])
    return Tensor(name, datatype, values.shape, values)


# Ids of which raw outputs are given at once, where the server was told no budget of a batch.
_IDS = 4096

_turns: weakref.WeakKeyDictionary[State, Turns] = weakref.WeakKeyDictionary()


async def _run(
    call: Call, served: Served, given: _Ids, deadline: float | None
) -> Mapping[str, np.ndarray]:
    """`Engine.run` in a thread, counted."""
    most = call.state.settings.tokens or _IDS
    if given.ids.size > most:
        raise Refusal(
            413,
            f"there are {given.ids.size} ids, padding included; of raw outputs {most} are taken at "
            "once",
        )
    asked = time.monotonic()

    def work(_: Any) -> tuple[Mapping[str, np.ndarray], float, float]:
        begun = time.monotonic()
        found = served.engine.run(given.ids, given.types, given.lengths)
        return found, begun - asked, time.monotonic() - begun

    turns = _turns.setdefault(call.state, Turns(_RUNS, _WAIT, "requests for raw outputs"))
    try:
        found, queue, execute = await asyncio.wait_for(turns.do(work), deadline)
    except asyncio.TimeoutError as error:
        if isinstance(error, BertrtError):
            raise
        raise DeadlineExceeded(
            f"the deadline of {deadline:g} s was over before it had run"
        ) from None
    call.count(served.executed_aside(Report(tuple(given.lengths.tolist()), 0.0, queue, execute)))
    return found
