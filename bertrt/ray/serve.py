"""A model behind Ray Serve: a deployment whose batches go by tokens."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    QueueFull,
)
from bertrt.ray.load import load_engine

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

# Serve's own bound, 5 requests a replica, is below what fills a batch. The engine bounds what waits.
_MAX_ONGOING_REQUESTS = 1024


@serve.deployment(name="bertrt", max_ongoing_requests=_MAX_ONGOING_REQUESTS)
class Predict:
    """A replica is an engine, and the engine's own scheduler makes its batches: of what all callers
    have sent, by a budget of tokens. An answer has the bits of `Engine.predict` for its input
    alone::

        app = Predict.options(num_replicas=2, ray_actor_options={"num_cpus": 2}).bind("model.bundle")
        handle = serve.run(app)
        handle.predict.remote(["a text", "another"]).result()

    `serve.batch` with a `batch_size_fn` is not used. It would have a text wait for others while the
    engine idles, refuse a request above the budget, send one that does not fit to the end of the
    queue, and have one bad text fail its batch.

    Over HTTP: POST with ``{"inputs": ..., "prompt": ...}`` as JSON. `inputs` is a text, or a list of
    texts, of pairs (lists of two; ``[["a", "b"]]`` is one), or for tagging of lists of words;
    `prompt` may be left out. The answer is a list with an object for each input, or for a single
    text one object: the fields of its result. 400: what `Engine.predict` refuses, as
    ``{"error": message}``. 503: too much waits already.

    Args:
        path: the model, at the same place on every node.
        load: the further arguments of `Engine.load`. `threads` is the replica's num_cpus where it is
            not given. On a GPU (num_gpus=1) `device="cuda"` is the one that Ray lets the replica see.
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
            inputs, prompt = self._read(await request.body())
            results = await self._engine.apredict(inputs, prompt=prompt)
        except (InvalidInputError, InvalidTypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except QueueFull as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})
        return JSONResponse(_plain(results))

    def _read(self, body: bytes) -> tuple[Any, str | None]:
        """The inputs and the prompt of a request's body."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidInputError("the body is no JSON") from None
        if not isinstance(content, dict) or "inputs" not in content:
            raise InvalidInputError('the body is no JSON object with the key "inputs"')
        if unknown := content.keys() - {"inputs", "prompt"}:
            raise InvalidInputError(
                f'the body has the key {min(unknown)!r}; it may have "inputs" and "prompt"'
            )
        inputs = content["inputs"]
        if isinstance(inputs, list) and self._engine.task != "tagging":
            inputs = [tuple(item) if isinstance(item, list) else item for item in inputs]
        return inputs, content.get("prompt")


def _plain(value: Any) -> Any:
    """Results as JSON has them. A float32 is the float of the same value, so that no bit is lost."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {name: _plain(item) for name, item in vars(value).items()}
    return value
