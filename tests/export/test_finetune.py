"""Fine-tuning on data that a tiny net learns: scores, resumed runs, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import (
    BertrtError,
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
    UnsupportedModelError,
    WriteError,
)
from bertrt.models.bundle import Bundle
from bertrt.models.symbol.params import read_params

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from bertrt.export import zoo
from bertrt.export.gluon_to_symbol import structural_parameters
from bertrt.export.training import RECIPES, Recipe, finetune
from bertrt.export.training import finetune as finetune_function
from bertrt.export.training.batches import Rows, epoch_batches
from bertrt.export.training.learner import Learner
from bertrt.export.training.recipe import learning_rate

from bertrt.tasks.settings import PRESETS
from bertrt.text.encoding import Encoding

WORDS = ("the", "boat", "boats", "sea", "caf", "cafe")


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts, and whether a boat is in them."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = random.choice(WORDS, random.integers(1, 8))
        found.append((" ".join(words), str(int("boat" in words or "boats" in words))))
    return found


@pytest.fixture
def model(hugging) -> Path:
    return hugging.write()


def write_data(directory: Path, train: int, dev: int) -> Path:
    """A directory with SST-2's files, of so many rows."""
    directory.mkdir()
    for name, count, seed in (("train.tsv", train, 1), ("dev.tsv", dev, 2)):
        lines = [f"{text}\t{label}" for text, label in sentences(count, seed)]
        (directory / name).write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return directory


@pytest.fixture
def data(tmp_path) -> Path:
    """Enough to learn from."""
    return write_data(tmp_path / "data", 300, 60)


@pytest.fixture
def few(tmp_path) -> Path:
    """Three batches."""
    return write_data(tmp_path / "few", 24, 8)


FAST = {"task": "SST", "max_length": 16, "learning_rate": 3e-3, "batch_size": 8, "epochs": 2}


