"""Every class of model from Hugging Face, against what transformers answers.

The answers are recorded in ``tests/data/huggingface_reference.npz``; where transformers is
installed, it also writes directories of its own, in sizes that are awkward, and answers live.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from bertrt import (
    Answer,
    BertrtWarning,
    Classification,
    Embedding,
    Engine,
    FillMask,
    NextSentence,
    Tagging,
)
from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.model import Model

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "huggingface_reference.json").read_text())
# Of a model that predicts masked words
POSITIONS = np.array([[0, 3, 10], [0, 0, 0], [5, 2, 0]])


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_huggingface_reference", DATA / "make_huggingface_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()


def weights(architecture: str) -> dict[str, np.ndarray]:
    tensors = CASES[architecture]["tensors"]
    return {name: reference.draw(name, tuple(shape)) for name, shape in tensors.items()}


def write(hugging, architecture: str, config=None, changes=None, **options) -> Path:
    """The directory of a recorded case, with changes to its configuration and its tensors; a
    tensor that becomes None is left out."""
    tensors = weights(architecture) | (changes or {})
    return hugging.write(
        CASES[architecture]["config"] | (config or {}),
        {name: array for name, array in tensors.items() if array is not None},
        **options,
    )


def run(path: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine answers."""
    with Engine.load(path) as engine:
        limits = Model.open(path).limits
        inputs = dict(batch)
        if limits.type_vocab_size < 2:
            inputs["token_types"] = np.zeros_like(batch["token_ids"])
        if "masked_lm_outputs" in Model.open(path).outputs:
            inputs["masked_positions"] = POSITIONS
        return engine.run(**inputs)


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], batch) -> None:
    """Hold outputs against those of transformers, at every position that is no padding."""
    valid = np.arange(batch["token_ids"].shape[1]) < batch["valid_length"][:, None]
    for name, array in expected.items():
        if name == "masked_lm_outputs":
            array = np.take_along_axis(array, POSITIONS[:, :, None], axis=1)
            rows = found[name]
        elif array.ndim == 3:
            array, rows = array[valid], found[name][valid]
        else:
            rows = found[name]
        assert rows.shape == array.shape
        scale = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(rows / scale, array / scale, atol=2e-5, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "huggingface_reference.npz") as archive:
        return dict(archive)


def answers(recorded: dict[str, np.ndarray], architecture: str) -> dict[str, np.ndarray]:
    return {
        name.partition("/")[2]: array
        for name, array in recorded.items()
        if name.partition("/")[0] == architecture
    }


@pytest.mark.parametrize("architecture", CASES)
def test_the_numbers_of_transformers(hugging, recorded, architecture) -> None:
    batch = reference.case_batch(architecture)
    expected = answers(recorded, architecture)
    assert expected
    check(run(write(hugging, architecture), batch), expected, batch)


# --- weights in shards ------------------------------------------------------------------------


def write_shards(hugging, architecture: str = "RobertaModel") -> Path:
    """A case with its tensors dealt to three files."""
    path = write(hugging, architecture)
    (path / "model.safetensors").unlink()
    places: dict[str, str] = {}
    tensors = weights(architecture)
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        own = dict(list(tensors.items())[number::3])
        hugging.write_safetensors(path / file, own)
        places |= dict.fromkeys(own, file)
    write_index(path, places)
    return path


def write_index(path: Path, places) -> None:
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    (path / "model.safetensors.index.json").write_text(text)


def places_of(path: Path) -> dict[str, str]:
    return json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]


def test_shards(hugging, recorded) -> None:
    batch = reference.batch(23)
    check(run(write_shards(hugging), batch), answers(recorded, "RobertaModel"), batch)


def test_a_missing_shard(hugging) -> None:
    path = write_shards(hugging)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"model-00002-of-00003\.safetensors does not exist"):
        Engine.load(path)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_shard(hugging, size) -> None:
    path = write_shards(hugging)
    shard = path / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(ModelFormatError, match=r"model-00003-of-00003\.safetensors"):
        Engine.load(path)


