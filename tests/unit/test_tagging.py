"""Tags of words, and the entities that they make up."""

from __future__ import annotations

import importlib.util
import json
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bertrt import Engine
from bertrt.errors import InvalidInputError, InvalidTypeError
from bertrt.results import Entity
from bertrt.tasks.tagging import Tagger, merge_entities
from bertrt.tasks.windows import cut_windows, overlapping, stitch_rows
from bertrt.text.huggingface import HuggingFaceTokenizer
from bertrt.text.inputs import raise_errors, split_words
from bertrt.text.load import load_tokenizer

DATA = Path(__file__).parents[1] / "data"
REFERENCE = json.loads((DATA / "tagging_reference.json").read_text())


def entities(tags: str) -> list[tuple[str, int, int]]:
    """Of words "0 1 2 ...": the kind, first and last word of each entity."""
    words = split_words(" ".join(map(str, range(len(tags.split())))))
    found = merge_entities(words, tags.split(), [1.0] * len(words.words))
    return [(entity.label, int(entity.text[0]), int(entity.text[-1])) for entity in found]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("S-A O S-B", [("A", 0, 0), ("B", 2, 2)]),
        ("B-A I-A E-A O", [("A", 0, 2)]),
        ("B-A E-A B-A E-A", [("A", 0, 1), ("A", 2, 3)]),
        # BIO of the two kinds, and tags that a model strings together as nobody wrote them
        ("B-A I-A B-A O", [("A", 0, 1), ("A", 2, 2)]),
        ("O I-A I-A O", [("A", 1, 2)]),
        ("I-A I-B I-B", [("A", 0, 0), ("B", 1, 2)]),
        ("B-A O I-A", [("A", 0, 0), ("A", 2, 2)]),
        ("E-A E-A", [("A", 0, 0), ("A", 1, 1)]),
        ("S-A I-A", [("A", 0, 0), ("A", 1, 1)]),
        ("E-A I-A", [("A", 0, 0), ("A", 1, 1)]),
        ("B-A X I-A", [("A", 0, 0), ("A", 2, 2)]),
        ("B-A S-A E-A", [("A", 0, 0), ("A", 1, 1), ("A", 2, 2)]),
        # Tags of another scheme belong to no entity.
        ("X NOUN B- A", []),
    ],
)
def test_entities(tags: str, expected) -> None:
    assert entities(tags) == expected


def test_where_entities_stand() -> None:
    words = split_words(" Ada\tLovelace  of London")
    found = merge_entities(words, ["B-PER", "E-PER", "O", "S-LOC"], [0.5, 1.0, 1.0, 0.75])
    assert found == (
        Entity("PER", "Ada\tLovelace", 1, 13, 0.75),
        Entity("LOC", "London", 18, 24, 0.75),
    )


@pytest.fixture
def tagger(tiny):
    """The tiny model as a tagger: its logits are a token's (id, type, position, length)."""
    return tiny.load(
        task="tagging",
        labels=["O", "B-a", "I-a", "E-a"],
        pooling=None,
        outputs=["logits"],
        rows={"logits": "tokens"},
    )


def test_words_have_the_tag_of_their_first_token(tagger, tiny) -> None:
    one, other = tagger.predict(["hello worlds", ["a", "worlds", "b"]])
    # [CLS] hello world ##s [SEP]: the largest of (id, type, position, length) of "world" is its id.
    assert one.words == ("hello", "worlds") and one.tags == ("O", "O")
    assert other.words == ("a", "worlds", "b")
    (batch,) = tiny.backends[0].batches
    assert batch.token_ids.tolist() == [2, 5, 6, 7, 3, 2, 9, 6, 7, 10, 3]
    logits = np.array([[9, 0, 1, 6], [6, 0, 2, 6], [10, 0, 4, 6]], np.float64)
    powers = np.exp(logits)
    np.testing.assert_allclose(other.scores, powers[:, 0] / powers.sum(axis=1), rtol=1e-6)
    assert tagger.predict("a").words == ("a",)
    assert tagger.tokenize("a b").ids.tolist() == [2, 9, 10, 3]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ("a a a a a a a", InvalidInputError, r"batch\[0\] has 7 tokens, .* up to 6: split"),
        (["a", "a \u200b b"], InvalidInputError, r"batch\[1\]: word 1, '\\u200b', .* no"),
        ([["a", ""]], InvalidInputError, r"batch\[0\]\[1\] is an empty string"),
        ([[]], InvalidInputError, r"batch\[0\] holds no word"),
        (" \t", InvalidInputError, r"batch\[0\] holds no word"),
        ([], InvalidInputError, "the batch is empty"),
        ([("a", "b")], InvalidTypeError, r"batch\[0\] is a tuple .*expected a str or a list"),
        ([["a", 3]], InvalidTypeError, r"batch\[0\] is a list of str, int"),
        (("a", "b"), InvalidTypeError, "batch is a tuple"),
        (None, InvalidTypeError, "batch is None"),
        ([["a\0"]], InvalidInputError, r"batch\[0\]\[0\] holds a NUL"),
    ],
)
def test_bad_input(tagger, tiny, batch, error, message) -> None:
    with pytest.raises(error, match=message):
        tagger.predict(batch)
    assert not tiny.backends[0].batches


