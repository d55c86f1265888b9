"""A Hugging Face model whose weights are a graph's: what it can do, and how its files fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.huggingface.config import Config
from bertrt.plan.plan import Plan
from bertrt.plan.tail import TAIL_OPS
from bertrt.tasks.modules import Module

__all__ = ["answerable", "check_scores", "fitted", "pooling_of", "width_of"]

# What each task is made of: an output, and what it has a row for
_OUTPUTS = {
    "classification": (("logits", "seqs"), ("probabilities", "seqs")),
    "regression": (("logits", "seqs"),),
    "question-answering": (("logits", "tokens"),),
    "tagging": (("logits", "tokens"),),
    "fill-mask": (("masked_lm_outputs", "positions"),),
    "next-sentence": (("next_sentence_classifier_output", "seqs"),),
    "embedding": (("sequence_output", "tokens"), ("pooled_output", "seqs")),
}

# What a directory's pooling says of vectors that the graph has pooled by itself
_BEHIND_MODULES = ("truncate_dim", "similarity")

# What a step makes of a sequence's rows, by the name of the pooling
_POOLED_BY = {"mean_tokens": "mean", "max_tokens": "max", "first_token": "cls"}


def fitted(config: Config, plan: Plan) -> tuple[Config, Plan]:
    """The configuration with the positions that the graph has, which may be fixed at fewer, and the
    plan with what the class is needed for to name: alone, whether one text follows another looks
    like any classifier's logits.

    Raises ModelFormatError where the two are of different models.
    """
    found = plan.architecture
    for setting, value in (
        ("vocab_size", found["vocab_size"]),
        ("hidden_size", found["hidden"]),
        ("num_hidden_layers", found["layers"]),
        ("num_attention_heads", found["heads"]),
    ):
        if config.count(setting) != value:
            raise ModelFormatError(
                f"{config.path}: {config.name(setting)} is {config.count(setting)}, and the ONNX "
                f"file's model has {value}: they do not belong together"
            )
    positions = found["max_length"] + config.first_position
    content = config.content | {config.name("max_position_embeddings"): positions}
    names = {name: name for name in plan.outputs}
    if config.head == "ForNextSentencePrediction" and plan.rows.get("logits") == "seqs":
        names["logits"] = "next_sentence_classifier_output"
    outputs = {names[name]: value for name, value in plan.outputs.items()}
    return (
        dataclasses.replace(config, content=content),
        dataclasses.replace(plan, outputs=outputs),
    )


def answerable(config: Config, plan: Plan) -> tuple[str, ...]:
    """The tasks of the model that the graph has the outputs for, its own first. Any model may have
    been exported for embeddings.

    Raises UnsupportedModelError where there are none, ModelFormatError where labels are not as many
    as the graph's numbers.
    """
    tasks = tuple(
        task
        for task in dict.fromkeys((*config.tasks, "embedding"))
        if any(plan.rows.get(output) == rows for output, rows in _OUTPUTS[task])
    )
    if not tasks:
        raise UnsupportedModelError(
            f"{config.path}: the model is for {', '.join(config.tasks)}, and the ONNX file returns "
            f"{', '.join(plan.outputs)}"
        )
    if tasks[0] in ("classification", "regression", "tagging"):
        classes, width = config.count("num_labels"), width_of(plan)
        if classes != width:
            raise ModelFormatError(
                f"{config.path}: it has {classes} labels, and the ONNX file returns {width} numbers"
            )
    return tasks


def pooling_of(
    plan: Plan, given: dict[str, Any] | None, modules: Sequence[Module] = ()
) -> dict[str, Any] | None:
    """How an embedding is made of the graph's outputs: as the directory says, of the tokens' rows;
    by the graph, where it pools by itself; None for the default.

    Raises UnsupportedModelError where the rows that the directory's pooling reads are not returned.
    """
    value, tail = plan.tail_of("pooled_output") if "pooled_output" in plan.outputs else ("", ())
    maker = next((step.op for step in plan.steps if step.output == value), "")
    # BERT's pooler is no pooling: it is made for telling sentences apart.
    pools = bool(tail) or maker in ("first_token", *TAIL_OPS)
    if "sequence_output" in plan.outputs and (given is not None or not pools):
        return given
    if given is not None and not pools:
        raise UnsupportedModelError(
            f"the directory pools the rows of the tokens by {given['mode']}, and the ONNX file "
            f"returns {', '.join(plan.outputs)}"
        )
    if given is not None:
        ops = [maker, *(step.op for step in tail)]
        own = next((_POOLED_BY[op] for op in ops if op in _POOLED_BY), None)
        normal = "normalize" in ops
        said = bool(given.get("normalize")) or any(own.kind == "normalize" for own in modules)
        if (
            given["mode"] != own
            or said != normal
            or given.get("include_prompt") is False
            or any(module.widths for module in modules)
        ):
            raise UnsupportedModelError(
                f"the ONNX file returns vectors that it has pooled itself, by {own or maker}"
                f"{' and to length 1' if normal else ''}, and the directory's modules say "
                f"otherwise ({given}, {len(modules)} modules behind): export the rows of the tokens"
            )
    kept = {name: value for name, value in (given or {}).items() if name in _BEHIND_MODULES}
    return {"mode": "pooled", "normalize": False, **kept}


def check_scores(plan: Plan, activation: str) -> None:
    """Refuse a graph that makes scores by itself, and others than the directory says."""
    if "probabilities" not in plan.outputs or "logits" in plan.outputs:
        return
    _, tail = plan.tail_of("probabilities")
    own = tail[-1].op if tail else "none"
    if own != activation:
        raise UnsupportedModelError(
            f"the ONNX file returns {own} of its logits, and the directory's activation is "
            f"{activation}: they do not belong together"
        )


def width_of(plan: Plan) -> int:
    """The numbers in a row of the graph's logits or probabilities; 0 for a graph without any."""
    name = "logits" if "logits" in plan.outputs else "probabilities"
    value = plan.tail_of(name)[0] if name in plan.outputs else None
    for step in plan.steps:
        if step.output == value:
            shape = plan.weights[step.weights["weight"][0]].shape
            return shape[1] if step.fields["transposed"] else shape[0]
    return 0
