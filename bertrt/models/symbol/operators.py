"""The operators of MXNet that the reader knows, each turned into those of the IR."""

from __future__ import annotations

import math
from collections.abc import Callable

from bertrt.compiler.ir import Graph
from bertrt.compiler.types import Dim, divide, product
from bertrt.errors import UnsupportedModelError
from bertrt.models.symbol.context import END, Context
from bertrt.models.symbol.file import Symbol, SymbolNode, pick

__all__ = ["convert"]

_LOWEST = -3.4028234663852886e38  # float32's lowest number
_Converter = Callable[..., str | tuple[str, ...]]
_CONVERTERS: dict[str, tuple[int, int, _Converter]] = {}


def _op(*names: str, inputs: int, most: int | None = None) -> Callable[[_Converter], _Converter]:
    """Register the converter of MXNet operators that take ``inputs`` to ``most`` inputs."""

    def register(function: _Converter) -> _Converter:
        for name in names:
            _CONVERTERS[name] = (inputs, most or inputs, function)
        return function

    return register


def convert(graph: Graph, symbol: Symbol, node: SymbolNode, values: list[list[str]]) -> list[str]:
    """Add the nodes of the IR that mean the same as `node`; returns the values of its outputs.

    Raises UnsupportedModelError for an operator or an attribute that no converter knows.
    """
    if node.op not in _CONVERTERS:
        raise UnsupportedModelError(
            f"{graph.origin}: operator {node.op!r} at node {node.name!r} is not supported "
            f"(supported: {', '.join(sorted(_CONVERTERS))})"
        )
    fewest, most, function = _CONVERTERS[node.op]
    context = Context(graph, node)
    if not fewest <= len(node.inputs) <= most:
        raise context.misfit(f"{len(node.inputs)} inputs, expected {fewest} to {most}")
    reader = f"node {node.name!r}"
    inputs = [pick(symbol, values, source, output, reader) for source, output in node.inputs]
    result = function(context, *inputs)
    return [result] if isinstance(result, str) else list(result)


@_op("_copy", "identity", "Dropout", "BlockGrad", inputs=1)
def _identity(c: Context, x: str) -> str:
    return x


@_op("Cast", "cast", inputs=1)
def _cast(c: Context, x: str) -> str:
    wanted = c.node.attrs.get("dtype", "")
    # All integers are int64 here; numbers that count things stay integers when cast to floats,
    # because the converters of their users expect them so.
    if wanted in ("int32", "int64"):
        wanted = "int64"
    elif wanted not in ("float16", "float32", "float64"):
        raise c.unsupported(f"dtype {wanted!r}")
    elif c.graph.types[x].dtype == "int64":
        return x
    elif wanted == "float16":  # parameters are widened, and the arithmetic is float32
        wanted = "float32"
    return x if c.graph.types[x].dtype == wanted else c.add("Cast", x, to=wanted)


@_op("Embedding", inputs=2)
def _embedding(c: Context, ids: str, table: str) -> str:
    for axis, key in enumerate(("input_dim", "output_dim")):
        if c.rank(table) != 2 or c.integer(key) != c.shape(table)[axis]:
            raise c.misfit(
                f"{key} is {c.node.attrs.get(key)}, the table {table!r} is {c.graph.types[table]}"
            )
    return c.add("Gather", table, ids, axis=0)


_BINARY = {
    "Add": ("elemwise_add", "_plus", "_Plus", "broadcast_add", "broadcast_plus"),
    "Sub": ("elemwise_sub", "_minus", "_Minus", "broadcast_sub", "broadcast_minus"),
    "Mul": ("elemwise_mul", "_mul", "_Mul", "broadcast_mul"),
    # Integers divide like MXNet's: rounded towards zero
    "Div": ("elemwise_div", "_div", "_Div", "broadcast_div"),
}
_SCALAR = {
    "Add": ("_plus_scalar", "_PlusScalar"),
    "Sub": ("_minus_scalar", "_MinusScalar"),
    "Mul": ("_mul_scalar", "_MulScalar"),
    "Div": ("_div_scalar", "_DivScalar"),
    "Pow": ("_power_scalar", "_PowerScalar"),
}


