"""Fuse multi-head self-attention into one ``attention`` step.

::

    query ──► views, scale ─┐
    key ────► views, scale ─┴► MatMul ► scale, mask ► Softmax ► mask ► MatMul ► views ► rows
    value ──► views ──────────────────────────────────────────────────┘

    mask = any nodes that begin at one input and hide the keys beyond a sequence's length

"Views" move elements and change none: Reshape, Transpose, Split and so on, in any order, in four
axes or in three. Which element of a projection becomes which of a head is found by numbering them.
What lies between the first product and the Softmax must be ``scale * score`` at the keys that are
there, and at the others so low that their probability is 0.
"""

from __future__ import annotations

import numpy as np

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    VIEWS,
    Match,
    NoMatchError,
    batch_axis,
    elements,
    layout,
    row_numbers,
    sequence_axis,
    through_views,
    values_of,
)
from bertrt.compiler.passes.mask import lengths_to_try, mask_feed, mask_input

STEP = "attention"
# A step that returns the probabilities; made by the pass of that name, it reads them until this
# pass lets it read what the attention reads.
WEIGHTS = "attention_weights"
# BERT's own mask adds -10,000: in float32 the probability of such a key is exactly 0 unless the
# score of every other key is lower still by nearly as much.
_LOWEST = -9999.0


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every Softmax."""
    if node.op != "Softmax":
        return None
    if node.attrs["axis"] != len(graph.shape(node.output)) - 1:
        raise NoMatchError(node, f"expected the last axis, found axis {node.attrs['axis']}")
    product = _product_above(graph, node)
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    shape = [int(dim) for dim in graph.shape(product.output)]
    heads, rest = divmod(int(np.prod(shape[:-2])), batch)
    if shape[-2:] != [length, length] or rest or not heads:
        raise NoMatchError(
            product, f"expected scores (batch, heads, {length}, {length}), found {tuple(shape)}"
        )
    mask, scale = _mask(graph, node, product)
    query, key = product.inputs
    query_base, query_columns, query_scale = _part(graph, query, heads, product)
    key_base, key_columns, key_scale = _part(graph, key, heads, product, turned=True)
    context = _context(graph, node, mask)
    value_base, value_columns, value_scale = _part(graph, context.inputs[1], heads, context)
    if value_scale != 1.0 or not query_columns.shape == key_columns.shape == value_columns.shape:
        raise NoMatchError(context, "the value is scaled, or its heads are not the query's")
    last = _rows(graph, context, heads)
    attrs = {
        "heads": heads,
        "head_dim": query_columns.size // heads,
        "scale": query_scale * key_scale * scale,
        "mask": "none" if mask is None else "valid_length",
        # For the qkv pass: the columns of each projection, by head
        "columns": tuple(
            tuple(columns.ravel().tolist())
            for columns in (query_columns, key_columns, value_columns)
        ),
    }
    inputs = (query_base, key_base, value_base) + (() if mask is None else (mask,))
    more: list[tuple[Node, Node]] = []
    for user in graph.users(node.output) + graph.users(context.inputs[0]):
        if user.op == WEIGHTS and user not in [weights for weights, _ in more]:
            if user.inputs != context.inputs[:1]:
                raise NoMatchError(user, "what is returned are not the probabilities that are used")
            more.append((user, Node(WEIGHTS, "", inputs, (), attrs)))
    return Match(last, Node(STEP, "", inputs, (), attrs), tuple(more))


def _product_above(graph: Graph, softmax: Node) -> Node:
    """The one product that the scores come from."""
    found: list[Node] = []
    pending, seen = [softmax.inputs[0]], set[str]()
    while pending:
        node = graph.producer(pending.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op == "MatMul":
            found.append(node)
        else:
            pending += [value for value in node.inputs if value]
    if len(found) != 1:
        above = graph.producer(softmax.inputs[0]) or softmax
        raise NoMatchError(
            above, f"expected one MatMul (query times key) behind it, found {len(found)}"
        )
    return found[0]


def _mask(graph: Graph, softmax: Node, product: Node) -> tuple[str | None, float]:
    """The input that the mask is made of, and the scale between the product and the Softmax."""
    before = softmax.inputs[0]
    at = graph.producer(before) or softmax
    mask = mask_input(graph, before, product.output)
    shape = [int(dim) for dim in graph.shape(product.output)]
    batch = int(batch_axis(graph))
    length = shape[-1]

    def scores(value: float, lengths: np.ndarray) -> np.ndarray:
        known = {product.output: np.full(shape, value, np.float32)}
        if mask is not None:
            known[mask] = mask_feed(graph, mask, lengths)
        found = values_of(graph, before, known)
        try:
            return np.broadcast_to(found, (*shape,)).reshape(batch, -1, length, length)
        except ValueError:
            raise NoMatchError(at, f"scores {(*shape,)} become {found.shape}") from None

    whole = np.full(batch, length)
    scale = float(str(scores(1.0, whole).ravel()[0]))
    if not scale > 0 or not np.isfinite(scale):
        raise NoMatchError(at, f"a score of 1 becomes {scale}: no scale")
    for lengths in [whole] if mask is None else lengths_to_try(graph):
        shown = np.arange(length) < lengths[:, None]
        for value in (0.0, 1.0, -2.0):
            found = scores(value, lengths).transpose(0, 3, 1, 2)  # keys after the batch
            if not np.allclose(found[shown], value * scale, rtol=1e-6, atol=0):
                raise NoMatchError(at, "the scores of keys before a sequence's end are changed")
            hidden = found[~shown]
            if hidden.size and hidden.max() > _LOWEST + abs(value * scale):
                raise NoMatchError(
                    at,
                    f"masked scores become {hidden.max():g}, expected {_LOWEST:g} or lower beyond "
                    "a sequence's length",
                )
    return mask, scale


def _part(
    graph: Graph, value: str, heads: int, at: Node, turned: bool = False
) -> tuple[str, np.ndarray, float]:
    """What a query, key or value shows: a projection, its columns (heads, head_dim), a scale."""
    base, factor = through_views(graph, value)
    kind = layout(graph, base)
    if kind is None or factor <= 0:
        raise NoMatchError(
            graph.producer(base) or at,
            f"expected a projection of all tokens, found {graph.types[base]} scaled by {factor:g}",
        )
    shown = elements(graph, value, base, factor)
    shown = shown.swapaxes(-1, -2) if turned else shown
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    width = int(graph.shape(base)[-1])
    if shown.size % (batch * heads * length) or shown.shape[-2] != length:
        raise NoMatchError(at, f"{shown.shape} is no query, key or value of {heads} heads")
    shown = shown.reshape(batch, heads, length, -1)
    columns = shown[0, :, 0, :] % width
    expected = row_numbers(graph, kind)[:, None, :, None] * width + columns[None, :, None, :]
    if not np.array_equal(shown, expected):
        raise NoMatchError(at, "the tokens of query, key or value are not in their order")
    return base, columns, factor


def _context(graph: Graph, softmax: Node, mask: str | None) -> Node:
    """The product of probabilities and value; what lies before it may only hide the padding."""
    found: list[Node] = []
    pending, seen = [softmax.output], set[str]()
    while pending:
        value = pending.pop()
        if value in graph.outputs.values():
            raise NoMatchError(
                softmax, "its result must be read by MatMul alone, and it is also used elsewhere"
            )
        for user in graph.users(value):
            if user.op == WEIGHTS:
                continue
            if user.op == "MatMul":
                if user not in found:
                    found.append(user)
            elif user.name not in seen:
                seen.add(user.name)
                pending += user.outputs
    if len(found) != 1:
        raise NoMatchError(
            softmax, f"expected one MatMul (probabilities times value), found {len(found)}"
        )
    (context,) = found
    shape = [int(dim) for dim in graph.shape(softmax.output)]
    batch, length = int(batch_axis(graph)), shape[-1]
    at = graph.producer(context.inputs[0]) or context
    if mask_input(graph, context.inputs[0], softmax.output) not in (None, mask):
        raise NoMatchError(at, "the mask of the probabilities is not that of the scores")
    drawn = np.random.default_rng(0).uniform(0.1, 1.0, shape).astype(np.float32)
    for lengths in lengths_to_try(graph):
        shown = np.arange(length) < lengths[:, None]
        by_head = drawn.reshape(batch, -1, length, length) * shown[:, None, None, :]
        if mask is None:
            by_head = drawn.reshape(batch, -1, length, length)
        known = {softmax.output: by_head.reshape(shape)}
        if mask is not None:
            known[mask] = mask_feed(graph, mask, lengths)
        found_here = values_of(graph, context.inputs[0], known)
        if found_here.size != by_head.size or not np.array_equal(
            found_here.reshape(by_head.shape).transpose(0, 2, 1, 3)[shown],
            by_head.transpose(0, 2, 1, 3)[shown],
        ):
            raise NoMatchError(at, "the probabilities are changed: expected MatMul of them as are")
        if mask is None:
            break
    return context


def _rows(graph: Graph, context: Node, heads: int) -> Node:
    """The last view that has the heads side by side again, a row for each token."""
    batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
    head_dim = int(graph.shape(context.output)[-1])
    numbers = np.arange(batch * heads * length * head_dim).reshape(batch, heads, length, head_dim)
    side_by_side = numbers.transpose(0, 2, 1, 3).reshape(batch * length, -1)
    last, found = context, None
    while True:
        kind = layout(graph, last.output)
        if kind is not None and graph.shape(last.output)[-1] == heads * head_dim:
            shown = elements(graph, last.output, context.output).reshape(batch * length, -1)
            if not np.array_equal(shown[row_numbers(graph, kind).ravel()], side_by_side):
                raise NoMatchError(last, "the heads of a token are not side by side in their order")
            found = last
        user = graph.only_user(last.output)
        if user is None or user.op not in VIEWS:
            break
        last = user
    if found is None:
        raise NoMatchError(
            last, f"expected rows of {heads * head_dim} for each token, found "
            f"{graph.types[last.output]}"
        )  # fmt: skip
    return found
