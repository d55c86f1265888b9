"""Plans of every kind, made without any framework, and mutations of them.

`write_seeds` writes one file of weights and gives plans as ``plan.json`` has them, which refer to
it; `mutate_plan` changes one in some of the ways in which a plan can be wrong, or be another one.
A mutant refers to the same file: a weight of another shape or type is other bytes of it.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bertrt.plan.quantized import quantize_outputs, to_bfloat16

__all__ = ["FILE", "mutate_plan", "write_seeds"]

FILE = "weights.bin"
VOCAB, TYPES, LENGTH, HEADS, HEAD_DIM, FFN = 23, 2, 16, 2, 4, 20
HIDDEN = HEADS * HEAD_DIM

Content = dict[str, Any]


class _Net:
    """Writes a plan down, step by step, as the readers of models do."""

    def __init__(self, blob: bytearray, rng: np.random.Generator) -> None:
        self._blob, self._rng = blob, rng
        self.steps: list[Content] = []
        self.weights: Content = {}

    def array(self, name: str, array: np.ndarray, dtype: str = "float32") -> str:
        if name not in self.weights:
            offset = len(self._blob)
            self.weights[name] = {
                "file": FILE, "offset": offset, "dtype": dtype, "shape": list(array.shape)
            }  # fmt: skip
            self._blob += array.tobytes()
        return name

    def draw(self, name: str, *shape: int) -> str:
        values = self._rng.normal(size=shape) / shape[-1] ** 0.5
        return self.array(name, values.astype("<f4"))

    def step(self, op: str, name: str, inputs: list[str], roles: Content, **fields: Any) -> str:
        common = {"op": op, "name": name, "inputs": inputs, "output": name, "weights": roles}
        self.steps.append(common | fields)
        return name

    def norm(self, name: str, width: int) -> Content:
        return {
            "gamma": [self.draw(f"{name}.gamma", width)],
            "beta": [self.draw(f"{name}.beta", width)],
        }

    def matrix(
        self, name: str, out: int, into: int, stored: str | None, transposed: bool = False
    ) -> Content:
        """The roles of one matrix as a step has it that states its precision, or does not."""
        values = (self._rng.normal(size=(out, into)) / into**0.5).astype(np.float32)
        if stored == "int8":
            steps, scale = quantize_outputs(values)
            steps = np.ascontiguousarray(steps.T) if transposed else steps
            return {
                "weight": [self.array(f"{name}.int8", steps, "int8")],
                "scale": [self.array(f"{name}.scale", scale.astype("<f4"))],
            }
        values = np.ascontiguousarray(values.T) if transposed else values
        if stored == "bf16":
            return {"weight": [self.array(f"{name}.bf16", to_bfloat16(values), "bfloat16")]}
        return {"weight": [self.array(name, values.astype("<f4"))]}


def _make(
    blob: bytearray,
    head: str,
    *,
    layers: int = 2,
    width: int = HIDDEN,
    types: int = TYPES,
    interleaved: bool = False,
    transposed: bool = False,
    precision: str | None = None,
    distances: bool = False,
    shared: bool = False,
    masked: bool = True,
    activation: str = "gelu_erf",
) -> Content:
    net = _Net(blob, np.random.default_rng(len(blob)))
    stated = {} if precision is None else {"precision": precision}
    heads = {"heads": HEADS, "head_dim": HEAD_DIM}
    flat = {"transposed": transposed, **stated}
    scoring = heads | {"scale": 0.5, "mask": "valid_length" if masked else "none"}
    bias = {"bias": [net.draw("distances", HEADS, 2 * LENGTH - 1)]} if distances else {}

    tables = {"word": [net.draw("word", VOCAB, width)]}
    if types:
        tables["type"] = [net.draw("type", types, width)]
    tables["position"] = [net.draw("position", LENGTH, width)]
    tables |= net.norm("embeddings", width)
    x = net.step("embed_layer_norm", "embeddings", [], tables, eps=1e-12)
    outputs: dict[str, str] = {}
    if width != HIDDEN:
        roles = net.matrix("up", HIDDEN, width, None) | {"bias": [net.draw("up.bias", HIDDEN)]}
        x = net.step("linear", "up", [x], roles, activation="none", transposed=False)
    if head == "layers":
        outputs["embedding_output"] = x
    for layer in range(layers):
        own = "shared" if shared else f"layer{layer}"
        name = f"layer{layer}"
        roles = {}
        for part in ("all",) if interleaved else ("query", "key", "value"):
            rows = 3 * HIDDEN if interleaved else HIDDEN
            found = net.matrix(f"{own}.{part}", rows, HIDDEN, precision, transposed)
            for role, names in found.items():
                roles[role] = roles.get(role, []) + names
            roles["bias"] = [*roles.get("bias", []), net.draw(f"{own}.{part}.bias", rows)]
        layout = "interleaved" if interleaved else "separate"
        qkv = net.step("qkv_linear", f"{name}.qkv", [x], roles, **heads, weight_layout=layout,
                       bias_layout=layout, **flat)  # fmt: skip
        context = net.step("attention", f"{name}.attention", [qkv], bias, **scoring, **stated)
        if head == "layers":
            weighed = net.step("attention_weights", f"{name}.weights", [qkv], bias, **scoring)
            outputs[f"attention_weights_{layer}"] = weighed

        def linear(own: str, out: int, into: int) -> Content:
            matrix = net.matrix(own, out, into, precision, transposed)
            return matrix | {"bias": [net.draw(f"{own}.bias", out)]}

        roles = linear(f"{own}.projection", HIDDEN, HIDDEN) | net.norm(f"{own}.first", HIDDEN)
        middle = net.step("linear_add_layer_norm", f"{name}.projection", [context, x], roles,
                          eps=1e-12, **flat)  # fmt: skip
        roles = linear(f"{own}.ffn", FFN, HIDDEN)
        inner = net.step("linear", f"{name}.ffn", [middle], roles, activation=activation, **flat)
        roles = linear(f"{own}.out", HIDDEN, FFN) | net.norm(f"{own}.second", HIDDEN)
        x = net.step("linear_add_layer_norm", f"{name}.out", [inner, middle], roles, eps=1e-12,
                     **flat)  # fmt: skip
        if head == "layers" and layer + 1 < layers:
            outputs[f"encoding_{layer}"] = x

    def dense(name: str, value: str, out: int, activation: str = "none") -> str:
        roles = net.matrix(name, out, HIDDEN, None) | {"bias": [net.draw(f"{name}.bias", out)]}
        return net.step("linear", name, [value], roles, activation=activation, transposed=False)

    if head in ("encoder", "layers", "pretraining"):
        outputs["sequence_output"] = x
    if head in ("encoder", "classifier", "pretraining"):
        first = net.step("first_token", "first", [x], {})
        outputs["pooled_output"] = pooled = dense("pooler", first, HIDDEN, "tanh")
    if head == "classifier":
        outputs["logits"] = logits = dense("classifier", pooled, 3)
        outputs["probabilities"] = net.step("softmax", "softmax", [logits], {})
    if head == "pretraining":
        outputs["next_sentence_classifier_output"] = dense("nsp", pooled, 2)
        masked_rows = net.step("gather_positions", "masked", [x], {})
        made = dense("transform", masked_rows, HIDDEN, "gelu_tanh")
        norm = net.norm("mlm", HIDDEN)
        made = net.step("layer_norm", "mlm.norm", [made], norm, eps=1e-12)
        roles = {"weight": tables["word"], "bias": [net.draw("mlm.bias", VOCAB)]}
        outputs["masked_lm_outputs"] = net.step(
            "linear", "mlm", [made], roles, activation="none", transposed=False
        )
    if head == "tokens":
        outputs["logits"] = dense("tagger", x, 2)
    if head == "sentence":
        mean = net.step("mean_tokens", "mean", [x], {})
        scaled = net.step("affine", "scaled", [mean], {}, factor=0.5, shift=0.25)
        outputs["pooled_output"] = net.step("normalize", "normal", [scaled], {}, eps=1e-12)
    return {
        "version": 1,
        "architecture": {
            "hidden": HIDDEN, "layers": layers, "heads": HEADS, "head_dim": HEAD_DIM, "ffn": FFN,
            "vocab_size": VOCAB, "type_vocab_size": types, "max_length": LENGTH,
            "activation": activation, "layer_norm_eps": 1e-12,
        },
        "inputs": {
            "token_ids": "data0", "token_types": "data1" if types else None,
            "valid_length": "data2" if masked else None,
            "masked_positions": "data3" if head == "pretraining" else None,
        },
        "steps": net.steps,
        "outputs": outputs,
        "weights": net.weights,
    }  # fmt: skip


def write_seeds(directory: Path) -> dict[str, Content]:
    """Writes `FILE` into a directory; gives plans of it by what they are."""
    blob = bytearray()
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "encoder": ("encoder", {}),
        "question answering": ("tokens", {"activation": "relu"}),
        "classifier": ("classifier", {"transposed": True}),
        "pretraining": ("pretraining", {}),
        "no types, no mask": ("encoder", {"types": 0, "masked": False}),
        "distances": ("pretraining", {"distances": True, "types": 0, "activation": "gelu_tanh"}),
        "shared": ("classifier", {"shared": True, "width": 5, "layers": 3}),
        "int8": ("classifier", {"precision": "int8"}),
        "int8 interleaved": ("tokens", {"precision": "int8", "interleaved": True}),
        "bf16": ("pretraining", {"precision": "bf16", "transposed": True}),
        "interleaved": ("encoder", {"interleaved": True, "transposed": True}),
        "layers": ("layers", {"layers": 3, "distances": True}),
        "sentence": ("sentence", {"layers": 1}),
    }
    seeds = {name: _make(blob, head, **options) for name, (head, options) in kinds.items()}
    (directory / FILE).write_bytes(bytes(blob))
    return seeds


# What fields may come to hold; each kind of value at each kind of field.
_VALUES = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, -1, 1 << 28, 1 << 31, 1 << 62, 1 << 64, -(1 << 63)),
    *(0.0, 1.0, 0.5, -0.5, 1e-12, 1e-45, 1e-320, 1e38, 1e39, 1e300, math.nan, math.inf, -math.inf),
    *("", "none", "relu", "gelu_erf", "gelu_tanh", "tanh", "valid_length", "separate"),
    *("interleaved", "fp32", "bf16", "int8", "causal", "a\0b", "x" * 2000, [], {}, [1], ["word"]),
)
_FIELDS = {
    "eps": (1e-12, 1e-5, 0.0, 0.9), "heads": (1, 2, 4, 8), "head_dim": (1, 2, 4, 8),
    "scale": (0.5, 1.0, 1e-3, 30.0, 1e38), "mask": ("none", "valid_length"),
    "transposed": (True, False), "weight_layout": ("separate", "interleaved"),
    "bias_layout": ("separate", "interleaved"),
    "activation": ("none", "relu", "gelu_erf", "gelu_tanh", "tanh"),
    "precision": ("fp32", "bf16", "int8", "fp8"), "factor": (2.0, -1.0, 0.0), "shift": (1.0, 0.0),
}  # fmt: skip
_ROLES = ("word", "type", "position", "gamma", "beta", "weight", "scale", "bias")
_OPS = (
    *("embed_layer_norm", "qkv_linear", "attention", "attention_weights", "linear_add_layer_norm"),
    *("linear", "layer_norm", "first_token", "gather_positions", "softmax", "mean_tokens"),
    *("max_tokens", "normalize", "affine", "sigmoid", "log_softmax", "conv"),
)
_OUTPUTS = (
    *("sequence_output", "embedding_output", "pooled_output", "logits", "probabilities"),
    *("next_sentence_classifier_output", "masked_lm_outputs", "encoding_0", "attention_weights_0"),
    *("encoding_1", "attention_weights_1", "scores"),
)


def mutate_plan(random: Random, content: Content) -> Content:
    """A plan with one to three changes: most of one step's parts, some of whole steps, of outputs,
    weights or facts. `content` stays as it is."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if content["steps"]:
            random.choice(_CHANGES)(random, content)
    if random.random() < 0.8:
        used = {
            name
            for step in content["steps"]
            for names in step["weights"].values()
            for name in names
        }
        content["weights"] = {k: v for k, v in content["weights"].items() if k in used}
    return content


