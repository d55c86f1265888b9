"""What `Engine.run` returns, made of a backend's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.batch import PackedBatch, pad_rows
from bertrt.plan.plan import Plan
from bertrt.plan.steps import layer_outputs, output_kind

__all__ = ["join_layers", "unpack"]


def unpack(
    found: Mapping[str, np.ndarray], batch: PackedBatch, plan: Plan, sequence: int | None
) -> dict[str, Any]:
    """A backend's outputs, padded to `sequence`, or ragged."""
    shaped: dict[str, Any] = {}
    for name, value in found.items():
        if plan.rows[name] == "tokens":
            if sequence is None:
                shaped[name] = np.split(value, batch.cu_seqlens[1:-1])
            elif batch.attended is None and len(value) == batch.seqs * sequence:
                shaped[name] = value.reshape(batch.seqs, sequence, -1)  # nothing is padding
            else:
                shaped[name] = pad_rows(value, batch, sequence, plan.padding_of(name))
        elif plan.rows[name] == "pairs":
            shaped[name] = batch.split_pairs(value)
            if sequence is not None:
                shaped[name] = np.stack(shaped[name])
        else:
            shaped[name] = value
    return shaped


def join_layers(shaped: Mapping[str, Any], ragged: bool) -> dict[str, Any]:
    """Outputs as `Engine.run` returns them, those of the layers in one."""
    values: dict[str, Any] = {}
    for name, value in shaped.items():
        kind = output_kind(name)
        if kind == "encoding" and "all_encodings" not in values:
            names = [*layer_outputs(shaped, "encoding"), "sequence_output"]
            values["all_encodings"] = _stack_layers([shaped[n] for n in names], ragged)
        elif kind == "attention_weights" and kind not in values:
            names = layer_outputs(shaped, kind)
            values[kind] = _stack_layers([shaped[n] for n in names], ragged)
        elif kind == name:
            values[name] = value
    return values


def _stack_layers(layers: Sequence[Any], ragged: bool) -> Any:
    return [np.stack(own) for own in zip(*layers, strict=True)] if ragged else np.stack(layers)
