"""Make the files of ``tests/data/onnx``: tiny BERTs as other exporters write them.

They are made with PyTorch's two exporters and onnxruntime's optimizer, which are no requirement of
the tests, so that the files are kept beside this script. In an environment of its own::

    pip install torch==2.13.0 'transformers>=5,<6' onnxscript onnxruntime
    python tests/data/make_foreign_onnx.py tests/data/onnx

Weights are random, drawn wide so that a difference shows; names are cut short to keep files small.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.fusion_options import FusionOptions

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MODEL = ("last_hidden_state", "pooler_output")
HEADS = 2
HIDDEN = 16
LENGTH = 20  # positions


def config(**changes):
    settings = {
        "vocab_size": 60,
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": 24,
        "max_position_embeddings": LENGTH,
        "num_labels": 3,
    }
    return transformers.BertConfig(**(settings | changes))


def build(kind, settings, attention="sdpa"):
    torch.manual_seed(0)
    model = kind._from_config(settings, attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.3 + centre)
    return model


class Positional(torch.nn.Module):
    """A model that takes its inputs in order and returns tensors, changed by ``tail``."""

    def __init__(self, model, names, tail=None):
        super().__init__()
        self.model, self.names, self.tail = model, names, tail

    def forward(self, *values):
        inputs = dict(zip(self.names, values, strict=True))
        found = self.model(**inputs)
        if self.tail is not None:
            return self.tail(found, inputs)
        return tuple(value for value in found.to_tuple() if torch.is_tensor(value))


def export(
    path,
    model,
    opset,
    outputs,
    *,
    dynamo=False,
    names=INPUTS,
    free=True,
    tail=None,
    size=(2, 6),
    dtype=torch.int64,
):
    ones = torch.ones(size, dtype=dtype)
    values = {"input_ids": ones * 7, "attention_mask": ones, "token_type_ids": ones * 0}
    values["position_ids"] = torch.arange(size[1]).expand(size).contiguous()
    arguments = tuple(values[name] for name in names)
    # Exporters leave a module in the mode that they found it in.
    module = Positional(model, names, tail).eval()
    common = {"opset_version": opset, "input_names": list(names), "output_names": list(outputs)}
    if dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=LENGTH)}
        shapes = (tuple(axes for _ in names),) if free else None
        program = torch.onnx.export(
            module, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False, **common
        )
        program.save(str(path))
    else:
        axes = {name: {0: "batch", 1: "sequence"} for name in names} if free else None
        torch.onnx.export(module, arguments, str(path), dynamo=False, dynamic_axes=axes, **common)


def mean_normalized(found, inputs):
    rows = found.last_hidden_state
    shown = inputs["attention_mask"].unsqueeze(-1).expand(rows.size()).to(rows.dtype)
    mean = (rows * shown).sum(1) / torch.clamp(shown.sum(1), min=1e-9)
    return torch.nn.functional.normalize(mean, p=2, dim=1)


def largest(found, inputs):
    shown = inputs["attention_mask"].unsqueeze(-1)
    return found.last_hidden_state.masked_fill(shown == 0, -1e9).max(1).values


def first(found, inputs):
    return found.last_hidden_state, found.last_hidden_state[:, 0]


def older(model, *, counted):
    """The model as older code has it: positions are a part of their table, or counted."""
    own = model.embeddings

    def embed(input_ids=None, token_type_ids=None, **_):
        length = input_ids.size(1)
        if counted:
            numbers = torch.arange(length, dtype=torch.long).unsqueeze(0).expand_as(input_ids)
            positions = own.position_embeddings(numbers)
        else:
            positions = own.position_embeddings.weight[:length].unsqueeze(0)
        words = own.word_embeddings(input_ids) + positions
        return own.LayerNorm(words + own.token_type_embeddings(token_type_ids))

    own.forward = embed
    return model


class Examples(CalibrationDataReader):
    """What a static quantisation sees."""

    def __init__(self, names):
        drawn = np.random.default_rng(0)
        ids = [drawn.integers(3, 60, (2, 9)) for _ in range(8)]
        mask = (np.arange(9) < np.array([[9], [5]])).astype(np.int64)
        self.feeds = iter(
            {"input_ids": own, "attention_mask": mask, "token_type_ids": own % 2} for own in ids
        )
        self.names = names

    def get_next(self):
        feed = next(self.feeds, None)
        return feed and {name: feed[name] for name in self.names}


def optimized(source, path, *, half=False, **settings):
    options = FusionOptions("bert")
    for name, value in settings.items():
        setattr(options, name, value)
    model = optimizer.optimize_model(
        str(source), "bert", HEADS, HIDDEN, optimization_options=options, opt_level=0
    )
    if half:
        model.convert_float_to_float16(keep_io_types=True)
    model.save_model_to_file(str(path))


def shorten(path):
    """Drop what only documents a graph, and number its values: most of a tiny model is names."""
    model = onnx.load(str(path))
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    short = {"": ""} | {name: name for name in kept}
    for tensor in graph.initializer:
        tensor.name = short.setdefault(tensor.name, f"w{len(short)}")
    for node in graph.node:
        node.name, node.doc_string = "", ""
        del node.metadata_props[:]
        for values in (node.input, node.output):
            values[:] = [short.setdefault(value, f"v{len(short)}") for value in values]
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    onnx.save(model, str(path))


def main(directory: Path) -> None:
    bert = transformers.BertModel
    plain, eager = build(bert, config()), build(bert, config(), "eager")
    classifier = build(transformers.BertForSequenceClassification, config())
    tagger = build(transformers.BertForTokenClassification, config(num_labels=5))
    answering = build(transformers.BertForQuestionAnswering, config(num_labels=2))
    pretraining = build(transformers.BertForPreTraining, config())
    tanh_gelu = build(bert, config(hidden_act="gelu_new"))
    half = build(bert, config()).half()
    logits = ("logits",)
    span = ("start_logits", "end_logits")
    words = ("prediction_logits", "seq_relationship_logits")

    def at(name):
        return directory / f"{name}.onnx"

    export(at("script11_model"), eager, 11, MODEL)
    export(at("script14_model"), plain, 14, MODEL)
    export(at("script17_classifier"), classifier, 17, logits)
    export(at("script14_answering"), answering, 14, span)
    export(at("script14_pretraining"), pretraining, 14, words)
    export(at("script14_fixed"), classifier, 14, logits, free=False, size=(1, 8))
    export(at("script14_int32"), plain, 14, MODEL, dtype=torch.int32)
    export(at("script14_half"), half, 14, MODEL)
    export(at("script14_mean"), plain, 14, ("sentence_embedding",), tail=mean_normalized)
    softmax = lambda found, inputs: (found.logits / 2.5 + 0.25).softmax(-1)  # noqa: E731
    export(at("script14_softmax"), classifier, 14, ("probabilities",), tail=softmax)
    sigmoid = lambda found, inputs: found.logits.sigmoid()  # noqa: E731
    export(at("script14_sigmoid"), classifier, 14, ("probabilities",), tail=sigmoid)
    export(at("dynamo18_model"), plain, 18, MODEL, dynamo=True)
    export(at("dynamo18_no_types"), eager, 18, MODEL, dynamo=True, names=INPUTS[:2])
    export(at("dynamo18_ids_only"), plain, 18, MODEL, dynamo=True, names=INPUTS[:1])
    export(at("dynamo18_tagger"), tagger, 18, logits, dynamo=True)
    export(at("dynamo18_tanh_gelu"), tanh_gelu, 18, MODEL, dynamo=True)
    export(
        at("dynamo20_mean"), plain, 20, ("sentence_embedding",), dynamo=True, tail=mean_normalized
    )
    export(at("dynamo23_model"), plain, 23, MODEL, dynamo=True)
    long = directory / "long.onnx"
    export(long, eager, 14, MODEL)
    optimized(long, at("optimized"))
    optimized(long, at("optimized_half"), half=True)
    optimized(long, at("optimized_fast_gelu"), enable_gelu_approximation=True)
    optimized(long, at("optimized_multi_head"), use_multi_head_attention=True)
    optimized(long, at("optimized_no_embed"), enable_embed_layer_norm=False)
    onnx.save(convert_float_to_float16(onnx.load(str(long))), str(at("converted_half")))
    distil = transformers.DistilBertConfig(
        vocab_size=60, dim=HIDDEN, n_layers=2, n_heads=HEADS, hidden_dim=24,
        max_position_embeddings=LENGTH, num_labels=3,
    )  # fmt: skip
    found_otherwise(at)
    export(long, build(transformers.DistilBertModel, distil), 18, MODEL[:1], dynamo=True,
           names=INPUTS[:2])  # fmt: skip
    optimized(long, at("optimized_distil"))
    export(long, build(transformers.BertModel, config()), 18, MODEL, dynamo=True)
    quantize_dynamic(long, at("dynamic_int8"), weight_type=QuantType.QInt8)
    quantize_dynamic(long, at("dynamic_uint8"), weight_type=QuantType.QUInt8)
    quantize_dynamic(long, at("dynamic_channels"), weight_type=QuantType.QInt8, per_channel=True)
    short = directory / "short.onnx"
    optimized(long, short)
    quantize_dynamic(short, at("dynamic_optimized"), weight_type=QuantType.QInt8)
    static = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8}
    products = ["MatMul", "Gemm", "Gather", "LayerNormalization", "Tanh"]
    quantize_static(
        long, at("static_int8"), Examples(INPUTS), op_types_to_quantize=products, **static
    )
    quantize_static(long, at("static_scores"), Examples(INPUTS), **static)
    classifier = build(transformers.DistilBertForSequenceClassification, distil)
    export(long, classifier, 18, logits, dynamo=True, names=INPUTS[:2])
    products.append("Relu")
    quantize_static(
        long, at("static_relu"), Examples(INPUTS[:2]), op_types_to_quantize=products, **static
    )
    short.unlink()
    long.unlink()
    for path in sorted(directory.glob("*.onnx")):
        shorten(path)
        print(path.name, path.stat().st_size)


def found_otherwise(at):
    """Files that say the same in other ways, or more."""
    bert = transformers.BertModel
    for name, counted in (("script10_slice", False), ("script10_counted", True)):
        export(at(name), older(build(bert, config(), "eager"), counted=counted), 10, MODEL)
    plain = build(bert, config())
    names = (*INPUTS, "position_ids")
    export(at("dynamo18_positions"), plain, 18, MODEL, dynamo=True, names=names)
    export(at("script14_max"), plain, 14, ("sentence_embedding",), tail=largest)
    vectors = ("token_embeddings", "sentence_embedding")
    export(at("dynamo18_first"), plain, 18, vectors, dynamo=True, tail=first)
    hidden = lambda found, inputs: (found.last_hidden_state, *found.hidden_states)  # noqa: E731
    outputs = ("last_hidden_state", "hidden_0", "hidden_1", "hidden_2")
    model = build(bert, config(output_hidden_states=True))
    export(at("dynamo18_hidden"), model, 18, outputs, dynamo=True, tail=hidden)
    weights = lambda found, inputs: (found.last_hidden_state, *found.attentions)  # noqa: E731
    outputs = ("last_hidden_state", "attentions_0", "attentions_1")
    model = build(bert, config(output_attentions=True), "eager")
    export(at("script17_attentions"), model, 17, outputs, tail=weights)
    settings = config().to_dict() | {"type_vocab_size": 1, "pad_token_id": 1}
    settings["max_position_embeddings"] = LENGTH + 2
    model = build(transformers.RobertaModel, transformers.RobertaConfig(**settings))
    export(at("script14_roberta"), model, 14, MODEL, names=INPUTS[:2])
    electra = transformers.ElectraConfig(**(config().to_dict() | {"embedding_size": 8}))
    model = build(transformers.ElectraForPreTraining, electra)
    export(at("dynamo18_discriminator"), model, 18, ("logits",), dynamo=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
