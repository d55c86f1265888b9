"""A report as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertrt.bench.plot import import_pyplot, plot
from bertrt.bench.report import Report
from bertrt.host.paths import check_path
from bertrt.host.writing import write_text, writing_directory

__all__ = ["output_directory", "write_report"]


@contextmanager
def output_directory(path: str | None) -> Iterator[Path | None]:
    """A new directory for a report, begun at once, so that a place that cannot be is told before
    the engines run and not after; there when the block ends, and not when it raises. None for None.

    Raises:
        OutputExistsError: there is something at `path`.
        MissingFileError: the directory that it would lie in is missing.
        MissingDependencyError: matplotlib, which a report needs, is not installed.
        WriteError: the system refuses it.
    """
    if path is None:
        yield None
        return
    out = check_path("--out", path)
    import_pyplot()
    with writing_directory(out) as directory:
        yield directory


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and, where there is anything to draw, ``report.png``.
    Raises WriteError."""
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    write_text(out / "report.json", f"{text}\n")
    write_text(out / "report.md", f"{report}\n")
    plot(report, out / "report.png")
