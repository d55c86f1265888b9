"""The Open Inference Protocol over HTTP, by urllib."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt import Engine
from bertrt.results import plain
from bertrt.serve.protocols import inference, inference_models
from bertrt.serve.protocols.tensors import to_bytes
from bertrt.serve.settings import Settings

GRAPH = Path(__file__).parents[1] / "data/onnx/script14_model.onnx"


def text(*values: str, name: str = "text") -> dict:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def ids(name: str, rows: list[list[int]], datatype: str = "INT64") -> dict:
    shape = [len(rows), len(rows[0])]
    return {"name": name, "datatype": datatype, "shape": shape, "data": rows}


def infer(server, model: str, *inputs: dict, **more):
    return server.post(f"/v2/models/{model}/infer", {"inputs": list(inputs), **more})


def outputs(body: dict) -> dict:
    return {own["name"]: own for own in body["outputs"]}


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def test_health(server) -> None:
    assert server.get("/v2/health/live")[:2] == (200, {"live": True})
    assert server.get("/v2/health/ready")[:2] == (200, {"ready": True})
    status, body, _ = server.get("/v2")
    assert (status, body["name"]) == (200, "bertrt")
    assert "binary_tensor_data" in body["extensions"]


def test_what_models_there_are(server) -> None:
    found = server.post("/v2/repository/index", b"")[1]
    names = ["embedder", "classifier", "ranker", "tagger", "reader"]
    assert [own["name"] for own in found] == names
    assert {own["state"] for own in found} == {"READY"}
    assert len(server.post("/v2/repository/index", {"ready": True})[1]) == 5
    for path in ("", "/versions/1"):
        assert server.get(f"/v2/models/reader{path}/ready")[0] == 200
        body = server.get(f"/v2/models/reader{path}")[1]
        assert body["versions"] == ["1"]
        told = {own["name"]: (own["datatype"], own["shape"]) for own in body["outputs"]}
        assert told["answer"] == ("BYTES", [-1])
        assert told["logits"] == ("FP32", [-1, -1, -1])
        config = server.get(f"/v2/models/reader{path}/config")[1]
        assert config["input"][0]["data_type"] == "TYPE_STRING"
    assert [own["name"] for own in server.get("/v2/models/tagger")[1]["inputs"]][:2] == [
        "text",
        "input_ids",
    ]


EXPECTED = {
    "embedder": (["a text", "another one", "a text"], None),
    "classifier": (["the boat", "the sea"], None),
    "ranker": (["the boat"] * 2, ["the sea", "boats"]),
    "tagger": (["the boat the sea"], None),
    "reader": (["the boat"], ["the sea the boats"]),
}


@pytest.mark.parametrize("model", EXPECTED)
def test_every_task_has_the_bits_of_predict(server, engines, model: str) -> None:
    firsts, seconds = EXPECTED[model]
    batch = firsts if seconds is None else list(zip(firsts, seconds, strict=True))
    expected = [engines[model].predict([item])[0] for item in batch]
    given = [text(*firsts)] + ([text(*seconds, name="text_pair")] if seconds else [])
    names = [own["name"] for own in server.get(f"/v2/models/{model}")[1]["outputs"]]
    asked = [name for name in names if name not in ("sequence_output", "pooled_output", "logits")]
    status, body, _ = infer(server, model, *given, outputs=[{"name": name} for name in asked])
    assert status == 200, body
    found = outputs(body)
    assert list(found) == asked
    for name, own in found.items():
        assert own["shape"][0] == len(batch)
        data = own["data"]
        if name == "result":
            for one, result in zip(data, expected, strict=True):
                told = json.loads(one)
                if model == "embedder":
                    np.testing.assert_array_equal(np.float32(told["vector"]), result.vector)
                else:
                    assert told == json.loads(json.dumps(plain(result)))
        elif name == "embedding":
            vectors = np.float32(data).reshape(own["shape"])
            np.testing.assert_array_equal(vectors, [one.vector for one in expected])
        elif name == "scores":
            assert np.reshape(data, own["shape"]).tolist() == [
                list(one.scores.values()) for one in expected
            ]
        else:
            field = "text" if name == "answer" else name
            assert data == [getattr(one, field) for one in expected]
    # Where no output is named, these are all but what is JSON within JSON.
    usual = outputs(infer(server, model, *given)[1])
    assert list(usual) == ([name for name in asked if name != "result"] or ["result"])


@pytest.mark.parametrize("datatype", ["INT32", "INT64"])
@pytest.mark.parametrize("model", ["embedder", "classifier"])
def test_ids_have_the_bits_of_their_text(server, engines, model: str, datatype: str) -> None:
    texts = ["the boat", "the sea the boats"]
    encodings = engines[model].tokenize(texts)
    width = max(len(own.ids) for own in encodings) + 1
    rows, masks = [], []
    for own in encodings:
        rows.append(own.ids.tolist() + [0] * (width - len(own.ids)))
        masks.append([1] * len(own.ids) + [0] * (width - len(own.ids)))
    given = [
        ids("input_ids", rows, datatype),
        ids("attention_mask", masks, datatype),
        ids("token_type_ids", [[0] * width] * 2, datatype),
    ]
    expected = outputs(infer(server, model, text(*texts))[1])
    assert outputs(infer(server, model, *given)[1]) == expected
    assert outputs(infer(server, model, *given[:2])[1]) == expected
    # Raw outputs, beside the task's.
    name = "pooled_output" if model == "embedder" else "logits"
    asked = [{"name": name}, {"name": next(iter(expected))}]
    status, body, _ = infer(server, model, *given, outputs=asked)
    assert status == 200, body
    found = outputs(body)
    raw = np.float32(found[name]["data"]).reshape(found[name]["shape"])
    for row, encoding in zip(raw, encodings, strict=True):
        alone = engines[model].run(encoding.ids[None])[name][0]
        np.testing.assert_array_equal(row, alone)
    assert found.popitem()[1] == next(iter(expected.values()))


def test_a_graph_without_a_task_has_raw_outputs(start, tmp_path) -> None:
    graph = tmp_path / "bare.onnx"
    shutil.copy(GRAPH, graph)
    server = start(f"bare={graph}")
    told = server.get("/v2/models/bare")[1]
    assert told["inputs"][0]["name"] == "input_ids"
    rows = [[2, 5, 6, 3], [2, 7, 3, 0]]
    given = ids("input_ids", rows), ids("attention_mask", [[1, 1, 1, 1], [1, 1, 1, 0]])
    status, body, _ = infer(server, "bare", *given)
    assert status == 200, body
    found = outputs(body)
    assert list(found) == [own["name"] for own in told["outputs"]]
    with Engine.load(graph) as engine:
        expected = engine.run(np.array(rows), None, np.array([4, 3]))
    for name, own in found.items():
        np.testing.assert_array_equal(np.float32(own["data"]).reshape(own["shape"]), expected[name])
    status, body, _ = infer(server, "bare", text("a"))
    assert (status, "input_ids" in body["error"]) == (400, True)


def test_numbers_in_bytes(server, engines) -> None:
    head = {
        "id": "some id",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [2, 1], "parameters": {}},
            {"name": "text_pair", "datatype": "BYTES", "shape": [2, 1], "parameters": {}},
        ],
        "outputs": [
            {"name": "scores", "parameters": {"binary_data": True}},
            {"name": "label"},
            {"name": "result", "parameters": {"binary_data": True}},
        ],
    }
    parts = [elements(b"the boat", "the séa".encode()), elements(b"boats", b"the")]
    for own, part in zip(head["inputs"], parts, strict=True):
        own["parameters"]["binary_data_size"] = len(part)
    said = json.dumps(head).encode()
    status, body, headers = server.post(
        "/v2/models/classifier/infer",
        said + b"".join(parts),
        {"inference-header-content-length": str(len(said)), "content-type": "x/y"},
    )
    assert status == 200, body
    size = int(headers["inference-header-content-length"])
    answer, rest = json.loads(body[:size]), body[size:]
    assert (answer["id"], answer["model_version"]) == ("some id", "1")
    found = outputs(answer)
    expected = engines["classifier"].predict([("the boat", "boats"), ("the séa", "the")])
    cut = found["scores"]["parameters"]["binary_data_size"]
    assert np.frombuffer(rest[:cut]).reshape(2, 2).tolist() == [
        list(one.scores.values()) for one in expected
    ]
    assert found["label"]["data"] == [one.label for one in expected]
    assert rest[cut:] == elements(
        *(json.dumps(plain(one), separators=(",", ":")).encode() for one in expected)
    )


def test_binary_is_checked_to_the_byte(server) -> None:
    def send(shape, raw: bytes, datatype="BYTES", size=None, name="text", extra=b"", header=None):
        head = {
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype,
                    "shape": shape,
                    "parameters": {"binary_data_size": len(raw) if size is None else size},
                }
            ]
        }
        said = json.dumps(head).encode()
        length = str(len(said)) if header is None else header
        status, body, _ = server.post(
            "/v2/models/embedder/infer",
            said + raw + extra,
            {"inference-header-content-length": length},
        )
        assert status == 200 or body["error"], body
        return status

    two = elements(b"a", b"b")
    assert send([2], two) == 200
    assert send([3], two) == send([1], two) == 400
    assert send([2], two[:-1]) == send([2], two + b"\0") == 400
    assert send([2], two, extra=b"x") == send([2], two, size=len(two) + 1) == 400
    assert send([2], two, size=-1) == send([2], two, size="10") == send([2], two, size=1.0) == 400
    assert send([2], b"\xff\xff\xff\xff" + two) == send([1], b"\xff") == 400
    assert send([1], elements(b"\xff")) == send([1], elements(b"a\0")) == 400
    assert send([1 << 62], two) == 413
    assert send([2, 1 << 62], two) == send([0], b"") == 400
    assert send([-1], two) == send([], two) == send([1, 1, 2], two) == send([1, 2], two) == 400
    ids = np.int64([[101, 102]]).tobytes()
    assert send([1, 2], ids, "INT64", name="input_ids") == 200
    assert send([1, 2], ids, "INT32", name="input_ids") == 400
    assert send([1, 4], ids, "INT32", name="input_ids") == 200
    assert send([1, 2], ids, "FP64", name="input_ids") == send([2], ids, "INT64") == 400
    assert send([2], two, header="x") == send([2], two, header="99999") == 400
    assert send([2], two, header="-1") == send([2], two, header="0") == 400


def test_int64_is_no_two_int32(server) -> None:
    """Their bytes are the same, and the cache has to keep them apart."""
    one = outputs(infer(server, "embedder", ids("input_ids", [[103]]))[1])
    two = outputs(infer(server, "embedder", ids("input_ids", [[103, 0]], "INT32"))[1])
    assert one["embedding"]["data"] != two["embedding"]["data"]


FINE = {"inputs": [text("a")]}


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("nobody/infer", FINE, 404, "nobody"),
        ("embedder/versions/2/infer", FINE, 404, "version"),
        ("embedder/infer", {}, 400, "inputs"),
        ("embedder/infer", {"inputs": []}, 400, "text"),
        ("embedder/infer", [], 400, "object"),
        ("embedder/infer", b"{", 400, "JSON"),
        ("embedder/infer", b"[" * 100_000, 400, "body"),
        ("embedder/infer", {**FINE, "other": 1}, 400, "other"),
        ("embedder/infer", {**FINE, "model_name": "x"}, 400, "path"),
        ("embedder/infer", {**FINE, "outputs": [{"name": "x"}]}, 400, "embedding"),
        ("embedder/infer", {**FINE, "outputs": [{"name": "logits"}]}, 400, "embedding"),
        ("embedder/infer", {**FINE, "outputs": [{"name": "sequence_output"}]}, 400, "ids"),
        ("embedder/infer", {**FINE, "outputs": [{"name": "embedding"}] * 2}, 400, "twice"),
        (
            "embedder/infer",
            {**FINE, "outputs": [{"name": "embedding", "parameters": {"classification": 2}}]},
            400,
            "classification",
        ),
        ("embedder/infer", {**FINE, "parameters": {"sequence_id": 3}}, 400, "sequence_id"),
        ("embedder/infer", {**FINE, "parameters": {"priority": -1}}, 400, "priority"),
        ("embedder/infer", {**FINE, "parameters": {"timeout": 0.5}}, 400, "timeout"),
        ("embedder/infer", {**FINE, "parameters": {"prompt": 1}}, 400, "prompt"),
        ("embedder/infer", {**FINE, "parameters": {"prompt": "x"}}, 400, "prompt"),
        ("embedder/infer", {**FINE, "parameters": {"truncate": "x"}}, 400, "truncate"),
        ("embedder/infer", {**FINE, "parameters": {"binary_data_output": 1}}, 400, "bool"),
        ("embedder/infer", {"inputs": [text("a"), text("b")]}, 400, "twice"),
        ("embedder/infer", {"inputs": [text("a", name="x")]}, 400, "'x'"),
        ("embedder/infer", {"inputs": [text("a", name="text_pair")]}, 400, "text"),
        ("embedder/infer", {"inputs": [text("a"), ids("input_ids", [[1]])]}, 400, "both"),
        ("embedder/infer", {"inputs": [text("a"), text("b", "c", name="text_pair")]}, 400, "match"),
        ("embedder/infer", {"inputs": [{**text("a"), "data": [1]}]}, 400, "string"),
        ("embedder/infer", {"inputs": [{**text("a"), "data": None}]}, 400, "data"),
        ("embedder/infer", {"inputs": [{**text("a"), "datatype": "FP8"}]}, 400, "FP8"),
        ("embedder/infer", {"inputs": [{**text("a"), "shape": [1.5]}]}, 400, "int"),
        ("embedder/infer", {"inputs": [{**text("a"), "shape": [2, 2]}]}, 400, "shape"),
        ("embedder/infer", {"inputs": [text("a", "b\0")]}, 400, "input[1]"),
        ("embedder/infer", {"inputs": [text(*["a"] * 2049)]}, 413, "2048"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[1 << 40]])]}, 400, "[0, 0]"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[1 << 70]])]}, 400, "input_ids"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[-1]])]}, 400, "-1"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[1.5]])]}, 400, "float"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[True]])]}, 400, "bool"),
        ("embedder/infer", {"inputs": [ids("input_ids", [[1] * 600])]}, 400, "600"),
        ("embedder/infer", {"inputs": [ids("attention_mask", [[1]])]}, 400, "input_ids"),
        (
            "embedder/infer",
            {"inputs": [ids("input_ids", [[1, 2]]), ids("attention_mask", [[0, 1]])]},
            400,
            "attention_mask[0, 0]",
        ),
        (
            "embedder/infer",
            {"inputs": [ids("input_ids", [[1, 2]]), ids("attention_mask", [[2, 1]])]},
            400,
            "attention_mask[0, 0]",
        ),
        (
            "embedder/infer",
            {"inputs": [ids("input_ids", [[1, 2]]), ids("attention_mask", [[0, 0]])]},
            400,
            "attention_mask[0] has no 1",
        ),
        (
            "embedder/infer",
            {
                "inputs": [
                    ids("input_ids", [[1, 2], [1, 2]]),
                    ids("attention_mask", [[1, 1], [0, 0]]),
                ],
                "outputs": [{"name": "sequence_output"}],
            },
            400,
            "attention_mask[1] has no 1",
        ),
        (
            "embedder/infer",
            {"inputs": [ids("input_ids", [[1, 2]]), ids("token_type_ids", [[0, 5]])]},
            400,
            "types",
        ),
        (
            "embedder/infer",
            {
                "inputs": [ids("input_ids", [[1] * 500] * 9)],
                "outputs": [{"name": "sequence_output"}],
            },
            413,
            "4500",
        ),
        ("tagger/infer", {"inputs": [ids("input_ids", [[1, 2]])]}, 400, "texts"),
        ("reader/infer", {"inputs": [text("a")]}, 400, "pair"),
    ],
)
def test_what_is_refused(server, path: str, body, status: int, word: str) -> None:
    found, answer, _ = server.post(f"/v2/models/{path}", body)
    assert (found, list(answer)) == (status, ["error"]), answer
    assert word in answer["error"]


def test_compressed_bodies_are_refused(server) -> None:
    status, body, _ = server.post(
        "/v2/models/embedder/infer", b"\x1f\x8b", {"content-encoding": "gzip"}
    )
    assert (status, "gzip" in body["error"]) == (400, True)


def test_a_text_that_is_cut(server, engines) -> None:
    long = text("sea " * 600)
    status, body, _ = infer(server, "embedder", long, outputs=[{"name": "result"}])
    assert status == 200 and json.loads(outputs(body)["result"]["data"][0])["truncated"]
    status, body, _ = infer(server, "embedder", long, parameters={"truncate": False})
    assert (status, "longer" in body["error"]) == (400, True)


def test_priority_timeout_and_prompt(server, engines) -> None:
    for priority in (0, 1, 11, 21, 1 << 32):
        status, body, _ = infer(
            server,
            "embedder",
            text(f"of priority {priority}"),
            parameters={"priority": priority, "timeout": 60_000_000},
        )
        assert status == 200, body
    status, body, _ = infer(server, "embedder", text("too late"), parameters={"timeout": 1})
    assert status == 504, body
    status, body, _ = infer(server, "embedder", text("sea"), parameters={"prompt": "query: "})
    vector = engines["embedder"].predict(["sea"], prompt="query: ")[0].vector
    np.testing.assert_array_equal(np.float32(outputs(body)["embedding"]["data"]), vector)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(0, None), (1, 10), (2, 9), (11, 0), (12, -1), (21, -10), (22, -10), (1 << 63, -10)],
)
def test_priorities_of_triton_are_ours(level: int, priority: int | None) -> None:
    call = SimpleNamespace(state=SimpleNamespace(settings=Settings({})))
    options = inference._options(call, inference.Asked({}, (), {"priority": level}, 2.0))
    assert (options.priority, options.deadline, options.truncate) == (priority, 2.0, True)


def test_times_are_the_shorter_one() -> None:
    call = SimpleNamespace(state=SimpleNamespace(settings=Settings({}, auto_truncate=False)))
    for timeout, seconds, deadline in ((0, None, None), (1_500_000, None, 1.5), (9_000_000, 2, 2)):
        options = inference._options(call, inference.Asked({}, (), {"timeout": timeout}, seconds))
        assert (options.deadline, options.truncate) == (deadline, False)


def test_the_tensors_of_other_tasks() -> None:
    def face(task: str, *outputs: str, **settings):
        class Model:
            pass

        model = Model()
        model.task, model.outputs, model.settings = task, outputs, settings
        return inference_models.face_of(model)

    def names(tells) -> list[str]:
        return [tell.name for tell in tells]

    found = face("next-sentence", "next_sentence_classifier_output", max_length=9)
    assert names(found.results) == ["is_next", "score", "result"]
    answer = inference._joined(found.results[0], [True, False])
    assert (answer.datatype, to_bytes(answer)) == ("BOOL", b"\1\0")
    found = face("fill-mask", "masked_lm_outputs", max_length=9)
    assert names(found.results) == ["result"] and found.results[0].usual and not found.raw
    for pooling in ("tokens", "words"):
        assert names(face("embedding", max_length=9, pooling=pooling).results) == ["result"]
    # Without a tokenizer there are no texts.
    assert names(face("embedding").inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    # Attention weights of a whole batch are too much.
    assert not face("embedding", "sequence_output", "attention_weights").raw


def test_what_a_model_has_done(server) -> None:
    def count() -> int:
        return server.get("/v2/models/ranker/stats")[1]["model_stats"][0]["inference_count"]

    before = count()
    infer(server, "ranker", text("the", "sea"), text("a", "b", name="text_pair"))
    assert count() == before + 2
    assert len(server.get("/v2/models/stats")[1]["model_stats"]) == 5


def test_keys_and_what_is_open(start, models) -> None:
    server = start(f"it={models['ranker']}", "--api-key", "secret")
    assert server.get("/v2/health/ready")[0] == 200
    for path in ("/v2", "/v2/models/it"):
        status, body, _ = server.get(path)
        assert (status, list(body)) == (401, ["error"])
        assert server.get(path, {"authorization": "Bearer secret"})[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_unloads_nothing(server, site: str) -> None:
    for what in ("load", "unload"):
        path = f"/v2/repository/models/ranker/{what}"
        status, body, _ = server.post(path, b"{}", {"sec-fetch-site": site})
        assert (status, "another site" in body["error"]) == (403, True)
    assert server.get("/v2/models/ranker/ready")[0] == 200
