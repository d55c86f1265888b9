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
from bertrt.graph.params import read_params
from bertrt.paths import check_path
from bertrt.settings import TASKS
from bertrt.tokenizer import read_merges

from .gluon_to_symbol import import_gluon, set_parameters
from .model import TokenizerFile, is_sentencepiece, is_wordpiece, load_vocab, write_bundle

__all__ = ["MODELS", "ZooFile", "ZooRow", "export_zoo", "zoo_rows"]

MODELS = (
    "bert_12_768_12",
    "bert_24_1024_16",
    "roberta_12_768_12",
    "roberta_24_1024_16",
    "distilbert_6_768_12",
    "ernie_12_768_12",
)

# The tokens of every vocabulary, which GluonNLP's package does not hold. Its tests
# (tests/unittest/test_models.py) state them; those of KoBERT, DistilBERT and ERNIE 1.0 are what
# SKTBrain/KoBERT, distilbert-base-uncased and PaddlePaddle/ERNIE published.
_VOCAB_SIZES = {
    "book_corpus_wiki_en_cased": 28996,
    "book_corpus_wiki_en_uncased": 30522,
    "openwebtext_book_corpus_wiki_en_uncased": 30522,
    "wiki_multilingual_uncased": 105879,
    "wiki_multilingual_cased": 119547,
    "wiki_cn_cased": 21128,
    "scibert_scivocab_uncased": 31090,
    "scibert_scivocab_cased": 31116,
    "scibert_basevocab_uncased": 30522,
    "scibert_basevocab_cased": 28996,
    "biobert_v1.0_pmc_cased": 28996,
    "biobert_v1.0_pubmed_cased": 28996,
    "biobert_v1.0_pubmed_pmc_cased": 28996,
    "biobert_v1.1_pubmed_cased": 28996,
    "clinicalbert_uncased": 30522,
    "kobert_news_wiki_ko_cased": 8002,
    "openwebtext_ccnews_stories_books_cased": 50265,
    "distilbert_book_corpus_wiki_en_uncased": 30522,
    "baidu_ernie_uncased": 17964,
}

# What the weights of pretraining hold besides the encoder, where that is less than both heads.
_HEADS: dict[str, tuple[str, ...]] = {
    "biobert": (),
    "clinicalbert": ("next-sentence",),
    "distilbert": (),
    "baidu": (),
    "openwebtext_ccnews": ("fill-mask",),
}


@dataclasses.dataclass(frozen=True)
class ZooFile:
    """A file of the zoo.

    Attributes:
        path: where GluonNLP keeps it.
        sha1: its sha1 in hexadecimal digits.
        option: the option of ``bertrt export`` that names another file in its place.
        fetch: has GluonNLP download it to `path`.
    """

    path: Path
    sha1: str
    option: str
    fetch: Callable[[], Any] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class ZooRow:
    """A pretrained model of the zoo.

    Attributes:
        model, dataset: its two names.
        vocab_size: the tokens of its vocabulary.
        token_types: 0 for a model without.
        max_length: the positions that it has.
        activation, layer_norm_eps: of its layers.
        tokenizer: the kind of its tokenizer, as `bertrt.tokenizer` names them.
        lower: whether its text is lower-cased.
        heads: the tasks of pretraining that its weights have a head for.
        files: what exporting it needs.
    """

    model: str
    dataset: str
    vocab_size: int
    token_types: int
    max_length: int
    activation: str
    layer_norm_eps: float
    tokenizer: str
    lower: bool
    heads: tuple[str, ...]
    files: tuple[ZooFile, ...]


def zoo_rows() -> list[ZooRow]:
    """The zoo, from GluonNLP's own registries.

    Raises:
        MissingDependencyError: mxnet or gluonnlp is not installed.
    """
    mxnet, gluonnlp = import_gluon()
    rows = []
    for model in MODELS:
        settings = gluonnlp.model.bert.bert_hparams[model]
        for name in mxnet.gluon.model_zoo.model_store._model_sha1:
            dataset = name.removeprefix(f"{model}_")
            if dataset == name:
                continue
            vocab = _vocab_file(dataset)
            files = [_params_file(model, dataset), vocab]
            if _is_roberta(model):
                files.append(_merges_file())
            rows.append(
                ZooRow(
                    model=model,
                    dataset=dataset,
                    vocab_size=_VOCAB_SIZES[dataset],
                    token_types=settings.get("token_type_vocab_size", 0),
                    max_length=settings["max_length"],
                    activation=settings.get("activation", "gelu"),
                    # DistilBERT's is the default of its function.
                    layer_norm_eps=settings.get(
                        "layer_norm_eps", 1e-5 if _is_distilbert(model) else 1e-12
                    ),
                    tokenizer=_tokenizer_kind(model, vocab.path),
                    lower=_lower(dataset),
                    heads=next(
                        (heads for start, heads in _HEADS.items() if dataset.startswith(start)),
                        ("next-sentence", "fill-mask"),
                    ),
                    files=tuple(files),
                )
            )
    return rows