def _values(content: Content) -> list[str]:
    return [step["output"] for step in content["steps"]] or ["nothing"]


def _put(random: Random, content: Content, step: Content, index: int | None = None) -> None:
    """A new step, under names of its own, read by somebody else where one is found."""
    name = f"new{random.randrange(1000)}"
    step |= {"name": name, "output": name}
    at = random.randrange(len(content["steps"]) + 1) if index is None else index
    content["steps"].insert(at, step)
    later = [each for each in content["steps"][at + 1 :] if each["inputs"]]
    if later and random.random() < 0.6:
        reader = random.choice(later)
        reader["inputs"][random.randrange(len(reader["inputs"]))] = name
    if random.random() < 0.5:
        content["outputs"][random.choice(_OUTPUTS)] = name


def _drop_step(random: Random, content: Content) -> None:
    step = content["steps"].pop(random.randrange(len(content["steps"])))
    if step["inputs"] and random.random() < 0.7:  # what read it reads what it read
        for each in content["steps"]:
            each["inputs"] = [
                step["inputs"][0] if name == step["output"] else name for name in each["inputs"]
            ]


def _drop_tail(random: Random, content: Content) -> None:
    del content["steps"][random.randrange(1, len(content["steps"]) + 1) :]
    made = set(_values(content))
    content["outputs"] = {k: v for k, v in content["outputs"].items() if v in made}
    content["outputs"].setdefault(random.choice(_OUTPUTS), _values(content)[-1])


