"""``bertrt import``: a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bertrt.commands.options import add_out, add_task
from bertrt.errors import InvalidInputError
from bertrt.models.onnx.directory import find_onnx
from bertrt.tasks.settings import TASKS

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "import", help="a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle"
    )
    parser.add_argument("path", metavar="PATH", help="the directory, *.onnx or *-symbol.json")
    add_task(parser, TASKS)
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="of an .onnx file: the directory with its config.json and tokenizer; default: those "
        "beside it",
    )
    add_out(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    path = Path(arguments.path)
    if path.is_dir() and find_onnx(path) is None:
        from bertrt.export.huggingface import import_huggingface

        if arguments.tokenizer is not None:
            raise InvalidInputError(
                f"--tokenizer {arguments.tokenizer}: it goes with an ONNX file, and {path} has none"
            )
        bundle = import_huggingface(arguments.path, arguments.out, task=arguments.task)
    else:
        from bertrt.export import import_graph

        bundle = import_graph(
            arguments.path, arguments.out, task=arguments.task, tokenizer=arguments.tokenizer
        )
    print(bundle)
    return 0
