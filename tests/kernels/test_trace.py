"""What a trace counts of each step: exactly what docs and reports make of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import test_native_engine as handmade

HIDDEN, FFN, VOCAB = handmade.HIDDEN, handmade.FFN, handmade.VOCAB


def counted(plan, weights, batch, outputs, precision="fp32"):
    """(operations, bytes) of each step that did anything, after two runs."""
    engine = handmade.new_engine(plan, weights, threads=2, precision=precision, trace=True)
    for _ in range(2):
        engine.run(*batch, outputs)
    return {name: (ops, size) for name, _, _, ops, size in engine.steps() if ops or size}


def product(rows: int, inputs: int, outputs: int, width: int) -> tuple[int, int]:
    """Of two runs, a part each."""
    return 2 * 2 * rows * inputs * outputs, 2 * inputs * outputs * width


def moved(rows: int, times: int) -> tuple[int, int]:
    return 0, 2 * times * rows * HIDDEN * 4


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2), ("int8", 1)])
def test_operations_and_bytes(rng, precision, width):
    plan, weights = handmade.make_plan(rng)
    lengths = [5, 64, 1]
    seqs, tokens, pairs = 3, sum(lengths), sum(n * n for n in lengths)
    batch = handmade.batch_of(rng, lengths)

    def layer(rows: int) -> dict[str, tuple[int, int]]:
        return {
            "attention_output": product(rows, HIDDEN, HIDDEN, width),
            "ffn": product(rows, HIDDEN, FFN, width),
            "ffn_output": product(rows, FFN, HIDDEN, width),
        }

    whole = {
        "qkv": product(tokens, HIDDEN, 3 * HIDDEN, width),
        "attention": (2 * 4 * pairs * HIDDEN, 0),
        **layer(tokens),
    }
    want = {"embeddings": moved(tokens, 4)}
    want |= {f"layer{i}.{name}": count for i in (0, 1) for name, count in whole.items()}
    pooler = {"first": moved(seqs, 2), "pooler": product(seqs, HIDDEN, HIDDEN, 4)}
    decoder = {
        "masked": moved(2 * seqs, 2),
        "decoder.norm": moved(2 * seqs, 2),
        "decoder": product(2 * seqs, HIDDEN, VOCAB, 4),
    }
    found = counted(plan, weights, batch, handmade.OUTPUTS, precision)
    assert found == want | pooler | decoder

    # Of the last layer keys and values for all tokens, the rest for the first of each sequence.
    queries, size = product(seqs, HIDDEN, HIDDEN, width)
    first_only = {
        "qkv": product(tokens, HIDDEN, 2 * HIDDEN, width),
        "attention": (queries + 2 * 4 * tokens * HIDDEN, size),
        **layer(seqs),
    }
    want |= {f"layer1.{name}": count for name, count in first_only.items()}
    assert counted(plan, weights, batch, ["pooled_output"], precision) == want | pooler


def test_of_probabilities_and_of_a_model_without_token_types(rng):
    plan, weights = handmade.make_plan(rng)
    plan = copy.deepcopy(plan)
    plan["architecture"]["type_vocab_size"] = 0
    del plan["steps"][0]["weights"]["type"]
    plan["steps"].append(
        plan["steps"][2] | {"op": "attention_weights", "name": "weights", "output": "weights"}
    )
    plan["outputs"] = {"attention_weights_0": "weights"}
    ids, _, ends, _ = handmade.batch_of(rng, [5, 2])
    batch = ids, np.zeros_like(ids), ends, None
    assert counted(plan, weights, batch, list(plan["outputs"])) == {
        "embeddings": moved(7, 3),
        "layer0.qkv": product(7, HIDDEN, 3 * HIDDEN, 4),
        "weights": (2 * 2 * 29 * HIDDEN, 0),
    }


@pytest.mark.parametrize(
    ("threads", "lengths", "parts"),
    [
        (2, [64] * 32, 1),
        (2, [64] * 32 + [1], 2),
        (2, [64] * 64, 2),
        (8, [64] * 32 + [1], 2),
        (9, [64] * 36, 1),
        (9, [64] * 36 + [1], 2),
    ],
)
def test_weights_are_read_once_a_part(rng, threads, lengths, parts):
    """Of whole sequences of 2,048 tokens at most, or 256 a thread."""
    engine = handmade.new_engine(*handmade.make_plan(rng), threads=threads, trace=True)
    engine.run(*handmade.batch_of(rng, lengths), ["sequence_output"])
    read = {name: size for name, _, _, _, size in engine.steps()}
    assert read["layer0.ffn"] == parts * HIDDEN * FFN * 4


def test_the_kernel_of_every_step(rng, isa, monkeypatch):
    monkeypatch.setenv("BERTRT_ISA", isa)
    plan, weights = handmade.make_plan(rng)
    kinds = {"fp32": ("gemm_f32.", "attention_f32."), "int8": ("gemm_s8.", "attention_s16.")}
    for precision, (product, attention) in kinds.items():
        engine = handmade.new_engine(plan, weights, threads=1, precision=precision)
        kernels = {name: kernel for name, kernel, *_ in engine.steps()}
        assert list(kernels) == [step["name"] for step in plan["steps"]]
        for i in (0, 1):
            for name in ("qkv", "attention_output", "ffn", "ffn_output"):
                assert kernels[f"layer{i}.{name}"].startswith(product)
            assert kernels[f"layer{i}.attention"].startswith(attention)
        for name in ("pooler", "decoder"):
            assert kernels[name].startswith("gemm_f32.")
        assert kernels["embeddings"] == f"embed_f32.{isa}"
        assert kernels["decoder.norm"] == f"layer_norm_f32.{isa}"
        assert kernels["first"] == kernels["masked"] == "gather_rows"