# --- texts ------------------------------------------------------------------------------------

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "##ian", "the", "cat", "is", "in"),
    *("(", ")", '"', ".", ",", "/", "-", "«", "»", "'", "l", "e", "##e", "istanbul", "東", "京"),
    *("한국", "##어", "caf", "##es"),
]
LABELS = ["O", "B-LOC", "I-LOC"]


def word_pieces(max_length: int = 64) -> HuggingFaceTokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    vocabulary |= {unicodedata.normalize("NFD", word): i for word, i in vocabulary.items()}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return HuggingFaceTokenizer(made, max_length=max_length)


def byte_pieces(max_length: int = 64) -> HuggingFaceTokenizer:
    """RoBERTa's kind, with "ĠParis" and "Paris" as its only words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("P", "a"), ("Pa", "r"), ("Par", "i"), ("Pari", "s"), ("Ġ", "Paris")]
    words = ["<s>", "<pad>", "</s>", *alphabet, *(first + second for first, second in merges)]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return HuggingFaceTokenizer(made, max_length=max_length)


def unigram_pieces(max_length: int = 64) -> HuggingFaceTokenizer:
    """XLM-RoBERTa's kind, whose pre-tokenization splits at white space alone."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁Paris", "Paris", "▁", *"()\".,/-«»'"]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return HuggingFaceTokenizer(made, max_length=max_length)


def gluon_pieces(write_vocabulary, max_length: int = 64):
    return load_tokenizer(
        {"kind": "gluonnlp", "file": "vocab.json", "lower": True, "max_length": max_length},
        write_vocabulary(WORDS).parent,
    )


def tag(tokenizer, text, aggregation: str = "first", logits=None, labels=LABELS):
    """What a tagger says of a text whose model knows tokens by their spelling: `logits` is a
    function of the token; by itself of "paris", which is a place."""
    if logits is None:

        def logits(token: str) -> list[float]:
            return [0, 5, 0] if "paris" in token.lower() else [5, 0, 0]

    task = Tagger(labels, aggregation)
    (request,), _ = task.encode(text, tokenizer)
    raise_errors([request])
    parts = [
        np.array([logits(tokenizer.token(i)) for i in part.ids.tolist()], np.float32)
        for part in request.sequences
    ]
    return task.answer(request, parts)


@pytest.fixture(params=["word pieces", "bytes", "unigram", "gluonnlp"])
def any_tokenizer(request, write_vocabulary):
    return {
        "word pieces": word_pieces,
        "bytes": byte_pieces,
        "unigram": unigram_pieces,
        "gluonnlp": lambda: gluon_pieces(write_vocabulary),
    }[request.param]()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("Paris", [0]),
        ("(Paris)", [1]),
        ('the cat is in "Paris".', [15]),
        ("Paris/cat", [0]),
        ("cat/Paris", [4]),
        ("«Paris»", [1]),
        ("Paris,Paris", [0, 6]),
        (" \u00a0Paris\t\n Paris  ", [2, 10]),
        ("l'Paris-Paris", [2, 8]),
        ("Paris\U0001f642 (Paris)\U0001f642", [8]),
        ("\U0001f642 Paris e\u0301 Paris", [2, 11]),
        ("é\u0130\u0130 Paris", [4]),
        ("\u200b Paris", [2]),
        ("我在Paris。", [2]),
        ("東Paris京 (Paris)京", [1, 9]),
    ],
)
@pytest.mark.parametrize("aggregation", ["first", "average", "max"])
def test_entities_of_texts_with_punctuation(any_tokenizer, text, places, aggregation) -> None:
    found = tag(any_tokenizer, text, aggregation)
    at = [entity.start for entity in found.entities]
    # What stands beside an emoji without a blank is of the same word, or not, as the tokenizer
    # has it.
    assert [place for place in at if place or text.startswith("Paris")] == at
    assert set(places) <= set(at) and set(at) <= {*places, 0}
    for entity in found.entities:
        assert text[entity.start : entity.end] == entity.text
        assert entity.text.startswith("Paris") and entity.label == "LOC"
    assert all(word in text for word in found.words)


