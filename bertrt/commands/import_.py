"""``bertrt import``: a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bertrt.commands.options import add_out, add_settings, add_task
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
    add_settings(parser, "pooling=cls or max_length=64")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="of an .onnx file: the directory with its config.json and tokenizer; default: those "
        "beside it",
    )
    add_out(parser)
    parser.set_defaults(command=run)


def _listed(name: str, value: Any) -> Any:
    """A value as a shell has it: lists may be split by commas."""
    several = name in ("labels", "pooling") and isinstance(value, str) and "," in value
    return value.split(",") if several else value


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    path = Path(arguments.path)
    settings = {name: _listed(name, value) for name, value in arguments.settings} or None
    if path.is_dir() and find_onnx(path) is None:
        from bertrt.export.huggingface import import_huggingface

        if arguments.tokenizer is not None:
            raise InvalidInputError(
                f"--tokenizer {arguments.tokenizer}: it goes with an ONNX file, and {path} has none"
            )
        bundle = import_huggingface(
            arguments.path, arguments.out, task=arguments.task, settings=settings
        )
    else:
        from bertrt.export import import_graph

        bundle = import_graph(
            arguments.path,
            arguments.out,
            task=arguments.task,
            tokenizer=arguments.tokenizer,
            settings=settings,
        )
    print(bundle)
    return 0
