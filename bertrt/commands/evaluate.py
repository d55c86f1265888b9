"""``bertrt evaluate``: the task's metric on labelled data, by backend and precision."""

from __future__ import annotations

import argparse
from typing import Any

from bertrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    add_bundle,
    add_data,
    add_device,
    add_json,
    add_task,
    to_json,
)
from bertrt.tasks.settings import PRESETS, SCORED

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "evaluate",
        help="the task's metric on labelled data, by backend and precision (extra 'evaluate')",
    )
    add_bundle(parser)
    add_task(parser, (*SCORED, *PRESETS))
    add_data(parser)
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        metavar="NAME",
        help=f"{', '.join(BACKENDS)}; default: all that are installed",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        metavar="NAME",
        help=f"{', '.join(PRECISIONS)}; default: all that each backend has",
    )
    parser.add_argument(
        "--reference",
        metavar="BUNDLE",
        help="a bundle to compare with, such as the one that BUNDLE was quantised from; default: "
        "BUNDLE",
    )
    add_device(parser)
    add_json(parser, "JSON")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.evaluation.run import evaluate

    report = evaluate(
        arguments.bundle,
        arguments.data,
        task=arguments.task,
        columns=arguments.columns,
        backends=arguments.backend,
        precisions=arguments.precision,
        reference=arguments.reference,
        device=arguments.device,
        threads=arguments.threads,
    )
    print(to_json(report.to_dict()) if arguments.json else report)
    return 0
