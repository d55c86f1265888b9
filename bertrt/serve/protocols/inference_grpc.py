"""The Open Inference Protocol over gRPC, and gRPC's own health checks, in the server's event
loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from starlette.requests import Request

from bertrt.errors import BertrtError
from bertrt.serve import tracing
from bertrt.serve.endpoint import Call, State, let_in, request_id, tell
from bertrt.serve.logs import log
from bertrt.serve.protocols import inference_models as models
from bertrt.serve.protocols.inference import Asked, infer
from bertrt.serve.protocols.inference_models import check_count, check_parameters, check_version
from bertrt.serve.protocols.messages import Protocol, read_protocol
from bertrt.serve.protocols.tensors import Tensor, from_bytes, from_numbers, to_bytes
from bertrt.serve.refusals import Refusal, refusal_of

__all__ = ["serving"]

# Calls that may be open at a time; beyond them RESOURCE_EXHAUSTED at once.
_CALLS = 8192
# Calls whose messages are read at a time, those without a key apart from others. A message is in
# memory as far as it has come, and nobody is told how far; of one that is not read yet a window of
# HTTP/2's is, 64 KiB where it does not grow with what a connection carries.
_READS = 16
# Milliseconds of a connection, and of its last calls, whose answers nobody may take.
_CONNECTION, _LAST_CALLS = 600_000, 120_000
# Seconds for answers that are on their way when the server stops.
_GRACE = 30.0
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# A message of an error is a header of the answer, which clients bound.
_DETAILS = 2000
_CONTENTS = {"BYTES": "bytes_contents", "INT32": "int_contents", "INT64": "int64_contents"}


@dataclass(frozen=True)
class _Method:
    """A method.

    Attributes:
        handle: answers a message with the fields of another one, or with that.
        open: as of an `Endpoint`.
    """

    handle: Callable[[Call, Any, float | None], Awaitable[Any]]
    open: bool = False


# --- calls ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(
    state: State, host: str, port: int, tls: Mapping[str, Any]
) -> AsyncIterator[None]:
    """Serve while the block runs.

    Args:
        state: the server's.
        host, port: where it listens; port 0: any, which the log tells.
        tls: as `bertrt.serve.server.serve` has it.

    Raises:
        Refusal: the port cannot be had.
    """
    server = grpc.aio.server(
        maximum_concurrent_rpcs=_CALLS,
        options=[
            ("grpc.max_receive_message_length", state.settings.max_body),
            # Else two servers may share a port, without a word.
            ("grpc.so_reuseport", 0),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.max_connection_age_ms", _CONNECTION),
            ("grpc.max_connection_age_grace_ms", _LAST_CALLS),
        ],
    )
    reads = {is_open: asyncio.Semaphore(_READS) for is_open in (False, True)}
    here = Path(__file__).parent
    for name, methods in (("inference", _METHODS), ("health", _HEALTH)):
        protocol = read_protocol(here / f"{name}.proto")
        handlers = {
            # As a stream of one message, and in bytes: so a key is looked at and a clock set before
            # it is read, and what is no message is refused by us, and no fault of the server's.
            call: grpc.stream_unary_rpc_method_handler(
                functools.partial(
                    _answer, state, protocol, call, methods[call], reads[methods[call].open]
                )
            )
            for call in protocol.calls
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(protocol.service, handlers),)
        )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials := _credentials(tls):
            found = server.add_secure_port(address, credentials)
        else:
            found = server.add_insecure_port(address)
    except RuntimeError:
        found = 0
    if not found:
        log("no port", logging.ERROR, grpc=address)
        raise Refusal(500, f"gRPC cannot listen at {address}")
    await server.start()
    log("listening", grpc=found, host=host, tls=credentials is not None)
    try:
        yield
    finally:
        await server.stop(_GRACE)


def _credentials(tls: Mapping[str, Any]) -> grpc.ServerCredentials | None:
    certificate = tls.get("ssl_certfile")
    if certificate is None:
        return None
    chain = Path(certificate).read_bytes()
    # The key may stand in the certificate's file.
    key = Path(tls.get("ssl_keyfile") or certificate).read_bytes()
    clients = tls.get("ssl_ca_certs")
    return grpc.ssl_server_credentials(
        [(key, chain)],
        root_certificates=None if clients is None else Path(clients).read_bytes(),
        require_client_auth=clients is not None,
    )


async def _answer(
    state: State,
    protocol: Protocol,
    name: str,
    method: _Method,
    reads: asyncio.Semaphore,
    sent: Any,
    context: Any,
) -> bytes:
    """A call, from its head to the bytes of its answer."""
    route = f"/{protocol.service}/{name}"
    call = Call(state, _head(route, context))
    call.id = request_id(call.header("x-request-id"))
    request, response = protocol.calls[name]
    state.under_way += 1
    code, refusal, answer, held = grpc.StatusCode.CANCELLED, None, b"", 0
    try:
        with tracing.request(call.request, route):
            if not method.open:
                let_in(call)
                state.check_room()
            raw = await _read(call, context, reads)
            held = len(raw)
            state.body_bytes += held
            found = await method.handle(call, _parse(request, raw), context.time_remaining())
            message = response()
            answer = _fill(message, found).SerializeToString()
            code = grpc.StatusCode.OK
    except BertrtError as error:
        refusal = refusal_of(error)
        call.fields["error"] = type(error.__cause__ or error).__name__
    except Exception as error:
        # Its message may hold what was sent.
        log("fault", logging.ERROR, id=call.id, route=route, error=error)
        refusal = Refusal(500, f"a fault of the server; request {call.id}")
    finally:
        state.under_way -= 1
        state.body_bytes -= held
        if refusal is not None:
            code = _CODES.get(refusal.status, grpc.StatusCode.INVALID_ARGUMENT)
        tell(call, route, code.name, quiet=method.open)
    trailing = [("x-request-id", call.id)]
    if refusal is not None:
        trailing += [(key, value) for key, value in refusal.headers.items() if key == "retry-after"]
        await context.abort(code, str(refusal)[:_DETAILS], tuple(trailing))
    context.set_trailing_metadata(tuple(trailing))
    return answer


def _head(route: str, context: Any) -> Request:
    """The call's head, which is one of HTTP's."""
    kind, _, peer = unquote(context.peer() or "").partition(":")
    host, _, port = peer.rpartition(":")
    return Request(
        {
            "type": "http",
            "method": "POST",
            "path": route,
            "query_string": b"",
            "headers": [
                (key.encode(), value.encode() if isinstance(value, str) else value)
                for key, value in context.invocation_metadata() or ()
            ],
            "client": (host.strip("[]"), int(port)) if kind.startswith("ipv") else None,
        }
    )


async def _read(call: Call, context: Any, reads: asyncio.Semaphore) -> bytes:
    seconds = call.state.settings.body_seconds
    try:
        await asyncio.wait_for(reads.acquire(), seconds)
    except asyncio.TimeoutError:
        raise Refusal(429, f"{_READS} messages are being read", retry_after=1) from None
    try:
        found = await asyncio.wait_for(context.read(), seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the message did not come within {seconds:g} seconds") from None
    finally:
        reads.release()
    if not isinstance(found, bytes):
        raise Refusal(400, "there is no message")
    return found


def _parse(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Refusal(400, f"what was sent is no {kind.DESCRIPTOR.name}") from None


def _fill(message: Any, found: Any) -> Any:
    return ParseDict(found, message) if isinstance(found, dict) else found(message)


# --- inference ------------------------------------------------------------------------------------


async def _infer(call: Call, request: Any, seconds: float | None) -> Callable[[Any], Any]:
    check_version(request.model_version)
    for output in request.outputs:
        check_parameters(f"the output {output.name[:50]!r}", output.parameters, ())
    tensors = await infer(
        call,
        request.model_name,
        Asked(
            _tensors(call, request),
            [output.name for output in request.outputs],
            {
                name: value
                for name, value in _parameters(request.parameters).items()
                if name not in ("content_type", "binary_data_output")
            },
            seconds,
        ),
    )

    def fill(message: Any) -> Any:
        message.model_name, message.model_version = request.model_name, models.VERSION
        message.id = request.id
        for tensor in tensors:
            message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            message.raw_output_contents.append(to_bytes(tensor))
        return message

    return fill


def _tensors(call: Call, request: Any) -> dict[str, Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise Refusal(
            400, f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs"
        )
    found: dict[str, Tensor] = {}
    for i, own in enumerate(request.inputs):
        name, shape = own.name, list(own.shape)
        if name in found:
            raise Refusal(400, f"the input {name[:50]!r} is there twice")
        check_parameters(f"the input {name[:50]!r}", own.parameters, ("content_type",))
        check_count(call, shape)
        if raw:
            if own.HasField("contents"):
                raise Refusal(
                    400, f"the input {name[:50]!r} has contents, and raw_input_contents are there"
                )
            found[name] = from_bytes(name, own.datatype, shape, raw[i])
        else:
            contents = getattr(own.contents, _CONTENTS.get(own.datatype, "bytes_contents"))
            found[name] = from_numbers(name, own.datatype, shape, contents)
    return found


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by their names; None: one without a value."""
    found = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        found[name] = None if choice is None else getattr(value, choice)
    return found