def log_of(record: Path) -> list[dict]:
    lines = [json.loads(line) for line in (record / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds", None)
    return lines


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {name: constant.array for name, constant in read_params(path).items()}


@pytest.mark.mxnet
def test_from_a_hugging_face_directory_to_answers(model, data, tmp_path) -> None:
    seen = []
    result = finetune(model, tmp_path / "out", data=data, on_epoch=seen.append, **FAST)
    assert result.bundle == tmp_path / "out" and result.record == tmp_path / "out.training"
    assert [epoch["epoch"] for epoch in seen] == [1, 2] and list(result.epochs) == seen
    (score,) = result.best["scores"]
    assert (score["file"], score["rows"]) == ("dev.tsv", 60)
    assert score["accuracy"] >= 95 > 100 * np.mean([no == "0" for _, no in sentences(60, 2)])
    with Engine.load(result.bundle) as engine:
        assert (engine.task, engine.labels, engine.max_length) == ("classification", ["0", "1"], 16)
        texts, labels = zip(*sentences(60, 2), strict=True)
        found = [answer.label for answer in engine.predict(list(texts))]
        with pytest.raises(InvalidInputError, match="takes a single text"):
            engine.predict([("a pair", "of texts")])
    # The bundle scores what training said.
    right = sum(a == b for a, b in zip(found, labels, strict=True))
    assert 100 * right / 60 == pytest.approx(score["accuracy"])
    origin = Bundle.open(result.bundle).manifest["origin"]
    told = origin["finetuned"]
    assert origin["framework"] == "huggingface" and told["task"] == "SST"
    assert told["train"]["rows"] == 300 and len(told["train"]["sha256"]) == 64
    assert told["recipe"]["learning_rate"] == 3e-3 and told["epoch"] == result.best["epoch"]
    # What is left of the run: a log of every step, the best parameters as Gluon reads them.
    log = log_of(result.record)
    steps = [line for line in log if "step" in line]
    assert [line["step"] for line in steps] == list(range(1, 77))  # 2 x ceil(300 / 8)
    assert steps[0]["learning_rate"] == 0 and max(s["learning_rate"] for s in steps) == 3e-3
    assert [line for line in log if "scores" in line] == seen
    best = weights_of(result.record / f"epoch-{result.best['epoch']}.params")
    assert best["classifier.1.weight"].shape == (2, 24)
    with pytest.raises(OutputExistsError, match="exists already"):
        finetune(model, tmp_path / "out", data=data, **FAST)


# What kills the process in the middle of the second epoch, after a checkpoint and two more steps.
KILLED = """
import os, signal, sys
from bertrt.commands.main import main
from bertrt.export.training.learner import Learner
step = Learner.step
def counted(self, batches, rate, *, seed):
    if seed == 53:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batches, rate, seed=seed)
Learner.step = counted
main(sys.argv[1:])
"""


@pytest.mark.mxnet
def test_a_killed_run_ends_as_an_undisturbed_one(model, data, tmp_path, capsys) -> None:
    arguments = [
        *("finetune", str(model), "--task", "SST", "--data", str(data), "--max-length", "16"),
        *("--learning-rate", "3e-3", "--batch-size", "8", "--epochs", "2", "--seed", "5"),
        *("--checkpoint-steps", "7"),
    ]
    killed = [sys.executable, "-c", KILLED, *arguments, "--out", str(tmp_path / "killed")]
    done = subprocess.run(killed, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    record = tmp_path / "killed.training"
    assert not (tmp_path / "killed").exists()
    # 52 steps of 38 an epoch were done, the last checkpoint is of the 14th of the second.
    assert [line["step"] for line in log_of(record) if "step" in line][-1] == 53
    (record / ".checkpoint.npz.0123456789ab.partial").write_text("cut off")
    assert main([*arguments, "--out", str(tmp_path / "killed"), "--json"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert resumed["epochs"] == whole["epochs"] and resumed["best"] == whole["best"]
    assert log_of(record) == log_of(tmp_path / "whole.training")
    name = f"epoch-{whole['best']['epoch']}.params"
    found, expected = weights_of(record / name), weights_of(tmp_path / "whole.training" / name)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)
    # Another seed is another run.
    other = finetune(model, tmp_path / "other", data=data, seed=6, **FAST)
    assert other.epochs != whole["epochs"]
    assert [path.name for path in tmp_path.glob("**/.*")] == []  # nothing half written


@pytest.mark.mxnet
def test_a_run_that_lacks_its_bundle_only(model, few, tmp_path, monkeypatch) -> None:
    first = finetune(model, tmp_path / "out", data=few, **FAST)
    moved = first.bundle.rename(tmp_path / "moved")
    monkeypatch.setattr(Learner, "step", None)  # nothing is left to train
    again = finetune(model, tmp_path / "out", data=few, **FAST)
    assert again == first
    # The names in the file are MXNet's, by its counters; the weights come first.
    one, two = ((path / "model-0000.params").read_bytes() for path in (moved, again.bundle))
    assert one[:9000] == two[:9000]


@pytest.mark.mxnet
def test_regression_on_pairs_in_json_lines(model, tmp_path) -> None:
    for name, count in (("train.jsonl", 200), ("dev.jsonl", 50)):
        rows = sentences(count, len(name))
        rows = [
            {"a": text, "b": f"the {text}", "score": 2.5 * int(boat) - 1} for text, boat in rows
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = finetune(
        model,
        tmp_path / "out",
        task="regression",
        train=tmp_path / "train.jsonl",
        dev=[tmp_path / "dev.jsonl", tmp_path / "train.jsonl"],
        columns=["a", "b", "score"],
        max_length=16,
        learning_rate=3e-3,
        epochs=5,
        batch_size=3,
        accumulate=2,
    )
    one, two = result.best["scores"]
    assert one["pearson"] > 80 and one["spearman"] > 60 and two["rows"] == 200
    assert len([line for line in log_of(result.record) if "step" in line]) == 5 * 34
    with Engine.load(result.bundle) as engine:
        assert engine.task == "regression"
        few, many = engine.predict([("sea", "the sea"), ("boat boat boat", "the boat boat boat")])
        assert few.score + 1 < many.score
        with pytest.raises(InvalidInputError, match="takes a pair"):
            engine.predict("single")


# --- where it starts from ---------------------------------------------------------------------

DATASET = "book_corpus_wiki_en_uncased"


@pytest.fixture
def tiny_zoo(monkeypatch) -> None:
    from gluonnlp.model import bert

    tiny = {"num_layers": 2, "units": 32, "hidden_size": 48, "num_heads": 4, "embed_size": 32}
    for name in zoo.MODELS:
        monkeypatch.setitem(bert.bert_hparams, name, bert.bert_hparams[name] | tiny)


@pytest.fixture
def words(tmp_path) -> dict[str, Path]:
    """Labelled texts of the words of `make_vocab`."""
    rows = [f"word{i % 7} word{i % 5}\t{'even' if i % 2 else 'odd'}" for i in range(40)]
    (tmp_path / "words.tsv").write_text("\n".join(["text\tkind", *rows]))
    return {"train": tmp_path / "words.tsv", "dev": [tmp_path / "words.tsv"]}


@pytest.mark.parametrize("fine_tuned", [False, True])
@pytest.mark.mxnet
def test_a_checkpoint_of_the_zoo(
    tiny_zoo, make_bert, make_classifier, make_vocab, words, tmp_path, monkeypatch, fine_tuned
) -> None:
    if fine_tuned:
        net = make_classifier(classes=3, max_length=512)
        bert = net.bert
    else:
        net = bert = make_bert(max_length=512, use_decoder=True, use_classifier=True)
    net.save_parameters(str(tmp_path / "params"))
    (tmp_path / "vocab").write_text(make_vocab().to_json())
    encoders = []
    made = Learner.__init__

    def spy(self, net, recipe, loss):
        encoders.append(net.bert.encoder.position_weight.data().asnumpy())
        made(self, net, recipe, loss)

    monkeypatch.setattr(Learner, "__init__", spy)
    result = finetune(
        "bert_12_768_12",
        tmp_path / "out",
        task="classification",
        columns=["text", "kind"],
        dataset=DATASET,
        params=tmp_path / "params",
        vocab=tmp_path / "vocab",
        epochs=1,
        **words,
    )
    np.testing.assert_array_equal(encoders[0], bert.encoder.position_weight.data().asnumpy())
    with Engine.load(result.bundle) as engine:
        assert engine.labels == ["even", "odd"] and engine.max_length == 128
        assert engine.predict("word1 word2").label in engine.labels
    origin = Bundle.open(result.bundle).manifest["origin"]
    assert (origin["model"], origin["dataset"]) == ("bert_12_768_12", DATASET)
    assert set(result.best["scores"][0]) == {"file", "rows", "accuracy", "macro_f1"}


@pytest.mark.mxnet
def test_roberta(tiny_zoo, make_bert, roberta_files, words, tmp_path) -> None:
    vocab, merges = roberta_files
    net = make_bert(
        "RoBERTaModel", vocab_size=266, max_length=512, layer_norm_eps=1e-5, use_decoder=True
    )
    net.save_parameters(str(tmp_path / "params"))
    result = finetune(
        "roberta_12_768_12",
        tmp_path / "out",
        task="classification",
        columns=["text", "kind"],
        labels=["odd", "even"],
        dataset="openwebtext_ccnews_stories_books_cased",
        params=tmp_path / "params",
        vocab=vocab,
        merges=merges,
        epochs=1,
        **words,
    )
    with Engine.load(result.bundle) as engine:
        assert engine.labels == ["odd", "even"]
        engine.predict("word1")


@pytest.mark.mxnet
def test_a_classifier_of_hugging_face_gets_a_new_head(hugging, few, tmp_path) -> None:
    config = hugging.config | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(i): str(i) for i in range(5)},
    }
    model = hugging.write(config, hugging.weights(config, classes=5))
    result = finetune(model, tmp_path / "out", data=few, **FAST | {"epochs": 1})
    with Engine.load(result.bundle) as engine:
        assert engine.labels == ["0", "1"]


@pytest.mark.mxnet
def test_a_model_without_a_pooler(hugging, few, tmp_path) -> None:
    model = hugging.write(weights=hugging.weights(hugging.config, pooler=False))
    finetune(model, tmp_path / "out", data=few, **FAST | {"epochs": 1})


# --- what is refused, before anything is made -------------------------------------------------


def with_gluon(*values):
    """A case that GluonNLP has to be there for: the model is opened before it shows."""
    return pytest.param(*values, marks=pytest.mark.mxnet)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", "sentence\tlabel\nthe sea\t1\nthe boat\t2\n", r"train\.tsv, line 3: .*'2'"),
        ("train.tsv", "sentence\tlabel\nthe sea\n", r"train\.tsv, line 2"),
        ("train.tsv", "text\tlabel\nthe sea\t1\n", r"train\.tsv, line 1: .*'sentence'"),
        ("train.tsv", "", r"train\.tsv"),
        ("train.tsv", "sentence\tlabel\nsea\t1\nboat\t1\n", "every label is '1'"),
        with_gluon("dev.tsv", "sentence\tlabel\nthe sea\t1\n \t0\n", r"dev\.tsv, line 3"),
        ("dev.tsv", "sentence\tlabel\nthe sea\tone\n", r"dev\.tsv, line 2: .*'one'"),
    ],
)
def test_bad_data(model, data, tmp_path, name, content, message) -> None:
    (data / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        finetune(model, tmp_path / "out", data=data, **FAST)
    assert not (tmp_path / "out.training").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "tagging"}, InvalidInputError, "fine-tuning is for classification"),
        ({"data": None}, InvalidInputError, "--data"),
        ({"data": None, "train": "data/train.tsv", "dev": []}, InvalidInputError, "no dev data"),
        ({"dev": "data/none.tsv"}, MissingFileError, r"none\.tsv"),
        ({"data": "nowhere"}, MissingFileError, "nowhere"),
        ({"epochs": 0}, InvalidInputError, "epochs should be a whole number from 1, found 0"),
        ({"learning_rate": float("nan")}, InvalidInputError, "learning_rate should be a number"),
        ({"warmup": 1.5}, InvalidInputError, "warmup should be a number from 0 to 1"),
        ({"seed": -1}, InvalidInputError, "seed"),
        ({"dropout": 0.2}, InvalidInputError, "no dropout in a recipe"),
        ({"checkpoint_steps": 0}, InvalidInputError, "checkpoint_steps"),
        with_gluon({"max_length": 17}, InvalidInputError, "max_length is 17; .* has 16 positions"),
        with_gluon({"model": "bert_12_768_12"}, InvalidInputError, "--dataset is missing"),
        with_gluon({"params": "x"}, InvalidInputError, "--params: for a model of the zoo"),
        with_gluon({"model": "bert_13"}, MissingFileError, "bert_13"),
        ({"out": "no/where"}, MissingFileError, "which is to hold the bundle"),
        ({"task": "STS-B"}, InvalidInputError, "STS-B wants"),
    ],
)
def test_bad_arguments(model, data, tmp_path, monkeypatch, arguments, error, message) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": model, "out": "out", "data": data, **FAST, **arguments}
    with pytest.raises(error, match=message):
        finetune(given.pop("model"), given.pop("out"), **given)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.mxnet