def test_an_index_that_does_not_fit_its_shards(hugging) -> None:
    path = write_shards(hugging)
    places = places_of(path)
    name, file = next(iter(places.items()))
    write_index(path, places | {"encoder.more": file})
    with pytest.raises(ModelFormatError, match=r"model-00001.* lacks encoder\.more, which"):
        Engine.load(path)
    other = next(place for place in places.values() if place != file)
    write_index(path, places | {name: other})
    with pytest.raises(ModelFormatError, match=name):
        Engine.load(path)
    write_index(path, {key: place for key, place in places.items() if key != name})
    with pytest.raises(ModelFormatError, match=f"holds {name}, which .* does not place there"):
        Engine.load(path)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a\\b", "a\0b", "", ".", "..", None, 3, []]
)
def test_an_index_that_leads_elsewhere(hugging, file) -> None:
    path = write_shards(hugging)
    write_index(path, places_of(path) | {"encoder.more": file})
    with pytest.raises(ModelFormatError, match="no plain file name"):
        Engine.load(path)


@pytest.mark.parametrize("places", [None, {}, [], "model.safetensors"])
def test_an_index_without_places(hugging, places) -> None:
    path = write_shards(hugging)
    write_index(path, places)
    with pytest.raises(ModelFormatError, match="weight_map should say"):
        Engine.load(path)


# --- heads ------------------------------------------------------------------------------------

TIED = {  # class -> the decoder, and what it is a copy of
    "BertForMaskedLM": ("cls.predictions.decoder.weight", "bert"),
    "RobertaForMaskedLM": ("lm_head.decoder.weight", "roberta"),
    "DistilBertForMaskedLM": ("vocab_projector.weight", "distilbert"),
    "ElectraForMaskedLM": ("generator_lm_head.weight", "electra"),
}


@pytest.mark.parametrize("architecture", TIED)
def test_the_decoder_of_a_masked_language_model(hugging, architecture) -> None:
    decoder, prefix = TIED[architecture]
    words = weights(architecture)[f"{prefix}.embeddings.word_embeddings.weight"]

    def plan(name: str, changes, **config):
        path = write(hugging, architecture, config, changes, name=name)
        found = HuggingFaceModel.open(path)
        (step,) = (step for step in found.plan.steps if step.name == "masked_lm.decoder")
        assert found.origin["left_out"] == []
        return found.plan.weights[step.weights["weight"][0]].array

    np.testing.assert_array_equal(plan("absent", {}), words)
    np.testing.assert_array_equal(plan("copy", {decoder: words}), words)
    own = {decoder: 2 * words}
    np.testing.assert_array_equal(plan("untied", own, tie_word_embeddings=False), 2 * words)
    with pytest.raises(ModelFormatError, match=rf"{decoder} differs .* tie_word_embeddings"):
        plan("contradiction", own)
    with pytest.raises(ModelFormatError, match=f"missing: {decoder}"):
        plan("lost", {}, tie_word_embeddings=False)
    with pytest.raises(ModelFormatError, match="tie_word_embeddings should be true or false"):
        plan("nonsense", {}, tie_word_embeddings="yes")


