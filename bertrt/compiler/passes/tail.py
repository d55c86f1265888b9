"""Fuse what a graph does with its last rows, one tail step after the other.

::

    logits ──► Softmax | LogSoftmax | Sigmoid            softmax, log_softmax, sigmoid
    logits ──► Mul | Div | Add | Sub by a number         affine

    rows ──► Mul by the mask ──► ReduceSum ─┐
    mask ──► ReduceSum ──► Clip ────────────┴► Div       mean_tokens

    rows ──► Where(mask, ., -1e9) ──► ReduceMax          max_tokens

    x ─┬► ReduceL2 ──► Clip ──► Expand ─┐
       └────────────────────────────────┴► Div           normalize

The last three are told by what they compute, however they are written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bertrt.compiler.evaluate import dependencies
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import (
    Match,
    NoMatchError,
    batch_axis,
    layout,
    row_numbers,
    sequence_axis,
    values_of,
)
from bertrt.compiler.passes.mask import lengths_to_try, mask_feed, mask_input
from bertrt.plan.check import STEP_OPS

_BY_ROW = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
_POOLINGS: dict[str, Callable[..., np.ndarray]] = {"mean_tokens": np.mean, "max_tokens": np.max}
_FAR = 1e3
_TINY = 1e-30  # a norm below every epsilon


def match(graph: Graph, node: Node) -> Match | None:
    """Anchored at every result (batch, width) that is no step's; runs after the other passes."""
    shape = graph.shape(node.output)
    if node.op in STEP_OPS or len(shape) != 2 or shape[0] != batch_axis(graph):
        return None
    x = node.inputs[0]
    if _is_step(graph, x) and len(graph.shape(x)) == 2 and layout(graph, x) is None:
        if node.op in _BY_ROW and node.attrs.get("axis", 1) == 1:
            return Match(node, Node(_BY_ROW[node.op], "", (x,), ()))
        number = graph.scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        if number is not None and (fields := _affine(node.op, number)):
            return Match(node, Node("affine", "", (x,), (), fields))
    steps = _steps_behind(graph, node)
    if len(steps) != 1 or graph.shape(steps[0])[-1] != shape[1]:
        return None
    (x,) = steps
    if (kind := layout(graph, x)) is not None:
        return _pooled(graph, node, x, kind)
    return _normalized(graph, node, x) if graph.shape(x) == shape else None


def _is_step(graph: Graph, value: str) -> bool:
    maker = graph.producer(value)
    return maker is not None and (maker.op in STEP_OPS or maker.op == "token_rows")


def _affine(op: str, number: float) -> dict[str, float] | None:
    if op == "Div" and number:
        return {"factor": float(1 / number), "shift": 0.0}
    return {
        "Mul": {"factor": float(number), "shift": 0.0},
        "Add": {"factor": 1.0, "shift": float(number)},
        "Sub": {"factor": 1.0, "shift": -float(number)},
    }.get(op)


def _steps_behind(graph: Graph, node: Node) -> list[str]:
    """The results of steps that a node's result is computed from, up to them."""
    found: dict[str, None] = {}
    pending, seen = list(node.inputs), set[str]()
    while pending:
        value = pending.pop()
        if not value or value in seen:
            continue
        seen.add(value)
        maker = graph.producer(value)
        if maker is None or maker.op == "Shape":
            continue
        if _is_step(graph, value):
            found[value] = None
        else:
            pending += maker.inputs
    return list(found)


def _pooled(graph: Graph, node: Node, x: str, kind: str) -> Match | None:
    try:
        mask = mask_input(graph, node.output, x)
        batch, length = int(batch_axis(graph)), int(sequence_axis(graph))
        shape = [int(dim) for dim in graph.shape(x)]
        drawn = np.random.default_rng(0).normal(size=(batch * length, shape[-1]))
        possible = dict(_POOLINGS)
        for lengths in lengths_to_try(graph) if mask is not None else [np.full(batch, length)]:
            # The largest of a sequence's numbers may be far below 0, and so below a padding's 0.
            for rows in (drawn, drawn - _FAR):
                known = {x: rows.reshape(shape)}
                if mask is not None:
                    known[mask] = mask_feed(graph, mask, lengths)
                found = values_of(graph, node.output, known)
                by_token = rows[row_numbers(graph, kind)]
                for op, pool in list(possible.items()):
                    pairs = zip(by_token, lengths, strict=True)
                    expected = [pool(own[:n], axis=0) for own, n in pairs]
                    if not np.allclose(found, expected, rtol=1e-6, atol=1e-9):
                        del possible[op]
    except NoMatchError:
        return None
    if not possible:
        return None
    (op, *_) = possible
    inputs = (x,) if mask is None else (x, mask)
    attrs = {"mask": "none" if mask is None else "valid_length"}
    return Match(node, Node(op, "", inputs, (), attrs))


def _normalized(graph: Graph, node: Node, x: str) -> Match | None:
    if dependencies(graph, node.output, [x]) & set(graph.inputs):
        return None
    shape = [int(dim) for dim in graph.shape(x)]
    drawn = np.random.default_rng(0).normal(size=shape)
    try:
        found = values_of(graph, node.output, {x: drawn})
        tiny = values_of(graph, node.output, {x: drawn * _TINY})
    except NoMatchError:
        return None
    norms = np.sqrt(np.square(drawn).sum(axis=1, keepdims=True))
    if not np.allclose(found, drawn / norms, rtol=1e-6, atol=0):
        return None
    # Far below it, the norm is replaced by epsilon.
    eps = float((drawn * _TINY / tiny).max())
    eps = 0.0 if eps <= 2 * _TINY * norms.max() else float(str(np.float32(eps)))
    return Match(node, Node("normalize", "", (x,), (), {"eps": eps}))
