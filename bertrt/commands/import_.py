"""``bertrt import``: a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bertrt.commands.options import add_out, add_settings, add_task
from bertrt.errors import InvalidInputError
from bertrt.tasks.settings import TASKS

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "import", help="a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle"
    )
    parser.add_argument("path", metavar="PATH", help="the directory, *.onnx or *-symbol.json")
    add_task(parser, TASKS)
    add_settings(parser, "pooling=cls or max_length=64")
    add_out(parser)
    parser.set_defaults(command=run)


def _listed(name: str, value: Any) -> Any:
    """A value as a shell has it: lists may be split by commas."""
    several = name in ("labels", "pooling") and isinstance(value, str) and "," in value
    return value.split(",") if several else value


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    if Path(arguments.path).is_dir():
        from bertrt.export.huggingface import import_huggingface

        bundle = import_huggingface(
            arguments.path,
            arguments.out,
            task=arguments.task,
            settings={name: _listed(name, value) for name, value in arguments.settings} or None,
        )
    else:
        from bertrt.export import import_graph

        if arguments.task is not None:
            raise InvalidInputError(
                f"--task {arguments.task}: a bare graph has no vocabulary to predict with; "
                "--task goes with a Hugging Face directory"
            )
        if arguments.settings:
            raise InvalidInputError(
                f"--set {arguments.settings[0][0]}: a bare graph has no vocabulary to predict "
                "with; --set goes with a Hugging Face directory"
            )
        bundle = import_graph(arguments.path, arguments.out)
    print(bundle)
    return 0