def _register_arithmetic() -> None:
    for target, names in _BINARY.items():

        @_op(*names, inputs=2)
        def _binary(c: Context, a: str, b: str, target: str = target) -> str:
            if not c.node.op.startswith("broadcast_") and c.rank(a) != c.rank(b):
                raise c.misfit(f"{c.graph.types[a]} against {c.graph.types[b]}")
            return c.add(target, *c.alike(a, b))

    for target, names in _SCALAR.items():

        @_op(*names, inputs=1)
        def _scalar(c: Context, x: str, target: str = target) -> str:
            number = c.number("scalar")
            whole = number.is_integer() and abs(number) < 1 << 53
            if c.graph.types[x].dtype == "int64" and not whole:
                raise c.unsupported(f"scalar {number} with whole numbers")
            return c.add(target, x, c.like(number, x))


_register_arithmetic()


@_op("Activation", inputs=1)
def _activation(c: Context, x: str) -> str:
    kinds = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
    kind = c.node.attrs.get("act_type")
    if kind not in kinds:
        raise c.unsupported(f"act_type {kind!r}")
    return c.add(kinds[kind], x)


@_op("relu", "tanh", "sigmoid", inputs=1)
def _elementwise(c: Context, x: str) -> str:
    return c.add(c.node.op.capitalize(), x)


@_op("LeakyReLU", inputs=1)
def _leaky_relu(c: Context, x: str) -> str:
    if c.node.attrs.get("act_type") != "gelu":
        raise c.unsupported(f"act_type {c.node.attrs.get('act_type', 'leaky')!r}, expected 'gelu'")
    return c.add("Gelu", x, approximate="none")


@_op("LayerNorm", inputs=3)
def _layer_norm(c: Context, x: str, gamma: str, beta: str) -> str:
    if c.axis(x, c.integer("axis", -1)) != c.rank(x) - 1:
        raise c.unsupported(f"axis {c.integer('axis')} of {c.graph.types[x]}, expected the last")
    epsilon = c.number("eps", 1e-5)
    return c.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)


@_op("FullyConnected", inputs=2, most=3)
def _fully_connected(c: Context, x: str, weight: str, bias: str | None = None) -> str:
    if c.flag("no_bias", False) != (bias is None):
        raise c.misfit(f"no_bias is {c.node.attrs.get('no_bias')} with {len(c.node.inputs)} inputs")
    if c.flag("flatten", True) and c.rank(x) != 2:
        x = c.reshape(x, (c.shape(x)[0], product(c.shape(x)[1:])))
    if c.rank(weight) != 2 or c.shape(weight)[0] != c.integer("num_hidden"):
        raise c.misfit(
            f"num_hidden is {c.integer('num_hidden')}, weight {weight!r} is {c.graph.types[weight]}"
        )
    product_ = c.add("MatMul", x, c.add("Transpose", weight, perm=(1, 0)))
    if bias is None:
        return product_
    if c.shape(bias) != c.shape(weight)[:1]:
        raise c.misfit(f"bias {bias!r} is {c.graph.types[bias]}, weight {c.graph.types[weight]}")
    return c.add("Add", product_, bias)


@_op("Reshape", "reshape", inputs=1)
def _reshape(c: Context, x: str) -> str:
    return c.reshape(x, _reshaped(c, c.shape(x), c.integers("shape"), c.flag("reverse", False)))


