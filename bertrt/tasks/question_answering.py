"""Extractive question answering, by the rules of GluonNLP's scripts.

They are those of scripts/bert/finetune_squad.py and bert_qa_evaluate.py, kept to the letter where a
letter changes an answer:

* The question is cut to `max_query_length` tokens. The context is split at white space, its words
  are tokenized one by one, and what does not fit beside the question is read in windows, each
  `doc_stride` tokens after the one before it.
* An answer begins at one of the `n_best` highest start logits of its window, ends at one of the
  `n_best` highest end logits, and has `max_answer_length` tokens at most. It may only begin in the
  window that shows most of the text around it; but that flag is looked up one token too late, so
  that a token has its right neighbour's flag, and a window's last token begins no answer.
* The candidates of all windows are ordered by the sum of their two logits; a text that was there
  before is dropped; what is left of the first `n_best` share the probability.
* With `null_answer` (SQuAD 2.0) there is the candidate "", whose score is the lowest sum over the
  windows of the logits of [CLS]. It wins where it is above the best other by more than
  `null_threshold`.

Padding does not exist here. In GluonNLP the padded positions of a batch are ranked among the
`n_best` logits before they are dropped, so that the candidates depend on the batch; ours are those
of a window that runs unpadded.

A tokenizer that knows where its tokens stand (Hugging Face's) needs no alignment, and its flags are
looked up at the token itself.

That is the rule where the setting `windows` is "gluonnlp". Windows do not overlap where the model
has no room for more than `doc_stride` tokens beside the question, and an answer across an edge is
lost. Where `windows` is "overlapping", the stride is at most half of that room
(`windows.overlapping`), and there are no flags: an answer may begin in any window that shows it as
a whole, as in transformers' own scripts, so that every answer of up to half the room can be found.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError, ModelFormatError
from bertrt.results import Answer, Span
from bertrt.tasks.base import Request, Task, softmax
from bertrt.tasks.windows import cut_windows, overlapping
from bertrt.text.basic import basic_tokenize
from bertrt.text.encoding import Encoding, Pieces, Tokenizer
from bertrt.text.inputs import Words, split_words

__all__ = ["QuestionAnswering"]

# GluonNLP's answer where no span is a candidate.
_NO_CANDIDATE = "empty"


@dataclass(frozen=True, eq=False)
class _Window:
    """Tokens `begin` to `end` of a context, the first of them at `offset` in the sequence."""

    begin: int
    end: int
    offset: int


@dataclass(frozen=True, eq=False)
class _Context:
    """A context, its tokens and its windows."""

    text: Words
    pieces: Pieces
    windows: list[_Window]
    tokenizer: Tokenizer


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A candidate: tokens `first` to `last` of the context, None for the answer that there is
    none, with its two logits."""

    tokens: tuple[int, int] | None
    start: np.float32
    end: np.float32

    @property
    def score(self) -> np.float32:
        return np.float32(self.start + self.end)


