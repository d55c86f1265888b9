"""Embeddings: a vector for a text, its tokens or its words, pooled from a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError
from bertrt.results import Embedding
from bertrt.tasks.base import Request, Task
from bertrt.tasks.settings import POOLED_FROM
from bertrt.text.encoding import Encoding, Tokenizer

# An embedding is divided by this where its norm is smaller, as in PyTorch's normalize.
_LEAST_NORM = np.float32(1e-12)

__all__ = ["Embedder"]


class Embedder(Task):
    """Modes "tokens" and "words" follow scripts/bert/embedding.py of GluonNLP: the special tokens
    are left out, and a word's vector is made of those of its pieces."""

    def __init__(self, pooling: Mapping[str, Any]) -> None:
        self._mode, self._normalize = pooling["mode"], pooling["normalize"]
        self._subwords = pooling.get("subwords")
        self.outputs = (POOLED_FROM[self._mode],)
        self.rows = "tokens" if self.outputs == ("sequence_output",) else "seqs"

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`."""
        made = super().requests(texts, tokenizer)
        if self._mode not in ("tokens", "words"):
            return made
        return {
            i: replace(own, source=self._groups(own.sequences[0], tokenizer))
            if isinstance(own, Request)
            else own
            for i, own in made.items()
        }

    def _groups(
        self, encoding: Encoding, tokenizer: Tokenizer
    ) -> tuple[tuple[str, ...], list[list[int]]]:
        """The tokens or words, and the positions that each has."""
        names: list[str] = []
        groups: list[list[int]] = []
        special = True
        for position, token_id in enumerate(encoding.ids.tolist()):
            before, special = special, token_id in tokenizer.special_ids
            if special:
                continue
            token = tokenizer.token(token_id)
            if self._mode == "words" and not before and tokenizer.continues(token):
                names[-1] += token.removeprefix("##")
                groups[-1].append(position)
            else:
                names.append(token)
                groups.append([position])
        return tuple(names), groups

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Embedding]:
        """See `Task.read`."""
        rows = values[self.outputs[0]]
        starts = batch.cu_seqlens.tolist()
        embeddings = []
        for i, request in enumerate(requests):
            tokens = None
            if self._mode == "pooled":
                vector = rows[i].copy()
            else:
                own = rows[starts[i] : starts[i + 1]]
                if self._mode == "mean":
                    # A sum for each sequence, and no reduction over the whole batch: the order of
                    # the additions, and so every bit, is the same in any batch.
                    vector = np.add.reduce(own, axis=0)
                    vector /= len(own)
                elif self._mode == "cls":
                    vector = own[0].copy()
                else:
                    tokens, groups = request.source
                    vector = self._grouped(own, groups)
            if self._normalize:
                squares = np.add.reduce(np.square(vector), axis=-1, keepdims=True)
                vector /= np.maximum(np.sqrt(squares), _LEAST_NORM)
            embeddings.append(Embedding(vector, request.truncated, tokens))
        return embeddings

    def _grouped(self, rows: np.ndarray, groups: list[list[int]]) -> np.ndarray:
        vectors = np.empty((len(groups), rows.shape[1]), np.float32)
        for vector, positions in zip(vectors, groups, strict=True):
            if self._subwords == "last":
                vector[:] = rows[positions[-1]]
                continue
            vector[:] = rows[positions[0]]
            for position in positions[1:]:
                vector += rows[position]
            if self._subwords == "avg":
                vector /= np.float32(len(positions))
        return vectors
