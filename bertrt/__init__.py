"""bertrt: a compiled, padding-free inference runtime for BERT encoders."""

from bertrt.engine import Engine
from bertrt.errors import (
    BertrtError,
    BertrtWarning,
    BusyError,
    DeviceError,
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    OutOfMemoryError,
    OutputExistsError,
    UnsupportedModelError,
    WriteError,
)
from bertrt.results import (
    Answer,
    Candidate,
    Classification,
    Embedding,
    Entity,
    FillMask,
    NextSentence,
    Ranked,
    Regression,
    Span,
    Tagging,
)
from bertrt.vectors import quantize_vectors
from bertrt.version import __version__

__all__ = [
    "Answer",
    "BertrtError",
    "BertrtWarning",
    "BusyError",
    "Candidate",
    "Classification",
    "DeviceError",
    "Embedding",
    "Engine",
    "Entity",
    "FillMask",
    "InvalidInputError",
    "InvalidTypeError",
    "MissingDependencyError",
    "MissingFileError",
    "ModelFormatError",
    "NextSentence",
    "OutOfMemoryError",
    "OutputExistsError",
    "Ranked",
    "Regression",
    "Span",
    "Tagging",
    "UnsupportedModelError",
    "WriteError",
    "__version__",
    "quantize_vectors",
]
