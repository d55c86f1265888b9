"""``bertrt inspect``: what a bundle holds and the plan it becomes."""

from __future__ import annotations

import argparse
from typing import Any

from bertrt.commands.options import add_bundle, add_json, to_json

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser("inspect", help="what a bundle holds and the plan it becomes")
    add_bundle(parser)
    add_json(parser, "JSON")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from bertrt.evaluation.receipt import describe
    from bertrt.models.model import Model
    from bertrt.tasks.table import TABLE

    model = Model.open(arguments.bundle)
    plan = model.plan()
    coverage = model.coverage()
    if arguments.json:
        content = {
            "path": str(model.path),
            "task": model.task,
            "labels": model.labels,
            "pooling": model.pooling,
            "settings": model.shown_settings(),
            "manifest": model.manifest,
            # A bundle's plan says where its weights lie; others need not lie in one place.
            "plan": plan.to_engine() if model.manifest is None else plan.to_dict(model.path),
            "coverage": None if coverage is None else str(coverage),
        }
        print(to_json(content))
        return 0
    print(model.path)
    if model.task is not None:
        print(f"  {'task':<13}{model.task}: {TABLE[model.task].takes}")
        shown = model.shown_settings()
        if labels := shown.pop("labels", None):
            print(f"  {'labels':<13}{to_json(labels)}")
        print(f"  {'settings':<13}{to_json(shown)}")
        if modules := (model.pooling or {}).get("modules"):
            print(f"  {'modules':<13}{to_json(modules)}")
    if model.manifest is not None:
        for key in ("tokenizer", "origin"):
            print(f"  {key:<13}{to_json(model.manifest[key])}")
        files: dict[str, Any] = model.manifest["files"]
        print(f"\nfiles ({_size(sum(entry['size'] for entry in files.values()))})")
        for name, entry in files.items():
            print(f"  {name:<20} {_size(entry['size']):>10}")
        if quantization := model.manifest.get("quantization"):
            print("\nquantization")
            for line in describe(quantization):
                print(f"  {line}")
    print(f"\nplan\n{plan.describe()}")
    if coverage is not None:
        print(f"\ncoverage\n{coverage}")
    return 0


def _size(count: float) -> str:
    units = iter(("B", "KiB", "MiB"))
    for unit in units:
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
