"""A long list of inputs on a device that computes while the CPU does other things: while it runs
one batch, the next texts are tokenized, and what the batch before gave is read.

Batches run in threads of their own, as many as the backend runs at once; the caller's thread
tokenizes, and waits where all of them are busy.
The order of results, and their bits, are those of one batch after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bertrt.engine.line import characters
from bertrt.engine.predictor import Predictor, Sequenced, masks_of
from bertrt.engine.workers import raise_interrupt
from bertrt.errors import BertrtError
from bertrt.host.floats import usual_errors
from bertrt.host.progress import progress
from bertrt.tasks.base import Request
from bertrt.text.inputs import raise_errors

__all__ = ["predict_overlapping"]

# So many characters are tokenized between two looks whether a batch is full: some ten milliseconds.
_CHARACTERS_AT_ONCE = 1 << 18


def predict_overlapping(
    predictor: Predictor,
    items: Sequence[Any],
    prompt: str,
    on_error: str,
    run: Callable[[Sequence[Sequenced]], Sequence[Any]],
    *,
    tokens: int,
    at_once: int,
) -> list[Any]:
    """The results of inputs, errors in the places where they are.

    Args:
        predictor: whose `inputs` the arguments are.
        items: each input, or the error for it.
        prompt, on_error: see `Engine.predict`.
        run: what is read of each sequence of a batch; from several threads at once.
        tokens: of a batch, at most.
        at_once: the batches that run at once.

    Raises:
        InvalidInputError, InvalidTypeError: with `on_error` "raise", for all inputs together that
            cannot be answered; of the others some have run.
    """
    if on_error == "raise" and any(isinstance(item, BertrtError) for item in items):
        # What is known before anything runs: with it, what only tokenizing tells.
        run = _run_nothing
    requests: list[Request | BertrtError] = []
    with _Batches(run, tokens, at_once, len(items)) as batches:
        for begin, end in _slices(items):
            made = _requests(predictor, items, prompt, begin, end)
            if on_error == "raise" and any(isinstance(own, BertrtError) for own in made):
                batches.run = _run_nothing
            requests += made
            batches.add(made)
        if on_error == "raise":
            raise_errors(requests)
        parts = batches.results()
    with usual_errors():
        return predictor.results(requests, parts)


def _run_nothing(sequences: Sequence[Sequenced]) -> Sequence[Any]:
    return [None] * len(sequences)


def _slices(items: Sequence[Any]) -> Sequence[tuple[int, int]]:
    """Cut a list into runs of some characters, or of one input."""
    ends, size = [], 0
    for i, item in enumerate(items):
        size += 1 + characters(item)
        if size >= _CHARACTERS_AT_ONCE:
            ends.append(i + 1)
            size = 0
    if not ends or ends[-1] < len(items):
        ends.append(len(items))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _requests(
    predictor: Predictor, items: Sequence[Any], prompt: str, begin: int, end: int
) -> list[Request | BertrtError]:
    good = {i: items[i] for i in range(begin, end) if not isinstance(items[i], BertrtError)}
    made: Mapping[int, Request | BertrtError] = predictor.requests(good, prompt) if good else {}
    return [made.get(i, items[i]) for i in range(begin, end)]


class _Batches:
    """Sequences as they come, run in batches of like numbers of masks."""

    def __init__(
        self,
        run: Callable[[Sequence[Sequenced]], Sequence[Any]],
        tokens: int,
        at_once: int,
        inputs: int,
    ) -> None:
        self.run = run
        self._tokens = tokens
        self._at_once = at_once
        self._inputs = inputs
        self._open: dict[int, tuple[list[int], list[Sequenced]]] = {}  # by masks
        self._sizes: dict[int, int] = {}
        self._under_way: deque[tuple[list[int], Future[Sequence[Any]]]] = deque()
        self._parts: dict[int, Any] = {}
        self._count = 0

    def __enter__(self) -> _Batches:
        self._stack = ExitStack()
        # It ends when all that runs has ended, an interrupt's or an error's way out as well.
        self._threads = self._stack.enter_context(
            ThreadPoolExecutor(self._at_once, thread_name_prefix="bertrt-batch")
        )
        self._advance = self._stack.enter_context(progress(self._inputs, "predict", " inputs"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, requests: Sequence[Request | BertrtError]) -> None:
        """Take the sequences of requests, and run what is full."""
        for own in requests:
            if not isinstance(own, Request):
                continue
            masks = masks_of(own)
            for encoding in own.sequences:
                length = len(encoding.ids)
                if masks in self._open and self._sizes[masks] + length > self._tokens:
                    self._begin(masks)
                places, sequences = self._open.setdefault(masks, ([], []))
                places.append(self._count)
                sequences.append((own, encoding))
                self._sizes[masks] = self._sizes.get(masks, 0) + length
                self._count += 1
        self._advance(len(requests))

    def results(self) -> list[Any]:
        """What was read of each sequence, in the order in which they came."""
        while len(self._open) > 1:
            self._begin(next(iter(self._open)))
        for places, sequences in self._open.values():  # the last one, by the caller's own thread
            self._parts.update(zip(places, self.run(sequences), strict=True))
        while self._under_way:
            self._end_first()
        return [self._parts[i] for i in range(self._count)]

    def _begin(self, masks: int) -> None:
        places, sequences = self._open.pop(masks)
        self._sizes[masks] = 0
        # One more than run: it has been packed into arrays when the device has time for it.
        while len(self._under_way) > self._at_once:
            self._end_first()
        future: Future[Sequence[Any]]
        try:
            future = self._threads.submit(self.run, sequences)
        except RuntimeError as error:  # the system gives no thread
            raise_interrupt(error)
            future = Future()
            future.set_result(self.run(sequences))
        self._under_way.append((places, future))

    def _end_first(self) -> None:
        places, future = self._under_way.popleft()
        self._parts.update(zip(places, future.result(), strict=True))
