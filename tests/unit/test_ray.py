"""bertrt on Ray: data sets and requests, on a Ray of one machine."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from bertrt import Batching, BertrtError, Engine, InvalidInputError, InvalidTypeError

# Ray tells its makers nothing of the tests; before the import, which reads it.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pa = pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from bertrt.host.cores import usable_cores  # noqa: E402
from bertrt.ray.data import Predict  # noqa: E402
from bertrt.ray.load import load_engine  # noqa: E402

# Serve's own, of pydantic
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TEXTS = ["the boat", "the sea", "boats boats the sea", "", "the cafe", "sea " * 30]


def table(**columns: list) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def words(hugging, task: str, **more) -> Path:
    """A small model with a head."""
    classes = {"ForSequenceClassification": 3, "ForTokenClassification": 3}.get(task, 2)
    config = hugging.config | {
        "architectures": [f"Bert{task}"],
        "id2label": {str(i): f"L{i}" for i in range(classes)},
    }
    config |= more
    weights = hugging.weights(config, classes=classes)
    if task != "ForSequenceClassification":
        weights = {
            name.replace("classifier", "qa_outputs" if "Question" in task else "classifier"): array
            for name, array in weights.items()
            if "pooler" not in name
        }
    return hugging.write(config, weights, name=task)


# --- what a batch becomes ---------------------------------------------------------------------


def test_vectors_of_a_batch_are_those_of_predict(hugging) -> None:
    path = hugging.write(pooling=hugging.pooling)
    batch = table(id=list(range(len(TEXTS))), text=TEXTS)
    found = Predict(path, threads=1)(batch)
    assert found.schema.names == ["id", "text", "vector", "truncated"]
    assert found.schema.field("vector").type == pa.list_(pa.float32())
    assert found.select(["id", "text"]) == batch
    for text, row in zip(TEXTS, found.to_pylist(), strict=True):
        one = Engine.load(path, threads=1).predict(text)
        assert np.float32(row["vector"]).tobytes() == one.vector.tobytes()
        assert row["truncated"] == one.truncated


def test_vectors_of_tokens_are_lists_of_lists(hugging) -> None:
    path = hugging.write()
    settings = {"pooling": "tokens"}
    found = Predict(path, threads=1, settings=settings)(table(text=TEXTS[:3])).to_pylist()
    for text, row in zip(TEXTS, found, strict=False):
        one = Engine.load(path, threads=1, settings=settings).predict(text)
        assert row["tokens"] == list(one.tokens)
        assert np.float32(row["vector"]).tobytes() == one.vector.tobytes()


def test_a_classifiers_columns(hugging) -> None:
    path = words(hugging, "ForSequenceClassification")
    found = Predict(path, threads=1)(table(text=TEXTS)).to_pylist()
    for row, one in zip(found, Engine.load(path).predict(TEXTS), strict=True):
        assert row["label"] == one.label
        assert row["score"] == one.score
        assert dict(row["scores"]) == one.scores


def test_pairs_come_from_two_columns(hugging) -> None:
    path = words(hugging, "ForQuestionAnswering")
    batch = table(question=["the sea", "boats"], context=["the boat the sea", "cafe the boats"])
    found = Predict(path, ("question", "context"), threads=1)(batch)
    pairs = list(zip(*(batch.column(name).to_pylist() for name in batch.column_names), strict=True))
    for row, one in zip(found.to_pylist(), Engine.load(path).predict(pairs), strict=True):
        assert (row["text"], row["score"]) == (one.text, one.score)
        assert (row["start"], row["end"]) == (one.start, one.end)
        assert row["nbest"] == [vars(span) for span in one.nbest]


@pytest.mark.parametrize("texts", [["the boat", "sea"], [["the", "boat"], ["sea"]]])
def test_tags_come_as_lists(hugging, texts) -> None:
    path = words(hugging, "ForTokenClassification", id2label={"0": "O", "1": "B-X", "2": "I-X"})
    found = Predict(path, threads=1)(table(text=texts)).to_pylist()
    for row, one in zip(found, Engine.load(path).predict(texts), strict=True):
        assert (row["words"], row["tags"]) == (list(one.words), list(one.tags))
        assert row["scores"] == list(one.scores)
        assert row["entities"] == [vars(entity) for entity in one.entities]


def test_an_empty_batch_has_the_columns(hugging) -> None:
    predict = Predict(hugging.write(pooling=hugging.pooling), threads=1)
    whole, none = predict(table(text=TEXTS)), predict(table(text=TEXTS).slice(0, 0))
    assert none.schema == whole.schema
    assert none.num_rows == 0


def test_what_is_written_gets_its_names(hugging) -> None:
    path = hugging.write(pooling=hugging.pooling)
    batch = table(text=TEXTS, truncated=TEXTS)
    assert Predict(path, write=["vector"], threads=1)(batch).column_names == [
        *("text", "truncated", "vector")
    ]
    named = {"truncated": "cut", "vector": "v"}
    assert Predict(path, write=named, threads=1)(batch).column_names == [
        *("text", "truncated", "cut", "v")
    ]
    with pytest.raises(InvalidInputError, match="has a column 'truncated' already"):
        Predict(path, threads=1)(batch)


def test_an_error_stands_in_its_row(hugging) -> None:
    path = hugging.write(pooling=hugging.pooling)
    batch = table(text=["the sea", "a\0b", None])
    with pytest.raises(BertrtError, match=r"2 of 3 inputs .*batch\[1\] holds a NUL.*batch\[2\]"):
        Predict(path, threads=1)(batch)
    rows = Predict(path, on_error="return", threads=1)(batch).to_pylist()
    assert [row["vector"] is None for row in rows] == [False, True, True]
    assert [row["truncated"] for row in rows] == [False, None, None]
    assert rows[0]["error"] is None
    assert "NUL" in rows[1]["error"] and "None" in rows[2]["error"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": ()}, InvalidTypeError, "expected the name of a column"),
        ({"columns": ["a", "b", "c"]}, InvalidTypeError, "expected the name of a column"),
        ({"columns": 1}, InvalidTypeError, "expected the name of a column"),
        ({"write": "vector"}, InvalidTypeError, "expected a sequence of names"),
        ({"write": ["vector", []]}, InvalidTypeError, "expected a sequence of names"),
        ({"write": {"vector": 1}}, InvalidTypeError, "expected a sequence of names"),
        ({"write": 1}, InvalidTypeError, "expected a sequence of names"),
        ({"write": ["label"]}, InvalidInputError, "names 'label'; this model has 'vector'"),
        ({"write": ["vector", "vector"]}, InvalidInputError, "names a column twice"),
        ({"write": {"vector": "v", "truncated": "v"}}, InvalidInputError, "a column twice"),
        ({"write": ["vector"], "on_error": "return"}, InvalidInputError, "write lacks 'error'"),
        ({"on_error": "pass"}, InvalidInputError, "expected 'raise' or 'return'"),
        ({"prompt": "query"}, InvalidInputError, "no prompt 'query'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(hugging, arguments, error, message) -> None:
    path = hugging.write(pooling=hugging.pooling)
    with pytest.raises(error, match=message):
        Predict(path, threads=1, **arguments)


def test_other_batches_are_refused(hugging) -> None:
    predict = Predict(hugging.write(pooling=hugging.pooling), threads=1)
    with pytest.raises(InvalidTypeError, match='batch_format="pyarrow"'):
        predict({"text": np.array(TEXTS)})
    with pytest.raises(InvalidInputError, match="no column 'text'; its columns are texts"):
        predict(table(texts=TEXTS))


def test_a_bare_graph_has_nothing_to_write(tiny, monkeypatch) -> None:
    with pytest.raises(InvalidInputError, match="has no task"):
        tiny.settings["task"] = None
        Predict("/models/tiny", backend="tiny", threads=1)


# --- a replica, without Ray -------------------------------------------------------------------


def test_a_replicas_batches_go_by_tokens(tiny) -> None:
    from bertrt.ray.serve import Predict

    replica = Predict.func_or_class(
        "/models/tiny", backend="tiny", threads=1, batching=Batching(tokens=30)
    )
    (backend,) = tiny.backends
    go_on = threading.Event()
    # Nothing runs before all have asked.
    backend.before_run = lambda: go_on.wait(60)
    # Of 3 to 8 tokens, with [CLS] and [SEP]
    texts = [" ".join(["hello"] * (1 + i % 6)) for i in range(40)]

    async def ask() -> list:
        calls = [asyncio.create_task(replica.predict(text)) for text in texts]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*calls)

    found = asyncio.run(ask())
    tokens = [batch.tokens for batch in backend.batches]
    assert sum(tokens) == sum(3 + i % 6 for i in range(40))
    assert max(tokens) <= 30
    assert len(tokens) < len(texts)
    for text, one in zip(texts, found, strict=True):
        assert one.vector.tobytes() == replica._engine.predict(text).vector.tobytes()


def test_a_full_queue_is_told_over_http_at_once(tiny) -> None:
    from starlette.requests import Request

    from bertrt.ray.serve import Predict

    replica = Predict.func_or_class(
        "/models/tiny", backend="tiny", threads=1, batching=Batching(queue=2)
    )
    body = json.dumps({"batch": ["a"] * 3}).encode()

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    answer = asyncio.run(replica(Request({"type": "http"}, receive)))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "error" in json.loads(answer.body)


# --- the examples -----------------------------------------------------------------------------


def example(name: str, *arguments: object) -> str:
    """What an example prints, on a Ray of its own."""
    program = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_a_data_set_runs(hugging, tmp_path) -> None:
    from pyarrow import parquet

    path = hugging.write(pooling=hugging.pooling)
    (tmp_path / "texts.txt").write_text("the boat\nthe sea\n")
    example("ray_data.py", path, tmp_path / "texts.txt", tmp_path / "vectors")
    rows = parquet.read_table(tmp_path / "vectors").sort_by("text").to_pylist()
    for row, one in zip(rows, Engine.load(path).predict(["the boat", "the sea"]), strict=True):
        assert np.float32(row["vector"]).tobytes() == one.vector.tobytes()


def test_the_example_of_serving_runs(hugging) -> None:
    path = words(hugging, "ForSequenceClassification")
    told = example("ray_serve.py", path)
    (one,) = Engine.load(path).predict(["a boat on the sea"])
    assert repr(one) in told


# --- on Ray -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A Ray with two CPUs, whatever the machine has."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        logging_level="error",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def test_a_data_set_has_the_bits_of_predict(hugging, cluster) -> None:
    path = hugging.write(pooling=hugging.pooling)
    texts = [f"{'the sea ' * (i % 7)}{i}" for i in range(100)] + ["a\0b"]
    rows = (
        ray.data.from_items(
            [{"id": i, "text": text} for i, text in enumerate(texts)], override_num_blocks=3
        )
        .map_batches(
            Predict,
            fn_constructor_kwargs={"path": path, "on_error": "return"},
            batch_format="pyarrow",
            batch_size=16,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .take_all()
    )
    assert sorted(row["id"] for row in rows) == list(range(len(texts)))
    engine = Engine.load(path)
    for row in rows:
        if row["id"] == 100:
            assert row["vector"] is None and "NUL" in row["error"]
        else:
            assert row["error"] is None
            want = engine.predict(texts[row["id"]]).vector
            assert np.float32(row["vector"]).tobytes() == want.tobytes()


def test_threads_are_the_cpus_of_the_actor(hugging, cluster) -> None:
    path = hugging.write()

    class Threads:
        def count(self, **arguments) -> int:
            return load_engine(path, arguments).threads

    def count(cpus: float, **arguments) -> int:
        actor = ray.remote(num_cpus=cpus)(Threads).remote()
        found = ray.get(actor.count.remote(**arguments))
        ray.kill(actor)
        return found

    assert count(0) == count(0.5) == count(1) == 1
    assert count(2) == min(2, usable_cores())
    assert count(1, threads=2) == 2
    # The driver is no worker.
    assert load_engine(path, {}).threads == Engine.load(path).threads


@pytest.fixture(scope="module")
def address(cluster) -> str:
    """Where Serve answers."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def ask(address: str, body: object) -> tuple[int, object]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data)) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def run(path: Path, **load):
    from ray import serve

    from bertrt.ray.serve import Predict

    app = Predict.options(ray_actor_options={"num_cpus": 1}).bind(path, **load)
    return serve.run(app, name="bertrt", route_prefix="/")


