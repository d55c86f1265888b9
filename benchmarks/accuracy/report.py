"""Evaluates the bundles of train.py in every backend and precision, and pools what it finds.

    python benchmarks/accuracy/report.py DATA BUNDLES RESULTS

DATA and BUNDLES are those of train.py. RESULTS gets a JSON file for each bundle that is there, the
report of ``bertrt evaluate``; one that is there already is kept. report.md is made of all of them.

The bundles of the five tasks of GLUE are also quantised to int8 with a bound on the logit error, on
rows of their training data, as BUNDLES/mrpc.int8 and so on.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from bertrt.evaluation.metrics import metrics_of
from bertrt.evaluation.quantize import quantize
from bertrt.evaluation.run import Report, evaluate
from bertrt.host.writing import write_bytes, write_text

# Bundle, task, file: in DATA, or beside the bundles where train.py made it.
TASKS = {
    "mrpc": ("MRPC", "mrpc/dev.even.tsv"),
    "rte": ("RTE", "rte/dev.even.tsv"),
    "sst-2": ("SST", "sst-2/dev.even.tsv"),
    "cola": ("CoLA", "cola/dev.even.tsv"),
    "sts-b": ("STS-B", "sts-b.150.tsv"),
    "squad": ("question-answering", "squad.dev.json"),
    "conll": ("tagging", "conll2003/eng.testa.part-a"),
}
# The tasks that are pooled (heads over tokens are shown beside them): their training data, and how
# many lines of header these have.
TRAINING = {
    "mrpc": ("mrpc/train.tsv", 1),
    "rte": ("rte/train.tsv", 1),
    "sst-2": ("sst-2/train.tsv", 1),
    "cola": ("cola/train.tsv", 0),
    "sts-b": ("sts-b.600.tsv", 0),
}
CALIBRATION_ROWS = 128
MAX_ERROR = 0.1

GLUON, NATIVE, QUANTISED = ("mxnet", "fp32"), ("native", "fp32"), ("quantised", "int8")
COLUMNS = {
    GLUON: "Gluon fp32",
    NATIVE: "native fp32",
    ("onnxruntime", "fp32"): "onnxruntime fp32",
    ("native", "bf16"): "native bf16",
    ("native", "int8"): "native int8",
    QUANTISED: f"int8, logits within {MAX_ERROR}",
}
# Points below Gluon in fp32, over all tasks; and rows that a task may lose on balance.
MOST_POINTS = {("native", "bf16"): 0.2, ("native", "int8"): 0.5, QUANTISED: 0.5}
MOST_ROWS = 2

Rows = dict[tuple[str, str], dict[str, Any]]


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit("usage: python benchmarks/accuracy/report.py DATA BUNDLES RESULTS")
    data, bundles, results = map(Path, sys.argv[1:])
    results.mkdir(parents=True, exist_ok=True)
    reports: dict[str, dict[str, Any]] = {}
    rows: dict[str, Rows] = {}
    for name, (task, file) in TASKS.items():
        bundle = bundles / name
        path = results / f"{name}.json"
        if not path.exists():
            if not bundle.exists():
                print(f"{name}: {bundle} is not there")
                continue
            write(path, evaluate(bundle, place(file, bundles, data), task=task))
        reports[name] = json.loads(path.read_text("utf-8"))
        rows[name] = {(row["backend"], row["precision"]): row for row in reports[name]["rows"]}
        if name not in TRAINING:
            continue
        path = results / f"{name}.int8.json"
        if not path.exists():
            report = evaluate(
                quantised(name, bundles, data),
                place(file, bundles, data),
                task=task,
                reference=bundle,
            )
            write(path, report)
        rows[name][QUANTISED] = json.loads(path.read_text("utf-8"))["rows"][-1]
    text = tables(reports, rows)
    write_text(results / "report.md", text)
    print(text)


def place(file: str, bundles: Path, data: Path) -> Path:
    """Where a file lies: beside the bundles, or in the data."""
    return bundles / file if (bundles / file).exists() else data / file


def write(path: Path, report: Report) -> None:
    print(report, flush=True)
    write_text(path, json.dumps(report.to_dict(), indent=1) + "\n")


def quantised(name: str, bundles: Path, data: Path) -> Path:
    """The bundle in int8, made where it is not there yet."""
    out = bundles / f"{name}.int8"
    if not out.exists():
        file, header = TRAINING[name]
        calibration = bundles / f"{name}.calibration.tsv"
        with open(place(file, bundles, data), "rb") as training:
            lines = itertools.islice(training, header + CALIBRATION_ROWS)
            write_bytes(calibration, b"".join(lines))
        print(
            quantize(
                bundles / name,
                out,
                precision="int8",
                calibrate=calibration,
                task=TASKS[name][0],
                max_error=MAX_ERROR,
            ),
            flush=True,
        )
    return out


def tables(reports: dict[str, dict[str, Any]], rows: dict[str, Rows]) -> str:
    """The report: scores, what changes, and the goals."""
    lines = ["## Scores", ""]
    lines += header("task", "metric", "examples", *COLUMNS.values())
    for name, report in reports.items():
        for metric in metrics_of(report["task"]):
            scores = [
                f"{rows[name][column]['scores'][metric]:.2f}" if column in rows[name] else "-"
                for column in COLUMNS
            ]
            lines.append(line(name, metric, report["data"]["examples"], *scores))
    pooled = [name for name in TRAINING if name in rows]
    counted = [name for name in pooled if rows[name][GLUON]["right"] is not None]
    total = sum(reports[name]["data"]["examples"] for name in counted)
    means, shares = {}, {}
    for column in COLUMNS:
        firsts = [
            rows[name][column]["scores"][metrics_of(reports[name]["task"])[0]] for name in pooled
        ]
        means[column] = sum(firsts) / len(firsts)
        shares[column] = 100 * sum(rows[name][column]["right"] for name in counted) / total
    what = f"mean of the first metrics of {len(pooled)} tasks"
    lines.append(line("pooled", what, "", *(f"{means[own]:.2f}" for own in COLUMNS)))
    what = "right, of all examples with labels"
    lines.append(line("pooled", what, total, *(f"{shares[own]:.2f}" for own in COLUMNS)))

    lines += ["", "## Against Gluon in fp32, example by example", ""]
    lines += header("task", "", "differ", "lost", "gained", "logits: largest difference", "mean")
    for name in reports:
        for column, title in COLUMNS.items():
            if column in rows[name] and column != GLUON:
                row = rows[name][column]
                counts = [row[key] for key in ("differ", "lost", "gained")]
                logits = [f"{row[key]:.1e}" for key in ("largest", "mean")]
                cells = ["-" if count is None else count for count in counts]
                lines.append(line(name, title, *cells, *logits))

    lines += ["", "## Goals", ""]
    differ = {name: rows[name][NATIVE]["differ"] for name in rows}
    lines.append(goal("native fp32 predicts what Gluon does", not any(differ.values()), differ))
    for column, most in MOST_POINTS.items():
        for what, points in (("mean of metrics", means), ("examples", shares)):
            below = points[GLUON] - points[column]
            text = f"{COLUMNS[column]}: at most {most} points below, {what} pooled"
            lines.append(goal(text, below <= most, f"{below:.2f}"))
        balance = {
            name: own[column]["lost"] - own[column]["gained"]
            for name, own in rows.items()
            if column in own and own[column]["lost"] is not None
        }
        text = f"{COLUMNS[column]}: no task loses more than {MOST_ROWS} examples on balance"
        lines.append(goal(text, all(lost <= MOST_ROWS for lost in balance.values()), balance))
    machines = sorted({report["machine"]["cpu"] for report in reports.values()})
    lines += ["", f"On: {', '.join(machines)}."]
    return "\n".join(lines) + "\n"


def goal(text: str, met: bool, found: Any) -> str:
    if isinstance(found, dict):
        found = ", ".join(f"{name} {value}" for name, value in found.items())
    return f"- {'met' if met else '**missed**'}: {text} ({found})"


def header(*cells: str) -> list[str]:
    return [line(*cells), line(*("---" for _ in cells))]


def line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
