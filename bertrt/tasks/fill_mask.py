"""Masked language modelling: the likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.results import Candidate, FillMask
from bertrt.tasks.base import Request, Task, softmax
from bertrt.text.encoding import Tokenizer
from bertrt.text.inputs import check_texts

__all__ = ["MaskFiller"]


class MaskFiller(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("masked_lm_outputs",)
    rows = "positions"

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """See `Task.encode`. The mask token, where a text spells it out, means the mask."""
        if tokenizer.mask is None:
            raise ModelFormatError("the model's vocabulary has no mask token")
        texts, single = check_texts(batch)
        requests = []
        for i, encoding in enumerate(tokenizer.encode(texts, masks=True)):
            given = "".join(texts[i]).count(tokenizer.mask)
            positions = np.flatnonzero(encoding.ids == tokenizer.mask_id).astype(np.int32)
            if not given:
                raise InvalidInputError(f"batch[{i}] holds no {tokenizer.mask} to fill")
            if len(positions) < given:
                raise InvalidInputError(
                    f"batch[{i}] is longer than {tokenizer.max_length} tokens, and only "
                    f"{len(positions)} of its {given} {tokenizer.mask} are within"
                )
            requests.append(Request([encoding], encoding.truncated, positions, tokenizer))
        return requests, single

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
