"""What the Open Inference Protocol tells of models, whatever the road: their tensors and versions,
which there are and what they have done."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bertrt.engine import Engine
from bertrt.results import plain
from bertrt.serve.endpoint import Call
from bertrt.serve.protocols.vectors import check_finite
from bertrt.serve.refusals import Refusal
from bertrt.version import __version__

__all__ = [
    "IDS",
    "VERSION",
    "Face",
    "Tell",
    "check_count",
    "check_name",
    "check_parameters",
    "check_version",
    "config",
    "face_of",
    "index",
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
# The inputs in ids; the first is always there where one of the others is.
IDS = ("input_ids", "attention_mask", "token_type_ids")
_RAW = ("sequence_output", "pooled_output", "logits", "next_sentence_classifier_output")


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
    """A model's tensors.

    Attributes:
        inputs: what it takes.
        results: what it gives of its task's results.
        raw: what it gives as `Engine.run` does.
    """

    inputs: tuple[Tell, ...]
    results: tuple[Tell, ...]
    raw: tuple[Tell, ...]


def _json(result: Any) -> bytes:
    found = plain(result)
    check_finite(found)
    return orjson.dumps(found)


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
    ids = tuple(Tell(name, "INT64", (-1, -1)) for name in IDS)
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


# --- what requests say ----------------------------------------------------------------------------


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


def check_count(call: Call, shape: Sequence[int]) -> None:
    """Refuse a tensor of too many inputs before it is read."""
    most = call.state.settings.max_inputs
    if shape and shape[0] > most:
        raise Refusal(413, f"there are {shape[0]} inputs; at most {most} are taken at once")


def check_parameters(what: str, given: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Refuse parameters that mean nothing here."""
    for name in given:
        if name not in taken:
            raise Refusal(
                400,
                f"{what} has the parameter {name[:50]!r}; "
                + (f"there are {', '.join(taken)}" if taken else "there is none"),
            )
