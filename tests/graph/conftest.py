"""Small Gluon nets, their exported files and their answers; and a plan interpreter."""

from __future__ import annotations

import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_serial = itertools.count()


@pytest.fixture
def data_directory() -> Path:
    """The directory of test corpora."""
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory of test data")
    return Path(directory)


@dataclass
class Exported:
    """An exported net. ``run`` takes padded arrays by role and returns Gluon's outputs in order."""

    net: Any
    roles: tuple[str, ...]
    symbol: Path
    params: Path

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        import mxnet as mx

        arguments = [mx.nd.array(inputs[role], dtype="float32") for role in self.roles]
        if "token_types" not in self.roles:
            arguments.insert(1, [])  # as RoBERTaModel does it
        if self.roles[-1] == "masked_positions" and "valid_length" not in self.roles:
            arguments.insert(-1, None)
        return [output.asnumpy() for output in _flat(self.net(*arguments))]


def _flat(outputs: Any) -> list[Any]:
    if not isinstance(outputs, (list, tuple)):
        return [outputs]
    return [array for part in outputs for array in _flat(part)]


@pytest.fixture
def gluon(tmp_path):
    """``make(head=..., ...)``: build a net with weights drawn wide, export it, return Exported."""
    pytest.importorskip("mxnet")
    pytest.importorskip("gluonnlp")

    def make(
        *,
        head: str = "model",  # "model", "classifier" or "regression"
        layers: int = 1,
        units: int = 24,
        heads: int = 3,
        ffn: int = 40,
        activation: str = "gelu",
        eps: float = 1e-12,
        dropout: float = 0.1,
        valid_length: bool = True,
        types: bool = True,
        pooler: bool = True,
        nsp: bool = False,
        decoder: bool = False,
        seed: int = 0,
        **encoder: Any,
    ) -> Exported:
        import mxnet as mx
        from gluonnlp.model.bert import BERTClassifier, BERTEncoder, BERTModel

        net = BERTModel(
            BERTEncoder(
                num_layers=layers,
                units=units,
                hidden_size=ffn,
                max_length=32,
                num_heads=heads,
                dropout=dropout,
                activation=activation,
                layer_norm_eps=eps,
                **encoder,
            ),
            vocab_size=50,
            token_type_vocab_size=2,
            units=units,
            embed_size=units,
            use_pooler=pooler,
            use_classifier=nsp,
            use_decoder=decoder,
            use_token_type_embed=types,
        )
        if head != "model":
            classes = 1 if head == "regression" else 3
            net = BERTClassifier(net, num_classes=classes, dropout=dropout)
        net.initialize(mx.init.Normal(0.1))
        net.hybridize()
        roles = ["token_ids"] + ["token_types"] * types
        roles += ["valid_length"] * valid_length + ["masked_positions"] * decoder
        directory = tmp_path / f"net{next(_serial)}"
        directory.mkdir()
        exported = Exported(
            net, tuple(roles), directory / "model-symbol.json", directory / "model-0000.params"
        )
        exported.run(batch([3, 2], 3))  # settles the shapes
        rng = np.random.default_rng(seed)
        for name, parameter in net.collect_params().items():
            values = rng.normal(0.0, 0.4, parameter.shape)
            parameter.set_data(mx.nd.array(values + name.endswith("gamma")))
        exported.run(batch([3, 2], 3))
        net.export(str(directory / "model"))
        return exported

    return make


