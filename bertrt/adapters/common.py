"""What the adapters share: texts to vectors, documents in the order of a reranker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from bertrt.engine import Engine, reranking
from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    QueueFull,
)
from bertrt.results import Embedding, Ranked

__all__ = [
    "Kind",
    "aembed",
    "arank",
    "check_embeds",
    "check_ranks",
    "embed",
    "needs",
    "prompt_name",
    "rank",
    "similarity",
    "width",
]

Kind = Literal["query", "document"]

# The names that models have for the prompts of each.
_PROMPTS: dict[str, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


@contextmanager
def needs(package: str, extra: str) -> Iterator[None]:
    """Imports of an adapter's library in the block.

    Raises:
        MissingDependencyError: one is not there; the message names the extra.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{package} is needed here and cannot be imported ({error}): "
            f"pip install 'bertrt[{extra}]'"
        ) from error


def check_embeds(engine: Engine) -> Engine:
    """The engine, of a model that gives a text one vector.

    Raises:
        InvalidTypeError: it is no engine.
        InvalidInputError: its model is none of these.
    """
    _check_task(engine, "embedding", "a model of vectors")
    if (pooling := engine.settings["pooling"]) in ("tokens", "words"):
        raise InvalidInputError(
            f"a model that gives a text one vector is needed; the pooling of {engine!r} is "
            f"{pooling!r}, which gives several"
        )
    return engine


def check_ranks(engine: Engine) -> Engine:
    """The engine, of a model that gives a pair of texts one score.

    Raises:
        InvalidTypeError: it is no engine.
        InvalidInputError: its model is none of these.
    """
    _check_task(engine, "regression", "a model that gives a pair one score")
    return engine


def _check_task(engine: Engine, task: str, what: str) -> None:
    if not isinstance(engine, Engine):
        raise InvalidTypeError(
            f"engine is a {type(engine).__name__}; expected what bertrt.Engine.load gives"
        )
    if engine.task != task:
        raise InvalidInputError(
            f"{what} is needed ({task}); the task of {engine!r} is {engine.task or 'none'}"
        )


def prompt_name(engine: Engine, kind: Kind) -> str | None:
    """The name of the model's prompt for a kind of text; None, which is its default: it has none
    for it."""
    prompts = engine.settings["prompts"]
    there = [name for name in _PROMPTS[kind] if name in prompts]
    # sentence-transformers gives every model an empty "document", also one whose own is "passage".
    return next((name for name in there if prompts[name]), there[0] if there else None)


def width(engine: Engine) -> int:
    """How many numbers a vector has."""
    return int(engine.predict("a", prompt="").vector.shape[-1])


def similarity(engine: Engine) -> str | None:
    """How the model's vectors are meant to be compared, as in `bertrt.Embedding`."""
    found: str | None = engine.predict("a", prompt="").similarity
    return found


def embed(engine: Engine, texts: Sequence[str], prompt: str | None) -> np.ndarray:
    """The vectors of texts: float32, shape (texts, width). Raises what `Engine.predict` raises,
    but for no texts."""
    return _rows(engine, engine.predict(list(texts), prompt=prompt) if len(texts) else [])


async def aembed(engine: Engine, texts: Sequence[str], prompt: str | None) -> np.ndarray:
    """As `embed`, beside what else the loop has to do."""
    return _rows(engine, await _apredict(engine, list(texts), prompt) if len(texts) else [])


def _rows(engine: Engine, results: Sequence[Embedding]) -> np.ndarray:
    if not results:
        return np.zeros((0, width(engine)), np.float32)
    return np.stack([found.vector for found in results])


def rank(engine: Engine, query: str, documents: Sequence[str], top_k: int | None) -> list[Ranked]:
    """As `Engine.rerank`; of no documents none."""
    return engine.rerank(query, list(documents), top_k=top_k) if len(documents) else []


async def arank(
    engine: Engine, query: str, documents: Sequence[str], top_k: int | None
) -> list[Ranked]:
    """As `rank`, beside what else the loop has to do."""
    if not len(documents):
        return []
    pairs = reranking.pair_up(engine.task, query, list(documents), top_k)
    return reranking.rank(await _apredict(engine, pairs, None))[:top_k]


async def _apredict(engine: Engine, batch: list[Any], prompt: str | None) -> list[Any]:
    try:
        found: list[Any] = await engine.apredict(batch, prompt=prompt)
    except QueueFull:
        # Frameworks ask for all that they have, and expect to wait.
        found = await asyncio.to_thread(engine.predict, batch, prompt=prompt)
    return found
