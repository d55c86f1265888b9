"""The plan: a fused model as a short list of steps, and its JSON form.

A plan is all that an engine needs to know about a model. It is a list of :class:`Step` over packed
rows: *token rows* (one for every token of the batch), *sequence rows* (one for every sequence) and
*position rows* (one for every masked position). Weights are named; the JSON form refers to them by
file, offset, dtype and shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict, cast

import numpy as np

from bertrt.compiler.ir import Constant, Weights
from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.models.symbol.params import map_file, view
from bertrt.plan.tail import TAIL_OPS

__all__ = [
    "INPUTS",
    "STACKED",
    "STEP_OPS",
    "VERSION",
    "Architecture",
    "Plan",
    "Step",
    "layer_outputs",
    "output_kind",
]

VERSION = 1
# In the order in which GluonNLP's blocks take them.
INPUTS = ("token_ids", "token_types", "valid_length", "masked_positions")
_ACTIVATIONS = ("none", "relu", "gelu_erf", "gelu_tanh", "tanh")
_LAYOUTS = ("separate", "interleaved")
# From the most exact on.
_PRECISIONS = ("fp32", "bf16", "int8")
# How weights are stored; numpy has no bfloat16, so its bits are uint16. A matrix that is not
# float32 belongs to a step that states the precision.
_DTYPES = {"float32": "float32", "bfloat16": "uint16", "int8": "int8"}
_STORED = {"uint16": "bf16", "int8": "int8"}
# The kinds of rows that an output may have. `encoding_0`, ... are what a layer before the last one
# returns, `attention_weights_0`, ... the probabilities of each layer.
_OUTPUT_ROWS = {
    "sequence_output": ("tokens",),
    "encoding": ("tokens",),
    "attention_weights": ("pairs",),
    "pooled_output": ("seqs",),
    "logits": ("seqs", "tokens"),
    "next_sentence_classifier_output": ("seqs",),
    "masked_lm_outputs": ("positions",),
    "probabilities": ("seqs",),
}
_OF_LAYERS = ("encoding", "attention_weights")
# What `Engine.run` makes of them: arrays whose first axis is the layer.
STACKED = ("all_encodings", "attention_weights")
_LIMIT = 1 << 31  # extents and counts stay below this
_LONGEST_NAME = 1024


def output_kind(name: str) -> str | None:
    """What an output is: its name, without the number of a layer; None for a name that no output
    has."""
    kind, _, number = name.rpartition("_")
    if kind in _OF_LAYERS and number.isascii() and number.isdigit():
        return kind
    return name if name in _OUTPUT_ROWS and name not in _OF_LAYERS else None


def layer_outputs(outputs: Iterable[str], kind: str) -> list[str]:
    """The outputs of this kind, "encoding" or "attention_weights", by layer."""
    found = [name for name in outputs if output_kind(name) == kind]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


class Architecture(TypedDict):
    """The facts of a model. Every layer is alike; ``type_vocab_size`` is 0 without token types."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    type_vocab_size: int
    max_length: int
    activation: str
    layer_norm_eps: float


