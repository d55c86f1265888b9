"""``bertrt export``: a Gluon model to a bundle, and the list of the zoo's models."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from bertrt.commands.options import (
    add_json,
    add_out,
    add_settings,
    add_task,
    label_list,
    positive,
    to_json,
)
from bertrt.tasks.settings import PRESETS, TASKS

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "export", help="a Gluon model to a bundle (needs the extra 'export')"
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model of the zoo: bert_12_768_12, ..."
    )
    parser.add_argument("--dataset", metavar="NAME", help="its data set's name")
    add_task(parser, (*TASKS, *PRESETS))
    parser.add_argument("--params", metavar="FILE", help="parameters, instead of the zoo's")
    parser.add_argument("--vocab", metavar="FILE", help="the vocabulary, instead of the zoo's")
    parser.add_argument(
        "--merges", metavar="FILE", help="RoBERTa's byte-level BPE, instead of the zoo's"
    )
    parser.add_argument(
        "--labels",
        metavar="A,B,...",
        type=label_list,
        help="a classifier's labels, a tagger's tags",
    )
    add_settings(parser, "mode=words or null_answer=true")
    parser.add_argument("--max-length", metavar="N", type=positive, help="tokens of a text at most")
    add_out(parser, required=False)
    parser.add_argument(
        "--list", action="store_true", help="the models of the zoo and the files that each needs"
    )
    add_json(parser, "the list as JSON")
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    if arguments.list:
        return _list_zoo(arguments)
    for name, value in (
        ("MODEL", arguments.model),
        ("--dataset", arguments.dataset),
        ("--out", arguments.out),
    ):
        if value is None:
            arguments.parser.error(f"{name} is missing; --list shows what can be exported")
    from bertrt.export.zoo import export_zoo

    settings = dict(arguments.settings) or None
    bundle = export_zoo(
        arguments.model,
        arguments.dataset,
        arguments.out,
        task=arguments.task,
        params=arguments.params,
        vocab=arguments.vocab,
        merges=arguments.merges,
        labels=arguments.labels,
        max_length=arguments.max_length,
        # What can be set for an embedding is its pooling.
        **{"pooling" if arguments.task in (None, "embedding") else "settings": settings},
    )
    print(bundle)
    return 0


def _list_zoo(arguments: argparse.Namespace) -> int:
    from bertrt.export.zoo import zoo_rows

    rows = zoo_rows()
    if arguments.json:
        for row in rows:
            content = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
            files = [
                {"name": file.path.name, "sha1": file.sha1, "option": file.option}
                for file in row.files
            ]
            print(to_json(content | {"files": files}))
        return 0
    table = [
        (
            *("model", "dataset", "vocabulary", "types", "length", "activation", "epsilon"),
            *("tokenizer", "lower", "pretrained heads", "files"),
        )
    ]
    for row in rows:
        table.append(
            (
                *(row.model, row.dataset, str(row.vocab_size), str(row.token_types)),
                *(str(row.max_length), row.activation, f"{row.layer_norm_eps:.0e}", row.tokenizer),
                *("yes" if row.lower else "no", ", ".join(row.heads) or "none"),
                " ".join(file.path.name for file in row.files),
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(line.rstrip())
    print(
        f"\nFiles are downloaded to {rows[0].files[0].path.parent}, where their names end in the "
        "first digits\nof their sha1 (--json has all), or are put there by you, or are named with "
        "--params, --vocab, --merges."
    )
    return 0
