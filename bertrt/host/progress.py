"""Progress bars."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["progress"]

# A bar appears only where the work takes longer than this many seconds.
_DELAY = 2.0


@contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], Any]]:
    """A progress bar on standard error, for long work and where a person is watching.

    Args:
        total: how many units there are to do.
        what: the work's name.
        unit: what is counted; "B" for bytes.

    Yields:
        What to call with the number of units done since the last call.
    """
    if not _watched():
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        delay=_DELAY,
    ) as bar:
        yield bar.update


def _watched() -> bool:
    # A daemon's standard error may be None or closed, a logger's may have no isatty.
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


def _after_fork() -> None:
    # A thread that draws a bar holds a lock of tqdm's, and is none of the child's.
    if "tqdm.auto" in sys.modules:
        sys.modules["tqdm.auto"].tqdm.set_lock(threading.RLock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
