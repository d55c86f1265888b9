"""The routes of Hugging Face's text-embeddings-inference (TEI)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.responses import Response

from bertrt.engine import Engine
from bertrt.results import plain as plain_result
from bertrt.serve.bodies import decode
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols import plain
from bertrt.serve.protocols.tei_bodies import (
    Cut,
    DecodeRequest,
    EmbedAllRequest,
    EmbedRequest,
    EmbedSparseRequest,
    Info,
    Prediction,
    PredictRequest,
    Question,
    RerankRequest,
    SimilarityRequest,
    SimpleToken,
    TokenizeRequest,
)
from bertrt.serve.protocols.vectors import (
    check_dimensions,
    check_finite,
    normalize,
    shorten,
    vectors,
)
from bertrt.serve.refusals import Refusal
from bertrt.serve.served import Answered, Served
from bertrt.text.shown import shown_tokens
from bertrt.version import __version__

__all__ = ["ENDPOINTS", "inputs_kind", "own_task", "refuse", "rerank", "told"]

_TAG = "text-embeddings-inference"
# Characters that /tokenize takes: their tokens' JSON has some 60 times as many.
_CHARACTERS = 1 << 20


class _EmptyError(Refusal):
    """TEI has a word of its own for it."""


_KINDS = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Overloaded"}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def told(refusal: Refusal) -> dict[str, Any]:
    """A refusal in TEI's words."""
    empty = isinstance(refusal, _EmptyError)
    kind = "Empty" if empty else _KINDS.get(refusal.status, "Validation")
    return {"error": str(refusal), "error_type": kind}


def refuse(refusal: Refusal) -> Response:
    """Likewise, as a response."""
    return json_response(told(refusal), refusal.status)


# --- what requests have in common ---------------------------------------------------------------

_Body = TypeVar("_Body", bound=Cut)


def _whole(body: _Body) -> _Body:
    """The request with what its `parameters` say."""
    if not body.parameters:
        return body
    # What is asked about stands in the body itself.
    for name in ("inputs", "query", "texts", "parameters"):
        if name in body.parameters:
            raise Refusal(422, f"the body's parameters hold `{name}`, which is no parameter")
    given = msgspec.structs.asdict(body) | {"parameters": None} | body.parameters
    try:
        return msgspec.convert(msgspec.to_builtins(given), type(body))
    except msgspec.ValidationError as error:
        raise Refusal(422, f"the body's parameters: {error}") from None


def _texts(inputs: str | Sequence[str], name: str = "inputs") -> list[str]:
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    if not texts:
        raise _EmptyError(400, f"`{name}` cannot be empty: expected a text or more")
    if "" in texts:
        raise _EmptyError(400, f"`{name}` holds an empty text, at {texts.index('')}")
    return texts


def _cut(body: Cut) -> dict[str, Any]:
    side = body.truncation_direction
    return {
        "truncate": body.truncate,
        "truncation_side": None if side is None else side.lower(),
    }


def _prompt(served: Served, name: str | None) -> str | None:
    """What to call a prompt for the engine, which would take an unknown name for a text."""
    prompts = served.settings.get("prompts", {})
    if name is not None and name not in prompts:
        there = f"its prompts are {', '.join(prompts)}" if prompts else "it has none"
        raise Refusal(422, f"the model has no prompt {name[:50]!r}; {there}")
    return name


def _tell(call: Call, answered: Answered, characters: int) -> None:
    """The headers about what it took, in milliseconds."""
    total = round((time.perf_counter() - call.started) * 1e3)
    call.headers |= {
        "x-compute-time": str(total),
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(sum(answered.tokens)),
        "x-total-time": str(total),
        "x-tokenization-time": str(round(answered.tokenize * 1e3)),
        "x-queue-time": str(round(answered.queue * 1e3)),
        "x-inference-time": str(round(answered.execute * 1e3)),
    }


def _score(score: float) -> float:
    check_finite(np.array(score))
    return score


# --- embeddings ---------------------------------------------------------------------------------


