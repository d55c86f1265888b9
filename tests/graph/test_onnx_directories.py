"""ONNX files with a configuration and a tokenizer beside them: texts in, answers out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import (
    BertrtError,
    BertrtWarning,
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.models.bundle import Bundle

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DIRECTORY = Path(__file__).parents[1] / "data" / "onnx"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "boat", "sea", *(f"word{i}" for i in range(52))]
TEXT, IDS = "the boat word0", [2, 5, 6, 8, 3]
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}


@pytest.fixture
def write(tmp_path):
    """``write(*files, **changes)``: a directory with ONNX files, each (name in it, source), the
    configuration with these changes and, unless ``tokenizer=False``, a tokenizer."""

    def make(*files, tokenizer=True, name="model", **changes):
        directory = tmp_path / name
        directory.mkdir()
        if changes.pop("config", True):
            (directory / "config.json").write_text(json.dumps(CONFIG | changes))
        if tokenizer:
            (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        for own, source in files:
            target = directory / own
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(DIRECTORY / f"{source}.onnx", target)
        return directory

    return make


def run_file(source: str, ids: list[int]) -> list[np.ndarray]:
    path = str(DIRECTORY / f"{source}.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    row = np.array([ids])
    values = {"input_ids": row, "attention_mask": row * 0 + 1, "token_type_ids": row * 0}
    return session.run(None, {node.name: values[node.name] for node in session.get_inputs()})


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_an_embedding(write):
    directory = write(("model.onnx", "script14_model"))
    rows, _ = run_file("script14_model", IDS)
    for path in (directory, directory / "model.onnx"):
        for backend in ("native", "onnxruntime"):
            with Engine.load(path, backend=backend) as engine:
                assert (engine.task, engine.max_length) == ("embedding", 20)
                found = engine.predict(TEXT).vector
            np.testing.assert_allclose(found, rows[0].mean(0), atol=2e-6)


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        ("script14_max", lambda outputs: outputs[0][0]),
        ("dynamo18_first", lambda outputs: outputs[1][0]),
    ],
)
def test_a_vector_that_the_graph_makes(write, source, vector):
    """The file's own pooling, where the directory brings none."""
    with Engine.load(write(("model.onnx", source))) as engine:
        found = engine.predict(TEXT).vector
    np.testing.assert_allclose(found, vector(run_file(source, IDS)), atol=2e-6)


def test_the_pooling_of_the_directory(write):
    directory = write(("onnx/model.onnx", "dynamo18_first"))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate((("Transformer", ""), ("Pooling", "1_Pooling")))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    rows, _ = run_file("dynamo18_first", IDS)
    for path in (directory, directory / "onnx" / "model.onnx"):
        with Engine.load(path) as engine:
            found = engine.predict(TEXT).vector
        np.testing.assert_allclose(found, rows[0].mean(0), atol=2e-6)


def pooled(directory, mode, *behind):
    """Makes a directory one of sentence-transformers with this pooling."""
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode": mode}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((k, f"2_{k}") for k in behind)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def test_a_pooling_that_is_not_the_graph_s(write):
    """A file that returns its own vectors alone cannot be pooled in another way."""
    source = ("model.onnx", "script14_mean")
    rows = run_file("script14_mean", IDS)
    assert len(rows) == 1
    with Engine.load(pooled(write(source, name="fits"), "mean", "Normalize")) as engine:
        np.testing.assert_allclose(engine.predict(TEXT).vector, rows[0][0], atol=2e-6)
    with pytest.raises(UnsupportedModelError, match=r"pooled itself, by mean.*say otherwise"):
        Engine.load(pooled(write(source, name="other"), "cls"))


def test_scores_that_the_graph_makes(write):
    changes = {"architectures": ["BertForSequenceClassification"]}
    classes = run_file("script14_sigmoid", IDS)[0].shape[-1]
    changes["id2label"] = {str(i): f"label{i}" for i in range(classes)}
    source = ("model.onnx", "script14_sigmoid")
    several = write(source, **changes, problem_type="multi_label_classification")
    with Engine.load(several) as engine:
        found = engine.predict(TEXT)
    expected = run_file("script14_sigmoid", IDS)[0][0]
    np.testing.assert_allclose(list(found.scores.values()), expected, atol=2e-6)
    one = write(source, **changes, problem_type="single_label_classification", name="one")
    with pytest.raises(UnsupportedModelError, match=r"returns sigmoid.*activation is softmax"):
        Engine.load(one)


def test_a_classifier(write):
    labels = {"0": "bad", "1": "good", "2": "odd"}
    architecture = ["BertForSequenceClassification"]
    directory = write(
        ("model.onnx", "script17_classifier"), architectures=architecture, id2label=labels
    )
    with Engine.load(directory) as engine:
        assert engine.labels == ["bad", "good", "odd"]
        found = engine.predict(TEXT)
    expected = softmax(run_file("script17_classifier", IDS)[0][0])
    np.testing.assert_allclose(list(found.scores.values()), expected, atol=2e-6)
    # Exported for its rows, it makes embeddings.
    other = write(
        ("model.onnx", "script14_model"), architectures=architecture, id2label=labels, name="b"
    )
    with Engine.load(other) as engine:
        assert engine.task == "embedding"


