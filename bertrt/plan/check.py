"""What makes a plan right: each kind of step with its roles, fields and rows.

A plan is checked when it is made; an engine may rely on what is checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bertrt.errors import ModelFormatError
from bertrt.plan.fields import LIMIT, check_keys
from bertrt.plan.steps import (
    ACTIVATIONS,
    LAYOUTS,
    OUTPUT_ROWS,
    PRECISIONS,
    Architecture,
    Step,
    layer_outputs,
    output_kind,
)
from bertrt.plan.tail import OVER_TOKENS, TAIL_OPS
from bertrt.plan.weights import DTYPES, STORED, Constant, dtype_name

__all__ = ["STEP_OPS", "check_plan"]

# Inputs of a product: in int8 the sum of more would not fit 32 bits. csrc/plan says the same.
_MOST_INPUTS = 65536
# Engines compute with float32.
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Rows:
    """What a value is: rows of a kind ("tokens", "seqs", "positions", "pairs", "qkv"),
    and their width.

    "qkv" are token rows that hold query, key and value side by side: only attention reads them.
    """

    kind: str
    width: int


@dataclass(frozen=True)
class _Rule:
    """What a kind of step needs; roles and fields ending in "?" are optional. The same table
    is in csrc/plan/plan.cpp."""

    inputs: int
    roles: tuple[str, ...]
    fields: tuple[str, ...]


_RULES = {
    "embed_layer_norm": _Rule(0, ("word", "type?", "position", "gamma", "beta"), ("eps",)),
    "qkv_linear": _Rule(
        1,
        ("weight", "scale?", "bias"),
        ("heads", "head_dim", "weight_layout", "bias_layout", "transposed", "precision?"),
    ),
    "attention": _Rule(1, ("bias?",), ("heads", "head_dim", "scale", "mask", "precision?")),
    "attention_weights": _Rule(1, ("bias?",), ("heads", "head_dim", "scale", "mask")),
    "linear_add_layer_norm": _Rule(
        2, ("weight", "scale?", "bias", "gamma", "beta"), ("eps", "transposed", "precision?")
    ),
    "linear": _Rule(1, ("weight", "scale?", "bias?"), ("activation", "transposed", "precision?")),
    "layer_norm": _Rule(1, ("gamma", "beta"), ("eps",)),
    "first_token": _Rule(1, (), ()),
    "gather_positions": _Rule(1, (), ()),
} | {
    op: _Rule(1, (), {"affine": ("factor", "shift"), "normalize": ("eps",)}.get(op, ()))
    for op in TAIL_OPS
}
STEP_OPS = frozenset(_RULES)


def check_plan(
    inputs: Mapping[str, str | None],
    steps: Iterable[Step],
    outputs: Mapping[str, str],
    weights: Mapping[str, Constant],
) -> tuple[Architecture, dict[str, str]]:
    """Check a whole plan; returns the facts that its steps and weights state, and the kind of rows
    of every output."""
    for name, constant in weights.items():
        if not dtype_name(constant) or not constant.row_major:
            raise ModelFormatError(
                f"weight {name!r} is {constant.dtype}, expected row-major {', '.join(DTYPES)}"
            )
        shape = constant.shape
        if not shape or min(shape) < 1 or max(shape) >= LIMIT:
            raise ModelFormatError(
                f"weight {name!r} has shape {shape}, expected extents from 1 to {LIMIT - 1}"
            )
    checker = _Checker(inputs, weights)
    values: dict[str, _Rows] = {}
    names: set[str] = set()
    tail: set[str] = set()
    for step in steps:
        if step.name in names or step.output in values:
            raise ModelFormatError(
                f"step {step.name!r} ({step.op}): its name or its output is there twice"
            )
        names.add(step.name)
        values[step.output] = checker.rows(step, values)
        if step.op in TAIL_OPS:
            tail.add(step.output)
        elif tail & set(step.inputs):
            raise ModelFormatError(
                f"step {step.name!r} ({step.op}): reads the result of a tail step"
            )
    if not outputs:
        raise ModelFormatError("the plan has no outputs")
    rows: dict[str, str] = {}
    for name, value in outputs.items():
        kind = output_kind(name)
        if kind is None:
            raise ModelFormatError(f"unknown output {name!r}, expected one of {list(OUTPUT_ROWS)}")
        found = values.get(value)
        if found is None or found.kind not in OUTPUT_ROWS[kind]:
            raise ModelFormatError(
                f"output {name!r} is value {value!r} ({found}), expected rows of "
                f"{' or '.join(OUTPUT_ROWS[kind])}"
            )
        rows[name] = found.kind
    layers = checker.layers
    for kind, count in (("encoding", layers - 1), ("attention_weights", layers)):
        named = layer_outputs(outputs, kind)
        if named and named != [f"{kind}_{layer}" for layer in range(count)]:
            raise ModelFormatError(
                f"the outputs {', '.join(named)} of {layers} layers, expected {kind}_0 up to "
                f"{kind}_{count - 1}, or none of them"
            )
    unused = set(weights) - checker.used
    if unused:
        raise ModelFormatError(f"no step uses the weights {sorted(unused)[:5]}")
    return checker.architecture(), rows


class _Checker:
    """Follows the steps, checks each against its rule, and collects the facts of the model."""

    def __init__(self, inputs: Mapping[str, str | None], weights: Mapping[str, Constant]) -> None:
        self.inputs = inputs
        self.weights = weights
        self.used: set[str] = set()
        self.facts: dict[str, set[Any]] = {}
        self.layers = 0
        # By output. One that a linear_add_layer_norm reads begins a feed-forward block; the others
        # are heads, or bring the embeddings to the layers' width.
        self.token_linears: dict[str, Step] = {}

    def rows(self, step: Step, values: dict[str, _Rows]) -> _Rows:
        """Check one step; returns what its output is."""
        rule = _RULES.get(step.op)
        if rule is None:
            raise ModelFormatError(
                f"step {step.name!r}: unknown op {step.op!r}, expected one of {list(_RULES)}"
            )
        left_out = {key for key in rule.fields if key.endswith("?") and key[:-1] not in step.fields}
        fields = tuple(key.removesuffix("?") for key in rule.fields if key not in left_out)
        check_keys(step.fields, fields, f"step {step.name!r} ({step.op})")
        for key in fields:
            self._check_field(step, key)
        if len(step.inputs) != rule.inputs:
            self._fail(step, f"{len(step.inputs)} inputs, expected {rule.inputs}")
        for value in step.inputs:
            if value not in values:
                self._fail(step, f"reads {value!r}, which no step before it computes")
        self._check_roles(step, rule)
        if step.op in TAIL_OPS:
            return self._tail(step, values[step.inputs[0]])
        return getattr(self, f"_{step.op}")(step, *(values[value] for value in step.inputs))

    def architecture(self) -> Architecture:
        """The facts; ModelFormatError where layers differ or a part is missing."""
        if self.layers < 1:
            raise ModelFormatError("the model has no attention step: it has no encoder layer")
        facts: dict[str, Any] = {}
        for key in Architecture.__annotations__:
            found = {self.layers} if key == "layers" else self.facts.get(key, set())
            if len(found) != 1:
                problem = f"different values {sorted(found)}" if found else "no step that says it"
                raise ModelFormatError(f"the model has no one {key}: {problem}")
            (facts[key],) = found
        return cast(Architecture, facts)

    # Parts of the check

    def _fail(self, step: Step, message: str) -> None:
        raise ModelFormatError(f"step {step.name!r} ({step.op}): {message}")

    def _fact(self, key: str, value: Any) -> None:
        self.facts.setdefault(key, set()).add(value)

    def _check_field(self, step: Step, key: str) -> None:
        value = step.fields[key]
        choices = {
            "activation": ACTIVATIONS,
            "mask": ("none", "valid_length"),
            "weight_layout": LAYOUTS,
            "bias_layout": LAYOUTS,
            "precision": PRECISIONS,
        }
        if key in choices:
            good = isinstance(value, str) and value in choices[key]
        elif key == "transposed":
            good = isinstance(value, bool)
        elif key in ("heads", "head_dim"):
            good = type(value) is int and 1 <= value < LIMIT
        elif key == "eps":
            good = type(value) is float and 0.0 <= value < 1.0
        elif key in ("factor", "shift"):
            good = type(value) is float and abs(value) <= _LARGEST
        else:  # scale
            good = type(value) is float and 0.0 < value <= _LARGEST
        if not good:
            expected = f", expected one of {choices[key]}" if key in choices else ""
            self._fail(step, f"{key} is {value!r}{expected}")

    def _check_roles(self, step: Step, rule: _Rule) -> None:
        known = {role.removesuffix("?") for role in rule.roles}
        needed = {role for role in rule.roles if not role.endswith("?")}
        if not needed <= set(step.weights) <= known:
            self._fail(step, f"weights {sorted(step.weights)}, expected {list(rule.roles)}")
        for role, names in step.weights.items():
            layout = "bias_layout" if role == "bias" else "weight_layout"
            separate = role in ("weight", "scale", "bias") and step.fields.get(layout) == "separate"
            if len(names) != (3 if separate else 1):
                self._fail(step, f"{len(names)} arrays for {role}")
            for name in names:
                if name not in self.weights:
                    self._fail(step, f"{role} {name!r} is not among the weights")
                self.used.add(name)
                self._check_stored(step, role, name)

    def _check_stored(self, step: Step, role: str, name: str) -> None:
        dtype = str(self.weights[name].dtype)
        precision = step.fields.get("precision")
        if dtype != "float32" and (role != "weight" or STORED[dtype] != precision):
            self._fail(step, f"{role} {name!r} is {dtype}, and the precision {precision}")
        if role == "weight" and (dtype in ("int8", "uint8")) != ("scale" in step.weights):
            self._fail(step, f"weight {name!r} is {dtype}; 8 bits and a scale need each other")
        first = step.weights[role][0]
        if self.weights[name].dtype != self.weights[first].dtype:
            self._fail(step, f"{role} {name!r} is {dtype}, and {first!r} beside it is not")

    def _shapes(self, step: Step, role: str) -> Iterator[tuple[int, ...]]:
        for name in step.weights[role]:
            yield self.weights[name].shape

    def _matrix(self, step: Step, role: str) -> tuple[int, int]:
        """(out, in) of a weight, however it is stored."""
        shapes = set(self._shapes(step, role))
        shape = shapes.pop()
        if shapes or len(shape) != 2:
            self._fail(step, f"{role} has shape {shape}, expected matrices of one shape")
        out, into = shape[::-1] if step.fields.get("transposed") else shape
        if role == "weight" and into > _MOST_INPUTS:
            self._fail(step, f"a product over {into} inputs, expected {_MOST_INPUTS} at most")
        return out, into

    def _vectors(self, step: Step, width: int, *roles: str) -> None:
        for role in roles:
            for shape in self._shapes(step, role) if role in step.weights else ():
                if shape != (width,):
                    self._fail(step, f"{role} has shape {shape}, expected ({width},)")

    def _reads(self, step: Step, rows: _Rows, kinds: tuple[str, ...], width: int | None) -> None:
        if rows.kind not in kinds or (width is not None and rows.width != width):
            wanted = " or ".join(kinds) + (f" of width {width}" if width is not None else "")
            self._fail(step, f"reads rows of {rows.kind} of width {rows.width}, expected {wanted}")

    # One method for each kind of step

    def _embed_layer_norm(self, step: Step) -> _Rows:
        vocab, width = self._matrix(step, "word")
        positions, position_width = self._matrix(step, "position")
        types, type_width = self._matrix(step, "type") if "type" in step.weights else (0, width)
        if not width == position_width == type_width:
            self._fail(step, f"tables of width {width}, {position_width} and {type_width}")
        if (types > 0) != (self.inputs["token_types"] is not None):
            self._fail(step, "a table of token types and an input of them need each other")
        if self.inputs["token_ids"] is None:
            self._fail(step, "the plan has no input token_ids")
        self._vectors(step, width, "gamma", "beta")
        if "vocab_size" in self.facts:
            self._fail(step, "a second embedding")
        facts = (("vocab_size", vocab), ("type_vocab_size", types), ("max_length", positions))
        for key, value in facts:
            self._fact(key, value)
        self._fact("layer_norm_eps", step.fields["eps"])
        return _Rows("tokens", width)

    def _qkv_linear(self, step: Step, x: _Rows) -> _Rows:
        width = step.fields["heads"] * step.fields["head_dim"]
        rows, columns = self._matrix(step, "weight")
        if rows != (width if step.fields["weight_layout"] == "separate" else 3 * width):
            self._fail(step, f"weight has {rows} rows for heads*head_dim {width}")
        separate = step.fields["bias_layout"] == "separate"
        self._vectors(step, rows, "scale")
        self._vectors(step, width if separate else 3 * width, "bias")
        self._reads(step, x, ("tokens",), columns)
        return _Rows("qkv", 3 * width)

    def _attention(self, step: Step, qkv: _Rows) -> _Rows:
        self.layers += 1
        return _Rows("tokens", self._attend(step, qkv))

    def _attention_weights(self, step: Step, qkv: _Rows) -> _Rows:
        self._attend(step, qkv)
        return _Rows("pairs", step.fields["heads"])

    def _attend(self, step: Step, qkv: _Rows) -> int:
        heads, head_dim = step.fields["heads"], step.fields["head_dim"]
        self._reads(step, qkv, ("qkv",), 3 * heads * head_dim)
        self._fact("heads", heads)
        self._fact("head_dim", head_dim)
        masked = step.fields["mask"] == "valid_length"
        if masked != (self.inputs["valid_length"] is not None):
            self._fail(step, "a mask of valid_length and an input of that name need each other")
        if "bias" in step.weights:
            if "max_length" not in self.facts:
                self._fail(step, "a bias by distance, and no embedding before it")
            (max_length,) = self.facts["max_length"]
            (shape,) = self._shapes(step, "bias")
            if shape != (heads, 2 * max_length - 1):
                self._fail(
                    step,
                    f"bias has shape {shape}, expected {(heads, 2 * max_length - 1)}: a value for "
                    "each head and distance",
                )
        return heads * head_dim

    def _linear_add_layer_norm(self, step: Step, x: _Rows, residual: _Rows) -> _Rows:
        out, into = self._matrix(step, "weight")
        self._reads(step, x, ("tokens", "seqs", "positions"), into)
        self._reads(step, residual, (x.kind,), out)
        self._vectors(step, out, "scale", "bias", "gamma", "beta")
        if x.kind == "tokens":
            self._fact("hidden", out)
            self._fact("layer_norm_eps", step.fields["eps"])
            if (inner := self.token_linears.get(step.inputs[0])) is not None:
                self._fact("ffn", x.width)
                self._fact("activation", inner.fields["activation"])
        return _Rows(x.kind, out)

    def _linear(self, step: Step, x: _Rows) -> _Rows:
        out, into = self._matrix(step, "weight")
        self._reads(step, x, ("tokens", "seqs", "positions"), into)
        self._vectors(step, out, "scale", "bias")
        if x.kind == "tokens":
            self.token_linears[step.output] = step
        return _Rows(x.kind, out)

    def _layer_norm(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens", "seqs", "positions"), None)
        self._vectors(step, x.width, "gamma", "beta")
        return x

    def _tail(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens",) if step.op in OVER_TOKENS else ("seqs",), None)
        return _Rows("seqs", x.width)

    def _first_token(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens",), None)
        return _Rows("seqs", x.width)

    def _gather_positions(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens",), None)
        if self.inputs["masked_positions"] is None:
            self._fail(step, "the plan has no input masked_positions")
        return _Rows("positions", x.width)
