"""What the coverage report says, and models that must not be fused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bertrt.compiler.pipeline import compile_graph
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.symbol.params import read_params
from bertrt.models.symbol.reader import read_mxnet
from bertrt.plan.interpret import interpret


class Symbol:
    """An exported symbol that can be edited: nodes refer to their inputs by name."""

    def __init__(self, exported):
        self.exported = exported
        content = json.loads(exported.symbol.read_text())
        nodes = content["nodes"]
        self.heads = [nodes[i[0]]["name"] for i in content["heads"]]
        self.nodes = {
            node["name"]: {**node, "inputs": [nodes[i[0]]["name"] for i in node["inputs"]]}
            for node in nodes
        }

    def find(self, *parts: str) -> dict:
        """The one node whose name holds all the parts."""
        (name,) = [n for n in self.nodes if all(part in n for part in parts)]
        return self.nodes[name]

    def insert_after(self, node: dict, op: str, **attrs: str) -> None:
        """Put a node between another and all that read it."""
        name = f"extra_{op}"
        for other in self.nodes.values():
            other["inputs"] = [name if i == node["name"] else i for i in other["inputs"]]
        items = list(self.nodes.items())
        at = [key for key, _ in items].index(node["name"]) + 1
        extra = {"op": op, "name": name, "inputs": [node["name"]], "attrs": attrs}
        self.nodes = dict([*items[:at], (name, extra), *items[at:]])

    def compile(self):
        index = {name: i for i, name in enumerate(self.nodes)}
        nodes = [
            {**node, "inputs": [[index[i], 0, 0] for i in node["inputs"]]}
            for node in self.nodes.values()
        ]
        path = self.exported.symbol.parent / "edited-symbol.json"
        heads = [[index[name], 0, 0] for name in self.heads]
        path.write_text(json.dumps({"nodes": nodes, "arg_nodes": [], "heads": heads}))
        return compile_graph(read_mxnet(path, self.exported.params))


@pytest.fixture
def symbol(gluon):
    return Symbol(gluon(layers=2, dropout=0.0, heads=2))


def test_report_lists_every_layer_and_pass(symbol):
    _, coverage = symbol.compile()
    text = str(coverage)
    for layer in ("embeddings", "layer 0", "layer 1", "heads"):
        assert f"\n{layer}\n" in text
    assert text.count("attention: ") == 2
    assert text.count("-> qkv_linear") == 2
    assert text.count("-> linear_add_layer_norm") == 4
    assert text.endswith("nothing left")


# what is broken -> (pass, part of the node's name, layer, part of the reason)
BREAKS = {
    "extra multiplication in the attention": (
        lambda s: s.insert_after(s.find("transformer1", "softmax0"), "_mul_scalar", scalar="2"),
        ("attention", "extra__mul_scalar", "layer 1", "expected MatMul"),
    ),
    "another activation": (
        lambda s: s.find("transformer1", "leakyrelu0").update(
            op="Activation", attrs={"act_type": "sigmoid"}
        ),
        ("linear", "leakyrelu0", "layer 1", "Sigmoid"),
    ),
    "key scaled": (
        lambda s: s.insert_after(s.find("transformer0", "key_weight"), "_mul_scalar", scalar="2"),
        ("qkv", "concat0", "layer 0", "is not a parameter"),
    ),
    "projection scaled": (
        lambda s: s.insert_after(s.find("transformer0_proj_weight"), "_mul_scalar", scalar="2"),
        ("linear", "proj_fwd", "layer 0", "expected a stored matrix"),
    ),
    "residual scaled": (
        lambda s: s.insert_after(s.find("transformer1", "ffn_2_fwd"), "_mul_scalar", scalar="2"),
        ("layer_norm", "plus0", "layer 1", "neither operand is a linear"),
    ),
    "positions scaled": (
        lambda s: s.insert_after(s.find("position_weight"), "_mul_scalar", scalar="2"),
        ("embed", "embedding0", "embeddings", "as they are"),
    ),
    "mask value": (
        lambda s: s.find("sequencemask0")["attrs"].update(value="1.0"),
        ("rows", "sequencemask0", "heads", "padding becomes 1.0"),
    ),
    "second token": (
        lambda s: s.find("bertmodel", "slice0")["attrs"].update(
            begin="(0, 1, 0)", end="(None, 2, None)"
        ),
        ("first_token", "slice0", "heads", "expected [0:1] of axis 1"),
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_report_names_layer_pass_and_node(gluon, name):
    symbol = Symbol(gluon(layers=2, dropout=0.0, heads=2))
    break_it, (fusion, node, layer, reason) = BREAKS[name]
    break_it(symbol)
    with pytest.raises(UnsupportedModelError) as caught:
        symbol.compile()
    headline = str(caught.value).splitlines()[0]
    assert f"{layer} is not fused: pass {fusion} stopped at node" in headline
    assert node in headline and reason in headline
    assert "NOT FUSED" in str(caught.value)


def test_one_problem_is_reported_once(symbol):
    """A scaled Tanh: neither a GELU nor an activation; linear before and after it are fused."""
    pooler = symbol.find("bertmodel", "pooler_fwd")
    symbol.insert_after(pooler, "_mul_scalar", scalar="2")
    with pytest.raises(UnsupportedModelError, match="heads is not fused") as caught:
        symbol.compile()
    unfused = [line for line in str(caught.value).splitlines() if "NOT FUSED" in line]
    assert len(unfused) == 1 and "pooler_tanh" in unfused[0]


def test_layouts_that_do_not_meet_are_a_misfit(symbol):
    attention = symbol.find("transformer0", "valatt0")
    symbol.insert_after(attention, "transpose", axes="(1, 0, 2)")
    with pytest.raises(ModelFormatError, match=r"transformer0.*does not fit its operands"):
        symbol.compile()


def test_layers_must_be_alike(symbol):
    symbol.find("transformer1", "leakyrelu0").update(op="Activation", attrs={"act_type": "relu"})
    with pytest.raises(UnsupportedModelError, match=r"no one activation.*gelu_erf.*relu"):
        symbol.compile()


def test_encoder_output_must_be_masked_like_the_attention(symbol):
    softmax = symbol.find("transformer0", "softmax0")
    softmax.update(inputs=softmax["inputs"][:1], attrs={"axis": "-1"})
    with pytest.raises(UnsupportedModelError, match="masked in some places and not in others"):
        symbol.compile()


def test_probabilities_that_are_an_output_stay_unfused(symbol):
    symbol.heads.append(symbol.find("transformer1", "softmax0")["name"])
    with pytest.raises(UnsupportedModelError, match=r"pass attention .*also used elsewhere"):
        symbol.compile()


def test_unused_projection_is_not_reordered(symbol):
    symbol.heads.append(symbol.find("transformer0", "fullyconnected0")["name"])
    with pytest.raises(UnsupportedModelError, match=r"pass qkv .*used outside the attention"):
        symbol.compile()


@pytest.mark.parametrize("layout", ["both", "weights only"])
def test_interleaved_weights(gluon, batch, write_params, layout):
    """The layout that GluonNLP's own graph pass writes: one in_weight and one in_bias."""
    exported = gluon(head="classifier", layers=2, heads=3, units=24)
    inputs = batch([5, 0, 2], 6)
    expected = interpret(compile_graph(read_mxnet(exported.symbol, exported.params))[0], inputs)
    symbol = Symbol(exported)
    arrays = {name: constant.array for name, constant in read_params(exported.params).items()}
    for layer in range(2):
        prefix = next(n for n in symbol.nodes if f"transformer{layer}_dot" in n).split("query")[0]
        for kind in ("weight", "bias") if layout == "both" else ("weight",):
            parts = [
                arrays.pop(f"{prefix}{which}_{kind}").reshape(3, 1, 8, -1)
                for which in ("query", "key", "value")
            ]
            joined = np.concatenate(parts, axis=1).reshape(72, -1)
            name = f"{prefix}in_{kind}"
            arrays[name] = joined if kind == "weight" else joined.ravel()
            linear = symbol.nodes[f"{prefix}fullyconnected0"]
            linear["inputs"][1 if kind == "weight" else 2] = name
            node = {"op": "null", "name": name, "inputs": []}
            symbol.nodes = {name: node, **symbol.nodes}
            gone = [f"{prefix}{which}_{kind}" for which in ("query", "key", "value")]
            dead = set(gone)
            for key, other in symbol.nodes.items():  # all that only led to the projection
                if dead & set(other["inputs"]) and key != linear["name"]:
                    dead.add(key)
            symbol.nodes = {k: v for k, v in symbol.nodes.items() if k not in dead}
    exported.params = exported.params.parent / "interleaved-0000.params"
    write_params(exported.params, arrays.items())
    plan, _ = symbol.compile()
    steps = [step for step in plan.steps if step.op == "qkv_linear"]
    assert len(steps) == 2
    for step in steps:
        assert step.fields["weight_layout"] == "interleaved"
        assert step.fields["bias_layout"] == ("interleaved" if layout == "both" else "separate")
    found = interpret(plan, inputs)
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array)
