"""From graph to plan: the ordered passes, and the coverage report.

The passes work at fixed small sizes of batch and sequence, where what a graph computes can be
looked at. Every model goes through them at two pairs of sizes, and one plan must come out of both.

Example::

    plan, coverage = compile_graph(read_mxnet("model-symbol.json", "model-0000.params"))
    print(coverage)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np

from bertrt.compiler.coverage import Coverage, Fused, Unfused, layers_of
from bertrt.compiler.evaluate import check_sizes
from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.layout import lay_out
from bertrt.compiler.outputs import names_by_structure, output_names
from bertrt.compiler.passes import (
    Match,
    NoMatchError,
    attention,
    attention_weights,
    batch_axis,
    embed,
    first_token,
    gather_positions,
    gelu,
    layer_norm,
    linear,
    normalization,
    qkv,
    reshape,
    rows,
    sequence_axis,
    tail,
)
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.plan.check import STEP_OPS
from bertrt.plan.plan import Plan

__all__ = ["PASSES", "SIZES", "SPELLINGS", "apply_pass", "compile_at_sizes", "compile_graph"]

# For models with fewer positions than SIZES ask for
_SHORT_SIZES = ((3, 2), (5, 2))
# They give operations that exporters spell in many ways the one spelling that the others know.
SPELLINGS: tuple[ModuleType, ...] = (normalization, gelu, reshape)
# In this order: a pass may build on what those before it have fused.
PASSES: tuple[ModuleType, ...] = (
    embed,
    attention_weights,
    attention,
    qkv,
    rows,
    linear,
    layer_norm,
    first_token,
    gather_positions,
    tail,
)


def compile_graph(graph: Graph) -> tuple[Plan, Coverage]:
    """Fuse a graph and lay out its plan. A graph whose sizes are numbers is fused in place.

    Raises UnsupportedModelError, with the coverage report in its message, when a part of the model
    stays unfused or is not one that a plan can say.
    """
    if all(isinstance(dim, int) for value in graph.inputs for dim in graph.shape(value)):
        return _compile(graph, None)
    names = output_names(graph)

    def at(batch: int, length: int) -> tuple[Plan, Coverage]:
        sizes = {"batch": batch, "sequence": length, "num_masked": 4}
        return _compile(graph.bound(sizes), names)

    return _agreed(at)


def compile_at_sizes(read: Callable[[tuple[int, int]], Graph]) -> tuple[Plan, Coverage]:
    """As `compile_graph`, for a model whose graph is read anew at each (batch, sequence)."""
    return _agreed(lambda batch, length: _compile(read((batch, length)), None))


def _agreed(
    compiled: Callable[[int, int], tuple[Plan, Coverage]],
) -> tuple[Plan, Coverage]:
    """The one plan that a model has at several sizes of batch and sequence."""
    try:
        (plan, coverage), *others = (compiled(*sizes) for sizes in SIZES)
    except ModelFormatError as error:
        try:
            (plan, coverage), *others = (compiled(*sizes) for sizes in _SHORT_SIZES)
        except ModelFormatError:
            raise error from None
    for other, _ in others:
        alike = (plan.steps, plan.outputs, plan.inputs, set(plan.weights)) == (
            other.steps, other.outputs, other.inputs, set(other.weights)
        )  # fmt: skip
        if not alike or not all(
            np.array_equal(constant.array, other.weights[name].array)
            for name, constant in plan.weights.items()
            if constant.file is None
        ):
            raise UnsupportedModelError(
                f"{coverage.origin}: the model is another one for another size of batch or sequence"
            )
    return plan, coverage


def _compile(graph: Graph, names: dict[str, str] | None) -> tuple[Plan, Coverage]:
    """Fuse a graph of known sizes; ``names`` are those of its outputs, by value, if they are
    known."""
    batch, length = batch_axis(graph), sequence_axis(graph)
    if not batch or batch == length:
        raise UnsupportedModelError(
            f"{graph.origin}: the first input with two axes has shape ({batch}, {length}), "
            "expected token ids of a batch and a sequence length that differ, or are free"
        )
    check_sizes(graph)
    coverage = Coverage(graph.origin)
    for module in SPELLINGS:
        apply_pass(graph, module, {}, coverage)
    layers = layers_of(graph)
    coverage.fused = [replace(done, layer=layers.get(done.node, "?")) for done in coverage.fused]
    coverage.unfused = [replace(e, layer=layers.get(e.anchor, "?")) for e in coverage.unfused]
    for module in PASSES:
        apply_pass(graph, module, layers, coverage)
    nameless: UnsupportedModelError | None = None
    if names is None:
        try:
            names = names_by_structure(graph)
        except UnsupportedModelError as error:
            # What is not fused is told first: it may be why an output is not known.
            names, nameless = {}, error
    # Where a pass stopped matters only if no other pass has taken the place up since.
    unfused = {n.name: n for n in graph.nodes.values() if n.op not in (*STEP_OPS, rows.STEP)}
    coverage.unfused = [e for e in coverage.unfused if e.node in unfused or e.anchor in unfused]
    told = {name for entry in coverage.unfused for name in (entry.node, entry.anchor)}
    left: dict[str, list[Node]] = {}
    for node in unfused.values():
        if node.name not in told:
            left.setdefault(layers.get(node.output, "?"), []).append(node)
    for layer, nodes in left.items():
        listed = ", ".join(f"{node.name!r} ({node.op})" for node in nodes)
        name = nodes[0].name
        coverage.unfused.append(Unfused(layer, "no pass", name, name, f"left over: {listed}"))
    if coverage.unfused:
        first = coverage.unfused[0]
        raise UnsupportedModelError(
            f"{graph.origin}: {first.layer} is not fused: pass {first.fusion} stopped at node "
            f"{first.node!r}: {first.reason}\n{coverage}"
        )
    if nameless is not None:
        raise nameless
    return lay_out(graph, names), coverage


def apply_pass(
    graph: Graph,
    module: ModuleType,
    layers: dict[str, str] | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Run one pass over a graph, in place, and note in ``coverage`` what it did."""
    name = module.__name__.rpartition(".")[2]
    for node in list(graph.nodes.values()):
        if graph.nodes.get(node.name) is not node:
            continue  # fused meanwhile
        try:
            match: Match | None = module.match(graph, node)
        except NoMatchError as stop:
            if coverage is not None and layers is not None:
                layer = layers.get(node.output, "?")
                coverage.unfused.append(Unfused(layer, name, node.name, stop.node, stop.reason))
            continue
        if match is None:
            continue
        before = len(graph.nodes)
        if match.fused is None or match.value is not None:
            graph.forward(match.last, match.value or "")
            continue
        graph.replace(match.last, match.fused)
        for old, new in match.more:
            graph.replace(old, new)
        if coverage is not None and layers is not None:
            layer, count = layers.get(match.fused.output, "?"), before - len(graph.nodes) + 1
            coverage.fused.append(Fused(layer, name, match.fused.op, match.fused.name, count))


# Layers


# Laying out the plan


# (batch, sequence) for the free axes: the two ways to read a file. Distinct primes, so that no two
# extents of a graph are taken for one another; short, for models with few positions.
SIZES = ((3, 5), (2, 7))