def export_zoo(
    model: str,
    dataset: str,
    out: str | os.PathLike[str],
    *,
    task: str | None = None,
    params: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    merges: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> Path:
    """Export a model of ``gluonnlp.model.get_model`` to a bundle.

    Args:
        model: one of `MODELS`.
        dataset: the zoo's name of the corpus, such as ``"book_corpus_wiki_en_uncased"``. Its
            ending, cased or uncased, says whether text is lower-cased.
        out: where the bundle goes; nothing may be there yet.
        task: ``"embedding"``, ``"classification"`` or ``"regression"``; an embedding if left out.
        params: a file of ``save_parameters``: a pretraining checkpoint for embeddings, a
            fine-tuned ``BERTClassifier`` (``RoBERTaClassifier`` for RoBERTa and DistilBERT) for any
            task. None for the zoo's pretrained weights.
        vocab: a vocabulary as JSON, or a SentencePiece model (``.spiece`` or ``.model``). None for
            the zoo's own.
        merges: for RoBERTa, the merges of byte-level BPE. None for the zoo's own.
        labels: the names of a classifier's classes; "0", "1", ... if left out.
        max_length: the longest input in tokens, special ones included; 128 if left out.

    Returns:
        The path of the bundle.

    Raises:
        InvalidInputError: the model or dataset is not in the zoo, or an argument does not fit.
        MissingFileError: a file is not there and cannot be downloaded; the message says which
            file is wanted and where it may lie.
        ModelFormatError: a file is broken or holds the weights of another network.
        MissingDependencyError: mxnet, gluonnlp, onnx or (for KoBERT) sentencepiece is not
            installed.

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
            "give the parameters of a fine-tuned classifier with --params"
        )
    if merges is not None and not _is_roberta(model):
        raise InvalidInputError(f"--merges goes with RoBERTa; {model} has no byte-level BPE")
    wanted: list[ZooFile] = []

    def find(name: str, given: str | os.PathLike[str] | None, own: Callable[[], ZooFile]) -> Path:
        if given is None:
            wanted.append(own())
            return wanted[-1].path
        path = check_path(name, given)
        if not path.is_file():
            raise MissingFileError(f"the {name} file {path} does not exist")
        return path

    vocab_path = find("vocabulary", vocab, lambda: _vocab_file(dataset))
    params_path = find("parameter", params, lambda: _params_file(model, dataset))
    merges_path = find("merges", merges, _merges_file) if _is_roberta(model) else None
    _fetch(wanted)
    kind = _tokenizer_kind(model, vocab_path)
    pieces = None
    if merges_path is not None:
        read_merges(merges_path)
        pieces = merges_path.read_bytes()
    elif kind == "gluonnlp-sentencepiece":
        pieces = vocab_path.read_bytes()
    loaded = load_vocab(vocab_path)
    if kind == "gluonnlp" and not is_wordpiece(loaded):
        raise InvalidInputError(
            f"{vocab_path} is not a vocabulary for WordPiece, which {model} wants (or, for KoBERT, "
            "a SentencePiece model: .spiece)"
        )
    arrays, classes = _select(
        {name: constant.array for name, constant in read_params(params_path).items()},
        model,
        task,
        params_path,
    )
    net = _build(model, loaded, classes)
    set_parameters(net, arrays, str(params_path))
    return write_bundle(
        net,
        out,
        tokenizer=TokenizerFile(
            kind,
            loaded.to_json(),
            lower,
            128 if max_length is None else max_length,
            len(loaded),
            pieces,
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


def _is_roberta(model: str) -> bool:
    return model.startswith("roberta")


def _is_distilbert(model: str) -> bool:
    return model.startswith("distilbert")


def _lower(dataset: str) -> bool:
    # As GluonNLP's fine-tuning scripts have it. Its data.get_tokenizer has the two multilingual
    # models the wrong way round.
    if not isinstance(dataset, str) or not re.search(r"(^|_)(un)?cased$", dataset):
        raise InvalidInputError(
            f"the dataset {dataset!r} says neither cased nor uncased; "
            "book_corpus_wiki_en_uncased is one that does"
        )
    return dataset.endswith("uncased")


def _tokenizer_kind(model: str, vocab: Path) -> str:
    if _is_roberta(model):
        return "gluonnlp-bpe"
    return "gluonnlp-sentencepiece" if is_sentencepiece(vocab) else "gluonnlp"


def _build(model: str, vocab: Any, classes: int | None) -> Any:
    _, gluonnlp = import_gluon()
    options = {"use_pooler": True, "use_decoder": False, "use_classifier": False}
    if _is_roberta(model):
        options = {"use_decoder": False}
    elif _is_distilbert(model):
        options = {}
    net, _ = gluonnlp.model.get_model(
        model, dataset_name=None, vocab=vocab, pretrained=False, **options
    )
    if classes is None:
        return net
    classifier = getattr(gluonnlp.model, _classifier(model))
    return classifier(net, num_classes=classes, dropout=0.0)


def _classifier(model: str) -> str:
    """GluonNLP's class of a classifier over the model. That over RoBERTa reads a sequence output,
    and does for DistilBERT, which has no pooler either."""
    pooled = not _is_roberta(model) and not _is_distilbert(model)
    return "BERTClassifier" if pooled else "RoBERTaClassifier"


def _select(
    arrays: Mapping[str, np.ndarray], model: str, task: str, source: Path
) -> tuple[dict[str, np.ndarray], int | None]:
    """The arrays that the task's net takes, and the number of its classes if it has a head."""
    classifier = _classifier(model)
    inner = {"BERTClassifier": "bert.", "RoBERTaClassifier": "roberta."}[classifier]
    if not any(name.startswith(inner) for name in arrays):
        inner = ""
    selected = {
        name.removeprefix(inner): array
        for name, array in arrays.items()
        if name.startswith(inner)
        # Heads of pretraining, which the tasks here have no use for.
        and not name.startswith((f"{inner}decoder.", f"{inner}classifier."))
    }
    if task == "embedding":
        return selected, None
    # A dropout before a layer of the head moves the layer's number by one.
    found = {int(match[1]) for name in arrays if (match := _HEAD.fullmatch(name))}
    layers = {"BERTClassifier": [{0}, {1}], "RoBERTaClassifier": [{0, 1}, {1, 3}]}[classifier]
    if not inner or found not in layers:
        raise ModelFormatError(
            f"{source} has no head for {task}: the parameters of a fine-tuned {classifier} are "
            f"wanted, and its names begin with "
            f"{', '.join(sorted({name.split('.')[0] for name in arrays}))}"
        )
    selected = {inner + name: array for name, array in selected.items()}
    for number, layer in enumerate(sorted(found)):
        for name in ("weight", "bias"):
            if f"classifier.{layer}.{name}" in arrays:
                selected[f"classifier.{number}.{name}"] = arrays[f"classifier.{layer}.{name}"]
    last = f"classifier.{max(found)}.weight"
    if len(arrays[last].shape) != 2:
        raise ModelFormatError(
            f"{source}: {last} should be a matrix, found shape {arrays[last].shape}"
        )
    return selected, arrays[last].shape[0]


_HEAD = re.compile(r"classifier\.(\d)\.weight")


def _vocab_file(dataset: str) -> ZooFile:
    _, gluonnlp = import_gluon()
    if dataset not in _VOCAB_SIZES:
        raise InvalidInputError(
            f"the zoo has no vocabulary for {dataset!r} (it has them for "
            f"{', '.join(_VOCAB_SIZES)}); give one with --vocab"
        )
    utils = gluonnlp.data.utils
    sha1, suffix, _ = utils._vocab_sha1[dataset]
    path = _models() / f"{dataset}-{sha1[:8]}{suffix}"
    return ZooFile(
        path,
        sha1,
        "--vocab",
        lambda: utils._download_vocab_tokenizer(str(path.parent), path.stem, suffix, str(path)),
    )


def _params_file(model: str, dataset: str) -> ZooFile:
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
    return ZooFile(
        path,
        store._model_sha1[name],
        "--params",
        lambda: store.get_model_file(name, root=str(path.parent)),
    )


def _merges_file() -> ZooFile:
    _, gluonnlp = import_gluon()
    tokenizer = gluonnlp.data.GPT2BPETokenizer
    name, sha1 = tokenizer.bpe_ranks_file_hash
    path = _models() / name
    return ZooFile(path, sha1, "--merges", lambda: tokenizer(root=str(path.parent)))


def _models() -> Path:
    _, gluonnlp = import_gluon()
    return Path(gluonnlp.base.get_home_dir()).expanduser() / "models"


def _fetch(files: Sequence[ZooFile]) -> None:
    """Have GluonNLP download the files that are not where it keeps them.

    Raises:
        MissingFileError: files are not there and cannot be downloaded; all are named.
    """
    mxnet, _ = import_gluon()
    missing, reason = [], None
    for file in files:
        is_there = file.path.is_file()
        if is_there and mxnet.gluon.utils.check_sha1(str(file.path), file.sha1):
            continue
        try:
            # GluonNLP tells of downloads on standard output, which belongs to our own answer.
            with contextlib.redirect_stdout(sys.stderr):
                file.fetch()
            if not mxnet.gluon.utils.check_sha1(str(file.path), file.sha1):
                raise ModelFormatError("what was downloaded has another sha1")
        except Exception as error:  # whatever the network did, what helps is the same
            found = "; the file there has another" if is_there else ""
            missing.append(
                f"{file.path.name} (sha1 {file.sha1}{found}; or name one with {file.option})"
            )
            reason = error
    if missing:
        raise MissingFileError(
            f"put {' and '.join(missing)} into {files[0].path.parent}: "
            f"not found there, and downloading failed ({reason})"
        ) from reason
