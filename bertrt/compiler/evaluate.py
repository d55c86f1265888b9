"""Values of a graph in numpy: what passes use to see what nodes compute, however it is spelled.

Exporters write one meaning in many ways: a GELU has a dozen orders of operands, a mask anything
from two nodes to forty. A pass that finds both ends of such a part compares what it computes, on
inputs that tell meanings apart, instead of knowing every spelling. Sizes are small there, so that
this is no engine: plain numpy, one operator at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from bertrt.compiler.ir import Graph
from bertrt.errors import ModelFormatError

__all__ = ["EvaluationError", "check_sizes", "compute", "dependencies", "evaluate"]

# Elements that passes compute with, four times those of the weights beside. Sizes are small where
# a file leaves them free: a few million. Where it does not, the scores of 512 tokens for a
# vocabulary of 250,000 are as many.
_MOST = 1 << 27


class EvaluationError(Exception):
    """A value depends on something that has no value: an input, or an operator without numpy form.

    ``node`` is the name of the node, or of the input, where that is.
    """

    def __init__(self, node: str, reason: str) -> None:
        self.node, self.reason = node, reason
        super().__init__(f"{node}: {reason}")


def evaluate(graph: Graph, value: str, known: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of ``value``, given those of ``known`` values, which may overrule constants.

    Raises EvaluationError where something that is not known is needed; ModelFormatError where all
    that is computed has more elements than four times the graph's constants and 2^27 beside.
    """
    computed = 0
    found: dict[str, np.ndarray] = dict(known)
    pending = [value]
    while pending:
        wanted = pending[-1]
        if wanted in found:
            pending.pop()
        elif wanted in graph.constants:
            found[pending.pop()] = graph.constants[wanted].array
        else:
            node = graph.producer(wanted)
            if node is None:
                raise EvaluationError(wanted, "an input whose values are not known here")
            if node.op == "Shape":  # sizes are known, even of what is not
                found[pending.pop()] = np.array(graph.shape(node.inputs[0]), np.int64)
                continue
            if node.op not in _FUNCTIONS:
                raise EvaluationError(node.name, f"{node.op} is not expected here")
            missing = [v for v in node.inputs if v and v not in found]
            if missing:
                pending += missing
                continue
            arrays = [found[v] if v else None for v in node.inputs]
            computed += sum(_size(graph.shape(v)) for v in node.outputs)
            if computed > _MOST and computed > (most := _limit(graph)):
                raise ModelFormatError(
                    f"{graph.origin}: node {node.name!r} ({node.op}) gives "
                    f"{graph.types[node.output]}, and with all that it is computed from more than "
                    f"{most} elements"
                )
            try:
                results = compute(node.op, node.attrs, arrays)
            except (ValueError, IndexError, TypeError, OverflowError, MemoryError) as error:
                raise EvaluationError(node.name, f"{node.op}: {error}") from None
            found.update(zip(node.outputs, results, strict=False))
    return found[value]


def _size(shape: Sequence[int | str]) -> int:
    """Elements of a result; of what has no size yet, none."""
    return prod(shape) if all(isinstance(dim, int) for dim in shape) else 0  # type: ignore[arg-type]


def check_sizes(graph: Graph) -> None:
    """Refuse a graph with a value that has more elements than four times its constants and 2^27
    beside: passes compute with any. ModelFormatError names the node."""
    most = _limit(graph)
    for node in graph.nodes.values():
        for value in node.outputs:
            if _size(graph.shape(value)) > most:
                raise ModelFormatError(
                    f"{graph.origin}: node {node.name!r} ({node.op}) gives {graph.types[value]}; "
                    f"at most {most} elements are taken"
                )


def _limit(graph: Graph) -> int:
    return _MOST + 4 * sum(constant.array.size for constant in graph.constants.values())


def compute(op: str, attrs: Mapping[str, Any], arrays: Iterable[Any]) -> list[np.ndarray]:
    """The results of one operator; KeyError for one without numpy form."""
    with np.errstate(all="ignore"):
        result = _FUNCTIONS[op](attrs, *arrays)
    return result if isinstance(result, list) else [np.asarray(result)]


def dependencies(graph: Graph, value: str, stop: Iterable[str] = ()) -> set[str]:
    """The inputs, constants and values of ``stop`` that ``value`` is computed from.

    Sizes are known: to depend on the shape of a value is not to depend on the value.
    """
    ends = set(stop)
    found: set[str] = set()
    pending, seen = [value], {value}
    while pending:
        at = pending.pop()
        node = None if at in ends else graph.producer(at)
        if node is None:
            found.add(at)
        elif node.op != "Shape":
            fresh = {source for source in node.inputs if source} - seen
            seen |= fresh
            pending += fresh
    return found


