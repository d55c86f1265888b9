"""BERT base and large with random weights, batches for them, and how close an answer has to be."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["OUTPUTS", "PRECISIONS", "Sizes", "batch_of", "bound", "emulated", "plan_of", "squad"]

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("fp32", "fp16", "bf16")
# What rounding moves a number by at most, relative.
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
OUTPUTS = ["sequence_output", "pooled_output"]

# Tokens of questions and contexts of SQuAD 1.1 by bert-base-uncased: 5,147 features of half the
# development set, of at most 384 tokens, 128 apart where a context is longer. Every 64th part of
# them, the middle one.
SQUAD = (
    *(52, 70, 83, 91, 100, 106, 111, 115, 118, 121, 123, 126, 128, 129, 131, 132, 134, 136, 138),
    *(140, 142, 144, 146, 147, 149, 151, 152, 154, 156, 158, 161, 164, 166, 168, 171, 173, 176),
    *(178, 180, 183, 186, 189, 193, 195, 199, 203, 207, 212, 216, 219, 224, 230, 237, 245, 256),
    *(264, 275, 290, 299, 319, 349, 379, 384, 384),
)


class Sizes:
    """The models' sizes: BERT's, or in a trial those of models that the emulator can run.

    Attributes:
        models: layers, hidden units and heads of "base" and "large".
        vocab, length: rows of the tables of words and of positions.
    """

    models = {"base": (12, 768, 12), "large": (24, 1024, 16)}  # noqa: RUF012
    vocab, length = 30522, 512

    @classmethod
    def shrink(cls) -> None:
        """Make them a trial's."""
        cls.models = {"base": (1, 64, 2), "large": (2, 64, 2)}
        cls.vocab, cls.length = 99, 48


@cache
def emulated() -> ModuleType:
    """The emulator's module, as the tests have built it, in the place of bertrt._cuda."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    folder = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"
    path = folder / f"_cuda_emulated{suffix}"
    spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["bertrt._cuda"] = module
    return module


@cache
def plan_of(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """BERT with a pooler and a head for question answering, and its weights.

    Scores have a deviation of about 1, as trained ones do. The outputs are "sequence_output",
    "pooled_output" and "span_logits", two values a token.
    """
    layers, hidden, heads = Sizes.models[name]
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def draw(key: str, *shape: int) -> list[str]:
        deviation = np.float32(0.02 if len(shape) > 1 else 0.1)
        weights[key] = random.standard_normal(shape, np.float32) * deviation
        return [key]

    def norm(key: str) -> dict[str, list[str]]:
        gamma = draw(f"{key}.gamma", hidden)
        weights[f"{key}.gamma"] += np.float32(1)
        return {"gamma": gamma, "beta": draw(f"{key}.beta", hidden)}

    def linear(key: str, outputs: int, inputs: int) -> dict[str, list[str]]:
        return {"weight": draw(key, outputs, inputs), "bias": draw(f"{key}.bias", outputs)}

    def step(op: str, name: str, inputs: list[str], output: str, **more: Any) -> dict[str, Any]:
        return {"op": op, "name": name, "inputs": inputs, "output": output, "weights": {}, **more}

    tables = {
        "word": draw("word", Sizes.vocab, hidden),
        "type": draw("type", 2, hidden),
        "position": draw("position", Sizes.length, hidden),
        **norm("embeddings"),
    }
    steps = [step("embed_layer_norm", "embeddings", [], "x0", eps=1e-12, weights=tables)]
    shape = {"heads": heads, "head_dim": hidden // heads}
    layouts = {"weight_layout": "separate", "bias_layout": "separate", "transposed": False}
    dense = {"transposed": False, "activation": "none"}
    added = {"eps": 1e-12, "transposed": False}
    for i in range(layers):
        here = f"layer{i}"
        parts = [linear(f"{i}.{part}", hidden, hidden) for part in "qkv"]
        qkv = {role: [key for part in parts for key in part[role]] for role in ("weight", "bias")}
        attended = {"scale": shape["head_dim"] ** -0.5, "mask": "valid_length"}
        out = {**linear(f"{i}.o", hidden, hidden), **norm(f"{i}.a")}
        up = linear(f"{i}.f", 4 * hidden, hidden)
        down = {**linear(f"{i}.g", hidden, 4 * hidden), **norm(f"{i}.x")}
        x, a, to_add = f"x{i}", f"a{i}", "linear_add_layer_norm"
        steps += [
            step("qkv_linear", f"{here}.qkv", [x], f"qkv{i}", weights=qkv, **layouts, **shape),
            step("attention", f"{here}.attention", [f"qkv{i}"], f"c{i}", **attended, **shape),
            step(to_add, f"{here}.attention_output", [f"c{i}", x], a, weights=out, **added),
            step(
                *("linear", f"{here}.ffn", [a], f"f{i}"),
                weights=up,
                **{**dense, "activation": "gelu_erf"},
            ),
            step(to_add, f"{here}.ffn_output", [f"f{i}", a], f"x{i + 1}", weights=down, **added),
        ]
    pooler, span = linear("pooler", hidden, hidden), linear("span", 2, hidden)
    last = f"x{layers}"
    steps += [
        step("first_token", "first", [last], "cls"),
        step(
            *("linear", "pooler", ["cls"], "pooled"),
            weights=pooler,
            **{**dense, "activation": "tanh"},
        ),
        step("linear", "span", [last], "spans", weights=span, **dense),
    ]
    plan = {
        "version": 1,
        "architecture": {
            "hidden": hidden,
            "vocab_size": Sizes.vocab,
            "type_vocab_size": 2,
            "max_length": Sizes.length,
        },
        "steps": steps,
        "outputs": {
            "sequence_output": last,
            "pooled_output": "pooled",
            "span_logits": "spans",
        },
    }
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    return plan, weights


def batch_of(lengths: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random ids and types of texts of these lengths, and where each text begins and ends."""
    random = np.random.default_rng(seed)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = random.integers(0, Sizes.vocab, ends[-1], dtype=np.int32)
    return ids, random.integers(0, 2, ends[-1], dtype=np.int32), ends


def squad(texts: int) -> list[int]:
    """Lengths of so many texts, distributed as SQuAD's, in an order by chance."""
    lengths = np.resize([min(length, Sizes.length) for length in SQUAD], texts)
    return np.random.default_rng(3).permutation(lengths).tolist()


def bound(name: str, precision: str, output: str) -> float:
    """The largest difference from the CPU's fp32 that is right: docs/numerics.md.

    In 16 bits a layer rounds eight arrays of rows of a deviation of about 1. The errors are
    independent: u sqrt(8 layers / 3) is their deviation, and among a million values the largest is
    within 6 of it; twice that is allowed. Logits are sums of rows by weights of 0.02: the rows'
    bound serves for them too, for up to 2,500 hidden units.
    """
    layers = Sizes.models[name][0]
    if precision == "fp32":
        return 2e-5 if output == "pooled_output" else 5e-5 if layers <= 12 else 1e-4
    return 12 * ROUNDING[precision] * (8 * layers / 3) ** 0.5