def batch(lengths: list[int], width: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (len(lengths), width)
    return {
        "token_ids": rng.integers(0, 50, shape),
        "token_types": rng.integers(0, 2, shape),
        "valid_length": np.array(lengths),
        "masked_positions": rng.integers(0, max(1, min(lengths)), (len(lengths), 4)),
    }


@pytest.fixture(name="batch")
def _batch():
    """``batch(lengths, width)``: padded inputs by role."""
    return batch


@pytest.fixture
def interpret():
    """``interpret(plan, inputs)``: run a plan in double precision, straight from its definition.

    Takes padded arrays by role, packs them, and returns {output: array}, padded as Gluon pads.
    """
    return _interpret


def _interpret(plan: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ids = inputs["token_ids"]
    lengths = np.full(len(ids), ids.shape[1])
    if plan.inputs["valid_length"] is not None:
        lengths = inputs["valid_length"]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values: dict[str, np.ndarray] = {}

    def weight(step: Any, role: str) -> np.ndarray:
        (name,) = step.weights[role]
        return plan.weights[name].array.astype(np.float64)

    def norm(step: Any, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + step.fields["eps"])
        return centred / deviation * weight(step, "gamma") + weight(step, "beta")

    def product(step: Any, x: np.ndarray) -> np.ndarray:
        matrix = weight(step, "weight")
        x = x @ (matrix if step.fields["transposed"] else matrix.T)
        return x + weight(step, "bias") if "bias" in step.weights else x

    def projection(step: Any, x: np.ndarray) -> np.ndarray:
        heads, dim = step.fields["heads"], step.fields["head_dim"]
        parts = []
        for role in ("weight", "bias"):
            arrays = [plan.weights[n].array.astype(np.float64) for n in step.weights[role]]
            if step.fields["transposed"] and role == "weight":
                arrays = [array.T for array in arrays]
            if step.fields[f"{role}_layout"] == "interleaved":
                by_head = arrays[0].reshape(heads, 3, dim, *arrays[0].shape[1:])
                arrays = [
                    by_head[:, i].reshape(heads * dim, *arrays[0].shape[1:]) for i in range(3)
                ]
            parts.append(np.concatenate(arrays))
        return x @ parts[0].T + parts[1]

    def attend(step: Any, qkv: np.ndarray) -> np.ndarray:
        heads, dim = step.fields["heads"], step.fields["head_dim"]
        out = np.zeros((len(qkv), heads * dim))
        for low, high in itertools.pairwise(starts):
            if low == high:
                continue
            rows = qkv[low:high].reshape(high - low, 3, heads, dim)
            scores = np.einsum("qhd,khd->hqk", rows[:, 0], rows[:, 1]) * step.fields["scale"]
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            out[low:high] = np.einsum("hqk,khd->qhd", scores, rows[:, 2]).reshape(high - low, -1)
        return out

    def first(rows: np.ndarray) -> np.ndarray:
        width = rows.shape[1]
        return np.array(
            [rows[a] if a < b else np.zeros(width) for a, b in itertools.pairwise(starts)]
        )

    def activate(kind: str, x: np.ndarray) -> np.ndarray:
        erf = np.vectorize(math.erf, otypes=[float])
        return {
            "none": lambda: x,
            "relu": lambda: np.maximum(x, 0),
            "tanh": lambda: np.tanh(x),
            "gelu_erf": lambda: 0.5 * x * (1 + erf(x / math.sqrt(2))),
            "gelu_tanh": lambda: (
                0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            ),
        }[kind]()

    valid = np.arange(ids.shape[1]) < np.asarray(lengths)[:, None]
    for step in plan.steps:
        x = [values[name] for name in step.inputs]
        if step.op == "embed_layer_norm":
            rows = weight(step, "word")[ids[valid]]
            rows = rows + weight(step, "position")[np.nonzero(valid)[1]]
            if "type" in step.weights:
                rows = rows + weight(step, "type")[inputs["token_types"][valid]]
            result = norm(step, rows)
        elif step.op == "qkv_linear":
            result = projection(step, *x)
        elif step.op == "attention":
            result = attend(step, *x)
        elif step.op == "linear_add_layer_norm":
            result = norm(step, product(step, x[0]) + x[1])
        elif step.op == "linear":
            result = activate(step.fields["activation"], product(step, *x))
        elif step.op == "layer_norm":
            result = norm(step, *x)
        elif step.op == "first_token":
            result = first(*x)
        else:
            assert step.op == "gather_positions"
            positions = inputs["masked_positions"]
            result = x[0][(starts[:-1, None] + positions).ravel()]
        values[step.output] = result

    outputs = {name: values[value] for name, value in plan.outputs.items()}
    if "sequence_output" in outputs:
        padded = np.zeros((*ids.shape, outputs["sequence_output"].shape[1]))
        padded[valid] = outputs["sequence_output"]
        outputs["sequence_output"] = padded
    if "masked_lm_outputs" in outputs:
        rows = outputs["masked_lm_outputs"]
        outputs["masked_lm_outputs"] = rows.reshape(*inputs["masked_positions"].shape, -1)
    return outputs
