"""From a Hugging Face directory to a bundle.

`bertrt.models.huggingface.model` reads the directory and refuses what the runtime lacks. Where
GluonNLP has the same network, its weights go under Gluon's names, and the bundle has the graphs and
the golden outputs of a net from there. For everything else, and where MXNet is not installed, the
bundle is the plan with its weights, and the golden outputs are those of the plan in double
precision.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingDependencyError
from bertrt.models.bundle import write_plan, writing
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.huggingface.weights import WEIGHTS
from bertrt.models.safetensors import write_safetensors
from bertrt.models.settings import with_settings
from bertrt.plan.interpret import interpret

from .gluon_to_symbol import import_gluon, set_parameters
from .golden import record_golden
from .model import TokenizerFile, seal, write_bundle

__all__ = ["bert_arrays", "gluon_bert", "import_huggingface", "is_bert", "to_gluon"]

_GLUON_TASKS = ("embedding", "classification", "regression")

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
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Convert a Hugging Face or sentence-transformers directory to a bundle.

    Args:
        path: a directory that `bertrt.models.huggingface.model.HuggingFaceModel.open` takes.
        out: where the bundle goes; nothing may be there yet.
        task: the task that the model is wanted for, where it has several (`Config.tasks`); its own
            if left out.
        settings: what goes before the model's own settings; see `bertrt.Engine.load`.

    Returns:
        The path of the bundle. The manifest's ``origin.golden`` says where its golden outputs come
        from.

    Raises:
        MissingFileError: the directory or one of its files is not there.
        ModelFormatError: a file is broken, or the weights do not fit the configuration.
        UnsupportedModelError: the model has a setting or a part that the runtime does not have.
        InvalidInputError, InvalidTypeError: the model is not for `task`; a setting that it does not
            have, or a value that this cannot have.
        OutputExistsError: `out` exists.
        MissingDependencyError: mxnet and gluonnlp are installed, and onnx is not.
        WriteError: the system refuses a file; there is nothing at `out`.
        BertrtError: the finished bundle gives other numbers than the golden ones; it is not kept.
    """
    model = with_settings(HuggingFaceModel.open(path, task), settings)
    tokenizer = TokenizerFile.of(model.tokenizer)
    if _in_gluon(model):
        return write_bundle(
            to_gluon(model),
            out,
            tokenizer=tokenizer,
            task=model.task,
            labels=model.labels,
            pooling=model.pooling,
            modules=model.modules,
            settings=model.settings,
            origin=model.origin | {"golden": "mxnet"},
        )
    with writing(out) as draft:
        weights = {name: constant.array for name, constant in model.plan.weights.items()}
        placed = write_safetensors(draft.directory / WEIGHTS, weights)
        plan = dataclasses.replace(model.plan, weights=placed)
        write_plan(plan, draft.directory)
        golden = record_golden(
            functools.partial(interpret, plan),
            plan.architecture,
            masked=plan.inputs["masked_positions"] is not None,
        )
        seal(
            draft,
            plan,
            tokenizer=tokenizer,
            task=model.task,
            labels=model.labels,
            pooling=model.pooling,
            modules=model.modules,
            settings=model.settings,
            origin=model.origin | {"golden": "the plan in double precision"},
            golden=golden,
        )
    return Path(out)


def _in_gluon(model: HuggingFaceModel) -> bool:
    """Whether GluonNLP has the network of a model, and is installed."""
    if not is_bert(model) or model.task not in _GLUON_TASKS:
        return False
    # An export from there wants names that tell the classes apart.
    if model.labels is not None and len(set(model.labels) - {""}) < len(model.labels):
        return False
    try:
        import_gluon()
    except MissingDependencyError:
        return False
    return True


def is_bert(model: HuggingFaceModel) -> bool:
    """Whether a model's encoder is GluonNLP's ``BERTModel``."""
    return "bert" in model.config.family.model_types


def to_gluon(model: HuggingFaceModel) -> Any:
    """The GluonNLP ``BERTModel`` or ``BERTClassifier`` with a model's weights.

    Raises:
        ModelFormatError: a weight holds numbers that are not finite.
        MissingDependencyError: mxnet or gluonnlp is not installed.
    """
    _, gluonnlp = import_gluon()
    net = gluon_bert(model, pooler="pooler.dense.weight" in model.plan.weights)
    prefix = ""
    if model.task != "embedding":
        classes = model.config.count("num_labels")
        net = gluonnlp.model.BERTClassifier(net, num_classes=classes, dropout=0.0)
        prefix = "bert."
    arrays = {
        _rename(name, prefix): constant.array for name, constant in model.plan.weights.items()
    }
    set_parameters(net, arrays, str(model.source))
    return net


def gluon_bert(model: HuggingFaceModel, *, pooler: bool, dropout: float = 0.0) -> Any:
    """A GluonNLP ``BERTModel`` of a model's sizes, without weights yet."""
    _, gluonnlp = import_gluon()
    bert, config = gluonnlp.model.bert, model.config
    units = config.count("hidden_size")
    encoder = bert.BERTEncoder(
        num_layers=config.count("num_hidden_layers"),
        units=units,
        hidden_size=config.count("intermediate_size"),
        max_length=config.count("max_position_embeddings"),
        num_heads=config.count("num_attention_heads"),
        dropout=dropout,
        activation=_ACTIVATIONS[config.activation],
        layer_norm_eps=config.layer_norm_eps,
    )
    return bert.BERTModel(
        encoder,
        vocab_size=config.count("vocab_size"),
        token_type_vocab_size=config.count("type_vocab_size"),
        units=units,
        embed_size=units,
        use_pooler=pooler,
        use_decoder=False,
        use_classifier=False,
    )


def bert_arrays(model: HuggingFaceModel) -> dict[str, np.ndarray]:
    """The weights of a model's encoder, and of its pooler if it has one, by the names of
    :func:`gluon_bert`."""
    return {
        _rename(name, ""): constant.array
        for name, constant in model.plan.weights.items()
        if name.startswith(("embeddings.", "encoder.", "pooler."))
    }


def _rename(name: str, prefix: str) -> str:
    if name.startswith("classifier."):
        return name.replace("classifier.", "classifier.0.")
    for pattern, target in _RENAMES:
        name = pattern.sub(target, name)
    return prefix + name
