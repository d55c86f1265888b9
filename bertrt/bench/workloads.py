"""What is timed: batches, the same for every engine."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bertrt.bench.engines.base import Inputs
from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.host.files import read_text
from bertrt.host.paths import check_path
from bertrt.models.model import Model

__all__ = ["GROUPS", "SENTENCES", "Workload", "calibration", "full", "make_workloads", "read_texts"]

GROUPS = ("latency", "throughput", "ragged", "texts")

_LATENCY_LENGTHS = (16, 32, 64, 128, 256, 384, 512)
_THROUGHPUT_BATCHES = (1, 8, 32)
_THROUGHPUT_LENGTH = 128
_RAGGED_SEQS = 32
_TEXT_BATCH = 32
_TEXT_BATCHES = 8
_SEED = 20
_LARGEST_TEXTS = 64 << 20

SENTENCES = [
    "Good morning!",
    "The ferry leaves at nine and comes back before dark.",
    "Nobody had expected the committee to agree within a week, least of all its chair.",
    "Please send the signed form together with a copy of your passport, the receipt of the payment "
    "and two recent photographs to the address printed on the back of this letter.",
    "Is it going to rain tomorrow?",
    "She plays the cello in an orchestra that meets on Thursdays, and on most other evenings she "
    "can be found in her workshop, where old clocks wait for new springs and new owners, and where "
    "the radio has been tuned to the same station for as long as anybody can remember.",
]


@dataclass(frozen=True)
class Workload:
    """Batches that are run one after the other; their time is taken together.

    Attributes:
        name: "1 x 128", "ragged 32", "texts".
        groups: which of `GROUPS` it belongs to.
        batches: the inputs.
    """

    name: str
    groups: tuple[str, ...]
    batches: tuple[Inputs, ...]

    @property
    def lengths(self) -> np.ndarray:
        """The length of every sequence."""
        return np.concatenate([batch.valid_length for batch in self.batches])

    @property
    def seqs(self) -> int:
        """The number of sequences."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """The number of tokens, without padding."""
        return int(self.lengths.sum())

    @property
    def padded_tokens(self) -> int:
        """The number of tokens with padding."""
        return sum(batch.token_ids.size for batch in self.batches)


class _Source:
    """Sequences of any length: sentences cut and joined where the model has a tokenizer, else
    random ids. The same ones each time."""

    def __init__(self, model: Model) -> None:
        self._random = np.random.default_rng(_SEED)
        self._ids: Iterable[int] | None = None
        self._vocab_size = model.limits.vocab_size
        if model.tokenizer is not None:
            encodings = model.tokenizer.encode(SENTENCES)
            self._first, self._last = int(encodings[0].ids[0]), int(encodings[0].ids[-1])
            self._ids = itertools.cycle(int(i) for e in encodings for i in e.ids[1:-1])

    def sequence(self, length: int) -> np.ndarray:
        if self._ids is None:
            return self._random.integers(0, self._vocab_size, length, np.int32)
        inner = list(itertools.islice(self._ids, max(0, length - 2)))
        return np.array([self._first, *inner, self._last][:length], np.int32)

    def batch(self, lengths: Sequence[int]) -> Inputs:
        return _padded([self.sequence(length) for length in lengths])


def _padded(ids: Sequence[np.ndarray], types: Sequence[np.ndarray] | None = None) -> Inputs:
    lengths = np.array([len(row) for row in ids], np.int32)
    padded_ids, padded_types = np.zeros((2, len(ids), lengths.max()), np.int32)
    for row, length in enumerate(lengths):
        padded_ids[row, :length] = ids[row]
        if types is not None:
            padded_types[row, :length] = types[row]
    return Inputs(padded_ids, padded_types, lengths)


def full(model: Model, batch: int, length: int) -> Workload:
    """A batch of sequences of one length.

    Raises:
        InvalidInputError: the model has fewer positions.
    """
    if not 1 <= length <= model.limits.max_length:
        raise InvalidInputError(
            f"a length of {length} tokens: expected 1 to the model's {model.limits.max_length}"
        )
    return Workload(f"{batch} x {length}", (), (_Source(model).batch([length] * batch),))


def make_workloads(
    model: Model, groups: Sequence[str], texts: Sequence[str | tuple[str, str]] | None
) -> list[Workload]:
    """The workloads of some of the `GROUPS`, as far as the model's positions go.

    latency: one sequence of 16 to 512 tokens. throughput: 1, 8 and 32 sequences of 128. ragged: 32
    sequences of lengths like those of texts, the same ones each time. texts: batches of 32 texts,
    in their order.

    Raises:
        InvalidInputError: texts without a tokenizer, or what `Tokenizer.encode` refuses.
    """
    longest = model.limits.max_length
    found: dict[str, Workload] = {}

    def add(group: str, name: str, batch: Inputs) -> None:
        before = found.get(name)
        groups = (*before.groups, group) if before else (group,)
        found[name] = Workload(name, groups, (batch,))

    source = _Source(model)
    if "latency" in groups:
        for length in [n for n in _LATENCY_LENGTHS if n <= longest] or [longest]:
            add("latency", f"1 x {length}", source.batch([length]))
    if "throughput" in groups:
        length = min(_THROUGHPUT_LENGTH, longest)
        for batch in _THROUGHPUT_BATCHES:
            add("throughput", f"{batch} x {length}", source.batch([length] * batch))
    if "ragged" in groups:
        lengths = _text_lengths(np.random.default_rng(_SEED), (_RAGGED_SEQS,), longest).tolist()
        add("ragged", f"ragged {_RAGGED_SEQS}", source.batch(lengths))
    workloads = list(found.values())
    if "texts" in groups and texts is not None:
        if model.tokenizer is None:
            raise InvalidInputError(f"{model.path} has no tokenizer: texts cannot be run")
        encodings = model.tokenizer.encode(texts[: _TEXT_BATCH * _TEXT_BATCHES])
        batches = [
            encodings[first : first + _TEXT_BATCH]
            for first in range(0, len(encodings), _TEXT_BATCH)
        ]
        padded = [_padded([e.ids for e in b], [e.types for e in b]) for b in batches]
        workloads.append(Workload("texts", ("texts",), tuple(padded)))
    return workloads


def calibration(model: Model) -> list[Inputs]:
    """Ragged batches for engines that look at inputs before they quantise."""
    source = _Source(model)
    random = np.random.default_rng(_SEED + 1)
    lengths = _text_lengths(random, (64, 2), model.limits.max_length)
    return [source.batch(row.tolist()) for row in lengths]


def _text_lengths(random: np.random.Generator, shape: tuple[int, ...], longest: int) -> np.ndarray:
    # Most of them short, a few of them long: the lengths of sentences are near log-normal.
    longest = min(_THROUGHPUT_LENGTH, longest)
    drawn = random.lognormal(np.log(0.28 * longest), 0.45, shape)
    return np.clip(drawn, min(3, longest), longest).astype(np.int64)


def read_texts(path: str) -> list[str | tuple[str, str]]:
    """The texts of a file, one a line; a tab splits a pair.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it cannot be read, has more than 64 MiB, is not UTF-8, holds no text, or
            texts and pairs together.
    """
    file = check_path("--texts", path)
    try:
        lines = read_text(file, _LARGEST_TEXTS).splitlines()
    except ModelFormatError as error:
        raise InvalidInputError(str(error)) from None
    texts: list[str | tuple[str, str]] = []
    for line in lines:
        first, tab, second = line.partition("\t")
        if line.strip():
            texts.append((first, second) if tab else line)
    if not texts:
        raise InvalidInputError(f"{file} holds no text")
    if len({type(text) for text in texts}) > 1:
        raise InvalidInputError(f"{file} holds texts and pairs (lines with a tab) together")
    return texts