def _reshaped(c: Context, old: tuple[Dim, ...], codes: tuple[int, ...], reverse: bool) -> list[Dim]:
    """The shape that MXNet's codes stand for (0, -1, -2, -3, -4, and ``reverse``)."""
    if reverse:
        if -4 in codes:
            raise c.unsupported("shape code -4 together with reverse=True")
        return _reshaped(c, old[::-1], codes[::-1], False)[::-1]
    shape: list[Dim | None] = []
    left, queue = list(old), list(codes)

    def take() -> Dim:
        if not left:
            raise c.misfit(f"shape {codes} asks for more than the {len(old)} axes of {old}")
        return left.pop(0)

    while queue:
        code = queue.pop(0)
        if code > 0:
            shape.append(code)
            del left[:1]
        elif code == 0:
            shape.append(take())
        elif code == -1:
            shape.append(None)
            del left[:1]
        elif code == -2:
            shape.extend(left)
            left.clear()
        elif code == -3:
            shape.append(product([take(), take()]))
        elif code == -4 and len(queue) >= 2:
            dim, first, second = take(), queue.pop(0), queue.pop(0)
            front = _quotient(c, dim, second) if first == -1 else first
            shape.extend([front, _quotient(c, dim, front) if second == -1 else second])
        else:
            raise c.misfit(f"shape {codes}: code {code}")
    known = [dim for dim in shape if dim is not None]
    if len(known) == len(shape):
        return known
    if len(known) < len(shape) - 1:
        raise c.misfit(f"shape {codes}: more than one -1")
    missing = _quotient(c, product(old), product(known))
    return [missing if dim is None else dim for dim in shape]


def _quotient(c: Context, total: Dim, part: Dim) -> Dim:
    quotient = divide(total, part)
    if quotient is None:
        raise c.misfit(f"{total} elements do not divide by {part}")
    return quotient


@_op("reshape_like", inputs=2)
def _reshape_like(c: Context, x: str, like: str) -> str:
    def span(value: str, begin: str, end: str) -> tuple[int, int]:
        rank = c.rank(value)
        bounds = c.parse(begin, None), c.parse(end, None)
        low = 0 if bounds[0] is None else bounds[0]
        high = rank if bounds[1] is None else bounds[1]
        if type(low) is not int or type(high) is not int:
            raise c.misfit(f"{begin}, {end} are {bounds}")
        low, high = (b + rank if b < 0 else b for b in (low, high))
        if not 0 <= low <= high <= rank:
            raise c.misfit(f"{begin}, {end} are {bounds} for {c.graph.types[value]}")
        return low, high

    low, high = span(x, "lhs_begin", "lhs_end")
    first, last = span(like, "rhs_begin", "rhs_end")
    old = c.shape(x)
    return c.reshape(x, old[:low] + c.shape(like)[first:last] + old[high:])


@_op("Flatten", "flatten", inputs=1)
def _flatten(c: Context, x: str) -> str:
    return c.reshape(x, (c.shape(x)[0], product(c.shape(x)[1:])))


@_op("transpose", inputs=1)
def _transpose(c: Context, x: str) -> str:
    axes = c.integers("axes", ()) or tuple(reversed(range(c.rank(x))))
    return c.add("Transpose", x, perm=tuple(c.axis(x, axis) for axis in axes))


@_op("expand_dims", inputs=1)
def _expand_dims(c: Context, x: str) -> str:
    axis = c.integer("axis")
    return c.add("Unsqueeze", x, c.ints(axis + c.rank(x) + 1 if axis < 0 else axis))


@_op("broadcast_axis", "broadcast_axes", inputs=1)
def _broadcast_axis(c: Context, x: str) -> str:
    shape = [1] * c.rank(x)
    for axis, size in zip(c.integers("axis", ()), c.integers("size", ()), strict=False):
        shape[c.axis(x, axis)] = size
    return c.add("Expand", x, c.ints(*shape))


@_op("Concat", "concat", inputs=1, most=1 << 16)
def _concat(c: Context, *parts: str) -> str:
    return c.add("Concat", *parts, axis=c.axis(parts[0], c.integer("dim", 1)))


