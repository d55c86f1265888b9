"""A text in tokens with their places, and texts of tokens, by every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bertrt.errors import InvalidInputError
from bertrt.text.gluonnlp import BytePairTokenizer, SentencePieceTokenizer, WordPieceTokenizer
from bertrt.text.huggingface import HuggingFaceTokenizer
from bertrt.text.shown import shown_tokens
from bertrt.text.vocabulary import BYTES, Vocabulary

SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "padding": "[PAD]", "mask": "[MASK]"}
WORDS = ["[UNK]", *SPECIAL.values(), "the", "boat", "##s", "zurich", ",", "蘇"]


def vocabulary(directory: Path, tokens: list[str], special=SPECIAL, unknown="[UNK]") -> Vocabulary:
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: i for i, token in enumerate(tokens)},
        "reserved_tokens": list(special.values()),
        "unknown_token": unknown,
        "identifiers_to_tokens": {f"{name}_token": token for name, token in special.items()},
    }
    path = directory / "vocab.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return Vocabulary.read(path)


def hugging(directory: Path) -> HuggingFaceTokenizer:
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, WORDS.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends
    )
    made.add_special_tokens(list(SPECIAL.values()))
    from tokenizers import decoders

    made.decoder = decoders.WordPiece("##")
    return HuggingFaceTokenizer(made, max_length=5)


def word_piece(directory: Path) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary(directory, WORDS), lower=True, max_length=5)


@pytest.mark.parametrize("make", [hugging, word_piece])
def test_word_pieces(tmp_path: Path, make) -> None:
    tokenizer = make(tmp_path)
    text = "The boats,  Zürich 蘇\U0001f6a2 the boats"
    found = shown_tokens(tokenizer, text, special=True)
    # No token is cut, and each is where it stands in the text as it is.
    ids = tokenizer.tokenize([text])[0]
    assert [one.id for one in found] == [*tokenizer.join(ids).ids]
    assert len(found) > tokenizer.max_length
    for one in found[1:-1]:
        assert text[one.start : one.stop] == one.text and not one.special
    assert (found[1].text, found[5].text, found[6].text) == ("The", "Zürich", "蘇")
    for one, name in ((found[0], "[CLS]"), (found[-1], "[SEP]")):
        assert (one.text, one.special, one.start, one.stop) == (name, True, None, None)
    assert shown_tokens(tokenizer, text, special=False) == found[1:-1]
    assert [one.text for one in shown_tokens(tokenizer, "", special=True)] == ["[CLS]", "[SEP]"]
    with pytest.raises(InvalidInputError, match="NUL"):
        shown_tokens(tokenizer, "a\0", special=True)
    with pytest.raises(InvalidInputError, match="surrogate"):
        shown_tokens(tokenizer, "\ud800", special=True)
    ids = [one.id for one in shown_tokens(tokenizer, "the boats", special=True)]
    assert tokenizer.decode(ids, special=False) == "the boats"
    assert tokenizer.decode(ids, special=True) == "[CLS] the boats [SEP]"
    assert tokenizer.truncation_side == "right"


def test_byte_pairs(tmp_path: Path) -> None:
    special = {"bos": "<s>", "eos": "</s>", "padding": "<pad>", "mask": "<mask>"}
    tokens = ["<unk>", *special.values(), *BYTES, "Ġa", "bo"]
    made = vocabulary(tmp_path, tokens, special, "<unk>")
    tokenizer = BytePairTokenizer(made, [("Ġ", "a"), ("b", "o")], max_length=4)
    text = "bo a é \U0001f6a2"
    found = shown_tokens(tokenizer, text, special=True)
    assert (found[0].text, found[-1].text) == ("<s>", "</s>")
    assert (found[1].text, found[2].text) == ("bo", "a")
    ids = [one.id for one in found]
    assert tokenizer.decode(ids, special=False) == text
    assert tokenizer.decode(ids, special=True) == f"<s>{text}</s>"


def test_sentence_pieces(tmp_path: Path, train_sentencepiece) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = tmp_path / "small.spiece"
    train_sentencepiece(model, ["the boats at sea", "a boat", "the sea"] * 20, size=60)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = [processor.id_to_piece(index) for index in range(len(processor))]
    special = {name: token for name, token in SPECIAL.items() if token in tokens}
    made = vocabulary(tmp_path, tokens, special)
    tokenizer = SentencePieceTokenizer(made, model, lower=False, max_length=5)
    found = shown_tokens(tokenizer, "the boats", special=True)
    assert {one.text for one in found[1:-1]} == {"the", "boats"}
    ids = [one.id for one in found]
    assert tokenizer.decode(ids, special=False) == "the boats"
    assert tokenizer.decode(ids, special=True) == "[CLS] the boats[SEP]"