@pytest.mark.parametrize(
    ("source", "head", "changes", "task"),
    [
        ("dynamo18_tagger", "TokenClassification", {"num_labels": 5}, "tagging"),
        ("script14_answering", "QuestionAnswering", {}, "question-answering"),
        ("script14_pretraining", "PreTraining", {}, "fill-mask"),
    ],
)
def test_other_tasks(write, source, head, changes, task):
    directory = write(("model.onnx", source), architectures=[f"BertFor{head}"], **changes)
    with Engine.load(directory) as engine:
        assert engine.task == task
        texts = {"fill-mask": "the [MASK] sea", "question-answering": ("the", "boat sea")}
        assert engine.predict(texts.get(task, TEXT))


def test_whether_a_sentence_follows(write, tmp_path):
    """Alone, its two numbers look like any classifier's."""
    directory = write(("x.onnx", "script14_pretraining"))
    model = onnx.load(str(directory / "x.onnx"))
    del model.graph.output[0]
    onnx.save(model, str(directory / "x.onnx"))
    config = CONFIG | {"architectures": ["BertForNextSentencePrediction"]}
    (directory / "config.json").write_text(json.dumps(config))
    assert main(["import", str(directory), "--out", str(tmp_path / "bundle")]) == 0
    expected = softmax(run_file("script14_pretraining", [2, 5, 3])[1][0])
    for path in (directory, tmp_path / "bundle"):
        with Engine.load(path) as engine:
            assert engine.task == "next-sentence"
            (found,) = engine.run([[2, 5, 3]])["next_sentence_classifier_output"]
        np.testing.assert_allclose(softmax(found), expected, atol=2e-6)


def test_a_fixed_sequence_cuts_texts(write):
    directory = write(
        ("model.onnx", "script14_fixed"), architectures=["BertForSequenceClassification"],
        num_labels=3,
    )  # fmt: skip
    with Engine.load(directory) as engine:
        assert engine.max_length == 8
        assert engine.predict("the " * 9).truncated


# Which file


def test_which_of_several_files(write):
    plain, classifier = "script14_model", "script17_classifier"
    for number, files in enumerate(
        (
            (("model.onnx", plain), ("a.onnx", classifier)),
            (("onnx/model.onnx", plain), ("a.onnx", classifier)),
            (("model.onnx", plain), ("onnx/model.onnx", classifier)),
            (("a.onnx", plain),),
            (("onnx/a.onnx", plain),),
        )
    ):
        with Engine.load(write(*files, name=str(number))) as engine:
            assert engine.task == "embedding"
    several = write(("a.onnx", plain), ("b.onnx", plain), name="several")
    with pytest.raises(ModelFormatError, match=r"several ONNX files \(a.onnx, b.onnx\).*give"):
        Engine.load(several)
    with Engine.load(several / "b.onnx") as engine:
        assert engine.predict(TEXT).vector.any()


def test_other_weights_are_the_model(hugging):
    path = hugging.write()
    (path / "model.onnx").write_bytes(b"broken")
    with Engine.load(path) as engine:
        assert engine.task == "embedding"


def test_nothing_beside_stays_a_bare_graph(write):
    directory = write(("model.onnx", "script14_model"), config=False, tokenizer=False)
    with Engine.load(directory / "model.onnx") as engine:
        assert engine.task is None and engine.run([IDS])["pooled_output"].shape == (1, 16)
        with pytest.raises(BertrtError, match="no tokenizer"):
            engine.predict(TEXT)
    with pytest.raises(MissingFileError, match=r"config.json does not exist"):
        Engine.load(directory)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    with Engine.load(directory / "model.onnx") as engine:
        assert engine.task is None
    with pytest.raises(MissingFileError, match=r"no tokenizer.json"):
        Engine.load(directory)


# What does not fit


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (
            "script14_model",
            {"vocab_size": 61},
            "vocab_size is 61, and the ONNX file's model has 60",
        ),
        ("script14_model", {"hidden_size": 32}, "hidden_size is 32"),
        ("script14_model", {"num_hidden_layers": 3}, "num_hidden_layers is 3"),
        (
            "script17_classifier",
            {"architectures": ["BertForSequenceClassification"], "num_labels": 4},
            "it has 4 labels, and the ONNX file returns 3 numbers",
        ),
        (
            "dynamo18_discriminator",
            {"architectures": ["BertForSequenceClassification"], "num_labels": 3},
            "is for classification, and the ONNX file returns logits",
        ),
    ],
)
def test_files_of_two_models(write, source, changes, message):
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(write(("model.onnx", source), **changes))


