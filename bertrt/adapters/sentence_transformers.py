"""sentence-transformers: a module that runs a whole model, and what is made of it.

    from bertrt.adapters.sentence_transformers import load_sentence_transformer

    model = load_sentence_transformer("embedder")
    model.encode(["a text", "another"])
    model.save_pretrained("out")  # for SentenceTransformer("out", trust_remote_code=True)

See docs/adapters.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.adapters.common import check_embeds, check_ranks, needs, similarity, width
from bertrt.engine import Engine
from bertrt.errors import InvalidInputError, MissingFileError
from bertrt.host.writing import copy_file, writing_directory

with needs("sentence-transformers from 5.7", "sentence-transformers"):
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import InputModule

__all__ = ["BertrtModule", "load_cross_encoder", "load_sentence_transformer"]

# Where, in the module's directory, the model is.
_MODEL = "model"
# What of the arguments goes with a model that is saved: what its numbers depend on.
_SAVED = ("precision", "settings")


def load_sentence_transformer(
    path: str | os.PathLike[str], **model_kwargs: Any
) -> SentenceTransformer:
    """An embedding model as a SentenceTransformer, with its prompts and its similarity.

    Args:
        path: the model, as for `Engine.load`.
        model_kwargs: other arguments of `Engine.load`.

    Raises:
        InvalidInputError: a model that does not give a text one vector.
        And what `Engine.load` raises.
    """
    module = BertrtModule(path, **model_kwargs)
    check_embeds(module.engine)
    compared: Any = similarity(module.engine)
    return SentenceTransformer(
        modules=[module], device="cpu", similarity_fn_name=compared, **_prompts(module.engine)
    )


def load_cross_encoder(path: str | os.PathLike[str], **model_kwargs: Any) -> CrossEncoder:
    """A model that gives a pair of texts one score as a CrossEncoder, with its activation.

    Args:
        path: the model, as for `Engine.load`.
        model_kwargs: other arguments of `Engine.load`.

    Raises:
        InvalidInputError: another model. A CrossEncoder of several classes is one: that class
            takes it for granted that the scores of a module that it does not know are one each.
        And what `Engine.load` raises.
    """
    module = BertrtModule(path, **model_kwargs)
    engine = check_ranks(module.engine)
    classes = {name.lower(): name for name in dir(torch.nn)}
    activation = getattr(torch.nn, classes[engine.settings["activation"]])().eval()
    if hasattr(activation, "dim"):
        activation.dim = -1
    return CrossEncoder(
        modules=[module], device="cpu", activation_fn=activation, **_prompts(engine)
    )


def _prompts(engine: Engine) -> dict[str, Any]:
    settings = engine.settings
    return {
        "prompts": settings.get("prompts", {}),
        "default_prompt_name": settings.get("default_prompt_name"),
    }


class BertrtModule(InputModule):
    """A model from text to vector, or from pair to logit: the one module of a SentenceTransformer
    or a CrossEncoder.

    `load_sentence_transformer` and `load_cross_encoder` make it with what belongs around it. It
    is pickled by its path and loads the model again, so that pools of processes work. What
    sentence-transformers does with a device it does to its own tensors: the model's is an argument
    of `Engine.load`.

    Args:
        path: the model, as for `Engine.load`: of task embedding, or regression.
        model_kwargs: other arguments of `Engine.load`.

    Raises:
        InvalidInputError: a model for something else.
        And what `Engine.load` raises.
    """

    save_in_root = False

    def __init__(self, path: str | os.PathLike[str], **model_kwargs: Any) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.model_kwargs = model_kwargs
        self.engine = Engine.load(path, **model_kwargs)
        # Of every other task both say what is wrong; of a reranker the one that fits it.
        check_ranks(self.engine) if self._ranks else check_embeds(self.engine)

    @property
    def _ranks(self) -> bool:
        return self.engine.task == "regression"

    @property
    def max_seq_length(self) -> int:
        """The tokens of a text at most. Setting it loads the model again."""
        return self.engine.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        settings = {**(self.model_kwargs.get("settings") or {}), "max_length": value}
        model_kwargs = {**self.model_kwargs, "settings": settings}
        self.engine = Engine.load(self.path, **model_kwargs)
        self.model_kwargs = model_kwargs

    def get_embedding_dimension(self) -> int:
        """How many numbers a vector has."""
        return width(self.engine)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The texts, or pairs of them, and their prompt, as they are: the engine tokenizes them,
        and nothing is padded."""
        if kwargs.get("processing_kwargs"):
            raise InvalidInputError(
                "processing_kwargs are for the processors of transformers, and the engine "
                "tokenizes here; settings={'max_length': ...} of Engine.load is what cuts texts"
            )
        texts = [tuple(item) if isinstance(item, list) else item for item in inputs]
        return {"texts": texts, "prompt": prompt or ""}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """``{"sentence_embedding": float32 (texts, width)}``, the vectors of `Engine.predict`; of
        a reranker ``{"scores": float32 (pairs, 1)}``, its logits.

        Raises: what `Engine.predict` raises.
        """
        texts, prompt = self._prompted(features["texts"], features["prompt"])
        if self._ranks:
            _, logits = self.engine.predict_with_outputs(texts, prompt=prompt)
            return _Given(scores=torch.from_numpy(np.concatenate(logits).reshape(-1, 1)))
        vectors = [found.vector for found in self.engine.predict(texts, prompt=prompt)]
        return _Given(sentence_embedding=torch.from_numpy(np.stack(vectors)))

    def _prompted(self, texts: list[Any], prompt: str) -> tuple[list[Any], str]:
        """The texts and the prompt for the engine. Here a prompt is a text always, there it may be
        the name of one; but the engine has to know it where its tokens are left out."""
        settings = self.engine.settings
        if not prompt or settings.get("include_prompt", True):
            return [_behind(prompt, text) for text in texts], ""
        if settings.get("prompts", {}).get(prompt, prompt) != prompt:
            raise InvalidInputError(
                f"the prompt {prompt!r} is the name of one of the model's: write the text of that "
                "one, or pass prompt_name"
            )
        return texts, prompt

    def get_config_dict(self) -> dict[str, Any]:
        """What goes with the model where it is saved."""
        return {name: self.model_kwargs.get(name) for name in _SAVED}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Copy the model into a directory, beside what its numbers depend on.

        Raises:
            MissingFileError: the model is a file, and what belongs to it is anywhere.
            OutputExistsError, WriteError: it cannot be written.
        """
        if not os.path.isdir(self.path):
            raise MissingFileError(
                f"{self.path} is no directory, which could be copied: bertrt import makes one, a "
                "bundle"
            )
        self.save_config(output_path)
        _copy(Path(self.path), Path(output_path) / _MODEL)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> BertrtModule:
        """What was saved, from a directory or a repository on Hugging Face.

        Args:
            model_name_or_path, subfolder: where.
            model_kwargs: arguments of `Engine.load`, which go before those that were saved.
            config_kwargs, processor_kwargs, backend: must be as they are by default.
            kwargs: how to get it from a repository.

        Raises:
            InvalidInputError: an argument that means nothing here.
            MissingFileError: there is no model.
            And what `Engine.load` raises.
        """
        given = {
            "config_kwargs (num_labels)": config_kwargs,
            "processor_kwargs (max_length)": processor_kwargs,
            "backend": None if backend == "torch" else backend,
        }
        for name, value in given.items():
            if value:
                raise InvalidInputError(
                    f"{name} is {value!r}, and bertrt runs the model, not transformers: pass "
                    "arguments of bertrt.Engine.load as model_kwargs, such as "
                    "{'settings': {'max_length': 128}}"
                )
        places = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: kwargs[name] for name in places if name in kwargs}
        saved = cls.load_config(model_name_or_path, subfolder=subfolder, **where)
        model_kwargs = {**saved, **(model_kwargs or {})}
        if saved.get("settings") and model_kwargs["settings"]:
            model_kwargs["settings"] = {**saved["settings"], **model_kwargs["settings"]}
        inner = Path(subfolder, _MODEL).as_posix()
        path = cls.load_dir_path(model_name_or_path, subfolder=inner, **where)
        if path is None:
            raise MissingFileError(f"{model_name_or_path}: there is no directory {inner} in it")
        return cls(path, **model_kwargs)


class _Given(dict[str, Any]):
    """What the module gives, and an error that tells of what it does not."""

    def __missing__(self, name: str) -> Any:
        raise InvalidInputError(
            f"{name} was asked for, and bertrt gives {', '.join(self)} here; for vectors of tokens "
            "there are Engine.run and the pooling 'tokens'"
        )


def _behind(prompt: str, text: Any) -> Any:
    if not prompt:
        return text
    if isinstance(text, str):
        return prompt + text
    if isinstance(text, tuple) and text and isinstance(text[0], str):
        return (prompt + text[0], *text[1:])
    return text  # which the engine refuses


def _copy(source: Path, target: Path) -> None:
    with writing_directory(target) as aside:
        for entry in sorted(source.iterdir()):
            if entry.name.startswith("."):  # a repository's, a cache's
                continue
            (_copy if entry.is_dir() else copy_file)(entry, aside / entry.name)
