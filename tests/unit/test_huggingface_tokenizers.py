"""Tokenizers of Hugging Face directories: the ids of `transformers.AutoTokenizer`.

``tests/data/draw_tokenizers.py`` draws directories. Some are recorded with what transformers made
of them; where it is installed more are drawn and compared live, BERTRT_TOKENIZER_DRAWS of them.
Below stand single faults with their right values, and what is refused.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from bertrt import Engine
from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.huggingface.tokenizer.sentencepiece import read_sentencepiece
from bertrt.models.manifest import version_of
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules
from bertrt.text.load import load_tokenizer

DATA = Path(__file__).parents[1] / "data"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_tokenizers", DATA / "draw_tokenizers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


drawing = load_script()
RECORDED = {case["seed"]: case for case in drawing.recorded()}


@pytest.mark.parametrize("seed", RECORDED)
def test_what_transformers_answered(tmp_path, seed) -> None:
    case = RECORDED[seed]
    for name, content in case["files"].items():
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    tokenizer = drawing.open_tokenizer(tmp_path)
    assert drawing.difference(tokenizer, case["facts"], case["answers"]) is None
    again = drawing.in_a_bundle(tokenizer, tmp_path / "bundle")
    assert drawing.difference(again, case["facts"], case["answers"]) is None


def test_what_transformers_answers() -> None:
    for needed in ("transformers", "sentencepiece", "google.protobuf"):
        pytest.importorskip(needed, reason=f"{needed} is not installed", exc_type=ImportError)
    outcomes, problems = drawing.run(int(os.environ.get("BERTRT_TOKENIZER_DRAWS", "400")))
    print(dict(outcomes))
    assert not problems, "\n\n".join(problems[:3])
    assert outcomes["same"] > 0.8 * sum(outcomes.values())


# --- single settings --------------------------------------------------------------------------


def tokenizer_of(hugging, name: str = "model", **files) -> HuggingFaceTokenizer:
    return HuggingFaceModel.open(hugging.write(name=name, **files)).tokenizer


def ids(tokenizer: HuggingFaceTokenizer, text) -> list[int]:
    (encoding,) = tokenizer.encode([text])
    return encoding.ids.tolist()


def types(tokenizer: HuggingFaceTokenizer, text) -> list[int]:
    (encoding,) = tokenizer.encode([text])
    return encoding.types.tolist()


def bundled(tokenizer: HuggingFaceTokenizer, path: Path) -> HuggingFaceTokenizer:
    return drawing.in_a_bundle(tokenizer, path)


def test_special_tokens_are_named_in_a_map(hugging, tmp_path) -> None:
    named = {"cls_token": "[MASK]", "sep_token": {"content": "[PAD]", "lstrip": True}}
    named["mask_token"] = "boat"
    tokenizer = tokenizer_of(hugging, special_tokens_map=named)
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        assert ids(made, "the boats sea") == [4, 5, 6, 1, 8, 0]
        assert (made.mask, made.mask_id) == ("boat", 6)
        assert made.special_ids == {4, 0}
    # The list of added tokens is the newer place: beside it the map is not read.
    config = {"added_tokens_decoder": {}}
    tokenizer = tokenizer_of(hugging, "newer", special_tokens_map=named, tokenizer_config=config)
    assert ids(tokenizer, "the sea") == [2, 5, 8, 3]


def test_a_mask_of_another_name(hugging) -> None:
    tokenizer = tokenizer_of(hugging, tokenizer_config={"mask_token": "{mask}"})
    assert (tokenizer.mask, tokenizer.mask_id) == ("{mask}", 11)
    assert ids(tokenizer, "the {mask} [MASK]") == [2, 5, 11, 1, 1, 1, 3]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"additional_special_tokens": ["boat s"]}},
        {"tokenizer_config": {"extra_special_tokens": ["boat s"]}},
        {"tokenizer_config": {"extra_special_tokens": {"pair_token": "boat s"}}},
        {"tokenizer_config": {"pair_token": "boat s"}},
        {"tokenizer_config": {"bos_token": {"__type": "AddedToken", "content": "boat s"}}},
        {"special_tokens_map": {"additional_special_tokens": ["boat s"]}},
        {"special_tokens_map": {"extra_special_tokens": [{"content": "boat s"}]}},
        {"added_tokens": {"boat s": 99}},
        {"tokenizer_config": {"added_tokens_decoder": {"99": {"content": "boat s"}}}},
    ],
)
def test_a_token_that_is_added(hugging, tmp_path, files) -> None:
    tokenizer = tokenizer_of(hugging, **files)
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        # Its id is the next one, whatever a file says.
        assert ids(made, "the boat s sea") == [2, 5, 11, 8, 3]


def test_the_flags_of_an_added_token(hugging) -> None:
    for flags, text, expected in (
        ({}, "xsea y", [2, 1, 8, 1, 3]),
        ({"single_word": True}, "xsea sea", [2, 1, 8, 3]),
        ({"normalized": False}, "SEA sea", [2, 8, 8, 3]),
        ({"normalized": True}, "xSEA", [2, 1, 8, 3]),
    ):
        token = {"content": "sea", "special": True, "normalized": False} | flags
        config = {"added_tokens_decoder": {"8": token}}
        tokenizer = tokenizer_of(hugging, str(flags), tokenizer_config=config)
        assert ids(tokenizer, text) == expected, flags


def test_token_types_that_are_not_asked_for(hugging, tmp_path) -> None:
    names = ["input_ids", "attention_mask"]
    tokenizer = tokenizer_of(hugging, tokenizer_config={"model_input_names": names})
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        assert types(made, ("the", "sea")) == [0, 0, 0, 0, 0]
        assert not made.join([5], [8]).types.any()
    for number, (name, expected) in enumerate(
        (("BertTokenizerFast", 1), ("ElectraTokenizer", 1), ("DistilBertTokenizer", 0))
    ):
        tokenizer = tokenizer_of(hugging, str(number), tokenizer_config={"tokenizer_class": name})
        assert types(tokenizer, ("the", "sea"))[-1] == expected


def test_the_side_that_is_cut(hugging, tmp_path) -> None:
    config = {"truncation_side": "left", "model_max_length": 5}
    tokenizer = tokenizer_of(hugging, tokenizer_config=config)
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        assert ids(made, "the boat sea the boats") == [2, 5, 6, 7, 3]
        assert made.encode(["the boat sea the boats"])[0].truncated
        assert made.tokenize(["the boat sea the boats"]) == [[5, 6, 8, 5, 6, 7]]
        (pieces,) = made.tokenize_words([["the", "boats", "sea", "boats"]])
        assert pieces.ids == [5, 6, 7, 8, 6, 7]
        assert pieces.words == [0, 1, 1, 2, 3, 3]


def test_special_tokens_that_are_text(hugging, tmp_path) -> None:
    tokenizer = tokenizer_of(hugging, tokenizer_config={"split_special_tokens": True})
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        assert ids(made, "the [MASK]") == [2, 5, 1, 1, 1, 3]


def test_a_class_goes_before_the_tokenizer_file(hugging) -> None:
    """What BERT's class is silent about is its default, whatever its tokenizer.json says; the
    generic class takes the file as it is."""
    content = json.loads(tokenizer_of(hugging).to_json())
    content["normalizer"]["lowercase"] = False
    content["model"]["continuing_subword_prefix"] = "@@"
    content["post_processor"] = None
    content["added_tokens"] = []
    for name, expected in (("BertTokenizer", [2, 5, 6, 7, 3]), ("PreTrainedTokenizerFast", [1, 1])):
        config = {"tokenizer_class": name}
        path = hugging.write(name=name, tokenizer_config=config, tokenizer=content)
        assert ids(HuggingFaceModel.open(path).tokenizer, "The boats") == expected


def test_the_side_of_a_tokenizer_file(hugging) -> None:
    content = json.loads(tokenizer_of(hugging).to_json())
    content["truncation"] = {
        "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"
    }  # fmt: skip
    tokenizer = tokenizer_of(hugging, "cut", tokenizer=content)
    assert tokenizer.rules.truncation_side == "left"


# --- sentence-transformers ----------------------------------------------------------------------


def test_arguments_of_sentence_transformers(hugging) -> None:
    arguments = {"do_lower_case": False, "model_max_length": 6, "use_fast": True}
    for number, name in enumerate(("tokenizer_args", "processor_kwargs")):
        sentence = {"max_seq_length": 4, name: arguments}
        tokenizer = tokenizer_of(hugging, str(number), sentence_bert_config=sentence)
        assert tokenizer.max_length == 6
        assert ids(tokenizer, "The boat") == [2, 1, 6, 3]
    for number, (found, error) in enumerate(
        (
            ({"vocab_file": "other.txt"}, "names a vocab_file"),
            ({"subfolder": "other"}, "names a subfolder"),
            ({"tokenizer_type": "roberta"}, "names a tokenizer_type"),
            ({"word_tokenizer": "mecab"}, "setting 'word_tokenizer' is not known"),
        )
    ):
        sentence = {"tokenizer_args": found}
        with pytest.raises(UnsupportedModelError, match=error):
            tokenizer_of(hugging, f"refused {number}", sentence_bert_config=sentence)
    with pytest.raises(ModelFormatError, match="tokenizer_args should be an object"):
        tokenizer_of(hugging, "list", sentence_bert_config={"tokenizer_args": ["a"]})


def test_lower_case_of_sentence_transformers(hugging, tmp_path) -> None:
    tokenizer = tokenizer_of(
        hugging,
        tokenizer_config={"do_lower_case": False},
        sentence_bert_config={"do_lower_case": True},
    )
    for made in (tokenizer, bundled(tokenizer, tmp_path / "bundle")):
        assert ids(made, "The BOATS") == [2, 5, 6, 7, 3]
        assert made.lower


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class 'BertJapaneseTokenizer'"),
        ({"tokenizer_class": "HerbertTokenizerFast"}, "tokenizer_class 'HerbertTokenizerFast'"),
        ({"tokenizer_class": "MyTokenizer"}, "tokenizer_class 'MyTokenizer'"),
        ({"word_tokenizer_type": "mecab"}, "setting 'word_tokenizer_type' is not known"),
        ({"bpe_dropout": 0.1}, "setting 'bpe_dropout' is not known"),
        ({"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map names code of its own"),
        ({"init_inputs": ["a"]}, "init_inputs is set"),
        ({"fix_mistral_regex": True}, "fix_mistral_regex is set"),
        ({"fast_tokenizer_files": ["tokenizer.4.0.json"]}, r"is \['tokenizer.4.0.json'\]"),
        ({"fast_tokenizer_files": 3}, "fast_tokenizer_files is 3"),
        ({"sep_token": None}, "without a sep_token"),
    ],
)
def test_settings_that_are_refused(hugging, settings, message) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tokenizer_of(hugging, tokenizer_config=settings)


def test_settings_that_change_nothing(hugging) -> None:
    settings = {
        "do_basic_tokenize": False, "never_split": None, "name_or_path": "a", "max_length": 5,
        "stride": 0, "errors": "replace", "vocab_file": "../x", "padding_side": "left",
        "clean_up_tokenization_spaces": True, "init_inputs": [], "auto_map": {"AutoModel": "a.B"},
        "fast_tokenizer_files": ["tokenizer.json"], "chat_template": "{{ x }}",
        "pad_token_id": 3, "keep_accents": 5, "own_token": None,
    }  # fmt: skip
    tokenizer = tokenizer_of(hugging, tokenizer_config=settings)
    assert ids(tokenizer, "the sea") == [2, 5, 8, 3]


def test_a_class_that_the_model_names(hugging) -> None:
    path = hugging.write(hugging.config | {"tokenizer_class": "BertweetTokenizer"})
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(UnsupportedModelError, match="'BertweetTokenizer' is not supported"):
        HuggingFaceModel.open(path)


@pytest.mark.parametrize("name", ["tekken.json", "tiktoken.model", "my-tokenizer.model"])
def test_files_of_another_kind(hugging, name) -> None:
    path = hugging.write()
    (path / name).write_text("{}")
    with pytest.raises(UnsupportedModelError, match=f"{name}: a file of this name"):
        HuggingFaceModel.open(path)


def test_added_tokens_that_read_the_same(hugging) -> None:
    """The library would take one or the other, by the order of a hash table."""
    with pytest.raises(BertrtError, match=r"'Sea' and 'sea'|'sea' and 'Sea'"):
        tokenizer_of(hugging, added_tokens={"Sea": 11, "sea": 8})


def test_tokens_that_the_embedding_does_not_have(hugging) -> None:
    extra = [f"[E{number}]" for number in range(30)]
    path = hugging.write(tokenizer_config={"additional_special_tokens": extra})
    with Engine.load(path) as engine:
        assert len(engine.predict("the [E0] sea").vector) == 24
        with pytest.raises(InvalidInputError, match=r"batch\[1\]: the token '\[E29\]'.*30 rows"):
            engine.predict(["the", "the [E29]"])
    frame = {"cls_token": "[NEW]", "additional_special_tokens": extra}
    path = hugging.write(hugging.config | {"vocab_size": 11}, name="frame", tokenizer_config=frame)
    with Engine.load(path) as engine, pytest.raises(InvalidInputError, match=r"'\[NEW\]'.*11 rows"):
        engine.predict("the")


# --- vocabularies ---------------------------------------------------------------------------------


def test_lines_of_a_vocabulary(hugging) -> None:
    """A line that is there twice has its last number; white space behind a token is none of it."""
    path = hugging.write()
    (path / "vocab.txt").write_bytes("\r\n".join([*hugging.words, "the", "new "]).encode())
    tokenizer = HuggingFaceModel.open(path).tokenizer
    assert ids(tokenizer, "the new sea") == [2, 11, 12, 8, 3]


def sentencepiece_file(pieces) -> bytes:
    """A model file with pieces: text, score, type."""

    def message(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    return b"".join(
        message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([24, t]))
        for text, score, t in pieces
    )


PIECES = (
    *(("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("[OWN]", 0.0, 4)),
    *(("\u2581the", -1.5, 1), ("\u2581sea", -2.25, 1), ("s", -3.0, 1), ("\u2581", -4.0, 1)),
)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        # <s> <pad> </s> <unk>, the pieces from the fourth on, <mask>
        ("XLMRobertaModel", [0, 5, 6, 7, 9, 4, 2]),
        # <s>NOTUSED <pad> </s>NOTUSED <unk> <unk>NOTUSED, the pieces from the second on, <mask>
        ("CamembertModel", [5, 8, 9, 10, 12, 7, 6]),
    ],
)
def test_sentencepiece_models(tmp_path, architecture, expected) -> None:
    kind = {"XLMRobertaModel": "xlm-roberta", "CamembertModel": "camembert"}[architecture]
    config = {
        "architectures": [architecture], "model_type": kind, "hidden_size": 8, "vocab_size": 20,
        "num_attention_heads": 2, "max_position_embeddings": 14, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "sentencepiece.bpe.model").write_bytes(sentencepiece_file(PIECES))
    tokenizer = drawing.open_tokenizer(tmp_path)
    assert ids(tokenizer, "the seas <mask>[OWN]") == expected
    assert not any(types(tokenizer, ("the", "sea")))


def test_damaged_sentencepiece_models(tmp_path) -> None:
    path = tmp_path / "spiece.model"
    whole = sentencepiece_file(PIECES)
    path.write_bytes(whole)
    assert [piece for piece, _ in read_sentencepiece(path).pieces] == [p for p, _, _ in PIECES]
    shuffled = random.Random(5)
    for number in range(2000):
        data = bytearray(whole)
        if number < len(whole):
            del data[number:]
        else:
            for _ in range(3):
                data[shuffled.randrange(len(data))] = shuffled.randrange(256)
        path.write_bytes(data)
        try:
            read_sentencepiece(path)
        except ModelFormatError as error:
            assert "is not a SentencePiece model" in str(error)


def test_scores_to_the_last_bit(tmp_path) -> None:
    """Sums of equal pieces in another order differ in their last bit, and decide. The library
    alone reads some scores of a file a bit off."""
    differing = 0
    for seed in range(300):
        draw = random.Random(seed)
        scores = [float(np.float32(-draw.random() * 2 - 0.9 * length)) for length in range(1, 6)]
        pieces = [("<unk>", 0.0), *(("-" * n, score) for n, score in enumerate(scores, 1))]
        made = Tokenizer(models.Unigram(pieces, unk_id=0))
        text = "-" * 13
        expected = made.encode(text).ids
        differing += Tokenizer.from_str(made.to_str()).encode(text).ids != expected
        tokenizer = HuggingFaceTokenizer(made, max_length=20, rules=Rules(None))
        path = tmp_path / str(seed)
        assert ids(bundled(tokenizer, path), text) == expected
    assert differing


# --- broken and boundless files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model should be an object"),
        ({"model": {"type": "Guess"}}, "the model's type 'Guess' is not known"),
        ({"model": {"type": "WordPiece", "vocab": 3}}, "needs a vocabulary of tokens"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": -1}}}, "does not make a BertTokenizer"),
        ({"model": {"type": "WordPiece", "vocab": {"[UNK]": "a"}}}, "does not make a"),
        ({"added_tokens": None}, "added_tokens should be a list"),
        ({"added_tokens": [{"content": "a"}]}, "should have an id"),
        ({"added_tokens": [{"id": 0, "content": 7}]}, "an added token should have"),
        ({"added_tokens": [{"id": 0, "content": "\ud800"}]}, "holds half a surrogate"),
        ({"post_processor": {"type": "Guess"}}, "is not a readable tokenizer"),
        ({"normalizer": {"type": "Guess"}}, "is not a readable tokenizer"),
    ],
)
def test_tokenizer_files_that_do_not_fit(hugging, change, message) -> None:
    content = json.loads(tokenizer_of(hugging).to_json())
    with pytest.raises(ModelFormatError, match=message):
        tokenizer_of(hugging, "changed", tokenizer=content | change)


def test_files_without_bounds(hugging) -> None:
    """Deep, long and large files are refused for what they are, before they fill memory."""
    path = hugging.write()
    file = path / "tokenizer.json"
    file.write_text("[" * 500_000)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json has 500000 lists in 500000 bytes"):
        HuggingFaceModel.open(path)
    file.write_text('{"model": [' + "[]," * (9 << 20) + "[]]}")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json has \d+ lists in \d+ bytes"):
        HuggingFaceModel.open(path)
    with file.open("wb") as hole:
        hole.truncate(500 << 20)
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json has 524288000 bytes"):
        HuggingFaceModel.open(path)
    file.unlink()
    with (path / "vocab.txt").open("wb") as hole:
        hole.truncate(500 << 20)
    with pytest.raises(ModelFormatError, match=r"vocab\.txt has 524288000 bytes"):
        HuggingFaceModel.open(path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        path = hugging.write(name=f"with-{name}")
        with (path / name).open("wb") as hole:
            hole.truncate(500 << 20)
        with pytest.raises(ModelFormatError, match=f"{name} has 524288000 bytes"):
            HuggingFaceModel.open(path)


def test_a_text_that_the_library_cannot_encode(hugging) -> None:
    made = Tokenizer(models.WordLevel({"the": 5}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = HuggingFaceTokenizer(made, max_length=8)
    assert ids(tokenizer, "the") == [5]
    with pytest.raises(ModelFormatError, match="cannot encode a text"):
        tokenizer.encode(["sea"])


# --- bundles --------------------------------------------------------------------------------------


def generic(mask: str = "[MASK]") -> Tokenizer:
    tokens = ["[UNK]", "[CLS]", "[SEP]", mask, "the", "sea"]
    made = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.add_tokens([AddedToken(mask, special=True)])
    return made


def test_rules_of_a_bundle(tmp_path) -> None:
    generic().save(str(tmp_path / "tokenizer.json"))
    settings = {"kind": "huggingface", "file": "tokenizer.json", "max_length": 8}
    # A bundle of before says nothing.
    tokenizer = load_tokenizer(settings, tmp_path)
    assert tokenizer.rules == Rules("[MASK]") and tokenizer.unusual() == {}
    assert types(tokenizer, ("the", "sea")) == [0, 0, 0, 1, 1]
    assert version_of({"tokenizer": settings}) == version_of({"tokenizer": None}) == 1
    rules = {"mask": None, "types": False, "truncation_side": "left", "split_special_tokens": True}
    tokenizer = load_tokenizer(settings | {"rules": rules}, tmp_path)
    assert tokenizer.rules == Rules(None, False, "left", True) and tokenizer.unusual() == rules
    assert (tokenizer.mask, tokenizer.mask_id) == (None, None)
    # A reader that knows no rules refuses the next version.
    assert version_of({"tokenizer": settings | {"rules": rules}}) == 2
    for name, value in (
        ("mask", 3), ("mask", "{mask}"), ("types", 0), ("truncation_side", "middle"),
        ("split_special_tokens", None), ("another", True),
    ):  # fmt: skip
        with pytest.raises(ModelFormatError, match=f"the rule '{name}' is {value!r}"):
            load_tokenizer(settings | {"rules": {name: value}}, tmp_path)
    with pytest.raises(ModelFormatError, match="'rules' is"):
        load_tokenizer(settings | {"rules": []}, tmp_path)


def test_a_mask_of_any_name_in_a_bundle(tmp_path) -> None:
    made = HuggingFaceTokenizer(generic("{m}"), max_length=8, rules=Rules("{m}"))
    assert made.unusual() == {"mask": "{m}"}
    assert bundled(made, tmp_path / "bundle").mask_id == 3