def test_a_roberta_of_hugging_face(hugging, few, tmp_path) -> None:
    config = hugging.config | {"architectures": ["DistilBertModel"], "model_type": "distilbert"}
    model = hugging.write(config)
    with pytest.raises((UnsupportedModelError, ModelFormatError)):
        finetune(model, tmp_path / "out", data=few, **FAST)
    assert not (tmp_path / "out.training").exists()


@pytest.mark.parametrize("module", ["onnx", "sklearn.metrics"])
def test_what_is_not_installed(model, few, tmp_path, monkeypatch, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=module):
        finetune(model, tmp_path / "out", data=few, **FAST)
    assert not (tmp_path / "out.training").exists()


@pytest.mark.mxnet
def test_directories_of_others(model, few, tmp_path) -> None:
    record = tmp_path / "out.training"
    record.mkdir()
    (record / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is no run of finetune"):
        finetune(model, tmp_path / "out", data=few, **FAST)
    assert [path.name for path in record.iterdir()] == ["thesis.txt"]

    finetune(model, tmp_path / "a", data=few, **FAST)
    (tmp_path / "a").rename(tmp_path / "b")
    before = (tmp_path / "a.training" / "log.jsonl").read_bytes()
    with pytest.raises(InvalidInputError, match="a run with another recipe"):
        finetune(model, tmp_path / "a", data=few, **FAST | {"epochs": 3})
    (few / "dev.tsv").write_text("sentence\tlabel\nthe sea\t0\n")
    with pytest.raises(InvalidInputError, match="a run with another dev"):
        finetune(model, tmp_path / "a", data=few, **FAST)
    assert (tmp_path / "a.training" / "log.jsonl").read_bytes() == before


@pytest.mark.mxnet
def test_a_directory_in_use(model, few, tmp_path) -> None:
    record = tmp_path / "out.training"
    record.mkdir()
    descriptor = os.open(record, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(InvalidInputError, match="another process is training there"):
            finetune(model, tmp_path / "out", data=few, **FAST)
    finally:
        os.close(descriptor)


@pytest.mark.mxnet
def test_a_full_disk_takes_nothing_away(model, few, tmp_path, monkeypatch) -> None:
    expected = finetune(model, tmp_path / "undisturbed", data=few, checkpoint_steps=1, **FAST)
    real, out, failures = os.fsync, tmp_path / "out", []
    record = tmp_path / "out.training"

    while True:
        calls = iter(range(2 * len(failures)))  # none is left when one more is to fail

        def fsync(descriptor, calls=calls):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            result = finetune(model, out, data=few, checkpoint_steps=1, **FAST)
            break
        except WriteError as error:
            failures.append(str(error))
        assert not out.exists()
        assert not list(tmp_path.rglob("*.partial"))
    for path in (record / "run.json", record / "log.jsonl", record / "checkpoint.npz", out):
        assert any(str(path) in failure for failure in failures), failures
    assert log_of(record) == log_of(expected.record)
    found, wanted = (
        weights_of(r.record / f"epoch-{r.best['epoch']}.params") for r in (result, expected)
    )
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.mxnet
def test_a_damaged_checkpoint(model, few, tmp_path, monkeypatch) -> None:
    def stop(self, rows, batch_size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "logits", stop)
        finetune(model, tmp_path / "out", data=few, checkpoint_steps=2, **FAST)
    path = tmp_path / "out.training" / "checkpoint.npz"
    content = path.read_bytes()
    run = path.with_name("run.json").read_bytes()
    path.with_name("run.json").write_bytes(run[:-20])
    with pytest.raises(ModelFormatError, match=r"run\.json is not JSON"):
        finetune(model, tmp_path / "out", data=few, **FAST)
    path.with_name("run.json").write_bytes(run)
    for damaged in (content[:-100], b"", content[:5000] + b"\xff" * 8 + content[5008:]):
        path.write_bytes(damaged)
        with pytest.raises(ModelFormatError, match=r"checkpoint\.npz is damaged"):
            finetune(model, tmp_path / "out", data=few, **FAST)
    path.write_bytes(content)
    finetune(model, tmp_path / "out", data=few, **FAST)


# --- the parts --------------------------------------------------------------------------------


def test_the_rate_rises_and_falls_in_lines() -> None:
    recipe = Recipe(learning_rate=1e-3, warmup=0.2)
    rates = [learning_rate(recipe, step, 10) for step in range(10)]
    expected = [0, 5e-4, *(1e-3 * (1 - i / 8) for i in range(8))]
    assert rates == pytest.approx(expected, abs=0, rel=1e-15)
    assert learning_rate(Recipe(learning_rate=0.5, warmup=0.0), 0, 4) == 0.5
    assert learning_rate(Recipe(learning_rate=0.5, warmup=1.0), 3, 4) == 0.375


def test_recipes_are_of_tasks_that_there_are() -> None:
    for task, fields in RECIPES.items():
        assert task in PRESETS
        assert Recipe(**fields).learning_rate == 2e-5


def test_batches_of_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, 3001)
    batches = epoch_batches(lengths, 16, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(3001))
    assert sorted(map(len, batches)) == [9] + 187 * [16]
    again = epoch_batches(lengths, 16, seed=1, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    for other in ({"seed": 2, "epoch": 0}, {"seed": 1, "epoch": 1}):
        assert not np.array_equal(batches[0], epoch_batches(lengths, 16, **other)[0])
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()  # unsorted batches would need twice the tokens


def make_rows(count: int) -> Rows:
    random = np.random.default_rng(3)
    encodings = []
    for _ in range(count):
        ids = random.integers(0, 60, random.integers(3, 12)).astype(np.int32)
        encodings.append(Encoding(ids, np.zeros_like(ids), False))
    return Rows(encodings, random.integers(0, 2, count).astype(np.float32))


def test_batches_are_padded() -> None:
    rows = make_rows(5)
    batch = rows.batch(np.array([4, 1]))
    longest = max(rows.lengths[4], rows.lengths[1])
    assert batch["token_ids"].shape == batch["token_types"].shape == (2, longest)
    assert batch["valid_length"].tolist() == [rows.lengths[4], rows.lengths[1]]
    np.testing.assert_array_equal(batch["token_ids"][0, : rows.lengths[4]], rows.encodings[4].ids)
    assert not batch["token_ids"][1, rows.lengths[1] :].any()
    np.testing.assert_array_equal(batch["targets"], rows.targets[[4, 1]])


@pytest.mark.mxnet
def test_a_step_is_bertadam_of_the_clipped_gradient(mxnet, make_classifier) -> None:
    net = make_classifier(classes=2, dropout=0.0, head_dropout=0.0)
    learner = Learner(net, Recipe(epsilon=1e-5), mxnet.gluon.loss.SoftmaxCELoss())
    parameters = structural_parameters(net)
    expected = {name: parameter.data().copy() for name, parameter in parameters.items()}

    def adam(decay: float):
        optimizer = mxnet.optimizer.create("bertadam", epsilon=1e-5, wd=decay)
        return optimizer, mxnet.optimizer.get_updater(optimizer)

    # No decay of biases and of LayerNorm.
    adams = {True: adam(0.0), False: adam(0.01)}
    for step, rate in enumerate((0.01, 0.02)):
        learner.step([make_rows(8).batch(np.arange(8))], rate, seed=step)
        squares = 0.0
        for name, parameter in parameters.items():
            optimizer, update = adams[name.endswith(("bias", "beta", "gamma"))]
            optimizer.lr = rate
            update([name], [parameter.grad()], [expected[name]])
            squares += np.square(parameter.grad().asnumpy().astype(np.float64)).sum()
            np.testing.assert_array_equal(parameter.data().asnumpy(), expected[name].asnumpy())
        assert np.sqrt(squares) == pytest.approx(1, rel=1e-5)  # this net's own norm is larger


@pytest.mark.mxnet
def test_a_loss_that_is_no_number(mxnet, make_classifier) -> None:
    net = make_classifier(classes=2)
    learner = Learner(net, Recipe(), mxnet.gluon.loss.SoftmaxCELoss())
    net.classifier[1].bias.set_data(mxnet.nd.array([np.inf, 0]))
    before = net.classifier[1].weight.data().asnumpy()
    with pytest.raises(BertrtError, match=r"the loss is nan .* try a lower learning rate"):
        learner.step([make_rows(4).batch(np.arange(4))], 0.1, seed=0)
    np.testing.assert_array_equal(net.classifier[1].weight.data().asnumpy(), before)


@pytest.mark.mxnet
def test_accumulated_batches_are_one(mxnet, make_classifier) -> None:
    rows, results = make_rows(12), []
    parts = [np.arange(12)], [np.arange(3), np.arange(3, 8), np.arange(8, 12)]
    for batches in parts:
        net = make_classifier(classes=2, dropout=0.0, head_dropout=0.0)
        recipe = Recipe(accumulate=len(batches))
        learner = Learner(net, recipe, mxnet.gluon.loss.SoftmaxCELoss())
        losses = [
            learner.step([rows.batch(batch) for batch in batches], 1e-2, seed=step)
            for step in range(2)
        ]
        # Gradients, for the first step of BERTAdam blows up what is all but zero.
        gradients = [p.grad().asnumpy() for p in structural_parameters(net).values()]
        results.append((losses, gradients))
    (one, first), (two, second) = results
    assert one == pytest.approx(two, rel=1e-4)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("points", "best", "ran"),
    [
        ([50, 70, 60, 65, 90], 2, 4),  # two epochs without a better one
        ([50, 50, 50, 90], 1, 3),
        ([float("nan"), 10, 20, 30], 4, 4),
    ],
)
@pytest.mark.mxnet
def test_early_stopping_and_the_best_epoch(
    model, few, tmp_path, monkeypatch, points, best, ran
) -> None:
    module = sys.modules[finetune_function.__module__]
    given = iter(points)
    monkeypatch.setattr(module, "score", lambda *arguments: {"accuracy": next(given)})
    result = finetune(model, tmp_path / "out", data=few, early_stop=2, **FAST | {"epochs": 4})
    assert result.best["epoch"] == best and len(result.epochs) == ran
    assert [path.name for path in result.record.glob("*.params")] == [f"epoch-{best}.params"]


@pytest.mark.mxnet
def test_the_plot_needs_matplotlib_and_nothing_else_does(model, few, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = finetune(model, tmp_path / "out", data=few, **FAST | {"epochs": 1})
    assert not (result.record / "training.png").exists()
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    result = finetune(model, tmp_path / "drawn", data=few, **FAST | {"epochs": 1})
    assert (result.record / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.mxnet
def test_command_line(model, few, tmp_path, capsys) -> None:
    arguments = ["finetune", str(model), "--task", "SST", "--out", str(tmp_path / "out")]
    options = ["--max-length", "16", "--epochs", "1", "--learning-rate", "3e-3"]
    assert main([*arguments, "--data", str(few / "train.tsv")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*arguments, "--data", str(few), *options]) == 0
    answer = capsys.readouterr()
    assert answer.out == f"{tmp_path / 'out'}\n"
    assert answer.err.startswith("epoch 1: loss 0.") and "dev.tsv: accuracy " in answer.err
    assert main([*arguments, "--data", str(few), *options]) == 1
    assert "exists already" in capsys.readouterr().err
    for wrong in (
        ["--epochs", "0"],
        ["--learning-rate", "x"],
        ["--task", "NER"],
        ["--columns", ","],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *wrong])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
