"""Reranking as Cohere, Jina and vLLM have it, and TEI's at the path that they share; and the
model's own task."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from bertrt.serve.bodies import decode
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols import plain, tei, tei_bodies
from bertrt.serve.protocols.vectors import check_finite
from bertrt.serve.refusals import Refusal

__all__ = ["ENDPOINTS"]

_TAG = "rerank"
# Cohere's least urgent requests are 999; bertrt's, -10.
_LEAST = 10


class RerankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Documents to be ordered by what a model of pairs gives for each with the query.

    A document is a text, or an object with a `text`. `top_n` is how many of the best are wanted.
    `max_tokens_per_doc`, `truncate_prompt_tokens` (-1) and `max_chunks_per_doc` may say what the
    model does anyway; less is refused. The lower `priority`, the sooner.
    """

    query: str
    documents: list[str | dict[str, Any]]
    model: str | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int | None = None
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    user: str | None = None


class RerankResult(msgspec.Struct, omit_defaults=True):
    """A document's place."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankResponse(msgspec.Struct):
    """The documents, the highest score first and equal ones in their order."""

    id: str
    model: str
    results: list[RerankResult]
    meta: dict[str, Any]
    usage: dict[str, int]


def refuse(refusal: Refusal) -> Response:
    """A refusal with the fields that clients of each kind look for."""
    return json_response({**tei.told(refusal), "message": str(refusal)}, refusal.status)


def _check(body: RerankRequest, max_length: int) -> None:
    """Refuse what would be ignored."""
    if body.top_n is not None and body.top_n < 1:
        raise Refusal(422, f"top_n is {body.top_n}; expected a whole number from 1")
    if body.rank_fields not in (None, ["text"]):
        raise Refusal(422, "rank_fields names other fields than 'text', which is what is ranked")
    most = body.max_tokens_per_doc
    if most is not None and most < max_length:
        raise Refusal(
            422,
            f"max_tokens_per_doc is {most}; a query and a document are cut to the model's "
            f"{max_length} tokens together, and a document by itself is not",
        )
    if body.max_chunks_per_doc is not None and body.max_chunks_per_doc < 1:
        raise Refusal(422, f"max_chunks_per_doc is {body.max_chunks_per_doc}; expected 1 or more")
    if body.truncate_prompt_tokens not in (None, -1, max_length):
        raise Refusal(
            422,
            f"truncate_prompt_tokens is {body.truncate_prompt_tokens}; expected -1 or "
            f"{max_length}, which are the model's",
        )


def _text(index: int, document: str | dict[str, Any]) -> str:
    if isinstance(document, str):
        return document
    text = document.get("text")
    if not isinstance(text, str):
        raise Refusal(422, f"documents[{index}] is an object without a text under 'text'")
    return text


async def _rank(call: Call, body: RerankRequest, version: str, *, returned: bool) -> Response:
    """Order documents; `returned` is what `return_documents` is unless the request says."""
    if not body.documents:
        raise Refusal(400, "documents is empty; expected one or more")
    texts = [_text(i, document) for i, document in enumerate(body.documents)]
    with call.use(body.model, ["regression"]) as served:
        _check(body, served.engine.max_length)
        answered = await call.answer(
            [(body.query, text) for text in texts],
            model=served.name,
            tasks=["regression"],
            priority=None if body.priority is None else -max(0, min(body.priority, _LEAST)),
            truncate=None if body.truncate_prompt_tokens is None else True,
        )
    scores = [result.score for result in answered.whole()]
    for score in scores:
        check_finite(score)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
    given = returned if body.return_documents is None else body.return_documents
    results: list[dict[str, Any]] = []
    for i in order:
        results.append({"index": i, "relevance_score": scores[i]})
        if given:
            document = body.documents[i]
            results[-1]["document"] = {"text": document} if isinstance(document, str) else document
    tokens = sum(answered.tokens)
    return json_response(
        {
            "id": call.id,
            "model": call.fields["model"],
            "results": results,
            "meta": {"api_version": {"version": version}, "tokens": {"input_tokens": tokens}},
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


async def _shared(call: Call) -> Response:
    if isinstance(call.body, tei_bodies.RerankRequest):
        return await tei.rerank(call, call.body)
    return await _rank(call, call.body, "1", returned=True)


async def _first(call: Call) -> Response:
    # Jina and vLLM return them unless told not to; who does not look for them is not disturbed.
    return await _rank(call, call.body, "1", returned=True)


async def _second(call: Call) -> Response:
    return await _rank(call, call.body, "2", returned=False)


async def _own_task(call: Call) -> Response:
    """The model's own task, in the dialect that the body's fields tell."""
    with call.use(None) as served:
        kinds = {
            "inputs": None,
            "batch": plain.PredictRequest,
            "texts": tei_bodies.RerankRequest,
            "documents": RerankRequest,
        }
        told = decode(call.body, dict[str, msgspec.Raw], call.request)
        if "inputs" in told:
            kinds["inputs"] = tei.inputs_kind(call.body, call, served)
        body = decode(call.body, kinds, call.request)
        call.body = body
        if isinstance(body, plain.PredictRequest):
            return await plain.predict(call, body, None)
        if isinstance(body, tei_bodies.RerankRequest | RerankRequest):
            return await _shared(call)
        return await tei.own_task(call, body)


def _post(path: str, handle: Any, body: Any, answers: Any, summary: str) -> Endpoint:
    return Endpoint(path, handle, refuse, body=body, answers=answers, summary=summary, tag=_TAG)


ENDPOINTS = [
    _post(
        "/rerank",
        _shared,
        {"texts": tei_bodies.RerankRequest, "documents": RerankRequest},
        list[tei_bodies.Rank] | RerankResponse,
        "Documents in order: TEI's body has texts, that of Jina and vLLM documents.",
    ),
    _post("/v1/rerank", _first, RerankRequest, RerankResponse, "As Cohere v1, Jina and vLLM."),
    _post("/v2/rerank", _second, RerankRequest, RerankResponse, "As Cohere v2."),
    _post("/", _own_task, None, None, "The first model's own task, in TEI's bodies or bertrt's."),
]
