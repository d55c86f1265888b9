"""The command line: ``bertrt export | import | finetune | predict | verify | evaluate | ...``.

Exit status: 0 done; 1 the task failed, with one line on stderr; 2 wrong use, with one line too.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from bertrt.errors import BertrtError, InvalidInputError
from bertrt.host.cores import MAX_THREADS
from bertrt.tasks.settings import PRESETS, SCORED, TASKS

__all__ = ["main"]

_EXIT_FAILED = 1
_EXIT_USAGE = 2
# What a shell reports for a process that SIGINT or SIGPIPE ended.
_EXIT_INTERRUPTED = 130
_EXIT_PIPE_CLOSED = 141

_BACKENDS = ("native", "onnxruntime", "mxnet")
_PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; None: the process's own.

    Returns:
        The exit status. Wrong use and --help raise SystemExit, as argparse does.
    """
    heard = sys.stdout is not None
    _fill_streams()
    arguments = _parse(argv)
    try:
        if not heard:
            raise InvalidInputError("standard output is closed, and it is where the answer goes")
        status: int = arguments.command(arguments)
        # A closed pipe shows here, and not in the interpreter's last breath.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as `head` does; nobody is left to tell. Python flushes stdout once
        # more when it ends, and must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_PIPE_CLOSED
    except (BertrtError, ImportError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"bertrt: error: {message}", file=sys.stderr)
        return _EXIT_FAILED


