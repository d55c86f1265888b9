"""The routes of text-embeddings-inference."""

from __future__ import annotations

import numpy as np
import pytest

LONG = "x " * 300


def unit(vector: np.ndarray) -> np.ndarray:
    wide = vector.astype(np.float64)
    return wide / np.linalg.norm(wide)


def as_model(name: str) -> dict[str, str]:
    return {"x-model": name}


def test_embed(server, engines) -> None:
    engine = engines["embedder"]
    texts = ["the boat", "Zürich \U0001f6a2", LONG]
    expected = [own.vector for own in map(engine.predict, texts)]
    status, body, headers = server.post("/embed", {"inputs": texts})
    assert status == 200
    np.testing.assert_array_equal(np.float32(body), expected)
    assert headers["x-compute-characters"] == str(sum(map(len, texts)))
    tokens = sum(len(one.ids) for one in engine.tokenize(texts))
    assert headers["x-compute-tokens"] == str(tokens)
    for name in ["compute", "total", "tokenization", "queue", "inference"]:
        assert headers[f"x-{name}-time"].isdecimal()
    # One text alone gives a list of one vector.
    np.testing.assert_array_equal(
        np.float32(server.post("/embed", {"inputs": texts[0]})[1]), expected[:1]
    )
    more = {"parameters": {"normalize": True}}
    np.testing.assert_array_equal(
        np.float32(server.post("/embed", {"inputs": texts[0], **more})[1]), expected[:1]
    )


def test_embed_without_the_models_normalisation(server, engines) -> None:
    pooled = engines["embedder"].with_settings({"normalize": False}).predict("the boat").vector
    assert abs(np.linalg.norm(pooled) - 1) > 0.5
    body = {"inputs": "the boat", "normalize": False}
    np.testing.assert_array_equal(np.float32(server.post("/embed", body)[1][0]), pooled)
    found = server.post("/embed", {**body, "dimensions": 5})[1][0]
    np.testing.assert_array_equal(np.float32(found), pooled[:5])
    found = server.post("/embed", {"inputs": "the boat", "dimensions": 5})[1][0]
    np.testing.assert_allclose(found, unit(pooled[:5]), rtol=3e-7)
    # What is kept of one is not an answer of the other.
    again = server.post("/embed", {"inputs": "the boat"})[1][0]
    np.testing.assert_array_equal(np.float32(again), engines["embedder"].predict("the boat").vector)


def test_embed_normalises_what_the_model_does_not(start, models, engines, tmp_path) -> None:
    import json
    import shutil

    plain = tmp_path / "plain"
    shutil.copytree(models["embedder"], plain)
    modules = json.loads((plain / "modules.json").read_text())
    kept = [module for module in modules if not module["type"].endswith("Normalize")]
    assert len(kept) < len(modules)
    (plain / "modules.json").write_text(json.dumps(kept))
    pooled = engines["embedder"].with_settings({"normalize": False}).predict("the boat").vector
    server = start(f"plain={plain}")
    found = server.post("/embed", {"inputs": "the boat", "normalize": False})[1][0]
    np.testing.assert_array_equal(np.float32(found), pooled)
    found = server.post("/embed", {"inputs": "the boat"})[1][0]
    np.testing.assert_allclose(found, unit(pooled), rtol=3e-7)


def test_embed_all(server, engines) -> None:
    engine = engines["embedder"]
    texts = ["the boat", "the boats on the sea"]
    status, body, headers = server.post("/embed_all", {"inputs": texts})
    assert status == 200, body
    for text, rows in zip(texts, body, strict=True):
        encoding = engine.tokenize(text)
        expected = engine.run([encoding.ids], [encoding.types])["sequence_output"][0]
        np.testing.assert_array_equal(np.float32(rows), expected)
    assert headers["x-compute-tokens"] == str(sum(map(len, body)))
    status, body, _ = server.post("/embed_all", {"inputs": LONG, "truncate": False})
    assert status == 422 and "256" in body["error"]
    status, body, _ = server.post("/embed_all", {"inputs": [LONG] * 100})
    assert status == 413 and "25600 tokens" in body["error"]


