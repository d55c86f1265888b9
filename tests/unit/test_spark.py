"""Models over DataFrames: what `predict_batch_udf` is given, and Spark itself where it is there."""

from __future__ import annotations

import importlib.util
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bertrt.engine.engine
import bertrt.spark
from bertrt import BertrtError, Engine, InvalidInputError, InvalidTypeError
from bertrt.spark import make_predict_fn

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TEXTS = ["the boat", "the sea", "boats boats the sea", "", "sea " * 30]


def column(values: list) -> np.ndarray:
    """A column as Spark's UDF gives it."""
    return np.array(values, object)


def classifier(hugging) -> Path:
    config = hugging.config | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "no", "1": "maybe", "2": "yes"},
    }
    return hugging.write(config, hugging.weights(config, classes=3), name="classifier")


def tagger(hugging) -> Path:
    config = hugging.config | {
        "architectures": ["BertForTokenClassification"],
        "id2label": {"0": "O", "1": "B-X", "2": "I-X"},
    }
    weights = hugging.weights(config, pooler=False, classes=3)
    return hugging.write(config, weights, name="tagger")


# --- what the UDF calls -----------------------------------------------------------------------


def test_one_name_gives_an_array(hugging) -> None:
    path = hugging.write(pooling=hugging.pooling)
    found = make_predict_fn(path, "vector", threads=1)()(column(TEXTS))
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 24))
    for text, row in zip(TEXTS, found, strict=True):
        assert row.tobytes() == Engine.load(path).predict(text).vector.tobytes()

    path = classifier(hugging)
    results = Engine.load(path).predict(TEXTS)
    for name in ("label", "score", "truncated"):
        found = make_predict_fn(path, name, threads=1)()(column(TEXTS))
        assert found.tolist() == [getattr(one, name) for one in results]
    found = make_predict_fn(path, "scores", threads=1)()(column(TEXTS))
    assert found.tolist() == [list(one.scores.values()) for one in results]
    # The UDF wants no strings of numpy's own type.
    assert make_predict_fn(path, "label", threads=1)()(column(TEXTS)).dtype == object


def test_several_names_give_rows(hugging) -> None:
    path = tagger(hugging)
    names = ["words", "tags", "scores", "error"]
    rows = make_predict_fn(path, names, threads=1)()(column(["the boat", "sea"]))
    for row, one in zip(rows, Engine.load(path).predict(["the boat", "sea"]), strict=True):
        assert list(row) == names
        assert row["words"].tolist() == list(one.words)
        assert row["tags"].tolist() == list(one.tags)
        assert row["scores"].tolist() == list(one.scores)
        assert row["error"] == ""


def test_pairs_are_two_columns(hugging) -> None:
    path = classifier(hugging)
    predict = make_predict_fn(path, "label", pairs=True, threads=1)()
    pairs = [("the sea", "boat"), ("boats", "the sea")]
    found = predict(*(column(list(side)) for side in zip(*pairs, strict=True)))
    assert found.tolist() == [one.label for one in Engine.load(path).predict(pairs)]


@pytest.mark.parametrize("null", [None, math.nan])
def test_an_error_stands_in_its_row(hugging, null) -> None:
    path = classifier(hugging)
    texts = column([null, "the sea", "a\0b"])
    names = ["label", "score", "scores", "truncated", "error"]
    with pytest.raises(BertrtError, match=r"batch\[0\] is None.*batch\[2\] holds a NUL"):
        make_predict_fn(path, names, threads=1)()(texts)
    rows = make_predict_fn(path, names, on_error="return", threads=1)()(texts)
    (one,) = Engine.load(path).predict(["the sea"])
    assert (rows[1]["label"], rows[1]["error"]) == (one.label, "")
    for row, told in ((rows[0], "None"), (rows[2], "NUL")):
        assert told in row["error"]
        assert (row["label"], row["scores"].shape, row["truncated"]) == ("", (0,), -1)
        assert math.isnan(row["score"])


