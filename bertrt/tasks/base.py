"""The tasks: from what people give to sequences, and from a model's outputs to results.

A task turns every input into a `Request`, the sequences that the model is to run for it. After a
batch has run, `read` takes what belongs to each sequence out of the outputs, and `answer` puts an
input's sequences together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch, check_texts
from bertrt.errors import InvalidInputError, ModelFormatError, UnsupportedModelError
from bertrt.results import (
    Candidate,
    Classification,
    Embedding,
    FillMask,
    NextSentence,
    Regression,
    Result,
)
from bertrt.tasks.settings import POOLED_FROM, TASKS, check_pooling, check_settings
from bertrt.text.tokenizer import Encoding, Text, Tokenizer

__all__ = ["Request", "Task", "make_task", "softmax"]


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
    """

    outputs: tuple[str, ...]

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


def make_task(
    task: str,
    *,
    labels: Sequence[str] | None,
    pooling: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    rows: Mapping[str, str],
) -> Task:
    """The task of a model.

    Args:
        task: one of `bertrt.tasks.settings.TASKS`.
        labels: the names of the logits in their order, for classification and tagging; None: "0",
            "1", ...
        pooling: an embedding model's, see `bertrt.tasks.settings`.
        settings: the task's, see `bertrt.tasks.settings`.
        rows: the model's outputs, with what each has a row for ("tokens", "seqs", "positions").

    Raises:
        UnsupportedModelError: there is no such task.
        ModelFormatError: pooling or settings are wrong, or the model lacks the output needed.
    """
    # These build on this module.
    from bertrt.tasks.question_answering import QuestionAnswering
    from bertrt.tasks.tagging import Tagger

    if task not in TASKS:
        raise UnsupportedModelError(
            f"the model's task is {task!r}; this version predicts {', '.join(TASKS)} "
            "(run() works for every model)"
        )
    check_settings(settings, task, "the model")
    made: Task
    wanted = "seqs"
    if task == "classification":
        made = _Classifier(labels, settings["pair"], rows)
    elif task == "regression":
        made = _Regressor(settings["pair"])
    elif task == "embedding":
        check_pooling(pooling, "the model")
        assert pooling is not None
        made = _Embedder(pooling)
        wanted = "tokens" if made.outputs == ("sequence_output",) else "seqs"
    elif task == "question-answering":
        made, wanted = QuestionAnswering(settings), "tokens"
    elif task == "tagging":
        made, wanted = Tagger(labels), "tokens"
    elif task == "fill-mask":
        made, wanted = _MaskFiller(settings["top_k"]), "positions"
    else:
        made = _NextSentencePredictor()
    for name in made.outputs:
        if name not in rows:
            raise ModelFormatError(
                f"the task {task} needs the output {name}; the model has {', '.join(rows)}"
            )
        if rows[name] != wanted:
            kinds = {"seqs": "sequence", "tokens": "token", "positions": "masked position"}
            raise ModelFormatError(
                f"the task {task} needs {name} with a row for each {kinds[wanted]}; the model's "
                f"has one for each {kinds.get(rows[name], rows[name])}"
            )
    return made


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


class _Classifier(Task):
    def __init__(
        self, labels: Sequence[str] | None, pair: bool | None, outputs: Iterable[str]
    ) -> None:
        self._labels = labels
        self._pair = pair
        # A graph may end in the probabilities themselves.
        self._ready = "probabilities" in outputs and "logits" not in outputs
        self.outputs = ("probabilities",) if self._ready else ("logits",)

    def check(self, texts: Sequence[Text]) -> None:
        """See `Task.check`."""
        check_pairs(texts, self._pair, "this classifier")

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Classification]:
        """See `Task.read`."""
        found = values[self.outputs[0]]
        labels = names_of(self._labels, found)
        best = found.argmax(axis=1)
        scores = found if self._ready else softmax(found)
        return [
            Classification(labels[i], row[i], dict(zip(labels, row, strict=True)), own.truncated)
            for i, row, own in zip(best, scores.tolist(), requests, strict=True)
        ]


class _Regressor(Task):
    outputs = ("logits",)

    def __init__(self, pair: bool | None) -> None:
        self._pair = pair

    def check(self, texts: Sequence[Text]) -> None:
        """See `Task.check`."""
        check_pairs(texts, self._pair, "this model")

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[Regression]:
        """See `Task.read`."""
        logits = values["logits"]
        if logits.shape[1] != 1:
            raise ModelFormatError(
                f"a regression model has one output number for each text, not {logits.shape[1]}"
            )
        return [
            Regression(score, own.truncated)
            for score, own in zip(logits[:, 0].tolist(), requests, strict=True)
        ]


# An embedding is divided by this where its norm is smaller, as in PyTorch's normalize.
_LEAST_NORM = np.float32(1e-12)


class _Embedder(Task):
    """Modes "tokens" and "words" follow scripts/bert/embedding.py of GluonNLP: the special tokens
    are left out, and a word's vector is made of those of its pieces."""

    def __init__(self, pooling: Mapping[str, Any]) -> None:
        self._mode, self._normalize = pooling["mode"], pooling["normalize"]
        self._subwords = pooling.get("subwords")
        self.outputs = (POOLED_FROM[self._mode],)

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """See `Task.encode`."""
        requests, single = super().encode(batch, tokenizer)
        if self._mode not in ("tokens", "words"):
            return requests, single
        return [
            Request(own.sequences, own.truncated, source=self._groups(own.sequences[0], tokenizer))
            for own in requests
        ], single

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


class _MaskFiller(Task):
    outputs = ("masked_lm_outputs",)

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


class _NextSentencePredictor(Task):
    outputs = ("next_sentence_classifier_output",)

    def encode(self, batch: Any, tokenizer: Tokenizer) -> tuple[list[Request], bool]:
        """See `Task.encode`. The second text must give a token too."""
        requests, single = super().encode(batch, tokenizer)
        texts, _ = check_texts(batch)
        for i, pieces in enumerate(tokenizer.tokenize([text[1] for text in texts])):
            if not pieces:
                raise InvalidInputError(
                    f"batch[{i}]: the second text is empty, or holds nothing that gives a token"
                )
        return requests, single

    def check(self, texts: Sequence[Text]) -> None:
        """See `Task.check`."""
        check_pairs(texts, True, "next-sentence prediction")

    def read(
        self, values: Mapping[str, np.ndarray], batch: PackedBatch, requests: Sequence[Request]
    ) -> list[NextSentence]:
        """See `Task.read`. Class 0 is that the second text follows the first: the label 1 of
        scripts/bert/data/create_pretraining_data.py of GluonNLP is a random next."""
        logits = values["next_sentence_classifier_output"]
        best = logits.argmax(axis=1).tolist()
        scores = softmax(logits)[:, 0].tolist()
        return [
            NextSentence(label == 0, score, own.truncated)
            for label, score, own in zip(best, scores, requests, strict=True)
        ]