@pytest.mark.parametrize("side", ["left", "Left"])
def test_only_what_would_be_cut_on_another_side_is_refused(server, engines, side: str) -> None:
    body = {"inputs": ["short", LONG], "truncation_direction": side}
    status, found, _ = server.post("/embed", body)
    assert status == 422 and found["error_type"] == "Validation"
    assert "input[1]" in found["error"] and "right side" in found["error"]
    assert server.post("/embed", {**body, "inputs": "short"})[0] == 200
    assert server.post("/embed", {**body, "truncation_direction": "right"})[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "what"),
    [
        ("/embed", {"inputs": []}, 400, "Empty", "empty"),
        ("/embed", {"inputs": ["a", ""]}, 400, "Empty", "at 1"),
        ("/embed", {"inputs": [1, 2]}, 422, "Validation", "int"),
        ("/embed", {}, 422, "Validation", "inputs"),
        ("/embed", {"inputs": "a", "nonsense": 1}, 422, "Validation", "nonsense"),
        ("/embed", {"inputs": "a", "parameters": {"nonsense": 1}}, 422, "Validation", "nonsense"),
        ("/embed", {"inputs": "a", "parameters": {"normalize": 3}}, 422, "Validation", "bool"),
        ("/embed", {"inputs": LONG, "truncate": False}, 422, "Validation", "256"),
        ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "Validation", "query, document"),
        ("/embed", {"inputs": "a", "prompt_name": "query: "}, 422, "Validation", "no prompt"),
        ("/embed", {"inputs": "a", "dimensions": 385}, 422, "Validation", "384"),
        ("/embed", {"inputs": "a", "dimensions": 0}, 422, "Validation", "dimensions is 0"),
        ("/embed", {"inputs": "a\0"}, 422, "Validation", "NUL"),
        ("/embed", {"inputs": ["a"] * 2049}, 413, "Validation", "2049"),
        ("/embed", b"{", 400, "Validation", "JSON"),
        ("/embed_sparse", {"inputs": "a"}, 424, "Backend", "sparse"),
        ("/predict", {"inputs": ["a", "b", "c"]}, 422, "Validation", "3 texts"),
        ("/predict", {"inputs": []}, 400, "Empty", "empty"),
        ("/predict", {"inputs": [["a"], "b"]}, 422, "Validation", "mixes"),
        ("/predict", {"inputs": [["a"], []]}, 422, "Validation", "inputs[1] has 0"),
        ("/predict", {"inputs": "a", "batch": "a"}, 422, "Validation", "'inputs' and 'batch'"),
        ("/predict", {}, 422, "Validation", "'inputs', 'batch'"),
        ("/predict", {"inputs": "a", "raw_scores": True}, 422, "Validation", "embedding has none"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "Empty", ""),
        ("/tokenize", {"inputs": "x" * ((1 << 20) + 1)}, 413, "Validation", "characters"),
        ("/tokenize", {"inputs": "\0"}, 422, "Validation", "NUL"),
        ("/decode", {"ids": [30522]}, 422, "Validation", "30522"),
        ("/decode", {"ids": [[1], []]}, 400, "Empty", ""),
        ("/decode", {"ids": [[1], 2]}, 422, "Validation", "mixes"),
        ("/decode", {"ids": []}, 400, "Empty", ""),
    ],
)
def test_refusals(server, path: str, body: object, status: int, kind: str, what: str) -> None:
    found, answer, _ = server.post(path, body)
    assert (found, answer["error_type"]) == (status, kind), answer
    assert what in answer["error"]
    assert answer.keys() == {"error", "error_type"}


def test_a_model_of_another_kind(server) -> None:
    status, body, _ = server.post("/embed", {"inputs": "a"}, as_model("classifier"))
    assert status == 424 and body["error_type"] == "Backend"
    status, body, _ = server.post("/embed", {"inputs": "a"}, as_model("nobody"))
    assert status == 404 and "'nobody'" in body["error"]
    status, body, _ = server.post("/embed", b"a", {"content-type": "text/plain"})
    assert status == 415


