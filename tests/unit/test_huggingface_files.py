"""Hugging Face directories as people have them: weights of torch.save, configurations with settings
left out, tensors and labels that nobody expects. Right answers are transformers', as
``tests/data/make_huggingface_configs.py`` recorded them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bertrt.export.huggingface import import_huggingface
from tokenizers import models

import bertrt.host.files
import bertrt.models.huggingface.tokenizer.vocabulary
from bertrt import BertrtWarning, Classification, Embedding, Engine, Regression
from bertrt.commands.main import main
from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.huggingface.tokenizer.settings import read_config, read_settings
from bertrt.models.model import Model
from bertrt.tasks.base import Request
from bertrt.tasks.settings import complete_settings
from bertrt.tasks.table import make_task

DATA = Path(__file__).parents[1] / "data"
WRITTEN = json.loads((DATA / "huggingface_reference.json").read_text())
RECORDED = json.loads((DATA / "huggingface_configs.json").read_text())
BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


configs, reference = script("make_huggingface_configs"), script("make_huggingface_reference")


def tensors(architecture: str, shapes=None) -> dict[str, np.ndarray]:
    shapes = WRITTEN[architecture]["tensors"] | (shapes or {})
    return {name: reference.draw(name, tuple(shape)) for name, shape in shapes.items()}


def write(hugging, name: str, **options) -> Path:
    """The directory of a recorded case."""
    case = configs.CASES[name]
    config = configs.changed(WRITTEN[case.architecture]["config"], case.config)
    weights = tensors(case.architecture, {n: list(s) for n, s in case.tensors.items()})
    return hugging.write(config, weights, **options)


def run(path: Path) -> dict[str, np.ndarray]:
    batch = reference.batch(23)
    with Engine.load(path) as engine:
        model = Model.open(path)
        if model.limits.type_vocab_size < 2:
            batch["token_types"] = np.zeros_like(batch["token_ids"])
        if "masked_lm_outputs" in model.outputs:
            batch["masked_positions"] = np.array([range(6), [0] * 6, range(6)])
        return engine.run(**batch)


# --- configurations ---------------------------------------------------------------------------

# What transformers takes, and has no answer for
NO_NAME = ("numbers with a gap",)


@pytest.mark.parametrize("name", configs.CASES)
def test_what_transformers_makes_of_it(hugging, name) -> None:
    recorded, path = RECORDED[name], write(hugging, name)
    if "refused" in recorded or name in NO_NAME:
        with pytest.raises(ModelFormatError, match=r"config\.json"):
            Engine.load(path)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BertrtWarning)
        found = run(path)
        model = Model.open(path)
    expected = np.array(recorded["output"], np.float32)
    output = found[next(n for n in ("masked_lm_outputs", *found) if n in found)]
    if "masked_lm_outputs" in found:
        expected = np.stack([expected[0, :6], expected[1, [0] * 6], expected[2, :6]])
    elif output.ndim == 3:
        valid = np.arange(11) < reference.batch(23)["valid_length"][:, None]
        output, expected = output[valid], expected[valid]
    np.testing.assert_allclose(output, expected, atol=2e-5, rtol=1e-5)
    if (labels := recorded.get("labels")) and model.task != "regression":
        assert model.labels == [str(label) for label in labels]
    if scores := recorded.get("scores"):
        check_scores(model, found["logits"], scores)


@pytest.mark.parametrize("name", configs.CASES)
def test_what_is_recorded_is_what_transformers_makes_of_it(hugging, name) -> None:
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", exc_type=ImportError)
    found = configs.record(write(hugging, name), configs.CASES[name].auto, reference.batch(23))
    recorded = dict(RECORDED[name])
    if "output" in recorded:
        np.testing.assert_allclose(found.pop("output"), recorded.pop("output"), atol=1e-5)
        assert len(found.pop("scores", [])) == len(recorded.pop("scores", []))
    assert found == recorded


def check_scores(model: Model, logits: np.ndarray, recorded) -> None:
    """Results of logits against those of transformers' pipeline."""
    task = make_task(
        model.task,
        labels=model.labels,
        pooling=None,
        settings=model.settings,
        rows=model.rows,
    )
    results = task.read({"logits": logits}, None, [Request([], False)] * len(logits))
    for result, row in zip(results, recorded, strict=True):
        assert result.score == pytest.approx(row[0]["score"], abs=1e-5)
        if isinstance(result, Regression):
            assert len(row) == 1
            continue
        assert result.label == str(row[0]["label"])
        assert result.score == result.scores[result.label]
        # The lowest first: of outputs with one name the highest stays.
        expected = {str(entry["label"]): entry["score"] for entry in reversed(row)}
        assert result.scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("class without its head", r"model\.safetensors holds an encoder and nothing else, and"),
        ("fewer layers", r"nothing reads encoder\.layer\.1\.\S+(, encoder\S+){7} and 8 more$"),
        ("projection for nothing", r"nothing reads embeddings_project\.bias, embeddings_project"),
        ("tensors of a loss", r"model\.safetensors: nothing reads loss_fct\.weight$"),
        ("a head that nobody names", r"nothing reads classifier\.bias, classifier\.weight$"),
        ("a head and no class", r"config\.json names no architectures, and so stands for a model"),
    ],
)
def test_what_should_be_known_is_told(hugging, name, message) -> None:
    path = write(hugging, name)
    with pytest.warns(BertrtWarning, match=message) as told:
        HuggingFaceModel.open(path)
    assert len(told) == 1 and len(str(told[0].message)) < 1000


