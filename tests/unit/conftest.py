"""What the unit tests share: texts, vocabularies, and a backend small enough to check by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

SPECIAL = {
    "unknown_token": "[UNK]",
    "padding_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def vocabulary_json(tokens: list[str], **changes: object) -> dict[str, object]:
    """A vocabulary file's content, as GluonNLP's BERTVocab.to_json writes it."""
    identifiers = {key: value for key, value in SPECIAL.items() if key != "unknown_token"}
    content: dict[str, object] = {
        "idx_to_token": tokens,
        "token_to_idx": {token: i for i, token in enumerate(tokens)},
        "reserved_tokens": list(identifiers.values()),
        "unknown_token": "[UNK]",
        "identifiers_to_tokens": {**identifiers, "bos_token": None, "eos_token": None},
    }
    return content | changes


@pytest.fixture
def write_vocabulary(tmp_path: Path):
    """A function that writes a vocabulary file, and gives its path."""

    def write(tokens: list[str], **changes: object) -> Path:
        path = tmp_path / "vocab.json"
        path.write_text(json.dumps(vocabulary_json(tokens, **changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The directory of public corpora and vocabularies that BERTRT_TEST_DATA names."""
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory with corpora")
    return Path(directory)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
