"""The scheduler's threads: they go when their owner does, whatever comes in between."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from bertrt.engine.workers import Workers


class Owner:
    def __init__(self) -> None:
        self.served: list[int] = []
        self.wanted = threading.Semaphore(0)

    def serve(self, number: int) -> None:
        self.served.append(number)
        self.wanted.release()


def test_no_interrupt_keeps_threads() -> None:
    """An interrupt comes where Python code runs, and none runs where they are sent home."""
    before = set(threading.enumerate())
    owner = Owner()
    workers = Workers(owner)
    assert workers.start()
    threads = set(threading.enumerate()) - before
    assert len(threads) == 2
    workers.wake(owner)
    assert owner.wanted.acquire(timeout=60)
    served, began = owner.served, []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            began.append(frame.f_code.co_name)

    sys.setprofile(note)
    del owner
    sys.setprofile(None)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert served == [0]
    assert began == []


def test_an_interrupt_of_a_start_is_no_lack_of_threads(monkeypatch) -> None:
    def start(_: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(threading.Thread, "start", start)
    owner = Owner()
    with pytest.raises(KeyboardInterrupt):
        Workers(owner).start()


def test_threads_without_an_owner_leave() -> None:
    before = set(threading.enumerate())
    workers = Workers(Owner())
    assert workers.start()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    assert workers.count == 0