async def _embed(call: Call, body: EmbedRequest | None = None) -> Response:
    body = _whole(call.body if body is None else body)
    check_dimensions(body.dimensions)
    texts = _texts(body.inputs)
    found, answered = await _vectors(call, texts, body, body.normalize is not False)
    cut = [shorten(vector, body.dimensions) for vector in found]
    if body.normalize is False and body.dimensions is not None:
        cut = [vector[: body.dimensions] for vector in found]
    _tell(call, answered, sum(map(len, texts)))
    return json_response(cut)


async def _vectors(
    call: Call, texts: list[str], body: EmbedAllRequest | SimilarityRequest, unit: bool
) -> tuple[list[np.ndarray], Answered]:
    """Vectors with length 1, or as the model has them before it makes them so."""
    with call.use(None, ["embedding"]) as served:
        normal = served.settings.get("normalize", False)
        answered = await call.answer(
            texts,
            model=served.name,
            tasks=["embedding"],
            prompt=_prompt(served, body.prompt_name),
            settings=None if unit else {"normalize": False},
            **_cut(body),
        )
    found = vectors(answered)
    # What the model made so itself keeps its bits.
    return [normalize(own) for own in found] if unit and not normal else found, answered


async def _embed_all(call: Call) -> Response:
    body = _whole(call.body)
    texts = _texts(body.inputs)
    call.check_count(texts)
    with call.use(None, ["embedding"]) as served:
        call.fields |= {"model": served.name, "inputs": len(texts)}
        answered = await served.token_vectors(
            texts,
            prompt=_prompt(served, body.prompt_name),
            reason=call.uncut(served, **_cut(body)),
        )
    call.count(answered)
    for rows in answered.results:
        check_finite(rows)
    _tell(call, answered, sum(map(len, texts)))
    return json_response([np.ascontiguousarray(rows) for rows in answered.results])


async def _embed_sparse(call: Call) -> Response:
    with call.use(None) as served:
        raise Refusal(
            424,
            f"the model {served.name!r} gives no sparse vectors; /embed gives those of a model for "
            "embeddings",
        )


async def _similarity(call: Call, body: SimilarityRequest | None = None) -> Response:
    body = _whole(call.body if body is None else body)
    texts = [
        *_texts(body.inputs.source_sentence, "source_sentence"),
        *_texts(body.inputs.sentences, "sentences"),
    ]
    found, answered = await _vectors(call, texts, body, True)
    source, *others = (vector.astype(np.float64) for vector in found)
    _tell(call, answered, sum(map(len, texts)))
    return json_response([np.float32(np.add.reduce(source * other)) for other in others])


# --- predictions --------------------------------------------------------------------------------


async def predict(call: Call, body: PredictRequest) -> Response:
    """Answer with the model's own task."""
    body = _whole(body)
    inputs, single = _sequences(body.inputs)
    with call.use(None) as served:
        task = served.engine.task
        raw = body.raw_scores is True
        if raw and task not in ("classification", "regression"):
            raise Refusal(422, f"raw_scores is true, and a model for {task} has none")
        answered = await call.answer(
            inputs,
            model=served.name,
            settings={"activation": "identity"} if raw else None,
            **_cut(body),
        )
    show = _SHOWN.get(task or "", plain_result)
    found = [show(result) for result in answered.whole()]
    check_finite(found)
    _tell(call, answered, sum(map(_length, inputs)))
    return json_response(found[0] if single else found)


def _sequences(inputs: Any) -> tuple[list[Any], bool]:
    """Texts and pairs, and whether it was one alone."""
    if isinstance(inputs, Question):
        return [(inputs.question, inputs.context)], True
    if isinstance(inputs, str):
        return _texts(inputs), True
    if not inputs:
        raise _EmptyError(400, "`inputs` cannot be empty: expected a text, a pair or a batch")
    single = isinstance(inputs[0], str)
    batch = [inputs] if single else inputs
    for index, own in enumerate(batch):
        if not isinstance(own, list) or not all(isinstance(text, str) for text in own):
            raise Refusal(422, "inputs mixes texts and lists; expected one kind of them")
        if not 1 <= len(own) <= 2:
            where = "inputs" if single else f"inputs[{index}]"
            raise Refusal(
                422,
                f"{where} has {len(own)} texts; expected one, or two of a pair. A batch is a list "
                'of lists, [["a text"], ["another"]]',
            )
        if not any(own):
            raise _EmptyError(400, f"`inputs` holds an empty text, at {index}")
    return [own[0] if len(own) == 1 else tuple(own) for own in batch], single


