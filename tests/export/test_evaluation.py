"""Evaluation of tiny nets by every backend: the table, and what it counts."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import DeviceError, InvalidInputError, MissingDependencyError
from bertrt.evaluation.datasets import read_examples
from bertrt.evaluation.examples import Examples
from bertrt.evaluation.run import Outcome, compare, evaluate, run_examples

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("seqeval")

TAGS = ["X", "O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC"]
ROWS = 60


@pytest.fixture(scope="module")
def bundle(make_bundle, tmp_path_factory):
    """A function: task -> a tiny bundle for it."""
    made = {}

    def make(task):
        if task in made:
            return made[task]
        options = {"task": task, "max_length": 30}
        kind, net = task, {"use_pooler": False}
        if task == "question-answering":
            options["settings"] = {"null_answer": True}
        elif task == "tagging":
            net["classes"] = len(TAGS)
            options["labels"] = TAGS
        else:
            kind, net = "classifier", {"classes": {"STS-B": 1, "MNLI": 3}.get(task, 2)}
        path = tmp_path_factory.mktemp("evaluation") / "bundle"
        made[task] = make_bundle(path, kind, net, **options)
        return made[task]

    return make


@pytest.fixture
def first(with_mxnet) -> str:
    """The backend that the others are compared with."""
    return "mxnet" if with_mxnet else "native"


@pytest.fixture
def data(tmp_path):
    """A function: task -> a file of random words with random labels."""

    def make(task, rows=ROWS):
        random = np.random.default_rng(3)

        def words(most=12):
            chosen = random.integers(0, 55, random.integers(1, most))
            return " ".join(f"word{index}" for index in chosen)

        if task == "question-answering":
            paragraphs = []
            for index in range(rows):
                context = words(20)
                answers = [{"text": context.split()[-1], "answer_start": 0}] if index % 3 else []
                asked = {"question": words(), "answers": answers, "is_impossible": not answers}
                paragraphs.append({"context": context, "qas": [asked]})
            path = tmp_path / "dev.json"
            path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
            return path
        lines = []
        for _ in range(rows):
            if task == "tagging":
                tags = random.choice(["O", "O", "I-PER", "I-LOC"], 5).tolist()
                chosen = [f"word{i}" for i in random.integers(0, 55, 5)]
                lines.append("\n".join(map(" ".join, zip(chosen, tags, strict=True))) + "\n")
            elif task == "STS-B":
                score = random.uniform(0, 5)
                lines.append("\t".join(["g", "f", "y", "i", f"{score:.3f}", words(), words()]))
            elif task == "CoLA":
                lines.append("\t".join(["src", str(random.integers(2)), "", words()]))
            else:
                lines.append("\t".join([str(random.integers(2)), "1", "2", words(), words()]))
        if task == "MRPC":
            lines.insert(0, "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String")
        path = tmp_path / "dev.tsv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return make


METRICS = {
    "MRPC": ["accuracy", "f1"],
    "CoLA": ["matthews"],
    "STS-B": ["pearson", "spearman"],
    "question-answering": ["exact_match", "token_f1"],
    "tagging": ["entity_f1", "entity_precision", "entity_recall"],
}


@pytest.mark.parametrize("task", METRICS)
def test_every_task(bundle, data, first, task) -> None:
    path = data(task)
    report = evaluate(bundle(task), path, task=task)
    assert (report.reference, report.examples, report.left_out) == (report.path, ROWS, 0)
    assert set(report.missing) == {"mxnet"} - {first}
    rows = {(row.backend, row.precision): row for row in report.rows}
    assert list(rows) == [
        *[("mxnet", "fp32")] * (first == "mxnet"),
        ("native", "fp32"),
        ("native", "bf16"),
        ("native", "int8"),
        ("onnxruntime", "fp32"),
    ]
    gluon = rows[first, "fp32"]
    assert list(gluon.scores) == METRICS[task]
    assert (gluon.differ, gluon.largest, gluon.mean) == (0, 0.0, 0.0)
    for name in {"native", "onnxruntime"} - {first}:
        # In fp32 nothing is scored differently.
        row = rows[name, "fp32"]
        assert row.differ == 0
        assert row.scores == pytest.approx(gluon.scores, abs=1e-3 if task == "STS-B" else 0)
        assert 0 < row.largest < 1e-4
        assert row.right == gluon.right
    for precision in ("bf16", "int8"):
        row = rows["native", precision]
        assert 1e-4 < row.largest < math.inf
        assert 0 < row.mean < row.largest
        if task == "STS-B":
            assert row.differ > ROWS / 2
            assert row.right is row.lost is row.gained is None
        else:
            assert row.right == gluon.right - row.lost + row.gained
            assert row.lost + row.gained <= row.differ
    text = str(report)
    assert text.splitlines()[0] == f"{task}: {ROWS} examples of {path.name}"
    reference = {"mxnet": "Gluon"}.get(first, first)
    assert f"against the first row, {reference} in fp32\n" in f"{text}\n"
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["rows"][0]["scores"] == gluon.scores
    assert content["data"]["sha256"] == read_examples(path, task).sha256


def test_the_scores_are_those_of_predict(bundle, data) -> None:
    path = data("MRPC")
    examples = read_examples(path, "MRPC")
    with Engine.load(bundle("MRPC")) as engine:
        found = [result.label for result in engine.predict(examples.texts)]
    right = sum(own == gold for own, gold in zip(found, examples.labels, strict=True))
    assert 0 < right < ROWS
    report = evaluate(bundle("MRPC"), path, task="MRPC", backends=["native"], precisions=["fp32"])
    assert report.rows[-1].right == right
    assert report.rows[-1].scores["accuracy"] == pytest.approx(100 * right / ROWS)


def test_outputs_of_examples(bundle, data) -> None:
    for task in ("MRPC", "tagging", "question-answering"):
        examples = read_examples(data(task), task)
        with Engine.load(bundle(task)) as engine:
            outcome = run_examples(engine, examples)
            encodings = engine.tokenize(examples.texts)
            for own, encoding in zip(outcome.outputs, encodings, strict=True):
                windows = encoding if task == "question-answering" else [encoding]
                for rows, window in zip(own, windows, strict=True):
                    (alone,) = engine.run([window.ids], [window.types])["logits"]
                    np.testing.assert_array_equal(rows, alone)


def test_columns_and_backends_that_are_named(bundle, data, first, tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"q": "word1", "r": "word2 word3", "y": index % 2} for index in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = evaluate(
        bundle("MRPC"),
        path,
        columns=["q", "r", "y"],
        backends=["native", "onnxruntime"],
        precisions=["int8", "int8", "fp16"],
    )
    assert report.task == "classification"
    assert [(row.backend, row.precision) for row in report.rows] == [
        (first, "fp32"),
        ("native", "int8"),
    ]
    assert list(report.rows[0].scores) == ["accuracy", "macro_f1"]
    missing = ["native fp16", "onnxruntime int8", "onnxruntime fp16"]
    assert list(report.missing) == missing + ["mxnet"] * (first != "mxnet")
    assert "onnxruntime int8: left out: backend onnxruntime cannot run in 'int8'" in str(report)
    with pytest.raises(DeviceError, match="backend mxnet cannot run in 'int8'"):
        evaluate(
            bundle("MRPC"),
            path,
            columns=["q", "r", "y"],
            backends=["mxnet"],
            precisions=["int8"],
        )


def test_without_mxnet_the_reference_is_named(bundle, data, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mxnet", None)
    report = evaluate(bundle("CoLA"), data("CoLA"), task="CoLA")
    assert [(row.backend, row.precision) for row in report.rows] == [
        ("native", "fp32"),
        ("native", "bf16"),
        ("native", "int8"),
        ("onnxruntime", "fp32"),
    ]
    assert "mxnet" in report.missing
    assert "against the first row, native in fp32" in str(report)
    with pytest.raises(MissingDependencyError, match="backend mxnet needs"):
        evaluate(bundle("CoLA"), data("CoLA"), task="CoLA", backends=["mxnet"])


def test_another_model_as_the_reference(bundle, data, first, make_bundle, tmp_path) -> None:
    other = make_bundle(
        tmp_path / "other", "classifier", {"classes": 2, "seed": 5}, task="MRPC", max_length=30
    )
    path = data("MRPC")
    chosen = {"task": "MRPC", "backends": [first], "precisions": ["fp32"]}
    report = evaluate(bundle("MRPC"), path, reference=other, **chosen)
    theirs, row = report.rows
    (alone,) = evaluate(other, path, **chosen).rows
    assert (theirs.scores, theirs.differ) == (alone.scores, 0)
    assert (theirs.backend, row.backend, row.precision) == (first, first, "fp32")
    assert row.differ > 0 and row.largest > 0.1
    assert row.right == theirs.right - row.lost + row.gained
    reference = {"mxnet": "Gluon"}.get(first, first)
    assert f"against the first row, {reference} in fp32 on other\n" in f"{report}\n"
    assert report.to_dict()["reference"] == "other"
    with pytest.raises(InvalidInputError, match=r"is for regression.*they cannot be compared"):
        evaluate(bundle("MRPC"), path, reference=bundle("STS-B"), **chosen)


def test_what_is_refused(bundle, data, tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="is a model for classification; tagging is tag"):
        evaluate(bundle("MRPC"), data("MRPC"), task="tagging")
    with pytest.raises(InvalidInputError, match="backend 'torch' does not exist"):
        evaluate(bundle("MRPC"), data("MRPC"), task="MRPC", backends=["torch"])
    with pytest.raises(InvalidInputError, match="precision 'fp4' does not exist"):
        evaluate(bundle("MRPC"), data("MRPC"), task="MRPC", precisions=["fp4"])
    # Labels of the task that are none of the model
    path = tmp_path / "rte.tsv"
    path.write_text("sentence1\tsentence2\tlabel\nword1\tword2\tentailment\n")
    with pytest.raises(InvalidInputError, match=r"rte.tsv, line 2: the label 'entailment' is unkn"):
        evaluate(bundle("MRPC"), path, task="RTE")
    # Single texts for a model of pairs
    with pytest.raises(InvalidInputError, match=r"dev.tsv, line 1: is a text; this classifier tak"):
        evaluate(bundle("MRPC"), data("CoLA"), task="CoLA")
    # A sentence that is too long, in the second part of those that run at once
    path = tmp_path / "long.conll"
    path.write_text("word1 O\n\n" * 300 + "word1 O\n" * 31)
    with pytest.raises(InvalidInputError, match=r"long.conll, line 601: has 31 tokens, and the"):
        evaluate(bundle("tagging"), path)
    path.write_text("word1 O\n\n\x01 O\n")
    with pytest.raises(InvalidInputError, match=r"long.conll, line 3: word 0, '\\x01', holds not"):
        evaluate(bundle("tagging"), path)
    # Nothing was loaded for a broken file.
    path.write_text("")
    with pytest.raises(InvalidInputError, match=r"long.conll holds no example"):
        evaluate(bundle("tagging"), path)


def test_models_without_a_metric(make_bundle, tmp_path) -> None:
    path = make_bundle(tmp_path / "bundle", "bert", {}, task="embedding", max_length=20)
    with pytest.raises(InvalidInputError, match="task 'embedding': labelled data are read for"):
        evaluate(path, tmp_path / "x.tsv")
    with pytest.raises(InvalidInputError, match="has no task; evaluation needs a bundle"):
        evaluate(path / "model-symbol.json", tmp_path / "x.tsv", task="MRPC")


def test_command(bundle, data, first, capsys) -> None:
    path, file = str(bundle("MRPC")), str(data("MRPC"))
    assert main(["evaluate", path, "--task", "MRPC", "--data", file, "--precision", "int8"]) == 0
    out, err = capsys.readouterr()
    assert "native" in out and "accuracy" in out and not err
    arguments = ["--backend", "native", "--precision", "fp32", "bf16", "--json"]
    assert main(["evaluate", path, "--task", "MRPC", "--data", file, *arguments]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["precision"] for row in rows] == [*["fp32"] * (first == "mxnet"), "fp32", "bf16"]
    assert main(["evaluate", path, "--task", "SST", "--data", file]) == 1
    assert "line 1: has the columns 'Quality'" in capsys.readouterr().err
    for wrong in (["--columns", "a,a"], ["--backend", "torch"], ["--task", "sst"]):
        with pytest.raises(SystemExit) as error:
            main(["evaluate", path, "--data", file, *wrong])
        assert error.value.code == 2
        assert "see bertrt evaluate --help" in capsys.readouterr().err


# --- by hand ----------------------------------------------------------------------------------


def compared(task, gold, found, expected, outputs, references, metrics):
    engine = SimpleNamespace(backend="b", provider="p", device="cpu", precision="int8", threads=1)
    examples = Examples(task, None, "", gold, gold, [""] * len(gold), 0)
    arrays = [[[np.float32(row) for row in own] for own in part] for part in (outputs, references)]
    return compare(
        engine,
        examples,
        metrics,
        None,
        Outcome(found, arrays[0], 2.0),
        Outcome(expected, arrays[1], 1.0),
    )


def test_counts() -> None:
    # right, lost, gained, wrong in both ways
    row = compared(
        "classification",
        list("aaaaa"),
        list("abacc"),
        list("aabbc"),
        [[[1, 2]], [[1, 2]], [[1, 2]], [[1, 2]], [[1, 2]]],
        [[[1, 2]], [[1, 2]], [[1, 4]], [[1, 2]], [[0, 2]]],
        ["accuracy"],
    )
    assert (row.right, row.differ, row.lost, row.gained) == (2, 3, 1, 1)
    assert row.scores == {"accuracy": pytest.approx(40)}
    assert (row.largest, row.mean) == (2.0, pytest.approx(0.3))
    assert row.seqs_per_second == 2.5


def test_windows_and_numbers_that_are_not_finite() -> None:
    outputs = [[[[1, 2], [3, 4]], [[5, 6]]]]
    row = compared("question-answering", [()], ["x"], [""], outputs, outputs, ["exact_match"])
    assert (row.right, row.differ, row.lost, row.gained) == (0, 1, 1, 0)
    assert row.seqs_per_second == 1.0
    broken = [[[[1, 2], [3, math.nan]], [[5, 6]]]]
    row = compared("question-answering", [()], [""], [""], broken, outputs, ["exact_match"])
    assert (row.largest, row.mean) == (math.inf, math.inf)


def test_numbers_differ_beyond_the_bound_of_parity() -> None:
    expected = [4.0, 0.5, 2.0]
    found = [4.0 + 7e-5, 0.5 - 9e-5, math.nan]
    row = compared("regression", [1.0, 2.0, 3.0], found, expected, [[[0]]] * 3, [[[0]]] * 3, [])
    assert (row.differ, row.right, row.lost, row.gained) == (2, None, None, None)


def test_sentences_by_their_entities() -> None:
    gold = [["B-PER", "E-PER"], ["O", "S-LOC"]]
    found = [["B-PER", "I-PER"], ["S-LOC", "S-LOC"]]
    row = compared("tagging", gold, found, gold, [[[0]]] * 2, [[[0]]] * 2, ["entity_f1"])
    assert (row.right, row.differ, row.lost, row.gained) == (1, 2, 1, 0)
