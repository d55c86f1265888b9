"""From a Gluon net to a bundle."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    InvalidTypeError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
)
from bertrt.evaluation.verify import verify
from bertrt.host.paths import check_path
from bertrt.host.writing import write_bytes, write_text
from bertrt.models.bundle import BundleDraft, write_modules, write_plan, writing
from bertrt.models.golden import GoldenCase, write_golden
from bertrt.models.manifest import GOLDEN, ONNX, TOKENIZER_FILES
from bertrt.models.symbol.plan import compile_symbol
from bertrt.plan.plan import Plan
from bertrt.tasks.modules import Module
from bertrt.tasks.settings import complete_settings
from bertrt.text.huggingface import HuggingFaceTokenizer
from bertrt.text.vocabulary import Vocabulary

from .gluon_to_symbol import import_gluon, output_names, run_gluon, write_symbol_pair
from .golden import record_golden
from .symbol_to_onnx import symbol_to_onnx
from .task import apply_preset, check_labels, check_pooling, check_task

__all__ = [
    "TokenizerFile",
    "export_model",
    "is_sentencepiece",
    "is_wordpiece",
    "load_vocab",
    "seal",
    "write_bundle",
]


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer on its way into a bundle.

    Attributes:
        kind: one of `bertrt.models.manifest.TOKENIZER_FILES`: whose rules it follows.
        content: the text of the vocabulary or tokenizer file.
        lower: whether text is lower-cased.
        max_length: the most tokens that it gives, special ones included.
        size: how many ids it can give.
        pieces: the content of the second file, for the kinds that have one.
        rules: what the content does not say, for the kind "huggingface".
    """

    kind: str
    content: str
    lower: bool
    max_length: int
    size: int
    pieces: bytes | None = None
    rules: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, tokenizer: HuggingFaceTokenizer) -> TokenizerFile:
        """The file of a Hugging Face tokenizer."""
        return cls(
            "huggingface",
            tokenizer.to_json(),
            tokenizer.lower,
            tokenizer.max_length,
            tokenizer.vocab_size,
            rules=tokenizer.unusual(),
        )

    def write(self, directory: Path) -> dict[str, Any]:
        """Write the files into `directory`; returns the manifest's entry."""
        name, *second = TOKENIZER_FILES[self.kind]
        write_text(directory / name, self.content)
        settings = {
            "kind": self.kind,
            "file": name,
            "lower": self.lower,
            "max_length": self.max_length,
        }
        if self.pieces is not None:
            write_bytes(directory / second[0], self.pieces)
            settings["pieces"] = second[0]
        if self.rules:
            settings["rules"] = dict(self.rules)
        return settings


