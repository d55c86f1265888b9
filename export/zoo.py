"""Models of GluonNLP's zoo, pretrained or with the weights of a checkpoint, to bundles."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, MissingFileError, ModelFormatError
from bertrt.host.paths import check_path
from bertrt.models.symbol.params import read_params
from bertrt.tasks.settings import PRESETS, TASKS
from bertrt.text.vocabulary import read_merges

from .gluon_to_symbol import import_gluon, set_parameters
from .heads import bert_for_qa, bert_tagger
from .model import TokenizerFile, is_sentencepiece, is_wordpiece, load_vocab, write_bundle
from .task import apply_preset
from .zoo_files import VOCAB_SIZES, ZooFile, fetch_files, merges_file, params_file, vocab_file

__all__ = ["MODELS", "Pretrained", "ZooRow", "export_zoo", "open_pretrained", "zoo_rows"]

MODELS = (
    "bert_12_768_12",
    "bert_24_1024_16",
    "roberta_12_768_12",
    "roberta_24_1024_16",
    "distilbert_6_768_12",
    "ernie_12_768_12",
)
# What the weights of pretraining hold besides the encoder, where that is less than both heads.
_HEADS: dict[str, tuple[str, ...]] = {
    "biobert": (),
    "clinicalbert": ("next-sentence",),
    "distilbert": (),
    "baidu": (),
    "openwebtext_ccnews": ("fill-mask",),
}


@dataclasses.dataclass(frozen=True)
class ZooRow:
    """A pretrained model of the zoo.

    Attributes:
        model, dataset: its two names.
        vocab_size: the tokens of its vocabulary.
        token_types: 0 for a model without.
        max_length: the positions that it has.
        activation, layer_norm_eps: of its layers.
        tokenizer: the kind of its tokenizer, as `bertrt.text.load` names them.
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
            vocab = vocab_file(dataset)
            files = [params_file(model, dataset), vocab]
            if _is_roberta(model):
                files.append(merges_file())
            rows.append(
                ZooRow(
                    model=model,
                    dataset=dataset,
                    vocab_size=VOCAB_SIZES[dataset],
                    token_types=settings.get("token_type_vocab_size", 0),
                    max_length=settings["max_length"],
                    activation=settings.get("activation", "gelu"),
                    # DistilBERT's is the default of its function.
                    layer_norm_eps=settings.get(
                        "layer_norm_eps", 1e-5 if _is_distilbert(model) else 1e-12
                    ),
                    tokenizer=_tokenizer_kind(model, vocab.path),
                    lower=_lower(dataset),
                    heads=_heads(dataset),
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
    pooling: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Export a model of ``gluonnlp.model.get_model`` to a bundle.

    Args:
        model: one of `MODELS`.
        dataset: the zoo's name of the corpus, such as ``"book_corpus_wiki_en_uncased"``. Its
            ending, cased or uncased, says whether text is lower-cased.
        out: where the bundle goes; nothing may be there yet.
        task: one of `bertrt.tasks.settings.TASKS`, or a data set of its `PRESETS`; an embedding if
            left out. Question answering and tagging are for the models with token
            types, as GluonNLP's scripts are.
        params: a file of ``save_parameters``: a pretraining checkpoint for embeddings, masks and
            next sentences; a fine-tuned ``BERTClassifier`` (``RoBERTaClassifier`` for RoBERTa and
            DistilBERT), ``BertForQA`` or ``BERTTagger`` for their tasks, and for embeddings. None
            for the zoo's pretrained weights.
        vocab: a vocabulary as JSON, or a SentencePiece model (``.spiece`` or ``.model``). None for
            the zoo's own.
        merges: for RoBERTa, the merges of byte-level BPE. None for the zoo's own.
        labels: the names of a classifier's classes or a tagger's tags; "0", "1", ... if left out.
        max_length: the longest input in tokens, special ones included; 128 if left out.
        pooling, settings: see :func:`bertrt.export.export_model`.

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
    task, labels, settings = apply_preset("embedding" if task is None else task, labels, settings)
    if task not in TASKS:
        raise InvalidInputError(
            f"task should be one of {', '.join((*TASKS, *PRESETS))}, found {task!r}"
        )
    lower = _lower(dataset)
    if params is None and task not in ("embedding", *_heads(dataset)):
        raise InvalidInputError(
            f"the zoo's weights for {dataset} are pretrained and have no head for {task}; "
            "give the parameters of a fine-tuned net with --params"
        )
    if task in _SCRIPTED and _classifier(model) != "BERTClassifier":
        raise InvalidInputError(f"GluonNLP has no net for {task} over {model}")
    files = _open_files(model, dataset, params=params, vocab=vocab, merges=merges)
    arrays, classes = _select(files.arrays, model, task, files.params)
    net = _build(model, files.vocab, task, classes)
    set_parameters(net, arrays, str(files.params))
    return write_bundle(
        net,
        out,
        tokenizer=files.tokenizer(lower, 128 if max_length is None else max_length),
        task=task,
        labels=labels,
        pooling=pooling,
        settings=settings,
        origin=files.origin,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model of the zoo without its heads, to put another on.

    Attributes:
        net: the ``BERTModel``, ``RoBERTaModel`` or ``DistilBERTModel``, without weights yet.
        arrays: its weights, by the net's names.
        source: the file that they are from.
        tokenizer: of the model.
        origin: what is known about where the weights come from.
    """

    net: Any
    arrays: dict[str, np.ndarray]
    source: Path
    tokenizer: TokenizerFile
    origin: dict[str, Any]


def open_pretrained(
    model: str,
    dataset: str,
    *,
    params: str | os.PathLike[str] | None,
    vocab: str | os.PathLike[str] | None,
    merges: str | os.PathLike[str] | None,
    max_length: int,
) -> Pretrained:
    """The encoder of a model of the zoo, or of a checkpoint of it; arguments and errors are those
    of :func:`export_zoo`."""
    files = _open_files(model, dataset, params=params, vocab=vocab, merges=merges)
    arrays, _ = _select(files.arrays, model, "embedding", files.params)
    return Pretrained(
        _build(model, files.vocab, "embedding", 0),
        arrays,
        files.params,
        files.tokenizer(_lower(dataset), max_length),
        files.origin,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Files:
    """What the files of a row of the zoo hold."""

    arrays: dict[str, np.ndarray]
    params: Path
    vocab: Any
    kind: str
    pieces: bytes | None
    origin: dict[str, Any]

    def tokenizer(self, lower: bool, max_length: int) -> TokenizerFile:
        return TokenizerFile(
            self.kind, self.vocab.to_json(), lower, max_length, len(self.vocab), self.pieces
        )


def _open_files(
    model: str,
    dataset: str,
    *,
    params: str | os.PathLike[str] | None,
    vocab: str | os.PathLike[str] | None,
    merges: str | os.PathLike[str] | None,
) -> _Files:
    """Read the files that are given, and the zoo's own for the rest."""
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

    vocab_path = find("vocabulary", vocab, lambda: vocab_file(dataset))
    params_path = find("parameter", params, lambda: params_file(model, dataset))
    merges_path = find("merges", merges, merges_file) if _is_roberta(model) else None
    fetch_files(wanted)
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
    return _Files(
        {name: constant.array for name, constant in read_params(params_path).items()},
        params_path,
        loaded,
        kind,
        pieces,
        {
            "framework": "gluonnlp",
            "model": model,
            "dataset": dataset,
            "params": params_path.name,
        },
    )


def _heads(dataset: str) -> tuple[str, ...]:
    """The tasks of pretraining that the zoo's weights have a head for."""
    found = (heads for start, heads in _HEADS.items() if dataset.startswith(start))
    return next(found, ("next-sentence", "fill-mask"))


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


def _build(model: str, vocab: Any, task: str, classes: int) -> Any:
    _, gluonnlp = import_gluon()
    options = {
        "use_pooler": task not in _SCRIPTED,
        "use_decoder": task == "fill-mask",
        "use_classifier": task == "next-sentence",
    }
    if _is_roberta(model):
        options = {"use_decoder": task == "fill-mask"}
    elif _is_distilbert(model):
        options = {}
    net, _ = gluonnlp.model.get_model(
        model, dataset_name=None, vocab=vocab, pretrained=False, **options
    )
    if task in ("classification", "regression"):
        return getattr(gluonnlp.model, _classifier(model))(net, num_classes=classes, dropout=0.0)
    if task == "question-answering":
        return bert_for_qa(net)
    if task == "tagging":
        return bert_tagger(net, classes)
    return net


def _classifier(model: str) -> str:
    """GluonNLP's class of a classifier over the model. That over RoBERTa reads a sequence output,
    and does for DistilBERT, which has no pooler either."""
    pooled = not _is_roberta(model) and not _is_distilbert(model)
    return "BERTClassifier" if pooled else "RoBERTaClassifier"


# What GluonNLP's nets call their encoder.
_ENCODERS = {
    "BERTClassifier": "bert.",
    "RoBERTaClassifier": "roberta.",
    "BertForQA": "bert.",
    "BERTTagger": "bert_model.",
}
# The nets of GluonNLP's scripts, and what they call their head.
_SCRIPTED = {
    "question-answering": ("BertForQA", "span_classifier."),
    "tagging": ("BERTTagger", "tag_classifier."),
}
_PRETRAINED = {"fill-mask": "decoder.", "next-sentence": "classifier."}
_LAYER = re.compile(r"classifier\.(\d)\.weight")


def _select(
    arrays: Mapping[str, np.ndarray], model: str, task: str, source: Path
) -> tuple[dict[str, np.ndarray], int]:
    """The arrays that the task's net takes, by its names, and how many outputs its head has; 0
    where that is nobody's choice."""
    found = {prefix for prefix in _ENCODERS.values() if any(n.startswith(prefix) for n in arrays)}
    inner = min(found, default="")
    encoder = {
        name.removeprefix(inner): array for name, array in arrays.items() if name.startswith(inner)
    }
    heads = {head: _pop(encoder, head) for head in _PRETRAINED.values()}
    if task == "embedding":
        return encoder, 0
    if task in _PRETRAINED:
        wanted = _PRETRAINED[task]
        if not heads[wanted]:
            raise _no_head(arrays, task, f"parameters {inner}{wanted}* are wanted", source)
        return encoder | heads[wanted], 0
    net, head = _SCRIPTED.get(task, (_classifier(model), "classifier."))
    layers = {
        # A dropout before a layer moves the layer's number by one.
        "BERTClassifier": [{0}, {1}],
        "RoBERTaClassifier": [{0, 1}, {1, 3}],
    }.get(net)
    numbers = sorted(int(match[1]) for name in arrays if (match := _LAYER.fullmatch(name)))
    last = f"{head}{numbers[-1]}.weight" if layers and numbers else f"{head}weight"
    if inner != _ENCODERS[net] or last not in arrays or (layers and set(numbers) not in layers):
        raise _no_head(arrays, task, f"the parameters of a fine-tuned {net} are wanted", source)
    if len(arrays[last].shape) != 2:
        raise ModelFormatError(
            f"{source}: {last} should be a matrix, found shape {arrays[last].shape}"
        )
    if task in _SCRIPTED:
        _pop(encoder, "pooler.")  # which a net without one may have been saved with
        own = {name: array for name, array in arrays.items() if name.startswith(head)}
    else:
        own = {
            name.replace(f"{head}{number}.", f"{head}{index}."): array
            for index, number in enumerate(numbers)
            for name, array in arrays.items()
            if name.startswith(f"{head}{number}.")
        }
    return {inner + name: array for name, array in encoder.items()} | own, arrays[last].shape[0]


def _pop(arrays: dict[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
    return {name: arrays.pop(name) for name in list(arrays) if name.startswith(start)}


def _no_head(
    arrays: Mapping[str, np.ndarray], task: str, wanted: str, source: Path
) -> ModelFormatError:
    names = ", ".join(sorted({name.split(".")[0] for name in arrays}))
    return ModelFormatError(
        f"{source} has no head for {task}: {wanted}, and its names begin with {names}"
    )