@_op("stack", inputs=1, most=1 << 16)
def _stack(c: Context, *parts: str) -> str:
    axis = c.integer("axis", 0)
    axis = axis + c.rank(parts[0]) + 1 if axis < 0 else axis
    return c.add("Concat", *[c.add("Unsqueeze", part, c.ints(axis)) for part in parts], axis=axis)


@_op("slice", inputs=1)
def _slice(c: Context, x: str) -> str:
    begin, end = c.integers("begin", none=True), c.integers("end", none=True)
    step = c.integers("step", (), none=True)
    if len(begin) != len(end) or len(begin) > c.rank(x):
        raise c.misfit(f"begin {begin} and end {end} for {c.graph.types[x]}")
    if any(s not in (None, 1) for s in step):
        raise c.unsupported(f"step {step}")
    cuts = [
        (axis, low or 0, END if high is None else high)
        for axis, (low, high) in enumerate(zip(begin, end, strict=True))
        if low or high is not None
    ]
    if not cuts:
        return x
    axes, starts, ends = zip(*cuts, strict=True)
    return c.add("Slice", x, c.ints(*starts), c.ints(*ends), c.ints(*axes))


@_op("zeros_like", inputs=1)
def _zeros_like(c: Context, x: str) -> str:
    return c.add("Expand", c.like(0, x), c.add("Shape", x))


@_op("_contrib_arange_like", inputs=1)
def _arange_like(c: Context, x: str) -> str:
    start, step = c.number("start", 0.0), c.number("step", 1.0)
    if (start, step, c.integer("repeat", 1)) != (0.0, 1.0, 1) or c.parse("axis", None) is None:
        raise c.unsupported("expected start 0, step 1, repeat 1 and an axis")
    return c.arange(x, c.axis(x, c.integer("axis")))


@_op("shape_array", inputs=1)
def _shape_array(c: Context, x: str) -> str:
    return c.add("Shape", x)


@_op("gather_nd", inputs=2)
def _gather_nd(c: Context, x: str, indices: str) -> str:
    if c.graph.types[indices].dtype != "int64":
        indices = c.add("Cast", indices, to="int64")
    # MXNet's indices are (depth, points...), ONNX's (points..., depth)
    perm = (*range(1, c.rank(indices)), 0)
    return c.add("GatherND", x, c.add("Transpose", indices, perm=perm))


@_op("SequenceMask", inputs=1, most=2)
def _sequence_mask(c: Context, x: str, length: str | None = None) -> str:
    if not c.flag("use_sequence_length", False):
        return x
    axis = c.integer("axis", 0)
    if length is None or c.rank(x) < 2 or axis not in (0, 1):
        raise c.misfit(f"axis {axis} of {c.graph.types[x]}, {len(c.node.inputs)} inputs")
    value = c.like(c.number("value", 0.0), x)
    positions = c.add("Unsqueeze", c.arange(x, axis), c.ints(1 - axis))
    # (sequence, batch) or (batch, sequence), whichever way x begins
    lengths = length if axis == 0 else c.add("Unsqueeze", length, c.ints(1))
    kept = c.add("Less", positions, lengths)
    if c.rank(x) > 2:
        kept = c.add("Unsqueeze", kept, c.ints(*range(2, c.rank(x))))
    return c.add("Where", kept, x, value)


@_op("softmax", inputs=1, most=2)
def _softmax(c: Context, x: str, length: str | None = None) -> str:
    if c.node.attrs.get("dtype", "None") not in ("None", "float16", c.graph.types[x].dtype):
        raise c.unsupported(f"dtype {c.node.attrs['dtype']!r}")
    axis = c.axis(x, c.integer("axis", -1))
    temperature = c.parse("temperature", None)
    if temperature is not None and c.number("temperature") != 1.0:
        x = c.add("Div", x, c.like(c.number("temperature"), x))
    if not c.flag("use_length", False):
        return c.add("Softmax", x, axis=axis)
    if length is None or axis != c.rank(x) - 1 or c.rank(length) != c.rank(x) - 1:
        raise c.misfit("use_length needs the last axis and one length for every row")
    lengths = _one_length_per_sequence(c, length) or length
    kept = c.add("Less", c.arange(x, axis), c.add("Unsqueeze", lengths, c.ints(c.rank(x) - 1)))
    # A row of length 0 has probabilities 0, as in MXNet: hence the second Where.
    probabilities = c.add("Softmax", c.add("Where", kept, x, c.like(_LOWEST, x)), axis=axis)
    return c.add("Where", kept, probabilities, c.like(0.0, x))


