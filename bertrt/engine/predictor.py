"""From a batch to results: what happens inside `Engine.predict`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from bertrt.backends.base import Backend
from bertrt.batch import PackedBatch
from bertrt.engine.encodings import check_encodings
from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError
from bertrt.host.floats import usual_errors
from bertrt.host.progress import progress
from bertrt.models.model import Model
from bertrt.tasks.base import Request, Task
from bertrt.tasks.settings import SETTINGS
from bertrt.tasks.table import make_task
from bertrt.text.encoding import Encoding
from bertrt.text.inputs import check_text, raise_errors

__all__ = ["Predictor", "Sequenced", "masks_of", "sequences_of"]

# A sequence to run, with the request that it belongs to.
Sequenced = tuple[Request, Encoding]


def _chunks(lengths: list[int], *, most: int, pads: bool) -> Iterator[list[int]]:
    """Cut a list into runs of at most `most` tokens, or of one text; as indices.

    Where the backend pads, padding counts, and texts of like length go together, so that there is
    little of it.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__) if pads else range(len(lengths))
    chunk: list[int] = []
    size = 0
    for index in order:
        # Sorted, the text at hand is the longest.
        grown = lengths[index] * (len(chunk) + 1) if pads else size + lengths[index]
        if chunk and grown > most:
            yield chunk
            chunk, grown = [], lengths[index]
        chunk.append(index)
        size = grown
    yield chunk


