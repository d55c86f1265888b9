"""Masked language modelling: the likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError, ModelFormatError
from bertrt.results import Candidate, FillMask
from bertrt.tasks.base import Request, Task, softmax
from bertrt.text.encoding import Encoding, Tokenizer

__all__ = ["MaskFiller"]


class MaskFiller(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("masked_lm_outputs",)
    rows = "positions"

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`. The mask token, where a text spells it out, means the mask."""
        if tokenizer.mask is None:
            raise ModelFormatError("the model's vocabulary has no mask token")
        made: dict[int, Request | BertrtError] = {}
        encodings = tokenizer.encode(list(texts.values()), masks=True)
        for (i, text), encoding in zip(texts.items(), encodings, strict=True):
            given = "".join(text).count(tokenizer.mask)
            positions = np.flatnonzero(encoding.ids == tokenizer.mask_id).astype(np.int32)
            if not given:
                made[i] = InvalidInputError(f"batch[{i}] holds no {tokenizer.mask} to fill")
            elif len(positions) < given:
                made[i] = InvalidInputError(
                    f"batch[{i}] is longer than {tokenizer.max_length} tokens, and only "
                    f"{len(positions)} of its {given} {tokenizer.mask} are within"
                )
            else:
                made[i] = Request([encoding], encoding.truncated, positions, tokenizer)
        return made

    def request_of(
        self, index: int, encoding: Encoding, tokenizer: Tokenizer | None
    ) -> Request | BertrtError:
        """See `Task.request_of`."""
        if tokenizer is None or tokenizer.mask is None:
            raise ModelFormatError("the model's vocabulary has no mask token")
        positions = np.flatnonzero(encoding.ids == tokenizer.mask_id).astype(np.int32)
        if not len(positions):
            return InvalidInputError(
                f"batch[{index}] holds no {tokenizer.mask} to fill: none of its ids is "
                f"{tokenizer.mask_id}"
            )
        return Request([encoding], encoding.truncated, positions, tokenizer)

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[FillMask]:
        """See `Task.read`."""
        found = []
        for logits, request in zip(values["masked_lm_outputs"], requests, strict=True):
            tokenizer: Tokenizer = request.source
            candidates = []
            for mask, row in enumerate(logits):
                # A table of embeddings may have rows that are no token's.
                named = row[: tokenizer.vocab_size]
                least = np.partition(named, -min(self._top_k, len(named)))[
                    -min(self._top_k, len(named))
                ]
                best = np.flatnonzero(named >= least)
                best = best[np.argsort(-named[best], kind="stable")][: self._top_k]
                scores = softmax(row)[best].tolist()
                candidates += [
                    Candidate(tokenizer.token(token_id), score, mask)
                    for token_id, score in zip(best.tolist(), scores, strict=True)
                ]
            found.append(FillMask(tuple(candidates), request.truncated))
        return found
