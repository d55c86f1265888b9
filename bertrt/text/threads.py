"""The threads of the tokenizers library."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

__all__ = ["with_or_without_threads"]


def with_or_without_threads(encode: Callable[..., list[Any]], *args: Any, **options: Any) -> Any:
    """What the library's function gives: on its own threads, or, where the system gives it none,
    on the caller's. The library panics then; it says so on standard error, once."""
    try:
        return encode(*args, **options)
    # A panic is no Exception.
    except BaseException as error:
        if "ThreadPoolBuildError" not in str(error):
            raise
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return encode(*args, **options)