def test_words_of_a_text(write_vocabulary) -> None:
    text = "L'e\u0301e (paris) 東京, \u0130stanbul\u200b!"
    words = ("L", "'", "e\u0301e", "(", "paris", ")", "東", "京", ",", "\u0130stanbul", "!")
    for tokenizer in (word_pieces(), gluon_pieces(write_vocabulary)):
        found = tag(tokenizer, text)
        assert found.words == words
        assert [entity.start for entity in found.entities] == [text.index("paris")]
    # Hangul falls apart in the uncased vocabulary; it is a word all the same.
    assert tag(word_pieces(), "한국어 paris").words == ("한국어", "paris")
    assert tag(gluon_pieces(write_vocabulary), "한국어 paris").words == ("한국어", "paris")


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301e Paris",
        "हिन्दी Paris",
        "\u0e01\u0e34\u0e19 Paris",
        "Pari\u0301s Paris",
    ],
)
def test_accents_and_vowel_signs_part_no_word(any_tokenizer, text: str) -> None:
    """They are no letters to Unicode, nor to the pre-tokenization of GPT-2."""
    found = tag(any_tokenizer, text)
    assert found.words == tuple(text.split())
    assert found.entities[-1].text == "Paris"


def test_chinese_characters_are_words(any_tokenizer) -> None:
    found = tag(any_tokenizer, "東京, Paris")
    # Unigram has one unknown token for the two.
    assert found.words in (("東", "京", ",", "Paris"), ("東京", ",", "Paris"))
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "東": 1, "##京": 2}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(handle_chinese_chars=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # A model that has words of them says so.
    assert tag(HuggingFaceTokenizer(made, max_length=9), "東京").words == ("東京",)


def test_aggregations_by_hand() -> None:
    """ "parisian" is paris ##ian, with the probabilities (O, B, I) = (.5, .4, .1) and (.1, .2, .7)
    of its two tokens."""
    rows = {"paris": [0.5, 0.4, 0.1], "##ian": [0.1, 0.2, 0.7]}

    def logits(token: str) -> list[float]:
        return np.log(rows.get(token, [0.98, 0.01, 0.01])).tolist()

    def found(aggregation: str):
        result = tag(word_pieces(), "the (Parisian)", aggregation, logits)
        return [
            (word, tag, pytest.approx(score, rel=1e-6))
            for word, tag, score in zip(result.words, result.tags, result.scores, strict=True)
            if word.lower() in "parisian"
        ]

    assert found("first") == [("Parisian", "O", 0.5)]
    assert found("average") == [("Parisian", "I-LOC", 0.4)]
    assert found("max") == [("Parisian", "I-LOC", 0.7)]
    assert found("simple") == [("Paris", "O", 0.5), ("ian", "I-LOC", 0.7)]
    (entity,) = tag(word_pieces(), "the (Parisian)", "simple", logits).entities
    assert (entity.text, entity.start, entity.end) == ("ian", 10, 13)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O PER PER O", [("PER", 1, 2)]),
        ("LOC PER PER LOC", [("LOC", 0, 0), ("PER", 1, 2), ("LOC", 3, 3)]),
        ("B-LOC I-LOC B-LOC O", [("LOC", 0, 1), ("LOC", 2, 2)]),
        ("I-LOC I-PER", [("LOC", 0, 0), ("PER", 1, 1)]),
        # A tag without a prefix goes on as one with "I-" does.
        ("B-LOC LOC LOC", [("LOC", 0, 2)]),
        ("LABEL_0 LABEL_0 LABEL_1", [("LABEL_0", 0, 1), ("LABEL_1", 2, 2)]),
        # BIOES; the pipeline of transformers takes "E-" for a kind of its own.
        ("B-LOC E-LOC S-LOC S-LOC", [("LOC", 0, 1), ("LOC", 2, 2), ("LOC", 3, 3)]),
        ("X-Y O", [("Y", 0, 0)]),
    ],
)
def test_entities_of_texts(tags: str, expected) -> None:
    words = split_words(" ".join(map(str, range(len(tags.split())))))
    found = merge_entities(words, tags.split(), [1.0] * len(words.words), bare=True)
    assert [(e.label, int(e.text[0]), int(e.text[-1])) for e in found] == expected