class QuestionAnswering(Task):
    """See `bertrt.tasks.base.Task`."""

    outputs = ("logits",)
    rows = "tokens"
    pair = True
    what = "question answering, as (question, context),"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._query: int = settings["max_query_length"]
        self._stride: int = settings["doc_stride"]
        self._overlap: bool = settings.get("windows") == "overlapping"
        self._n_best: int = settings["n_best"]
        self._longest: int = settings["max_answer_length"]
        self._may_be_null: bool = settings["null_answer"]
        self._threshold: float = settings["null_threshold"]

    def requests(
        self, texts: Mapping[int, Any], tokenizer: Tokenizer
    ) -> Mapping[int, Request | BertrtError]:
        """See `Task.requests`."""
        room = tokenizer.room(pair=True)
        if self._query >= room:
            raise ModelFormatError(
                f"the model takes sequences of {tokenizer.max_length} tokens, and a question may "
                f"have {self._query}: there is no room for a context"
            )
        contexts = [split_words(context) for _, context in texts.values()]
        questions = tokenizer.tokenize([question for question, _ in texts.values()])
        documents = tokenizer.tokenize_words([context.words for context in contexts])
        made: dict[int, Request | BertrtError] = {}
        for i, context, question, pieces in zip(texts, contexts, questions, documents, strict=True):
            if not question or not pieces.ids:
                made[i] = InvalidInputError(
                    f"batch[{i}]: the {'context' if question else 'question'} is empty, or holds "
                    "nothing that gives a token"
                )
                continue
            asked = question[: self._query]
            offset = int(np.flatnonzero(tokenizer.join(asked, [-1]).ids == -1)[0])
            beside = room - len(asked)
            stride = min(self._stride, overlapping(beside)) if self._overlap else self._stride
            windows = [
                _Window(begin, end, offset)
                for begin, end in cut_windows(len(pieces.ids), beside, stride)
            ]
            made[i] = Request(
                [tokenizer.join(asked, pieces.ids[w.begin : w.end]) for w in windows],
                len(asked) < len(question),
                source=_Context(context, pieces, windows, tokenizer),
            )
        return made

    def request_of(
        self, index: int, encoding: Encoding, tokenizer: Tokenizer | None
    ) -> Request | BertrtError:
        """See `Task.request_of`. Ids do not say where the words stand."""
        return InvalidInputError(
            f"batch[{index}] comes in ids, which do not say where its words stand: question answering takes "
            "pairs of texts"
        )

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[np.ndarray]:
        """See `Task.read`: each window's logits, (tokens, 2)."""
        logits = values["logits"]
        if logits.shape[1] != 2:
            raise ModelFormatError(
                "a model for question answering has two logits for each token, where an answer "
                f"starts and ends, and not {logits.shape[1]}"
            )
        # Copies, so that a part does not keep its whole batch alive.
        return [rows.copy() for rows in np.split(logits, batch.cu_seqlens[1:-1])]

    def answer(self, request: Request, parts: Sequence[Any]) -> Answer:
        """See `Task.answer`."""
        context: _Context = request.source
        spans = [
            span
            for index, logits in enumerate(parts)
            for span in self._spans(context, index, logits)
        ]
        null = None
        if self._may_be_null:
            # The first of the windows with the lowest score, as there.
            logits = min(parts, key=lambda rows: rows[0, 0] + rows[0, 1])
            null = _Candidate(None, logits[0, 0], logits[0, 1])
            spans.append(null)
        # Equal scores keep the order in which they were found.
        spans.sort(key=lambda span: -span.score)
        found: dict[str, tuple[_Candidate, int, int]] = {}
        for span in spans:
            if len(found) == self._n_best:
                break
            text, start, end = _text_of(context, span)
            found.setdefault(text, (span, start, end))
        if null is not None:
            found.setdefault("", (null, 0, 0))
        if not found:
            zero = np.float32(0)
            found[_NO_CANDIDATE] = (_Candidate(None, zero, zero), 0, 0)
        scores = softmax(np.array([span.score for span, _, _ in found.values()])).tolist()
        nbest = tuple(
            Span(text, score, start, end)
            for (text, (_, start, end)), score in zip(found.items(), scores, strict=True)
        )
        best = nbest[0]
        if null is not None:
            best = next((answer for answer in nbest if answer.text), best)
            span = found[best.text][0]
            if null.score - span.start - span.end > self._threshold:
                best = next(answer for answer in nbest if not answer.text)
        return Answer(best.text, best.score, best.start, best.end, nbest, request.truncated)

    def _spans(self, context: _Context, index: int, logits: np.ndarray) -> list[_Candidate]:
        """The candidates of a window, in the order of the scripts: by start logit, then by end
        logit."""
        window = context.windows[index]
        starts, ends = (np.argsort(-logits[:, i], kind="stable")[: self._n_best] for i in (0, 1))
        # Where the tokenizer is GluonNLP's, so is the mistake.
        late = 1 if context.pieces.spans is None else 0
        spans = []
        for start in starts.tolist():
            first = start - window.offset + window.begin
            if not window.begin <= first < window.end:
                continue
            flagged = first + late
            if not self._overlap and (
                flagged >= window.end or _widest(context.windows, flagged) != index
            ):
                continue
            for end in ends.tolist():
                last = end - window.offset + window.begin
                if first <= last < window.end and last - first < self._longest:
                    spans.append(_Candidate((first, last), logits[start, 0], logits[end, 1]))
        return spans


def _widest(windows: Sequence[_Window], token: int) -> int:
    """The first window that shows most of the text around a token: whose shorter side is longest,
    a longer window counting a little more."""
    best, index = -1.0, -1
    # Windows begin and end one after the other.
    for i in range(bisect.bisect_right(windows, token, key=lambda w: w.end), len(windows)):
        window = windows[i]
        if window.begin > token:
            break
        sides = min(token - window.begin, window.end - 1 - token)
        score = sides + 0.01 * (window.end - window.begin)
        if score > best:
            best, index = score, i
    return index


def _text_of(context: _Context, span: _Candidate) -> tuple[str, int, int]:
    """The text of a candidate, and where it stands in the context."""
    if span.tokens is None:
        return "", 0, 0
    first, last = span.tokens
    words = context.pieces.words
    own = range(words[first], words[last] + 1)
    joined = " ".join(context.text.words[index] for index in own)
    if context.pieces.spans is None:
        tokens = [context.tokenizer.token(i) for i in context.pieces.ids[first : last + 1]]
        start, end = _align(tokens, joined, context.tokenizer.lower)
    else:
        before = sum(len(word) + 1 for word in context.text.words[: own.start])
        start = context.pieces.spans[first][0] - before
        end = context.pieces.spans[last][1] - before
    # From the words joined by blanks to the context as it is.
    begins = [0, *itertools.accumulate(len(context.text.words[index]) + 1 for index in own)]

    def place(position: int) -> int:
        word = bisect.bisect_right(begins, position) - 1
        return context.text.spans[own.start + word][0] + position - begins[word]

    return joined[start:end], place(start), place(end - 1) + 1


def _align(tokens: Sequence[str], text: str, lower: bool) -> tuple[int, int]:
    """Where in `text` the characters stand that `tokens` were made of; all of it where this
    cannot be told.

    The rule is that of get_final_text in bert_qa_evaluate.py: the tokens are found in the basic
    tokens of the text, and where these have as many characters as the text, blanks apart, the one
    stand for the others.
    """
    whole = 0, len(text)
    wanted = " ".join(" ".join(tokens).replace(" ##", "").replace("##", "").split())
    basic = " ".join(basic_tokenize(text, lower=lower).split())
    start = basic.find(wanted)
    if start < 0 or not wanted:
        return whole
    end = start + len(wanted) - 1
    places = [place for place, char in enumerate(text) if char != " "]
    if len(places) != len(basic) - basic.count(" "):
        return whole
    # The tokens begin and end with a character, and not with a blank.
    return (
        places[start - basic.count(" ", 0, start)],
        places[end - basic.count(" ", 0, end)] + 1,
    )