@pytest.mark.parametrize("name", ["tensorflow", "other family", "defaults", "several labels"])
def test_nothing_is_told_of_what_is_usual(hugging, name) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HuggingFaceModel.open(write(hugging, name))


def test_warnings_of_the_command_line(hugging, capsys) -> None:
    assert main(["predict", str(write(hugging, "tensors of a loss")), "the boat"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bertrt: warning: ") and line.endswith("nothing reads loss_fct.weight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice' is not supported"),
        (
            {"architectures": ["OwnForThings"]},
            "'OwnForThings' is not supported; supported are Bert",
        ),
        ({"architectures": ["Own"], "model_type": None}, "'Own' is not supported"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"architectures": [3]}, "architectures should be a list of names"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"architectures": ["BertLMHeadModel"], "is_decoder": True}, "is_decoder is True"),
        ({"vocab_size": configs.LEFT_OUT}, "by vocab_size, which is left out and so 30522"),
        ({"num_hidden_layers": 12}, r"missing: encoder\.layer\.2\.attention\.self\.query\.weight"),
    ],
)
def test_configurations_that_are_refused(hugging, changes, message) -> None:
    config = configs.changed(WRITTEN["BertModel"]["config"], changes)
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(hugging.write(config, tensors("BertModel")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"problem_type": "ranking"},
            "problem_type is 'ranking'; supported are regression, single",
        ),
        ({"problem_type": ["regression"]}, r"problem_type is \['regression'\]; supported are"),
        ({"num_labels": True}, "num_labels should be a whole number from 1, found True"),
        ({"num_labels": 1 << 30}, r"\(1073741824, 12\), by num_labels and hidden_size"),
        ({"id2label": {"-1": "a", "0": "b", "1": "c"}}, "id2label should map 0, 1, ... to names"),
    ],
)
def test_labels_that_are_refused(hugging, changes, message) -> None:
    config = WRITTEN["BertForSequenceClassification"]["config"] | changes
    path = hugging.write(config, tensors("BertForSequenceClassification"))
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(path)


def test_one_output_and_nothing_said_of_it_is_a_number(hugging) -> None:
    """As the model's own loss takes it."""
    case = configs.CASES["one number"]
    config = configs.changed(WRITTEN[case.architecture]["config"], case.config)
    del config["problem_type"]
    model = Model.open(hugging.write(config, tensors(case.architecture, dict(case.tensors))))
    assert model.task == "regression"


def test_several_labels_at_once(hugging) -> None:
    path = write(hugging, "several labels")
    with Engine.load(path) as engine:
        one, two = engine.predict(["the boat", "sea"])
        ids = [encoding.ids for encoding in engine.tokenize(["the boat", "sea"])]
        logits = engine.run(ids)["logits"]
    for result, row in ((one, logits[0]), (two, logits[1])):
        assert isinstance(result, Classification)
        np.testing.assert_allclose(list(result.scores.values()), 1 / (1 + np.exp(-row)), rtol=1e-6)
        assert result.label == f"LABEL_{row.argmax()}"


# --- vocabularies -----------------------------------------------------------------------------


def test_a_vocabulary_larger_than_the_table(hugging) -> None:
    path = write(hugging, "tensorflow")
    (path / "vocab.txt").write_text("\n".join([*hugging.words, *map(str, range(20))]))
    with Engine.load(path) as engine:
        assert isinstance(engine.predict("the 11 boats"), Embedding)
        message = r"batch\[1\]: the token '12' has the id 23, and the model's table .* 23 rows"
        with pytest.raises(InvalidInputError, match=message):
            engine.predict(["the boat", "12 boats"])


def test_a_vocabulary_smaller_than_the_table(hugging) -> None:
    with Engine.load(write(hugging, "language model")) as engine:
        (*_, last) = engine.predict("the [MASK]").candidates
        assert last.token in hugging.words


# --- files of weights -------------------------------------------------------------------------