def test_it_can_be_pickled_before_it_loads(hugging) -> None:
    path = classifier(hugging)
    made = pickle.loads(pickle.dumps(make_predict_fn(path, "label", threads=1)))
    assert len(made()(column(TEXTS))) == len(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"write": 1}, InvalidTypeError, "expected a name, or a list of them"),
        ({"write": ["label", 1]}, InvalidTypeError, "expected a name, or a list of them"),
        ({"write": "label", "on_error": "pass"}, InvalidInputError, "'raise' or 'return'"),
        ({"write": "label", "on_error": "return"}, InvalidInputError, "no list with 'error'"),
        ({"write": ["label"], "on_error": "return"}, InvalidInputError, "no list with 'error'"),
        ({"write": "error", "on_error": "return"}, InvalidInputError, "no list with 'error'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        make_predict_fn("/nowhere", **arguments)


def test_what_the_udf_cannot_hold_is_refused(hugging) -> None:
    with pytest.raises(InvalidInputError, match="names 'vector'; of classification label, score"):
        make_predict_fn(classifier(hugging), ["label", "vector"], threads=1)()
    with pytest.raises(InvalidInputError, match=r"in structs only: write=\['tags'\]"):
        make_predict_fn(tagger(hugging), "tags", threads=1)()
    tokens = make_predict_fn(hugging.write(), "vector", threads=1, settings={"pooling": "tokens"})()
    with pytest.raises(InvalidInputError, match="a vector for each token"):
        tokens(column(TEXTS))


def test_a_bare_graph_has_nothing_to_write(tiny) -> None:
    with pytest.raises(InvalidInputError, match="nothing that predict_batch_udf can hold"):
        tiny.settings["task"] = None
        make_predict_fn("/models/tiny", "label", backend="tiny", threads=1)()


@pytest.mark.parametrize(
    ("cpus", "given", "threads"),
    [(1, None, 1), (2, None, 2), (9, None, 4), (None, None, 4), (2, 3, 3)],
)
def test_threads_are_the_cpus_of_a_task(tiny, monkeypatch, cpus, given, threads) -> None:
    monkeypatch.setattr(bertrt.spark, "_task_cpus", lambda: cpus)
    for module in (bertrt.spark, bertrt.engine.engine):
        monkeypatch.setattr(module, "usable_cores", lambda: 4)
    make_predict_fn("/models/tiny", "vector", backend="tiny", threads=given)()
    assert tiny.backends[-1].threads == threads


# --- Spark ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spark():
    """A Spark of two cores, of which a task takes two."""
    sql = pytest.importorskip("pyspark.sql", reason="the extra spark is not installed")
    if not shutil.which("java"):
        pytest.skip("Spark needs Java, and there is none")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYSPARK_PYTHON", sys.executable)
    session = (
        sql.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.task.cpus", "2")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    patch.undo()


def test_vectors_of_a_frame_are_those_of_predict(hugging, spark) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    path = hugging.write(pooling=hugging.pooling)
    texts = [f"{'the sea ' * (i % 7)}{i}" for i in range(50)]
    frame = spark.createDataFrame(list(enumerate(texts)), "id int, text string").repartition(2)
    embed = predict_batch_udf(
        make_predict_fn(path, "vector"), return_type=ArrayType(FloatType()), batch_size=16
    )
    rows = frame.withColumn("vector", embed("text")).collect()
    assert sorted(row.id for row in rows) == list(range(50))
    engine = Engine.load(path)
    for row in rows:
        want = engine.predict(texts[row.id]).vector
        assert np.float32(row.vector).tobytes() == want.tobytes()


def test_rows_without_an_answer_say_so(hugging, spark) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import types

    names = {
        "label": types.StringType(),
        "score": types.DoubleType(),
        "scores": types.ArrayType(types.DoubleType()),
        "truncated": types.IntegerType(),
        "error": types.StringType(),
    }
    path = classifier(hugging)
    answer = predict_batch_udf(
        make_predict_fn(path, list(names), pairs=True, on_error="return"),
        return_type=types.StructType([types.StructField(*item) for item in names.items()]),
        batch_size=2,
    )
    pairs = [("the sea", "a boat"), ("a\0b", "boats"), ("boats", None), ("the cafe", "the sea")]
    frame = spark.createDataFrame(
        [(i, *pair) for i, pair in enumerate(pairs)], "id int, first string, second string"
    )
    rows = frame.withColumn("answer", answer("first", "second")).select("id", "answer.*").collect()
    engine = Engine.load(path)
    for row in rows:
        if row.id in (1, 2):
            assert (row.label, row.scores, row.truncated) == ("", [], -1)
            assert row.error
        else:
            one = engine.predict(pairs[row.id])
            assert (row.label, row.score, row.error) == (one.label, one.score, "")
            assert row.scores == list(one.scores.values())


def test_every_type_of_the_table_is_one_that_spark_holds(hugging, spark) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import types

    frame = spark.createDataFrame([("the boat",), ("boats",)], "text string")
    path = classifier(hugging)
    engine = Engine.load(path)
    for name, kind in (
        ("label", types.StringType()),
        ("score", types.DoubleType()),
        ("scores", types.ArrayType(types.DoubleType())),
        ("truncated", types.IntegerType()),
    ):
        found = predict_batch_udf(make_predict_fn(path, name), return_type=kind, batch_size=16)
        for row in frame.withColumn("found", found("text")).collect():
            want = getattr(engine.predict(row.text), name)
            assert row.found == (list(want.values()) if name == "scores" else want)

    path = tagger(hugging)
    names = {
        "words": types.ArrayType(types.StringType()),
        "tags": types.ArrayType(types.StringType()),
        "scores": types.ArrayType(types.DoubleType()),
    }
    kind = types.StructType([types.StructField(*item) for item in names.items()])
    found = predict_batch_udf(make_predict_fn(path, list(names)), return_type=kind, batch_size=16)
    for row in frame.withColumn("found", found("text")).select("text", "found.*").collect():
        one = Engine.load(path).predict(row.text)
        assert tuple(map(tuple, (row.words, row.tags, row.scores))) == (
            *(one.words, one.tags, one.scores),
        )


def test_a_task_knows_its_cpus(spark) -> None:
    def ask(rows):
        from bertrt.spark import _task_cpus

        yield _task_cpus()

    assert spark.sparkContext.parallelize([1], 1).mapPartitions(ask).collect() == [2]


@pytest.mark.skipif(not importlib.util.find_spec("pyspark"), reason="pyspark is not installed")
def test_the_example_runs(hugging, tmp_path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = hugging.write(pooling=hugging.pooling)
    (tmp_path / "texts.txt").write_text("the boat\nthe sea\n")
    program = [sys.executable, EXAMPLES / "spark_embed.py", path, tmp_path / "texts.txt"]
    done = subprocess.run([*program, tmp_path / "vectors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = parquet.read_table(tmp_path / "vectors").sort_by("text").to_pylist()
    for row, one in zip(rows, Engine.load(path).predict(["the boat", "the sea"]), strict=True):
        assert np.float32(row["vector"]).tobytes() == one.vector.tobytes()
