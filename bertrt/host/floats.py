"""numpy's arithmetic, whatever a program has told numpy about errors."""

from __future__ import annotations

import numpy as np

__all__ = ["usual_errors"]


def usual_errors() -> np.errstate:
    """A context in which numpy treats floating-point errors as it does unless told otherwise.

    `numpy.seterr(all="raise")` is a program's own choice for its own arrays: here a softmax whose
    smallest weights vanish is no error.
    """
    return np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")