@pytest.mark.parametrize(
    ("architecture", "begin"),
    [("BertForMaskedLM", "cls.predictions"), ("RobertaForMaskedLM", "lm_head")],
)
def test_the_bias_of_a_decoder_has_had_two_names(hugging, architecture, begin) -> None:
    bias = weights(architecture)[f"{begin}.bias"]
    for name, changes in (
        ("both", {f"{begin}.decoder.bias": bias}),
        ("new", {f"{begin}.decoder.bias": bias, f"{begin}.bias": None}),
    ):
        found = HuggingFaceModel.open(write(hugging, architecture, None, changes, name=name))
        (step,) = (step for step in found.plan.steps if step.name == "masked_lm.decoder")
        np.testing.assert_array_equal(found.plan.weights[step.weights["bias"][0]].array, bias)
    changes = {f"{begin}.decoder.bias": bias + 1}
    with pytest.raises(ModelFormatError, match=rf"{begin}\.bias differs from"):
        HuggingFaceModel.open(write(hugging, architecture, None, changes, name="differ"))


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertForPreTraining"])
def test_a_pretrained_model_makes_embeddings_too(hugging, architecture) -> None:
    path = write(hugging, architecture)
    assert HuggingFaceModel.open(path).task == "fill-mask"
    found = HuggingFaceModel.open(path, "embedding")
    assert (found.task, found.pooling) == ("embedding", {"mode": "mean", "normalize": False})
    assert "cls.predictions.bias" in found.origin["left_out"]
    with pytest.raises(InvalidInputError, match=r"a model for fill-mask, .*'regression'"):
        HuggingFaceModel.open(path, "regression")
    # sentence-transformers takes the encoder of whatever there is.
    path = write(hugging, architecture, name="pooled", pooling=hugging.pooling)
    encoder = {
        name.removeprefix("bert."): array
        for name, array in weights(architecture).items()
        if name.startswith("bert.")
    }
    plain = hugging.write(CASES["BertModel"]["config"], encoder, name="plain")
    with Engine.load(path) as one, Engine.load(plain) as other:
        assert one.task == other.task == "embedding"
        batch = reference.batch(23)
        np.testing.assert_equal(one.run(**batch), other.run(**batch))


def test_a_pooling_on_top_of_a_head(hugging) -> None:
    """sentence-transformers takes the encoder and leaves the head."""
    path = write(hugging, "BertForQuestionAnswering", pooling=hugging.pooling)
    with pytest.warns(BertrtWarning, match=r"nothing reads qa_outputs\.bias, qa_outputs\.weight"):
        assert HuggingFaceModel.open(path).task == "embedding"


def test_a_pooler_that_nothing_reads(hugging) -> None:
    pooler = {
        f"bert.pooler.dense.{part}": reference.draw("pooler", shape)
        for part, shape in (("weight", (12, 12)), ("bias", (12,)))
    }
    path = write(hugging, "BertForTokenClassification", None, pooler)
    left_out = HuggingFaceModel.open(path).origin["left_out"]
    assert left_out == ["pooler.dense.weight", "pooler.dense.bias"]


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("DistilBertModel", {"dim": 24}, "by vocab_size and dim"),
        ("DistilBertModel", {"dim": 13}, "dim 13 is no multiple of n_heads 3"),
        ("DistilBertModel", {"hidden_dim": 21}, "by hidden_dim and dim"),
        ("DistilBertModel", {"n_layers": 3}, r"missing: transformer\.layer\.2\.attention\.q_lin"),
        ("DistilBertModel", {"n_layers": 1 << 30}, "n_layers is 1073741824, and"),
        ("DistilBertModel", {"n_heads": None}, "n_heads should be a whole number"),
        ("DistilBertModel", {"activation": "silu"}, "activation 'silu' is not supported"),
        ("ElectraModel", {"embedding_size": 8}, "by vocab_size and embedding_size"),
        ("ElectraModel", {"embedding_size": 12}, r"embeddings\.LayerNorm\.weight is"),
        ("ElectraModel", {"embedding_size": None}, "embedding_size should be a whole number"),
        ("RobertaModel", {"pad_token_id": -1}, "pad_token_id should be .* found -1"),
        ("RobertaModel", {"pad_token_id": 13}, "pad_token_id should be .* found 13"),
        ("RobertaModel", {"pad_token_id": None}, "pad_token_id should be .* found None"),
        ("RobertaModel", {"pad_token_id": 11}, "is enough for 2 tokens; at least 3"),
        ("RobertaModel", {"max_position_embeddings": 15}, "by max_position_embeddings and"),
        ("RobertaForSequenceClassification", {"id2label": {"0": "a"}}, "by id2label and"),
        ("XLMRobertaForTokenClassification", {"id2label": {"0": "a"}}, "by id2label and"),
    ],
)
def test_configurations_that_do_not_fit(hugging, architecture, change, message) -> None:
    path = write(hugging, architecture, change)
    with pytest.raises(ModelFormatError, match=message) as found:
        Engine.load(path)
    assert str(path) in str(found.value)


