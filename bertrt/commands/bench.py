"""``bertrt bench``: a model timed beside the peers that are installed."""

from __future__ import annotations

import argparse
import itertools
import re
from typing import Any

from bertrt.commands.options import add_bundle, add_json, positive, thread_count, to_json
from bertrt.errors import InvalidInputError

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "bench", help="time it beside the peers that are installed (extra 'bench')"
    )
    add_bundle(parser)
    parser.add_argument(
        "--engines",
        metavar="NAME[:PRECISION]",
        nargs="+",
        type=_engines,
        help="native, onnxruntime, openvino, ctranslate2, torch, inductor, zentorch, mxnet; "
        "default: all but inductor and zentorch, which compile for minutes",
    )
    parser.add_argument(
        "--workloads",
        metavar="NAME",
        nargs="+",
        choices=("latency", "throughput", "ragged", "texts"),
        help="latency, throughput, ragged, texts; default: all",
    )
    parser.add_argument(
        "--steps",
        metavar="BATCHxLENGTH",
        type=_shape,
        help="instead, where the native engine's time goes on a batch of this shape",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="only the engines in this precision, and native fp32; of --steps, default: fp32",
    )
    parser.add_argument("--texts", metavar="FILE", help="texts to run, too: one a line, UTF-8")
    parser.add_argument(
        "--threads", metavar="N", type=thread_count, help="default: the cores usable here"
    )
    parser.add_argument(
        "--repeats", metavar="N", type=positive, default=10, help="turns an engine; default: 10"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write the table, JSON and a plot there; must not exist"
    )
    add_json(parser, "JSON")
    parser.set_defaults(command=run, usage_error=parser.error)


def _engines(text: str) -> list[tuple[str, str]]:
    from bertrt.bench.engines import parse_engine

    try:
        return parse_engine(text)
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shape(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTH, such as 8x128")
    batch, length = map(int, text.split("x"))
    return batch, length


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.bench import bench
    from bertrt.bench.steps import steps
    from bertrt.bench.workloads import GROUPS, read_texts
    from bertrt.bench.write import output_directory, write_report

    if arguments.steps is not None:
        for name in ("engines", "workloads", "texts", "out"):
            if getattr(arguments, name) is not None:
                arguments.usage_error(f"--{name} does not go with --steps")
        batch, length = arguments.steps
        precision = arguments.precision or "fp32"
        print(steps(arguments.bundle, batch, length, precision, arguments.threads))
        return 0
    report = None
    try:
        with output_directory(arguments.out) as out:
            report = bench(
                arguments.bundle,
                _wanted(arguments.engines, arguments.precision),
                groups=arguments.workloads or GROUPS,
                texts=None if arguments.texts is None else read_texts(arguments.texts),
                threads=arguments.threads,
                repeats=arguments.repeats,
            )
            if out is not None:
                write_report(report, out)
    finally:
        # Of the two places, one may be full and the other not.
        if report is not None:
            print(to_json(report.to_dict()) if arguments.json else report)
    return 0


def _wanted(
    engines: list[list[tuple[str, str]]] | None, precision: str | None
) -> list[tuple[str, str]]:
    """The engines named, or the usual ones, in the precision."""
    from bertrt.bench.engines import DEFAULT_ENGINES

    names = DEFAULT_ENGINES if engines is None else itertools.chain(*engines)
    return [name for name in names if precision in (None, name[1])]