def test_predict(server, engines) -> None:
    engine = engines["classifier"]
    logits = engine.with_settings({"activation": "identity"})

    def expected(model, item) -> list:
        scores = model.predict([item])[0].scores
        ranked = sorted(scores.items(), key=lambda one: -one[1])
        return [{"score": score, "label": label} for label, score in ranked]

    def ask(**body) -> object:
        return server.post("/predict", body, as_model("classifier"))[1]

    assert ask(inputs="the boat") == expected(engine, "the boat")
    assert ask(inputs=["the boat"]) == expected(engine, "the boat")
    pair = ("the boat", "the sea")
    assert ask(inputs=list(pair)) == expected(engine, pair)
    batch = [["boats"], ["the boat", "the sea"]]
    assert ask(inputs=batch) == [expected(engine, "boats"), expected(engine, pair)]
    raw = ask(inputs=batch, raw_scores=True)
    assert raw == [expected(logits, "boats"), expected(logits, pair)]
    (row,) = engine.predict_with_outputs(["boats"])[1][0]
    assert sorted(one["score"] for one in raw[0]) == sorted(row.tolist())
    # bertrt's own body, at the same path
    status, body, _ = server.post("/predict", {"batch": "boats"}, as_model("classifier"))
    assert status == 200 and body["results"][0]["scores"] == engine.predict("boats").scores


def test_predict_with_other_tasks(server, engines) -> None:
    body = {"inputs": [["the boat", "the sea"]], "raw_scores": True}
    ((found,),) = server.post("/predict", body, as_model("ranker"))[1]
    logits = engines["ranker"].with_settings({"activation": "identity"})
    assert found == {"score": logits.predict(("the boat", "the sea")).score, "label": "LABEL_0"}
    found = server.post("/predict", {"inputs": "the boat the sea"}, as_model("tagger"))[1]
    tagged = engines["tagger"].predict("the boat the sea")
    assert found == [
        {
            "entity_group": own.label,
            "score": own.score,
            "word": own.text,
            "start": own.start,
            "end": own.end,
        }
        for own in tagged.entities
    ]
    asked = {"question": "the boat", "context": "the sea the boats"}
    found = server.post("/predict", {"inputs": asked}, as_model("reader"))[1]
    answer = engines["reader"].predict(tuple(asked.values()))
    assert found == {
        "answer": answer.text,
        "score": answer.score,
        "start": answer.start,
        "end": answer.end,
    }


def test_similarity(server, engines) -> None:
    engine = engines["embedder"]
    inputs = {"source_sentence": "a boat", "sentences": ["a ship", "a tree", "a boat"]}
    status, body, _ = server.post("/similarity", {"inputs": inputs})
    assert status == 200
    source, *others = (unit(engine.predict(t).vector) for t in ["a boat", *inputs["sentences"]])
    np.testing.assert_allclose(body, [source @ other for other in others], rtol=3e-7)
    more = {"parameters": {"truncate": False, "prompt_name": "query"}}
    assert server.post("/similarity", {"inputs": inputs, **more})[1] == body
    inputs["sentences"][1] = LONG
    status, body, _ = server.post("/similarity", {"inputs": inputs, **more})
    assert status == 422 and "input[2]" in body["error"]


def test_tokenize_and_decode(server, engines) -> None:
    engine, text = engines["embedder"], "Zürich's boats, 蘇 \U0001f6a2 unbelievable " + LONG
    (found,) = server.post("/tokenize", {"inputs": text})[1]
    short = engine.tokenize(text[:40])
    assert [one["id"] for one in found][:10] == short.ids[:10].tolist()
    assert len(found) > 300  # nothing is cut
    assert (found[0]["text"], found[-1]["text"]) == ("[CLS]", "[SEP]")
    assert all(one["special"] and one["start"] is None for one in (found[0], found[-1]))
    for one in found[1:-1]:
        assert text[one["start"] : one["stop"]] == one["text"] and not one["special"]
    (bare,) = server.post("/tokenize", {"inputs": [text], "add_special_tokens": False})[1]
    assert bare == found[1:-1]
    ids = [one["id"] for one in server.post("/tokenize", {"inputs": "the boats, at sea"})[1][0]]
    assert server.post("/decode", {"ids": ids})[1] == ["the boats, at sea"]
    body = {"ids": [ids, ids[1:2]], "skip_special_tokens": False}
    assert server.post("/decode", body)[1] == ["[CLS] the boats, at sea [SEP]", "the"]


