"""From a fused graph to the plan: values, inputs and steps get their names."""

from __future__ import annotations

from bertrt.compiler.ir import Graph, Node
from bertrt.compiler.passes import attention, attention_weights, embed, gather_positions, rows
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.plan.plan import Plan
from bertrt.plan.steps import INPUTS, Step
from bertrt.plan.tail import OVER_TOKENS

__all__ = ["lay_out"]


def lay_out(graph: Graph, names: dict[str, str]) -> Plan:
    """The plan of a fused graph; `names` are those of its outputs, by value."""
    roles = _input_roles(graph)
    masks = {node.attrs["mask"] for node in graph.nodes.values() if "mask" in node.attrs}
    if len(masks) > 1:
        raise UnsupportedModelError(
            f"{graph.origin}: padding is masked in some places and not in others: attention and "
            "the encoder's output must all use valid_length, or none of them"
        )
    steps: list[Step] = []
    step_of: dict[str, str] = {}  # value in the graph -> value in the plan
    namer = _StepNamer(names)

    def step_value(value: str) -> str:
        if value not in step_of:
            raise UnsupportedModelError(
                f"{graph.origin}: {value!r} is an input or a parameter where rows are expected"
            )
        return step_of[value]

    for node in graph.nodes.values():
        if node.op == rows.STEP:
            step_of[node.output] = step_value(node.inputs[0])
            continue
        inputs = tuple(step_value(value) for value in node.inputs if value not in graph.inputs)
        name = namer.name(node, inputs)
        step_of[node.output] = name
        fields = dict(node.attrs)
        if node.op in OVER_TOKENS:
            del fields["mask"]  # a packed batch has no tokens to leave out
        steps.append(Step(node.op, name, inputs, name, dict(node.weights), fields))
    used = dict.fromkeys(v for step in steps for group in step.weights.values() for v in group)
    for value in used:
        if str(graph.types[value].dtype) != "float32":
            raise UnsupportedModelError(
                f"{graph.origin}: parameter {value!r} is {graph.types[value].dtype}, "
                "expected float32; cast the model before exporting it"
            )
    try:
        return Plan(
            roles,
            tuple(steps),
            {names[value]: step_value(value) for value in graph.outputs.values()},
            {value: graph.constants[value] for value in used},
        )
    except ModelFormatError as error:  # fused completely, into something that no BERT is
        raise UnsupportedModelError(f"{graph.origin}: {error}") from None


def _input_roles(graph: Graph) -> dict[str, str | None]:
    """Which input of the source is which, from the fused nodes that read it."""
    meanings = {
        embed.STEP: ("token_ids", "token_types"),
        attention.STEP: ("valid_length",),
        attention_weights.STEP: ("valid_length",),
        rows.STEP: ("valid_length",),
        gather_positions.STEP: ("masked_positions",),
        **dict.fromkeys(OVER_TOKENS, ("valid_length",)),
    }
    roles: dict[str, str | None] = dict.fromkeys(INPUTS)
    for node in graph.nodes.values():
        read = [value for value in node.inputs if value in graph.inputs]
        for value, meaning in zip(read, meanings.get(node.op, ()), strict=False):
            if roles[meaning] not in (None, graph.sources[value]):
                raise UnsupportedModelError(
                    f"{graph.origin}: inputs {roles[meaning]!r} and {graph.sources[value]!r} "
                    f"are both used as {meaning}"
                )
            roles[meaning] = graph.sources[value]
        if node.op == gather_positions.STEP and not read:
            # The head gives every token's words in the file, and is asked for some of them.
            roles["masked_positions"] = "masked_positions"
    return roles


class _StepNamer:
    """Names for the steps, as they appear in plans and traces."""

    def __init__(self, outputs: dict[str, str]) -> None:
        self.outputs = outputs
        self.layer = -1
        self.kinds: dict[str, str] = {}
        self.taken: set[str] = set()

    def name(self, node: Node, inputs: tuple[str, ...]) -> str:
        kind = self.kinds[inputs[0]] if inputs else "tokens"
        others = dict.fromkeys((*OVER_TOKENS, "first_token"), "seqs")
        others["gather_positions"] = "positions"
        kind = others.get(node.op, kind)
        if node.op == "qkv_linear":
            self.layer += 1
        name = self._base(node, kind)
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        self.kinds[name] = kind
        return name

    def _base(self, node: Node, kind: str) -> str:
        if node.op in ("embed_layer_norm", "first_token", "gather_positions"):
            return {"embed_layer_norm": "embeddings"}.get(node.op, node.op)
        if kind == "tokens":
            layer = f"layer{self.layer}"
            if node.op == "linear_add_layer_norm":
                first = f"{layer}.attention_output"
                return first if first not in self.taken else f"{layer}.ffn_output"
            if node.op == "linear" and node.output in self.outputs:
                return self.outputs[node.output]
            part = {"qkv_linear": "qkv", "linear": "ffn"}.get(node.op, node.op)
            return f"{layer}.{part}"
        if kind == "seqs":
            output = self.outputs.get(node.output)
            tanh = node.attrs.get("activation") == "tanh"
            return "pooler" if tanh else output or node.op
        part = "decoder" if node.output in self.outputs else node.op
        return f"masked_lm.{part}"
