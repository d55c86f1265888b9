"""``bertrt verify``: the backends beside the recorded outputs of the source framework."""

from __future__ import annotations

import argparse
from typing import Any

from bertrt.commands.options import add_bundle, add_engine, add_json, to_json

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "verify", help="compare the backends with the recorded outputs of the source framework"
    )
    add_bundle(parser)
    add_engine(parser, backend=None)
    add_json(parser, "JSON")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.evaluation.verify import verify

    report = verify(
        arguments.bundle,
        backends=None if arguments.backend is None else [arguments.backend],
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    print(to_json(report.to_dict()) if arguments.json else report)
    return 0 if report.ok else 1