@dataclass(frozen=True)
class Step:
    """One fused operation.

    ``inputs`` and ``output`` name values, ``weights`` maps a role to the names of its arrays, and
    ``fields`` holds what belongs to this kind of step (``eps``, ``heads``, ``activation``, ...).
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    weights: Weights = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A fused model.

    Attributes
    ----------
    inputs: meaning -> name in the source graph, None where the model has no such input; the
        meanings are token_ids, token_types, valid_length and masked_positions.
    steps: in execution order.
    outputs: output name -> value, in the order of the Gluon model.
    weights: name -> :class:`~bertrt.compiler.ir.Constant`: float32, but for matrices in int8, or
        bfloat16 as uint16, of steps that state this precision.
    architecture: derived from steps and weights when the plan is made.
    rows: output name -> what its rows are counted by: "tokens", "seqs" (sequences), "positions"
        (masked ones) or "pairs" (of tokens of a sequence, by head); derived likewise.

    Making a plan checks it: ModelFormatError names the step and what does not fit.
    """

    inputs: dict[str, str | None]
    steps: tuple[Step, ...]
    outputs: dict[str, str]
    weights: dict[str, Constant]
    architecture: Architecture = field(init=False)
    rows: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        architecture, rows = _check(self)
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "rows", rows)

    @property
    def precision(self) -> str | None:
        """The lowest precision that a step states; None for a plan that leaves it to the engine. In
        a plan that states some, steps that state none run in fp32."""
        stated = {step.fields["precision"] for step in self.steps if "precision" in step.fields}
        return max(stated, key=_PRECISIONS.index, default=None)

    def padding_of(self, output: str) -> np.ndarray | None:
        """What Gluon returns for `output`, which has a row a token, at a padded position: float32,
        shape (width,). None for zeros.

        The encoder's output is exactly 0 there, so that a head over tokens gives its bias.
        """
        (step,) = (step for step in self.steps if step.output == self.outputs[output])
        if step.op != "linear" or "bias" not in step.weights:
            return None
        return self.weights[step.weights["bias"][0]].array

    def to_dict(self, directory: str | Path) -> dict[str, Any]:
        """The JSON form, with weights as references to files in ``directory``.

        Raises InvalidInputError if a weight has no file or lies elsewhere.
        """
        references = {name: _reference(c, Path(directory)) for name, c in self.weights.items()}
        return {**self._describe(self.steps, self.outputs), "weights": references}

    def to_engine(self) -> dict[str, Any]:
        """The JSON form without ``weights`` and tail steps: what an engine takes, beside the
        arrays. The values that a tail begins at are its outputs, too, by their own names."""
        steps = [step for step in self.steps if step.op not in TAIL_OPS]
        outputs = {name: self.tail_of(name)[0] for name in self.outputs}
        plain = {name: value for name, value in outputs.items() if value == self.outputs[name]}
        begun = dict.fromkeys(value for value in outputs.values() if value not in plain.values())
        return self._describe(steps, plain | {value: value for value in begun})

    def tail_of(self, output: str) -> tuple[str, tuple[Step, ...]]:
        """The value that an engine computes for ``output``, and the tail steps from there on."""
        made = {step.output: step for step in self.steps}
        value, tail = self.outputs[output], list[Step]()
        while made[value].op in TAIL_OPS:
            tail.insert(0, made[value])
            (value,) = made[value].inputs
        return value, tuple(tail)

    def _describe(self, steps: Iterable[Step], outputs: Mapping[str, str]) -> dict[str, Any]:
        return {
            "version": VERSION,
            "architecture": dict(self.architecture),
            "inputs": dict(self.inputs),
            "steps": [
                {
                    "op": step.op,
                    "name": step.name,
                    "inputs": list(step.inputs),
                    "output": step.output,
                    "weights": {role: list(names) for role, names in step.weights.items()},
                    **step.fields,
                }
                for step in steps
            ],
            "outputs": dict(outputs),
        }

    @staticmethod
    def from_dict(content: Any, directory: str | Path) -> Plan:
        """Read the JSON form and map its weights from the files in ``directory``.

        Raises ModelFormatError where anything is missing, unknown, of a wrong type or does not fit
        together; MissingFileError where a weight file is missing.
        """
        table = _table(content, "the plan")
        version = table.get("version")
        if type(version) is int and version > VERSION:
            raise ModelFormatError(
                f"plan version {version} is newer than this bertrt reads ({VERSION}); "
                "upgrade bertrt, or export the model again"
            )
        if version != VERSION or type(version) is not int:
            raise ModelFormatError(f"plan version is {version!r}, expected {VERSION}")
        keys = ("version", "architecture", "inputs", "steps", "outputs", "weights")
        _exact_keys(table, keys, "the plan")
        inputs = _table(table["inputs"], "inputs")
        _exact_keys(inputs, INPUTS, "inputs")
        for name, source in inputs.items():
            if source is not None:
                _text(source, f"inputs.{name}")
        steps = table["steps"]
        if not isinstance(steps, list):
            raise ModelFormatError(f"steps is {type(steps).__name__}, expected a list")
        outputs = {
            _text(name, "an output"): _text(value, f"outputs.{name}")
            for name, value in _table(table["outputs"], "outputs").items()
        }
        plan = Plan(
            inputs,
            tuple(_read_step(step, index) for index, step in enumerate(steps)),
            outputs,
            _map_weights(_table(table["weights"], "weights"), Path(directory)),
        )
        stated = _table(table["architecture"], "architecture")
        for key, value in plan.architecture.items():
            found = stated.get(key)
            if found != value or type(found) is not type(value):
                raise ModelFormatError(
                    f"architecture.{key} is {found!r}, the steps and weights say {value!r}"
                )
        _exact_keys(stated, tuple(plan.architecture), "architecture")
        return plan

    def describe(self) -> str:
        """The plan as text: the facts of the model, then a line for each step."""
        facts = ", ".join(f"{key} {value}" for key, value in self.architecture.items())
        lines = [f"model   {facts}"]
        used = [name for name, source in self.inputs.items() if source is not None]
        lines.append(f"inputs  {', '.join(used)}")
        names = max(len(step.name) for step in self.steps)
        ops = max(len(step.op) for step in self.steps)
        for step in self.steps:
            shapes = [
                f"{role} {'+'.join(_shape_text(self.weights[name]) for name in arrays)}"
                for role, arrays in step.weights.items()
            ]
            fields = [f"{key}={value}" for key, value in step.fields.items()]
            text = "  ".join(fields + shapes)
            lines.append(f"  {step.name:{names}}  {step.op:{ops}}  {text}".rstrip())
        lines.append(f"outputs {', '.join(self.outputs)}")
        return "\n".join(lines)