def _swap_steps(random: Random, content: Content) -> None:
    steps = content["steps"]
    i, j = random.randrange(len(steps)), random.randrange(len(steps))
    steps[i], steps[j] = steps[j], steps[i]


def _repeat_step(random: Random, content: Content) -> None:
    at = random.randrange(len(content["steps"]))
    step = copy.deepcopy(content["steps"][at])
    if random.random() < 0.1:
        content["steps"].insert(at, step)
    else:
        _put(random, content, step, at + 1)


def _insert_step(random: Random, content: Content) -> None:
    """A step that could be right: of a width that a value has."""
    at = random.randrange(1, len(content["steps"]) + 1)
    value = random.choice([step["output"] for step in content["steps"][:at]])
    vectors = [n for n, w in content["weights"].items() if len(w["shape"]) == 1]
    matrices = [n for n, w in content["weights"].items() if len(w["shape"]) == 2]
    op = random.choice(_OPS)
    step: Content = {"op": op, "inputs": [value], "weights": {}}
    like = [each for each in content["steps"] if each["op"] == op]
    if like and random.random() < 0.6:
        step |= copy.deepcopy(random.choice(like)) | {"inputs": [value]}
    if op in ("layer_norm", "linear_add_layer_norm") and vectors:
        vector = random.choice(vectors)
        step["weights"] |= {"gamma": [vector], "beta": [vector]}
        step["eps"] = 1e-5
    if op in ("linear", "linear_add_layer_norm") and matrices:
        name = random.choice(matrices)
        step["weights"] |= {"weight": [name]}
        step["transposed"] = random.random() < 0.5
        if op == "linear":
            step["activation"] = "none"
        else:
            step["inputs"] = [value, random.choice(_values(content))]
    if op == "normalize":
        step["eps"] = 1e-12
    if op == "affine":
        step |= {"factor": 2.0, "shift": 1.0}
    _put(random, content, step, at)


