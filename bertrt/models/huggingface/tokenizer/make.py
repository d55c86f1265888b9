"""The tokenizer of a Hugging Face directory: the one place that decides its ids.

`find_class` knows the class, `read_settings` says what the files come to, `build` makes what the
class makes of it; here are the longest text and what a sentence-transformers file adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from bertrt.errors import ModelFormatError
from bertrt.host.files import is_there, read_object
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.sentence_transformers import SENTENCE_CONFIGS
from bertrt.models.huggingface.tokenizer.classes import build, find_class
from bertrt.models.huggingface.tokenizer.settings import (
    CONFIG,
    Settings,
    read_config,
    read_settings,
)
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules

__all__ = ["make_tokenizer"]


def make_tokenizer(directory: Path, config: Config) -> HuggingFaceTokenizer:
    """The tokenizer of the directory with this ``config.json``.

    Raises MissingFileError without its files, ModelFormatError for broken ones and for a vocabulary
    that does not fit the model, UnsupportedModelError for a class, a file or a setting that is not
    supported.
    """
    path = next((path for name in SENTENCE_CONFIGS if is_there(path := directory / name)), None)
    sentence = read_object(path) if path is not None else {}
    arguments: dict[str, Any] = {}
    for name in ("processor_kwargs", "tokenizer_args"):  # the newer name and the older
        found = sentence.get(name) or {}
        if not isinstance(found, dict):
            raise ModelFormatError(f"{path}: {name} should be an object, found {found!r}")
        arguments |= found
    said = read_config(directory)
    named = said.get("tokenizer_class") or config.content.get("tokenizer_class")
    kind = find_class(directory / CONFIG, named, _model_type(config))
    settings = read_settings(directory, said, arguments)
    built = build(kind, settings)
    if sentence.get("do_lower_case"):
        _lower_first(built.tokenizer)
    tokenizer = HuggingFaceTokenizer(
        built.tokenizer,
        max_length=_max_length(directory, config, sentence, settings),
        rules=Rules(
            built.mask,
            built.types,
            built.truncation_side,
            settings.values.get("split_special_tokens", False),
            # Positions are counted over what is not padding, wherever it stands.
            config.first_position - 1 if config.family.padded_positions else None,
        ),
    )
    return tokenizer


def _max_length(
    directory: Path, config: Config, sentence: Mapping[str, Any], settings: Settings
) -> int:
    """The most tokens of a sequence: the positions of the model, or what a file says below that."""
    limit = config.max_length
    values = settings.values
    said = [
        (values.get("model_max_length", values.get("max_len")), "model_max_length"),
        (sentence.get("max_seq_length"), "max_seq_length"),
    ]
    if "model_max_length" not in settings.arguments:
        said.reverse()
    for value, name in said:
        if value is not None:
            if (
                not isinstance(value, (int, float))
                or isinstance(value, bool)
                or not 3 <= value < math.inf
            ):
                raise ModelFormatError(
                    f"{directory}: {name} should be a whole number from 3, found {value!r}"
                )
            limit = min(limit, int(value))
            break
    if limit < 3:
        raise ModelFormatError(
            f"{config.path}: max_position_embeddings is "
            f"{config.count('max_position_embeddings')}, which is enough for {limit} tokens; "
            "at least 3 are needed, for [CLS], a token and [SEP]"
        )
    return limit


def _model_type(config: Config) -> str:
    """The model's kind, which a file without `model_type` shows by the name of the class."""
    said = config.content.get("model_type")
    architecture = config.architecture or "Bert"
    begins = config.family.model_types.items()
    return str(said or next(kind for kind, begin in begins if architecture.startswith(begin)))


def _lower_first(tokenizer: Tokenizer) -> None:
    """Lower-case before all else, as sentence-transformers does where its file says so and no step
    does that by itself. (Of BERT's own step it does not know that it may.)"""
    normalizer = tokenizer.normalizer
    steps: list[Any] = []
    if isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[index] for index in range(len(normalizer))]
    elif normalizer is not None:
        steps = [normalizer]
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