def _fill_streams() -> None:
    """Put the null device where the process was started without a standard stream: Python has None
    there, and the next file to be opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


# --- arguments --------------------------------------------------------------------------------


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
    from bertrt import __version__

    parser = _Parser(prog="bertrt", description="A small, compiled BERT inference runtime.")
    parser.add_argument("--version", action="version", version=f"bertrt {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    export = commands.add_parser(
        "export", help="a Gluon model to a bundle (needs the extra 'export')"
    )
    export.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model of the zoo: bert_12_768_12, ..."
    )
    export.add_argument("--dataset", metavar="NAME", help="its data set's name")
    _add_task(export, (*TASKS, *PRESETS))
    export.add_argument("--params", metavar="FILE", help="parameters, instead of the zoo's")
    export.add_argument("--vocab", metavar="FILE", help="the vocabulary, instead of the zoo's")
    export.add_argument(
        "--merges", metavar="FILE", help="RoBERTa's byte-level BPE, instead of the zoo's"
    )
    export.add_argument(
        "--labels", metavar="A,B,...", type=_labels, help="a classifier's labels, a tagger's tags"
    )
    export.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=_setting,
        action="append",
        default=[],
        dest="settings",
        help="a setting of the task, such as mode=words or null_answer=true; may be given again",
    )
    export.add_argument(
        "--max-length", metavar="N", type=_positive, help="tokens of a text at most"
    )
    _add_out(export, required=False)
    export.add_argument(
        "--list", action="store_true", help="the models of the zoo and the files that each needs"
    )
    _add_json(export, "the list as JSON")
    export.set_defaults(command=_export, parser=export)

    import_ = commands.add_parser(
        "import", help="a Hugging Face directory, an ONNX file or a symbol/params pair to a bundle"
    )
    import_.add_argument("path", metavar="PATH", help="the directory, *.onnx or *-symbol.json")
    _add_task(import_, TASKS)
    _add_out(import_)
    import_.set_defaults(command=_import)

    finetune = commands.add_parser(
        "finetune",
        help="train a Gluon model on labelled texts, to a bundle (needs the extra 'finetune')",
    )
    _add_finetune(finetune)

    predict = commands.add_parser(
        "predict", help="predictions for the arguments, or for each line of standard input"
    )
    _add_bundle(predict)
    predict.add_argument(
        "texts",
        metavar="TEXT",
        nargs="*",
        help="texts; a tab splits a pair, a question from its context; none: the lines of standard "
        "input",
    )
    _add_engine(predict, backend="native")
    _add_json(predict, "JSON lines")
    predict.set_defaults(command=_predict)

    verify = commands.add_parser(
        "verify", help="compare the backends with the recorded outputs of the source framework"
    )
    _add_bundle(verify)
    _add_engine(verify, backend=None)
    _add_json(verify, "JSON")
    verify.set_defaults(command=_verify)

    evaluate = commands.add_parser(
        "evaluate",
        help="the task's metric on labelled data, by backend and precision (extra 'evaluate')",
    )
    _add_bundle(evaluate)
    _add_task(evaluate, (*SCORED, *PRESETS))
    _add_data(evaluate)
    evaluate.add_argument(
        "--backend",
        nargs="+",
        choices=_BACKENDS,
        metavar="NAME",
        help=f"{', '.join(_BACKENDS)}; default: all that are installed",
    )
    evaluate.add_argument(
        "--precision",
        nargs="+",
        choices=_PRECISIONS,
        metavar="NAME",
        help=f"{', '.join(_PRECISIONS)}; default: all that each backend has",
    )
    evaluate.add_argument(
        "--reference",
        metavar="BUNDLE",
        help="a bundle to compare with, such as the one that BUNDLE was quantised from; default: "
        "BUNDLE",
    )
    _add_device(evaluate)
    _add_json(evaluate, "JSON")
    evaluate.set_defaults(command=_evaluate)

    quantize = commands.add_parser(
        "quantize", help="a bundle in int8 or bf16, and what that costs on a task"
    )
    quantize.add_argument("bundle", metavar="BUNDLE", help="a bundle's directory")
    quantize.add_argument("--precision", required=True, choices=("int8", "bf16"))
    quantize.add_argument(
        "--calibrate",
        metavar="FILE",
        help="data to measure on: of the --task, or texts, one a line, a tab between those of a "
        "pair; default: nothing is measured",
    )
    _add_task(quantize, (*SCORED, *PRESETS))
    _add_columns(quantize)
    quantize.add_argument(
        "--max-loss",
        metavar="POINTS",
        type=_bound,
        help="points of the task's metric that may be lost; steps that cost more stay in bf16 or "
        "fp32",
    )
    quantize.add_argument(
        "--max-error",
        metavar="LOGIT",
        type=_bound,
        help="the largest difference that a logit may have from fp32; likewise",
    )
    quantize.add_argument(
        "--smooth",
        action="store_true",
        help="move outliers of activations into the weights, where that helps",
    )
    _add_out(quantize)
    quantize.add_argument(
        "--threads", metavar="N", type=_threads, help="default: the cores usable here"
    )
    _add_json(quantize, "JSON")
    quantize.set_defaults(command=_quantize, usage_error=quantize.error)

    inspect = commands.add_parser("inspect", help="what a bundle holds and the plan it becomes")
    _add_bundle(inspect)
    _add_json(inspect, "JSON")
    inspect.set_defaults(command=_inspect)

    bench = commands.add_parser(
        "bench", help="time it beside the peers that are installed (extra 'bench')"
    )
    _add_bundle(bench)
    bench.add_argument(
        "--engines",
        metavar="NAME[:PRECISION]",
        nargs="+",
        type=_engines,
        help="native, onnxruntime, openvino, ctranslate2, torch, inductor, zentorch, mxnet; "
        "default: all but inductor and zentorch, which compile for minutes",
    )
    bench.add_argument(
        "--workloads",
        metavar="NAME",
        nargs="+",
        choices=("latency", "throughput", "ragged", "texts"),
        help="latency, throughput, ragged, texts; default: all",
    )
    bench.add_argument(
        "--steps",
        metavar="BATCHxLENGTH",
        type=_shape,
        help="instead, where the native engine's time goes on a batch of this shape",
    )
    bench.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        help="only the engines in this precision, and native fp32; of --steps, default: fp32",
    )
    bench.add_argument("--texts", metavar="FILE", help="texts to run, too: one a line, UTF-8")
    bench.add_argument(
        "--threads", metavar="N", type=_threads, help="default: the cores usable here"
    )
    bench.add_argument(
        "--repeats", metavar="N", type=_positive, default=10, help="turns an engine; default: 10"
    )
    bench.add_argument(
        "--out", metavar="DIR", help="write the table, JSON and a plot there; must not exist"
    )
    _add_json(bench, "JSON")
    bench.set_defaults(command=_bench, usage_error=bench.error)
    return parser


def _add_finetune(parser: argparse.ArgumentParser) -> None:
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
    _add_columns(parser)
    parser.add_argument(
        "--labels", metavar="A,B,...", type=_labels, help="a classifier's, in their order"
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
        ("--epochs", _positive, f"times through the data at most; {default}"),
        ("--batch-size", _positive, default),
        ("--accumulate", _positive, "batches that make a step; default: 1"),
        ("--learning-rate", float, f"the highest; {default}"),
        ("--warmup", float, "the part of all steps in which the rate rises; default: 0.1"),
        ("--max-length", _positive, f"tokens of a text at most; {default}"),
        ("--early-stop", _positive, "end after this many epochs without a better score"),
        ("--seed", int, "default: 0"),
    ):
        parser.add_argument(name, metavar="X" if kind is float else "N", type=kind, help=what)
    parser.add_argument(
        "--checkpoint-steps",
        metavar="N",
        type=_positive,
        default=200,
        help="steps from a checkpoint to the next; default: 200",
    )
    _add_out(parser)
    _add_json(parser, "what came out as JSON")
    parser.set_defaults(command=_finetune)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        help="a bundle's or Hugging Face directory, a *-symbol.json or an .onnx file",
    )


def _add_out(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--out", required=required, metavar="DIR", help="the bundle to make; must not exist"
    )


def _add_task(parser: argparse.ArgumentParser, tasks: Sequence[str]) -> None:
    parser.add_argument("--task", choices=tasks, metavar="TASK", help=", ".join(tasks))


def _add_engine(parser: argparse.ArgumentParser, backend: str | None) -> None:
    default = backend or "all that are installed"
    parser.add_argument("--backend", choices=_BACKENDS, default=backend, help=f"default: {default}")
    parser.add_argument(
        "--precision",
        choices=_PRECISIONS,
        help="default: fp32, or what the bundle was quantised to",
    )
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=_device, default="cpu", help="cpu, cuda or cuda:N; default: cpu"
    )
    parser.add_argument(
        "--threads", metavar="N", type=_threads, help="default: the cores usable here"
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="labelled data: the task's TSV or JSON lines, SQuAD's JSON, CoNLL's columns",
    )
    _add_columns(parser)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--columns",
        metavar="A,B,...",
        type=_columns,
        help="the columns of the text, or of both, and of the label: names, or numbers from 1 of "
        "a file without a header; default: the task's",
    )


def _add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _bound(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0, such as 0.5")
    return float(text)


def _threads(text: str) -> int:
    count = _positive(text)
    if count > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MAX_THREADS}")
    return count


def _engines(text: str) -> list[tuple[str, str]]:
    from bertrt.bench.engines import parse_engine

    try:
        return parse_engine(text)
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _shape(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not BATCHxLENGTH, such as 8x128")
    batch, length = map(int, text.split("x"))
    return batch, length


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d{1,3}(,\d{1,3})*)?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not 'cpu', 'cuda' or 'cuda:N'")
    return text


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _labels(text: str) -> list[str]:
    labels = text.split(",")
    if "" in labels or len(set(labels)) < len(labels):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different labels")
    return labels


def _columns(text: str) -> list[str]:
    columns = text.split(",")
    if "" in columns or len(set(columns)) < len(columns):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different columns")
    return columns


# --- commands ---------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
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
            print(_json(content | {"files": files}))
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


def _import(arguments: argparse.Namespace) -> int:
    if Path(arguments.path).is_dir():
        from bertrt.export.huggingface import import_huggingface

        bundle = import_huggingface(arguments.path, arguments.out, task=arguments.task)
    else:
        from bertrt.export import import_graph

        if arguments.task is not None:
            raise InvalidInputError(
                f"--task {arguments.task}: a bare graph has no vocabulary to predict with; "
                "--task goes with a Hugging Face directory"
            )
        bundle = import_graph(arguments.path, arguments.out)
    print(bundle)
    return 0


# The options of finetune that are fields of a recipe.
_RECIPE = (
    *("epochs", "batch_size", "accumulate", "learning_rate", "warmup", "max_length"),
    *("early_stop", "seed"),
)


def _finetune(arguments: argparse.Namespace) -> int:
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
        print(_json(content | {"best": result.best, "epochs": result.epochs}))
    else:
        print(result.bundle)
    return 0


def _points(part: dict[str, Any]) -> str:
    scores = {name: value for name, value in part.items() if name not in ("file", "rows")}
    return ", ".join(
        f"{name} {'undefined' if value is None else format(value, '.2f')}"
        for name, value in scores.items()
    )


def _verify(arguments: argparse.Namespace) -> int:
    from bertrt.evaluation.verify import verify

    report = verify(
        arguments.bundle,
        backends=None if arguments.backend is None else [arguments.backend],
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    print(_json(report.to_dict()) if arguments.json else report)
    return 0 if report.ok else _EXIT_FAILED


def _evaluate(arguments: argparse.Namespace) -> int:
    from bertrt.evaluation.run import evaluate

    report = evaluate(
        arguments.bundle,
        arguments.data,
        task=arguments.task,
        columns=arguments.columns,
        backends=arguments.backend,
        precisions=arguments.precision,
        reference=arguments.reference,
        device=arguments.device,
        threads=arguments.threads,
    )
    print(_json(report.to_dict()) if arguments.json else report)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    from bertrt.evaluation.quantize import quantize

    if arguments.calibrate is None:
        for name in ("task", "columns", "max_loss", "max_error", "smooth"):
            value = getattr(arguments, name)
            if value is not None and value is not False:
                option = name.replace("_", "-")
                arguments.usage_error(f"--{option} can only go with --calibrate")
    report = quantize(
        arguments.bundle,
        arguments.out,
        precision=arguments.precision,
        calibrate=arguments.calibrate,
        task=arguments.task,
        columns=arguments.columns,
        max_loss=arguments.max_loss,
        max_error=arguments.max_error,
        smooth=arguments.smooth,
        threads=arguments.threads,
    )
    print(_json(report.to_dict()) if arguments.json else report)
    return 0


# What predict takes and gives, by task
_TAKES = {
    "classification": "texts or pairs to a Classification",
    "regression": "texts or pairs to a Regression",
    "embedding": "texts or pairs to an Embedding",
    "question-answering": "(question, context) pairs, of any length, to an Answer",
    "tagging": "texts or lists of words to a Tagging",
    "fill-mask": "texts with masks to a FillMask",
    "next-sentence": "pairs to a NextSentence",
}


def _inspect(arguments: argparse.Namespace) -> int:
    from bertrt.evaluation.quantize import describe
    from bertrt.models.model import Model

    model = Model.open(arguments.bundle)
    plan = model.plan()
    coverage = model.coverage()
    if arguments.json:
        content = {
            "path": str(model.path),
            "task": model.task,
            "labels": model.labels,
            "pooling": model.pooling,
            "settings": model.settings,
            "manifest": model.manifest,
            # A bundle's plan says where its weights lie; others need not lie in one place.
            "plan": plan.to_engine() if model.manifest is None else plan.to_dict(model.path),
            "coverage": None if coverage is None else str(coverage),
        }
        print(_json(content))
        return 0
    print(model.path)
    if model.task is not None:
        print(f"  {'task':<13}{model.task}: {_TAKES[model.task]}")
        for key in ("labels", "pooling", "settings"):
            if value := getattr(model, key):
                print(f"  {key:<13}{_json(value)}")
        print(f"  {'max_length':<13}{model.max_length}")
    if model.manifest is not None:
        for key in ("tokenizer", "origin"):
            print(f"  {key:<13}{_json(model.manifest[key])}")
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


def _bench(arguments: argparse.Namespace) -> int:
    from bertrt.bench import bench
    from bertrt.bench.steps import steps
    from bertrt.bench.workloads import GROUPS, read_texts
    from bertrt.bench.write import output_directory, write_report

    if arguments.steps is not None:
        for name in ("engines", "workloads", "texts", "out"):
            if getattr(arguments, name) is not None:
                arguments.usage_error(f"--{name} does not go with --steps")
        batch, length = arguments.steps
        precision = arguments.precision or "fp32"
        print(steps(arguments.bundle, batch, length, precision, arguments.threads))
        return 0
    with output_directory(arguments.out) as out:
        report = bench(
            arguments.bundle,
            _wanted(arguments.engines, arguments.precision),
            groups=arguments.workloads or GROUPS,
            texts=None if arguments.texts is None else read_texts(arguments.texts),
            threads=arguments.threads,
            repeats=arguments.repeats,
        )
        print(_json(report.to_dict()) if arguments.json else report)
        if out is not None:
            write_report(report, out)
    return 0


def _wanted(
    engines: list[list[tuple[str, str]]] | None, precision: str | None
) -> list[tuple[str, str]]:
    """The engines named, or the usual ones, in the precision."""
    from bertrt.bench.engines import DEFAULT_ENGINES

    names = DEFAULT_ENGINES if engines is None else itertools.chain(*engines)
    return [name for name in names if precision in (None, name[1])]


def _size(count: float) -> str:
    units = iter(("B", "KiB", "MiB"))
    for unit in units:
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _predict(arguments: argparse.Namespace) -> int:
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
                    print(_json(_plain(result)) if arguments.json else _text(result))
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


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
