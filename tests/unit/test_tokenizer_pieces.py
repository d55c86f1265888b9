"""Byte-level BPE and SentencePiece: the ids of GluonNLP's own tokenizers, and broken files."""

# ruff: noqa: RUF001 (texts in many scripts)

from __future__ import annotations

import hashlib
import json
import random
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bertrt.errors import InvalidInputError, MissingDependencyError, ModelFormatError
from bertrt.text.gluonnlp import BytePairTokenizer, GluonTokenizer, SentencePieceTokenizer
from bertrt.text.load import load_tokenizer
from bertrt.text.vocabulary import Vocabulary, read_merges

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

TEXTS = [
    "A plain sentence, with punctuation; and (brackets)! It's they'll WE'RE I'd 'twas",
    " leading, doubled  and trailing space   \n\n\tlines\r\n and tabs \t",
    "Ünïcödé Ångström naïve café straße İstanbul ΣΑΣ ΟΔΥΣΣΕΥΣ",
    "한국어 모델을 공유합니다. 뷁쉙 대한민국, 서울!",
    "中文简单国家。日本語のテキスト ไทย हिन्दी العربية עִבְרִית",
    "<s> </s> <mask> <unk> [CLS] [SEP] [MASK] are not special ▁ ▁▁a",
    "emoji 👩‍👩‍👧 🇩🇪 ❤️ x²½ ﬁ Ⅷ ① ＡＢ１２ 1234567890 3.14",
    "nbsp\xa0em\u2003line\u2028par\x85nel\x1czero\u200bwidth soft\u00adhyphen\ufeff\ufffd",
    "don''t 's'S 'm'M x's  's \u2019s 'll'",
    "e\u0301 o\u0308 q\u0307\u0323 \u1109\u1161 ᄒ",
]


def corpus() -> list[str]:
    """Sentences of made-up words in several scripts, some of them often."""
    draw = random.Random(0)
    alphabets = ["etaoinshrdlu", "가나다라마바사아자한국어말글", "абвгдежз", "漢字仮名"]
    words = ["".join(draw.choices(a, k=draw.randint(1, 5))) for a in alphabets for _ in range(150)]
    words += ["the", "The", "it's", "2026", "café", "!", ",", "."]
    weights = [1 / (1 + index % 40) for index in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=9)) for _ in range(1500)]


class Both:
    """One of GluonNLP's tokenizers with its vocabulary, and ours."""

    def __init__(self, theirs, vocab, ours: GluonTokenizer) -> None:
        self.theirs, self.vocab, self.ours = theirs, vocab, ours

    def check(self, texts, max_length: int = 1_000_000) -> None:
        import gluonnlp

        self.ours.max_length = max_length
        pair = isinstance(texts[0], tuple)
        transform = gluonnlp.data.BERTSentenceTransform(
            self.theirs, max_length, vocab=self.vocab, pad=False, pair=pair
        )
        kept = [text for text in texts if self.theirs(text[0] if pair else text)]
        found = self.ours.encode(kept)
        for text, encoding in zip(kept, found, strict=True):
            ids, _, types = transform(text if pair else (text,))
            assert encoding.ids.tolist() == ids.tolist(), text
            assert encoding.types.tolist() == types.tolist(), text


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=50)
HARD_TEXT = st.text(
    st.sampled_from(list(" '\t\n\x0b\x1c\x85\xa0\u2028\u3000\u200dslatreven1٣½_.中한\u0301é▁")),
    max_size=30,
)


# --- byte-level BPE ---------------------------------------------------------------------------


