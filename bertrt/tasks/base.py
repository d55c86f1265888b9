"""The tasks: from what people give to sequences, and from a model's outputs to results.

A task turns every input into a `Request`, the sequences that the model is to run for it. After a
batch has run, `read` takes what belongs to each sequence out of the outputs, and `answer` puts an
input's sequences together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, ModelFormatError
from bertrt.results import Result
from bertrt.text.encoding import Encoding, Tokenizer, no_token
from bertrt.text.inputs import check_texts

__all__ = ["Request", "Task", "names_of", "softmax"]


@dataclass(frozen=True, eq=False)
class Request:
    """One input on its way through the model.

    Attributes:
        sequences: what the model runs for it, one sequence unless the task cuts it into windows.
        truncated: whether something of the input was cut away.
        masked_positions: int32, shape (masks,): what the masked language model is asked for, in
            its one sequence; None where it is not asked.
        source: what the task wants to know again when the answer is made.
    """

    sequences: Sequence[Encoding]
    truncated: bool
    masked_positions: np.ndarray | None = None
    source: Any = None


class Task(ABC):
    """A task's way from input to result.

    Attributes:
        outputs: the names of the outputs that it needs.
        rows: what these have a row for: "tokens", "seqs" (sequences) or "positions" (masked ones).
        pair: whether it takes pairs of texts, or single ones; None: either.
        what: what messages call it where it takes the one and not the other.
    """

    outputs: tuple[str, ...]
    rows: str = "seqs"
    pair: bool | None = None
    what: str = "the task"

    def encode(
        self, batch: Any, tokenizer: Tokenizer, *, prompt: str = ""
    ) -> tuple[list[Request | BertrtError], bool]:
        """Check and tokenize what `predict` is given.

        Args:
            batch: what `predict` is given.
            tokenizer: the model's.
            prompt: what goes before every text, or the first of a pair.

        Returns:
            A request for each input, or the error that says why it cannot be answered, with its
            index; and whether there was a single input.

        Raises:
            InvalidInputError, InvalidTypeError: the batch is empty, or none.
        """
        items, single = self.inputs(batch)
        good = {i: item for i, item in enumerate(items) if not isinstance(item, BertrtError)}
        made = self.prompted(good, tokenizer, prompt)
        return [made.get(i, item) for i, item in enumerate(items)], single

    def prompted(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer, prompt: str
    ) -> Mapping[int, Request | BertrtError]:
        """As `requests`, of texts that were checked, with what goes before each of them."""
        if not prompt:
            return self.requests(texts, tokenizer)
        # The prompt's tokens are those that it has alone, as in sentence-transformers.
        ids = tokenizer.encode([prompt])[0].ids
        tokens = len(ids) - (len(ids) > 0 and int(ids[-1]) in tokenizer.special_ids)
        made = self.requests(
            {
                i: prompt + text if isinstance(text, str) else (prompt + text[0], text[1])
                for i, text in texts.items()
            },
            tokenizer,
        )
        return {
            i: replace(own, sequences=[replace(one, prompt=tokens) for one in own.sequences])
            if isinstance(own, Request)
            else own
            for i, own in made.items()
        }

    def inputs(self, batch: Any) -> tuple[list[Any], bool]:
        """What `predict` is given, each input or its error, and whether it was a single one."""
        return check_texts(batch, pair=self.pair, what=self.what)

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """A request for each input, by its place in the batch, or why there can be none."""
        return {
            i: Request([encoding], encoding.truncated) if len(encoding.ids) else no_token(i)
            for i, encoding in zip(texts, tokenizer.encode(list(texts.values())), strict=True)
        }

    def request_of(
        self, index: int, encoding: Encoding, tokenizer: Tokenizer | None
    ) -> Request | BertrtError:
        """A request for an input that comes in ids, by its place in the batch, or why there can be
        none. `tokenizer`: the model's, if it has one."""
        return Request([encoding], encoding.truncated)

    @abstractmethod
    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> Sequence[Any]:
        """What `answer` needs of each sequence, out of the outputs of a batch.

        Each depends on its own rows only, to the last bit. `requests` are those that the sequences
        belong to.
        """

    def answer(self, request: Request, parts: Sequence[Any]) -> Result:
        """The result of an input, from what was read of its sequences: with one of them, that."""
        (result,) = parts
        found: Result = result
        return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in double precision."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def names_of(labels: Sequence[str] | None, logits: np.ndarray) -> Sequence[str]:
    """The labels of the columns of `logits`: those given, or "0", "1", ...

    Raises:
        ModelFormatError: there are more or fewer labels than columns.
    """
    classes = logits.shape[1]
    labels = [str(i) for i in range(classes)] if labels is None else labels
    if len(labels) != classes:
        raise ModelFormatError(f"the model has {classes} classes and {len(labels)} labels")
    return labels
