"""What compare.py has measured, as a page and a plot: `python report.py DIR` makes it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["write"]


def write(record: dict[str, Any], out: Path) -> None:
    """Write README.md and, where matplotlib is installed, report.png."""
    machine = record["machine"]
    lines = [
        "# The server beside others",
        "",
        f"{record['date']}, {machine['cpu']}, {machine['cores']} cores, which server and load "
        "generator share. all-MiniLM-L6-v2 in fp32, one text a request, `/v1/embeddings` with "
        "base64, connections that are kept. No cache (`--cache-mb 0`).",
        "",
        f"    {record['command']}",
        "",
        f"{record['rounds']} rounds of {record['seconds']:g} s for each server and point, one "
        "server at a time while the others are stopped, in turns. Callers wait for their answer "
        "before they ask again; at half load requests come at random times (Poisson), half as many "
        "a second as the server answered at most in the same round, and a time counts from when "
        "its request was due. Before the first round every answer was compared: bertrt's have the "
        "bits of `Engine.predict` for that text alone; the least cosine to them of the others was "
        + ", ".join(
            f"{value:.6f} ({name})"
            for name, value in record["compared"].items()
            if name != "bertrt"
        )
        + ". Load averages of the machine after each round: "
        + ", ".join(map(str, record["load_average"]))
        + " (a quiet machine has 2 to 4 here, of the measurement itself).",
        "",
    ]
    for name, found in record["workloads"].items():
        lines += [f"## {name}", "", *_table(found), "", *_verdicts(found), ""]
    if (out / "overload.json").exists():
        lines += _overload(json.loads((out / "overload.json").read_text()))
    lines += ["## Versions", ""]
    for name, versions in record["versions"].items():
        lines.append(f"- {name}: {', '.join(f'{key} {own}' for key, own in versions.items())}")
    lines += ["", *_plot(record, out)]
    (out / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def _servers(found: dict[str, Any]) -> list[str]:
    return [name for name in found if name != "engine"]


def _label(point: str) -> str:
    return {"half": "half load", "1": "1 caller"}.get(point, f"{point} callers")


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        "| | server | requests/s | p50 ms | p95 ms | p99 ms "
        "| CPU us a request: server | generator |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for point in found["bertrt"]:
        for name in _servers(found):
            own = found[name][point]
            times = " | ".join(f"{own[p]:.1f}" for p in ("p50", "p95", "p99"))
            lines.append(
                f"| {_label(point)} | {name} | {own['rate']:.0f} | {times} "
                f"| {own['server_cpu_us']:.0f} | {own['generator_cpu_us']:.0f} |"
            )
    engine = found["engine"]
    return [
        *lines,
        "",
        f"The engine alone, batches of 64 texts: {engine['rate']:.0f} texts/s, "
        f"{engine['rate_less_tokenization']:.0f} less tokenization.",
    ]


def _verdicts(found: dict[str, Any]) -> list[str]:
    own, engine = found["bertrt"], found["engine"]
    at_64 = own["64"]["rate"]
    lines = [
        f"- 64 callers: {at_64 / engine['rate_less_tokenization']:.1%} of the engine's own "
        f"throughput less tokenization, {at_64 / engine['rate']:.1%} with it (wanted: 90 %).",
    ]
    for name in _servers(found)[1:]:
        wanted = " (wanted: 4)" if name == "infinity" else ""
        lines.append(f"- 64 callers: {at_64 / found[name]['64']['rate']:.1f} times {name}{wanted}.")
    half, one = own["half"]["p99"], own["1"]
    lines.append(
        f"- p99 at half load: {half / one['p50']:.2f} times a single caller's median, "
        f"{half / one['p99']:.2f} times its p99 (wanted: below 3)."
    )
    return lines


def _overload(found: dict[str, Any]) -> list[str]:
    def times(name: str) -> str:
        own = found[name]
        return f"p50 {own['p50']:.1f}, p99 {own['p99']:.1f}, most {own['p100']:.1f} ms"

    statuses = found["statuses"]
    refused = sum(statuses.get(status, 0) for status in ("429", "503"))
    lost = sum(statuses.values()) - statuses.get("200", 0) - refused
    memory = found["memory_mb"]
    return [
        "## Overload",
        "",
        f"    {found['command']}",
        "",
        f"{found['sent_per_second']:.0f} requests a second for {found['seconds']:g} s at random "
        "times, "
        f"where 64 callers get {found['carried_per_second']:.0f}; `--wait-seconds "
        f"{found['wait_seconds']}`.",
        "",
        "| | |",
        "| --- | --- |",
        f"| answered | {statuses.get('200', 0)} ({found['answered_per_second']:.0f} a second), "
        f"{times('answered_ms')} |",
        f"| refused with 429 or 503 | {refused}, {found['retry_after']} of them with Retry-After, "
        f"{times('refused_ms')} |",
        f"| neither | {lost} |",
        f"| resident memory | {memory[0]:.0f} MB after 1 s, {max(memory):.0f} MB at most; the "
        f"second half's most is {found['memory_grows_mb']:+.1f} MB from the first half's |",
        f"| open files at most | {found['most_files']} |",
        f"| last answer | {found['last_answer_after']:.2f} s after the last request |",
        f"| a lone caller before | {times('alone_ms')} |",
        f"| a lone caller in the second after the last answer | {times('after_ms')} |",
        f"| SIGTERM while 64 callers ask | by status: {found['sigterm_statuses']}; no answer: "
        f"{found['sigterm_statuses'].get('-2', 0)}; exit status {found['sigterm_exit']} |",
        "",
    ]


def _plot(record: dict[str, Any], out: Path) -> list[str]:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return []
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (workload, found) in zip(axes, record["workloads"].items(), strict=True):
        for name in _servers(found):
            points = [found[name][point] for point in found[name] if point != "half"]
            (line,) = axis.plot(
                [own["rate"] for own in points], [own["p50"] for own in points], "o-", label=name
            )
            axis.plot(
                [own["rate"] for own in points],
                [own["p99"] for own in points],
                ":",
                color=line.get_color(),
            )
        axis.axvline(
            found["engine"]["rate_less_tokenization"], color="grey", lw=0.8, label="engine alone"
        )
        axis.set(title=workload, xlabel="requests/s", yscale="log", ylabel="ms: p50, p99 dotted")
        axis.legend(fontsize=8)
    figure.suptitle("1, 8, 64, 256 callers")
    figure.tight_layout()
    figure.savefig(out / "report.png", dpi=110)
    return ["![Throughput and latency](report.png)"]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    write(json.loads((directory / "report.json").read_text()), directory)