def _shape_text(constant: Constant) -> str:
    dtype = _dtype_name(constant.array)
    return "x".join(map(str, constant.array.shape)) + (f" {dtype}" if dtype != "float32" else "")


def _dtype_name(array: np.ndarray) -> str:
    """How the JSON form calls an array's elements; "" where a plan has no such weights."""
    return next((name for name, dtype in _DTYPES.items() if array.dtype == dtype), "")


# References to weights


def _reference(constant: Constant, directory: Path) -> dict[str, Any]:
    if constant.file is None or constant.offset is None:
        raise InvalidInputError(f"weight {constant.name!r} does not lie in a file")
    try:
        inside = constant.file.resolve().relative_to(directory.resolve())
    except ValueError:
        raise InvalidInputError(
            f"weight {constant.name!r} lies in {constant.file}, not below {directory}"
        ) from None
    return {
        "file": inside.as_posix(),
        "offset": constant.offset,
        "dtype": _dtype_name(constant.array),
        "shape": list(constant.array.shape),
    }


def _map_weights(table: dict[str, Any], directory: Path) -> dict[str, Constant]:
    files: dict[str, np.ndarray] = {}
    weights = {}
    for name, raw in table.items():
        where = f"weights.{name}"
        reference = _table(raw, where)
        _exact_keys(reference, ("file", "offset", "dtype", "shape"), where)
        file = _text(reference["file"], f"{where}.file")
        parts = PurePosixPath(file)
        if parts.is_absolute() or ".." in parts.parts or "\\" in file:
            raise ModelFormatError(f"{where}.file is {file!r}, which leaves the directory")
        dtype = _DTYPES.get(_text(reference["dtype"], f"{where}.dtype"))
        if dtype is None:
            raise ModelFormatError(
                f"{where}.dtype is {reference['dtype']!r}, expected one of {list(_DTYPES)}"
            )
        shape = reference["shape"]
        if not isinstance(shape, list) or not 1 <= len(shape) <= 2:
            raise ModelFormatError(f"{where}.shape is {shape!r}, expected one or two extents")
        for extent in shape:
            _integer(extent, f"{where}.shape", 1, _LIMIT)
        if file not in files:
            files[file] = map_file(directory / file)
        data = files[file]
        offset = _integer(reference["offset"], f"{where}.offset", 0, len(data) + 1)
        end = offset + np.dtype(dtype).itemsize * prod(shape)
        if end > len(data):
            raise ModelFormatError(
                f"{where} ends at byte {end}, {file} has {len(data)} bytes: truncated?"
            )
        array = view(data, offset, dtype, tuple(shape))
        weights[name] = Constant(name, array, directory / file, offset)
    return weights


