"""Long texts, of which a part is tokenized: the ids and `truncated` are those of the whole."""

# ruff: noqa: RUF001 (texts in many scripts)

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from bertrt.text import gluonnlp, huggingface
from bertrt.text.gluonnlp import BytePairTokenizer, SentencePieceTokenizer, WordPieceTokenizer
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules
from bertrt.text.vocabulary import BYTES, Vocabulary

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_lowercase, "σ", "ς", "中", "é", "!", "'"]
WORDS = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "boat", "##boat", "sea"]


def vocabulary(path: Path, tokens: list[str]) -> Vocabulary:
    reserved = {"padding_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: i for i, token in enumerate(tokens)},
        "reserved_tokens": [*reserved.values(), "[MASK]"],
        "unknown_token": "[UNK]",
        "identifiers_to_tokens": {**reserved, "mask_token": "[MASK]"},
    } | {"unknown_token": "[UNK]"}
    content["identifiers_to_tokens"] |= {"bos_token": None, "eos_token": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    return Vocabulary.read(path)


def bert(normalizer: Any, before: Any, *added: AddedToken, **rules: Any) -> HuggingFaceTokenizer:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizer, before
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens([*SPECIAL])
    made.add_tokens(list(added))
    return HuggingFaceTokenizer(made, max_length=512, rules=Rules("[MASK]", **rules))


def byte_level() -> HuggingFaceTokenizer:
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(BYTES)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    return HuggingFaceTokenizer(made, max_length=512)


def unigram() -> HuggingFaceTokenizer:
    pieces = [("<unk>", 0.0), *((piece, -1.0) for piece in ["▁", *LETTERS, "▁boat", "boat▁"])]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return HuggingFaceTokenizer(made, max_length=512)


def left_of_blanks() -> AddedToken:
    return AddedToken("sea", lstrip=True, single_word=True)


BERT = {
    "uncased": lambda: bert(normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "cased": lambda: bert(
        normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    ),
    "no normalizer": lambda: bert(None, pre_tokenizers.BertPreTokenizer()),
    "added": lambda: bert(
        normalizers.BertNormalizer(clean_text=False),
        pre_tokenizers.BertPreTokenizer(),
        left_of_blanks(),
        AddedToken("boat", rstrip=True, normalized=False),
    ),
    "special tokens are text": lambda: bert(
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        split_special_tokens=True,
    ),
}
OTHERS = {
    "the end is kept": lambda: bert(
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), truncation_side="left"
    ),
    "a token with a blank": lambda: bert(
        normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), AddedToken("boat sea")
    ),
    "another normalizer": lambda: bert(normalizers.NFKC(), pre_tokenizers.BertPreTokenizer()),
    "another pre-tokenizer": lambda: bert(normalizers.BertNormalizer(), pre_tokenizers.Metaspace()),
    "byte-level": byte_level,
    "unigram": unigram,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, train_sentencepiece_once) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("tokenizers")
    words = vocabulary(directory / "words.json", WORDS)
    found: dict[str, Any] = {name: make() for name, make in {**BERT, **OTHERS}.items()}
    for lower in (True, False):
        found[f"gluonnlp {lower}"] = WordPieceTokenizer(words, lower=lower, max_length=512)
    pieces = vocabulary(directory / "bytes.json", [*SPECIAL, *BYTES])
    found["gluonnlp-bpe"] = BytePairTokenizer(pieces, [], max_length=512)
    if train_sentencepiece_once is not None:
        found["gluonnlp-sentencepiece"] = train_sentencepiece_once(vocabulary)
    return found


