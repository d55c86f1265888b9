"""The files of GluonNLP's zoo: where they are kept, and fetched where they are not."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bertrt.errors import InvalidInputError, MissingFileError, ModelFormatError

from .gluon_to_symbol import import_gluon

__all__ = ["VOCAB_SIZES", "ZooFile", "fetch_files", "merges_file", "params_file", "vocab_file"]

# The tokens of every vocabulary, which GluonNLP's package does not hold. Its tests
# (tests/unittest/test_models.py) state them; those of KoBERT, DistilBERT and ERNIE 1.0 are what
# SKTBrain/KoBERT, distilbert-base-uncased and PaddlePaddle/ERNIE published.
VOCAB_SIZES = {
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


def vocab_file(dataset: str) -> ZooFile:
    _, gluonnlp = import_gluon()
    if dataset not in VOCAB_SIZES:
        raise InvalidInputError(
            f"the zoo has no vocabulary for {dataset!r} (it has them for "
            f"{', '.join(VOCAB_SIZES)}); give one with --vocab"
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


def params_file(model: str, dataset: str) -> ZooFile:
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


def merges_file() -> ZooFile:
    _, gluonnlp = import_gluon()
    tokenizer = gluonnlp.data.GPT2BPETokenizer
    name, sha1 = tokenizer.bpe_ranks_file_hash
    path = _models() / name
    return ZooFile(path, sha1, "--merges", lambda: tokenizer(root=str(path.parent)))


def _models() -> Path:
    _, gluonnlp = import_gluon()
    return Path(gluonnlp.base.get_home_dir()).expanduser() / "models"


def fetch_files(files: Sequence[ZooFile]) -> None:
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
