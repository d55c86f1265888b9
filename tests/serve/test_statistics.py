"""What /stats tells of the last minutes."""

from __future__ import annotations

import msgspec
import pytest

from bertrt.serve.statistics import SPAN, STEP, Recent


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


FIELDS = {"inputs": 2, "tokens": 10, "cached": 1, "queue_ms": 0.5, "execute_ms": 2.0}


def test_a_minute_and_its_percentiles() -> None:
    recent = Recent(Clock())
    for i in range(1000):
        recent.add("a", (i + 1) / 1000, True, FIELDS)
    recent.add("a", 5.0, False, {"inputs": 1})
    found = recent.minute(["a"])
    assert (found.requests, found.failed, found.inputs) == (1001, 1, 2001)
    assert (found.tokens, found.cached) == (10000, 1000)
    for value, expected in ((found.p50, 500), (found.p95, 950), (found.p99, 990)):
        assert value == pytest.approx(expected, rel=0.08)
    assert found.queue == pytest.approx(0.5, rel=0.01)
    assert found.execute == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-4, 99.9, 1e6])
def test_any_latency_has_a_place(seconds: float) -> None:
    recent = Recent(Clock())
    recent.add("a", seconds, True, FIELDS)
    found = recent.minute(["a"])
    assert found.p50 == found.p99
    assert found.p50 == pytest.approx(1e3 * min(max(seconds, 1e-4), 100.0), rel=0.16)


def test_models_together_and_alone() -> None:
    recent = Recent(Clock())
    recent.add("a", 0.001, True, FIELDS)
    recent.add("b", 1.0, True, FIELDS)
    assert recent.minute(["a", "b"]).requests == 2
    assert recent.minute(["b"]).p50 == pytest.approx(1000, rel=0.08)
    assert recent.minute(["c"]).requests == 0
    assert recent.minute(["c"]).p99 is None


def test_what_is_past_is_forgotten() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.add("a", 0.01, True, FIELDS)
    clock.now += 59
    assert recent.minute(["a"]).requests == 1
    clock.now += 1
    assert recent.minute(["a"]).requests == 0
    assert sum(recent.series(["a"]).requests) == pytest.approx(1 / STEP)
    # The ring's place of that second is another second's now, and what was there is gone.
    clock.now = 1000.0 + SPAN
    assert sum(recent.series(["a"]).requests) == 0
    recent.add("a", 0.01, True, FIELDS)
    assert recent.minute(["a"]).requests == 1


def test_a_series_has_a_value_a_step() -> None:
    clock = Clock()
    recent = Recent(clock)
    for second in range(30):
        clock.now = 1000.0 + second
        for _ in range(second // STEP):
            recent.add("a", 0.01, True, FIELDS)
    clock.now = 1029.999
    series = recent.series(["a"])
    for values in msgspec.structs.astuple(series):
        assert len(values) == SPAN // STEP
    assert series.requests[-6:] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.01)
    assert series.tokens[-6:] == pytest.approx([0, 10, 20, 30, 40, 50], abs=0.1)
    assert series.p50[-6] is None and series.p50[-5] == pytest.approx(10, rel=0.08)
    # What a value is of stays, while the step of now fills.
    clock.now = 1031.0
    assert recent.series(["a"]).requests[-7:-1] == [0, 1, 2, 3, 4, 5]


def test_stats_of_a_server(server) -> None:
    status, body, headers = server.get("/stats?model=classifier")
    assert status == 200 and headers["cache-control"] == "no-store"
    assert body["model"] == "classifier" and body["state"] == "ready"
    assert [model["name"] for model in body["models"]][:2] == ["embedder", "classifier"]
    assert server.post("/models/classifier/predict", {"batch": ["the boat", "the sea"]})[0] == 200
    assert server.post("/models/classifier/predict", {"batch": [["a", "b", "c"]]})[0] == 422
    # No model is found for these: they are nobody's.
    assert server.post("/models/classifier/predict", {"btach": "the boat"})[0] == 422
    assert server.post("/models/nobody/predict", {"batch": "the boat"})[0] == 404
    after = server.get("/stats")[1]
    assert after["under_way"] >= 1
    own = next(model for model in after["models"] if model["name"] == "classifier")
    assert own["minute"]["requests"] >= 2 and own["minute"]["failed"] >= 1
    assert own["batches"]["count"] >= 1
    assert sum(own["batches"]["by_tokens"].values()) == own["batches"]["count"]
    status, body, _ = server.get("/stats?model=nobody")
    assert status == 404 and "nobody" in body["error"]


def test_stats_want_the_key_and_stay_out_of_the_log(start, models) -> None:
    server = start(f"classifier={models['classifier']}", "--api-key", "right")
    assert server.get("/stats")[0] == 401
    assert server.get("/stats", {"authorization": "Bearer right"})[0] == 200
    assert server.stop() == 0
    assert [line for line in server.log if line.get("route") == "/stats"] == []