def test_three_numbers_a_token_are_no_answer(hugging) -> None:
    changes = {"qa_outputs.weight": np.zeros((3, 12)), "qa_outputs.bias": np.zeros(3)}
    config = {"id2label": {"0": "a", "1": "b", "2": "c"}}
    path = write(hugging, "BertForQuestionAnswering", config, changes)
    with pytest.raises(UnsupportedModelError, match=r"id2label is 3, and .* 2"):
        Engine.load(path)


def test_adapters(hugging) -> None:
    name = "encoder.layer.0.attention.self.query.lora_A.default.weight"
    path = write(hugging, "BertModel", None, {name: np.zeros((2, 12), np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"{name} belongs to an adapter"):
        Engine.load(path)
    path = write(hugging, "BertModel", name="peft", adapter_config={"peft_type": "LORA"})
    with pytest.raises(UnsupportedModelError, match=r"adapter_config\.json: adapters are not"):
        Engine.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(hugging, value) -> None:
    name = "transformer.layer.1.ffn.lin2.bias"
    changes = {name: np.full(12, value, np.float32)}
    path = write(hugging, "DistilBertModel", None, changes)
    with pytest.raises(ModelFormatError, match=f"{name} holds numbers that are not finite"):
        Engine.load(path)


# --- tokenizers -------------------------------------------------------------------------------

BYTE_PAIRS = (
    *("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    *("t", "h", "e", "\u0120", "he", "the", "\u0120the", "\u0120t"),
)


def write_byte_pairs(
    hugging,
    merges: str = "h e\nt he\n\u0120 the\n\u0120 t\n",
    architecture: str = "RobertaModel",
    **files,
) -> Path:
    path = write(hugging, architecture, vocab=False, **files)
    vocab = {token: index for index, token in enumerate(BYTE_PAIRS)}
    (path / "vocab.json").write_text(json.dumps(vocab))
    (path / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return path


def test_byte_pairs(hugging) -> None:
    with Engine.load(write_byte_pairs(hugging)) as engine:
        assert engine.max_length == 12
        assert engine.tokenize("the the").ids.tolist() == [0, 10, 11, 2]
        assert engine.tokenize("the <mask>").ids.tolist() == [0, 10, 8, 4, 2]
    settings = {
        "add_prefix_space": True,
        "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True},
    }
    with Engine.load(write_byte_pairs(hugging, name="set", tokenizer_config=settings)) as engine:
        assert engine.tokenize("the the").ids.tolist() == [0, 11, 11, 2]
        assert engine.tokenize("the <mask>").ids.tolist() == [0, 11, 4, 2]


def test_byte_pairs_that_do_not_fit(hugging) -> None:
    for name, merges, message in (
        ("three", "t h e\n", r"merges\.txt cannot be read: line 2 is 't h e', expected two"),
        ("strange", "x y\n", r"vocab\.json does not make a RobertaTokenizer: .*`x` out of voc"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            Engine.load(write_byte_pairs(hugging, merges, name=name))
    path = write_byte_pairs(hugging, name="alone")
    (path / "merges.txt").unlink()
    with pytest.raises(MissingFileError, match=r"no tokenizer\.json and no merges\.txt"):
        Engine.load(path)
    for number, content in enumerate(({}, {"a": "b"}, {"a": -1}, ["a"], {"a": 0})):
        path = write_byte_pairs(hugging, name=f"vocab {number}")
        (path / "vocab.json").write_text(json.dumps(content))
        with pytest.raises(ModelFormatError, match=r"vocab\.json"):
            Engine.load(path)


def test_sentence_pieces_in_a_tokenizer_file(hugging) -> None:
    """As XLM-RoBERTa and CamemBERT have them."""
    pieces = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "\u2581the", "\u2581sea", "s", "\u2581")
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>", AddedToken("<mask>", lstrip=True)])
    for family in ("XLMRoberta", "Camembert"):
        path = write(hugging, f"{family}Model", vocab=False, name=family)
        made.save(str(path / "tokenizer.json"))
        with Engine.load(path) as engine:
            assert engine.tokenize("the seas").ids.tolist() == [0, 5, 6, 7, 2]
            assert engine.tokenize("the <mask>").ids.tolist() == [0, 5, 4, 2]
            pair = engine.tokenize(("the", "sea"))
            assert pair.ids.tolist() == [0, 5, 2, 2, 6, 2]
            assert not pair.types.any()
        path = write(hugging, f"{family}ForMaskedLM", vocab=False, name=f"{family} masks")
        made.save(str(path / "tokenizer.json"))
        with Engine.load(path) as engine:
            assert isinstance(engine.predict("the <mask>"), FillMask)


def test_tokenizers_that_are_not_complete(hugging) -> None:
    path = write(hugging, "CamembertModel", vocab=False, name="sentencepiece")
    (path / "sentencepiece.bpe.model").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="is not a SentencePiece model"):
        Engine.load(path)
    path = write(hugging, "BertModel", vocab=False, name="none")
    with pytest.raises(MissingFileError, match=r"holds no tokenizer\.json and no vocab\.txt"):
        Engine.load(path)
    path = write(hugging, "RobertaModel", name="other", tokenizer_config={"tokenizer_class": None})
    with pytest.raises(MissingFileError, match=r"RobertaTokenizer is made of; it holds vocab\.txt"):
        Engine.load(path)


def test_the_sentence_length_of_a_family(hugging) -> None:
    path = write(hugging, "RobertaModel", sentence_roberta_config={"max_seq_length": 5})
    with Engine.load(path) as engine:
        assert engine.max_length == 5


# --- predictions ------------------------------------------------------------------------------


def test_masks_are_filled(hugging) -> None:
    for path, text, ids in (
        (write(hugging, "BertForMaskedLM", name="bert"), "the [MASK]", [2, 5, 4, 3]),
        (write(hugging, "DistilBertForMaskedLM", name="distilbert"), "the [MASK]", [2, 5, 4, 3]),
        (
            write_byte_pairs(hugging, architecture="RobertaForMaskedLM", name="roberta"),
            "the <mask>",
            [0, 10, 8, 4, 2],
        ),
    ):
        with Engine.load(path) as engine:
            assert engine.task == "fill-mask"
            assert engine.tokenize(text).ids.tolist() == ids
            where = [[ids.index(4)]]
            logits = engine.run([ids], masked_positions=where)["masked_lm_outputs"][0, 0]
            found = engine.predict(text)
        assert isinstance(found, FillMask)
        scores = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
        named = Model.open(path).tokenizer.vocab_size
        best = int(logits[:named].argmax())
        assert found.candidates[0].token == Model.open(path).tokenizer.token(best)
        np.testing.assert_allclose(found.candidates[0].score, scores[best], rtol=1e-6)


def test_pairs_without_token_types(hugging) -> None:
    path = write_byte_pairs(hugging, architecture="RobertaForSequenceClassification")
    with Engine.load(path) as engine:
        encoding = engine.tokenize(("the", "the"))
        assert encoding.ids.tolist() == [0, 10, 2, 2, 10, 2]
        assert not encoding.types.any()
        assert isinstance(engine.predict(("the", "the")), Classification)
    path = write(hugging, "DistilBertForSequenceClassification", name="distilbert")
    with Engine.load(path) as engine:
        assert isinstance(engine.predict(("the", "sea")), Classification)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_questions_are_answered(hugging, family) -> None:
    architecture, question, context = f"{family}ForQuestionAnswering", "the", "the  the the"
    if family == "Roberta":
        path = write_byte_pairs(hugging, architecture=architecture)
    else:
        path = write(hugging, architecture)
    with Engine.load(path) as engine:
        found = engine.predict((question, context))
    assert isinstance(found, Answer)
    assert context[found.start : found.end].split() == found.text.split()


def test_token_types_that_the_model_does_not_have(hugging) -> None:
    """A vocabulary of BERT's beside a RoBERTa: transformers fails on a pair, too."""
    with Engine.load(write(hugging, "RobertaForSequenceClassification")) as engine:
        assert isinstance(engine.predict("the sea"), Classification)
        with pytest.raises(InvalidInputError, match="one token type"):
            engine.predict(("the", "sea"))


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_words_are_tagged(hugging, family) -> None:
    with Engine.load(write(hugging, f"{family}ForTokenClassification")) as engine:
        found = engine.predict("the boats sea")
        assert set(found.tags) <= set(engine.labels)
    assert isinstance(found, Tagging)
    assert found.words == ("the", "boats", "sea")


def test_next_sentences(hugging) -> None:
    path = write(hugging, "BertForNextSentencePrediction")
    with Engine.load(path) as engine:
        found = engine.predict(("the", "sea"))
        encoding = engine.tokenize(("the", "sea"))
        (logits,) = engine.run([encoding.ids], [encoding.types])["next_sentence_classifier_output"]
    assert isinstance(found, NextSentence)
    # In transformers too, class 0 is that the second text follows.
    assert found.is_next == (logits[0] >= logits[1])


def test_the_discriminator_of_electra(hugging) -> None:
    with Engine.load(write(hugging, "ElectraForPreTraining")) as engine:
        assert isinstance(engine.predict("the boats"), Embedding)
        (rows,) = engine.run([engine.tokenize("the boats").ids])["logits"]
    assert rows.shape == (5, 1)


# --- live -------------------------------------------------------------------------------------

AWKWARD = {
    "vocab_size": 37,
    "hidden_size": 34,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 51,
    "max_position_embeddings": 21,
    "type_vocab_size": 3,
}
LIVE = {
    "BertForPreTraining": AWKWARD | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
    "BertForMaskedLM": AWKWARD | {"hidden_act": "gelu_fast", "tie_word_embeddings": False},
    "RobertaForMaskedLM": AWKWARD | {"type_vocab_size": 1, "tie_word_embeddings": False},
    "CamembertForSequenceClassification": AWKWARD | {"hidden_act": "tanh", "num_labels": 1},
    "XLMRobertaForTokenClassification": AWKWARD | {"num_labels": 7},
    "DistilBertForSequenceClassification": {
        "vocab_size": 37,
        "dim": 34,
        "n_layers": 1,
        "n_heads": 17,
        "hidden_dim": 51,
        "activation": "relu",
        "sinusoidal_pos_embds": True,
    },
    "ElectraForMaskedLM": AWKWARD | {"embedding_size": 41, "tie_word_embeddings": False},
    "ElectraForSequenceClassification": AWKWARD | {"embedding_size": 34, "num_labels": 4},
    "ElectraForPreTraining": AWKWARD | {"embedding_size": 5, "hidden_act": "gelu_new"},
    "AlbertForMaskedLM": AWKWARD | {"embedding_size": 41, "tie_word_embeddings": False},
    "AlbertForPreTraining": AWKWARD
    | {"embedding_size": 34, "num_hidden_layers": 7, "num_hidden_groups": 3, "inner_group_num": 2},
    "AlbertForSequenceClassification": AWKWARD | {"embedding_size": 5, "hidden_act": "relu"},
    "MPNetForMaskedLM": AWKWARD | {"tie_word_embeddings": False},
    "MPNetForSequenceClassification": AWKWARD | {"num_labels": 4, "hidden_act": "gelu_new"},
}


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("architecture", LIVE)
def test_what_transformers_writes(hugging, tmp_path, architecture, shard) -> None:
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", exc_type=ImportError)
    path = tmp_path / architecture
    reference.save(path, architecture, LIVE[architecture], shard)
    assert (path / "model.safetensors").exists() == (shard is None)
    (path / "vocab.txt").write_text("\n".join(hugging.words))
    batch = reference.batch(37)
    check(run(path, batch), reference.answers(path, architecture, batch), batch)
