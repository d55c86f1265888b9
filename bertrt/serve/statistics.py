"""What was answered in the last minutes, second by second, in memory of a fixed size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

__all__ = ["SPAN", "STEP", "Recent", "Series", "Summary"]

# Seconds that are remembered, that a point of the plots stands for, and of a summary.
SPAN = 600
STEP = 5
_MINUTE = 60

# Latencies from 0.1 ms to 100 s, 16 steps a decade: a percentile is right to within 8%.
_STEPS = 16
_LOWEST = 1e-4
_BUCKETS = 6 * _STEPS

# A second's row: these, then how many latencies were in each bucket.
_COUNTS = ("requests", "failed", "inputs", "tokens", "cached", "queue_us", "execute_us")
_PERCENTILES = (50, 95, 99)


class Summary(msgspec.Struct):
    """The last minute. Times are in milliseconds, and null where nothing was answered.

    `requests`: those that a model was found for; `failed` of them were refused. `tokens`: of all
    that was answered; of its `inputs` so many as `cached` were not executed for it. `p50`, `p95`,
    `p99`: of the time from headers to answer, to within 8%. `queue`, `execute`: means.
    """

    requests: int
    failed: int
    inputs: int
    tokens: int
    cached: int
    p50: float | None
    p95: float | None
    p99: float | None
    queue: float | None
    execute: float | None


class Series(msgspec.Struct):
    """The last ten minutes: a value for each five seconds, oldest first; the last one is of those
    that are not over. Counts are for each second; see `Summary`."""

    requests: list[float]
    failed: list[float]
    tokens: list[float]
    p50: list[float | None]
    p95: list[float | None]
    p99: list[float | None]
    queue: list[float | None]
    execute: list[float | None]


class Recent:
    """What models answered within the last `SPAN` seconds.

    A request costs the same however many there are, and a model half a megabyte.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._clock = clock
        self._started = clock()
        self._models: dict[str, _Ring] = {}

    @property
    def uptime(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._started

    def add(self, model: str, seconds: float, answered: bool, fields: Mapping[str, Any]) -> None:
        """Count a request.

        Args:
            model: the model that it was for.
            seconds: from its headers to its answer.
            answered: whether it was.
            fields: what `Call.answer` tells the log of it.
        """
        ring = self._models.get(model)
        if ring is None:
            ring = self._models[model] = _Ring()
        row = ring.row(int(self._clock()))
        row[0] += 1
        row[1] += not answered
        row[2] += fields.get("inputs", 0)
        row[3] += fields.get("tokens", 0)
        row[4] += fields.get("cached", 0)
        row[5] += round(fields.get("queue_ms", 0) * 1e3)
        row[6] += round(fields.get("execute_ms", 0) * 1e3)
        row[len(_COUNTS) + _bucket(seconds)] += 1

    def minute(self, models: Iterable[str]) -> Summary:
        """The last minute of these models together."""
        now = int(self._clock())
        row = self._rows(models, now, _MINUTE).sum(axis=0)
        requests, failed, inputs, tokens, cached = row[:5].tolist()
        times = (value for (value,) in _times(row[None]))
        return Summary(requests, failed, inputs, tokens, cached, *times)

    def series(self, models: Iterable[str]) -> Series:
        """The last `SPAN` seconds of these models together, `STEP` seconds a value."""
        clock = self._clock()
        # Whole steps of the clock, so that what a point stands for does not change any more.
        last = int(clock) // STEP * STEP + STEP - 1
        rows = self._rows(models, last, SPAN).reshape(SPAN // STEP, STEP, -1).sum(axis=1)
        seconds = np.full(len(rows), float(STEP))
        seconds[-1] = max(1.0, clock - (last + 1 - STEP))
        requests, failed, tokens = (
            np.round(rows[:, _COUNTS.index(name)] / seconds, 3).tolist()
            for name in ("requests", "failed", "tokens")
        )
        return Series(requests, failed, tokens, *_times(rows))

    def _rows(self, models: Iterable[str], last: int, count: int) -> np.ndarray:
        """So many seconds up to `last`, oldest first, of these models: int64, (count, columns)."""
        total = np.zeros((count, len(_COUNTS) + _BUCKETS), np.int64)
        for name in models:
            if (ring := self._models.get(name)) is not None:
                total += ring.rows(last, count)
        return total


class _Ring:
    """A model's seconds; `second` says which one each row is of.

    The one of now is a list, in which a number is added to in a tenth of an array's time.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((SPAN, len(_COUNTS) + _BUCKETS), np.int64)
        self._second = np.full(SPAN, -1, np.int64)
        self._now = -1
        self._row: list[int] = []

    def row(self, second: int) -> list[int]:
        if second != self._now:
            self._put()
            self._now = second
            self._row = [0] * self._counts.shape[1]
        return self._row

    def rows(self, last: int, count: int) -> np.ndarray:
        self._put()
        wanted = np.arange(last - count + 1, last + 1)
        places = wanted % SPAN
        return self._counts[places] * (self._second[places] == wanted)[:, None]

    def _put(self) -> None:
        if self._row:
            place = self._now % SPAN
            self._second[place] = self._now
            self._counts[place] = self._row


def _bucket(seconds: float) -> int:
    if seconds <= _LOWEST:
        return 0
    return min(_BUCKETS - 1, int(math.log10(seconds / _LOWEST) * _STEPS))


def _times(rows: np.ndarray) -> list[list[float | None]]:
    """Percentiles, mean queue and mean execution in milliseconds, each a list of the rows'."""
    requests = rows[:, 0]
    upto = np.cumsum(rows[:, len(_COUNTS) :], axis=1)
    found = []
    for percent in _PERCENTILES:
        # The first bucket with so many percent of the requests up to it; its middle.
        needed = -(-requests * percent // 100)
        bucket = (upto < needed[:, None]).sum(axis=1)
        found.append(_LOWEST * 1e3 * 10 ** ((bucket + 0.5) / _STEPS))
    for name in ("queue_us", "execute_us"):
        found.append(rows[:, _COUNTS.index(name)] / np.maximum(requests, 1) / 1e3)
    return [
        [value if some else None for value, some in zip(own, requests.tolist(), strict=True)]
        for own in np.round(found, 4).tolist()
    ]