# Reading JSON values


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ModelFormatError(f"{where} is {type(value).__name__}, expected a table")
    return value


def _exact_keys(table: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    missing, unknown = set(keys) - set(table), set(table) - set(keys)
    if missing or unknown:
        raise ModelFormatError(
            f"{where}: missing entries {sorted(missing)}, unknown entries {sorted(unknown)}"
        )


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        raise ModelFormatError(f"{where} is {str(value)[:80]!r}, expected a name")
    return value


def _integer(value: Any, where: str, low: int, limit: int) -> int:
    if type(value) is not int or not low <= value < limit:
        raise ModelFormatError(f"{where} is {value!r}, expected an integer in [{low}, {limit})")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ModelFormatError(f"{where} is {value!r}, expected a list of names")
    return tuple(_text(name, where) for name in value)


def _read_step(raw: Any, index: int) -> Step:
    where = f"steps[{index}]"
    table = dict(_table(raw, where))
    common = ("op", "name", "inputs", "output", "weights")
    if not set(common) <= set(table):
        raise ModelFormatError(f"{where} lacks {sorted(set(common) - set(table))}")
    op, name, inputs, output, weights = (table.pop(key) for key in common)
    return Step(
        _text(op, f"{where}.op"),
        _text(name, f"{where}.name"),
        _names(inputs, f"{where}.inputs"),
        _text(output, f"{where}.output"),
        {
            role: _names(names, f"{where}.weights.{role}")
            for role, names in _table(weights, f"{where}.weights").items()
        },
        table,
    )


# Checking


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
    """What a kind of step needs; roles and fields ending in "?" are optional."""

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
    "attention": _Rule(1, (), ("heads", "head_dim", "scale", "mask", "precision?")),
    "attention_weights": _Rule(1, (), ("heads", "head_dim", "scale", "mask")),
    "linear_add_layer_norm": _Rule(
        2, ("weight", "scale?", "bias", "gamma", "beta"), ("eps", "transposed", "precision?")
    ),
    "linear": _Rule(1, ("weight", "scale?", "bias?"), ("activation", "transposed", "precision?")),
    "layer_norm": _Rule(1, ("gamma", "beta"), ("eps",)),
    "first_token": _Rule(1, (), ()),
    "gather_positions": _Rule(1, (), ()),
}


_RULES |= {
    op: _Rule(1, (), {"affine": ("factor", "shift"), "normalize": ("eps",)}.get(op, ()))
    for op in TAIL_OPS
}
STEP_OPS = frozenset(_RULES)


def _check(plan: Plan) -> tuple[Architecture, dict[str, str]]:
    """Check a whole plan; returns the facts that its steps and weights state, and the kind of rows
    of every output."""
    for name, constant in plan.weights.items():
        if not _dtype_name(constant.array) or not constant.array.flags.c_contiguous:
            raise ModelFormatError(
                f"weight {name!r} is {constant.array.dtype}, expected row-major "
                f"{', '.join(_DTYPES)}"
            )
    checker = _Checker(plan)
    values: dict[str, _Rows] = {}
    names: set[str] = set()
    tail: set[str] = set()
    for step in plan.steps:
        if step.name in names or step.output in values:
            raise ModelFormatError(f"step {step.name!r}: its name or its output is there twice")
        names.add(step.name)
        values[step.output] = checker.rows(step, values)
        if step.op in TAIL_OPS:
            tail.add(step.output)
        elif tail & set(step.inputs):
            raise ModelFormatError(
                f"step {step.name!r} ({step.op}): reads the result of a tail step"
            )
    if not plan.outputs:
        raise ModelFormatError("the plan has no outputs")
    rows: dict[str, str] = {}
    for name, value in plan.outputs.items():
        kind = output_kind(name)
        if kind is None:
            raise ModelFormatError(f"unknown output {name!r}, expected one of {list(_OUTPUT_ROWS)}")
        found = values.get(value)
        if found is None or found.kind not in _OUTPUT_ROWS[kind]:
            raise ModelFormatError(
                f"output {name!r} is value {value!r} ({found}), expected rows of "
                f"{' or '.join(_OUTPUT_ROWS[kind])}"
            )
        rows[name] = found.kind
    layers = checker.layers
    for kind, count in (("encoding", layers - 1), ("attention_weights", layers)):
        named = layer_outputs(plan.outputs, kind)
        if named and named != [f"{kind}_{layer}" for layer in range(count)]:
            raise ModelFormatError(
                f"the outputs {', '.join(named)} of {layers} layers, expected {kind}_0 up to "
                f"{kind}_{count - 1}, or none of them"
            )
    unused = set(plan.weights) - checker.used
    if unused:
        raise ModelFormatError(f"no step uses the weights {sorted(unused)[:5]}")
    return checker.architecture(), rows


