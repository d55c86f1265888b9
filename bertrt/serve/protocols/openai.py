"""OpenAI's routes: embeddings and the list of models."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from starlette.responses import Response

from bertrt.engine import Encoding
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols.vectors import check_dimensions, shorten, vectors
from bertrt.serve.refusals import Refusal
from bertrt.serve.served import Served

__all__ = ["ENDPOINTS", "refuse"]

_TAG = "OpenAI"
# OpenAI's own bounds of a request.
_MOST_INPUTS, _MOST_TOKENS = 2048, 300_000
# A character gives four tokens at most (bytes), and a text has a few special ones.
_PER_CHARACTER, _SPECIAL = 4, 8

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be embedded: a text, a list of texts, or one or several lists of ids of the
    model's own vocabulary, which are run as they are, special tokens and all."""

    input: str | list[str | Id | list[Id]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class EmbeddingObject(msgspec.Struct):
    """A vector: numbers, or the base64 of little-endian float32."""

    object: str
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct):
    """Tokens that were read, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    object: str
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class ModelObject(msgspec.Struct):
    """A model; `created` is when it was loaded, in seconds since 1970."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    """The models that answer."""

    object: str
    data: list[ModelObject]


# What each status is called, and what it is where OpenAI has another one for it
_TYPES = {429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_STATUSES = {413: 400, 415: 400, 422: 400, 424: 400}


def refuse(refusal: Refusal) -> Response:
    """A refusal in OpenAI's words."""
    status = _STATUSES.get(refusal.status, refusal.status)
    error = {
        "message": str(refusal),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": "model" if status == 404 else None,
        "code": _CODES.get(status),
    }
    return json_response({"error": error}, status)


async def _embeddings(call: Call) -> Response:
    body: EmbeddingsRequest = call.body
    check_dimensions(body.dimensions)
    inputs = _inputs(body.input)
    if len(inputs) > _MOST_INPUTS:
        raise Refusal(400, f"there are {len(inputs)} inputs; at most {_MOST_INPUTS} are taken")
    with call.use(body.model, ["embedding"]) as served:
        await _check_tokens(served, inputs)
        answered = await call.answer(inputs, model=served.name, tasks=["embedding"])
    found = [shorten(vector, body.dimensions) for vector in vectors(answered)]
    tokens = sum(answered.tokens)
    return json_response(
        {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _in_base64(vector) if body.encoding_format == "base64" else vector,
                }
                for index, vector in enumerate(found)
            ],
            "model": call.fields["model"],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _inputs(given: Any) -> list[Any]:
    """Texts, or encodings."""
    if isinstance(given, str):
        given = [given]
    kinds = {type(item) for item in given}
    if len(kinds) > 1:
        raise Refusal(422, "input mixes kinds; expected texts only, ids only or lists of ids only")
    if kinds == {str}:
        if "" in given:
            raise Refusal(422, f"input[{given.index('')}] is an empty string")
        return list(given)
    if kinds == {int}:
        given = [given]
    for index, ids in enumerate(given):
        if not ids:
            raise Refusal(422, f"input[{index}] is an empty list of ids")
    return [Encoding(np.array(ids, np.int32), np.zeros(len(ids), np.int32), False) for ids in given]


async def _check_tokens(served: Served, inputs: list[Any]) -> None:
    """Refuse more tokens than OpenAI takes at once. Only what may have so many is counted."""
    if isinstance(inputs[0] if inputs else "", Encoding):
        count = sum(len(one.ids) for one in inputs)
    else:
        engine = served.engine
        longest = _PER_CHARACTER * sum(map(len, inputs)) + _SPECIAL * len(inputs)
        if min(longest, len(inputs) * engine.max_length) <= _MOST_TOKENS:
            return
        encodings = await asyncio.to_thread(engine.tokenize, inputs)
        count = sum(len(one.ids) for one in encodings)
    if count > _MOST_TOKENS:
        raise Refusal(422, f"the inputs have {count} tokens; at most {_MOST_TOKENS} are taken")


def _in_base64(vector: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").data).decode()


def _shown(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.loaded,
        "owned_by": "bertrt",
    }


async def _models(call: Call) -> Response:
    return json_response(
        {"object": "list", "data": [_shown(served) for served in call.state.models.served()]}
    )


async def _model(call: Call) -> Response:
    with call.use(call.request.path_params["model"]) as served:
        return json_response(_shown(served))


ENDPOINTS = [
    Endpoint(
        "/v1/embeddings",
        _embeddings,
        refuse,
        body=EmbeddingsRequest,
        answers=EmbeddingsResponse,
        summary="A vector for each text.",
        tag=_TAG,
    ),
    Endpoint(
        "/v1/models",
        _models,
        refuse,
        method="GET",
        answers=ModelList,
        summary="The models that answer.",
        tag=_TAG,
    ),
    Endpoint(
        "/v1/models/{model}",
        _model,
        refuse,
        method="GET",
        answers=ModelObject,
        summary="One of them.",
        tag=_TAG,
    ),
]
