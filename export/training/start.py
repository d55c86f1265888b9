"""Where fine-tuning starts from: a classifier over pretrained weights, and its tokenizer."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, UnsupportedModelError
from bertrt.host.paths import check_path
from bertrt.host.writing import temporary_directory
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.text.encoding import Tokenizer
from bertrt.text.load import load_tokenizer

from ..gluon_to_symbol import import_gluon, set_parameters, structural_parameters
from ..huggingface import bert_arrays, gluon_bert, is_bert
from ..model import TokenizerFile
from ..zoo import MODELS, Pretrained, open_pretrained
from .recipe import DROPOUT

__all__ = ["Start", "open_start"]

# As in finetune_classifier.py.
_HEAD_SIGMA = 0.02


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What a run starts from.

    Attributes:
        net: a ``BERTClassifier`` or ``RoBERTaClassifier`` with a new head, initialised.
        tokenizer: for the training data.
        tokenizer_file: the same, on its way into the bundle.
        origin: where the weights come from, for the bundle's manifest.
    """

    net: Any
    tokenizer: Tokenizer
    tokenizer_file: TokenizerFile
    origin: dict[str, Any]


def open_start(
    model: str | os.PathLike[str],
    *,
    classes: int,
    max_length: int,
    seed: int,
    dataset: str | None = None,
    params: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    merges: str | os.PathLike[str] | None = None,
) -> Start:
    """Open what `bertrt.export.training.finetune` is given as its model.

    Raises what that function tells.
    """
    _, gluonnlp = import_gluon()
    named = {"--dataset": dataset, "--params": params, "--vocab": vocab, "--merges": merges}
    if str(model) in MODELS:
        if dataset is None:
            raise InvalidInputError(
                f"--dataset is missing: the zoo has {model} for several, such as "
                "book_corpus_wiki_en_uncased"
            )
        found = open_pretrained(
            str(model), dataset, params=params, vocab=vocab, merges=merges, max_length=max_length
        )
    else:
        if given := [name for name, value in named.items() if value is not None]:
            raise InvalidInputError(
                f"{', '.join(given)}: for a model of the zoo ({', '.join(MODELS)}), and {model} "
                "is none"
            )
        found = _open_huggingface(check_path("model", model), max_length)
    bert = found.net
    positions = bert.encoder._max_length
    if max_length > positions:
        raise InvalidInputError(f"max_length is {max_length}; {model} has {positions} positions")
    prefix, kind = "bert.", gluonnlp.model.BERTClassifier
    if not bert._use_pooler:
        prefix, kind = "roberta.", gluonnlp.model.RoBERTaClassifier
    net = kind(bert, num_classes=classes, dropout=DROPOUT)
    arrays = {prefix + name: array for name, array in found.arrays.items()}
    random = np.random.default_rng(seed)
    for name, parameter in structural_parameters(net).items():
        # The head is new, and so is a pooler where the weights bring none.
        if name not in arrays and name.startswith(("classifier.", f"{prefix}pooler.")):
            shape = tuple(size or bert._units for size in parameter.shape)
            drawn = random.normal(0, _HEAD_SIGMA, shape).astype(np.float32)
            arrays[name] = drawn if name.endswith("weight") else np.zeros(shape, np.float32)
    set_parameters(net, arrays, str(found.source))
    return Start(net, _open_tokenizer(found.tokenizer), found.tokenizer, found.origin)


def _open_huggingface(path: Path, max_length: int) -> Pretrained:
    model = HuggingFaceModel.open(path)
    if "embedding" in model.config.tasks:
        model = HuggingFaceModel.open(path, "embedding")
    if not is_bert(model):
        raise UnsupportedModelError(
            f"{path} is a {model.config.architecture}; fine-tuning takes Hugging Face's BERTs"
        )
    tokenizer = dataclasses.replace(TokenizerFile.of(model.tokenizer), max_length=max_length)
    return Pretrained(
        gluon_bert(model, pooler=True, dropout=DROPOUT),
        bert_arrays(model),
        model.source,
        tokenizer,
        model.origin,
    )


def _open_tokenizer(file: TokenizerFile) -> Tokenizer:
    """The tokenizer as the bundle's own reader will make it."""
    with temporary_directory() as directory:
        settings = file.write(directory)
        return load_tokenizer(settings, directory)