class Predictor:
    """The way of a batch through a model: its task makes requests of it, their sequences run in
    batches of at most `tokens` tokens, and the task makes results of what comes out."""

    def __init__(self, model: Model, tokens: int) -> None:
        self._model = model
        self.tokens = tokens
        self._limits = model.limits
        self._task: Task | None = None
        if model.task is not None:
            self._task = make_task(
                model.task,
                labels=model.labels,
                pooling=model.pooling,
                settings=model.settings,
                rows=model.rows,
                modules=model.modules,
            )

    def inputs(self, batch: Any, prompt: str | None) -> tuple[list[Any], bool, str]:
        """What `Engine.predict` is given, checked as far as can be without tokenizing: each input,
        or the error for it; whether it was one input alone; and the text that goes before each.
        Raises what `Engine.predict` raises for the whole of it."""
        in_ids = isinstance(batch, Encoding) or (isinstance(batch, list) and _has_encoding(batch))
        if self._model.tokenizer is None and not (in_ids and self._task):
            raise BertrtError(
                f"{self._model.path} has no tokenizer: use run() with token ids, or make a bundle "
                "with a vocabulary (bertrt export, bertrt import)"
            )
        if self._task is None:
            raise BertrtError(
                f"{self._model.path} has no task; predict needs a bundle that has one"
            )
        if in_ids:
            if prompt:
                raise InvalidInputError(
                    "prompt is given, and the batch comes in ids: a prompt's ids belong to them"
                )
            items, single = check_encodings(batch, self._limits, self._model.max_length)
            return items, single, ""
        before = self._prompt(prompt)
        items, single = self._task.inputs(batch)
        return items, single, before

    def requests(
        self, items: Mapping[int, Any], prompt: str
    ) -> Mapping[int, Request | BertrtError]:
        """A request for each of the inputs, by their places, which are of one kind (texts, pairs or
        encodings), or the error for it."""
        task, tokenizer = self._task, self._model.tokenizer
        assert task is not None
        made: dict[int, Request | BertrtError] = {}
        if isinstance(next(iter(items.values()), None), Encoding):
            for i, item in items.items():
                made[i] = task.request_of(i, item, tokenizer)
        else:
            assert tokenizer is not None
            made.update(task.prompted(items, tokenizer, prompt))
        for i, own in made.items():
            if isinstance(own, Request) and (error := self._misfit(i, own)):
                made[i] = error
        return made

    def encode(
        self, batch: Any, prompt: str | None = None, on_error: str = "raise"
    ) -> tuple[list[Request | BertrtError], bool]:
        """A request for each input of what `Engine.predict` is given, and whether it was one input
        alone. Raises what `Engine.predict` raises; with `on_error` "return" the error for an input
        that cannot be answered stands in its place."""
        items, single, before = self.inputs(batch, prompt)
        good = {i: item for i, item in enumerate(items) if not isinstance(item, BertrtError)}
        made = self.requests(good, before)
        requests = [made.get(i, item) for i, item in enumerate(items)]
        if on_error == "raise":
            raise_errors(requests)
        return requests, single

    def _misfit(self, index: int, request: Request) -> InvalidInputError | None:
        """Why the model cannot run what the tokenizer made: types of tokens that it does not have,
        or a token without a row, as a vocabulary of Hugging Face's may give."""
        tokenizer, rows = self._model.tokenizer, self._limits.vocab_size
        if self._limits.type_vocab_size == 1 and any(own.types.any() for own in request.sequences):
            return InvalidInputError(
                f"batch[{index}] is a pair, and the model has one token type and takes single "
                "texts, not pairs"
            )
        if tokenizer is None:
            return None
        if (padding := tokenizer.padding_id) is not None and any(
            (own.ids == padding).any() for own in request.sequences
        ):
            return InvalidInputError(
                f"batch[{index}] holds the token {tokenizer.token(padding)!r}, which the model "
                "takes for padding and gives no position of its own: leave it out of the text"
            )
        for encoding in request.sequences:
            if (beyond := encoding.ids[encoding.ids >= rows]).size:
                return InvalidInputError(
                    f"batch[{index}]: the token {tokenizer.token(int(beyond[0]))!r} has the id "
                    f"{beyond[0]}, and the model's table of tokens has {rows} rows"
                )
        return None

    def _prompt(self, prompt: str | None) -> str:
        """The text that goes before every input, "" for none."""
        prompts = self._model.settings.get("prompts", {})
        if prompt is None:
            default = self._model.settings.get("default_prompt_name")
            return "" if default is None else str(prompts[default])
        if not isinstance(prompt, str):
            raise InvalidTypeError(f"prompt is a {type(prompt).__name__}; expected a str")
        if "prompts" not in SETTINGS[self._model.task or ""]:
            raise InvalidInputError(f"{self._model.task} takes no prompt")
        if prompt in prompts:
            return str(prompts[prompt])
        # What looks like a name is one that is misspelled, or a model's that is not this one.
        if re.fullmatch(r"[\w.-]+", prompt):
            raise InvalidInputError(
                f"the model has no prompt {prompt!r}; "
                + (f"its prompts are {', '.join(prompts)}" if prompts else "it has none")
                + " (a text to put before every input has a blank or a colon, such as 'query: ')"
            )
        check_text("prompt", prompt, may_be_empty=True)
        return prompt

    def run(
        self, backend: Backend, sequences: Sequence[Sequenced]
    ) -> tuple[Mapping[str, np.ndarray], PackedBatch]:
        """The outputs that the task reads, of sequences with one number of masks, run as a
        batch."""
        assert self._task is not None  # or there were no requests
        packed = self._pack(sequences)
        return backend.run(packed, self._task.outputs), packed

    def read(
        self,
        values: Mapping[str, np.ndarray],
        packed: PackedBatch,
        sequences: Sequence[Sequenced],
    ) -> Sequence[Any]:
        """What the task reads of each sequence of a batch, out of the outputs."""
        assert self._task is not None
        return self._task.read(values, packed, [own for own, _ in sequences])

    def results(self, requests: Sequence[Request | BertrtError], parts: Sequence[Any]) -> list[Any]:
        """The results of requests, of what was read of their sequences, one after the other; errors
        stand where they are."""
        assert self._task is not None
        read = iter(parts)
        return [
            own
            if isinstance(own, BertrtError)
            else self._task.answer(own, [next(read) for _ in own.sequences])
            for own in requests
        ]

    def _chunks(self, sequences: Sequence[Sequenced], *, pads: bool) -> Iterator[list[int]]:
        """Cut sequences into batches, as indices: those of like numbers of masks together."""
        by_masks: dict[int, list[int]] = {}
        for i, (own, _) in enumerate(sequences):
            by_masks.setdefault(masks_of(own), []).append(i)
        for indices in by_masks.values():
            lengths = [len(sequences[i][1].ids) for i in indices]
            for chunk in _chunks(lengths, most=self.tokens, pads=pads):
                yield [indices[i] for i in chunk]

    def predict(
        self,
        requests: Sequence[Request | BertrtError],
        run: Callable[[Sequence[Sequenced]], Sequence[Any]],
        *,
        pads: bool,
    ) -> list[Any]:
        """The results of requests, errors in the places where they are. `run` gives what is read of
        each sequence of a batch."""
        sequences = sequences_of(requests)
        parts: list[Any] = [None] * len(sequences)
        chunks = list(self._chunks(sequences, pads=pads))
        # A bar of one step would say nothing.
        shown = (
            progress(len(sequences), "predict", " sequences")
            if len(chunks) > 1
            else nullcontext(lambda count: None)
        )
        with shown as advance:
            for indices in chunks:
                found = run([sequences[i] for i in indices])
                for i, part in zip(indices, found, strict=True):
                    parts[i] = part
                advance(len(indices))
        with usual_errors():
            return self.results(requests, parts)

    def run_and_read(self, backend: Backend, sequences: Sequence[Sequenced]) -> Sequence[Any]:
        """Run a batch, and read it."""
        with usual_errors():
            return self.read(*self.run(backend, sequences), sequences)

    def with_outputs(
        self, backend: Backend, requests: Sequence[Request]
    ) -> tuple[list[Any], list[list[np.ndarray]]]:
        """The results of requests, and the rows of the output that the task reads, of each input a
        copy for each sequence."""
        kept: dict[int, np.ndarray] = {}

        def run(sequences: Sequence[Sequenced]) -> Sequence[Any]:
            assert self._task is not None
            name = self._task.outputs[0]
            tokens = self._model.rows[name] == "tokens"
            with usual_errors():
                values, packed = self.run(backend, sequences)
                found = self.read(values, packed, sequences)
            rows = np.split(values[name], packed.cu_seqlens[1:-1] if tokens else packed.seqs)
            for (_, encoding), own in zip(sequences, rows, strict=True):
                kept[id(encoding)] = own.copy() if tokens else own[0].copy()
            return found

        results = self.predict(requests, run, pads=backend.pads)
        return results, [[kept[id(one)] for one in own.sequences] for own in requests]

    def _pack(self, sequences: Sequence[Sequenced]) -> PackedBatch:
        masked = [own.masked_positions for own, _ in sequences if own.masked_positions is not None]
        typed = self._limits.type_vocab_size > 0
        return PackedBatch.from_sequences(
            [encoding.ids for _, encoding in sequences],
            [encoding.types if typed else encoding.types * 0 for _, encoding in sequences],
            np.stack(masked) if masked else None,
        )


def masks_of(request: Request) -> int:
    """How many masks a request asks for."""
    return 0 if request.masked_positions is None else len(request.masked_positions)


def sequences_of(requests: Sequence[Request | BertrtError]) -> list[Sequenced]:
    """The sequences of all requests, one after the other."""
    return [
        (own, encoding)
        for own in requests
        if isinstance(own, Request)
        for encoding in own.sequences
    ]


def _has_encoding(batch: list[Any]) -> bool:
    return any(isinstance(item, Encoding) for item in batch)
