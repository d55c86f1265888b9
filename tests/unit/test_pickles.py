"""What version 0.1.0 pickled, when every module stood elsewhere, loads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

import bertrt

TEXTS = json.loads((Path(__file__).parents[1] / "data" / "pickles.json").read_text("utf-8"))


def load(name: str, path: str = "") -> Any:
    return pickle.loads(TEXTS[name].replace("PATH", path).encode("latin-1"))


def test_an_engine(hugging) -> None:
    path = hugging.write()
    with load("engine", str(path)) as engine, bertrt.Engine.load(path) as own:
        assert isinstance(engine, bertrt.Engine) and engine.threads == 1
        text = "the boats"
        assert engine.predict(text).vector.tolist() == own.predict(text).vector.tolist()


def test_an_encoding() -> None:
    encoding = load("encoding")
    assert encoding.ids.tolist() == [101, 2168, 3793, 1012, 102]
    assert encoding.ids.dtype == np.int32 and not encoding.types.any()
    assert encoding.truncated is False


def test_results() -> None:
    results = load("results")
    assert all(type(result) is getattr(bertrt, type(result).__name__) for result in results)
    label, number, embedding, answer, tagging, fill, following = results
    assert (label.label, label.scores) == ("1", {"0": 0.25, "1": 0.75})
    assert number == bertrt.Regression(0.5, truncated=True)
    assert embedding.vector.dtype == np.float32 and embedding.vector.shape == (2,)
    assert answer.nbest == (bertrt.Span("a", 1.0, 0, 1),)
    assert tagging.entities == (bertrt.Entity("LOC", "Rome", 0, 4, 1.0),)
    assert fill.candidates[0].token == "the" and following.is_next


def test_errors() -> None:
    errors = load("errors")
    assert len(errors) == 9
    for error in errors:
        assert type(error) is getattr(bertrt, type(error).__name__)
        assert str(error) == f"a {type(error).__name__}"


def test_the_reader_of_data_sets_is_where_it_was() -> None:
    import bertrt.datasets
    from bertrt.evaluation import datasets

    assert bertrt.datasets.read_examples is datasets.read_examples
