"""The Open Inference Protocol, version 2, but for the road: what a model's tensors are, and how
they become inputs and results. docs/serving-inference-protocol.md lists them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from bertrt.engine import Encoding, Engine
from bertrt.errors import BertrtError, DeadlineExceeded
from bertrt.results import plain
from bertrt.serve.endpoint import Call
from bertrt.serve.protocols.tensors import DTYPES, Tensor
from bertrt.serve.refusals import Refusal
from bertrt.version import __version__

__all__ = [
    "VERSION",
    "Asked",
    "Face",
    "check_name",
    "check_parameters",
    "check_version",
    "config",
    "index",
    "infer",
    "load",
    "metadata",
    "server_metadata",
    "statistics",
    "unload",
]

# The only one that a model has.
VERSION = "1"
EXTENSIONS = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]
# Triton's levels of priority go from 1, the most urgent; the one that is ours where nothing is said.
_USUAL = 11
_RAW = ("sequence_output", "pooled_output", "logits", "next_sentence_classifier_output")
# Requests for raw outputs that run at a time, and that may wait.
_RUNS, _WAIT = 2, 64
_IDS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Tell:
    """What a tensor of a model's is.

    Attributes:
        name: its name.
        datatype: its data type.
        shape: its shape, -1 for what differs from request to request.
        read: of an output by a result, its value of one.
        usual: whether an output is given where a request names none.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)
    read: Callable[[Any], Any] | None = None
    usual: bool = True


@dataclass(frozen=True)
class Face:
    """A model's tensors: what it takes, and what it gives by a task's results or of `Engine.run`."""

    inputs: tuple[Tell, ...]
    results: tuple[Tell, ...]
    raw: tuple[Tell, ...]


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


def _json(result: Any) -> bytes:
    return orjson.dumps(plain(result))


def _of(name: str) -> Callable[[Any], Any]:
    def read(result: Any) -> Any:
        return getattr(result, name)

    return read


_SCORE = Tell("score", "FP64", read=_of("score"))
# What each task gives beside its results as JSON. Scores are float64, as predict's are.
_RESULTS: dict[str | None, tuple[Tell, ...]] = {
    "embedding": (Tell("embedding", "FP32", (-1, -1), _of("vector")),),
    "classification": (
        Tell("label", "BYTES", read=lambda result: result.label.encode()),
        _SCORE,
        Tell("scores", "FP64", (-1, -1), lambda result: list(result.scores.values())),
    ),
    "regression": (_SCORE,),
    "next-sentence": (Tell("is_next", "BOOL", read=_of("is_next")), _SCORE),
    "question-answering": (
        Tell("answer", "BYTES", read=lambda result: result.text.encode()),
        _SCORE,
        Tell("start", "INT64", read=_of("start")),
        Tell("end", "INT64", read=_of("end")),
    ),
}
_faces: weakref.WeakKeyDictionary[Engine, Face] = weakref.WeakKeyDictionary()


def face_of(engine: Engine) -> Face:
    """A model's tensors."""
    found = _faces.get(engine)
    if found is None:
        found = _faces[engine] = _make_face(engine)
    return found


def _make_face(engine: Engine) -> Face:
    task, settings = engine.task, engine.settings
    ids = tuple(Tell(name, "INT64", (-1, -1)) for name in _IDS)
    texts = []
    if "max_length" in settings:
        texts.append(Tell("text", "BYTES"))
        if task != "tagging":
            texts.append(Tell("text_pair", "BYTES"))
    results: tuple[Tell, ...] = ()
    if task is not None:
        # Vectors of tokens or words are of no one number.
        uneven = settings.get("pooling") in ("tokens", "words")
        own = () if uneven else _RESULTS.get(task, ())
        results = (*own, Tell("result", "BYTES", read=_json, usual=not own))
    raw: tuple[Tell, ...] = ()
    if "attention_weights" not in engine.outputs and "all_encodings" not in engine.outputs:
        tokens = task in ("tagging", "question-answering")
        raw = tuple(
            Tell(name, "FP32", (-1,) * (3 if _of_tokens(name, tokens) else 2), usual=task is None)
            for name in engine.outputs
            if name in _RAW
        )
    return Face((*texts, *ids), results, raw)


def _of_tokens(name: str, tokens: bool) -> bool:
    return name == "sequence_output" or (tokens and name == "logits")


# --- what is asked --------------------------------------------------------------------------------


def check_version(version: str) -> None:
    """Refuse a version that a model has not; "": any."""
    if version not in ("", VERSION):
        raise Refusal(
            404, f"there is no version {version[:50]!r}; every model has {VERSION!r} only"
        )


def check_name(name: str) -> str:
    """Refuse a request that names no model; gives the name."""
    if not name:
        raise Refusal(404, "the request names no model")
    return name


