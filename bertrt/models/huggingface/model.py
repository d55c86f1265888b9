"""A Hugging Face or sentence-transformers directory, read without any of their packages."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertrt.errors import InvalidInputError, MissingFileError, UnsupportedModelError
from bertrt.host.paths import check_path
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.graph import answerable, fitted, pooling_of
from bertrt.models.huggingface.plan import read_plan
from bertrt.models.huggingface.sentence_transformers import find_encoder
from bertrt.models.huggingface.tokenizer import make_tokenizer
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
        plan: the fused plan, its weights mapped where they are float32.
        task: what the model is for.
        labels: the names of the classes or tags; None for the tasks without them.
        pooling: ``{"mode": ..., "normalize": ...}`` for embeddings, None otherwise.
        settings: what is set for the task, see `bertrt.tasks.settings`; the defaults.
        tokenizer: the tokenizer, with Hugging Face's rules.
        origin: what is known about where the model comes from.
    """

    config: Config
    plan: Plan
    task: str
    labels: list[str] | None
    pooling: dict[str, Any] | None
    settings: dict[str, Any]
    tokenizer: HuggingFaceTokenizer
    origin: dict[str, Any]

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], task: str | None = None, graph: Plan | None = None
    ) -> HuggingFaceModel:
        """Open a directory with a ``config.json``, with weights in ``model.safetensors`` or in the
        shards of a ``model.safetensors.index.json``, and with a ``tokenizer.json``, a
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
        tasks = config.tasks
        if graph is not None:
            config, graph = fitted(config, graph)
            tasks = answerable(config, graph)
        if pooling is not None:
            if "embedding" not in tasks:
                raise UnsupportedModelError(
                    f"{root} has a pooling on top of a model for {tasks[0]}, {config.architecture}"
                )
            tasks = ("embedding",)
        if task is not None and task not in tasks:
            raise InvalidInputError(
                f"{path} holds a model for {', '.join(tasks)}; "
                f"it cannot be taken for the task {task!r}"
                + ("" if task in TASKS else f" (tasks are {', '.join(TASKS)})")
            )
        task = task or tasks[0]
        plan, left_out = (graph, []) if graph is not None else read_plan(config, task)
        if graph is not None and task == "embedding":
            pooling = pooling_of(graph, pooling)
        if task == "embedding" and pooling is None:
            pooling = {"mode": "mean", "normalize": False}
        tokenizer = make_tokenizer(directory, config)
        return cls(
            config,
            plan,
            task,
            config.labels if task in LABELLED else None,
            pooling,
            complete_settings(None, task, tokenizer.max_length),
            tokenizer,
            {
                "framework": "huggingface",
                "model": config.content.get("_name_or_path") or root.resolve().name,
                "architecture": config.architecture,
                "left_out": left_out,
            },
        )


def is_huggingface(directory: Path) -> bool:
    """Whether a directory looks like one of Hugging Face's."""
    return any((directory / name).is_file() for name in ("config.json", "modules.json"))