def test_lists_of_words_keep_gluonnlps_rule() -> None:
    """The first token of each word that is given, and tags without a prefix in no entity."""
    for aggregation in ("gluonnlp", "first", "average", "max", "simple"):
        found = tag(word_pieces(), [["(paris)", "parisian", "paris"]], aggregation)
        assert found.words == ("(paris)", "parisian", "paris")
        assert found.tags == ("O", "B-LOC", "B-LOC")
        assert [entity.start for entity in found.entities] == [8, 17]
    bare = tag(word_pieces(), [["paris", "paris"]], labels=["O", "LOC", "X"])
    assert bare.tags == ("LOC", "LOC") and bare.entities == ()
    assert tag(word_pieces(), "paris paris", labels=["O", "LOC", "X"]).entities[0].end == 11


def test_gluonnlps_rule_by_name(any_tokenizer) -> None:
    found = tag(any_tokenizer, "(Paris) Paris. cat/Paris", "gluonnlp")
    assert found.words == ("(Paris)", "Paris.", "cat/Paris")
    assert found.words[found.tags.index("B-LOC")] == "Paris."


@pytest.mark.parametrize("text", ["", " ", "\t\u200b"])
@pytest.mark.parametrize("aggregation", ["first", "average", "max", "simple"])
def test_a_text_without_words(any_tokenizer, text: str, aggregation: str) -> None:
    found = tag(any_tokenizer, text, aggregation)
    # A byte-level tokenizer has tokens for anything.
    assert not found.entities and set(found.words) <= {"", " ", "\t", "\u200b"}
    assert len(found.words) == len(found.tags) == len(found.scores)


@pytest.mark.parametrize("tokens", [*range(14), 58, 1000])
@pytest.mark.parametrize("room", [1, 2, 3, 8, 9])
def test_every_token_has_the_row_of_its_widest_window(tokens: int, room: int) -> None:
    windows = cut_windows(tokens, room, overlapping(room))
    parts = [
        np.array([[-1, -1], *((i, t) for t in range(begin, end)), [-1, -1]])
        for i, (begin, end) in enumerate(windows)
    ]
    rows = stitch_rows(parts, windows, 1)
    assert rows[:, 1].tolist() == list(range(tokens))
    for window, token in rows.tolist():
        sides = [
            min(token - begin, end - 1 - token) if begin <= token < end else -1
            for begin, end in windows
        ]
        # The last window may be shorter, and then shows less on the right.
        assert sides[window] == max(sides) or window >= len(windows) - 2


@pytest.mark.parametrize("aggregation", ["first", "average", "max", "simple"])
def test_long_texts_are_tagged_in_windows(any_tokenizer, aggregation: str) -> None:
    text = "the cat is in (Paris). " * 400
    any_tokenizer.max_length = 16
    if isinstance(any_tokenizer, HuggingFaceTokenizer):
        any_tokenizer._tokenizer.enable_truncation(16, strategy="longest_first")
    task = Tagger(LABELS, aggregation)
    (request,), _ = task.encode(text, any_tokenizer)
    assert len(request.sequences) > 200
    assert max(len(part.ids) for part in request.sequences) == 16
    found = tag(any_tokenizer, text, aggregation)
    places = [entity.start for entity in found.entities if entity.text == "Paris"]
    assert places == list(range(15, len(text), 23))
    assert not found.truncated
    # Words that are given are, too, but for GluonNLP's rule, which refuses them.
    words = [["paris"] * 50]
    assert tag(any_tokenizer, words, aggregation).words == ("paris",) * 50
    with pytest.raises(InvalidInputError, match=r"batch\[0\] has .* up to 14: split"):
        tag(any_tokenizer, words, "gluonnlp")