# --- what there is --------------------------------------------------------------------------------


async def _live(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    return {"live": True}


async def _ready(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    return {"ready": call.state.ready}


async def _server(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    return models.server_metadata()


async def _model_ready(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    check_version(request.version)
    return {"ready": call.state.models.entry(request.name).state == "READY"}


async def _metadata(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    check_version(request.version)
    with call.state.models.use(models.check_name(request.name)) as served:
        return models.metadata(served.name, served.engine)


async def _config(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    check_version(request.version)
    with call.state.models.use(models.check_name(request.name)) as served:
        return {"config": models.config(served.name, served.engine)}


async def _statistics(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    check_version(request.version)
    return {"model_stats": models.statistics(call, request.name)}


async def _index(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    return {"models": models.index(call, request.ready)}


async def _load(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    await models.load(call, request.model_name, _parameters(request.parameters))
    return {}


async def _unload(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    await models.unload(call, request.model_name, _parameters(request.parameters))
    return {}


async def _check(call: Call, request: Any, seconds: float | None) -> dict[str, Any]:
    if request.service not in ("", "inference.GRPCInferenceService"):
        raise Refusal(404, f"there is no service {request.service[:50]!r}")
    return {"status": "SERVING" if call.state.ready else "NOT_SERVING"}


_METHODS = {
    "ServerLive": _Method(_live, open=True),
    "ServerReady": _Method(_ready, open=True),
    "ModelReady": _Method(_model_ready),
    "ServerMetadata": _Method(_server),
    "ModelMetadata": _Method(_metadata),
    "ModelInfer": _Method(_infer),
    "ModelConfig": _Method(_config),
    "ModelStatistics": _Method(_statistics),
    "RepositoryIndex": _Method(_index),
    "RepositoryModelLoad": _Method(_load),
    "RepositoryModelUnload": _Method(_unload),
}
_HEALTH = {"Check": _Method(_check, open=True)}
