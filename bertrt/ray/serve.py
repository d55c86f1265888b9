"""A model behind Ray Serve: a deployment whose batches go by tokens."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    OutOfMemoryError,
    QueueFull,
)
from bertrt.ray.load import load_engine
from bertrt.results import plain

try:
    from ray import serve
except ImportError as error:
    raise MissingDependencyError(
        "bertrt.ray.serve needs Ray Serve: pip install 'bertrt[ray]'"
    ) from error

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse

__all__ = ["Predict"]

# Serve's own bound, 5 requests a replica, is below what fills a batch; the engine bounds what
# waits.
_MAX_ONGOING_REQUESTS = 1024


# `serve.batch` with a `batch_size_fn` is not used. It has a request wait for others while the
# engine idles, refuses one above the budget, puts one that does not fit behind all that came
# later, and has one bad text fail its batch.
@serve.deployment(name="bertrt", max_ongoing_requests=_MAX_ONGOING_REQUESTS)
class Predict:
    """A replica is an engine, and the engine's own scheduler makes its batches: of what all callers
    have sent, by a budget of tokens. An answer has the bits of `Engine.predict` for its input
    alone::

        two = Predict.options(num_replicas=2, ray_actor_options={"num_cpus": 2})
        handle = serve.run(two.bind("model.bundle"))
        handle.predict.remote(["a text", "another"]).result()

    Over HTTP: POST with ``{"batch": ..., "prompt": ..., "on_error": ...}`` as JSON, of which the
    last two may be left out. `batch` is a text, or a list of inputs: each a text, or a list of two
    texts for a pair; for tagging a list of words. The answer is ``{"results": [...]}``, an object
    for each input with the fields of its result, or, with `on_error` "return", ``{"error": ...}``
    where it has none. Otherwise ``{"error": ...}`` with 400 (no such body), 422 (an input that
    cannot be answered), 429 (too much waits) or 503 (out of memory). That is how `bertrt serve`
    answers at /models/{model}/predict.

    Args:
        path: the model, at the same place on every node.
        load: the further arguments of `Engine.load`, such as `batching`. `threads` is the replica's
            num_cpus where it is not given. On a GPU (num_gpus=1) `device="cuda"` is the one that
            Ray lets the replica see.
    """

    def __init__(self, path: str | os.PathLike[str], **load: Any) -> None:
        self._engine = load_engine(path, load)

    async def predict(self, batch: Any, **options: Any) -> Any:
        """`Engine.apredict` of the replica's engine: the same arguments, results and errors. A call
        that is cancelled takes back what has not run."""
        return await self._engine.apredict(batch, **options)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request over HTTP."""
        from starlette.responses import JSONResponse

        try:
            options = _read(await request.body())
        except InvalidInputError as error:
            return JSONResponse({"error": str(error)}, 400)
        batch = options.pop("batch")
        if isinstance(batch, str):
            batch = [batch]
        if isinstance(batch, list) and self._engine.task != "tagging":
            batch = [tuple(item) if isinstance(item, list) else item for item in batch]
        try:
            results = await self._engine.apredict(batch, **options)
        except QueueFull as error:
            return JSONResponse({"error": str(error)}, 429, {"Retry-After": "1"})
        except OutOfMemoryError as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})
        except (InvalidInputError, InvalidTypeError) as error:
            return JSONResponse({"error": str(error)}, 422)
        told = [
            {"error": str(result)} if isinstance(result, BertrtError) else plain(result)
            for result in results
        ]
        return JSONResponse({"results": told})


def _read(body: bytes) -> dict[str, Any]:
    """What a request's body asks for."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidInputError("the body is no JSON") from None
    if not isinstance(content, dict) or "batch" not in content:
        raise InvalidInputError('the body is no JSON object with the key "batch"')
    if unknown := content.keys() - {"batch", "prompt", "on_error"}:
        raise InvalidInputError(
            f'the body has the key {min(unknown)!r}; it may have "batch", "prompt", "on_error"'
        )
    return content
