"""Labelled data in memory: texts with what a model should answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Examples", "GoldAnswer"]


@dataclass(frozen=True)
class GoldAnswer:
    """An answer that the data give to a question.

    Attributes:
        text: the answer.
        start: where it begins in the context, in characters, as the file says.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        task: what they are for: "classification", "regression", "question-answering", "tagging".
        path: the file, absolute.
        sha256: of the file.
        texts: what `Engine.predict` takes: str, (str, str), or lists of words for tagging.
        labels: one for each text. Classification: str. Regression: float, finite.
            Question answering: a tuple of `GoldAnswer`, empty where the context has none. Tagging:
            a list with a tag for each word, in the scheme BIOES whatever the file's scheme is.
        places: where in the file each is, such as "line 12".
        left_out: how many rows the task's rules leave out; see `read_examples`.
    """

    task: str
    path: Path
    sha256: str
    texts: list[Any]
    labels: list[Any]
    places: list[str]
    left_out: int

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """The file and the place in it of an example, as messages name it."""
        return f"{self.path}, {self.places[index]}"

    def take(self, indices: Iterable[int]) -> Examples:
        """Some of the examples, in the order of `indices`."""
        chosen = list(indices)
        return dataclasses.replace(
            self,
            texts=[self.texts[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            places=[self.places[i] for i in chosen],
        )
