"""What numbers below 1.2e-38 cost: a model that is full of them beside the same model without.

    python benchmarks/denormals.py [--isa NAME] [--precision NAME] [--steps]

Prints, for each instruction set and precision, the time of a run by where the small numbers are,
over that of the model without any: processor time on one thread, the best of several runs in turn.
--steps: the steps that take more than 1.2 times as long, too.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import numpy as np

from bertrt import _native

TINY = np.float32(1e-40)
SHAPES = {"base": (768, 12, 3072), "minilm": (384, 12, 1536)}
LAYERS, TOKENS, VOCAB = 2, 32, 100
ROUNDS = 5

# By where the small numbers are: what the weights of such names are multiplied by.
CASES: dict[str, dict[str, float]] = {
    "none": {},
    "embeddings": {"word": TINY, "position": TINY},
    "weights": {"matrix": TINY},
    "rows": {"gamma": TINY},
    "products": {"gamma": 1e-20, "matrix": 1e-20},
    "biases": {"gamma": TINY, "bias": TINY},
    "softmax": {"matrix": 25.0},
    "everything": {"word": TINY, "position": TINY, "matrix": TINY, "gamma": TINY, "bias": TINY},
}


def make_plan(
    hidden: int, heads: int, inner: int, factors: dict[str, float]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """An encoder whose weights are multiplied by factors."""
    rng = np.random.default_rng(7)
    weights: dict[str, np.ndarray] = {}

    def weight(kind: str, *shape: int) -> list[str]:
        name = f"{kind}{len(weights)}"
        drawn = rng.normal(size=shape).astype(np.float32)
        if kind == "matrix":
            drawn /= np.float32(shape[1] ** 0.5)
        if kind == "gamma":
            drawn = 1 + drawn / 8
        weights[name] = drawn * np.float32(factors.get(kind, 1.0 if kind != "beta" else 0.0))
        return [name]

    def norm() -> dict[str, list[str]]:
        return {"gamma": weight("gamma", hidden), "beta": weight("beta", hidden)}

    def linear(outputs: int, inputs: int) -> dict[str, list[str]]:
        return {"weight": weight("matrix", outputs, inputs), "bias": weight("bias", outputs)}

    tables = {"word": weight("word", VOCAB, hidden), "position": weight("position", TOKENS, hidden)}
    shape = {"heads": heads, "head_dim": hidden // heads}
    steps: list[dict[str, Any]] = [
        {
            "op": "embed_layer_norm",
            "name": "embeddings",
            "inputs": [],
            "output": "x0",
            "weights": tables | norm(),
            "eps": 1e-12,
        }
    ]
    for i in range(LAYERS):
        steps += [
            {
                "op": "qkv_linear",
                "name": f"{i}.qkv",
                "inputs": [f"x{i}"],
                "output": f"qkv{i}",
                "weights": {
                    "weight": [weight("matrix", hidden, hidden)[0] for _ in range(3)],
                    "bias": [weight("bias", hidden)[0] for _ in range(3)],
                },
                "weight_layout": "separate",
                "bias_layout": "separate",
                "transposed": False,
                **shape,
            },
            {
                "op": "attention",
                "name": f"{i}.attention",
                "inputs": [f"qkv{i}"],
                "output": f"context{i}",
                "weights": {},
                "scale": shape["head_dim"] ** -0.5,
                "mask": "valid_length",
                **shape,
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"{i}.attention_output",
                "inputs": [f"context{i}", f"x{i}"],
                "output": f"a{i}",
                "weights": linear(hidden, hidden) | norm(),
                "eps": 1e-12,
                "transposed": False,
            },
            {
                "op": "linear",
                "name": f"{i}.ffn",
                "inputs": [f"a{i}"],
                "output": f"f{i}",
                "weights": linear(inner, hidden),
                "activation": "gelu_erf",
                "transposed": False,
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"{i}.ffn_output",
                "inputs": [f"f{i}", f"a{i}"],
                "output": f"x{i + 1}",
                "weights": linear(hidden, inner) | norm(),
                "eps": 1e-12,
                "transposed": False,
            },
        ]
    plan = {
        "version": 1,
        "architecture": {
            "hidden": hidden,
            "vocab_size": VOCAB,
            "type_vocab_size": 0,
            "max_length": TOKENS,
        },
        "steps": steps,
        "outputs": {"sequence_output": f"x{LAYERS}"},
    }
    return plan, weights


class Case:
    """A model, and the best time of each of its steps."""

    def __init__(self, shape: tuple[int, int, int], precision: str, factors: dict[str, float]):
        plan, weights = make_plan(*shape, factors)
        self.engine = _native.Engine(_native.Model(plan, weights, precision, 1), 1, trace=True)
        self.best = float("inf")
        self.steps: dict[str, float] = {}

    def run(self) -> None:
        ids = np.arange(TOKENS, dtype=np.int32)
        before = {step[0]: step[2] for step in self.engine.steps()}
        start = time.thread_time()
        self.engine.run(
            ids, np.zeros_like(ids), np.array([0, TOKENS], np.int32), None, ["sequence_output"]
        )
        self.best = min(self.best, time.thread_time() - start)
        for name, _, seconds, *_ in self.engine.steps():
            spent = seconds - before[name]
            self.steps[name] = min(self.steps.get(name, float("inf")), spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", choices=_native.supported_isas())
    parser.add_argument("--precision", choices=["fp32", "bf16", "int8"])
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--steps", action="store_true")
    options = parser.parse_args()
    print(f"{'':24}{'normal':>10} " + "".join(f"{name:>12}" for name in list(CASES)[1:]))
    for isa in [options.isa] if options.isa else _native.supported_isas():
        os.environ["BERTRT_ISA"] = isa
        for precision in [options.precision] if options.precision else ["fp32", "bf16", "int8"]:
            cases = {
                name: Case(SHAPES[options.shape], precision, factors)
                for name, factors in CASES.items()
            }
            for _ in range(ROUNDS):
                for case in cases.values():
                    case.run()
            usual = cases.pop("none")
            ratios = "".join(f"{case.best / usual.best:12.2f}" for case in cases.values())
            print(f"{isa:16}{precision:8}{usual.best * 1e3:7.1f} ms {ratios}", flush=True)
            for name, case in cases.items() if options.steps else ():
                for step, seconds in case.steps.items():
                    if seconds > 1.2 * usual.steps[step]:
                        print(f"    {name}: {step} {seconds / usual.steps[step]:.1f}")


if __name__ == "__main__":
    main()
