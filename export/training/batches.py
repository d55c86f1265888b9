"""Labelled texts as batches of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from bertrt.errors import InvalidInputError
from bertrt.evaluation.examples import Examples
from bertrt.text.encoding import Encoding, Tokenizer

__all__ = ["Rows", "encode", "epoch_batches"]

# Batches that are sorted by length together. More of them pad less, and leave chance less to say
# about which sequences meet; at 50 of 32 some 2 % of the tokens of GLUE's tasks are padding.
_POOL = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The sequences of a data set, and what the net should answer.

    Attributes:
        encodings: a sequence for each row.
        targets: float32, shape (rows, ...): of a classifier (rows,), the index of the label; of a
            regression likewise, the number.
    """

    encodings: Sequence[Encoding]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def lengths(self) -> np.ndarray:
        """int64, shape (rows,): the tokens of each."""
        return np.array([len(encoding.ids) for encoding in self.encodings])

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows, padded to the longest: float32 arrays ``token_ids`` and ``token_types``
        (batch, seq), ``valid_length`` (batch,) and ``targets`` (batch, ...)."""
        chosen = [self.encodings[index] for index in indices]
        lengths = np.array([len(encoding.ids) for encoding in chosen], np.float32)
        shape = len(chosen), int(lengths.max())
        ids, types = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for row, encoding in enumerate(chosen):
            ids[row, : len(encoding.ids)] = encoding.ids
            types[row, : len(encoding.ids)] = encoding.types
        return {
            "token_ids": ids,
            "token_types": types,
            "valid_length": lengths,
            "targets": self.targets[indices],
        }


def encode(examples: Examples, tokenizer: Tokenizer, labels: Sequence[str] | None) -> Rows:
    """Tokenize all examples.

    Args:
        examples: of classification or regression.
        tokenizer: the one that the finished bundle will have.
        labels: a classifier's, in the order of its logits; None for regression.

    Raises:
        InvalidInputError: a text gives no token; the message names the file and the line.
    """
    if labels is None:
        targets = np.array(examples.labels, np.float32)
    else:
        numbers = {label: number for number, label in enumerate(labels)}
        targets = np.array([numbers[label] for label in examples.labels], np.float32)
    encodings = tokenizer.encode(examples.texts)
    special = list(tokenizer.special_ids)
    for index, encoding in enumerate(encodings):
        # It has an answer, and teaches none.
        if np.isin(encoding.ids, special).all():
            raise InvalidInputError(
                f"{examples.where(index)}: the text is empty, or holds nothing that gives a token "
                "(white space or control characters only)"
            )
    return Rows(encodings, targets)


def epoch_batches(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int
) -> list[np.ndarray]:
    """The batches of an epoch: indices of rows, every row once.

    Rows of about the same length come together. The order is all chance, and the same for the
    same arguments, whatever was drawn before.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), _POOL * batch_size):
        pool = order[start : start + _POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]
