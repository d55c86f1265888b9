"""Writes pickles.json: what bertrt 0.1.0 pickled, for newer versions to load.

Run once, by that version, with a bundle of all-MiniLM-L6-v2 (`make demo` makes one)::

    python tests/data/make_pickles.py build/minilm tests/data/pickles.json

Protocol 0 is text, in which a test can put another path for the engine's.
"""

from __future__ import annotations

import json
import pickle
import sys

import bertrt
from bertrt import Engine
from bertrt.results import (
    Answer,
    Candidate,
    Classification,
    Embedding,
    Entity,
    FillMask,
    NextSentence,
    Regression,
    Span,
    Tagging,
)


def main() -> None:
    path, out = sys.argv[1:]
    assert bertrt.__version__ == "0.1.0"
    with Engine.load(path, threads=1) as engine:
        vector = engine.predict("Same text.").vector[:2]
        values = {
            "engine": engine,
            "encoding": engine.tokenize("Same text."),
            "results": [
                Classification("1", 0.75, {"0": 0.25, "1": 0.75}),
                Regression(0.5, truncated=True),
                Embedding(vector, False, None),
                Answer("a", 1.0, 0, 1, (Span("a", 1.0, 0, 1),)),
                Tagging(("Rome",), ("S-LOC",), (1.0,), (Entity("LOC", "Rome", 0, 4, 1.0),)),
                FillMask((Candidate("the", 0.5, 0),)),
                NextSentence(True, 0.75),
            ],
            "errors": [
                kind(f"a {name}")
                for name, kind in vars(bertrt).items()
                if isinstance(kind, type) and issubclass(kind, Exception)
            ],
        }
        texts = {name: pickle.dumps(value, 0).decode("latin-1") for name, value in values.items()}
        texts["engine"] = texts["engine"].replace(engine._arguments["path"], "PATH")
    with open(out, "w", encoding="utf-8") as file:
        json.dump(texts, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
