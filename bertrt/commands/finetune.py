"""``bertrt finetune``: a Gluon model, trained on labelled texts, to a bundle."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bertrt.commands.options import add_columns, add_json, add_out, label_list, positive, to_json
from bertrt.tasks.settings import PRESETS

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser(
        "finetune",
        help="train a Gluon model on labelled texts, to a bundle (needs the extra 'finetune')",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a model of the zoo, or the Hugging Face directory of a BERT"
    )
    tasks = (*PRESETS, "classification", "regression")
    parser.add_argument(
        "--task", required=True, choices=tasks, metavar="TASK", help=", ".join(tasks)
    )
    parser.add_argument(
        "--data", metavar="DIR", help="a directory with the task's files by their usual names"
    )
    parser.add_argument("--train", metavar="FILE", help="training data, instead of those of --data")
    parser.add_argument(
        "--dev",
        metavar="FILE",
        nargs="+",
        help="development data, likewise; the first file decides which epoch is the best",
    )
    add_columns(parser)
    parser.add_argument(
        "--labels", metavar="A,B,...", type=label_list, help="a classifier's, in their order"
    )
    for name, what in (
        ("--dataset", "for a model of the zoo: its data set's name"),
        ("--params", "for a model of the zoo: parameters, instead of the zoo's"),
        ("--vocab", "for a model of the zoo: the vocabulary, instead of the zoo's"),
        ("--merges", "for RoBERTa: byte-level BPE, instead of the zoo's"),
    ):
        parser.add_argument(name, metavar="NAME" if name == "--dataset" else "FILE", help=what)
    default = "default: the task's on GluonNLP's page, or its script's"
    for name, kind, what in (
        ("--epochs", positive, f"times through the data at most; {default}"),
        ("--batch-size", positive, default),
        ("--accumulate", positive, "batches that make a step; default: 1"),
        ("--learning-rate", float, f"the highest; {default}"),
        ("--warmup", float, "the part of all steps in which the rate rises; default: 0.1"),
        ("--max-length", positive, f"tokens of a text at most; {default}"),
        ("--early-stop", positive, "end after this many epochs without a better score"),
        ("--seed", int, "default: 0"),
    ):
        parser.add_argument(name, metavar="X" if kind is float else "N", type=kind, help=what)
    parser.add_argument(
        "--checkpoint-steps",
        metavar="N",
        type=positive,
        default=200,
        help="steps from a checkpoint to the next; default: 200",
    )
    add_out(parser)
    add_json(parser, "what came out as JSON")
    parser.set_defaults(command=run)


# The options of finetune that are fields of a recipe.
_RECIPE = (
    *("epochs", "batch_size", "accumulate", "learning_rate", "warmup", "max_length"),
    *("early_stop", "seed"),
)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.export.training import finetune

    def tell(epoch: Any) -> None:
        scores = "; ".join(f"{part['file']}: {_points(part)}" for part in epoch["scores"])
        print(f"epoch {epoch['epoch']}: loss {epoch['loss']:.4f}; {scores}", file=sys.stderr)

    given = {name: getattr(arguments, name) for name in _RECIPE}
    named = ("task", "data", "train", "dev", "columns", "labels", "dataset", "params", "vocab")
    result = finetune(
        arguments.model,
        arguments.out,
        **{name: getattr(arguments, name) for name in (*named, "merges", "checkpoint_steps")},
        on_epoch=tell,
        **{name: value for name, value in given.items() if value is not None},
    )
    if arguments.json:
        content = {"bundle": str(result.bundle), "record": str(result.record)}
        print(to_json(content | {"best": result.best, "epochs": result.epochs}))
    else:
        print(result.bundle)
    return 0


def _points(part: dict[str, Any]) -> str:
    scores = {name: value for name, value in part.items() if name not in ("file", "rows")}
    return ", ".join(
        f"{name} {'undefined' if value is None else format(value, '.2f')}"
        for name, value in scores.items()
    )
