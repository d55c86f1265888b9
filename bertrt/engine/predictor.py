"""From a batch to results: what happens inside `Engine.predict`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from bertrt.backends.base import Backend
from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError
from bertrt.host.floats import usual_errors
from bertrt.host.progress import progress
from bertrt.models.model import Model
from bertrt.tasks.base import Request, Task
from bertrt.tasks.settings import SETTINGS
from bertrt.tasks.table import make_task
from bertrt.text.encoding import Encoding
from bertrt.text.inputs import check_text, raise_errors

__all__ = ["Predictor"]

# predict runs at most this many tokens at once (padding included where the backend pads), so that
# memory stays bounded however long the list is. The widest activation, the FFN's, takes 64 MiB
# here for BERT large, and a matrix product has long reached its full speed: four times as many
# tokens were no faster natively, and slower with padding.
_TOKENS_AT_ONCE = 4096


def _chunks(lengths: list[int], *, pads: bool) -> Iterator[list[int]]:
    """Cut a list into runs of at most `_TOKENS_AT_ONCE` tokens, or of one text; as indices.

    Where the backend pads, padding counts, and texts of like length go together, so that there is
    little of it.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__) if pads else range(len(lengths))
    chunk: list[int] = []
    size = 0
    for index in order:
        # Sorted, the text at hand is the longest.
        grown = lengths[index] * (len(chunk) + 1) if pads else size + lengths[index]
        if chunk and grown > _TOKENS_AT_ONCE:
            yield chunk
            chunk, grown = [], lengths[index]
        chunk.append(index)
        size = grown
    yield chunk


class Predictor:
    """The way of a batch through a model: its task makes requests of it, their sequences run in
    batches of a bounded size, and the task makes results of what comes out."""

    def __init__(self, model: Model) -> None:
        self._model = model
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

    def encode(
        self, batch: Any, prompt: str | None = None, on_error: str = "raise"
    ) -> tuple[list[Request | BertrtError], bool]:
        """A request for each input of what `Engine.predict` is given, and whether it was one input
        alone. Raises what `Engine.predict` raises; with `on_error` "return" the error for an input
        that cannot be answered stands in its place."""
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise BertrtError(
                f"{self._model.path} has no tokenizer: use run() with token ids, or make a bundle "
                "with a vocabulary (bertrt export, bertrt import)"
            )
        if self._task is None:
            raise BertrtError(
                f"{self._model.path} has no task; predict needs a bundle that has one"
            )
        requests, single = self._task.encode(batch, tokenizer, prompt=self._prompt(prompt))
        for i, own in enumerate(requests):
            if isinstance(own, Request) and (error := self._misfit(i, own)):
                requests[i] = error
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
        if tokenizer.vocab_size <= rows:
            return None
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

    def answer(
        self,
        backend: Backend,
        requests: Sequence[Request | BertrtError],
        *,
        keep: bool = False,
        bar: bool = False,
    ) -> tuple[list[Any], list[list[np.ndarray]]]:
        """The results of requests, errors in the places where they are; with `keep` also the rows
        of the output that the task reads, of each input a copy for each sequence."""
        with usual_errors():
            return self._answer(backend, requests, keep, bar)

    def _answer(
        self, backend: Backend, requests: Sequence[Request | BertrtError], keep: bool, bar: bool
    ) -> tuple[list[Any], list[list[np.ndarray]]]:
        task = self._task
        assert task is not None  # or there were no requests
        sequences = [
            (own, encoding)
            for own in requests
            if isinstance(own, Request)
            for encoding in own.sequences
        ]
        parts: list[Any] = [None] * len(sequences)
        kept: list[Any] = [None] * len(sequences)
        chunks = list(self._chunks(sequences, pads=backend.pads))
        # A bar of one step would say nothing.
        shown = (
            progress(len(sequences), "predict", " sequences")
            if bar and len(chunks) > 1
            else nullcontext(lambda count: None)
        )
        with shown as advance:
            for indices in chunks:
                packed = self._pack([sequences[i] for i in indices])
                values = backend.run(packed, task.outputs)
                found = task.read(values, packed, [sequences[i][0] for i in indices])
                for i, part in zip(indices, found, strict=True):
                    parts[i] = part
                if keep:
                    name = task.outputs[0]
                    tokens = self._model.rows[name] == "tokens"
                    rows = np.split(values[name], packed.cu_seqlens[1:-1] if tokens else len(found))
                    for i, own_rows in zip(indices, rows, strict=True):
                        kept[i] = own_rows.copy() if tokens else own_rows[0].copy()
                advance(len(indices))
        read, outputs = iter(parts), iter(kept)
        results: list[Any] = []
        found_outputs: list[list[np.ndarray]] = []
        for own in requests:
            if isinstance(own, BertrtError):
                results.append(own)
                continue
            results.append(task.answer(own, [next(read) for _ in own.sequences]))
            if keep:
                found_outputs.append([next(outputs) for _ in own.sequences])
        return results, found_outputs

    def _pack(self, sequences: Sequence[tuple[Request, Encoding]]) -> PackedBatch:
        masked = [own.masked_positions for own, _ in sequences if own.masked_positions is not None]
        typed = self._limits.type_vocab_size > 0
        return PackedBatch.from_sequences(
            [encoding.ids for _, encoding in sequences],
            [encoding.types if typed else encoding.types * 0 for _, encoding in sequences],
            np.stack(masked) if masked else None,
        )

    def _chunks(
        self, sequences: Sequence[tuple[Request, Encoding]], *, pads: bool
    ) -> Iterator[list[int]]:
        """Cut sequences into batches, as indices: those of like numbers of masks together."""
        by_masks: dict[int, list[int]] = {}
        for i, (own, _) in enumerate(sequences):
            masks = 0 if own.masked_positions is None else len(own.masked_positions)
            by_masks.setdefault(masks, []).append(i)
        for indices in by_masks.values():
            lengths = [len(sequences[i][1].ids) for i in indices]
            for chunk in _chunks(lengths, pads=pads):
                yield [indices[i] for i in chunk]
