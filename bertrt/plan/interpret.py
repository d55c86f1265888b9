"""Run a plan in double precision, straight from what its steps mean.

Slow, plain and independent of every kernel: where no framework has recorded what a model answers,
this is what an engine is held against.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from bertrt.plan.plan import Plan
from bertrt.plan.quantized import from_bfloat16, from_e4m3
from bertrt.plan.steps import Step
from bertrt.plan.tail import TAIL_OPS, apply_tail

__all__ = ["interpret"]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu_erf": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def interpret(plan: Plan, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a plan gives for padded arrays.

    Args:
        plan: the plan.
        inputs: integer arrays by the names of `bertrt.plan.steps.INPUTS`: ``token_ids`` and
            ``token_types`` (batch, seq), ``valid_length`` (batch,) and, for a plan that reads them,
            ``masked_positions`` (batch, masked). They are not checked.

    Returns:
        float64 arrays by output name, padded as Gluon pads: a row a token becomes
        (batch, seq, width), a row a masked position (batch, masked, width).
    """
    return _Run(plan, inputs).outputs()


class _Run:
    def __init__(self, plan: Plan, inputs: Mapping[str, np.ndarray]) -> None:
        self._plan = plan
        self._inputs = inputs
        ids = inputs["token_ids"]
        lengths = np.full(len(ids), ids.shape[1])
        if plan.inputs["valid_length"] is not None:
            lengths = np.asarray(inputs["valid_length"])
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._valid = np.arange(ids.shape[1]) < lengths[:, None]

    def outputs(self) -> dict[str, np.ndarray]:
        values: dict[str, np.ndarray] = {}
        for step in self._plan.steps:
            operands = [values[name] for name in step.inputs]
            if step.op in TAIL_OPS:
                found = apply_tail(step.op, step.fields, operands[0], self._starts)
            else:
                found = getattr(self, f"_{step.op}")(step, *operands)
            values[step.output] = found
        outputs = {name: values[value] for name, value in self._plan.outputs.items()}
        for name, rows in outputs.items():
            if self._plan.rows[name] == "tokens":
                padded = np.zeros((*self._valid.shape, rows.shape[1]))
                padding = self._plan.padding_of(name)
                if padding is not None:
                    padded[:] = padding
                padded[self._valid] = rows
                outputs[name] = padded
        if "masked_lm_outputs" in outputs:
            rows = outputs["masked_lm_outputs"]
            outputs["masked_lm_outputs"] = rows.reshape(
                *self._inputs["masked_positions"].shape, rows.shape[1]
            )
        return outputs

    def _weights(self, step: Step, role: str) -> list[np.ndarray]:
        return [self._values(step, role, i) for i in range(len(step.weights[role]))]

    def _values(self, step: Step, role: str, index: int) -> np.ndarray:
        array = self._plan.weights[step.weights[role][index]].array
        if array.dtype == np.uint16:
            array = from_bfloat16(array)
        elif array.dtype == np.uint8:
            array = from_e4m3(array)
        values = array.astype(np.float64)
        if role != "weight" or "scale" not in step.weights:
            return values
        scale = self._plan.weights[step.weights["scale"][index]].array.astype(np.float64)
        return values * (scale if step.fields["transposed"] else scale[:, None])

    def _weight(self, step: Step, role: str) -> np.ndarray:
        (array,) = self._weights(step, role)
        return array

    def _product(self, step: Step, x: np.ndarray) -> np.ndarray:
        matrix = self._weight(step, "weight")
        x = x @ (matrix if step.fields["transposed"] else matrix.T)
        return x + self._weight(step, "bias") if "bias" in step.weights else x

    def _layer_norm(self, step: Step, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + step.fields["eps"])
        return centred / deviation * self._weight(step, "gamma") + self._weight(step, "beta")

    def _embed_layer_norm(self, step: Step) -> np.ndarray:
        rows = self._weight(step, "word")[self._inputs["token_ids"][self._valid]]
        rows += self._weight(step, "position")[np.nonzero(self._valid)[1]]
        if "type" in step.weights:
            rows += self._weight(step, "type")[self._inputs["token_types"][self._valid]]
        return self._layer_norm(step, rows)

    def _qkv_linear(self, step: Step, x: np.ndarray) -> np.ndarray:
        heads, dim = step.fields["heads"], step.fields["head_dim"]
        parts = []
        for role in ("weight", "bias"):
            arrays = self._weights(step, role)
            if step.fields["transposed"] and role == "weight":
                arrays = [array.T for array in arrays]
            if step.fields[f"{role}_layout"] == "interleaved":
                rest = arrays[0].shape[1:]
                by_head = arrays[0].reshape(heads, 3, dim, *rest)
                arrays = [by_head[:, i].reshape(heads * dim, *rest) for i in range(3)]
            parts.append(np.concatenate(arrays))
        return x @ parts[0].T + parts[1]

    def _attention(self, step: Step, qkv: np.ndarray) -> np.ndarray:
        heads, dim = step.fields["heads"], step.fields["head_dim"]
        out = np.zeros((len(qkv), heads * dim))
        for low, high, weights in self._probabilities(step, qkv):
            values = qkv[low:high].reshape(high - low, 3, heads, dim)[:, 2]
            out[low:high] = np.einsum("hqk,khd->qhd", weights, values).reshape(high - low, -1)
        return out

    def _attention_weights(self, step: Step, qkv: np.ndarray) -> np.ndarray:
        """(pairs, heads), query after query."""
        heads = step.fields["heads"]
        found = [
            w.transpose(1, 2, 0).reshape(-1, heads) for *_, w in self._probabilities(step, qkv)
        ]
        return np.concatenate([np.zeros((0, heads)), *found])

    def _probabilities(self, step: Step, qkv: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Of each sequence that has tokens: its rows, and (heads, queries, keys)."""
        heads, dim = step.fields["heads"], step.fields["head_dim"]
        for low, high in itertools.pairwise(self._starts):
            if low == high:
                continue
            rows = qkv[low:high].reshape(high - low, 3, heads, dim)
            scores = np.einsum("qhd,khd->hqk", rows[:, 0], rows[:, 1]) * step.fields["scale"]
            if "bias" in step.weights:
                bias, at = self._weight(step, "bias"), np.arange(high - low)
                scores += bias[:, bias.shape[1] // 2 + at - at[:, None]]
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            yield low, high, scores / scores.sum(-1, keepdims=True)

    def _linear_add_layer_norm(self, step: Step, x: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return self._layer_norm(step, self._product(step, x) + residual)

    def _linear(self, step: Step, x: np.ndarray) -> np.ndarray:
        return _ACTIVATIONS[step.fields["activation"]](self._product(step, x))

    def _first_token(self, step: Step, x: np.ndarray) -> np.ndarray:
        empty = np.zeros(x.shape[1])
        return np.array([x[a] if a < b else empty for a, b in itertools.pairwise(self._starts)])

    def _gather_positions(self, step: Step, x: np.ndarray) -> np.ndarray:
        positions = self._inputs["masked_positions"]
        return x[(self._starts[:-1, None] + positions).ravel()]