def write_bpe(directory: Path, tokens: list[str], merges: list[str]) -> tuple[Path, Path]:
    """RoBERTa's vocabulary as GluonNLP converted it, and the file of merges."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>"]
    identifiers = {"bos": "<s>", "eos": "</s>", "padding": "<pad>", "mask": "<mask>"}
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: idx for idx, token in enumerate(tokens)},
        "reserved_tokens": list(identifiers.values()),
        "unknown_token": "<unk>",
        "identifiers_to_tokens": {f"{key}_token": token for key, token in identifiers.items()},
    }
    (directory / "vocab.json").write_text(json.dumps(content))
    text = "\n".join(["#version: 0.2", *merges, ""])
    (directory / "merges.txt").write_text(text, encoding="utf-8", newline="\n")
    return directory / "vocab.json", directory / "merges.txt"


def train_bpe(size: int) -> tuple[list[str], list[str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    content = json.loads(tokenizer.to_str())["model"]
    # In another order than the merges', so that ids and ranks cannot be mixed up.
    tokens = sorted(content["vocab"], key=lambda token: hashlib.md5(token.encode()).digest())
    return tokens, [" ".join(merge) for merge in content["merges"]]


@pytest.fixture(scope="module")
def bpe_files(tmp_path_factory) -> tuple[Path, Path]:
    return write_bpe(tmp_path_factory.mktemp("bpe"), *train_bpe(700))


def open_bpe(vocab: Path, merges: Path) -> Both:
    pytest.importorskip("regex")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gluonnlp

    class Ranks(gluonnlp.data.GPT2BPETokenizer):
        bpe_ranks_file_hash = (merges.name, hashlib.sha1(merges.read_bytes()).hexdigest())

    return Both(
        Ranks(root=str(merges.parent)),
        gluonnlp.Vocab.from_json(vocab.read_text()),
        BytePairTokenizer(Vocabulary.read(vocab), read_merges(merges), max_length=16),
    )


@pytest.fixture(scope="module")
def bpe(bpe_files) -> Both:
    return open_bpe(*bpe_files)


@pytest.mark.mxnet
def test_byte_pairs(bpe: Both) -> None:
    bpe.check(TEXTS)
    bpe.check(corpus()[:200])
    for max_length in (3, 5, 8, 40):
        bpe.check(TEXTS, max_length)
        bpe.check([(a, b) for a in TEXTS for b in [*TEXTS[:4], ""]], max_length)


@pytest.mark.mxnet
def test_byte_pairs_of_every_code_point(bpe: Both) -> None:
    """Each, as far as this Python's Unicode knows it, between letters, digits and spaces."""
    # Beyond 0xF0000 all are of private use, and alike.
    points = [c for c in range(0xF0001) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    assert len(points) > 140_000
    texts = []
    for start in range(0, len(points), 500):
        chars = map(chr, points[start : start + 500])
        texts.append("".join(f"a{c}b {c} 1{c}  {c}{c}.{c}'s" for c in chars))
    for text in texts:
        words = bpe.ours._texts.pre_tokenizer.pre_tokenize_str(text)
        theirs = bpe.theirs._regex.findall(bpe.theirs._token_pattern, text)
        spelled = ["".join(bpe.theirs._byte_encoder[b] for b in w.encode()) for w in theirs]
        assert [word for word, _ in words] == spelled


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(ANY_TEXT, HARD_TEXT), min_size=1, max_size=8))
@pytest.mark.mxnet
def test_byte_pairs_of_random_text(bpe: Both, texts: list[str]) -> None:
    bpe.check(texts)


@pytest.mark.mxnet
def test_byte_pairs_corpora(corpora: Path, tmp_path: Path) -> None:
    """With RoBERTa's own vocabulary and merges."""
    source = corpora / "vocab" / "roberta-base"
    ids = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(ids, key=ids.__getitem__)
    assert tokens[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and tokens[-1] == "<mask>"
    merges = (source / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    both = open_bpe(*write_bpe(tmp_path, tokens[4:-1], merges))
    assert both.ours.vocab_size == 50265
    texts = (corpora / "mrpc" / "train.tsv").read_text(encoding="utf-8").split("\n")[:2000]
    texts += (corpora / "xnli-zh" / "dev.part.tsv").read_text(encoding="utf-8").split("\n")[:200]
    both.check([text for text in texts if text] + TEXTS)
    (encoding,) = both.ours.encode(["Hello world!"])
    assert encoding.ids.tolist() == [0, 31414, 232, 328, 2]  # as fairseq and GluonNLP publish


def test_byte_pairs_in_a_bundle(bpe_files) -> None:
    vocab, merges = bpe_files
    given = {"kind": "gluonnlp-bpe", "file": vocab.name, "pieces": merges.name, "max_length": 9}
    tokenizer = load_tokenizer(given, vocab.parent)
    (encoding,) = tokenizer.encode(["the the the the the the the the the the"])
    assert len(encoding.ids) == 9 and encoding.truncated and tokenizer.lower is False
    with pytest.raises(InvalidInputError, match="gives a token"):
        tokenizer.encode([""])
    # White space is text here.
    assert len(tokenizer.encode([" "])[0].ids) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "not a file of BPE merges"),
        (lambda lines: lines[:-1], "truncated"),
        (lambda lines: [*lines[:40], "x", *lines[40:]], "line 41: expected a new merge .* 'x'"),
        (lambda lines: lines[:40] + lines[39:], "line 41: expected a new merge"),
        (lambda lines: ["v", *lines[-2:0:-1], ""], "line 2: expected a new merge"),
        (lambda lines: ["v", "t he", ""], "line 2: expected a new merge"),
    ],
)
def test_broken_merges(bpe_files, tmp_path: Path, change, message: str) -> None:
    lines = bpe_files[1].read_text(encoding="utf-8").split("\n")
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(change(lines)), encoding="utf-8", newline="\n")
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_merges(path)
    assert str(path) in str(caught.value)


