"""``bertrt quantize``: a bundle in int8, bf16 or fp8, and what that costs on a task."""

from __future__ import annotations

import argparse
from typing import Any

from bertrt.commands.options import (
    add_columns,
    add_device,
    add_json,
    add_out,
    add_task,
    bound,
    to_json,
)
from bertrt.tasks.settings import PRESETS, SCORED

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "quantize", help="a bundle in int8, bf16 or fp8, and what that costs on a task"
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's directory")
    parser.add_argument("--precision", required=True, choices=("int8", "bf16", "fp8"))
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="data to measure on: of the --task, or texts, one a line, a tab between those of a "
        "pair; default: nothing is measured",
    )
    add_task(parser, (*SCORED, *PRESETS))
    add_columns(parser)
    parser.add_argument(
        "--max-loss",
        metavar="POINTS",
        type=bound,
        help="points of the task's metric that may be lost; steps that cost more stay in bf16 or "
        "fp32",
    )
    parser.add_argument(
        "--max-error",
        metavar="LOGIT",
        type=bound,
        help="the largest difference that a logit may have from fp32; likewise",
    )
    parser.add_argument(
        "--smooth",
        action="store_true",
        help="move outliers of activations into the weights, where that helps",
    )
    add_out(parser)
    add_device(parser)
    add_json(parser, "JSON")
    parser.set_defaults(command=run, usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.evaluation.quantize import quantize

    if arguments.calibrate is None:
        for name in ("task", "columns", "max_loss", "max_error", "smooth"):
            value = getattr(arguments, name)
            if value is not None and value is not False:
                option = name.replace("_", "-")
                arguments.usage_error(f"--{option} can only go with --calibrate")
    report = quantize(
        arguments.bundle,
        arguments.out,
        precision=arguments.precision,
        calibrate=arguments.calibrate,
        task=arguments.task,
        columns=arguments.columns,
        max_loss=arguments.max_loss,
        max_error=arguments.max_error,
        smooth=arguments.smooth,
        threads=arguments.threads,
        device=arguments.device,
    )
    print(to_json(report.to_dict()) if arguments.json else report)
    return 0
