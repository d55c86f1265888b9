"""Reranking: a query with each of several documents, ordered by a model of one score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.results import Ranked, Regression

__all__ = ["pair_up", "rank"]


def pair_up(task: str | None, query: Any, documents: Any, top_k: Any) -> list[tuple[str, str]]:
    """The pairs to predict for; raises what `Engine.rerank` raises for its arguments."""
    if task != "regression":
        raise InvalidInputError(
            "rerank needs a model that gives a pair one score (regression); the task of this one "
            f"is {task or 'none'}"
        )
    if not isinstance(query, str):
        raise InvalidTypeError(f"query is a {type(query).__name__}; expected a str")
    if not isinstance(documents, list | tuple):
        raise InvalidTypeError(f"documents is a {type(documents).__name__}; expected a list of str")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise InvalidInputError(f"top_k is {top_k!r}; expected a whole number from 1, or None")
    return [(query, document) for document in documents]


def rank(results: Sequence[Regression]) -> list[Ranked]:
    """The documents' places, the highest score first and equal ones in their order."""
    ranked = [Ranked(index, own.score, own.truncated) for index, own in enumerate(results)]
    return sorted(ranked, key=lambda one: -one.score)