def export_model(
    net: Any,
    out_dir: str | os.PathLike[str],
    *,
    vocab: Any,
    tokenizer: Any = None,
    task: str,
    labels: Sequence[str] | None = None,
    lower: bool = True,
    max_length: int = 128,
    pooling: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Path:
    """Export a Gluon net to a bundle, and check the bundle before it appears.

    The net is left as it was found, hybridized or not, and is run in predict mode only.

    Args:
        net: an initialised GluonNLP ``BERTModel``, ``RoBERTaModel`` or ``DistilBERTModel`` for
            ``task="embedding"``, ``"fill-mask"`` (built with ``use_decoder=True``) and
            ``"next-sentence"`` (``use_classifier=True``); a ``BERTClassifier`` or
            ``RoBERTaClassifier`` for ``"classification"`` and ``"regression"``; a ``BertForQA`` for
            ``"question-answering"`` and a ``BERTTagger`` for ``"tagging"``, as in GluonNLP's
            scripts. In the place of the last four any block will do that is called like them and
            returns logits of shape (batch, classes), for the last two (batch, seq, classes).
            float32.
        out_dir: where the bundle goes; nothing may be there yet.
        vocab: a ``gluonnlp.vocab.BERTVocab``, RoBERTa's ``gluonnlp.Vocab``, or the path of its JSON
            file or of a SentencePiece model.
        tokenizer: GluonNLP's ``BERTTokenizer``, ``GPT2BPETokenizer`` (RoBERTa) or
            ``BERTSPTokenizer`` (KoBERT); if left out, the first, or for the path of a
            SentencePiece model the last, as `lower` describes it.
        task: one of `bertrt.tasks.settings.TASKS`; or the name of a data set in
            `bertrt.tasks.settings.PRESETS`, such as ``"MRPC"``, which says the task, the labels in
            GluonNLP's order, and whether texts come in pairs.
        labels: the names of the classes or tags, in the order of the logits (of a tagger:
            ``tag_vocab.idx_to_token``); "0", "1", ... if left out.
        lower: whether the model was trained on lower-cased text; a `tokenizer` knows itself.
        max_length: the longest input in tokens, special ones included; longer text is truncated.
        pooling: for embeddings, what becomes of the token rows: ``{"mode": "mean" | "cls" | "max" |
            ... | "pooled" | "tokens" | "words", "normalize": bool}``, for words ``"subwords": "avg"
            | "sum" | "last"``, and what else docs/tasks.md has; the plain mean if left out.
        settings: what can be set for the other tasks, see `bertrt.tasks.settings.SETTINGS`;
            GluonNLP's defaults for what is left out.
        origin: facts to record in the manifest beside the versions of the frameworks.

    Returns:
        The path of the bundle.

    Raises:
        InvalidInputError, InvalidTypeError: an argument does not fit, or does not fit the net.
        OutputExistsError: `out_dir` exists.
        MissingFileError: the vocabulary file, or the directory to hold `out_dir`, is not there.
        ModelFormatError: the vocabulary file is broken.
        UnsupportedModelError: the net holds something that the runtime does not run.
        MissingDependencyError: mxnet, gluonnlp or onnx is not installed.
        WriteError: the system refuses a file; there is nothing at `out_dir`.
        BertrtError: the finished bundle gives other numbers than the net; it is not kept.

    Example::

        export_model(net, "review.bundle", vocab=vocab, task="classification",
                     labels=["negative", "positive"], lower=True, max_length=128)
    """
    mxnet, _ = import_gluon()
    if not isinstance(net, mxnet.gluon.Block):
        raise InvalidTypeError(
            f"net should be an initialised GluonNLP BERTModel or BERTClassifier, or another Gluon "
            f"block over one, found {type(net).__name__}"
        )
    if not isinstance(lower, bool):
        raise InvalidTypeError(f"lower should be True or False, found {lower!r}")
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise InvalidTypeError(f"max_length should be a whole number, found {max_length!r}")
    if origin is not None and not isinstance(origin, Mapping):
        raise InvalidTypeError(f"origin should be a dict of facts, found {origin!r}")
    try:
        json.dumps(origin)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(f"origin should hold what JSON can say: {error}") from error
    task, labels, settings = apply_preset(task, labels, settings)
    return write_bundle(
        net,
        out_dir,
        tokenizer=_tokenizer_file(vocab, tokenizer, lower, max_length),
        task=task,
        labels=labels,
        pooling=pooling,
        settings=settings,
        origin={"framework": "gluonnlp", **(origin or {})},
    )


def is_sentencepiece(path: Path) -> bool:
    """Whether a vocabulary file is, by its name, a SentencePiece model."""
    return path.suffix in (".spiece", ".model")


def _tokenizer_file(vocab: Any, tokenizer: Any, lower: bool, max_length: int) -> TokenizerFile:
    _, gluonnlp = import_gluon()
    loaded = load_vocab(vocab)
    kind, pieces = "gluonnlp", None
    if isinstance(tokenizer, gluonnlp.data.GPT2BPETokenizer):
        kind, lower = "gluonnlp-bpe", False
        ranks = sorted(tokenizer._bpe_ranks, key=tokenizer._bpe_ranks.__getitem__)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in ranks), ""]
        pieces = "\n".join(lines).encode()
    elif isinstance(tokenizer, gluonnlp.data.BERTSPTokenizer):
        kind, lower = "gluonnlp-sentencepiece", tokenizer.basic_tokenizer("A") == ["a"]
        model = check_path("the tokenizer's model", tokenizer._path)
        if not model.is_file():
            raise MissingFileError(f"the tokenizer's model {model} does not exist")
        pieces = model.read_bytes()
    elif isinstance(tokenizer, gluonnlp.data.BERTTokenizer):
        lower = tokenizer.basic_tokenizer.tokenize("A") == ["a"]
    elif tokenizer is not None:
        raise InvalidTypeError(
            "tokenizer should be a BERTTokenizer, GPT2BPETokenizer or BERTSPTokenizer of GluonNLP, "
            f"found {type(tokenizer).__name__}"
        )
    elif loaded is not vocab and is_sentencepiece(Path(vocab)):
        kind, pieces = "gluonnlp-sentencepiece", Path(vocab).read_bytes()
    elif not is_wordpiece(loaded):
        raise InvalidInputError(
            "the vocabulary is not that of a BERTTokenizer; give the GPT2BPETokenizer or "
            "BERTSPTokenizer that goes with it as tokenizer"
        )
    return TokenizerFile(kind, loaded.to_json(), lower, max_length, len(loaded), pieces)