def check_parameters(what: str, given: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Refuse parameters that mean nothing here."""
    for name in given:
        if name not in taken:
            raise Refusal(
                400,
                f"{what} has the parameter {name[:50]!r}; "
                + (f"there are {', '.join(taken)}" if taken else "there is none"),
            )


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
        if (name in _IDS) != ids:
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
        engine = served.engine
        face = face_of(engine)
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
            found = await _run(call, engine, given, options.deadline)
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


class _Runs:
    """Turns at `Engine.run`, which no scheduler sees."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_RUNS)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self, deadline: float | None) -> AsyncIterator[Callable[[], None]]:
        """Wait for a turn; gives what ends it."""
        if self._waiting >= _WAIT:
            raise Refusal(429, f"{_WAIT} requests for raw outputs wait already", retry_after=1)
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turns.acquire(), deadline)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"it did not begin to run within {deadline:g} s") from None
        finally:
            self._waiting -= 1
        yield self._turns.release


_runs: weakref.WeakKeyDictionary[Any, _Runs] = weakref.WeakKeyDictionary()


async def _run(
    call: Call, engine: Engine, given: _Ids, deadline: float | None
) -> Mapping[str, np.ndarray]:
    """`Engine.run` in a thread. Cancelled, it runs to its end, and holds its turn until then."""
    most = call.state.settings.tokens
    if given.ids.size > most:
        raise Refusal(
            413,
            f"the ids are {given.ids.size}, padding included; of raw outputs {most} are taken at "
            "once",
        )
    runs = _runs.setdefault(call.state, _Runs())
    async with runs.turn(deadline) as end:
        work = asyncio.get_running_loop().run_in_executor(
            None, functools.partial(engine.run, given.ids, given.types, given.lengths)
        )

        def ended(done: asyncio.Future[Any]) -> None:
            end()
            if not done.cancelled():
                done.exception()  # asked for, so that none is logged as never seen

        work.add_done_callback(ended)
    found: Mapping[str, np.ndarray] = await asyncio.shield(work)
    return found


# --- what there is --------------------------------------------------------------------------------


def server_metadata() -> dict[str, Any]:
    """What the server is."""
    return {"name": "bertrt", "version": __version__, "extensions": EXTENSIONS}


def metadata(name: str, engine: Engine) -> dict[str, Any]:
    """What a model is."""
    face = face_of(engine)

    def told(tells: Sequence[Tell]) -> list[dict[str, Any]]:
        return [
            {"name": tell.name, "datatype": tell.datatype, "shape": list(tell.shape)}
            for tell in tells
        ]

    return {
        "name": name,
        "versions": [VERSION],
        "platform": "bertrt",
        "inputs": told(face.inputs),
        "outputs": told((*face.results, *face.raw)),
    }


def config(name: str, engine: Engine) -> dict[str, Any]:
    """The same in the words of Triton's model configuration. Batches are of any size, so that its
    max_batch_size, behind which the first axis would be left out, is 0."""
    face = face_of(engine)

    def kind(tell: Tell) -> str:
        return "TYPE_STRING" if tell.datatype == "BYTES" else f"TYPE_{tell.datatype}"

    return {
        "name": name,
        "platform": "bertrt",
        "backend": "bertrt",
        "max_batch_size": 0,
        "input": [
            {
                "name": tell.name,
                "data_type": kind(tell),
                "dims": list(tell.shape),
                "optional": True,
            }
            for tell in face.inputs
        ],
        "output": [
            {"name": tell.name, "data_type": kind(tell), "dims": list(tell.shape)}
            for tell in (*face.results, *face.raw)
        ],
    }


def statistics(call: Call, name: str) -> list[dict[str, Any]]:
    """What models have done, in Triton's words; "": each of them. Times are in nanoseconds."""
    models = call.state.models
    if name:
        with models.use(name) as served:
            return [_statistics(call, served)]
    return [_statistics(call, served) for served in models.served()]


def _statistics(call: Call, served: Any) -> dict[str, Any]:
    registry, counted = call.state.metrics.registry, served.statistics()

    def sample(name: str) -> float:
        return registry.get_sample_value(f"bertrt_{name}", {"model": served.name}) or 0.0

    def duration(name: str) -> dict[str, int]:
        return {
            "count": int(sample(f"{name}_count")),
            "ns": int(sample(f"{name}_sum") * 1e9),
        }

    return {
        "name": served.name,
        "version": VERSION,
        "inference_count": int(sample("inputs_total")),
        "execution_count": counted.batches,
        "inference_stats": {
            "queue": duration("queue_seconds"),
            "compute_input": duration("tokenize_seconds"),
            "compute_infer": duration("execute_seconds"),
            "cache_hit": {"count": int(sample("cache_hits_total")), "ns": 0},
        },
    }


def index(call: Call, ready: bool) -> list[dict[str, str]]:
    """The models that are known; with `ready` those that answer."""
    return [
        {"name": entry.name, "version": VERSION, "state": entry.state, "reason": entry.reason}
        for entry in call.state.models.index()
        if not ready or entry.state == "READY"
    ]


async def load(call: Call, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model, or load it again. What a client says of how is refused."""
    check_parameters("load", parameters, ())
    call.fields["model"] = name[:200]
    await call.state.models.load(name)


async def unload(call: Call, name: str, parameters: Mapping[str, Any]) -> None:
    """Take a model away."""
    # No model has any.
    check_parameters("unload", parameters, ("unload_dependents",))
    call.fields["model"] = name[:200]
    await call.state.models.unload(name)
