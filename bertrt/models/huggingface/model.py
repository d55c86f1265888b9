"""A Hugging Face or sentence-transformers directory, read without any of their packages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertrt.errors import (
    BertrtWarning,
    InvalidInputError,
    MissingFileError,
    UnsupportedModelError,
)
from bertrt.host.files import is_there
from bertrt.host.paths import check_path
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.graph import answerable, check_scores, fitted, pooling_of
from bertrt.models.huggingface.plan import read_plan
from bertrt.models.huggingface.sentence_transformers import (
    classifier_activation,
    read_sentence_model,
)
from bertrt.models.huggingface.tokenizer.make import make_tokenizer
from bertrt.models.huggingface.weights import find_weights, read_weights
from bertrt.models.manifest import MANIFEST
from bertrt.plan.plan import Plan
from bertrt.plan.weights import Constant
from bertrt.tasks.embedding import pooled_width
from bertrt.tasks.modules import Module, output_width
from bertrt.tasks.settings import HUGGINGFACE, LABELLED, TASKS, complete_settings
from bertrt.text.huggingface import HuggingFaceTokenizer

__all__ = ["HuggingFaceModel", "is_huggingface"]


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a directory holds.

    Attributes:
        config: its ``config.json``.
        source: the file that holds or lists its weights; `config` itself where they are a graph's.
        plan: the fused plan; its weights are read when they are asked for where they are float32.
        task: what the model is for.
        labels: the names of the classes or tags; None for the tasks without them.
        pooling: for embeddings, see `bertrt.tasks.settings`; None otherwise.
        modules: what comes behind the pooling.
        settings: what is set for the task, see `bertrt.tasks.settings`; the rules of such models.
        tokenizer: the tokenizer, with Hugging Face's rules.
        origin: what is known about where the model comes from.
    """

    config: Config
    source: Path
    plan: Plan
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    modules: tuple[Module, ...]
    settings: dict[str, Any]
    tokenizer: HuggingFaceTokenizer
    origin: dict[str, Any]

    @property
    def rows(self) -> Mapping[str, str]:
        """What each output has a row for, as the plan says."""
        return self.plan.rows

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Hidden size, layers and so on, as the plan holds them."""
        return self.plan.architecture

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], task: str | None = None, graph: Plan | None = None
    ) -> HuggingFaceModel:
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
            graph: the plan of a graph that has the weights, so that the directory needs none.

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
        sentence = read_sentence_model(root)
        directory, pooling = sentence.encoder, sentence.pooling
        if not is_there(directory / "config.json"):
            bundle = (root / MANIFEST).is_file()
            raise MissingFileError(
                f"{directory / 'config.json'} does not exist: {root} is "
                + ("a bundle already" if bundle else "no Hugging Face model directory")
            )
        if is_there(adapter := directory / "adapter_config.json"):
            raise UnsupportedModelError(
                f"{adapter}: adapters are not supported: merge it into the model and save that"
            )
        config = Config.read(directory / "config.json")
        source = config.path
        tensors: dict[str, Constant] = {}
        if graph is not None:
            config, graph = fitted(config, graph)
            tasks = answerable(config, graph)
            if pooling is not None and "embedding" not in tasks:
                raise UnsupportedModelError(
                    f"{root} has a pooling on top of a model for {tasks[0]}, {config.architecture}"
                )
        else:
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
            tasks = config.tasks
        # What pools takes the encoder of whatever there is.
        if pooling is not None:
            tasks = ("embedding",)
        settings, activation, modules = dict(sentence.prompts), "", sentence.modules
        if pooling is None and config.head == "ForSequenceClassification":
            classes = config.count("num_labels")
            activation, cross_encoder = classifier_activation(
                sentence, config.content, config.path, classes
            )
            if cross_encoder and classes == 1:  # a score, whatever it was trained as
                tasks = ("regression",)
        elif sentence.cross_encoder:
            raise UnsupportedModelError(
                f"{root} is a CrossEncoder, which classifies sequences, on top of a model for "
                f"{tasks[0]}, {config.architecture}"
            )
        if task is not None and task not in tasks:
            raise InvalidInputError(
                f"{path} holds a model for {', '.join(tasks)}; "
                f"it cannot be taken for the task {task!r}"
                + ("" if task in TASKS else f" (tasks are {', '.join(TASKS)})")
            )
        task = task or tasks[0]
        if task in ("classification", "regression"):
            settings["activation"] = activation
            if graph is not None and "logits" not in graph.outputs:
                check_scores(graph, activation)
                del settings["activation"]  # there is nothing left to make scores of
        if graph is not None:
            plan, left_out = graph, list[str]()
            if task == "embedding":
                pooling = pooling_of(graph, pooling, modules)
                if pooling is not None and pooling["mode"] == "pooled":
                    modules = ()  # the graph has them
        else:
            plan, left_out = read_plan(config, source, tensors, task)
        if task == "embedding" and pooling is None:
            pooling = {"mode": "mean", "normalize": False}
        if pooling is not None and task == "embedding":
            width = pooled_width(pooling, plan.architecture["hidden"])
            output_width(modules, width, str(root))
        tokenizer = make_tokenizer(directory, config)
        return cls(
            config,
            source,
            plan,
            task,
            config.labels if task in LABELLED else None,
            pooling,
            modules,
            complete_settings(HUGGINGFACE.get(task, {}) | settings, task, tokenizer.max_length),
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
