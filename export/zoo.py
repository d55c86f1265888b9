"""Models of GluonNLP's zoo, pretrained or with the weights of a checkpoint, to bundles."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, MissingFileError, ModelFormatError
from bertrt.graph.bundle import TASKS
from bertrt.graph.params import read_params
from bertrt.paths import check_path

from .gluon_to_symbol import import_gluon, set_parameters
from .model import TokenizerFile, load_vocab, write_bundle

__all__ = ["MODELS", "export_zoo"]

MODELS = ("bert_12_768_12", "bert_24_1024_16")

# Heads of pretraining, which the tasks here have no use for.
_PRETRAINING = ("decoder.", "classifier.")


def export_zoo(
    model: str,
    dataset: str,
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    params: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> Path:
    """Export a model of ``gluonnlp.model.get_model`` to a bundle.

    Args:
        model: ``"bert_12_768_12"`` or ``"bert_24_1024_16"``.
        dataset: the zoo's name of the corpus, such as ``"book_corpus_wiki_en_uncased"``. Its
            ending, cased or uncased, says whether text is lower-cased.
        out: where the bundle goes; nothing may be there yet.
        task: ``"embedding"``, ``"classification"`` or ``"regression"``; an embedding if left out.
        params: a file of ``save_parameters``: a pretraining checkpoint for embeddings, a
            fine-tuned ``BERTClassifier`` for any task. None for the zoo's pretrained weights.
        vocab: a ``BERTVocab`` as JSON. None for the zoo's own.
        labels: the names of a classifier's classes; "0", "1", ... if left out.
        max_length: the longest input in tokens, special ones included; 128 if left out.

    Returns:
        The path of the bundle.

    Raises:
        InvalidInputError: the model or dataset is not in the zoo, or an argument does not fit.
        MissingFileError: a file is not there and cannot be downloaded; the message says which
            file is wanted and where it may lie.
        ModelFormatError: a file is broken or holds the weights of another network.

    What writing the bundle raises is told by :func:`bertrt.export.export_model`.
    """
    if model not in MODELS:
        raise InvalidInputError(
            f"the model {model!r} is not supported; supported are {', '.join(MODELS)}"
        )
    task = "embedding" if task is None else task
    if task not in TASKS:
        raise InvalidInputError(f"task should be one of {', '.join(TASKS)}, found {task!r}")
    lower = _lower(dataset)
    if params is None and task != "embedding":
        raise InvalidInputError(
            f"the zoo's weights are pretrained and have no head for {task}; "
            "give the parameters of a fine-tuned BERTClassifier with --params"
        )
    wanted: list[_ZooFile] = []
    if vocab is None:
        wanted.append(_zoo_vocab(dataset))
        vocab = wanted[-1].path
    if params is None:
        wanted.append(_zoo_params(model, dataset))
        params = wanted[-1].path
    _fetch(wanted)
    bert_vocab = load_vocab(vocab)
    params_path = check_path("params", params)
    if not params_path.is_file():
        raise MissingFileError(f"the parameter file {params_path} does not exist")
    arrays, classes = _select(
        {name: constant.array for name, constant in read_params(params_path).items()},
        task,
        params_path,
    )
    net = _build(model, bert_vocab, classes)
    set_parameters(net, arrays, str(params_path))
    return write_bundle(
        net,
        out,
        tokenizer=TokenizerFile(
            "gluonnlp",
            bert_vocab.to_json(),
            lower,
            128 if max_length is None else max_length,
            len(bert_vocab),
        ),
        task=task,
        labels=labels,
        pooling=None,
        origin={
            "framework": "gluonnlp",
            "model": model,
            "dataset": dataset,
            "params": params_path.name,
        },
    )


def _lower(dataset: str) -> bool:
    if not isinstance(dataset, str) or not re.search(r"(^|_)(un)?cased$", dataset):
        raise InvalidInputError(
            f"the dataset {dataset!r} says neither cased nor uncased; "
            "book_corpus_wiki_en_uncased is one that does"
        )
    return dataset.endswith("uncased")


def _build(model: str, vocab: Any, classes: int | None) -> Any:
    _, gluonnlp = import_gluon()
    bert, _ = gluonnlp.model.get_model(
        model,
        dataset_name=None,
        vocab=vocab,
        pretrained=False,
        use_pooler=True,
        use_decoder=False,
        use_classifier=False,
    )
    if classes is None:
        return bert
    return gluonnlp.model.BERTClassifier(bert, num_classes=classes, dropout=0.0)


def _select(
    arrays: Mapping[str, np.ndarray], task: str, source: Path
) -> tuple[dict[str, np.ndarray], int | None]:
    """The arrays that the task's net takes, and the number of its classes if it has a head."""
    fine_tuned = any(name.startswith("bert.") for name in arrays)
    inner = "bert." if fine_tuned else ""
    # The head is called classifier.1 behind a dropout and classifier.0 without one.
    heads = {
        match[1] for name in arrays if (match := re.fullmatch(r"classifier\.(\d)\.weight", name))
    }
    selected = {
        name: array
        for name, array in arrays.items()
        if not name.startswith(tuple(inner + part for part in _PRETRAINING))
        and not (fine_tuned and name.startswith("classifier."))
    }
    if task == "embedding":
        return {name.removeprefix(inner): array for name, array in selected.items()}, None
    if not fine_tuned or len(heads) != 1 or not heads <= {"0", "1"}:
        raise ModelFormatError(
            f"{source} has no head for {task}: the parameters bert.* and classifier.0.* or "
            "classifier.1.* of a fine-tuned BERTClassifier are wanted, and its names begin with "
            f"{', '.join(sorted({name.split('.')[0] for name in arrays}))}"
        )
    head = f"classifier.{heads.pop()}."
    for name in arrays:
        if name.startswith("classifier."):
            selected[name.replace(head, "classifier.0.")] = arrays[name]
    shape = arrays[f"{head}weight"].shape
    if len(shape) != 2:
        raise ModelFormatError(f"{source}: {head}weight should be a matrix, found shape {shape}")
    return selected, shape[0]


