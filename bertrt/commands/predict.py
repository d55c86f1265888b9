"""``bertrt predict``: predictions for the arguments, or for each line of standard input."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from bertrt.commands.options import add_bundle, add_engine, add_json, to_json
from bertrt.errors import InvalidInputError
from bertrt.results import plain

__all__ = ["add", "run"]

# A stream without a line's end is not kept.
_LONGEST_LINE = 64 << 20


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "predict", help="predictions for the arguments, or for each line of standard input"
    )
    add_bundle(parser)
    parser.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        help="texts; a tab splits a pair, a question from its context; none: the lines of standard "
        "input",
    )
    add_engine(parser, backend="native")
    parser.add_argument(
        "--on-error",
        choices=("raise", "return"),
        default="raise",
        help="what becomes of a text that cannot be answered: raise (the default): stop there, "
        "with its number; return: say so in the place of its answer, and go on",
    )
    add_json(parser, "JSON lines")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.engine import Engine

    # Labels are Unicode whatever the locale says.
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    with Engine.load(
        arguments.bundle,
        backend=arguments.backend,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    ) as engine:
        # Words are tagged in one text, whose tabs are white space.
        read = str if engine.task == "tagging" else _input
        if arguments.texts:
            what = "text"
            groups = iter([[read(text) for text in arguments.texts]])
        else:
            what = "line"
            groups = _read_lines(sys.stdin.buffer, read)
        number = truncated = unanswered = 0
        try:
            for group in groups:
                for result in _results(engine, group):
                    number += 1
                    if isinstance(result, InvalidInputError):
                        result = _numbered(result, f"{what} {number}")
                        if arguments.on_error == "raise":
                            raise result
                        unanswered += 1
                    else:
                        truncated += result.truncated
                    if arguments.json:
                        print(to_json(_plain(result)))
                    else:
                        print(_text(result, engine.task))
                sys.stdout.flush()
        finally:
            if truncated:
                print(
                    f"bertrt: warning: {truncated} texts were cut to the model's "
                    f"{engine.max_length} tokens",
                    file=sys.stderr,
                )
    if unanswered:
        print(f"bertrt: error: {unanswered} {what}s cannot be answered", file=sys.stderr)
    return 1 if unanswered else 0


def _read_lines(stream: BinaryIO, read: Callable[[str], Any]) -> Iterator[list[Any]]:
    """What has arrived, in groups of whole lines: many at once from a file, and each at once from
    a person or program that waits for the answer. A line that is no text is an error among them."""
    for lines in _split_lines(stream):
        group: list[Any] = []
        for line in lines:
            if line is None:
                reason = f"has more than {_LONGEST_LINE} bytes"
                group.append(InvalidInputError(f"batch[0] {reason}"))
                continue
            try:
                group.append(read(line.removesuffix(b"\r").decode("utf-8")))
            except UnicodeDecodeError as error:
                group.append(InvalidInputError(f"batch[0] is not UTF-8 ({error})"))
        yield group


def _split_lines(stream: BinaryIO) -> Iterator[list[bytes | None]]:
    """The lines of a stream as they come; None in the place of one that is too long."""
    rest: list[bytes] = []
    length = 0
    while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
        first, *lines = data.split(b"\n")
        length += len(first)
        if length <= _LONGEST_LINE:
            rest.append(first)
        else:
            rest.clear()
        if not lines:
            continue
        *whole, last = lines
        yield [b"".join(rest) if length <= _LONGEST_LINE else None, *whole]
        rest, length = [last], len(last)
    if length:
        yield [b"".join(rest) if length <= _LONGEST_LINE else None]


def _input(text: str) -> str | tuple[str, str]:
    first, tab, second = text.partition("\t")
    return (first, second) if tab else text


def _results(engine: Any, group: list[Any]) -> Iterator[Any]:
    """Results in order, and errors in the places of what cannot be answered."""
    for kind, part in itertools.groupby(group, key=type):
        if kind is InvalidInputError:
            yield from part
        else:
            yield from engine.predict(list(part), on_error="return")


def _numbered(error: InvalidInputError, where: str) -> InvalidInputError:
    """The error of an input with what whoever typed it calls it, a line, in place of its index."""
    return InvalidInputError(re.sub(r"^batch\[\d+\]", where, str(error)))


def _plain(result: Any) -> Any:
    return {"error": str(result)} if isinstance(result, InvalidInputError) else plain(result)


def _text(result: Any, task: str | None) -> str:
    """A result for people: a line of what it says and its score, with tabs between; for a result
    of several such lines, and for an error in the place of one, an empty one at the end."""
    match type(result).__name__:
        case "InvalidInputError":
            end = "\n" if task in ("tagging", "fill-mask") else ""
            return f"error\t{' '.join(str(result).split())}{end}"
        case "Classification":
            return f"{result.label}\t{result.score:.6f}"
        case "Answer":
            return f"{result.text}\t{result.score:.6f}\t{result.start}\t{result.end}"
        case "Tagging":
            lines = [f"{word}\t{tag}" for word, tag in zip(result.words, result.tags, strict=True)]
            return "\n".join([*lines, ""])
        case "FillMask":
            lines = [f"{found.token}\t{found.score:.6f}" for found in result.candidates]
            return "\n".join([*lines, ""])
        case "NextSentence":
            return f"{'next' if result.is_next else 'not next'}\t{result.score:.6f}"
        case "Embedding" if result.tokens is None:
            return _numbers(result.vector)
        case "Embedding":
            rows = zip(result.tokens, result.vector, strict=True)
            return "\n".join([*(f"{token}\t{_numbers(row)}" for token, row in rows), ""])
        case _:
            return f"{result.score:.6f}"


def _numbers(vector: Any) -> str:
    return " ".join(f"{value:.6g}" for value in vector.tolist())
