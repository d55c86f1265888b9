"""Embeddings: a vector for a text, its tokens or its words, pooled from a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError, ModelFormatError
from bertrt.results import Embedding
from bertrt.tasks.base import Request, Task
from bertrt.tasks.modules import Module, normalize
from bertrt.tasks.settings import GROUPED, POOLED_FROM
from bertrt.text.encoding import Encoding, Tokenizer

__all__ = ["Embedder", "pooled_width"]


def _mean(rows: np.ndarray, first: int) -> np.ndarray:
    vector = np.add.reduce(rows, axis=0)
    vector /= len(rows)
    return np.asarray(vector)


def _mean_sqrt(rows: np.ndarray, first: int) -> np.ndarray:
    vector = np.add.reduce(rows, axis=0)
    vector /= np.sqrt(np.float32(len(rows)))
    return np.asarray(vector)


def _weighted_mean(rows: np.ndarray, first: int) -> np.ndarray:
    # A token weighs as much as its place in the whole sequence, from 1.
    weights = np.arange(first + 1, first + 1 + len(rows), dtype=np.float32)
    vector = np.add.reduce(rows * weights[:, None], axis=0)
    vector /= weights.sum()
    return np.asarray(vector)


# What becomes of a sequence's rows, the first of which stands at `first`; as in Pooling of
# sentence-transformers 6. A sum for each sequence, and no reduction over the whole batch: the order
# of the additions, and so every bit, is the same in any batch.
_POOLINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": _mean,
    "cls": lambda rows, first: rows[0],
    "max": lambda rows, first: rows.max(axis=0),
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda rows, first: rows[-1],
}


def pooled_width(pooling: Mapping[str, Any], hidden: int) -> int:
    """How many numbers the pooling gives, of rows with `hidden` numbers."""
    return hidden if isinstance(pooling["mode"], str) else hidden * len(pooling["mode"])


class Embedder(Task):
    """Modes "tokens" and "words" follow scripts/bert/embedding.py of GluonNLP: the special tokens
    are left out, and a word's vector is made of those of its pieces. The others, and what comes
    behind the pooling, are those of sentence-transformers."""

    def __init__(self, pooling: Mapping[str, Any], modules: Sequence[Module] = ()) -> None:
        mode = pooling["mode"]
        self._modes = (mode,) if isinstance(mode, str) else tuple(mode)
        self._grouped_by = mode if mode in GROUPED else None
        if self._grouped_by and any(module.widths for module in modules):
            raise ModelFormatError(
                f"the pooling {mode} gives several vectors of a text, and the modules behind the "
                "pooling take one"
            )
        self._normalize = pooling["normalize"]
        self._subwords = pooling.get("subwords")
        self._include_prompt = pooling["include_prompt"]
        self._truncate_dim = pooling["truncate_dim"]
        self._similarity = pooling["similarity"]
        self._modules = modules
        self.outputs = (POOLED_FROM[self._modes[0]],)
        self.rows = "tokens" if self.outputs == ("sequence_output",) else "seqs"

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`."""
        made = super().requests(texts, tokenizer)
        if self._grouped_by is None:
            return made
        return {
            i: replace(own, source=self._groups(own.sequences[0], tokenizer))
            if isinstance(own, Request)
            else own
            for i, own in made.items()
        }

    def request_of(
        self, index: int, encoding: Encoding, tokenizer: Tokenizer | None
    ) -> Request | BertrtError:
        """See `Task.request_of`. Tokens and words are told by the model's tokenizer."""
        if self._grouped_by is None:
            return super().request_of(index, encoding, tokenizer)
        if tokenizer is None:
            return InvalidInputError(
                f"batch[{index}] comes in ids, and the model has no tokenizer to tell the "
                f"{self._grouped_by} from them"
            )
        groups = self._groups(encoding, tokenizer)
        return Request([encoding], encoding.truncated, source=groups)

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
            if self._grouped_by == "words" and not before and tokenizer.continues(token):
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
            if self.rows == "seqs":
                vector = rows[i]
            elif self._grouped_by is None:
                vector = self._pooled(rows[starts[i] : starts[i + 1]], request)
            else:
                tokens, groups = request.source
                vector = self._grouped(rows[starts[i] : starts[i + 1]], groups)
            for module in self._modules:
                vector = module(vector)
            if self._normalize:
                vector = normalize(vector)
            # A copy: what is handed out must not keep its whole batch alive.
            vector = np.array(vector[..., : self._truncate_dim])
            embeddings.append(Embedding(vector, request.truncated, tokens, self._similarity))
        return embeddings

    def _pooled(self, rows: np.ndarray, request: Request) -> np.ndarray:
        first = 0 if self._include_prompt else request.sequences[0].prompt
        if first >= len(rows):
            raise InvalidInputError(
                f"the prompt's {first} tokens are left out of the pooling (include_prompt is "
                f"false), and a text has only {len(rows)} with it: nothing is left to pool"
            )
        parts = [_POOLINGS[mode](rows[first:], first) for mode in self._modes]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
