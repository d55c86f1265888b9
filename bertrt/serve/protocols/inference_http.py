"""The Open Inference Protocol over HTTP, with tensors in JSON or, behind it, in bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from bertrt.serve.bodies import parse
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols import inference_models as models
from bertrt.serve.protocols.inference import Asked, infer
from bertrt.serve.protocols.inference_models import check_count, check_parameters, check_version
from bertrt.serve.protocols.tensors import Tensor, from_bytes, from_list, to_bytes, to_list
from bertrt.serve.refusals import Refusal

__all__ = ["ENDPOINTS"]

_TAG = "open inference protocol"
_HEADER = "inference-header-content-length"

Parameters = dict[str, bool | int | float | str | None]


class InferInput(msgspec.Struct):
    """A tensor: its elements in `data`, or `parameters.binary_data_size` bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | None = None


class InferOutput(msgspec.Struct):
    """An output that is asked for; `parameters.binary_data`: whether in bytes."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for inference."""

    inputs: list[InferInput]
    id: str = ""
    model_name: str = ""
    parameters: Parameters = {}
    outputs: list[InferOutput] = []


class LoadRequest(msgspec.Struct):
    """What goes with a model that is to be loaded or unloaded."""

    parameters: dict[str, Any] = {}


class IndexRequest(msgspec.Struct):
    """`ready`: only models that answer."""

    ready: bool = False


def refuse(refusal: Refusal) -> Response:
    """A refusal in the protocol's words; what is wrong with an input is 400 there."""
    status = 400 if refusal.status in (415, 422, 424) else refusal.status
    return json_response({"error": str(refusal)}, status)


def _model(call: Call) -> str:
    check_version(call.request.path_params.get("version", ""))
    name: str = call.request.path_params["model"]
    return name


# --- inference ------------------------------------------------------------------------------------


async def _infer(call: Call) -> Response:
    model = _model(call)
    size = _header_size(call)
    body = memoryview(call.body)
    request: InferRequest = parse(body[:size], InferRequest)
    if request.model_name not in ("", model):
        raise Refusal(400, f"the body is for {request.model_name[:50]!r}, the path for {model!r}")
    parameters = {
        name: value for name, value in request.parameters.items() if name != "content_type"
    }
    binary = _flag("the request", parameters.pop("binary_data_output", False))
    wants = [_wants_bytes(output, binary) for output in request.outputs]
    found = await infer(
        call,
        model,
        Asked(
            _tensors(call, request.inputs, body[size:]),
            [output.name for output in request.outputs],
            parameters,
        ),
    )
    return _response(request.id, model, found, wants or [binary] * len(found))


def _header_size(call: Call) -> int:
    said, most = call.header(_HEADER), len(call.body)
    if said is None:
        return most
    if not re.fullmatch(r"\d{1,12}", said, re.ASCII) or int(said) > most:
        raise Refusal(
            400,
            f"the header Inference-Header-Content-Length is {said[:50]!r}; expected bytes of the "
            f"body, which has {most}",
        )
    return int(said)


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refusal(400, f"{what} asks for bytes with {str(value)[:50]!r}; expected a bool")
    return value


def _wants_bytes(output: InferOutput, usual: bool) -> bool:
    what = f"the output {output.name[:50]!r}"
    check_parameters(what, output.parameters, ("binary_data",))
    return _flag(what, output.parameters.get("binary_data", usual))


def _tensors(call: Call, inputs: Sequence[InferInput], rest: memoryview) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for own in inputs:
        if own.name in found:
            raise Refusal(400, f"the input {own.name[:50]!r} is there twice")
        what = f"the input {own.name[:50]!r}"
        check_parameters(what, own.parameters, ("binary_data_size", "content_type"))
        check_count(call, own.shape)
        size = own.parameters.get("binary_data_size")
        if (size is None) == (own.data is None):
            raise Refusal(
                400, f"{what} has to have either 'data' or the parameter 'binary_data_size'"
            )
        if own.data is not None:
            found[own.name] = from_list(own.name, own.datatype, own.shape, own.data)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise Refusal(
                400,
                f"{what} has {str(size)[:50]!r} bytes; expected a number of the {len(rest)} bytes "
                "that are left of the body",
            )
        found[own.name] = from_bytes(own.name, own.datatype, own.shape, rest[:size])
        rest = rest[size:]
    if len(rest):
        raise Refusal(400, f"the body has {len(rest)} bytes behind those of the inputs")
    return found