def _one_length_per_sequence(c: Context, length: str) -> str | None:
    """(batch*heads, 1) lengths in place of (batch*heads, queries), where all queries share one.

    GluonNLP writes each sequence's length for every query of every head:

        valid_length -> Reshape (batch, 1) -> Add zeros (1, sequence) -> Unsqueeze (batch, 1, .)
                     -> Expand (batch, heads, .) -> Reshape (batch*heads, .)

    Returns None where the lengths were made in another way.
    """
    graph = c.graph

    def climb(value: str, op: str) -> tuple[str, ...]:
        node = graph.producer(value)
        return node.inputs if node and node.op == op else ("", "")

    expanded = climb(length, "Reshape")[0]
    per_head = climb(expanded, "Expand")[0]
    total = climb(climb(per_head, "Unsqueeze")[0], "Add")
    column, row = total if len(total) == 2 else ("", "")
    zeros = climb(climb(row, "Reshape")[0] or row, "Expand")[0]
    vector = climb(column, "Reshape")[0]
    if not vector or graph.scalar(zeros) != 0:
        return None
    batch, heads = c.shape(vector)[0], c.shape(expanded)[1]
    queries = c.shape(expanded)[-1]
    expected = [
        (vector, (batch,)),
        (column, (batch, 1)),
        (row, (1, queries)),
        (per_head, (batch, 1, queries)),
        (expanded, (batch, heads, queries)),
        (length, (product([batch, heads]), queries)),
    ]
    if not isinstance(heads, int) or any(c.shape(v) != shape for v, shape in expected):
        return None
    per_head = c.add("Expand", column, c.ints(1, heads))
    return c.reshape(per_head, (product([batch, heads]), 1))


def _heads(c: Context, qkv: str) -> tuple[tuple[str, ...], int, int]:
    """(query, key, value) as (batch*heads, sequence, head_dim) each; heads; head_dim.

    The projection holds for every head its query, key and value side by side:
    (sequence, batch, heads * 3 * head_dim).
    """
    heads = c.integer("heads")
    width = c.shape(qkv)[-1] if c.rank(qkv) == 3 else None
    if heads < 1 or not isinstance(width, int) or width == 0 or width % (3 * heads):
        raise c.misfit(f"{heads} heads of {c.graph.types[qkv]}")
    length, batch, _ = c.shape(qkv)
    per_head = c.reshape(qkv, (length, product([batch, heads]), width // heads))
    split = c.all("Split", c.add("Transpose", per_head, perm=(1, 0, 2)), axis=2, num_outputs=3)
    return split, heads, width // heads // 3


@_op("_contrib_interleaved_matmul_selfatt_qk", inputs=1)
def _attention_scores(c: Context, qkv: str) -> str:
    (query, key, _), _, head_dim = _heads(c, qkv)
    scaled = c.add("Mul", query, c.like(1.0 / math.sqrt(head_dim), query))
    return c.add("MatMul", scaled, c.add("Transpose", key, perm=(0, 2, 1)))


@_op("_contrib_interleaved_matmul_selfatt_valatt", inputs=2)
def _attention_context(c: Context, qkv: str, probabilities: str) -> str:
    (_, _, value), heads, head_dim = _heads(c, qkv)
    context = c.add("MatMul", probabilities, value)
    length, batch, _ = c.shape(qkv)
    back = c.add("Transpose", context, perm=(1, 0, 2))
    return c.reshape(back, (length, batch, heads * head_dim))