_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _function(*ops: str) -> Callable[[Any], Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _FUNCTIONS.update(dict.fromkeys(ops, function))
        return function

    return register


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attrs, *arrays: function(*arrays)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.asarray(a).dtype.kind in "iu":  # towards zero, as in C
        return np.trunc(np.true_divide(a, b)).astype(np.asarray(a).dtype)
    return np.divide(a, b)


def _gelu(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    if attrs["approximate"] == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


_FUNCTIONS.update(
    {
        "Abs": _elementwise(np.abs),
        "Add": _elementwise(np.add),
        "And": _elementwise(np.logical_and),
        "Ceil": _elementwise(np.ceil),
        "Div": _elementwise(_div),
        "Equal": _elementwise(np.equal),
        "Erf": _elementwise(lambda x: _erf(x).astype(x.dtype)),
        "Exp": _elementwise(np.exp),
        "Floor": _elementwise(np.floor),
        "Gelu": _gelu,
        "Greater": _elementwise(np.greater),
        "GreaterOrEqual": _elementwise(np.greater_equal),
        "IsNaN": _elementwise(np.isnan),
        "Less": _elementwise(np.less),
        "LessOrEqual": _elementwise(np.less_equal),
        "Log": _elementwise(np.log),
        "MatMul": _elementwise(np.matmul),
        "Max": _elementwise(lambda *x: np.maximum.reduce(np.broadcast_arrays(*x))),
        "Min": _elementwise(lambda *x: np.minimum.reduce(np.broadcast_arrays(*x))),
        "Mod": lambda attrs, a, b: np.fmod(a, b) if attrs["fmod"] else np.mod(a, b),
        "Mul": _elementwise(np.multiply),
        "Neg": _elementwise(np.negative),
        "Not": _elementwise(np.logical_not),
        "Or": _elementwise(np.logical_or),
        "Pow": _elementwise(lambda x, y: np.power(x, y).astype(x.dtype)),
        "Reciprocal": _elementwise(lambda x: 1 / x),
        "Relu": _elementwise(lambda x: np.maximum(x, 0)),
        "Sigmoid": _elementwise(lambda x: 1 / (1 + np.exp(-x))),
        "Sqrt": _elementwise(np.sqrt),
        "Sub": _elementwise(np.subtract),
        "Tanh": _elementwise(np.tanh),
        "Where": _elementwise(np.where),
    }
)


@_function("Cast")
def _cast(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    to = np.dtype(attrs["to"])
    # A pass may ask in double precision what a graph computes in single.
    return x if x.dtype.kind == to.kind == "f" else x.astype(to)


@_function("Clip")
def _clip(attrs: Mapping[str, Any], x: np.ndarray, low: Any = None, high: Any = None) -> np.ndarray:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


@_function("Concat")
def _concat(attrs: Mapping[str, Any], *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=attrs["axis"])


@_function("ConstantOfShape")
def _constant_of_shape(attrs: Mapping[str, Any], shape: np.ndarray) -> np.ndarray:
    return np.full(tuple(shape.tolist()), attrs["value"], attrs["dtype"])


@_function("CumSum")
def _cumsum(attrs: Mapping[str, Any], x: np.ndarray, axis: np.ndarray) -> np.ndarray:
    return np.cumsum(x, axis=int(axis), dtype=x.dtype)


@_function("Expand")
def _expand(attrs: Mapping[str, Any], x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


@_function("Gather")
def _gather(attrs: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take(x, indices, axis=attrs["axis"])


@_function("GatherElements")
def _gather_elements(attrs: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, indices, axis=attrs["axis"])


@_function("GatherND")
def _gather_nd(attrs: Mapping[str, Any], x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return x[tuple(np.moveaxis(indices, -1, 0))]


@_function("Softmax")
def _softmax(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=attrs["axis"], keepdims=True))
    return powers / powers.sum(axis=attrs["axis"], keepdims=True)


@_function("LogSoftmax")
def _log_softmax(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    return np.log(_softmax(attrs, x))


@_function("OneHot")
def _one_hot(
    attrs: Mapping[str, Any], indices: np.ndarray, depth: np.ndarray, values: np.ndarray
) -> np.ndarray:
    hot = np.expand_dims(indices, -1) == np.arange(int(depth.ravel()[0]))
    return np.moveaxis(np.where(hot, values[1], values[0]), -1, attrs["axis"])


@_function("Range")
def _range(attrs: Mapping[str, Any], start: Any, limit: Any, delta: Any) -> np.ndarray:
    return np.arange(start, limit, delta, dtype=np.asarray(limit).dtype)


_REDUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "ReduceL2": lambda x, **at: np.sqrt(np.sum(np.square(x), **at)),
    "ReduceMax": np.max,
    "ReduceMean": np.mean,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSum": np.sum,
    "ReduceSumSquare": lambda x, **at: np.sum(np.square(x), **at),
}


def _reduction(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def reduce(attrs: Mapping[str, Any], x: np.ndarray, axes: Any = None) -> np.ndarray:
        axis = None if axes is None else tuple(axes.tolist())
        return np.asarray(function(x, axis=axis, keepdims=bool(attrs["keepdims"]))).astype(x.dtype)

    return reduce


_FUNCTIONS.update({op: _reduction(function) for op, function in _REDUCTIONS.items()})


@_function("Reshape")
def _reshape(attrs: Mapping[str, Any], x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(shape.tolist())])


@_function("Slice")
def _slice(
    attrs: Mapping[str, Any],
    x: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: Any = None,
    steps: Any = None,
) -> np.ndarray:
    where = range(len(starts)) if axes is None else axes.tolist()
    step = [1] * len(starts) if steps is None else steps.tolist()
    index: list[Any] = [slice(None)] * x.ndim
    for axis, *bounds in zip(where, starts.tolist(), ends.tolist(), step, strict=True):
        index[axis] = slice(*bounds)
    return x[tuple(index)]


@_function("Split")
def _split(attrs: Mapping[str, Any], x: np.ndarray, sizes: Any = None) -> list[np.ndarray]:
    axis = attrs["axis"]
    if sizes is None:
        return np.split(x, attrs["num_outputs"], axis=axis)
    return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)


@_function("Squeeze")
def _squeeze(attrs: Mapping[str, Any], x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.squeeze(x, axis=tuple(axes.tolist()))


@_function("Tile")
def _tile(attrs: Mapping[str, Any], x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    return np.tile(x, repeats.tolist())


@_function("Transpose")
def _transpose(attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    return x.transpose(attrs["perm"])


@_function("Unsqueeze")
def _unsqueeze(attrs: Mapping[str, Any], x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, tuple(axes.tolist()))
