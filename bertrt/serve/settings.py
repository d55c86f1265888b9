"""How a server is set up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bertrt.engine import Batching

__all__ = ["NAME", "Settings"]

# What a model may be called.
NAME = re.compile(r"[\w.+-]{1,200}")


@dataclass(frozen=True)
class Settings:
    """What `bertrt serve` was told.

    Attributes:
        models: the models to serve from the start, by the name that requests call them.
        engine: what `bertrt.Engine.load` is told of each: backend, device, precision, threads.
        repository: a directory whose subdirectories may be loaded as models while it serves; None:
            only those of `models` may be loaded again.
        tokens: the budget of tokens of a batch; None: `Batching`'s own.
        queue: how many inputs of a model may wait.
        wait_seconds: what a request may wait: beyond it, by the pace of those before it, it is
            refused at once.
        max_body: bytes of a request's body, at most.
        max_inputs: texts, pairs or documents of a request, at most.
        body_seconds: by then a request's body has to be there.
        drain_seconds: what requests under way get to end, once the server is asked to stop.
        cache_bytes: what a model's answers may take that are kept for the same input; 0: none are.
        api_keys: one of these has to come with a request; none: no key is asked for.
        auto_truncate: whether a text that is longer than its model is cut where a request does not
            say.
    """

    models: Mapping[str, Path]
    engine: Mapping[str, Any] = field(default_factory=dict)
    repository: Path | None = None
    tokens: int | None = None
    queue: int = 8192
    wait_seconds: float = 10.0
    max_body: int = 16 << 20
    max_inputs: int = 2048
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    cache_bytes: int = 64 << 20
    api_keys: tuple[str, ...] = ()
    auto_truncate: bool = True

    @property
    def batching(self) -> Batching:
        """That of every engine."""
        return Batching(tokens=self.tokens, queue=self.queue)