def as_bin(hugging, architecture: str, weights=None, name: str = "bin") -> Path:
    path = hugging.write(WRITTEN[architecture]["config"], {}, name=name)
    (path / "model.safetensors").unlink()
    hugging.write_torch(path / BIN, tensors(architecture) if weights is None else weights)
    return path


@pytest.mark.parametrize("architecture", WRITTEN)
def test_the_bits_of_both_formats(hugging, architecture) -> None:
    safe = hugging.write(WRITTEN[architecture]["config"], tensors(architecture))
    np.testing.assert_equal(run(as_bin(hugging, architecture)), run(safe))


def test_shards(hugging) -> None:
    path = as_bin(hugging, "RobertaModel", {})
    (path / BIN).unlink()
    weights = list(tensors("RobertaModel").items())
    places = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05}-of-00003.bin"
        own = dict(weights[number::3])
        hugging.write_torch(path / file, own)
        places |= dict.fromkeys(own, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    safe = hugging.write(WRITTEN["RobertaModel"]["config"], dict(weights))
    np.testing.assert_equal(run(path), run(safe))
    (path / file).write_bytes((path / file).read_bytes()[:-40])
    with pytest.raises(ModelFormatError, match=r"00003-of-00003\.bin begins as a zip archive"):
        Engine.load(path)
    (path / file).unlink()
    with pytest.raises(
        MissingFileError, match=r"00003-of-00003\.bin does not exist; pytorch_model"
    ):
        Engine.load(path)


def test_safetensors_win(hugging) -> None:
    path = hugging.write(WRITTEN["BertModel"]["config"], tensors("BertModel"))
    (path / BIN).write_bytes(b"nothing that anybody reads")
    assert HuggingFaceModel.open(path).source == path / "model.safetensors"


def test_half_and_buffers(hugging) -> None:
    half = {name: array.astype(np.float16) for name, array in tensors("BertModel").items()}
    buffer = {"embeddings.position_ids": np.arange(14)[None]}
    wide = {name: array.astype(np.float32) for name, array in half.items()}
    safe = hugging.write(WRITTEN["BertModel"]["config"], wide)
    np.testing.assert_equal(run(as_bin(hugging, "BertModel", half | buffer)), run(safe))


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight"),
        ("RobertaForMaskedLM", "roberta.embeddings.word_embeddings.weight"),
        ("DistilBertForMaskedLM", "distilbert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_table_of_words_by_its_other_name(hugging, architecture, words) -> None:
    """As files have it that hold each shared tensor once."""
    config, weights = WRITTEN[architecture]["config"], tensors(architecture)
    expected = run(hugging.write(config, weights, name="usual"))
    decoder = {
        "BertForMaskedLM": "cls.predictions.decoder.weight",
        "RobertaForMaskedLM": "lm_head.decoder.weight",
        "DistilBertForMaskedLM": "vocab_projector.weight",
    }[architecture]
    weights[decoder] = weights.pop(words)
    np.testing.assert_equal(run(hugging.write(config, weights)), expected)
    config = config | {"tie_word_embeddings": False}
    with pytest.raises(ModelFormatError, match=r"missing: embeddings\.word_embeddings\.weight"):
        run(hugging.write(config, weights, name="untied"))


def test_names_of_data_parallel(hugging) -> None:
    weights = {f"module.{name}": array for name, array in tensors("BertModel").items()}
    message = r"names there begin with module\., as DataParallel leaves them: save the model inside"
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(as_bin(hugging, "BertModel", weights))


def test_numbers_that_are_no_floats(hugging) -> None:
    weights = tensors("BertModel")
    weights["pooler.dense.bias"] = np.zeros(12, np.int64)
    with pytest.raises(
        UnsupportedModelError, match=r"pooler\.dense\.bias has type int64, expected"
    ):
        Engine.load(as_bin(hugging, "BertModel", weights))
    weights = tensors("BertModel") | {"num_batches_tracked": np.array([3])}
    with pytest.warns(BertrtWarning, match="nothing reads num_batches_tracked"):
        run(as_bin(hugging, "BertModel", weights, "more"))


def test_relative_positions(hugging) -> None:
    name = "encoder.layer.0.attention.self.distance_embedding.weight"
    weights = tensors("BertModel") | {name: np.zeros((27, 4), np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"distance_embedding.*relative positions"):
        Engine.load(hugging.write(WRITTEN["BertModel"]["config"], weights))


def test_other_files_in_the_place_of_weights(hugging) -> None:
    path = as_bin(hugging, "BertModel")
    (path / BIN).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        ModelFormatError, match=r"pytorch_model\.bin is what Git LFS leaves in .* pull"
    ):
        Engine.load(path)
    (path / BIN).rename(path / "tf_model.h5")
    with pytest.raises(
        MissingFileError, match=r"no .*pytorch_model\.bin.*; tf_model\.h5 is not read"
    ):
        Engine.load(path)
    (path / BIN).write_bytes(b"cposix\nsystem\n(X\4\0\0\0exittR.")
    with pytest.raises(UnsupportedModelError, match=r"pytorch_model\.bin.* asks for posix\.system"):
        Engine.load(path)


# --- what is no plain file ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_plain_file_is_not_read(hugging, name, kind) -> None:
    """A pipe that nobody writes to would be waited for, and a device has no end."""
    path = hugging.write()
    (path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("/dev/zero")
    with pytest.raises(ModelFormatError, match=f"{name} should be a plain file"):
        Engine.load(path)


@pytest.mark.parametrize("swapped", ["vocab.txt", "vocab.json", "merges.txt"])
def test_a_pipe_that_comes_when_a_vocabulary_has_been_looked_at(
    hugging, monkeypatch, swapped
) -> None:
    path = hugging.write()
    vocabulary = bertrt.models.huggingface.tokenizer.vocabulary
    model, files = ("bytes", ("vocab.json", "merges.txt"))
    if swapped == "vocab.txt":
        model, files = ("words", ("vocab.txt",))
    (path / "vocab.json").write_text('{"t": 0, "h": 1, "th": 2}')
    (path / "merges.txt").write_text("#version: 0.2\nt h\n")
    settings = read_settings(path, read_config(path), {})
    read_vocabulary = vocabulary.read_vocabulary
    assert read_vocabulary("X", model, files, settings, {}).pieces
    # The last look at the file: after it there is a pipe.
    check = bertrt.host.files.check_size

    def check_and_swap(file: Path, limit: int) -> int:
        size = check(file, limit)
        if file.name == swapped:
            file.unlink()
            os.mkfifo(file)
        return size

    monkeypatch.setattr(bertrt.host.files, "check_size", check_and_swap)
    monkeypatch.setattr(vocabulary, "check_size", check_and_swap)
    signal.alarm(60)
    try:
        with pytest.raises(ModelFormatError, match=swapped):
            read_vocabulary("X", model, files, settings, {})
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    "lines",
    ["a\nb\n", "a\r\nb \u3000\x85\r\n\nb\x1c\n a", "\ufeffa\r\rb\n\x1e\n", "\u200b\n\u200a\n"],
)
def test_lines_are_those_of_the_library(tmp_path, lines) -> None:
    vocabulary = bertrt.models.huggingface.tokenizer.vocabulary
    (tmp_path / "vocab.txt").write_bytes(lines.encode())
    found = vocabulary._read_words(tmp_path / "vocab.txt")
    assert found == models.WordPiece.read_file(str(tmp_path / "vocab.txt"))
    for name, content in (
        ("vocab.json", '{"a": 3, "b": 1, "a": 0}'),
        ("merges.txt", "#version: 1\na b\r\n\u3000 a\n#version\nb\t a\x85"),
    ):
        (tmp_path / name).write_text(content, newline="")
    pieces, merges = models.BPE.read_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    assert vocabulary._read_ids(tmp_path / "vocab.json") == pieces
    assert vocabulary._read_merges(tmp_path / "merges.txt") == merges


def test_lists_without_end_are_not_read(hugging) -> None:
    path = hugging.write()
    (path / "config.json").write_text("[" + "[]," * 300_000 + "[]]")
    with pytest.raises(ModelFormatError, match=r"config.json has 300002 lists in 900004 bytes"):
        Engine.load(path)


def test_half_a_surrogate_in_a_file(hugging) -> None:
    path = hugging.write(hugging.config | {"id2label": {"0": "\ud800", "1": "b"}})
    with pytest.raises(ModelFormatError, match=r"config.json holds half a surrogate"):
        Engine.load(path)
    whole = hugging.write(hugging.config | {"id2label": {"0": "\U0001f600"}}, name="whole")
    Engine.load(whole).close()


def test_padding_within_a_text(hugging, tmp_path) -> None:
    """RoBERTa's kin counts positions over what is not padding, wherever that stands."""
    config = hugging.config | {"model_type": "roberta", "architectures": ["RobertaModel"]}
    config |= {"pad_token_id": 1, "type_vocab_size": 1}
    path = hugging.write(config, tokenizer_config={"tokenizer_class": "BertTokenizer"})
    bundle = import_huggingface(path, tmp_path / "bundle")
    for source in (path, bundle):
        with Engine.load(source) as engine:
            assert len(engine.predict("the boat").vector) == 24
            with pytest.raises(InvalidInputError, match=r"batch\[1\] holds the token '\[UNK\]'"):
                engine.predict(["the boat", "the unheard boat"])


def test_numbers_beyond_every_logit() -> None:
    with pytest.raises(InvalidInputError, match="null_threshold should be a number"):
        complete_settings({"null_threshold": 10**400}, "question-answering", 384)
