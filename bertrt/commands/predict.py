"""``bertrt predict``: predictions for the arguments, or for each line of standard input."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from bertrt.commands.options import add_bundle, add_engine, add_json, to_json
from bertrt.errors import InvalidInputError

__all__ = ["add", "run"]


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
        done = truncated = 0
        try:
            for group in groups:
                for result in _results(engine, group, what, done):
                    print(to_json(_plain(result)) if arguments.json else _text(result))
                    truncated += result.truncated
                done += len(group)
                sys.stdout.flush()
        finally:
            if truncated:
                print(
                    f"bertrt: warning: {truncated} texts were cut to the model's "
                    f"{engine.max_length} tokens",
                    file=sys.stderr,
                )
    return 0


def _read_lines(stream: BinaryIO, read: Callable[[str], Any]) -> Iterator[list[Any]]:
    """What has arrived, in groups of whole lines: many at once from a file, and each at once from
    a person or program that waits for the answer."""
    number = 0
    for lines in _split_lines(stream):
        group: list[Any] = []
        for line in lines:
            number += 1
            try:
                group.append(read(line.removesuffix(b"\r").decode("utf-8")))
            except UnicodeDecodeError as error:
                # The lines before it get their answers.
                yield group
                raise InvalidInputError(f"line {number} is not UTF-8 ({error})") from None
        yield group


def _split_lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    rest = b""
    while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *lines, rest = (rest + data).split(b"\n")
        yield lines
    if rest:
        yield [rest]


def _input(text: str) -> str | tuple[str, str]:
    first, tab, second = text.partition("\t")
    return (first, second) if tab else text


def _results(engine: Any, group: list[Any], what: str, done: int) -> Iterator[Any]:
    """Results in order; where one input is bad, those before it come out, and the error names it
    by its number."""
    for _, part in itertools.groupby(group, key=type):
        batch = list(part)
        try:
            yield from engine.predict(batch)
        except InvalidInputError:
            for number, item in enumerate(batch, start=done + 1):
                try:
                    result = engine.predict(item)
                except InvalidInputError as error:
                    # It tells of the first of a batch of one, which is a line to who typed it.
                    where, message = f"{what} {number}", str(error)
                    if message.startswith("batch[0]"):
                        raise InvalidInputError(message.replace("batch[0]", where, 1)) from None
                    raise InvalidInputError(f"{where}: {message}") from None
                yield result
        done += len(batch)


def _plain(result: Any) -> Any:
    """A result as values that JSON has; what is None is left out."""
    if dataclasses.is_dataclass(result):
        values = ((field.name, getattr(result, field.name)) for field in dataclasses.fields(result))
        return {name: _plain(value) for name, value in values if value is not None}
    if isinstance(result, tuple):
        return [_plain(value) for value in result]
    return result.tolist() if hasattr(result, "tolist") else result


def _text(result: Any) -> str:
    """A result for people: a line of what it says and its score, with tabs between; for a result
    of several such lines an empty one at the end."""
    match type(result).__name__:
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
