"""The server around its protocols: lives, limits, keys, models."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("embedder", ["a text", "another one"]),
        ("classifier", ["the boat", ["the boat", "the sea"]]),
        ("ranker", [["the boat", "the sea"]]),
        ("tagger", ["the boat the sea", ["the", "boat"]]),
        ("reader", [["the boat", "the sea the boats"]]),
    ],
)
def test_predict(server, engines, name: str, batch: list) -> None:
    status, body, _ = server.post(f"/models/{name}/predict", {"batch": batch})
    assert status == 200, body
    for item, found in zip(batch, body["results"], strict=True):
        item = tuple(item) if isinstance(item, list) and name != "tagger" else item
        expected = engines[name].predict([item])[0]
        if name == "embedder":
            np.testing.assert_array_equal(np.float32(found["vector"]), expected.vector)
        elif name == "classifier":
            assert found["scores"] == expected.scores
        elif name == "ranker":
            assert found["score"] == expected.score
        elif name == "tagger":
            assert (found["tags"], found["scores"]) == (list(expected.tags), list(expected.scores))
        else:
            assert (found["text"], found["score"]) == (expected.text, expected.score)
