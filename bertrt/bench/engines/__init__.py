"""The engines that `bertrt bench` compares: ours, and the peers that are installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from bertrt.errors import InvalidInputError

__all__ = ["DEFAULT_ENGINES", "ENGINES", "Name", "engine_module", "parse_engine"]

# Name -> module and precisions. The module has
#     METHODS: what is done for a precision, where that wants to be told
#     convert(model, precision, directory, samples): writes what load() reads, and may look at
#         samples of the inputs to come; absent where load() reads the model itself
#     load(path, name, precision, threads, directory) -> Runner
# and imports its library when one of the two is called.
ENGINES = {
    "native": ("bertrt.bench.engines.engine", ("fp32", "bf16", "int8")),
    "onnxruntime": ("bertrt.bench.engines.onnxruntime", ("fp32", "int8")),
    "openvino": ("bertrt.bench.engines.openvino", ("fp32", "bf16", "int8")),
    "ctranslate2": ("bertrt.bench.engines.ctranslate2", ("fp32", "int8")),
    "torch": ("bertrt.bench.engines.torch", ("fp32", "bf16")),
    "inductor": ("bertrt.bench.engines.compiled", ("fp32", "bf16")),
    "zentorch": ("bertrt.bench.engines.compiled", ("fp32", "bf16")),
    "mxnet": ("bertrt.bench.engines.engine", ("fp32",)),
}

Name = tuple[str, str]  # an engine and its precision

# Who is not among these runs only if named: those compile for minutes.
DEFAULT_ENGINES: tuple[Name, ...] = tuple(
    (name, precision)
    for name, (module, precisions) in ENGINES.items()
    if module != "bertrt.bench.engines.compiled"
    for precision in precisions
)


def engine_module(name: str) -> ModuleType:
    """The module of an engine; imports nothing of its library."""
    return importlib.import_module(ENGINES[name][0])


def parse_engine(text: str) -> list[Name]:
    """ "native:bf16" -> that one; "native" -> it in each of its precisions.

    Raises:
        InvalidInputError: no engine has this name, or it does not have the precision.
    """
    name, colon, precision = text.partition(":")
    if name not in ENGINES:
        raise InvalidInputError(f"engine {name!r} does not exist; there are {', '.join(ENGINES)}")
    precisions = ENGINES[name][1]
    if not colon:
        return [(name, each) for each in precisions]
    if precision not in precisions:
        raise InvalidInputError(
            f"engine {name} is not compared in {precision!r}; it is in {', '.join(precisions)}"
        )
    return [(name, precision)]