@dataclasses.dataclass(frozen=True)
class _ZooFile:
    """A file of the zoo: where GluonNLP keeps it, how GluonNLP gets it, and the option for it."""

    path: Path
    fetch: Callable[[], Any]
    option: str


def _zoo_vocab(dataset: str) -> _ZooFile:
    _, gluonnlp = import_gluon()
    known = gluonnlp.data.utils._vocab_sha1
    if dataset not in known or known[dataset][1] != ".vocab":
        names = sorted(name for name in known if re.search(r"(^|_)(un)?cased$", name))
        raise InvalidInputError(
            f"the zoo has no BERT vocabulary for {dataset!r} (it has them for "
            f"{', '.join(name for name in names if known[name][1] == '.vocab')}); "
            "give one with --vocab"
        )
    path = _models() / f"{dataset}-{known[dataset][0][:8]}.vocab"
    return _ZooFile(
        path,
        lambda: gluonnlp.data.utils._load_pretrained_vocab(
            dataset, str(path.parent), gluonnlp.vocab.BERTVocab
        ),
        "--vocab",
    )


def _zoo_params(model: str, dataset: str) -> _ZooFile:
    mxnet, _ = import_gluon()
    store = mxnet.gluon.model_zoo.model_store
    name = f"{model}_{dataset}"
    if name not in store._model_sha1:
        known = sorted(
            n.removeprefix(f"{model}_") for n in store._model_sha1 if n.startswith(f"{model}_")
        )
        raise InvalidInputError(
            f"the zoo has no weights of {model} for {dataset!r}; it has them for "
            f"{', '.join(known)}; give a file with --params"
        )
    path = _models() / f"{name}-{store.short_hash(name)}.params"
    return _ZooFile(path, lambda: store.get_model_file(name, root=str(path.parent)), "--params")


def _models() -> Path:
    _, gluonnlp = import_gluon()
    return Path(gluonnlp.base.get_home_dir()).expanduser() / "models"


def _fetch(files: Sequence[_ZooFile]) -> None:
    """Have GluonNLP find the files with their right hashes where it keeps them, or download them.

    Raises:
        MissingFileError: files are not there and cannot be downloaded; all are named.
    """
    missing, reason = [], None
    for file in files:
        try:
            # GluonNLP tells of downloads on standard output, which belongs to our own answer.
            with contextlib.redirect_stdout(sys.stderr):
                file.fetch()
        except Exception as error:  # whatever the network did, what helps is the same
            missing.append(f"{file.path.name} (or name one with {file.option})")
            reason = error
    if missing:
        raise MissingFileError(
            f"put {' and '.join(missing)} into {files[0].path.parent}: "
            f"not found there, and downloading failed ({reason})"
        ) from reason
