"""The plan: a fused model as a short list of steps, and its JSON form.

A plan is all that an engine needs to know about a model. It is a list of :class:`Step` over packed
rows: *token rows* (one for every token of the batch), *sequence rows* (one for every sequence) and
*position rows* (one for every masked position). Weights are named; the JSON form refers to them by
file, offset, dtype and shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError
from bertrt.host.stored import File
from bertrt.plan.check import check_plan
from bertrt.plan.fields import check_keys, read_names, read_table, read_text
from bertrt.plan.steps import INPUTS, PRECISIONS, Architecture, Step
from bertrt.plan.tail import TAIL_OPS
from bertrt.plan.weights import Constant, dtype_name, locate_weights, reference_to

__all__ = ["VERSION", "Plan"]

VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A fused model.

    Attributes
    ----------
    inputs: meaning -> name in the source graph, None where the model has no such input; the
        meanings are token_ids, token_types, valid_length and masked_positions.
    steps: in execution order.
    outputs: output name -> value, in the order of the Gluon model.
    weights: name -> :class:`~bertrt.plan.weights.Constant`: float32, but for matrices in int8, or
        bfloat16 as uint16, or e4m3 as uint8, of steps that state this precision.
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
        architecture, rows = check_plan(self.inputs, self.steps, self.outputs, self.weights)
        object.__setattr__(self, "architecture", architecture)
        object.__setattr__(self, "rows", rows)

    @property
    def precision(self) -> str | None:
        """The lowest precision that a step states; None for a plan that leaves it to the engine. In
        a plan that states some, steps that state none run in fp32."""
        stated = {step.fields["precision"] for step in self.steps if "precision" in step.fields}
        return max(stated, key=PRECISIONS.index, default=None)

    def padding_of(self, output: str) -> np.ndarray | None:
        """What Gluon returns for `output`, which has a row a token, at a padded position: float32,
        shape (width,). None for zeros.

        The encoder's output is exactly 0 there, so that a head over tokens gives its bias.
        """
        (step,) = (step for step in self.steps if step.output == self.outputs[output])
        head = step.op == "linear" and output != "embedding_output"
        if not head or "bias" not in step.weights:
            return None
        return self.weights[step.weights["bias"][0]].array

    def let_go(self) -> None:
        """Hold none of the weights that can be read again, but vectors."""
        for constant in self.weights.values():
            constant.let_go()

    def to_dict(self, directory: str | Path) -> dict[str, Any]:
        """The JSON form, with weights as references to files in ``directory``.

        Raises InvalidInputError if a weight has no file or lies elsewhere.
        """
        references = {name: reference_to(c, Path(directory)) for name, c in self.weights.items()}
        return {**self._describe(self.steps, self.outputs), "weights": references}

    def to_engine(self) -> dict[str, Any]:
        """The JSON form without ``weights`` and tail steps: what an engine takes, beside the
        arrays. The values that a tail begins at are its outputs, too, by their own names, or by
        one like it where an output has that name."""
        steps = [step for step in self.steps if step.op not in TAIL_OPS]
        begun = {name: self.tail_of(name)[0] for name in self.outputs}
        # A value is listed once, however many outputs are made of it.
        names: dict[str, str] = {}
        for name, value in begun.items():
            if value == self.outputs[name]:
                names.setdefault(value, name)
        for value in begun.values():
            if value not in names:
                own = value
                while own in names.values():
                    own += "'"
                names[value] = own
        return self._describe(steps, {name: value for value, name in names.items()})

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
    def from_dict(
        content: Any, directory: str | Path, opened: Mapping[str, File] | None = None
    ) -> Plan:
        """Read the JSON form and find its weights in the files in ``directory``, of which some may
        be ``opened`` by name.

        Raises ModelFormatError where anything is missing, unknown, of a wrong type or does not fit
        together; MissingFileError where a weight file is missing.
        """
        table = read_table(content, "the plan")
        version = table.get("version")
        if type(version) is int and version > VERSION:
            raise ModelFormatError(
                f"plan version {version} is newer than this bertrt reads ({VERSION}); "
                "upgrade bertrt, or export the model again"
            )
        if version != VERSION or type(version) is not int:
            raise ModelFormatError(f"plan version is {version!r}, expected {VERSION}")
        keys = ("version", "architecture", "inputs", "steps", "outputs", "weights")
        check_keys(table, keys, "the plan")
        inputs = read_table(table["inputs"], "inputs")
        check_keys(inputs, INPUTS, "inputs")
        for name, source in inputs.items():
            if source is not None:
                read_text(source, f"inputs.{name}")
        steps = table["steps"]
        if not isinstance(steps, list):
            raise ModelFormatError(f"steps is {type(steps).__name__}, expected a list")
        outputs = {
            read_text(name, "an output"): read_text(value, f"outputs.{name}")
            for name, value in read_table(table["outputs"], "outputs").items()
        }
        plan = Plan(
            inputs,
            tuple(_read_step(step, index) for index, step in enumerate(steps)),
            outputs,
            locate_weights(read_table(table["weights"], "weights"), Path(directory), opened or {}),
        )
        stated = read_table(table["architecture"], "architecture")
        for key, value in plan.architecture.items():
            found = stated.get(key)
            if found != value or type(found) is not type(value):
                raise ModelFormatError(
                    f"architecture.{key} is {found!r}, the steps and weights say {value!r}"
                )
        check_keys(stated, tuple(plan.architecture), "architecture")
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
    dtype = dtype_name(constant)
    return "x".join(map(str, constant.shape)) + (f" {dtype}" if dtype != "float32" else "")


# References to weights


# Reading JSON values


def _read_step(raw: Any, index: int) -> Step:
    where = f"steps[{index}]"
    table = dict(read_table(raw, where))
    common = ("op", "name", "inputs", "output", "weights")
    if not set(common) <= set(table):
        raise ModelFormatError(f"{where} lacks {sorted(set(common) - set(table))}")
    op, name, inputs, output, weights = (table.pop(key) for key in common)
    return Step(
        read_text(op, f"{where}.op"),
        read_text(name, f"{where}.name"),
        read_names(inputs, f"{where}.inputs"),
        read_text(output, f"{where}.output"),
        {
            role: read_names(names, f"{where}.weights.{role}")
            for role, names in read_table(weights, f"{where}.weights").items()
        },
        table,
    )


# Checking
