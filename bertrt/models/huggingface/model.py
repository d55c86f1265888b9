"""A Hugging Face or sentence-transformers directory, read without any of their packages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertrt.errors import (
    BertrtWarning,
    InvalidInputError,
    MissingFileError,
    UnsupportedModelError,
)
from bertrt.host.paths import check_path
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.plan import read_plan
from bertrt.models.huggingface.sentence_transformers import find_encoder
from bertrt.models.huggingface.tokenizer import make_tokenizer
from bertrt.models.huggingface.weights import find_weights, read_weights
from bertrt.models.manifest import MANIFEST
from bertrt.plan.plan import Plan
from bertrt.tasks.settings import LABELLED, TASKS, complete_settings
from bertrt.text.huggingface import HuggingFaceTokenizer

__all__ = ["HuggingFaceModel", "is_huggingface"]


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
        config: its ``config.json``.
        source: the file that holds or lists its weights.
        plan: the fused plan, its weights mapped where they are float32.
        task: what the model is for.
        labels: the names of the classes or tags; None for the tasks without them.
        pooling: ``{"mode": ..., "normalize": ...}`` for embeddings, None otherwise.
        settings: what is set for the task, see `bertrt.tasks.settings`; the defaults.
        tokenizer: the tokenizer, with Hugging Face's rules.
        origin: what is known about where the model comes from.
    """

    config: Config
    source: Path
    plan: Plan
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    settings: dict[str, Any]
    tokenizer: HuggingFaceTokenizer
    origin: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike[str], task: str | None = None) -> HuggingFaceModel:
        """Open a directory with a ``config.json``, with weights in ``model.safetensors``, in
        ``pytorch_model.bin``, or in the shards of an index of either, and with a
        ``tokenizer.json``, a
        ``vocab.txt``, or a ``vocab.json`` with ``merges.txt``; or one with the ``modules.json`` of
        sentence-transformers, whose pooling and normalisation come along.

        Args:
            path: the directory.
            task: which of its tasks a model with heads of pretraining is wanted for: such a one
                makes embeddings too. Its own task, the first of `Config.tasks`, if left out, and
                "embedding" where the directory brings a pooling.

        Raises:
            MissingFileError: the directory or one of its files is not there.
            ModelFormatError: a file is broken, or the weights do not fit the configuration.
            UnsupportedModelError: the model has a setting or a part that the runtime does not have.
            InvalidInputError: the model is not for `task`.
        """
        root = check_path("path", path)
        if not root.is_dir():
            raise MissingFileError(
                f"{root} is no directory; a Hugging Face model directory is wanted"
            )
        directory, pooling = find_encoder(root)
        if not (directory / "config.json").exists():
            bundle = (root / MANIFEST).is_file()
            raise MissingFileError(
                f"{directory / 'config.json'} does not exist: {root} is "
                + ("a bundle already" if bundle else "no Hugging Face model directory")
            )
        if (adapter := directory / "adapter_config.json").exists():
            raise UnsupportedModelError(
                f"{adapter}: adapters are not supported: merge it into the model and save that"
            )
        config = Config.read(directory / "config.json")
        source = find_weights(directory)
        tensors = read_weights(source, config.family.prefix)
        if config.head != "Model" and pooling is None and _without_head(config, tensors):
            warnings.warn(
                f"{source} holds an encoder and nothing else, and {config.path.name} names the "
                f"architecture {config.architecture}: it is taken for embeddings",
                BertrtWarning,
                stacklevel=2,
            )
            config = config.without_head()
        # What pools takes the encoder of whatever there is.
        tasks = config.tasks if pooling is None else ("embedding",)
        if task is not None and task not in tasks:
            raise InvalidInputError(
                f"{path} holds a model for {', '.join(tasks)}; "
                f"it cannot be taken for the task {task!r}"
                + ("" if task in TASKS else f" (tasks are {', '.join(TASKS)})")
            )
        task = task or tasks[0]
        plan, left_out = read_plan(config, source, tensors, task)
        if task == "embedding" and pooling is None:
            pooling = {"mode": "mean", "normalize": False}
        tokenizer = make_tokenizer(directory, config)
        given = {"activation": config.scores} if task == "classification" else None
        return cls(
            config,
            source,
            plan,
            task,
            config.labels if task in LABELLED else None,
            pooling,
            complete_settings(given, task, tokenizer.max_length),
            tokenizer,
            {
                "framework": "huggingface",
                "model": str(config.content.get("_name_or_path") or root.resolve().name),
                "architecture": config.architecture,
                "left_out": left_out,
            },
        )


def _without_head(config: Config, tensors: Collection[str]) -> bool:
    """Whether tensors are an encoder's and nobody else's."""
    layers = config.family.layer.prefix.partition(".")[0]
    encoder = ("embeddings.", "embeddings_project.", f"{layers}.", "pooler.")
    return bool(tensors) and all(name.startswith(encoder) for name in tensors)


def is_huggingface(directory: Path) -> bool:
    """Whether a directory looks like one of Hugging Face's."""
    return any((directory / name).is_file() for name in ("config.json", "modules.json"))
