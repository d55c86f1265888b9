"""export_model: a live net in, a checked bundle out, or an error and nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from bertrt.export import export_model, import_graph
from bertrt.export import model as export_module
from bertrt.export.gluon_to_symbol import run_gluon

from bertrt import Engine
from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    InvalidTypeError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
)
from bertrt.evaluation.verify import sample_batch, verify
from bertrt.models.bundle import Bundle, writing

HEADS = {
    "sequence": {"use_pooler": False},
    "pooler": {},
    "next sentence": {"use_classifier": True},
    "decoder": {"use_decoder": True},
    "all": {"use_classifier": True, "use_decoder": True},
}
OUTPUTS = {
    "sequence": ["sequence_output"],
    "pooler": ["sequence_output", "pooled_output"],
    "next sentence": ["sequence_output", "pooled_output", "next_sentence_classifier_output"],
    "decoder": ["sequence_output", "pooled_output", "masked_lm_outputs"],
    "all": [
        "sequence_output",
        "pooled_output",
        "next_sentence_classifier_output",
        "masked_lm_outputs",
    ],
}
SHAPES = {
    "one layer, one head": {"layers": 1, "units": 8, "heads": 1, "ffn": 12},
    "odd head size": {"layers": 3, "units": 35, "heads": 5, "ffn": 21},
    "two positions": {"layers": 1, "max_length": 3},
    "relu": {"activation": "relu", "layer_norm_eps": 1e-5},
    "tanh gelu": {"activation": "approx_gelu"},
    "no dropout": {"dropout": 0.0},
    "deferred": {"deferred": True},
    "no token types": {"use_token_type_embed": False, "token_type_vocab_size": None},
}


def assert_close(expected, found):
    assert list(expected) == list(found)
    for name, array in expected.items():
        scale = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(found[name] / scale, array / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.mxnet
def test_every_kind_of_bert_model(make_bert, make_vocab, tmp_path, kind):
    net = make_bert(**HEADS[kind])
    path = export_model(
        net, tmp_path / "bundle", vocab=make_vocab(), task="embedding", max_length=30
    )
    assert path == tmp_path / "bundle"
    bundle = Bundle.open(path)
    assert bundle.manifest["outputs"] == OUTPUTS[kind]
    assert bundle.manifest["pooling"] == {"mode": "mean", "normalize": False}
    assert bundle.file("model.onnx") and bundle.file("model-0000.params")
    cases = bundle.golden()
    assert len({case.inputs["token_ids"].shape[1] for case in cases}) == 2
    for case in cases:
        lengths = case.inputs["valid_length"].tolist()
        assert 1 in lengths and case.inputs["token_ids"].shape[1] in lengths
        assert (0 in lengths) == ("decoder" not in kind and kind != "all")
        assert set(case.inputs["token_types"].ravel().tolist()) == {0, 1}
        assert_close(run_gluon(net, case.inputs), case.outputs)
    report = verify(path)
    assert report.ok, str(report)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.mxnet
def test_every_shape(make_bert, make_vocab, tmp_path, shape):
    net = make_bert(**SHAPES[shape])
    path = export_model(net, tmp_path / "b", vocab=make_vocab(), task="embedding", max_length=3)
    length = min(17, SHAPES[shape].get("max_length", 17))
    manifest = Bundle.open(path).manifest
    batch = sample_batch(manifest["architecture"], length, masked=False, seed=5)
    with Engine.load(path) as engine:
        assert_close(run_gluon(net, batch), engine.run(**batch))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.mxnet
def test_classification(make_classifier, make_vocab, tmp_path, dropout):
    net = make_classifier(classes=3, head_dropout=dropout)
    path = export_model(
        net,
        tmp_path / "bundle",
        vocab=make_vocab(),
        task="classification",
        labels=["good", "bad", "ugly"],
        lower=False,
        max_length=20,
        origin={"note": "tiny"},
    )
    manifest = Bundle.open(path).manifest
    assert manifest["labels"] == ["good", "bad", "ugly"]
    assert manifest["tokenizer"] == {
        "kind": "gluonnlp",
        "file": "vocab.json",
        "lower": False,
        "max_length": 20,
    }
    assert manifest["origin"]["note"] == "tiny"
    assert manifest["origin"]["versions"]["mxnet"]
    with Engine.load(path) as engine:
        result = engine.predict("word1 word2")
        encoding = engine.tokenize("word1 word2")
    ids = np.asarray(encoding.ids, np.int64)[None]
    logits = run_gluon(
        net,
        {
            "token_ids": ids,
            "token_types": 0 * ids,
            "valid_length": np.array([ids.shape[1]]),
        },
    )["logits"][0]
    assert result.label == ["good", "bad", "ugly"][int(logits.argmax())]
    powers = np.exp(logits - logits.max())
    np.testing.assert_allclose(list(result.scores.values()), powers / powers.sum(), atol=1e-5)


@pytest.mark.mxnet
def test_labels_are_numbered_and_regression_has_none(make_classifier, make_vocab, tmp_path):
    path = export_model(
        make_classifier(classes=2),
        tmp_path / "two",
        vocab=make_vocab(),
        task="classification",
        max_length=20,
    )
    assert Bundle.open(path).manifest["labels"] == ["0", "1"]
    net = make_classifier(classes=1)
    path = export_model(net, tmp_path / "one", vocab=make_vocab(), task="regression", max_length=20)
    manifest = Bundle.open(path).manifest
    assert manifest["labels"] is None and manifest["pooling"] is None
    assert np.isfinite(Engine.load(path).predict("word3").score)


@pytest.mark.mxnet
def test_the_vocabulary_may_be_a_file(make_bert, make_vocab, tmp_path):
    (tmp_path / "vocab").write_text(make_vocab().to_json())
    for index, vocab in enumerate([tmp_path / "vocab", str(tmp_path / "vocab")]):
        path = export_model(
            make_bert(), tmp_path / f"b{index}", vocab=vocab, task="embedding", max_length=9
        )
        assert Bundle.open(path).file("vocab.json")


def export_anything(net, its_vocab, out, **options):
    common = {"vocab": its_vocab, "task": "embedding", "max_length": 9}
    return export_model(net, out, **common | options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "translation"}, InvalidInputError, "one of classification.*MRPC"),
        ({"task": None}, InvalidInputError, "one of classification"),
        ({"task": "classification"}, InvalidInputError, "logits, as of a BERTClassifier"),
        ({"task": "MRPC"}, InvalidInputError, "logits, as of a BERTClassifier"),
        ({"task": "tagging"}, InvalidInputError, "logits, as of a BERTTagger"),
        ({"task": "fill-mask"}, InvalidInputError, "use_decoder=True"),
        ({"task": "next-sentence"}, InvalidInputError, "use_classifier=True"),
        ({"settings": {"top_k": 3}}, InvalidInputError, "no 'top_k'; there is prompts"),
        ({"settings": ["top_k"]}, InvalidTypeError, "dict of names"),
        ({"labels": ["a"]}, InvalidInputError, "labels are for classification"),
        ({"max_length": 41}, InvalidInputError, "40 positions"),
        ({"max_length": 2}, InvalidInputError, "from 3"),
        ({"max_length": 9.0}, InvalidTypeError, "whole number"),
        ({"max_length": True}, InvalidTypeError, "whole number"),
        ({"lower": "yes"}, InvalidTypeError, "lower"),
        ({"vocab": 7}, InvalidTypeError, "BERTVocab"),
        ({"vocab": "nowhere.vocab"}, MissingFileError, r"nowhere\.vocab"),
        ({"pooling": {"mode": "best"}}, InvalidInputError, "best"),
        ({"pooling": {"mode": "cls", "scale": 2}}, InvalidInputError, "scale"),
        ({"pooling": {"mode": "pooled"}}, InvalidInputError, "use_pooler"),
        ({"pooling": "mean"}, InvalidTypeError, "pooling should be a dict .* found 'mean'"),
        ({"origin": {"when": object()}}, InvalidTypeError, "origin"),
        ({"origin": ["a model"]}, InvalidTypeError, "origin should be a dict"),
    ],
)
@pytest.mark.mxnet
def test_arguments_are_checked(make_bert, make_vocab, tmp_path, options, error, message):
    net = make_bert(use_pooler=False, layers=1)
    with pytest.raises(error, match=message):
        export_anything(net, make_vocab(), tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (3, {"task": "embedding"}, "sequence_output, as of a BERTModel"),
        (3, {"task": "regression"}, "it has 3"),
        (3, {"labels": ["a", "b"]}, "3 outputs.*found 2"),
        (3, {"labels": ["a", "b", "b"]}, "different"),
        (3, {"labels": "abc"}, "list of non-empty strings"),
        (3, {"labels": ["a", "b", 3]}, "list of non-empty strings"),
        (3, {"labels": 3}, "list of non-empty strings, found 3"),
        (3, {"labels": (label for label in "ab")}, "3 outputs.*found 2"),
        (3, {"pooling": {"mode": "mean"}}, "pooling is for embeddings"),
    ],
)
@pytest.mark.mxnet
def test_heads_are_checked(make_classifier, make_vocab, tmp_path, classes, options, message):
    with pytest.raises((InvalidInputError, InvalidTypeError), match=message):
        export_anything(
            make_classifier(classes=classes, layers=1),
            make_vocab(),
            tmp_path / "bundle",
            **{"task": "classification"} | options,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mxnet
def test_nets_are_checked(mxnet, make_bert, make_vocab, tmp_path):
    from gluonnlp.model import BERTEncoder, BERTModel, DistilBERTModel

    encoder = BERTEncoder(num_layers=1, units=8, hidden_size=8, max_length=9, num_heads=2)
    net = BERTModel(encoder, 60, 2, 8, 8, use_decoder=False, use_classifier=False)
    for wrong, error, message in (
        ("bert", InvalidTypeError, "found str"),
        (net, InvalidInputError, "not initialised"),
        (make_bert(vocab_size=61), InvalidInputError, "60 tokens.*61 rows"),
        (mxnet.gluon.nn.Dense(3), InvalidInputError, "as of a BERTModel"),
        (
            DistilBERTModel(BERTEncoder(num_layers=1, units=8, num_heads=2), 60, 8, 8),
            InvalidInputError,
            "is not initialised",
        ),
    ):
        with pytest.raises(error, match=message):
            export_anything(wrong, make_vocab(), tmp_path / "bundle")
    dense = mxnet.gluon.nn.Dense(3)
    dense.initialize()
    with pytest.raises(InvalidInputError, match="Dense cannot be called with token_ids, token_ty"):
        export_anything(dense, make_vocab(), tmp_path / "bundle", task="classification")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[PAD]\n[UNK]\n", b'{"token_to_idx": {"a": 1}}'])
@pytest.mark.mxnet
def test_a_vocabulary_file_that_is_none(make_bert, tmp_path, content):
    (tmp_path / "vocab").write_bytes(content)
    with pytest.raises(ModelFormatError, match="vocab"):
        export_anything(make_bert(), tmp_path / "vocab", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.mxnet
def test_an_existing_place_is_left_alone(make_bert, make_vocab, tmp_path):
    (tmp_path / "bundle").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_anything(make_bert(), make_vocab(), tmp_path / "bundle")
    assert (tmp_path / "bundle").read_text() == "mine"


@pytest.mark.mxnet
def test_wrong_numbers_are_not_kept(make_bert, make_vocab, tmp_path, monkeypatch):
    def drifted(net, inputs):
        return {name: out + np.float32(1e-3) for name, out in run_gluon(net, inputs).items()}

    monkeypatch.setattr(export_module, "run_gluon", drifted)
    with pytest.raises(BertrtError, match=r"(?s)does not give the numbers.*FAILED"):
        export_anything(make_bert(), make_vocab(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_weights_are_stored_once(make_bundle, tmp_path):
    net = {"vocab_size": 4000}
    path = make_bundle(tmp_path / "bundle", "bert", net, task="embedding", max_length=9)
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    weights = sizes["model-0000.params"]
    assert weights > 4000 * 32 * 4
    others = sum(sizes.values()) - weights - sizes["golden.npz"] - sizes["vocab.json"]
    assert others < weights / 2
    assert sizes["model.onnx"] < weights / 4


def test_a_manifest_that_tells_of_another_plan(make_bundle, tmp_path):
    path = make_bundle(tmp_path / "bundle", "bert", {}, task="embedding", max_length=9)
    opened = Bundle.open(path)
    with writing(tmp_path / "other") as draft:
        for name in opened.manifest["files"]:
            shutil.copyfile(opened.directory / name, draft.directory / name)
        added = ("format_version", "files", "manifest_sha256")
        manifest = {key: value for key, value in opened.manifest.items() if key not in added}
        draft.seal(manifest | {"architecture": manifest["architecture"] | {"max_length": 1000}})
    with pytest.raises(
        ModelFormatError, match=r"plan\.json: architecture .* not those of the mani"
    ):
        Engine.load(tmp_path / "other")


@pytest.mark.parametrize("kind", ["sequence", "all", "classifier"])
@pytest.mark.parametrize("source", ["model-symbol.json", "model.onnx"])
def test_a_bare_graph_becomes_a_bundle_again(make_bundle, tmp_path, kind, source):
    if kind == "classifier":
        net, task = ("classifier", {"classes": 3}), "classification"
    else:
        net, task = ("bert", HEADS[kind]), "embedding"
    first = make_bundle(tmp_path / "first", *net, task=task, max_length=9)
    second = import_graph(first / source, tmp_path / "second")
    manifest = Bundle.open(second).manifest
    assert manifest["task"] == task
    assert manifest["tokenizer"] is None
    assert manifest["architecture"] == Bundle.open(first).manifest["architecture"]
    assert verify(second).ok
    case = Bundle.open(first).golden()[0]
    with Engine.load(second) as engine:
        assert_close(case.outputs, engine.run(**case.inputs))


@pytest.mark.mxnet
def test_a_symbol_in_half_precision_becomes_a_bundle(make_bert, make_vocab, tmp_path):
    """MXNet has no half precision on a CPU: both of the bundle's files are widened."""
    mxnet = pytest.importorskip("mxnet")
    first = export_anything(make_bert(), make_vocab(), tmp_path / "first", task="embedding")
    source = tmp_path / "half-symbol.json"
    content = json.loads((first / "model-symbol.json").read_text())
    for node in content["nodes"]:
        if node["op"] == "null":
            node.setdefault("attrs", {})["__dtype__"] = "2"
    source.write_text(json.dumps(content))
    arrays = mxnet.nd.load(str(first / "model-0000.params"))
    halved = {name: array.astype("float16") for name, array in arrays.items()}
    mxnet.nd.save(str(tmp_path / "half-0000.params"), halved)
    report = verify(import_graph(source, tmp_path / "second"))
    assert report.ok
    assert {check.backend for check in report.checks} == {"native", "onnxruntime", "mxnet"}