def test_all_vectors_of_a_text_wait_in_a_bounded_line(monkeypatch) -> None:
    import asyncio
    import threading
    from types import SimpleNamespace

    from bertrt.engine import Encoding
    from bertrt.serve import served as module
    from bertrt.serve.backlog import Backlog
    from bertrt.serve.metrics import Metrics
    from bertrt.serve.refusals import Refusal

    free = threading.Event()
    ids = np.array([1, 2], np.int32)

    def tokenize(texts: list[str], prompt: str | None) -> list[Encoding]:
        assert free.wait(60)
        return [Encoding(ids, ids * 0, False)] * len(texts)

    def run(ids: list, types: list) -> dict:
        return {"sequence_output": [np.zeros((2, 3), np.float32)] * len(ids)}

    monkeypatch.setattr(module, "_ASIDE", 2)
    engine = SimpleNamespace(tokenize=tokenize, run=run, settings={})
    served = module.Served("m", engine, 0, Metrics(lambda: []), Backlog(1.0))

    async def ask() -> None:
        under_way = [
            asyncio.ensure_future(served.token_vectors(["a"], prompt=None, reason=None))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="2 requests") as told:
            await served.token_vectors(["a"], prompt=None, reason=None)
        assert told.value.status == 429
        free.set()
        for answered in await asyncio.gather(*under_way):
            assert answered.tokens == [2] and answered.results[0].shape == (2, 3)
        assert (await served.token_vectors(["a"], prompt=None, reason=None)).tokens == [2]

    asyncio.run(ask())


def test_what_others_settings_run_is_counted(start, models) -> None:
    server = start(f"m={models['classifier']}", "--cache-mb", "0")
    body = {"inputs": "the boat"}
    tokens = int(server.post("/predict", body)[2]["x-compute-tokens"])
    server.post("/predict", {**body, "raw_scores": True})
    text = server.get("/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values['bertrt_batch_tokens_sum{model="m"}']) == 2 * tokens
    assert float(values['bertrt_batch_sequences_count{model="m"}']) == 2


def test_info(server, engines) -> None:
    info = server.get("/info")[1]
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["model_id"], info["max_input_length"]) == ("embedder", 256)
    assert info["max_batch_tokens"] == engines["embedder"].batch_tokens
    assert (info["model_dtype"], info["auto_truncate"]) == ("float32", True)
    found = server.get("/info", as_model("classifier"))[1]["model_type"]
    assert found["classifier"]["id2label"] == {"0": "bad", "1": "good"}
    assert "reranker" in server.get("/info", as_model("ranker"))[1]["model_type"]
    assert "tagging" in server.get("/info", as_model("tagger"))[1]["model_type"]


def test_the_models_own_task(server, engines) -> None:
    assert server.post("/", {"inputs": "a"})[1] == server.post("/embed", {"inputs": "a"})[1]
    inputs = {"source_sentence": "a boat", "sentences": ["a ship"]}
    expected = server.post("/similarity", {"inputs": inputs})[1]
    assert server.post("/", {"inputs": inputs})[1] == expected
    named = as_model("classifier")
    expected = server.post("/predict", {"inputs": "the sea"}, named)[1]
    assert server.post("/", {"inputs": "the sea"}, named)[1] == expected
    named = as_model("ranker")
    body = {"query": "the sea", "texts": ["the boat", "boats"]}
    assert server.post("/", body, named)[1] == server.post("/rerank", body)[1]
    assert "results" in server.post("/", {"batch": "a"})[1]
    assert server.post("/", {"input": "a"})[0] == 422
    assert server.post("/", b"[]")[0] in (400, 422)


@pytest.mark.parametrize("name", ["inputs", "parameters"])
def test_parameters_are_no_inputs(server, name: str) -> None:
    body = {"inputs": "a", "parameters": {name: "b"}}
    status, answer, _ = server.post("/embed", body)
    assert (status, f"hold `{name}`" in answer["error"]) == (422, True)