def _response(
    request_id: str, model: str, tensors: Sequence[Tensor], binary: Sequence[bool]
) -> Response:
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, as_bytes in zip(tensors, binary, strict=True):
        told: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if as_bytes:
            parts.append(to_bytes(tensor))
            told["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            told["data"] = to_list(tensor)
        outputs.append(told)
    content: dict[str, Any] = {
        "model_name": model,
        "model_version": models.VERSION,
        "outputs": outputs,
    }
    if request_id:
        content["id"] = request_id
    if not parts:
        return json_response(content)
    head = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(
        b"".join([head, *parts]),
        headers={_HEADER: str(len(head))},
        media_type="application/octet-stream",
    )


# --- what there is --------------------------------------------------------------------------------


async def _live(call: Call) -> Response:
    return json_response({"live": True})


async def _ready(call: Call) -> Response:
    ready = call.state.ready
    return json_response({"ready": ready}, 200 if ready else 503)


async def _server(call: Call) -> Response:
    return json_response(models.server_metadata())


async def _model_ready(call: Call) -> Response:
    name = _model(call)
    with call.state.models.use(name):
        return json_response({"name": name, "ready": True})


async def _metadata(call: Call) -> Response:
    with call.state.models.use(_model(call)) as served:
        return json_response(models.metadata(served.name, served.engine))


async def _config(call: Call) -> Response:
    with call.state.models.use(_model(call)) as served:
        return json_response(models.config(served.name, served.engine))


async def _statistics(call: Call) -> Response:
    name = _model(call) if "model" in call.request.path_params else ""
    return json_response({"model_stats": models.statistics(call, name)})


async def _index(call: Call) -> Response:
    request = parse(call.body or b"{}", IndexRequest)
    return json_response(models.index(call, request.ready))


def _check_site(call: Call) -> None:
    """Refuse what a page of another site has a browser send: it needs no key where none is set, and
    gets no answer to read, and the model would be gone. Nothing but a browser sends this header."""
    if call.header("sec-fetch-site") in ("cross-site", "same-site"):
        raise Refusal(403, "a page of another site loads and unloads no models")


async def _load(call: Call) -> Response:
    _check_site(call)
    request = parse(call.body or b"{}", LoadRequest)
    await models.load(call, _model(call), request.parameters)
    return Response()


async def _unload(call: Call) -> Response:
    _check_site(call)
    request = parse(call.body or b"{}", LoadRequest)
    await models.unload(call, _model(call), request.parameters)
    return Response()


def _endpoint(path: str, handle: Any, summary: str, **more: Any) -> Endpoint:
    return Endpoint(path, handle, refuse, summary=summary, tag=_TAG, **more)


_MODEL: Mapping[str, tuple[str, Any, str]] = {
    "": ("GET", _metadata, "A model's inputs and outputs."),
    "/ready": ("GET", _model_ready, "200 where the model answers."),
    "/config": ("GET", _config, "The same in Triton's words."),
    "/stats": ("GET", _statistics, "What a model has done."),
    "/infer": ("POST", _infer, "Answer tensors, in JSON or in bytes behind it."),
}

ENDPOINTS = [
    _endpoint("/v2", _server, "The server's name, version and extensions.", method="GET"),
    _endpoint("/v2/health/live", _live, "200 while the process runs.", method="GET", open=True),
    _endpoint("/v2/health/ready", _ready, "200 when every model is warm.", method="GET", open=True),
    _endpoint("/v2/models/stats", _statistics, "What all models have done.", method="GET"),
    *(
        _endpoint(f"/v2/models/{{model}}{version}{path}", handle, summary, method=method)
        for version in ("", "/versions/{version}")
        for path, (method, handle, summary) in _MODEL.items()
    ),
    _endpoint("/v2/repository/index", _index, "The models that are known."),
    _endpoint("/v2/repository/models/{model}/load", _load, "Load a model, or load it again."),
    _endpoint("/v2/repository/models/{model}/unload", _unload, "Take a model away."),
]
