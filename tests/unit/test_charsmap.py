"""SentencePiece's table of normalisation: what the tokenizers library would not survive."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from bertrt.errors import ModelFormatError
from bertrt.models.huggingface.tokenizer.sentencepiece import read_sentencepiece
from bertrt.text.charsmap import check_charsmap, check_charsmaps, has_charsmap

PATH = Path("a.model")


@pytest.fixture(scope="module")
def real(train_sentencepiece, tmp_path_factory) -> bytes:
    """The table of a trained model, that of NFKC."""
    path = tmp_path_factory.mktemp("charsmap") / "a.model"
    train_sentencepiece(path, ["the boat the sea of the boats"] * 20, size=60)
    table = read_sentencepiece(path).charsmap
    assert table is not None and len(table) > 100_000
    return table


def test_a_real_one(real: bytes) -> None:
    check_charsmap(real, PATH)
    assert normalizers.Precompiled(real).normalize_str("ﬁ\u2460") == "fi1"


LEAF = 1 << 31


def table(units: list[int], texts: bytes = b"a\0", size: int | None = None) -> bytes:
    units = [*units, *[0] * (256 - len(units))] if len(units) < 256 else units
    size = 4 * len(units) if size is None else size
    return struct.pack(f"<I{len(units)}I", size, *units) + texts


@pytest.mark.parametrize(
    ("charsmap", "message"),
    [
        (b"\0\0\0", "it has 3 bytes"),
        (b"\xff\xff\xff\xff", "said to have a trie of 4294967295 bytes, and has 4 in all"),
        (struct.pack("<I", 1 << 31) + bytes(8), "said to have a trie of"),
        (table([0], size=1022), "said to have a trie of 1022 bytes"),
        (struct.pack("<II", 4, 0) + b"\0", "has 1 units"),
        (struct.pack("<I", 0), "has 0 units"),
        (table([1 << 20]), "leads out of it"),
        (table([1 << 10 | 1 << 8, 0]), "leads to no leaf"),
        (table([1 << 10 | 1 << 8, LEAF | 2]), "leads to no replacement"),
        (table([1 << 10 | 1 << 8, LEAF | 1], "é\0".encode()), "leads to no replacement"),
    ],
)
def test_broken_ones(charsmap: bytes, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        check_charsmap(charsmap, PATH)


def test_what_is_let_through_does_no_harm(real: bytes) -> None:
    """Of tables with some bytes changed, those that are not refused normalize any text."""
    random = np.random.default_rng(0)
    texts = ["the boat", "ﬁ①Ⅷ", "é́", "日本", "한국", "\u00a0\u200b", "\U0001d400"]
    taken = 0
    for _ in range(300):
        changed = bytearray(real)
        for _ in range(int(random.integers(1, 4))):
            changed[int(random.integers(4, len(real)))] = int(random.integers(256))
        try:
            check_charsmap(bytes(changed), PATH)
        except ModelFormatError:
            continue
        try:
            made = normalizers.Precompiled(bytes(changed))
        except Exception:  # no text any more
            continue
        taken += 1
        for text in texts:
            made.normalize_str(text)
    assert taken > 20


def test_those_of_a_tokenizer(real: bytes) -> None:
    good = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(real).decode()}
    bad = good | {"precompiled_charsmap": base64.b64encode(b"\xff" * 4).decode()}
    check_charsmaps({"normalizer": {"type": "Sequence", "normalizers": [good]}}, PATH)
    check_charsmaps({"normalizer": None}, PATH)
    for inner in (bad, bad | {"precompiled_charsmap": "é"}, bad | {"precompiled_charsmap": 1}):
        with pytest.raises(ModelFormatError, match="its table of normalisation is"):
            check_charsmaps({"normalizer": {"type": "Sequence", "normalizers": [inner]}}, PATH)
    plain = json.dumps({"normalizer": bad}).encode()
    assert has_charsmap(plain)
    assert has_charsmap(plain.replace(b"charsmap", b"ch\\u0061rsmap"))
    assert not has_charsmap(b'{"a": "\\u00e9\\u001f"}')
