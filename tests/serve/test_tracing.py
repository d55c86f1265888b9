"""Spans of OpenTelemetry: below the client's, with what a request went through, and no text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("httpx")
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from bertrt.serve.app import make_app
from bertrt.serve.served import Served
from bertrt.serve.settings import Settings

PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{PARENT[0]}-{PARENT[1]}-01"}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Where all spans of the process go."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture(scope="module")
def client(models: Any, exporter: Any) -> Iterator[TestClient]:
    app = make_app(Settings({"m": models["classifier"]}))
    with TestClient(app) as made:
        while made.get("/health/ready").status_code != 200:
            pass
        yield made


def spans(exporter: InMemorySpanExporter) -> dict[str, Any]:
    found = {own.name: own for own in exporter.get_finished_spans()}
    return found


def test_a_request_is_a_span_below_the_clients(client, exporter) -> None:
    exporter.clear()
    answer = client.post("/models/m/predict", json={"batch": ["the boat"]}, headers=TRACEPARENT)
    assert answer.status_code == 200
    found = spans(exporter)
    request = found["POST /models/{model}/predict"]
    assert f"{request.context.trace_id:032x}" == PARENT[0]
    assert f"{request.parent.span_id:016x}" == PARENT[1]
    assert request.kind is trace.SpanKind.SERVER
    assert request.attributes["http.response.status_code"] == 200
    own = found["bertrt.answer"]
    assert own.parent.span_id == request.context.span_id
    assert dict(own.attributes) == {
        "bertrt.model": "m",
        "bertrt.inputs": 1,
        "bertrt.tokens": answer.json()["tokens"],
        "bertrt.cached": 0,
    }
    stages = [found[name] for name in ("tokenize", "queue", "execute")]
    assert all(stage.parent.span_id == own.context.span_id for stage in stages)
    for stage, after in pairwise(stages):
        assert stage.start_time <= stage.end_time == after.start_time


def test_a_request_without_a_parent_begins_a_trace(client, exporter) -> None:
    exporter.clear()
    client.post("/models/m/predict", json={"batch": ["the sea"]})
    assert spans(exporter)["POST /models/{model}/predict"].parent is None


def test_a_fault_is_told_without_its_message(client, exporter, monkeypatch) -> None:
    async def fail(self: Any, inputs: Any, **more: Any) -> None:
        raise ValueError(f"what was sent: {inputs}")

    monkeypatch.setattr(Served, "answer", fail)
    exporter.clear()
    answer = client.post("/models/m/predict", json={"batch": ["a secret"]}, headers=TRACEPARENT)
    assert answer.status_code == 500
    found = spans(exporter)
    request = found["POST /models/{model}/predict"]
    assert request.status.status_code is trace.StatusCode.ERROR
    assert all("secret" not in own.to_json() for own in found.values())