def _length(item: Any) -> int:
    return len(item) if isinstance(item, str) else sum(map(len, item))


def _classified(result: Any) -> list[dict[str, Any]]:
    ranked = sorted(result.scores.items(), key=lambda one: -_score(one[1]))
    return [{"score": score, "label": label} for label, score in ranked]


def _tagged(result: Any) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": own.label,
            "score": _score(own.score),
            "word": own.text,
            "start": own.start,
            "end": own.end,
        }
        for own in result.entities
    ]


def _answered(result: Any) -> dict[str, Any]:
    return {
        "answer": result.text,
        "score": _score(result.score),
        "start": result.start,
        "end": result.end,
    }


# Of other tasks the results are bertrt's own.
_SHOWN: Mapping[str, Callable[[Any], Any]] = {
    "classification": _classified,
    # TEI's label of a model with one output
    "regression": lambda result: [{"score": _score(result.score), "label": "LABEL_0"}],
    "tagging": _tagged,
    "question-answering": _answered,
}


async def rerank(call: Call, body: RerankRequest) -> Response:
    """Order texts, the highest score first and equal ones in their order."""
    body = _whole(body)
    texts = body.texts
    if not texts:
        raise _EmptyError(400, "`texts` cannot be empty: expected one or more")
    answered = await call.answer(
        [(body.query, text) for text in texts],
        tasks=["regression"],
        settings={"activation": "identity"} if body.raw_scores else None,
        **_cut(body),
    )
    scores = [_score(result.score) for result in answered.whole()]
    _tell(call, answered, len(body.query) * len(texts) + sum(map(len, texts)))
    return json_response(
        [
            {"index": i, **({"text": texts[i]} if body.return_text else {}), "score": scores[i]}
            for i in sorted(range(len(texts)), key=lambda i: -scores[i])
        ]
    )


def inputs_kind(raw: bytes, call: Call, served: Served) -> Any:
    """The type of a body with `inputs` that is sent to a model's own task."""
    if served.engine.task != "embedding":
        return PredictRequest
    inputs = decode(raw, dict[str, msgspec.Raw], call.request)["inputs"]
    return SimilarityRequest if bytes(inputs).lstrip()[:1] == b"{" else EmbedRequest


async def own_task(call: Call, body: Any) -> Response:
    """Answer what `inputs_kind` tells."""
    if isinstance(body, PredictRequest):
        return await predict(call, body)
    return await (_embed(call, body) if isinstance(body, EmbedRequest) else _similarity(call, body))


async def _predict(call: Call) -> Response:
    if isinstance(call.body, PredictRequest):
        return await predict(call, call.body)
    return await plain.predict(call, call.body, None)


# --- tokens -------------------------------------------------------------------------------------


async def _tokenize(call: Call) -> Response:
    body: TokenizeRequest = call.body
    texts = _texts(body.inputs)
    call.check_count(texts)
    with call.use(None) as served:
        tokenizer = _tokenizer(served)
        name = _prompt(served, body.prompt_name)
        if name is not None:
            texts = [served.settings["prompts"][name] + text for text in texts]
        if (size := sum(map(len, texts))) > _CHARACTERS:
            raise Refusal(413, f"inputs has {size} characters; at most {_CHARACTERS} are tokenized")
        special = body.add_special_tokens is not False

        def work() -> list[list[Any]]:
            return [shown_tokens(tokenizer, text, special=special) for text in texts]

        found = await asyncio.to_thread(work)
    return json_response(found)


