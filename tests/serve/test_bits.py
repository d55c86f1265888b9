"""Every answer has the bits that `predict` gives for its text alone, whatever else is asked."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

CALLERS = 64
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "sang",
    "of",
    "boats",
    "at",
    "sea",
    "until",
    "morning",
    "came",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    random = np.random.default_rng(3)
    lengths = np.minimum(random.lognormal(2.5, 1, 240).astype(int) + 1, 300)
    return [" ".join(random.choice(WORDS, length)) + f" {i}" for i, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def alone(engines, texts) -> dict[str, np.ndarray]:
    return {text: engines["embedder"].predict(text).vector for text in texts}


def vectors(body, route: str) -> list[np.ndarray]:
    if route == "/v1/embeddings":
        found = [base64.b64decode(item["embedding"]) for item in body["data"]]
        return [np.frombuffer(data, "<f4") for data in found]
    if route == "/embed":
        return [np.float32(vector) for vector in body]
    return [np.float32(result["vector"]) for result in body["results"]]


def body_of(route: str, texts: list[str]) -> dict:
    if route == "/v1/embeddings":
        return {"model": "embedder", "input": texts, "encoding_format": "base64"}
    return {"inputs": texts} if route == "/embed" else {"batch": texts}


def test_many_callers(server, texts, alone) -> None:
    """On every road to a vector, among callers with deadlines, priorities, and those that leave."""
    routes = ("/models/embedder/predict", "/v1/embeddings", "/embed")
    stop = threading.Event()

    def leave(number: int) -> None:
        """A client that goes away, over and over, before it is answered."""
        random = np.random.default_rng(1000 + number)
        while not stop.is_set():
            body = json.dumps({"batch": [str(x) for x in random.choice(texts, 8)]}).encode()
            head = "POST /models/embedder/predict HTTP/1.1\r\nhost: a\r\ncontent-length: "
            with server.socket() as connection:
                connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
                stop.wait(random.random() / 50)

    def ask(number: int) -> list[int]:
        random = np.random.default_rng(number)
        statuses = []
        for _ in range(6):
            route = routes[int(random.integers(len(routes)))]
            mine = [str(text) for text in random.choice(texts, int(random.integers(1, 9)))]
            headers = {"x-priority": str(random.integers(-3, 4)), "x-model": "embedder"}
            if random.random() < 0.3:
                headers["x-timeout"] = f"{random.random() / 5:.4f}"
            status, body, _ = server.post(route, body_of(route, mine), headers)
            statuses.append(status)
            if status == 200:
                for text, vector in zip(mine, vectors(body, route), strict=True):
                    np.testing.assert_array_equal(vector, alone[text])
            else:
                assert status == 504 and "x-timeout" in headers, body
        return statuses

    leaving = [threading.Thread(target=leave, args=(i,)) for i in range(4)]
    for thread in leaving:
        thread.start()
    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            statuses = [status for some in pool.map(ask, range(CALLERS)) for status in some]
    finally:
        stop.set()
        for thread in leaving:
            thread.join()
    assert statuses.count(200) > len(statuses) / 2