def is_wordpiece(vocab: Any) -> bool:
    """Whether a GluonNLP vocabulary is one for WordPiece, and not RoBERTa's, which has no [CLS], or
    a SentencePiece model's, whose words begin with a mark."""
    has_cls = getattr(vocab, "cls_token", None) is not None
    return has_cls and not any(token[:1] == "▁" != token for token in vocab.idx_to_token)


def load_vocab(vocab: Any) -> Any:
    """`vocab` as a GluonNLP vocabulary: itself, or read from the file that it names.

    Args:
        vocab: a ``BERTVocab``, a ``Vocab`` with the tokens of RoBERTa, the path of the JSON of
            either, or of a SentencePiece model (``.spiece`` or ``.model``).

    Raises:
        InvalidTypeError: it is neither a vocabulary nor a path.
        MissingFileError: there is no such file.
        ModelFormatError: the file is not that of a vocabulary.
    """
    _, gluonnlp = import_gluon()
    if isinstance(vocab, gluonnlp.Vocab):
        return vocab
    if not isinstance(vocab, (str, os.PathLike)):
        raise InvalidTypeError(
            "vocab should be a gluonnlp.vocab.BERTVocab or the path of its JSON file, "
            f"found {type(vocab).__name__}"
        )
    path = Path(vocab)
    if not path.is_file():
        raise MissingFileError(f"the vocabulary file {path} does not exist")
    try:
        if is_sentencepiece(path):
            # As GluonNLP reads KoBERT's.
            return gluonnlp.vocab.BERTVocab.from_sentencepiece(str(path), padding_token="[PAD]")
        Vocabulary.read(path)
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        # To RoBERTa's, a BERTVocab would add a [CLS] and a [SEP] that its model has no rows for.
        named = content | (content.get("identifiers_to_tokens") or {})
        kind = gluonnlp.Vocab if named.get("cls_token") is None else gluonnlp.vocab.BERTVocab
        return kind.from_json(text)
    except BertrtError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: a SentencePiece model needs the package sentencepiece: "
            "pip install 'bertrt[export]'"
        ) from error
    except Exception as error:
        # GluonNLP asserts, and falls over in its own ways on what it does not expect.
        raise ModelFormatError(f"{path}: GluonNLP cannot read the vocabulary: {error!r}") from error


