"""The exceptions of bertrt.

Everything that bertrt raises on purpose derives from :class:`BertrtError`. Where Python has a
built-in exception with the same meaning the class derives from that too, so that callers who know
only the built-in one catch ours as well.
"""

from __future__ import annotations

__all__ = [
    "BertrtError",
    "BertrtWarning",
    "BusyError",
    "DeadlineExceeded",
    "DeviceError",
    "InvalidInputError",
    "InvalidTypeError",
    "MissingDependencyError",
    "MissingFileError",
    "ModelFormatError",
    "OutOfMemoryError",
    "OutputExistsError",
    "QueueFull",
    "UnsupportedModelError",
    "WriteError",
]


class BertrtError(Exception):
    """The base of every exception that bertrt raises on purpose."""


class InvalidInputError(BertrtError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class InvalidTypeError(BertrtError, TypeError):
    """An argument has the wrong type."""


class MissingFileError(BertrtError, FileNotFoundError):
    """A file or directory that was asked for is not there."""


class OutOfMemoryError(BertrtError, MemoryError):
    """This machine has not the memory that a model or a batch takes. What was loaded before lives
    on, and runs what does fit."""


class OutputExistsError(BertrtError, FileExistsError):
    """An output path exists already; bertrt never overwrites."""


class WriteError(BertrtError, OSError):
    """A file or directory cannot be written: the disk is full, read-only, gone, ... ``errno`` says
    what the system said."""


class ModelFormatError(BertrtError):
    """A model file is broken: truncated, damaged, inconsistent, or of another format."""


class UnsupportedModelError(ModelFormatError):
    """A model file is well formed and holds something that bertrt does not run."""


class MissingDependencyError(BertrtError, ImportError):
    """An optional package is needed and not installed; the message names the extra."""


class DeviceError(BertrtError, RuntimeError):
    """A device, provider, precision or instruction set cannot be used here."""


class BusyError(BertrtError, TimeoutError):
    """Something is still in use after the time that was given to it."""


class QueueFull(BertrtError, RuntimeError):  # noqa: N818
    """An engine has as much waiting as it may have, and takes nothing more for now."""


class DeadlineExceeded(BertrtError, TimeoutError):  # noqa: N818
    """Something that had to begin by a time did not, and will not."""


class BertrtWarning(UserWarning):
    """The category of every warning of bertrt: a model is taken, and something about it should be
    known. A message names the file and what was found there."""