def test_a_file_beside_what_bertrt_does_not_run(write):
    """The directory is refused; the file itself runs, and it is said that it does so alone."""
    directory = write(("model.onnx", "script14_model"), position_embedding_type="relative_key")
    with pytest.raises(UnsupportedModelError, match="position_embedding_type"):
        Engine.load(directory)
    with (
        pytest.warns(BertrtWarning, match="is a bare graph, .*position_embedding_type"),
        Engine.load(directory / "model.onnx") as engine,
    ):
        assert engine.task is None and engine.run([IDS])["pooled_output"].shape == (1, 16)


def test_positions_that_do_not_begin_at_0(write):
    directory = write(
        ("model.onnx", "dynamo18_positions"), model_type="roberta", architectures=["RobertaModel"]
    )
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UnsupportedModelError, match="takes position_ids, which begin behind"):
        Engine.load(directory)


# Import


def test_import_with_what_lies_beside(write, tmp_path):
    labels = {"0": "bad", "1": "good", "2": "odd"}
    directory = write(
        ("model.onnx", "script17_classifier"),
        architectures=["BertForSequenceClassification"],
        id2label=labels,
    )
    with Engine.load(directory) as engine:
        expected = engine.predict(TEXT)
    for number, path in enumerate((directory, directory / "model.onnx")):
        bundle = tmp_path / str(number)
        assert main(["import", str(path), "--out", str(bundle)]) == 0
        manifest = Bundle.open(bundle).manifest
        assert (manifest["task"], manifest["labels"]) == ("classification", ["bad", "good", "odd"])
        assert {"model.onnx", "tokenizer.json"} <= set(manifest["files"])
        with Engine.load(bundle) as engine:
            assert engine.predict(TEXT) == expected


def test_import_with_a_tokenizer_from_elsewhere(write, tmp_path, capsys):
    source = str(DIRECTORY / "script17_classifier.onnx")
    home = write(architectures=["BertForSequenceClassification"], num_labels=3)
    expected = softmax(run_file("script17_classifier", IDS)[0][0])
    command = ["import", source, "--tokenizer", str(home), "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    (home / "config.json").unlink()
    assert main([*command, str(tmp_path / "b")]) == 1
    assert "one of them has to say which tokenizer it is" in capsys.readouterr().err
    (home / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert main([*command, str(tmp_path / "b")]) == 0
    for name, labels in (("a", ["LABEL_0", "LABEL_1", "LABEL_2"]), ("b", ["0", "1", "2"])):
        with Engine.load(tmp_path / name) as engine:
            assert engine.labels == labels
            found = engine.predict(TEXT)
        np.testing.assert_allclose(list(found.scores.values()), expected, atol=2e-6)


def test_import_for_another_task(write, tmp_path):
    from bertrt.export import import_graph

    directory = write(("model.onnx", "script14_pretraining"), architectures=["BertForPreTraining"])
    bundle = import_graph(directory, tmp_path / "bundle", task="next-sentence")
    assert Bundle.open(bundle).manifest["task"] == "next-sentence"
    with pytest.raises(InvalidInputError, match="cannot be taken for the task 'tagging'"):
        import_graph(directory, tmp_path / "other", task="tagging")
    bare = DIRECTORY / "script14_model.onnx"
    with pytest.raises(InvalidInputError, match="is a bare graph"):
        import_graph(bare, tmp_path / "other", task="embedding")
    with pytest.raises(InvalidInputError, match=r"no .onnx file"):
        import_graph(__file__, tmp_path / "other", tokenizer=directory)
    with pytest.raises(MissingFileError, match="no directory with an ONNX file"):
        import_graph(tmp_path, tmp_path / "other")


@pytest.mark.parametrize("source", ["dynamic_int8", "dynamic_uint8", "static_int8"])
@pytest.mark.filterwarnings("ignore::bertrt.errors.BertrtWarning")
def test_import_of_a_quantised_file(write, tmp_path, source):
    """The bundle has the plan and no graph, which would compute something else."""
    directory = write(("model.onnx", source))
    assert main(["import", str(directory), "--out", str(tmp_path / "bundle")]) == 0
    files = set(Bundle.open(tmp_path / "bundle").manifest["files"])
    assert files == {"plan.json", "model.safetensors", "golden.npz", "tokenizer.json"}
    with Engine.load(directory) as own, Engine.load(tmp_path / "bundle") as bundle:
        assert own.precision == bundle.precision == ("fp32" if "uint8" in source else "int8")
        np.testing.assert_array_equal(own.predict(TEXT).vector, bundle.predict(TEXT).vector)


def test_import_drops_outputs_that_are_others(write, tmp_path):
    source = DIRECTORY / "dynamo18_hidden.onnx"
    assert main(["import", str(source), "--out", str(tmp_path / "bundle")]) == 0
    found = onnx.load(str(tmp_path / "bundle" / "model.onnx"), load_external_data=False)
    assert len(found.graph.output) == 3
    for backend in ("native", "onnxruntime"):
        with Engine.load(tmp_path / "bundle", backend=backend) as engine:
            outputs = engine.run([IDS])
        assert list(outputs) == ["sequence_output", "embedding_output", "all_encodings"]