def _change_op(random: Random, content: Content) -> None:
    random.choice(content["steps"])["op"] = random.choice(_OPS)


def _rename(random: Random, content: Content) -> None:
    step = random.choice(content["steps"])
    key = random.choice(("name", "output"))
    other = random.choice([*_values(content), *_OUTPUTS, "a\0b", "", "\ud800", "x" * 2000])
    old, step[key] = step[key], other
    if key == "output" and random.random() < 0.7:
        for each in content["steps"]:
            each["inputs"] = [other if name == old else name for name in each["inputs"]]
        content["outputs"] = {
            k: other if value == old else value for k, value in content["outputs"].items()
        }


def _change_inputs(random: Random, content: Content) -> None:
    step = random.choice(content["steps"])
    inputs = step["inputs"]
    choice = random.randrange(6)
    if choice == 0 and inputs:
        inputs.pop(random.randrange(len(inputs)))
    elif choice == 1:
        inputs.insert(random.randrange(len(inputs) + 1), random.choice(_values(content)))
    elif choice == 2:
        inputs.reverse()
    elif choice == 3 and len(inputs) > 1:
        inputs[1] = inputs[0]
    elif inputs:
        inputs[random.randrange(len(inputs))] = random.choice(_values(content))


def _change_roles(random: Random, content: Content) -> None:
    step = random.choice(content["steps"])
    roles = step["weights"]
    names = [*content["weights"]] or ["lost"]
    choice = random.randrange(6)
    if choice <= 1 or not roles:
        roles[random.choice(_ROLES)] = [
            random.choice(names) for _ in range(random.choice((1, 1, 0, 3)))
        ]
    elif choice == 2:
        roles.pop(random.choice([*roles]))
    elif choice == 3:
        roles[random.choice(_ROLES)] = roles.pop(random.choice([*roles]))
    elif choice == 4:
        a, b = random.choice([*roles]), random.choice([*roles])
        roles[a], roles[b] = roles[b], roles[a]
    else:
        other = random.choice(content["steps"])
        step["weights"], other["weights"] = other["weights"], roles