class _Checker:
    """Follows the steps, checks each against its rule, and collects the facts of the model."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
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
        _exact_keys(step.fields, fields, f"step {step.name!r}")
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
            "activation": _ACTIVATIONS,
            "mask": ("none", "valid_length"),
            "weight_layout": _LAYOUTS,
            "bias_layout": _LAYOUTS,
            "precision": _PRECISIONS,
        }
        if key in choices:
            good = isinstance(value, str) and value in choices[key]
        elif key == "transposed":
            good = isinstance(value, bool)
        elif key in ("heads", "head_dim"):
            good = type(value) is int and 1 <= value < _LIMIT
        elif key == "eps":
            good = type(value) is float and 0.0 <= value < 1.0
        elif key in ("factor", "shift"):
            good = type(value) is float and math.isfinite(value)
        else:  # scale
            good = type(value) is float and math.isfinite(value) and value > 0.0
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
                if name not in self.plan.weights:
                    self._fail(step, f"{role} {name!r} is not among the weights")
                self.used.add(name)
                self._check_stored(step, role, name)

    def _check_stored(self, step: Step, role: str, name: str) -> None:
        dtype = str(self.plan.weights[name].array.dtype)
        precision = step.fields.get("precision")
        if dtype != "float32" and (role != "weight" or _STORED[dtype] != precision):
            self._fail(step, f"{role} {name!r} is {dtype}, and the precision {precision}")
        if role == "weight" and (dtype == "int8") != ("scale" in step.weights):
            self._fail(step, f"weight {name!r} is {dtype}; int8 and a scale need each other")

    def _shapes(self, step: Step, role: str) -> Iterator[tuple[int, ...]]:
        for name in step.weights[role]:
            yield self.plan.weights[name].array.shape

    def _matrix(self, step: Step, role: str) -> tuple[int, int]:
        """(out, in) of a weight, however it is stored."""
        shapes = set(self._shapes(step, role))
        shape = shapes.pop()
        if shapes or len(shape) != 2:
            self._fail(step, f"{role} has shape {shape}, expected matrices of one shape")
        return (shape[1], shape[0]) if step.fields.get("transposed") else (shape[0], shape[1])

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
        if (types > 0) != (self.plan.inputs["token_types"] is not None):
            self._fail(step, "a table of token types and an input of them need each other")
        if self.plan.inputs["token_ids"] is None:
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
        if masked != (self.plan.inputs["valid_length"] is not None):
            self._fail(step, "a mask of valid_length and an input of that name need each other")
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
        self._reads(step, x, ("tokens",) if step.op == "mean_tokens" else ("seqs",), None)
        return _Rows("seqs", x.width)

    def _first_token(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens",), None)
        return _Rows("seqs", x.width)

    def _gather_positions(self, step: Step, x: _Rows) -> _Rows:
        self._reads(step, x, ("tokens",), None)
        if self.plan.inputs["masked_positions"] is None:
            self._fail(step, "the plan has no input masked_positions")
        return _Rows("positions", x.width)
