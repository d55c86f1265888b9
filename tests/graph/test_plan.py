"""The JSON form of the plan: round trip, validation, and what damage does to it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from bertrt.errors import BertrtError, InvalidInputError, MissingFileError, ModelFormatError
from bertrt.plan.check import STEP_OPS
from bertrt.plan.interpret import _Run
from bertrt.plan.plan import Plan
from bertrt.plan.tail import TAIL_OPS
from bertrt.plan.weights import Constant


def make_plan(directory: Path) -> dict:
    """A pretraining plan with one layer, hidden 4, made without any framework."""
    rng = np.random.default_rng(0)
    weights, blob = {}, b"header00"

    def store(name: str, *shape: int) -> list[str]:
        nonlocal blob
        array = rng.normal(size=shape).astype("<f4")
        weights[name] = {
            "file": "w.params", "offset": len(blob), "dtype": "float32", "shape": list(shape)
        }  # fmt: skip
        blob += array.tobytes()
        return [name]

    def linear(name: str, out: int, into: int, norm: bool = False) -> dict:
        roles = {"weight": store(f"{name}.w", out, into), "bias": store(f"{name}.b", out)}
        return roles | (normed(name, out) if norm else {})

    def normed(name: str, width: int) -> dict:
        return {"gamma": store(f"{name}.g", width), "beta": store(f"{name}.n", width)}

    def step(op: str, name: str, inputs: list[str], roles: dict | None = None, **fields) -> dict:
        return {"op": op, "name": name, "inputs": inputs, "output": name,
                "weights": roles or {}, **fields}  # fmt: skip

    tables = {"word": store("word", 11, 4), "type": store("type", 2, 4),
              "position": store("pos", 16, 4)}  # fmt: skip
    heads = {"heads": 2, "head_dim": 2}
    qkv = {
        "weight": store("q", 4, 4) + store("k", 4, 4) + store("v", 4, 4),
        "bias": store("qkv.b", 12),
    }
    flat = {"transposed": False}
    steps = [
        step("embed_layer_norm", "embeddings", [], tables | normed("e", 4), eps=1e-12),
        step("qkv_linear", "qkv", ["embeddings"], qkv, **heads, weight_layout="separate",
             bias_layout="interleaved", **flat),
        step("attention", "attention", ["qkv"], **heads, scale=0.5, mask="valid_length"),
        step("linear_add_layer_norm", "proj", ["attention", "embeddings"],
             linear("proj", 4, 4, True), eps=1e-12, **flat),
        step("linear", "ffn", ["proj"], linear("ffn", 6, 4), activation="relu", **flat),
        step("linear_add_layer_norm", "out", ["ffn", "proj"], linear("out", 4, 6, True),
             eps=1e-12, **flat),
        step("first_token", "first", ["out"]),
        step("linear", "pooler", ["first"], linear("pooler", 4, 4), activation="tanh", **flat),
        step("linear", "nsp", ["pooler"], linear("nsp", 2, 4), activation="none", **flat),
        step("gather_positions", "gather", ["out"]),
        step("layer_norm", "mlm.norm", ["gather"], normed("mlm", 4), eps=1e-12),
        step("linear", "mlm", ["mlm.norm"], {"weight": ["word"], "bias": store("mlm.b", 11)},
             activation="none", **flat),
    ]  # fmt: skip
    (directory / "w.params").write_bytes(blob)
    return {
        "version": 1,
        "architecture": {
            "hidden": 4, "layers": 1, "heads": 2, "head_dim": 2, "ffn": 6, "vocab_size": 11,
            "type_vocab_size": 2, "max_length": 16, "activation": "relu", "layer_norm_eps": 1e-12,
        },
        "inputs": {"token_ids": "data0", "token_types": "data1", "valid_length": "data2",
                   "masked_positions": "data3"},
        "steps": steps,
        "outputs": {"sequence_output": "out", "pooled_output": "pooler",
                    "next_sentence_classifier_output": "nsp", "masked_lm_outputs": "mlm"},
        "weights": weights,
    }  # fmt: skip


@pytest.fixture
def content(tmp_path):
    return make_plan(tmp_path)


def test_round_trip(content, tmp_path):
    plan = Plan.from_dict(json.loads(json.dumps(content)), tmp_path)
    assert plan.to_dict(tmp_path) == content
    assert plan.to_engine() == {k: v for k, v in content.items() if k != "weights"}
    for name, constant in plan.weights.items():
        assert list(constant.array.shape) == content["weights"][name]["shape"]
        assert constant.array.dtype == np.float32 and not constant.array.flags.writeable
    raw = np.frombuffer((tmp_path / "w.params").read_bytes()[8:], "<f4")
    np.testing.assert_array_equal(plan.weights["word"].array.ravel(), raw[:44])
    text = plan.describe()
    assert all(step["name"] in text for step in content["steps"]) and "relu" in text


def test_offsets_need_not_be_aligned(content, tmp_path):
    blob = (tmp_path / "w.params").read_bytes()
    plan = Plan.from_dict(content, tmp_path)
    before = {name: constant.array.copy() for name, constant in plan.weights.items()}
    (tmp_path / "w.params").write_bytes(b"x" + blob)
    for reference in content["weights"].values():
        reference["offset"] += 1
    for name, constant in Plan.from_dict(content, tmp_path).weights.items():
        assert constant.array.flags.aligned
        np.testing.assert_array_equal(constant.array, before[name])


def test_newer_version_says_so(content, tmp_path):
    content["version"] = 2
    with pytest.raises(ModelFormatError, match=r"version 2 is newer than .*upgrade bertrt"):
        Plan.from_dict(content, tmp_path)


def test_weights_outside_the_directory_cannot_be_written(content, tmp_path):
    plan = Plan.from_dict(content, tmp_path)
    with pytest.raises(InvalidInputError, match="not below"):
        plan.to_dict(tmp_path / "elsewhere")
    loose = Constant("word", plan.weights["word"].array)
    plan = Plan(plan.inputs, plan.steps, plan.outputs, plan.weights | {"word": loose})
    with pytest.raises(InvalidInputError, match="'word' does not lie in a file"):
        plan.to_dict(tmp_path)


def test_missing_and_truncated_weight_files(content, tmp_path):
    file = tmp_path / "w.params"
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(ModelFormatError, match="truncated"):
        Plan.from_dict(content, tmp_path)
    file.unlink()
    with pytest.raises(MissingFileError, match="no such file"):
        Plan.from_dict(content, tmp_path)


def set_step(index: int, **changes):
    return lambda c: c["steps"][index].update(changes)


WRONG = {
    "unknown op": (set_step(4, op="conv"), "step 'ffn': unknown op 'conv'"),
    "unknown field": (set_step(4, stride=1), "step 'ffn'.*stride"),
    "missing field": (lambda c: c["steps"][4].pop("activation"), "step 'ffn'.*activation"),
    "unknown activation": (set_step(4, activation="swish"), "'swish'.*gelu_erf"),
    "negative eps": (set_step(0, eps=-1.0), "eps is -1.0"),
    "eps not a number": (set_step(0, eps=math.nan), "eps is nan"),
    "infinite scale": (set_step(2, scale=math.inf), "scale is inf"),
    "no heads": (set_step(1, heads=0), "heads is 0"),
    "heads against weight": (set_step(1, heads=4), "weight has 4 rows"),
    "value from nowhere": (set_step(4, inputs=["nothing"]), "reads 'nothing'"),
    "value from later": (set_step(3, inputs=["attention", "out"]), "reads 'out'"),
    "raw projection": (set_step(4, inputs=["qkv"]), "reads rows of qkv"),
    "residual of other rows": (set_step(5, inputs=["ffn", "ffn"]), "width 6, expected tokens"),
    "output twice": (set_step(5, output="proj"), "there twice"),
    "name twice": (set_step(5, name="proj"), "there twice"),
    "transposed": (set_step(4, transposed=True), "width 4, expected.*width 6"),
    "transposed as a number": (set_step(4, transposed=0), "transposed is 0"),
    "weight of other shape": (
        lambda c: c["steps"][4]["weights"].update(bias=["out.b"]), "bias has shape"),
    "unknown role": (lambda c: c["steps"][4]["weights"].update(gain=["e.g"]), "weights.*gain"),
    "too many arrays": (lambda c: c["steps"][1]["weights"]["bias"].append("e.g"), "2 arrays"),
    "a bias by distance of another reach": (
        set_step(2, weights={"bias": ["pos"]}), r"bias has shape \(16, 4\), expected \(2, 31\)"),
    "two biases by distance": (set_step(2, weights={"bias": ["pos", "pos"]}), "2 arrays for bias"),
    "attention with a matrix": (set_step(2, weights={"weight": ["pos"]}), "weights.*weight"),
    "unknown weight": (
        lambda c: c["steps"][4]["weights"].update(bias=["lost"]), "'lost' is not among"),
    "unused weight": (
        lambda c: c["weights"].update(more=dict(c["weights"]["e.g"])), "no step uses.*more"),
    "unknown output": (lambda c: c["outputs"].update(scores="nsp"), "unknown output 'scores'"),
    "output of wrong rows": (
        lambda c: c["outputs"].update(pooled_output="out"), "expected rows of seqs"),
    "an output of a layer that is not there": (
        lambda c: c["outputs"].update(encoding_1="ffn"), "encoding_1 of 1 layers"),
    "an output of no layer": (
        lambda c: c["outputs"].update(encoding="ffn"), "unknown output 'encoding'"),
    "probabilities that are none": (
        lambda c: c["outputs"].update(attention_weights_0="ffn"), "expected rows of pairs"),
    "no outputs": (lambda c: c["outputs"].clear(), "no outputs"),
    "mask without input": (lambda c: c["inputs"].update(valid_length=None), "valid_length.*need"),
    "types without input": (lambda c: c["inputs"].update(token_types=None), "token types"),
    "positions without input": (
        lambda c: c["inputs"].update(masked_positions=None), "no input masked_positions"),
    "no ids": (lambda c: c["inputs"].update(token_ids=None), "no input token_ids"),
    "other architecture": (
        lambda c: c["architecture"].update(layers=2), "architecture.layers is 2"),
    "negative offset": (
        lambda c: c["weights"]["word"].update(offset=-4), "offset is -4"),
    "offset beyond the end": (
        lambda c: c["weights"]["word"].update(offset=1 << 70), "offset is 11805"),
    "huge shape": (
        lambda c: c["weights"]["word"].update(shape=[1 << 27, 1 << 27]), "truncated"),
    "huge extent": (
        lambda c: c["weights"]["word"].update(shape=[1 << 28, 1]), "shape is 268435456, expected"),
    "weights of one step stored in two ways": (
        lambda c: (c["steps"][1].update(precision="bf16"),
                   c["weights"]["k"].update(dtype="bfloat16")),
        "weight 'k' is uint16, and 'q' beside it is not"),
    "a scale beyond float32": (set_step(2, scale=1e39), "scale is 1e[+]39"),
    "file elsewhere": (
        lambda c: c["weights"]["word"].update(file="../w.params"), "leaves the directory"),
    "absolute file": (
        lambda c: c["weights"]["word"].update(file="/etc/passwd"), "leaves the directory"),
    "other dtype": (lambda c: c["weights"]["word"].update(dtype="float16"), "'float16'"),
    "unknown precision": (set_step(2, precision="fp16"), "precision is 'fp16', expected one of"),
    "precision of a step without products": (set_step(0, precision="bf16"), "precision"),
    "a scale of float32 weights": (
        lambda c: c["steps"][4]["weights"].update(scale=["ffn.b"]), "8 bits and a scale need"),
    "int8 in a step that says nothing of it": (
        lambda c: c["weights"]["ffn.w"].update(dtype="int8"), "is int8, and the precision None"),
    "a vector in bfloat16": (
        lambda c: c["weights"]["ffn.b"].update(dtype="bfloat16"), "bias 'ffn.b' is uint16"),
    "no layer": (lambda c: c.update(steps=c["steps"][:1], outputs={}), "no outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(content, tmp_path, name):
    break_it, message = WRONG[name]
    break_it(content)
    with pytest.raises(ModelFormatError, match=message):
        Plan.from_dict(content, tmp_path)


REPLACEMENTS = [
    None, True, False, 0, 1, -1, 3, 1 << 31, 1 << 80, -(1 << 70), 0.5, math.nan, math.inf, 1e300,
    "", "x", "linear", "word", "\0", "../w.params", "none", "a" * 5000, [], ["word"], [[]], {},
    {"a": 1}, [1e9, 2], [4, 4], [-1],
]  # fmt: skip


def paths(value, prefix=()):
    yield prefix
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*prefix, key))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from paths(value[index], (*prefix, index))


def test_every_field_damaged(content, tmp_path):
    """Replaced, removed or repeated: a ModelFormatError, or a plan that is right in itself."""
    kept = 0
    for path in list(paths(content)):
        for replacement in [*REPLACEMENTS, "remove", "repeat"]:
            damaged = copy.deepcopy(content)
            place = {"": damaged}
            holder, last = place, ""
            for key in path:
                holder, last = holder[last], key
            if replacement == "remove":
                del holder[last]
                damaged = place.get("")
            elif replacement == "repeat" and isinstance(holder, list):
                holder.insert(last, holder[last])
            else:
                holder[last] = replacement
                damaged = place[""]
            try:
                plan = Plan.from_dict(damaged, tmp_path)
            except BertrtError as error:
                assert isinstance(error, (ModelFormatError, MissingFileError)), path
            else:
                kept += 1
                assert Plan.from_dict(plan.to_dict(tmp_path), tmp_path).to_dict(
                    tmp_path
                ) == plan.to_dict(tmp_path)
                assert plan.describe()
    assert kept > 0  # names of inputs, for one, are free


def test_every_step_has_a_meaning_in_double_precision():
    assert {op for op in STEP_OPS.difference(TAIL_OPS) if not hasattr(_Run, f"_{op}")} == set()
