"""From a Hugging Face BERT directory to a Gluon net, and so to a bundle.

What Hugging Face stores is the same network under other names: `bertrt.huggingface` reads it and
refuses what the runtime lacks, and the conversion renames the weights.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from bertrt.graph.read_huggingface import WEIGHTS
from bertrt.huggingface import HuggingFaceModel

from .gluon_to_symbol import import_gluon, set_parameters
from .model import TokenizerFile, write_bundle

__all__ = ["import_huggingface", "to_gluon"]

# The plan's names of the activations, and GluonNLP's.
_ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "approx_gelu", "relu": "relu"}

# Hugging Face's names as patterns, and GluonNLP's.
_RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"embeddings\.word_embeddings\.", "word_embed.0."),
        (r"embeddings\.token_type_embeddings\.", "token_type_embed.0."),
        (r"embeddings\.position_embeddings\.", "encoder.position_"),
        (r"embeddings\.LayerNorm\.", "encoder.layer_norm."),
        (r"encoder\.layer\.(\d+)\.", r"encoder.transformer_cells.\1."),
        (r"attention\.self\.(query|key|value)\.", r"attention_cell.proj_\1."),
        (r"attention\.output\.dense\.", "proj."),
        (r"attention\.output\.LayerNorm\.", "layer_norm."),
        (r"intermediate\.dense\.", "ffn.ffn_1."),
        (r"output\.dense\.", "ffn.ffn_2."),
        (r"output\.LayerNorm\.", "ffn.layer_norm."),
        (r"pooler\.dense\.", "pooler."),
        (r"layer_norm\.weight", "layer_norm.gamma"),
        (r"layer_norm\.bias", "layer_norm.beta"),
    )
)


def import_huggingface(
    path: str | os.PathLike[str], out: str | os.PathLike[str], task: str | None = None
) -> Path:
    """Convert a Hugging Face or sentence-transformers directory to a bundle.

    Args:
        path: a directory that `bertrt.huggingface.HuggingFaceModel.open` takes.
        out: where the bundle goes; nothing may be there yet.
        task: the task that the model is expected to have; found in the directory if left out.

    Returns:
        The path of the bundle.

    Raises:
        MissingFileError: the directory or one of its files is not there.
        ModelFormatError: a file is broken, or the weights do not fit the configuration.
        UnsupportedModelError: the model has a setting or a part that the runtime does not have.
        InvalidInputError: the model is not for `task`.
        OutputExistsError: `out` exists.
        MissingDependencyError: mxnet, gluonnlp or onnx is not installed.
        BertrtError: the finished bundle gives other numbers than the net; it is not kept.
    """
    model = HuggingFaceModel.open(path, task)
    tokenizer = model.tokenizer
    return write_bundle(
        to_gluon(model),
        out,
        tokenizer=TokenizerFile(
            "huggingface",
            tokenizer.to_json(),
            tokenizer.lower,
            tokenizer.max_length,
            tokenizer.vocab_size,
        ),
        task=model.task,
        labels=model.labels,
        pooling=model.pooling,
        origin=model.origin,
    )


def to_gluon(model: HuggingFaceModel) -> Any:
    """The GluonNLP ``BERTModel`` or ``BERTClassifier`` with a model's weights.

    Raises:
        ModelFormatError: a weight holds numbers that are not finite.
        MissingDependencyError: mxnet or gluonnlp is not installed.
    """
    _, gluonnlp = import_gluon()
    bert, config = gluonnlp.model.bert, model.config
    units = config.count("hidden_size")
    encoder = bert.BERTEncoder(
        num_layers=config.count("num_hidden_layers"),
        units=units,
        hidden_size=config.count("intermediate_size"),
        max_length=config.count("max_position_embeddings"),
        num_heads=config.count("num_attention_heads"),
        dropout=0.0,
        activation=_ACTIVATIONS[config.activation],
        layer_norm_eps=config.layer_norm_eps,
    )
    net = bert.BERTModel(
        encoder,
        vocab_size=config.count("vocab_size"),
        token_type_vocab_size=config.count("type_vocab_size"),
        units=units,
        embed_size=units,
        use_pooler="pooler.dense.weight" in model.plan.weights,
        use_decoder=False,
        use_classifier=False,
    )
    prefix = ""
    if model.task != "embedding":
        net, prefix = (
            bert.BERTClassifier(net, num_classes=config.count("num_labels"), dropout=0.0),
            "bert.",
        )
    arrays = {
        _rename(name, prefix): constant.array for name, constant in model.plan.weights.items()
    }
    set_parameters(net, arrays, str(config.path.with_name(WEIGHTS)))
    return net


def _rename(name: str, prefix: str) -> str:
    if name.startswith("classifier."):
        return name.replace("classifier.", "classifier.0.")
    for pattern, target in _RENAMES:
        name = pattern.sub(target, name)
    return prefix + name
