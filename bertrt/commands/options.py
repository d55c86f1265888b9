"""Options and types of values that several commands share, and the JSON that they print."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from bertrt.host.cores import MAX_THREADS
from bertrt.host.files import parse_json

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "add_bundle",
    "add_columns",
    "add_data",
    "add_device",
    "add_engine",
    "add_json",
    "add_out",
    "add_settings",
    "add_task",
    "bound",
    "column_list",
    "device_name",
    "label_list",
    "port_number",
    "positive",
    "setting",
    "size",
    "thread_count",
    "to_json",
]

BACKENDS = ("native", "onnxruntime", "mxnet")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The model to run: BUNDLE."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="a bundle's or Hugging Face directory, a *-symbol.json or an .onnx file",
    )


def add_out(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The bundle to make: --out."""
    parser.add_argument(
        "--out", required=required, metavar="DIR", help="the bundle to make; must not exist"
    )


def add_task(parser: argparse.ArgumentParser, tasks: Sequence[str]) -> None:
    """What a model is for: --task, one of `tasks`."""
    parser.add_argument("--task", choices=tasks, metavar="TASK", help=", ".join(tasks))


def add_settings(parser: argparse.ArgumentParser, example: str) -> None:
    """Settings: --set, any number of times."""
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=setting,
        action="append",
        default=[],
        dest="settings",
        help=f"a setting of the task, such as {example}; may be given again",
    )


def add_engine(parser: argparse.ArgumentParser, backend: str | None) -> None:
    """What runs it: --backend (None: all), --precision, --device, --threads."""
    default = backend or "all that are installed"
    parser.add_argument("--backend", choices=BACKENDS, default=backend, help=f"default: {default}")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default: fp32, or what the bundle was quantised to",
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where it runs: --device, --threads."""
    parser.add_argument(
        "--device", type=device_name, default="cpu", help="cpu, cuda or cuda:N; default: cpu"
    )
    parser.add_argument(
        "--threads", metavar="N", type=thread_count, help="default: the cores usable here"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Labelled data: --data, --columns."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="labelled data: the task's TSV or JSON lines, SQuAD's JSON, CoNLL's columns",
    )
    add_columns(parser)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Columns of labelled data: --columns."""
    parser.add_argument(
        "--columns",
        metavar="A,B,...",
        type=column_list,
        help="the columns of the text, or of both, and of the label: names, or numbers from 1 of "
        "a file without a header; default: the task's",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """JSON instead of text for people: --json."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def bound(text: str) -> float:
    """A number from 0."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0, such as 0.5")
    return float(text)


def port_number(text: str) -> int:
    """A TCP port; 0: any."""
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, from 0 to 65535")
    return int(text)


def size(text: str) -> int:
    """Bytes: a whole number, with k, M or G for powers of 1,024."""
    found = re.fullmatch(r"0*([1-9]\d{0,8})([kKMG]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 500k or 16M")
    return int(found[1]) << {"": 0, "k": 10, "K": 10, "M": 20, "G": 30}[found[2]]


def thread_count(text: str) -> int:
    """A number of threads that an engine takes."""
    count = positive(text)
    if count > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_THREADS}")
    return count


def device_name(text: str) -> str:
    """A device that an engine takes."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3}(,\d{1,3})*)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not 'cpu', 'cuda' or 'cuda:N'")
    return text


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    try:
        return name, parse_json(os.fsencode(value))
    except ValueError:
        return name, value


def label_list(text: str) -> list[str]:
    """Different labels, split by commas."""
    labels = text.split(",")
    if "" in labels or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different labels")
    return labels


def column_list(text: str) -> list[str]:
    """Different columns, split by commas."""
    columns = text.split(",")
    if "" in columns or len(set(columns)) < len(columns):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different columns")
    return columns


def to_json(value: Any) -> str:
    """One line of JSON, not escaped beyond need."""
    return json.dumps(value, ensure_ascii=False)
