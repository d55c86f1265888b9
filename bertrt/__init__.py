"""bertrt: a compiled, padding-free inference runtime for BERT encoders."""

from bertrt.engine import Engine
from bertrt.errors import (
    BertrtError,
    BertrtWarning,
    DeviceError,
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
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
from bertrt.version import __version__

__all__ = [
    "Answer",
    "BertrtError",
    "BertrtWarning",
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
    "OutputExistsError",
    "Ranked",
    "Regression",
    "Span",
    "Tagging",
    "UnsupportedModelError",
    "WriteError",
    "__version__",
]