def test_merges_of_another_vocabulary(bpe_files, tmp_path: Path) -> None:
    tokens, merges = train_bpe(400)
    vocab, _ = write_bpe(tmp_path, tokens, merges)
    with pytest.raises(ModelFormatError, match="lacks 300 of the 700 pieces"):
        BytePairTokenizer(Vocabulary.read(vocab), read_merges(bpe_files[1]), max_length=9)
    path = tmp_path / "merges.bin"
    path.write_bytes(b"#version\n\xff \xfe\n")
    with pytest.raises(ModelFormatError, match="not a file of BPE merges"):
        read_merges(path)


# --- SentencePiece ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pieces_model(request, train_sentencepiece, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "kobert.spiece"
    return train_sentencepiece(path, corpus(), size=500, kind=request.param)


def write_pieces(model: Path) -> None:
    """KoBERT's vocabulary of a SentencePiece model, as GluonNLP writes it, beside the model."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokens = [processor.id_to_piece(index) for index in range(len(processor))]
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask")}
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: idx for idx, token in enumerate(tokens)},
        "reserved_tokens": ["[PAD]", *special.values()],
        "unknown_token": "[UNK]",
        "identifiers_to_tokens": {"padding_token": "[PAD]", **special},
    }
    (model.parent / "vocab.json").write_text(json.dumps(content))


def open_pieces(model: Path, *, lower: bool) -> Both:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gluonnlp
    import sentencepiece

    vocab = gluonnlp.vocab.BERTVocab.from_sentencepiece(str(model), padding_token="[PAD]")
    (model.parent / "vocab.json").write_text(vocab.to_json())
    theirs = gluonnlp.data.BERTSPTokenizer(str(model), vocab, lower=lower)
    # GluonNLP asks for a sample out of the best segmentation alone, and today's library answers
    # that this is no sample.
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    theirs.sentencepiece = processor.encode_as_pieces
    vocabulary = Vocabulary.read(model.parent / "vocab.json")
    return Both(
        theirs, vocab, SentencePieceTokenizer(vocabulary, model, lower=lower, max_length=16)
    )


@pytest.mark.parametrize("lower", [False, True], ids=["cased", "uncased"])
@pytest.mark.mxnet
def test_sentencepiece(pieces_model: Path, lower: bool) -> None:
    both = open_pieces(pieces_model, lower=lower)
    both.check(TEXTS)
    both.check(corpus()[:200])
    for max_length in (3, 5, 8, 40):
        both.check(TEXTS, max_length)
        both.check([(a, b) for a in TEXTS for b in [*TEXTS[:4], " "]], max_length)


@pytest.mark.mxnet
def test_sentencepiece_of_random_text(pieces_model: Path) -> None:
    both = open_pieces(pieces_model, lower=False)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(ANY_TEXT, HARD_TEXT), min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        both.check(texts)

    check()


def test_sentencepiece_in_a_bundle(pieces_model: Path, tmp_path: Path, monkeypatch) -> None:
    write_pieces(pieces_model)
    given = {
        "kind": "gluonnlp-sentencepiece",
        "file": "vocab.json",
        "pieces": pieces_model.name,
        "lower": False,
        "max_length": 30,
    }
    tokenizer = load_tokenizer(given, pieces_model.parent)
    (encoding,) = tokenizer.encode(["한국어 뷁"])
    # [UNK] is 0 and [PAD] 1 in KoBERT's vocabulary.
    assert encoding.ids[0] == 2 and encoding.ids[-1] == 3 and 0 in encoding.ids
    with pytest.raises(InvalidInputError, match="gives a token"):
        tokenizer.encode(["\u0301"])
    with pytest.raises(InvalidInputError, match="gives a token"):
        tokenizer.encode([" ", " "])

    whole = pieces_model.read_bytes()
    path = tmp_path / "broken.spiece"
    vocabulary = Vocabulary.read(pieces_model.parent / "vocab.json")
    for content in (b"", b"abc", whole[: len(whole) // 2], whole[:-9]):
        path.write_bytes(content)
        with pytest.raises(ModelFormatError, match="not a SentencePiece model"):
            SentencePieceTokenizer(vocabulary, path, lower=False, max_length=9)
    tokens = dict(vocabulary.token_to_idx)
    first, second = list(tokens)[10:12]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    with pytest.raises(ModelFormatError, match="do not belong together"):
        SentencePieceTokenizer(
            Vocabulary(tokens, "[UNK]", "[CLS]", "[SEP]"), pieces_model, lower=False, max_length=9
        )
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingDependencyError, match=r"bertrt\[sentencepiece\]"):
        load_tokenizer(given, pieces_model.parent)
    assert tokenizer.vocab_size == 500
