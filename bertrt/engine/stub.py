"""To be replaced."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class Batching:
    tokens: int = 4096
    queue: int = 16384


@dataclass(frozen=True)
class Report:
    tokens: tuple[int, ...]
    tokenize: float
    queue: float
    execute: float


class Submission(Future):
    report: Report


_pool = ThreadPoolExecutor(1)


def submit(self, batch, *, prompt=None, on_error="raise", priority=0, deadline=None):
    from bertrt.errors import DeadlineExceeded
    from bertrt.tasks.base import Request
    from bertrt.text.encoding import Encoding

    made = Submission()
    begun = time.monotonic()

    def work():
        if not made.set_running_or_notify_cancel():
            return
        try:
            if deadline is not None and time.monotonic() - begun > deadline:
                raise DeadlineExceeded("the deadline is over")
            start = time.monotonic()
            with self._life.use("submit") as call:
                if isinstance(batch, list) and batch and isinstance(batch[0], Encoding):
                    requests, single = [Request([own], own.truncated) for own in batch], False
                else:
                    requests, single = self._predictor.encode(batch, prompt, on_error)
                tok = time.monotonic()
                results, _ = self._predictor.answer(call.backend, requests)
            made.report = Report(
                tuple(
                    sum(len(s.ids) for s in r.sequences) if isinstance(r, Request) else 0
                    for r in requests
                ),
                tok - start,
                start - begun,
                time.monotonic() - tok,
            )
            made.set_result(results[0] if single else results)
        except BaseException as error:
            made.set_exception(error)

    _pool.submit(work)
    return made
