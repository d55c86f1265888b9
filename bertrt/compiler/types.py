"""The operators of the IR and the types of their results.

Shapes are symbolic: an extent is an int, or a product of symbols written ``"4*batch"``. Typing
every node as it is added is what finds a parameter that does not fit its use, and it is what
lets the fusion passes tell the sequence axis from the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError

__all__ = ["Dim", "Type", "divide", "excess", "infer", "product"]

Dim = int | str
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Type:
    """Element type and shape; ``content`` holds the elements of a value that itself is a shape."""

    dtype: str
    shape: Shape
    content: Shape | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def product(dims: Iterable[Dim]) -> Dim:
    """The product of extents, in the one canonical spelling."""
    number, symbols = _factors(dims)
    return "*".join(([str(number)] if number != 1 else []) + symbols) if symbols else number


def divide(total: Dim, part: Dim) -> Dim | None:
    """``total / part`` where that is known to be a whole extent, else None."""
    number, symbols = _factors([total])
    divisor, divisor_symbols = _factors([part])
    for symbol in divisor_symbols:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    if divisor == 0 or number % divisor:
        return None
    return product([number // divisor, *symbols])


def _factors(dims: Iterable[Dim]) -> tuple[int, list[str]]:
    number, symbols = 1, []
    for dim in dims:
        for factor in str(dim).split("*"):
            if factor.isdecimal():
                number *= int(factor)
            else:
                symbols.append(factor)
    return number, sorted(symbols)


def infer(
    op: str, name: str, inputs: Sequence[Type | None], attrs: dict[str, Any], origin: str
) -> list[Type]:
    """The types of a node's results; None stands for an optional input that is left out.

    Normalises ``attrs`` in place (defaults filled in, negative axes resolved). Raises
    UnsupportedModelError for an operator outside the set, ModelFormatError where operands or
    attributes do not fit the operator; both name the node.
    """
    rule = _RULES.get(op)
    if rule is None:
        raise UnsupportedModelError(
            f"{origin}: node {name!r} has operator {op!r}, which bertrt does not know "
            f"(known: {', '.join(sorted(_RULES))})"
        )
    fewest, most, known, function = rule
    unknown = set(attrs) - set(known)
    if unknown:
        raise UnsupportedModelError(
            f"{origin}: node {name!r} ({op}) has attributes {sorted(unknown)}, "
            f"bertrt knows {list(known)}"
        )
    try:
        if not fewest <= len(inputs) <= most or None in inputs[:fewest]:
            raise _MisfitError(f"{len(inputs)} inputs, expected {fewest} to {most}")
        result = function(attrs, *inputs)
    except _MisfitError as misfit:
        operands = ", ".join(map(str, inputs))
        raise ModelFormatError(
            f"{origin}: node {name!r} ({op}) does not fit its operands ({operands}): {misfit}"
        ) from None
    kinds = result if isinstance(result, list) else [result]
    for kind in kinds:
        if (found := excess(kind.shape)) is not None:
            raise ModelFormatError(f"{origin}: node {name!r} ({op}) would have {found}")
    return kinds


# What shapes are taken. numpy before 2.0 has 32 axes; no processor has memory for 2^48 elements;
# an extent of symbols is a product or a sum of a few.
_MOST_AXES = 32
_MOST_ELEMENTS = 1 << 48
_LONGEST_SYMBOL = 200


def excess(shape: Shape) -> str | None:
    """What is too much in a shape: axes, elements, or the symbols of an extent; None where nothing
    is. Each operator can multiply what the one before it made."""
    if len(shape) > _MOST_AXES:
        return f"a result of {len(shape)} axes; at most {_MOST_AXES} are taken"
    elements = 1
    for dim in shape:
        if isinstance(dim, str):
            if len(dim) > _LONGEST_SYMBOL:
                return f"a result with the extent {dim[:40]}..."
        elif dim < 0:
            return f"a result with an extent of {dim}"
        else:
            elements *= dim or 1
    if elements > _MOST_ELEMENTS:
        extents = " x ".join(map(str, shape))
        return f"a result of {extents[:200]} elements; at most {_MOST_ELEMENTS} are taken"
    return None


class _MisfitError(Exception):
    """Why operands do not fit."""


# operator -> fewest inputs, most inputs, attributes, function
_RULES: dict[str, tuple[int, int, tuple[str, ...], Callable[..., Any]]] = {}


def _rule(
    *ops: str, inputs: int, most: int | None = None, attrs: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            _RULES[op] = (inputs, most or inputs, attrs, function)
        return function

    return register


def _axis(axis: Any, rank: int) -> int:
    if type(axis) is not int or not -rank <= axis < rank:
        raise _MisfitError(f"axis {axis!r} of {rank} axes")
    return axis % rank


def _known(content: Type, what: str) -> Shape:
    if content.content is None:
        raise _MisfitError(f"{what} is not known before the model runs")
    return content.content


def _same(a: Dim, b: Dim, what: str) -> Dim:
    """The common extent of two operands; symbols are trusted where a number meets them."""
    if isinstance(a, int) and isinstance(b, int) and a != b:
        raise _MisfitError(f"{what} {a} against {b}")
    return a if isinstance(a, int) else b


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(y if x == 1 else x if y == 1 else _same(x, y, "extent") for x, y in pairs)


@_rule(
    "Abs", "Ceil", "Erf", "Exp", "Floor", "Log", "Neg", "Not", "Reciprocal", "Relu", "Sigmoid",
    "Sqrt", "Tanh", inputs=1,
)  # fmt: skip
def _unary(attrs: dict[str, Any], x: Type) -> Type:
    return Type(x.dtype, x.shape)


@_rule("Gelu", inputs=1, attrs=("approximate",))
def _gelu(attrs: dict[str, Any], x: Type) -> Type:
    if attrs.setdefault("approximate", "none") not in ("none", "tanh"):
        raise _MisfitError(f"approximate is {attrs['approximate']!r}, expected none or tanh")
    return Type(x.dtype, x.shape)


@_rule("Add", "Sub", "Mul", "Div", "Pow", inputs=2)
def _binary(attrs: dict[str, Any], a: Type, b: Type) -> Type:
    if a.dtype != b.dtype:
        raise _MisfitError("operands of different types")
    return Type(a.dtype, _broadcast(a.shape, b.shape))


@_rule("IsNaN", inputs=1)
def _is_nan(attrs: dict[str, Any], x: Type) -> Type:
    return Type("bool", x.shape)


@_rule("Max", "Min", inputs=1, most=1 << 16)
def _extremum(attrs: dict[str, Any], first: Type, *others: Type) -> Type:
    for other in others:
        first = _binary(attrs, first, other)
    return Type(first.dtype, first.shape)


@_rule("Mod", inputs=2, attrs=("fmod",))
def _mod(attrs: dict[str, Any], a: Type, b: Type) -> Type:
    attrs.setdefault("fmod", 0)
    return _binary(attrs, a, b)


@_rule("Clip", inputs=1, most=3)
def _clip(attrs: dict[str, Any], x: Type, *bounds: Type | None) -> Type:
    for bound in bounds:
        if bound is not None and (bound.dtype != x.dtype or product(bound.shape) != 1):
            raise _MisfitError("the bounds must be numbers of the same type")
    return Type(x.dtype, x.shape)


@_rule("And", "Or", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", inputs=2)
def _comparison(attrs: dict[str, Any], a: Type, b: Type) -> Type:
    return Type("bool", _binary(attrs, a, b).shape)


@_rule("Where", inputs=3)
def _where(attrs: dict[str, Any], condition: Type, a: Type, b: Type) -> Type:
    if condition.dtype != "bool":
        raise _MisfitError("the condition is not boolean")
    kept = _binary(attrs, a, b)
    return Type(kept.dtype, _broadcast(condition.shape, kept.shape))


@_rule("Cast", inputs=1, attrs=("to",))
def _cast(attrs: dict[str, Any], x: Type) -> Type:
    if not isinstance(attrs.get("to"), str):
        raise _MisfitError(f"to is {attrs.get('to')!r}")
    return Type(attrs["to"], x.shape, x.content if attrs["to"] == "int64" else None)


@_rule("MatMul", inputs=2)
def _matmul(attrs: dict[str, Any], a: Type, b: Type) -> Type:
    if a.dtype != b.dtype or min(len(a.shape), len(b.shape)) < 2:
        raise _MisfitError("expected two matrices of one type")
    _same(a.shape[-1], b.shape[-2], "inner extent")
    return Type(a.dtype, (*_broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


@_rule("LogSoftmax", "Softmax", inputs=1, attrs=("axis",))
def _softmax(attrs: dict[str, Any], x: Type) -> Type:
    attrs["axis"] = _axis(attrs.get("axis", -1), len(x.shape))
    return Type(x.dtype, x.shape)


@_rule("LayerNormalization", inputs=2, most=3, attrs=("axis", "epsilon"))
def _layer_norm(attrs: dict[str, Any], x: Type, *parameters: Type) -> Type:
    attrs["axis"] = _axis(attrs.get("axis", -1), len(x.shape))
    if not isinstance(attrs.setdefault("epsilon", 1e-5), float):
        raise _MisfitError(f"epsilon is {attrs['epsilon']!r}")
    for parameter in parameters:
        if parameter.dtype != x.dtype or len(parameter.shape) != len(x.shape) - attrs["axis"]:
            raise _MisfitError("gamma and beta must have the type and the extents of the last axes")
        for a, b in zip(parameter.shape, x.shape[attrs["axis"] :], strict=True):
            _same(a, b, "extent")
    return Type(x.dtype, x.shape)


@_rule("Transpose", inputs=1, attrs=("perm",))
def _transpose(attrs: dict[str, Any], x: Type) -> Type:
    perm = attrs.setdefault("perm", tuple(reversed(range(len(x.shape)))))
    if not isinstance(perm, tuple) or sorted(perm) != list(range(len(x.shape))):
        raise _MisfitError(f"perm {perm} is no permutation of {len(x.shape)} axes")
    return Type(x.dtype, tuple(x.shape[axis] for axis in perm))


@_rule("Reshape", inputs=2)
def _reshape(attrs: dict[str, Any], x: Type, shape: Type) -> Type:
    target = list(_known(shape, "the new shape"))
    for axis, dim in enumerate(target):
        if dim == 0:
            if axis >= len(x.shape):
                raise _MisfitError(f"0 at axis {axis} of the new shape copies from nothing")
            target[axis] = x.shape[axis]
    if target.count(-1) > 1 or any(type(d) is int and d < -1 for d in target):
        raise _MisfitError(f"new shape {tuple(target)}")
    total = product(x.shape)
    if -1 in target:
        rest = product(d for d in target if d != -1)
        missing = divide(total, rest)
        if missing is None:
            if isinstance(total, int) and isinstance(rest, int):
                raise _MisfitError(f"{total} elements do not fill {tuple(target)}")
            missing = f"({total})/({rest})".replace("*", ".")
        target[target.index(-1)] = missing
    else:
        _same(total, product(target), "elements")
    content = x.content if len(target) <= 1 else None
    return Type(x.dtype, tuple(target), content)


@_rule("Expand", inputs=2)
def _expand(attrs: dict[str, Any], x: Type, shape: Type) -> Type:
    return Type(x.dtype, _broadcast(x.shape, _known(shape, "the new shape")))


@_rule("Unsqueeze", inputs=2)
def _unsqueeze(attrs: dict[str, Any], x: Type, axes: Type) -> Type:
    where = _known(axes, "axes")
    rank = len(x.shape) + len(where)
    new = {_axis(axis, rank) for axis in where}
    if len(new) != len(where):
        raise _MisfitError(f"axes {where} repeat")
    rest = iter(x.shape)
    shape = tuple(1 if axis in new else next(rest) for axis in range(rank))
    return Type(x.dtype, shape, x.content if rank == 1 else None)


@_rule("Squeeze", inputs=2)
def _squeeze(attrs: dict[str, Any], x: Type, axes: Type) -> Type:
    gone = {_axis(axis, len(x.shape)) for axis in _known(axes, "axes")}
    for axis in gone:
        _same(x.shape[axis], 1, "extent")
    shape = tuple(dim for axis, dim in enumerate(x.shape) if axis not in gone)
    return Type(x.dtype, shape, x.content if not shape else None)


@_rule(
    "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", inputs=1, most=2, attrs=("keepdims",),
)  # fmt: skip
def _reduce(attrs: dict[str, Any], x: Type, axes: Type | None = None) -> Type:
    keep = attrs.setdefault("keepdims", 1)
    where = range(len(x.shape)) if axes is None else _known(axes, "axes")
    gone = {_axis(axis, len(x.shape)) for axis in where}
    shape = [1 if axis in gone else dim for axis, dim in enumerate(x.shape)]
    return Type(x.dtype, tuple(d for axis, d in enumerate(shape) if keep or axis not in gone))


@_rule("ConstantOfShape", inputs=1, attrs=("value", "dtype"))
def _constant_of_shape(attrs: dict[str, Any], shape: Type) -> Type:
    return Type(attrs["dtype"], _known(shape, "the shape"))


@_rule("CumSum", inputs=2)
def _cumsum(attrs: dict[str, Any], x: Type, axis: Type) -> Type:
    return Type(x.dtype, x.shape)


@_rule("GatherElements", inputs=2, attrs=("axis",))
def _gather_elements(attrs: dict[str, Any], x: Type, indices: Type) -> Type:
    attrs["axis"] = _axis(attrs.get("axis", 0), len(x.shape))
    if len(x.shape) != len(indices.shape) or indices.dtype not in ("int64", "int32"):
        raise _MisfitError("indices must be integers of the data's rank")
    return Type(x.dtype, indices.shape)


@_rule("OneHot", inputs=3, attrs=("axis",))
def _one_hot(attrs: dict[str, Any], indices: Type, depth: Type, values: Type) -> Type:
    axis = attrs["axis"] = _axis(attrs.get("axis", -1), len(indices.shape) + 1)
    if values.shape != (2,) or depth.content is None:
        raise _MisfitError("expected a known depth and two values")
    shape = (*indices.shape[:axis], depth.content[0], *indices.shape[axis:])
    return Type(values.dtype, shape)


@_rule("Tile", inputs=2)
def _tile(attrs: dict[str, Any], x: Type, repeats: Type) -> Type:
    counts = _known(repeats, "the repeats")
    if len(counts) != len(x.shape):
        raise _MisfitError(f"{len(counts)} repeats of {len(x.shape)} axes")
    return Type(x.dtype, tuple(product(pair) for pair in zip(x.shape, counts, strict=True)))


@_rule("Concat", inputs=1, most=1 << 16, attrs=("axis",))
def _concat(attrs: dict[str, Any], *parts: Type | None) -> Type:
    given = [part for part in parts if part is not None]
    first = given[0]
    axis = attrs["axis"] = _axis(attrs.get("axis"), len(first.shape))
    shape, total = list(first.shape), list[Dim]()
    for part in given:
        if part.dtype != first.dtype or len(part.shape) != len(shape) or len(given) < len(parts):
            raise _MisfitError("parts of different type or rank")
        for i, dim in enumerate(part.shape):
            if i != axis:
                shape[i] = _same(shape[i], dim, "extent")
        total.append(part.shape[axis])
    numbers = [dim for dim in total if isinstance(dim, int)]
    shape[axis] = sum(numbers) if len(numbers) == len(total) else ".".join(map(str, total))
    contents = [part.content for part in given if part.content is not None]
    # What is a shape is short; a list that is put behind itself again and again is not.
    known = len(shape) == 1 and len(contents) == len(given) and sum(map(len, contents)) <= 1024
    content = tuple(dim for part in contents for dim in part) if known else None
    return Type(first.dtype, tuple(shape), content)


@_rule("Split", inputs=1, most=2, attrs=("axis", "num_outputs"))
def _split(attrs: dict[str, Any], x: Type, sizes: Type | None = None) -> list[Type]:
    axis = attrs["axis"] = _axis(attrs.get("axis", 0), len(x.shape))
    if sizes is not None:
        told = _known(sizes, "the sizes")
        numbers = [size for size in told if isinstance(size, int) and size >= 0]
        if len(numbers) < len(told):
            raise _MisfitError(f"sizes {told}")
        _same(sum(numbers), x.shape[axis], "extent")
        parts: list[Dim] = [*numbers]
    else:
        count = attrs.get("num_outputs")
        if type(count) is not int or not 1 <= count <= 1 << 16:
            raise _MisfitError(f"num_outputs is {count!r}")
        part = divide(x.shape[axis], count)
        if part is None:
            raise _MisfitError(f"extent {x.shape[axis]} in {count} equal parts")
        parts = [part] * count
    return [Type(x.dtype, (*x.shape[:axis], part, *x.shape[axis + 1 :])) for part in parts]


@_rule("Slice", inputs=3, most=5)
def _slice(
    attrs: dict[str, Any],
    x: Type,
    starts: Type,
    ends: Type,
    axes: Type | None = None,
    steps: Type | None = None,
) -> Type:
    begin, end = _known(starts, "starts"), _known(ends, "ends")
    where = _known(axes, "axes") if axes else tuple(range(len(begin)))
    step = _known(steps, "steps") if steps else (1,) * len(begin)
    if not len(begin) == len(end) == len(where) == len(step):
        raise _MisfitError("starts, ends, axes and steps of different length")
    shape, content = list(x.shape), x.content
    for b, e, axis, s in zip(begin, end, where, step, strict=True):
        axis = _axis(axis, len(shape))
        if s != 1 or not isinstance(b, int) or not isinstance(e, int):
            raise _MisfitError("only steps of 1 between known bounds")
        extent = shape[axis]
        if isinstance(extent, int):
            shape[axis] = len(range(*slice(b, e).indices(extent)))
        elif b >= 0 and e >= 0:  # an axis that is not known is trusted to hold the slice
            if e < 1 << 31:
                shape[axis] = max(e - b, 0)
            elif b:
                shape[axis] = f"{extent}-{b}"
        else:
            raise _MisfitError(f"slice [{b}:{e}] of the unknown extent {extent}")
        content = content[b:e] if content is not None and len(shape) == 1 else None
    return Type(x.dtype, tuple(shape), content)


@_rule("Gather", inputs=2, attrs=("axis",))
def _gather(attrs: dict[str, Any], x: Type, indices: Type) -> Type:
    axis = attrs["axis"] = _axis(attrs.get("axis", 0), len(x.shape))
    if indices.dtype not in ("int64", "int32"):
        raise _MisfitError("indices are not integers")
    content = None
    if x.content is not None and indices.content is not None and len(x.shape) == 1:
        size = len(x.content)
        picked = [i for i in indices.content if isinstance(i, int) and -size <= i < size]
        if len(picked) < len(indices.content):
            raise _MisfitError(f"indices {indices.content} into {size} elements")
        content = tuple(x.content[i] for i in picked)
    return Type(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), content)


@_rule("GatherND", inputs=2)
def _gather_nd(attrs: dict[str, Any], x: Type, indices: Type) -> Type:
    depth = indices.shape[-1] if indices.shape else None
    if indices.dtype != "int64" or not isinstance(depth, int) or depth > len(x.shape):
        raise _MisfitError(
            "the last extent of the indices must be known, and at most the data's rank"
        )
    return Type(x.dtype, (*indices.shape[:-1], *x.shape[depth:]))


@_rule("Shape", inputs=1)
def _shape(attrs: dict[str, Any], x: Type) -> Type:
    return Type("int64", (len(x.shape),), x.shape)


@_rule("Range", inputs=3)
def _range(attrs: dict[str, Any], start: Type, limit: Type, delta: Type) -> Type:
    if start.shape or limit.shape or delta.shape:
        raise _MisfitError("bounds are not scalars")
    extent: Dim = "range"
    bounds = [bound.content[0] if bound.content else None for bound in (start, limit, delta)]
    numbers = [bound for bound in bounds if isinstance(bound, int)]
    if len(numbers) == 3 and numbers[2] and start.dtype in ("int32", "int64"):
        extent = len(range(*numbers))
    elif bounds[0] == 0 and bounds[2] == 1 and bounds[1] is not None:
        extent = bounds[1]
    return Type(limit.dtype, (extent,))
