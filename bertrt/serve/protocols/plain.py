"""bertrt's own routes: what `Engine.predict` takes and gives, of every task."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from bertrt.errors import BertrtError
from bertrt.results import plain
from bertrt.serve.endpoint import Call, Endpoint, json_response
from bertrt.serve.protocols.operation import refuse
from bertrt.serve.protocols.vectors import check_finite
from bertrt.serve.refusals import Refusal, refusal_of

__all__ = ["ENDPOINTS", "PredictRequest", "predict"]

_TAG = "bertrt"


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A batch.

    `batch`: a text, or a list of inputs: each a text, or a list of two texts for a pair (of
    question and context, say); for tagging a list of words. `on_error` "return" puts
    ``{"error": ...}`` in the place of an input that cannot be answered; with "raise", the default,
    the request is refused. `truncate` false refuses what is longer than the model, true cuts it.
    """

    batch: str | list[str | list[str]]
    model: str | None = None
    prompt: str | None = None
    on_error: str = "raise"
    priority: int = 0
    timeout: float | None = None
    truncate: bool | None = None


class PredictResponse(msgspec.Struct):
    """The results, as `bertrt predict --json` prints them, in the batch's order."""

    model: str
    results: list[dict[str, Any]]
    tokens: int


class ModelsResponse(msgspec.Struct):
    """The models that are known."""

    models: list[dict[str, Any]]


async def predict(call: Call, body: PredictRequest, model: str | None) -> Response:
    """Answer a batch with the model of this name; None: the first one."""
    if body.on_error not in ("raise", "return"):
        raise Refusal(422, f"on_error is {body.on_error[:50]!r}; expected 'raise' or 'return'")
    if body.timeout is not None and not body.timeout >= 0:
        raise Refusal(422, f"timeout is {body.timeout}; expected seconds, 0 or more")
    if model is not None and body.model is not None and model != body.model:
        raise Refusal(
            422, f"the path names the model {model[:50]!r}, and the body {body.model[:50]!r}"
        )
    with call.use(body.model if model is None else model) as served:
        texts = [body.batch] if isinstance(body.batch, str) else body.batch
        # A list of words stays one; of two texts it is a pair for every task but tagging.
        inputs = [
            item if isinstance(item, str) or served.engine.task == "tagging" else tuple(item)
            for item in texts
        ]
        answered = await call.answer(
            inputs,
            model=served.name,
            prompt=body.prompt,
            priority=body.priority or None,
            deadline=body.timeout,
            truncate=body.truncate,
        )
    results: list[Any] = []
    for result in answered.results:
        try:
            results.append(_shown(result))
        except Refusal as refusal:
            if body.on_error == "raise":
                raise
            results.append({"error": str(refusal)})
    return json_response(
        {"model": call.fields["model"], "results": results, "tokens": sum(answered.tokens)}
    )


def _shown(result: Any) -> Any:
    if isinstance(result, BertrtError):
        raise refusal_of(result)
    found = plain(result)
    check_finite(found)
    return found


async def _predict(call: Call) -> Response:
    return await predict(call, call.body, call.request.path_params.get("model"))


async def _models(call: Call) -> Response:
    models = call.state.models
    found: list[dict[str, Any]] = []
    for entry in models.index():
        found.append({"name": entry.name, "state": entry.state, "reason": entry.reason})
    for served in models.served():
        engine = served.engine
        about = next(model for model in found if model["name"] == served.name)
        about |= {
            "task": engine.task,
            "labels": engine.labels,
            "max_length": engine.max_length,
            "backend": engine.backend,
            "device": engine.device,
            "precision": engine.precision,
            "provider": engine.provider,
            "threads": engine.threads,
        }
    return json_response({"models": found})


ENDPOINTS = [
    Endpoint(
        "/models/{model}/predict",
        _predict,
        refuse,
        body=PredictRequest,
        answers=PredictResponse,
        summary="Answer a batch by the model's task.",
        tag=_TAG,
    ),
    Endpoint(
        "/models",
        _models,
        refuse,
        method="GET",
        answers=ModelsResponse,
        summary="The models, with what each is and runs on.",
        tag=_TAG,
    ),
]