async def _decode(call: Call) -> Response:
    body: DecodeRequest = call.body
    given = body.ids
    if not given:
        raise _EmptyError(400, "`ids` cannot be empty: expected a list of ids, or several")
    if len({isinstance(own, list) for own in given}) > 1:
        raise Refusal(422, "ids mixes ids and lists of them; expected one kind")
    lists: list[Any] = given if isinstance(given[0], list) else [given]
    call.check_count(lists)
    with call.use(None) as served:
        tokenizer = _tokenizer(served)
        for i, ids in enumerate(lists):
            if not ids:
                raise _EmptyError(400, f"`ids` holds an empty list, at {i}")
            if max(ids) >= tokenizer.vocab_size:
                raise Refusal(
                    422,
                    f"ids: {max(ids)} is no id of the model's vocabulary, which has those below "
                    f"{tokenizer.vocab_size}",
                )
        special = body.skip_special_tokens is False

        def work() -> list[str]:
            return [tokenizer.decode(ids, special=special) for ids in lists]

        found = await asyncio.to_thread(work)
    return json_response(found)


def _tokenizer(served: Served) -> Any:
    if served.engine.tokenizer is None:
        raise Refusal(424, f"the model {served.name!r} has no tokenizer")
    return served.engine.tokenizer


# --- the model ----------------------------------------------------------------------------------


def _model_type(engine: Engine) -> dict[str, Any]:
    if engine.task == "embedding":
        return {"embedding": {"pooling": engine.settings.get("pooling")}}
    if engine.task == "classification" or engine.task == "regression":
        labels = engine.labels or ["LABEL_0"]
        found = {
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }
        return {"classifier" if engine.task == "classification" else "reranker": found}
    # Kinds that TEI does not have
    return {engine.task or "none": {"labels": engine.labels}}


async def _info(call: Call) -> Response:
    settings = call.state.settings
    with call.use(None) as served:
        engine = served.engine
        info = Info(
            model_id=served.name,
            model_sha=None,
            model_dtype=_DTYPES.get(engine.precision, engine.precision),
            model_type=_model_type(engine),
            max_concurrent_requests=settings.queue,
            max_input_length=engine.max_length,
            max_batch_tokens=engine.batch_tokens,
            tokenization_workers=1,
            max_batch_requests=None,
            max_client_batch_size=settings.max_inputs,
            auto_truncate=settings.auto_truncate,
            version=__version__,
            sha=None,
            docker_label=None,
        )
    return json_response(msgspec.to_builtins(info))


def _post(path: str, handle: Any, body: Any, answers: Any, summary: str) -> Endpoint:
    return Endpoint(path, handle, refuse, body=body, answers=answers, summary=summary, tag=_TAG)


ENDPOINTS = [
    _post("/embed", _embed, EmbedRequest, list[list[float]], "A vector for each text."),
    _post(
        "/embed_all",
        _embed_all,
        EmbedAllRequest,
        list[list[list[float]]],
        "A vector for each token of each text, special ones included, before any pooling.",
    ),
    _post(
        "/embed_sparse",
        _embed_sparse,
        EmbedSparseRequest,
        None,
        "Refused: no model here gives sparse vectors.",
    ),
    _post(
        "/predict",
        _predict,
        {"inputs": PredictRequest, "batch": plain.PredictRequest},
        list[Prediction | list[Prediction]],
        "Labels with their scores, or what else the model's task answers.",
    ),
    _post(
        "/similarity",
        _similarity,
        SimilarityRequest,
        list[float],
        "The cosine of a sentence's vector with that of each of others.",
    ),
    _post(
        "/tokenize",
        _tokenize,
        TokenizeRequest,
        list[list[SimpleToken]],
        "The tokens of each text, none of them cut.",
    ),
    _post("/decode", _decode, DecodeRequest, list[str], "Texts of ids."),
    Endpoint(
        "/info",
        _info,
        refuse,
        method="GET",
        answers=Info,
        summary="What is served, and how.",
        tag=_TAG,
    ),
]
