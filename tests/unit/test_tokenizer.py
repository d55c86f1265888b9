"""Vocabulary files, and tokenizers that are not GluonNLP's to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from bertrt.errors import BertrtError, MissingFileError, ModelFormatError
from bertrt.text.basic import basic_spans, basic_tokenize
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules
from bertrt.text.load import load_tokenizer
from bertrt.text.vocabulary import Vocabulary

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "!", "a", "b"]
GLUON = {"kind": "gluonnlp", "file": "vocab.json", "lower": True, "max_length": 16}


def test_encode(write_vocabulary) -> None:
    tokenizer = load_tokenizer(GLUON, write_vocabulary(TOKENS).parent)
    one, other = tokenizer.encode(["Hello worlds!", "unheard of"])
    assert one.ids.tolist() == [2, 5, 6, 7, 8, 3]
    assert one.types.tolist() == [0] * 6
    assert other.ids.tolist() == [2, 1, 1, 3]
    assert not one.truncated
    (pair,) = tokenizer.encode([("hello", "worlds")])
    assert pair.ids.tolist() == [2, 5, 3, 6, 7, 3]
    assert pair.types.tolist() == [0, 0, 0, 1, 1, 1]
    assert pair.ids.dtype == pair.types.dtype == np.int32


def test_pair_without_second_text_is_single(write_vocabulary) -> None:
    tokenizer = load_tokenizer(GLUON, write_vocabulary(TOKENS).parent)
    (pair,) = tokenizer.encode([("hello", " \u200b ")])
    assert pair.ids.tolist() == [2, 5, 3]


def test_truncation_is_told(write_vocabulary) -> None:
    tokenizer = load_tokenizer(GLUON | {"max_length": 5}, write_vocabulary(TOKENS).parent)
    exact, beyond = tokenizer.encode(["hello hello hello", "hello hello hello a"])
    assert (len(exact.ids), exact.truncated) == (5, False)
    assert (len(beyond.ids), beyond.truncated) == (5, True)


@pytest.mark.parametrize("text", ["", " ", "\t\u200b\x01", "\u0301"])
def test_nothing_to_encode(write_vocabulary, text: str) -> None:
    tokenizer = load_tokenizer(GLUON, write_vocabulary(TOKENS).parent)
    some, none = tokenizer.encode(["hello", text])
    assert len(some.ids) == 3 and none.ids.tolist() == [some.ids[0], some.ids[-1]]


def test_more_texts_than_a_chunk(write_vocabulary, monkeypatch) -> None:
    monkeypatch.setattr("bertrt.text.encoding._TEXTS_AT_ONCE", 3)
    tokenizer = load_tokenizer(GLUON, write_vocabulary(TOKENS).parent)
    many = tokenizer.encode(["hello", "world", "a", "b", "!", "hello world", "b a"])
    assert [encoding.ids[1] for encoding in many] == [5, 6, 9, 10, 8, 5, 10]
    assert tokenizer.encode([]) == []


def test_old_vocabulary_files(write_vocabulary) -> None:
    """Special tokens at the top level, [UNK] first, no identifiers."""
    tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"]
    path = write_vocabulary(
        tokens,
        identifiers_to_tokens={},
        padding_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token=None,
        eos_token=None,
    )
    content = json.loads(path.read_text())
    del content["identifiers_to_tokens"], content["idx_to_token"]
    path.write_text(json.dumps(content))
    (encoding,) = load_tokenizer(GLUON, path.parent).encode(["a x"])
    assert encoding.ids.tolist() == [2, 5, 0, 3]


def test_bos_and_eos_stand_in(write_vocabulary) -> None:
    path = write_vocabulary(
        ["<unk>", "<s>", "</s>", "a"],
        unknown_token="<unk>",
        identifiers_to_tokens={"bos_token": "<s>", "eos_token": "</s>", "cls_token": None},
    )
    (encoding,) = load_tokenizer(GLUON, path.parent).encode(["a ."])
    assert encoding.ids.tolist() == [1, 3, 0, 2]


def broken(name: str, message: str, **changes: object):
    return pytest.param(changes, message, id=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        broken("no tokens", "token_to_idx is missing", token_to_idx={}),
        broken("list", "token_to_idx is missing", token_to_idx=TOKENS),
        broken(
            "duplicate",
            "both have the id 6",
            token_to_idx={token: i - (i == 7) for i, token in enumerate(TOKENS)},
        ),
        broken(
            "hole",
            "'b' has the id 11",
            token_to_idx={token: i + (i == 10) for i, token in enumerate(TOKENS)},
        ),
        broken("negative", "the id -1", token_to_idx={"[UNK]": -1}),
        broken("float", "the id 0.5", token_to_idx={"[UNK]": 0.5}),
        broken("bool", "the id True", token_to_idx={"[UNK]": 0, "a": True}),
        broken("disagreement", "do not say the same", idx_to_token=TOKENS[::-1]),
        broken("no unknown", "unknown_token is None", unknown_token=None),
        broken("unknown without id", r"unknown_token is '\[unk\]'", unknown_token="[unk]"),
        broken("no cls", "cls_token is None", identifiers_to_tokens={"sep_token": "[SEP]"}),
        broken("no sep", "sep_token is None", identifiers_to_tokens={"cls_token": "[CLS]"}),
        broken("identifiers", "identifiers_to_tokens", identifiers_to_tokens=["[CLS]"]),
    ],
)
def test_broken_vocabulary(write_vocabulary, changes: dict, message: str) -> None:
    path = write_vocabulary(TOKENS, **changes)
    with pytest.raises(ModelFormatError, match=message) as caught:
        Vocabulary.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"12", b"\xff\xfe{}", b"[" * 100_000], ids=repr
)
def test_not_a_vocabulary(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vocab.json"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match="not a vocabulary"):
        Vocabulary.read(path)


def test_truncated_vocabulary(write_vocabulary) -> None:
    path = write_vocabulary(TOKENS)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            Vocabulary.read(path)


def test_vocabulary_must_fit_the_model(write_vocabulary) -> None:
    directory = write_vocabulary(TOKENS).parent
    load_tokenizer(GLUON, directory, vocab_size=len(TOKENS))
    # Some models have more rows than tokens, to round the size up.
    load_tokenizer(GLUON, directory, vocab_size=len(TOKENS) + 5)
    with pytest.raises(ModelFormatError, match=r"ids up to 10.*only 10 rows"):
        load_tokenizer(GLUON, directory, vocab_size=len(TOKENS) - 1)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kind": "sentencepiece"}, ModelFormatError),
        ({"kind": "gluonnlp-bpe"}, ModelFormatError),
        ({"kind": "gluonnlp-bpe", "pieces": "none.txt"}, MissingFileError),
        ({"kind": "gluonnlp-sentencepiece", "pieces": "none.model"}, MissingFileError),
        ({"kind": None}, ModelFormatError),
        ({"lower": "yes"}, ModelFormatError),
        ({"max_length": 2}, ModelFormatError),
        ({"max_length": True}, ModelFormatError),
        ({"file": 3}, ModelFormatError),
        ({"file": "none.json"}, MissingFileError),
    ],
    ids=str,
)
def test_broken_settings(write_vocabulary, settings: dict, error: type[BertrtError]) -> None:
    directory = write_vocabulary(TOKENS).parent
    with pytest.raises(error):
        load_tokenizer(GLUON | settings, directory)


def test_basic_tokenize() -> None:
    """GluonNLP's rules where they are not Hugging Face's, spelled out."""
    words = basic_tokenize("ΣΑΣ É\u2028x 中[MASK]", lower=True).split()
    assert words == ["σας", "e", "x", "中", "[", "mask", "]"]
    # Accents and Hangul come apart in cased text too.
    assert basic_tokenize("É 사", lower=False).split() == ["E", "\u1109\u1161"]


# --- Hugging Face -----------------------------------------------------------------------------


@pytest.fixture
def huggingface(tmp_path: Path):
    """A function that writes a small tokenizer.json with padding and truncation switched on, and
    loads it."""

    def load(max_length: int):
        tokens = {token: i for i, token in enumerate([*TOKENS, "é"])}
        tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        tokenizer.add_special_tokens([AddedToken("[MASK]", special=True)])
        tokenizer.enable_padding(length=32)
        tokenizer.enable_truncation(7)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        settings = {"kind": "huggingface", "file": "tokenizer.json", "max_length": max_length}
        return load_tokenizer(settings, tmp_path)

    return load


def test_huggingface_rules(huggingface) -> None:
    """Special tokens in the text are kept; accents of cased text too; nothing is padded."""
    tokenizer = huggingface(16)
    one, other = tokenizer.encode(["hello [MASK] worlds é!", "a"])
    assert one.ids.tolist() == [2, 5, 4, 6, 7, 11, 8, 3]
    assert other.ids.tolist() == [2, 9, 3]
    (pair,) = tokenizer.encode([("a", "b b")])
    assert pair.ids.tolist() == [2, 9, 3, 10, 10, 3]
    assert pair.types.tolist() == [0, 0, 0, 1, 1, 1]
    assert tokenizer.vocab_size == 12


def test_huggingface_truncation(huggingface) -> None:
    tokenizer = huggingface(6)
    exact, beyond = tokenizer.encode(["a a a a", "a a a a b"])
    assert (exact.ids.tolist(), exact.truncated) == ([2, 9, 9, 9, 9, 3], False)
    assert (beyond.ids.tolist(), beyond.truncated) == ([2, 9, 9, 9, 9, 3], True)
    (pair,) = tokenizer.encode([("a a a a a", "b")])
    assert (pair.ids.tolist(), pair.truncated) == ([2, 9, 9, 3, 10, 3], True)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 7, 12])
def test_pairs_are_cut_as_the_library_cuts_them(side: str, max_length: int) -> None:
    """Which makes them of the whole, and all that is cut away beside."""
    random = np.random.default_rng(max_length)
    made = []
    for _ in range(2):
        words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4}
        library = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
        made.append(library)
    ours = HuggingFaceTokenizer(
        made[0], max_length=max_length, rules=Rules(None, truncation_side=side)
    )
    made[1].enable_truncation(max_length, strategy="longest_first", direction=side)
    batch = []
    for _ in range(60):
        first, second = (
            " ".join(random.choice(["a", "b", "c"], int(random.integers(0, 12)))) for _ in "ab"
        )
        batch.append((first, second) if random.random() < 0.8 else first)
    for own, theirs in zip(ours.encode(batch), made[1].encode_batch(batch), strict=True):
        assert own.ids.tolist() == theirs.ids
        assert own.types.tolist() == theirs.type_ids
        assert own.truncated == bool(theirs.overflowing)


def test_a_text_that_has_no_place_is_refused() -> None:
    library = Tokenizer(models.WordLevel({"[CLS]": 0, "a": 1}))
    library.post_processor = processors.TemplateProcessing(
        single="[CLS]", pair="[CLS] $A $B", special_tokens=[("[CLS]", 0)]
    )
    tokenizer = HuggingFaceTokenizer(library, max_length=8, rules=Rules(None))
    with pytest.raises(ModelFormatError, match="leaves the text out"):
        tokenizer.join([1])


def test_a_token_that_was_added_twice_is_written_as_it_is_read() -> None:
    """As special, and then as one that is not: the library goes on taking it for special."""
    rules = Rules(None, split_special_tokens=True)
    library = Tokenizer(models.WordPiece({"[UNK]": 0, "m": 1, "##y": 2}, unk_token="[UNK]"))
    library.add_special_tokens(["my"])
    library.add_tokens([AddedToken("my", special=False)])
    own = HuggingFaceTokenizer(library, max_length=8, rules=rules)
    again = HuggingFaceTokenizer(Tokenizer.from_str(own.to_json()), max_length=8, rules=rules)
    assert own.tokenize(["my"]) == again.tokenize(["my"]) == [[1, 2]]


def test_huggingface_nothing_to_encode(huggingface) -> None:
    tokenizer = huggingface(16)
    assert [e.ids.tolist() for e in tokenizer.encode(["", " "])] == [[2, 3], [2, 3]]
    pairs = tokenizer.encode([(" ", "a"), ("a", ""), ("", "")])
    assert [e.ids.tolist() for e in pairs] == [[2, 3, 9, 3], [2, 9, 3, 3], [2, 3, 3]]
    assert [e.types.tolist() for e in pairs] == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1]]


def test_huggingface_file_is_broken(huggingface, tmp_path: Path) -> None:
    huggingface(16)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text()
    for content in ("", "{}", "[1", whole[: len(whole) // 2]):
        path.write_text(content)
        with pytest.raises(ModelFormatError, match=r"tokenizer\.json"):
            load_tokenizer(
                {"kind": "huggingface", "file": "tokenizer.json", "max_length": 8}, tmp_path
            )


def test_huggingface_corpus(corpora: Path) -> None:
    """Ids that other implementations published."""
    settings = {
        "kind": "huggingface",
        "file": "bert-base-uncased.tokenizer.json",
        "max_length": 512,
    }
    tokenizer = load_tokenizer(settings, corpora / "vocab" / "tokenizer-json")
    path = corpora / "tokenizer-gold" / "squad_questions_bert-base-uncased.part-a.jsonl"
    gold = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = tokenizer.encode([case["original"] for case in gold])
    for case, encoding in zip(gold, found, strict=True):
        assert encoding.ids[1:-1].tolist() == case["ids"], case["original"]


@pytest.mark.parametrize("lower", [True, False])
def test_where_the_words_of_the_basic_tokenizer_stand(lower: bool, rng) -> None:
    alphabet = (
        "aBz09 é\u0301\u0323\u0130ß\u2260\u037e東\u4eac한ㅎकि\u0e34\U0001f642\u200b\u200d\ufe0f"
        "\u00ad\x00\x1c\x85\u2028\u00a0\u3000\t\n.-'\"()«»$^_\ufffd\ufb01\u1fef\u0345"
    )
    for _ in range(3000):
        text = "".join(alphabet[i] for i in rng.integers(0, len(alphabet), rng.integers(0, 12)))
        spans = basic_spans(text, lower=lower)
        words = [word for s, e in spans for word in basic_tokenize(text[s:e], lower=lower).split()]
        assert words == basic_tokenize(text, lower=lower).split(), repr(text)
        flat = [place for span in spans for place in span]
        assert flat == sorted(flat) and all(start < end for start, end in spans), repr(text)
        # A word is one word, and ends with a character that shows.
        assert all(len(basic_tokenize(text[s:e], lower=lower).split()) == 1 for s, e in spans)
    # A sigma that is capital ends a word as in the text.
    spans = basic_spans("ΟΔΟΣ, ΣΑΣ", lower=True)
    assert [basic_tokenize("ΟΔΟΣ, ΣΑΣ"[s:e], lower=True).split() for s, e in spans] == [
        ["οδος"],
        [","],
        ["σας"],
    ]