def test_long_texts_behind_the_engine(tiny) -> None:
    """The tiny model's logits are a token's (id, type, position, length): which window, and where
    in it, shows in the scores."""
    engine = tiny.load(
        task="tagging",
        labels=["O", "B-a", "I-a", "E-a"],
        pooling=None,
        outputs=["logits"],
        rows={"logits": "tokens"},
        settings={"aggregation": "first"},
    )
    text = "a b " * 7
    windows = engine.tokenize(text)
    assert [len(window.ids) for window in windows] == [8, 8, 8, 7]
    assert engine.tokenize("a").ids.tolist() == [2, 9, 3]
    result, (rows, other) = engine.predict(text), engine.predict_with_outputs(text)
    assert rows[0] == result and [len(own) for own in other[0]] == [8, 8, 8, 7]
    assert result.words == ("a", "b") * 7
    # Alone and among others, cut into batches as may be.
    many = engine.predict(["b", text, "a b", text])
    assert many[1] == many[3] == result and many[0] == engine.predict("b")
    bad = engine.predict([text, "\0", [[]], ["a", "\u200b"], ["a"]], on_error="return")
    assert bad[0] == result and bad[4].words == ("a",)
    assert [str(error).split()[0] for error in bad[1:4]] == ["batch[1]", "batch[2]", "batch[3]:"]


def test_the_same_bits_alone_and_in_a_batch(hugging) -> None:
    config = hugging.config | {
        "architectures": ["BertForTokenClassification"],
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
    }
    path = hugging.write(config, hugging.weights(config, pooler=False, classes=3))
    with Engine.load(path, threads=1) as engine:
        assert engine._model.settings == {"aggregation": "first"}
        texts = ["the boats", "sea " * 90, "", "(cafe), the sea. " * 20, "boats"]
        together = engine.predict(texts)
        assert together == [engine.predict(text) for text in texts]
        assert len({score for result in together for score in result.scores}) > 20


# --- the pipeline of transformers --------------------------------------------------------------


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The script that made the reference; it imports another, as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        name = "make_huggingface_reference"
        patch.setitem(sys.modules, name, load_script(name))
        return load_script("make_tagging_reference")


@pytest.mark.parametrize("case", REFERENCE)
def test_as_the_pipeline(hugging, made, case: str) -> None:
    """Entities, places and scores, as recorded; at most 1e-5 from its float32."""
    lower, labels = made.CASES[case]
    tensors = {
        name: load_script("make_huggingface_reference").draw(name, tuple(shape))
        for name, shape in REFERENCE[case]["tensors"].items()
    }
    config = REFERENCE[case]["config"]
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "strip_accents": None}
    path = hugging.write(config, tensors, vocab=False, tokenizer_config=tokenizer)
    (path / "vocab.txt").write_text("\n".join(made.WORDS) + "\n", encoding="utf-8")
    with Engine.load(path, threads=1) as engine:
        for aggregation, expected in REFERENCE[case]["found"].items():
            engine._predictor._task = Tagger(labels, aggregation)
            for text, entities, result in zip(
                made.TEXTS, expected, engine.predict(made.TEXTS), strict=True
            ):
                found = [[own.label, own.start, own.end, own.score] for own in result.entities]
                assert found == [[*own[:3], pytest.approx(own[3], abs=1e-5)] for own in entities], (
                    text,
                    aggregation,
                )
    assert sum(map(len, REFERENCE[case]["found"]["first"])) > 20


def test_the_pipeline_finds_what_is_recorded(made, tmp_path) -> None:
    """Where transformers is installed, it is asked again."""
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", exc_type=ImportError)
    for case, arguments in made.CASES.items():
        path = tmp_path / case
        made.write(path, *arguments)
        found = json.loads(json.dumps(made.find(path)))
        for aggregation, expected in REFERENCE[case]["found"].items():
            for own, recorded in zip(found[aggregation], expected, strict=True):
                assert [entity[:3] for entity in own] == [entity[:3] for entity in recorded]