@pytest.mark.parametrize("form", ["raw data", "numbers", "constant node"])
def test_an_onnx_file_with_its_weights_inside(make_bundle, tmp_path, form):
    onnx = pytest.importorskip("onnx")
    first = make_bundle(tmp_path / "first", "classifier", {}, task="classification", max_length=9)
    model = onnx.load(str(first / "model.onnx"))
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    for tensor in floats:
        array = onnx.numpy_helper.to_array(tensor)
        if form == "numbers":
            tensor.ClearField("raw_data")
            tensor.float_data.extend(array.ravel().tolist())
        elif form == "constant node" and array.ndim == 1 and array.size == 48:
            node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, node)
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    second = import_graph(tmp_path / "whole.onnx", tmp_path / "second")
    opened = Bundle.open(second)
    assert set(opened.manifest["files"]) >= {"model.onnx", "model.onnx.data"}
    size = (second / "model.onnx").stat().st_size
    assert size < (tmp_path / "whole.onnx").stat().st_size / 2
    assert verify(second).ok
    case = Bundle.open(first).golden()[1]
    with Engine.load(second) as engine:
        assert_close(case.outputs, engine.run(**case.inputs))


def test_bare_graphs_that_are_none(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        import_graph(tmp_path / "nowhere.onnx", tmp_path / "bundle")
    with pytest.raises(MissingFileError, match="no file"):
        import_graph(tmp_path, tmp_path / "bundle")
    with pytest.raises(InvalidTypeError, match="path is a NoneType"):
        import_graph(None, tmp_path / "bundle")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07nonsense")
    with pytest.raises(ModelFormatError, match="broken"):
        import_graph(tmp_path / "broken.onnx", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]
