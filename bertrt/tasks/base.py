"""The tasks: from what people give to sequences, and from a model's outputs to results.

A task turns every input into a `Request`, the sequences that the model is to run for it. After a
batch has run, `read` takes what belongs to each sequence out of the outputs, and `answer` puts an
input's sequences together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.results import Result
from bertrt.text.encoding import Encoding, Text, Tokenizer
from bertrt.text.inputs import check_texts

__all__ = ["Request", "Task", "check_pairs", "names_of", "softmax"]


@dataclass(frozen=True, eq=False)
class Request:
    """One input on its way through the model.

    Attributes:
        sequences: what the model runs for it, one sequence unless the task cuts it into windows.
        truncated: whether something of the input was cut away.
        masked_positions: int32, shape (masks,): what the masked language model is asked for, in
            its one sequence; None where it is not asked.
        source: what the task wants to know again when the answer is made.
        prompt: how many of the first tokens are those of a prompt, [CLS] among them.
    """

    sequences: Sequence[Encoding]
    truncated: bool
    masked_positions: np.ndarray | None = None
    source: Any = None
    prompt: int = 0


class Task(ABC):
    """A task's way from input to result.

    Attributes:
        outputs: the names of the outputs that it needs.
        rows: what these have a row for: "tokens", "seqs" (sequences) or "positions" (masked ones).
    """

    outputs: tuple[str, ...]
    rows: str = "seqs"

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """Check and tokenize what `predict` is given.

        Returns:
            A request for each input, and whether there was a single input.

        Raises:
            InvalidInputError, InvalidTypeError: an input that the task cannot take; the message
                names its index.
        """
        texts, single = check_texts(batch)
        self.check(texts)
        encodings = tokenizer.encode(texts)
        return [Request([encoding], encoding.truncated) for encoding in encodings], single

    def check(self, texts: Sequence[Text]) -> None:
        """Raise InvalidInputError for texts, or pairs of them, that the task cannot take."""
        return None

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


def check_pairs(texts: Sequence[Text], pair: bool | None, what: str) -> None:
    """Check that `texts` are pairs, or single texts, where the task wants the one or the other."""
    if pair is not None and isinstance(texts[0], tuple) != pair:
        found, wanted = ("a text", "a pair") if pair else ("a pair", "a single text")
        raise InvalidInputError(f"batch[0] is {found}; {what} takes {wanted}")