def _change_arrays(random: Random, content: Content) -> None:
    step = random.choice([each for each in content["steps"] if each["weights"]] or content["steps"])
    if not step["weights"]:
        return
    arrays = step["weights"][random.choice([*step["weights"]])]
    names = [*content["weights"]] or ["lost"]
    choice = random.randrange(5)
    if choice == 0 and arrays:
        arrays.pop()
    elif choice == 1:
        arrays.append(random.choice(names))
    elif choice == 2:
        random.shuffle(arrays)
    elif arrays:
        arrays[random.randrange(len(arrays))] = random.choice(names)


def _change_field(random: Random, content: Content) -> None:
    step = random.choice(content["steps"])
    own = [key for key in step if key in _FIELDS]
    choice = random.randrange(5)
    if choice == 0:
        key = random.choice([*_FIELDS, "stride"])
        step[key] = random.choice(_FIELDS.get(key, (1,)))
    elif own and choice == 1:
        del step[random.choice(own)]
    elif own:
        key = random.choice(own)
        step[key] = random.choice(_VALUES if choice == 2 else _FIELDS[key])


def _change_everywhere(random: Random, content: Content) -> None:
    """A field of all steps that have it, and what belongs to it."""
    key = random.choice([*_FIELDS])
    value = random.choice(_FIELDS[key])
    for step in content["steps"]:
        if key in step or (key == "precision" and "heads" in step and random.random() < 0.5):
            step[key] = value
        if key in ("heads", "head_dim") and key in step:
            other = "head_dim" if key == "heads" else "heads"
            step[other] = max(1, HIDDEN // value)
    if key == "mask":
        content["inputs"]["valid_length"] = "data2" if value == "valid_length" else None


def _change_weight(random: Random, content: Content) -> None:
    if not content["weights"]:
        return
    name = random.choice([*content["weights"]])
    weight = content["weights"][name]
    shape = weight["shape"]
    choice = random.randrange(9)
    if choice == 0:
        weight["shape"] = shape[::-1]
    elif choice == 1:
        i = random.randrange(len(shape))
        shape[i] = random.choice((shape[i] - 1, shape[i] + 1, 2 * shape[i], 1, 3 * shape[i], 0, -1))
    elif choice == 2:
        weight["dtype"] = random.choice(("float32", "bfloat16", "int8", "float16"))
    elif choice == 3:
        weight["offset"] += random.choice((-4, 4, 1, -1, 64, 1 << 40))
    elif choice == 4:
        weight["shape"] = random.choice(([*shape, 1], [1, *shape], [int(np.prod(shape))], []))
    elif choice == 5:
        shape[random.randrange(len(shape))] = random.choice((1 << 28, 1 << 31, 1 << 62, 65537))
    elif choice == 6:
        content["weights"][name] = copy.deepcopy(random.choice([*content["weights"].values()]))
    elif choice == 7:
        content["weights"].pop(name)
    else:
        content["weights"][name + "\0"] = weight


def _narrow(random: Random, content: Content) -> None:
    """Another length, number of words or of types, wherever it is said."""
    key, role = random.choice(
        (("vocab_size", "word"), ("max_length", "position"), ("type_vocab_size", "type"))
    )
    for step in content["steps"]:
        for name in step["weights"].get(role, []):
            if name in content["weights"] and content["weights"][name]["shape"][:1] > [1]:
                content["weights"][name]["shape"][0] -= 1
                content["architecture"][key] = content["weights"][name]["shape"][0]


def _change_outputs(random: Random, content: Content) -> None:
    outputs = content["outputs"]
    choice = random.randrange(4)
    if choice == 0 and outputs:
        outputs.pop(random.choice([*outputs]))
    elif choice == 1 and outputs:
        outputs[random.choice(_OUTPUTS)] = outputs.pop(random.choice([*outputs]))
    else:
        outputs[random.choice(_OUTPUTS)] = random.choice([*_values(content), *outputs.values()])


def _change_facts(random: Random, content: Content) -> None:
    table = content[random.choice(("inputs", "architecture"))]
    key = random.choice([*table, "more"])
    if random.random() < 0.2 and key in table:
        del table[key]
    else:
        table[key] = random.choice((None, "data0", *_VALUES))


_CHANGES = (
    *(_drop_step, _drop_tail, _swap_steps, _repeat_step, _insert_step, _insert_step, _insert_step),
    *(_change_op, _rename, _change_inputs, _change_inputs, _change_roles, _change_roles),
    *(_change_arrays, _change_arrays, _change_field, _change_field, _change_everywhere),
    *(_change_weight, _change_weight, _narrow, _change_outputs, _change_outputs, _change_facts),
)
