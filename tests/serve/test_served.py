"""A model at work: what waits together, what is taken back, and what is counted."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertrt import Batching, Engine
from bertrt.serve import served as module
from bertrt.serve.backlog import Backlog
from bertrt.serve.metrics import Metrics
from bertrt.serve.served import Served

LONG = 60


def serve(engine: Engine) -> Served:
    return Served("m", engine, 0, Metrics(list), Backlog(60))


def test_who_is_urgent_does_not_wait_with_an_equal_input(models, monkeypatch) -> None:
    engine = Engine.load(models["classifier"], batching=Batching(tokens=1))
    begun, go_on = threading.Event(), threading.Event()
    ran: list[list[int]] = []
    run = engine._predictor.run

    def wait(backend: Any, sequences: Any) -> Any:
        ran.extend(encoding.ids.tolist() for _, encoding in sequences)
        begun.set()
        assert go_on.wait(LONG)
        return run(backend, sequences)

    monkeypatch.setattr(engine._predictor, "run", wait)

    async def ask() -> None:
        served = serve(engine)
        asked = [asyncio.ensure_future(served.answer(["the sea"]))]
        await asyncio.to_thread(begun.wait, LONG)
        for text, priority in (("boats", 0), ("cafe", 0), ("cafe", 0), ("cafe", 9), ("cafe", 5)):
            asked.append(asyncio.ensure_future(served.answer([text], priority=priority)))
            await asyncio.sleep(0)
        # All of them are in line, tokenized.
        while sum(job.size for job in engine._routes._batcher._ready) < 3:
            await asyncio.sleep(0.001)
        go_on.set()
        answers = [one.whole() for one in await asyncio.gather(*asked)]
        assert answers[2] == answers[3] == answers[4] == answers[5]

    with engine:
        asyncio.run(ask())
        of = {text: engine.tokenize(text).ids.tolist() for text in ("the sea", "boats", "cafe")}
    assert ran == [of["the sea"], of["cafe"], of["boats"], of["cafe"]]


def test_vectors_that_nobody_waits_for_are_not_computed(engines, monkeypatch) -> None:
    engine = engines["embedder"]
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5)
    begun, go_on = threading.Event(), threading.Event()
    ran: list[int] = []
    run = Engine.run

    def wait(own: Engine, ids: Any, types: Any) -> Any:
        ran.append(len(ids))
        begun.set()
        assert go_on.wait(LONG)
        return run(own, ids, types)

    monkeypatch.setattr(Engine, "run", wait)

    async def ask() -> None:
        served = serve(engine)
        first = asyncio.ensure_future(served.token_vectors(["a b"] * 9, prompt=None, reason=None))
        await asyncio.to_thread(begun.wait, LONG)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(
            served.token_vectors(["a b", "a b c d", ""], prompt=None, reason=None)
        )
        # Its turn comes when what runs is over, and no sooner.
        await asyncio.sleep(0.05)
        assert ran == [1]
        go_on.set()
        found = await second
        assert ran == [1, 1, 1, 1] and found.tokens == [4, 6, 2]
        for text, rows in zip(("a b", "a b c d", ""), found.results, strict=True):
            alone = run(engine, engine.tokenize(text).ids[None])["sequence_output"][0]
            np.testing.assert_array_equal(rows, alone)

    asyncio.run(ask())


def test_what_goes_beside_the_queue_is_counted(server) -> None:
    def counted() -> list[float]:
        told = server.get("/v2/models/embedder/stats")[1]["model_stats"][0]
        text = server.get("/metrics")[1].decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        own = '{model="embedder"}'
        minute = server.get("/stats?model=embedder")[1]["minute"]
        return [
            told["inference_count"],
            told["inference_stats"]["compute_infer"]["count"],
            float(values.get(f"bertrt_tokens_total{own}", 0)),
            minute["tokens"],
        ]

    before = counted()
    ids = {"name": "input_ids", "datatype": "INT64", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
    mask = {**ids, "name": "attention_mask", "data": [1, 1, 1, 1, 1, 0]}
    body = {"inputs": [ids, mask], "outputs": [{"name": "sequence_output"}]}
    assert server.post("/v2/models/embedder/infer", body)[0] == 200
    after = counted()
    assert [now - then for now, then in zip(after[:3], before[:3], strict=True)] == [2, 1, 5]
    assert after[3] >= 5
    assert server.post("/embed_all", {"inputs": ["the boat"]})[0] == 200
    last = counted()
    assert [now - then for now, then in zip(last[:3], after[:3], strict=True)] == [1, 1, 4]


_TALKS = """
import logging
import warnings
from bertrt.serve.models import Models
load = Models._load
def _load(self, place):
    logging.getLogger("asyncio").error("a task's exception was never retrieved\\na text")
    logging.getLogger("another").warning("what another library says")
    warnings.warn("what is out of date")
    return load(self, place)
Models._load = _load
"""


def test_what_others_log_are_lines_of_json(start, models, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_TALKS)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    server = start(f"m={models['tagger']}", environment={"PYTHONPATH": path.rstrip(os.pathsep)})
    assert server.stop() == 0
    assert not server.noise
    told = json.dumps(server.log)
    for said in ("never retrieved", "another library", "out of date"):
        assert said in told
    assert "a text" not in told
