"""The command line: ``bertrt export | import | finetune | predict | verify | evaluate | ...``.

Exit status: 0 done; 1 the task failed, with one line on stderr; 2 wrong use, with one line too.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from bertrt.commands import (
    bench,
    evaluate,
    export,
    finetune,
    import_,
    inspect,
    predict,
    quantize,
    serve,
    verify,
)
from bertrt.errors import BertrtError, BertrtWarning, InvalidInputError, WriteError
from bertrt.host.writing import naming, write_error
from bertrt.version import __version__

__all__ = ["main"]

# In the order of --help.
_COMMANDS = (export, import_, finetune, predict, verify, evaluate, quantize, inspect, bench, serve)

_EXIT_FAILED = 1
_EXIT_USAGE = 2
# What a shell reports for a process that SIGINT, SIGPIPE or SIGTERM ended.
_EXIT_INTERRUPTED = 130
_EXIT_PIPE_CLOSED = 141
_EXIT_TERMINATED = 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None: the process's own.

    Returns:
        The exit status. Wrong use and --help raise SystemExit, as argparse does.
    """
    heard = sys.stdout is not None
    _fill_streams()
    try:
        with _terminable(), contextlib.redirect_stdout(_NamedStream(sys.stdout)):
            try:
                status = _run(argv, heard)
            except SystemExit as end:
                if not end.code:  # as of --help
                    sys.stdout.flush()
                raise
            # What waits to be printed fails here, and not in the interpreter's last breath. Where
            # the command has failed, that is what there is to say.
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except (BertrtError, ImportError, OSError) as error:
        # The reader has gone, as `head` does; nobody is left to tell.
        if isinstance(error, WriteError) and error.errno == errno.EPIPE:
            return _EXIT_PIPE_CLOSED
        message = " ".join(str(error).split())
        print(f"bertrt: error: {message}", file=sys.stderr)
        return _EXIT_FAILED
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # Python flushes stdout once more when it ends, and must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None, heard: bool) -> int:
    arguments = _parse(argv)
    if not heard:
        raise InvalidInputError("standard output is closed, and it is where the answer goes")
    with warnings.catch_warnings():
        warnings.showwarning = _showing(warnings.showwarning)
        status: int = arguments.command(arguments)
    return status


class _NamedStream:
    """Standard output, whose errors say that it is that, and come again when it is flushed:
    argparse passes over those of its help."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._error = error
            raise write_error("standard output", error) from error

    def flush(self) -> None:
        with naming("standard output"):
            if self._error is not None:
                raise self._error
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that what is half made is removed."""

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(_EXIT_TERMINATED)

    # Whoever calls main in a thread, or has a handler already, decides for himself.
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _showing(usual: Callable[..., None]) -> Callable[..., None]:
    """How warnings are shown: those of bertrt in one line, as its errors, all others as usual."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, BertrtWarning):
            print(f"bertrt: warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    return show


def _fill_streams() -> None:
    """Put the null device where the process was started without a standard stream: Python has None
    there, and the next file to be opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(_EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes `predict BUNDLE --json TEXT` for a bundle without texts, and leaves TEXT over.
    if rest and "texts" in arguments:
        if rest[0] == "--":
            arguments.texts += rest[1:]
            rest = []
        elif not any(word.startswith("-") and " " not in word for word in rest):
            arguments.texts += rest
            rest = []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bertrt", description="A small, compiled BERT inference runtime.")
    parser.add_argument("--version", action="version", version=f"bertrt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
