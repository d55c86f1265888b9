"""The report as a picture: latency against length, throughput against batch, by precision."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bertrt.bench.engines import ENGINES
from bertrt.bench.report import Report, WorkloadReport
from bertrt.errors import MissingDependencyError
from bertrt.host.writing import write_bytes

__all__ = ["import_pyplot", "plot"]

_PALETTE = ("#c1121f", "#1d6996", "#5f4690", "#38a6a5", "#e17c05", "#94346e", "#0f8554", "#6b6b6b")
_COLORS = dict(zip(ENGINES, _PALETTE, strict=True))
_PRECISIONS = ("fp32", "bf16", "int8")
_FLOOR = "limit by the measured peaks"


def import_pyplot() -> Any:
    """matplotlib.pyplot, for files only.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            f"a plot needs the package matplotlib ({error}): pip install 'bertrt[bench]'"
        ) from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def plot(report: Report, file: Path) -> bool:
    """Write the picture, of the workloads that belong to the groups "latency" and "throughput".

    Returns:
        Whether there was anything to draw.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        WriteError: the system refuses the file.
    """
    pyplot = import_pyplot()
    rows = [
        (group, workloads)
        for group in ("latency", "throughput")
        if len(workloads := [w for w in report.workloads if group in w.groups]) > 1
    ]
    precisions = [p for p in _PRECISIONS if any(name[1] == p for name in report.engines)]
    if not rows:
        return False
    figure, grid = pyplot.subplots(
        len(rows),
        len(precisions),
        figsize=(4.2 * len(precisions), 3.7 * len(rows) + 1.0),
        squeeze=False,
        layout="constrained",
    )
    for row, (group, workloads) in zip(grid, rows, strict=True):
        for axes, precision in zip(row, precisions, strict=True):
            if group == "latency" and axes is not row[0]:
                axes.sharey(row[0])
            _draw(axes, report, group, workloads, precision)
        row[0].set_ylabel("median latency, ms" if group == "latency" else "tokens a second")
    handles = {
        line.get_label(): line for axes in grid.flat for line in axes.get_legend_handles_labels()[0]
    }
    order = [name for name in (*ENGINES, _FLOOR) if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=len(order),
        frameon=False,
    )
    facts = report.architecture
    figure.suptitle(
        f"BERT, {facts['layers']} layers, {facts['hidden']} wide; {report.cpu}, "
        f"{report.threads} threads, {report.peaks['isa']}",
        fontsize=11,
    )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)
    write_bytes(file, picture.getvalue())
    return True


def _draw(
    axes: Any, report: Report, group: str, workloads: list[WorkloadReport], precision: str
) -> None:
    throughput = group == "throughput"
    sizes = [w.seqs if throughput else w.tokens for w in workloads]
    for engine in ENGINES:
        points = [
            (size, _value(w, throughput, w.timings[engine, precision].p50))
            for size, w in zip(sizes, workloads, strict=True)
            if (engine, precision) in w.timings
        ]
        if points:
            ours = engine == "native"
            axes.plot(
                *zip(*points, strict=True),
                label=engine,
                color=_COLORS[engine],
                marker="o",
                markersize=4.5 if ours else 3.5,
                linewidth=2.4 if ours else 1.3,
                zorder=3 if ours else 2,
            )
    floors = [w.floor(precision, report.peaks) for w in workloads]
    values = [_value(w, throughput, seconds) for w, seconds in zip(workloads, floors, strict=True)]
    axes.plot(sizes, values, label=_FLOOR, color="#999999", linestyle="--", linewidth=1.0)
    axes.set_title(precision, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(
        f"sequences of {workloads[0].tokens // workloads[0].seqs} tokens in a batch"
        if throughput
        else "tokens of one sequence"
    )
    if throughput:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _value(workload: WorkloadReport, throughput: bool, seconds: float) -> float:
    return workload.tokens / seconds if throughput else seconds * 1e3
