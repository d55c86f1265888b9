"""A report as files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertrt.bench.plot import import_pyplot, plot
from bertrt.bench.report import Report
from bertrt.errors import MissingFileError, OutputExistsError
from bertrt.host.paths import check_path

__all__ = ["output_directory", "write_report"]


@contextmanager
def output_directory(path: str | None) -> Iterator[Path | None]:
    """A new directory for a report, made at once, so that a place that cannot be is told before the
    engines run and not after; removed where nothing was written. None for None.

    Raises:
        OutputExistsError: there is something at `path`.
        MissingFileError: the directory that it would lie in is missing.
        MissingDependencyError: matplotlib, which a report needs, is not installed.
    """
    if path is None:
        yield None
        return
    out = check_path("--out", path)
    import_pyplot()
    try:
        out.mkdir()
    except FileExistsError:
        raise OutputExistsError(f"{out} exists already; name another place") from None
    except FileNotFoundError:
        raise MissingFileError(f"{out.parent}: there is no such directory") from None
    try:
        yield out
    finally:
        if not any(out.iterdir()):
            out.rmdir()


def write_report(report: Report, out: Path) -> None:
    """Write ``report.json``, ``report.md`` and, where there is anything to draw, ``report.png``."""
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    (out / "report.json").write_text(f"{text}\n", "utf-8")
    (out / "report.md").write_text(f"{report}\n", "utf-8")
    plot(report, out / "report.png")