def write_bundle(
    net: Any,
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: TokenizerFile,
    task: str,
    labels: Sequence[str] | None,
    pooling: Mapping[str, Any] | None,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any],
    modules: Sequence[Module] = (),
) -> Path:
    """Write the bundle of `net`; :func:`export_model` says what the arguments are and raise.
    `modules` are what comes behind an embedding's pooling."""
    names = output_names(net)
    check_task(task, names)
    pooling = check_pooling(pooling, task, names)
    settings = complete_settings(settings, task, tokenizer.max_length)
    with writing(out_dir) as draft:
        # The smallest batch settles shapes that MXNet leaves open until the first call.
        ones = np.ones((1, 1), dtype=np.int64)
        smallest = {"token_ids": 0 * ones, "token_types": 0 * ones, "valid_length": ones[0]}
        if "masked_lm_outputs" in names:
            smallest["masked_positions"] = 0 * ones
        first = run_gluon(net, smallest)
        axes = "(batch, seq, classes)" if task in _OVER_TOKENS else "(batch, classes)"
        if "logits" in first and first["logits"].ndim != 1 + axes.count(","):
            raise InvalidInputError(
                f"the net returns an array of shape {first['logits'].shape} for one row; "
                f"logits of shape {axes} are expected"
            )
        labels = check_labels(labels, task, first["logits"].shape[-1] if "logits" in first else 0)
        symbol, params = write_symbol_pair(net, draft.directory)
        symbol_to_onnx(symbol, params, draft.directory / ONNX)
        plan, _ = compile_symbol(symbol, params)
        write_plan(plan, draft.directory)
        golden = record_golden(
            functools.partial(run_gluon, net),
            plan.architecture,
            masked="masked_positions" in smallest,
        )
        seal(
            draft,
            plan,
            tokenizer=tokenizer,
            task=task,
            labels=labels,
            pooling=pooling,
            settings=settings,
            origin=origin,
            golden=golden,
            modules=modules,
        )
    return Path(out_dir)


def seal(
    draft: BundleDraft,
    plan: Plan,
    *,
    tokenizer: TokenizerFile | None,
    task: str,
    labels: Sequence[str] | None,
    pooling: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any],
    golden: Sequence[GoldenCase],
    modules: Sequence[Module] = (),
) -> None:
    """Write what is left of a bundle, its manifest last, and check its numbers.

    Raises:
        InvalidInputError: the tokenizer does not fit the model.
        BertrtError: a backend gives other numbers than the golden ones.
    """
    files = None
    if tokenizer is not None:
        _check_tokenizer(tokenizer, plan.architecture)
        files = tokenizer.write(draft.directory)
    write_modules(modules, draft.directory)
    if golden:
        write_golden(draft.directory / GOLDEN, golden)
    draft.seal(
        {
            "task": task,
            "labels": None if labels is None else list(labels),
            "architecture": dict(plan.architecture),
            "outputs": list(plan.outputs),
            "tokenizer": files,
            "pooling": None if pooling is None else dict(pooling),
            "settings": dict(settings),
            "origin": {**origin, "versions": _versions()},
        }
    )
    if not golden:
        return
    report = verify(draft.directory, live=False)
    if not report.ok:
        raise BertrtError(
            "the finished bundle does not give the numbers of the model it was made from, "
            f"and was not kept\n{report}"
        )


# The tasks with logits for every token
_OVER_TOKENS = ("question-answering", "tagging")


def _check_tokenizer(tokenizer: TokenizerFile, architecture: Mapping[str, Any]) -> None:
    if not 3 <= tokenizer.max_length <= architecture["max_length"]:
        raise InvalidInputError(
            f"max_length should be from 3 to the model's {architecture['max_length']} positions, "
            f"found {tokenizer.max_length}"
        )
    ids = architecture["vocab_size"]
    # Hugging Face's vocabularies may have fewer tokens than the model has rows, and more. In
    # GluonNLP the sizes are one and the same, so that a difference means another model's.
    if tokenizer.kind != "huggingface" and tokenizer.size != ids:
        raise InvalidInputError(
            f"the vocabulary has {tokenizer.size} tokens and the model's word embedding {ids} "
            "rows; they do not belong together"
        )


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for name in ("bertrt", "mxnet", "gluonnlp", "numpy", "onnx"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
