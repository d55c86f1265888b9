"""bertrt: a compiled, padding-free inference runtime for BERT encoders."""

from bertrt.engine import Engine
from bertrt.errors import (
    BertrtError,
    DeviceError,
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
    UnsupportedModelError,
)
from bertrt.tasks import Classification, Embedding, Regression

__version__ = "0.1.0"

__all__ = [
    "BertrtError",
    "Classification",
    "DeviceError",
    "Embedding",
    "Engine",
    "InvalidInputError",
    "InvalidTypeError",
    "MissingDependencyError",
    "MissingFileError",
    "ModelFormatError",
    "OutputExistsError",
    "Regression",
    "UnsupportedModelError",
    "__version__",
]
