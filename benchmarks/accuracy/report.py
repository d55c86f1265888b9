"""Evaluates the bundles of train.py in every backend and precision, and pools what it finds.

    python benchmarks/accuracy/report.py DATA BUNDLES RESULTS

DATA and BUNDLES are those of train.py. RESULTS gets a JSON file for each bundle that is there, the
report of ``bertrt evaluate``; one that is there already is kept. report.md is made of all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bertrt.evaluation import evaluate
from bertrt.metrics import metrics_of

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
# Those of which examples are pooled; heads over tokens are shown beside them.
POOLED = ("mrpc", "rte", "sst-2", "cola", "sts-b")
COLUMNS = (
    ("mxnet", "fp32"),
    ("native", "fp32"),
    ("onnxruntime", "fp32"),
    ("native", "bf16"),
    ("native", "int8"),
)
# Points below Gluon in fp32, over all tasks; and rows that a task may lose on balance.
MOST_POINTS = {"bf16": 0.2, "int8": 0.5}
MOST_ROWS = 2


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit("usage: python benchmarks/accuracy/report.py DATA BUNDLES RESULTS")
    data, bundles, results = map(Path, sys.argv[1:])
    results.mkdir(parents=True, exist_ok=True)
    reports: dict[str, dict[str, Any]] = {}
    for name, (task, file) in TASKS.items():
        path = results / f"{name}.json"
        if not path.exists():
            if not (bundles / name).exists():
                print(f"{name}: {bundles / name} is not there")
                continue
            place = bundles if (bundles / file).exists() else data
            report = evaluate(bundles / name, place / file, task=task)
            print(report, flush=True)
            path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", "utf-8")
        reports[name] = json.loads(path.read_text("utf-8"))
    text = tables(reports)
    (results / "report.md").write_text(text, "utf-8")
    print(text)


def tables(reports: dict[str, dict[str, Any]]) -> str:
    """The report: scores, what changes, and the goals."""
    rows = {
        name: {(row["backend"], row["precision"]): row for row in report["rows"]}
        for name, report in reports.items()
    }
    titles = [f"{'Gluon' if backend == 'mxnet' else backend} {kind}" for backend, kind in COLUMNS]
    lines = ["## Scores", ""]
    lines += header("task", "metric", "examples", *titles)
    for name, report in reports.items():
        for metric in metrics_of(report["task"]):
            scores = [f"{rows[name][column]['scores'][metric]:.2f}" for column in COLUMNS]
            lines.append(line(name, metric, report["data"]["examples"], *scores))
    pooled = [name for name in POOLED if name in rows]
    counted = [name for name in pooled if rows[name]["mxnet", "fp32"]["right"] is not None]
    total = sum(reports[name]["data"]["examples"] for name in counted)
    means = {
        column: sum(
            rows[name][column]["scores"][metrics_of(reports[name]["task"])[0]] for name in pooled
        )
        / len(pooled)
        for column in COLUMNS
        if pooled
    }
    shares = {
        column: 100 * sum(rows[name][column]["right"] for name in counted) / total
        for column in COLUMNS
        if counted
    }
    for what, count, points in (
        (f"mean of the first metrics of {len(pooled)} tasks", "", means),
        ("right, of all examples with labels", total, shares),
    ):
        if points:
            lines.append(line("pooled", what, count, *(f"{points[own]:.2f}" for own in COLUMNS)))

    lines += ["", "## Against Gluon in fp32, example by example", ""]
    lines += header("task", "", "differ", "lost", "gained", "logits: largest difference", "mean")
    for name in reports:
        for column, title in zip(COLUMNS, titles, strict=True):
            row = rows[name][column]
            counts = ["-" if row[key] is None else row[key] for key in ("differ", "lost", "gained")]
            logits = [f"{row[key]:.1e}" for key in ("largest", "mean")]
            lines.append(line(name, title, *counts, *logits))

    lines += ["", "## Goals", ""]
    reference = ("mxnet", "fp32")
    differ = {name: rows[name]["native", "fp32"]["differ"] for name in rows}
    lines.append(goal("native fp32 predicts what Gluon does", not any(differ.values()), differ))
    for precision, most in MOST_POINTS.items():
        column = ("native", precision)
        for what, points in (("mean of metrics", means), ("examples", shares)):
            if points:
                below = points[reference] - points[column]
                lines.append(
                    goal(
                        f"native {precision}: at most {most} points below, {what} pooled",
                        below <= most,
                        f"{below:.2f}",
                    )
                )
        balance = {
            name: row["lost"] - row["gained"]
            for name in rows
            if (row := rows[name][column])["lost"] is not None
        }
        lines.append(
            goal(
                f"native {precision}: no task loses more than {MOST_ROWS} examples on balance",
                all(lost <= MOST_ROWS for lost in balance.values()),
                balance,
            )
        )
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