@pytest.fixture(scope="module")
def train_sentencepiece_once(tmp_path_factory) -> Any:
    try:
        import sentencepiece
    except ImportError:
        return None
    directory = tmp_path_factory.mktemp("pieces")
    (directory / "texts").write_text("the boat sees the sea\nboats at sea é 中\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "texts"),
        model_prefix=str(directory / "pieces"),
        vocab_size=40,
        hard_vocab_limit=False,
        user_defined_symbols=["[PAD]", "[CLS]", "[SEP]", "[MASK]"],
        unk_piece="[UNK]",
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(str(directory / "pieces.model"))
    tokens = [model.id_to_piece(i) for i in range(len(model))]

    def make(read: Any) -> SentencePieceTokenizer:
        return SentencePieceTokenizer(
            read(directory / "vocab.json", tokens),
            directory / "pieces.model",
            lower=True,
            max_length=512,
        )

    return make


PARTS = ["boat", "sea", "Σ", "ΟΔΟΣ", "é", "e", "\u0301", "中", "[MASK]", "[SEP]", "!", "'s", "xq"]
BETWEEN = [" ", " ", "  ", "\n", "\t", "\r\n", "\xa0", "\u3000", "\x85", "\u2028", "\x1c", "\u200b"]
BETWEEN += ["", "\ufffd", "\x07"]
TEXT = st.builds(
    lambda parts, times: "".join(map("".join, parts)) * times,
    st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(BETWEEN)), max_size=16),
    st.sampled_from([0, 1, 10]),
)
NAMES = [*BERT, *OTHERS, "gluonnlp True", "gluonnlp False", "gluonnlp-bpe"]
NAMES += ["gluonnlp-sentencepiece"]


def chosen(made: dict[str, Any], name: str) -> Any:
    if name not in made:
        pytest.skip("needs the package sentencepiece")
    return made[name]


def shown(encodings: Any) -> Any:
    return [(own.ids.tolist(), own.types.tolist(), own.truncated) for own in encodings]


@pytest.mark.parametrize("name", NAMES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=2), length=st.integers(4, 6))
def test_a_part_gives_what_the_whole_does(made, name: str, texts: Any, length: int) -> None:
    tokenizer = chosen(made, name)
    tokenizer.limit(length)
    for batch in ([first for first, _ in texts], texts):
        for masks in (False, True):
            found = shown(tokenizer.encode(batch, masks=masks))
            with pytest.MonkeyPatch.context() as patch:
                for module in (huggingface, gluonnlp):
                    patch.setattr(module, "long_ones", lambda *_: [])
                assert found == shown(tokenizer.encode(batch, masks=masks))


@pytest.mark.parametrize("name", NAMES)
def test_which_are_read_in_part(made, name: str, monkeypatch) -> None:
    """Those whose rules are BERT's; and of a pair the one that is long."""
    tokenizer = chosen(made, name)
    tokenizer.limit(16)
    given_to: list[int] = []
    for module in (huggingface, gluonnlp):
        before = module.with_or_without_threads

        def run(encode: Any, texts: Any, before: Any = before, **options: Any) -> Any:
            flat = [part for text in texts for part in ([text] if isinstance(text, str) else text)]
            given_to.append(max(map(len, flat)))
            return before(encode, texts, **options)

        monkeypatch.setattr(module, "with_or_without_threads", run)
    if name == "gluonnlp-sentencepiece":
        basic = gluonnlp.basic_tokenize
        monkeypatch.setattr(
            gluonnlp,
            "basic_tokenize",
            lambda text, **options: (given_to.append(len(text)), basic(text, **options))[1],
        )
    long = "boat sea " * 300
    whole = name in OTHERS or name == "gluonnlp-bpe"
    for batch in ([long], [("boat", long)], [(long, "boat")]):
        given_to.clear()
        (encoding,) = tokenizer.encode(batch)
        assert encoding.truncated and len(encoding.ids) == 16
        assert (max(given_to) >= len(long)) == whole
    # Nothing but blanks, one word, few words: more and more is read, and the same comes out.
    for text in (" " * 3_000, "b" * 3_000, "boat" + " " * 3_000 + "sea", " " * 3_000 + long):
        (encoding,) = tokenizer.encode([text])
        assert shown([encoding]) == shown(unshortened(tokenizer, text))


def unshortened(tokenizer: Any, text: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for module in (huggingface, gluonnlp):
            patch.setattr(module, "long_ones", lambda *_: [])
        return tokenizer.encode([text])