def test_requests_have_the_bits_of_predict(hugging, address) -> None:
    path = hugging.write(pooling=hugging.pooling)
    handle = run(path)
    engine = Engine.load(path)
    texts = [f"{'the sea ' * (i % 7)}{i}" for i in range(64)]
    asked = [handle.predict.remote(text) for text in texts]
    for text, response in zip(texts, asked, strict=True):
        vector = response.result(timeout_s=60).vector
        assert vector.tobytes() == engine.predict(text).vector.tobytes()
    several = handle.predict.remote(["the sea", "a\0b"], on_error="return").result(timeout_s=60)
    assert several[0].vector.tobytes() == engine.predict("the sea").vector.tobytes()
    assert isinstance(several[1], InvalidInputError)
    with pytest.raises(InvalidInputError, match="NUL"):
        handle.predict.remote("a\0b").result(timeout_s=60)

    status, found = ask(address, {"batch": texts})
    assert status == 200
    for text, one in zip(texts, found["results"], strict=True):
        want = engine.predict(text)
        assert np.float32(one["vector"]).tobytes() == want.vector.tobytes()
        assert one["truncated"] == want.truncated
    body = {"batch": ["the sea", "a\0b"], "on_error": "return", "prompt": ""}
    first, second = ask(address, body)[1]["results"]
    assert len(first["vector"]) == 24 and "NUL" in second["error"]
    for body, refused, told in [
        (b"{", 400, "is no JSON"),
        (b"[" * 100_000, 400, "is no JSON"),
        ([], 400, 'no JSON object with the key "batch"'),
        ({"prompt": "a"}, 400, 'no JSON object with the key "batch"'),
        ({"batch": "a", "promt": "b"}, 400, "the key 'promt'"),
        ({"batch": 1}, 422, "batch is a int"),
        ({"batch": []}, 422, "the batch is empty"),
        ({"batch": ["a", 1]}, 422, "batch[1] is a int"),
        ({"batch": ["a", ["a", "b"]]}, 422, "batch[1] is a pair"),
        ({"batch": ["a", ["a", "b", "c"]]}, 422, "batch[1] is a tuple of str, str, str"),
        ({"batch": "a\0b"}, 422, "NUL"),
        ({"batch": "a", "prompt": 1}, 422, "prompt is a int"),
        ({"batch": "a", "on_error": []}, 422, "on_error is a list"),
    ]:
        status, found = ask(address, body)
        assert (status, told in found["error"]) == (refused, True), (body, found)


def test_pairs_and_lists_of_words_come_as_lists_over_http(hugging, address) -> None:
    answers = words(hugging, "ForQuestionAnswering")
    run(answers)
    pair = ("the sea", "the boat the sea")
    want = Engine.load(answers).predict(pair)
    status, answer = ask(address, {"batch": [pair]})
    assert status == 200
    (found,) = answer["results"]
    assert (found["text"], found["score"]) == (want.text, want.score)
    assert found["nbest"] == [vars(span) for span in want.nbest]

    tags = words(hugging, "ForTokenClassification", id2label={"0": "O", "1": "B-X", "2": "I-X"})
    run(tags)
    (want,) = Engine.load(tags).predict([["boats", "sea"]])
    status, answer = ask(address, {"batch": [["boats", "sea"]]})
    assert status == 200
    (found,) = answer["results"]
    assert (found["words"], found["tags"]) == (["boats", "sea"], list(want.tags))
