"""Fine-tuning for classification and regression, as GluonNLP's scripts/bert/finetune_classifier.py
does it.

Where it departs from the script: a step's gradient is the mean over all of its rows, also where it
is accumulated over batches, and is clipped as such; batches are of rows of about the same length;
texts are cut by the rule that `Engine.predict` will cut them by; the best epoch is the one with
the best score on the development data, the earliest of equals.

Nothing that is random depends on what was drawn before: the order of an epoch follows from the
seed and the epoch, a step's dropout from the seed and the step. A run that is killed and resumed
does therefore what it would have done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertrt.errors import (
    InvalidInputError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
    WriteError,
)
from bertrt.evaluation.datasets import find_files, read_examples
from bertrt.evaluation.examples import Examples
from bertrt.evaluation.metrics import check_metrics, metrics_of, score
from bertrt.host.files import read_json
from bertrt.host.paths import check_path
from bertrt.host.progress import progress
from bertrt.host.writing import appending_file, naming, remove_partial, sync, write_text
from bertrt.models.symbol.params import read_params, write_params
from bertrt.tasks.settings import PRESETS

from ..gluon_to_symbol import import_gluon, set_parameters
from ..model import write_bundle
from ..symbol_to_onnx import import_onnx
from .batches import Rows, encode, epoch_batches
from .checkpoint import read_checkpoint, write_checkpoint
from .learner import Learner
from .plot import write_plot
from .recipe import RECIPES, Recipe, learning_rate
from .start import Start, open_start

__all__ = ["FinetuneResult", "finetune"]

_RUN = "run.json"
_LOG = "log.jsonl"
_CHECKPOINT = "checkpoint.npz"
_PLOT = "training.png"


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What came out of a run.

    Attributes:
        bundle: the path of the bundle.
        record: the directory with the log, the plot and the parameters of the best epoch.
        best: the best epoch, as the log has it: ``epoch``, from 1, the mean ``loss``, and for each
            development file its ``scores``.
        epochs: all of them.
    """

    bundle: Path
    record: Path
    best: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]


def finetune(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: str,
    data: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    dev: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    columns: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    dataset: str | None = None,
    params: str | os.PathLike[str] | None = None,
    vocab: str | os.PathLike[str] | None = None,
    merges: str | os.PathLike[str] | None = None,
    checkpoint_steps: int = 200,
    on_epoch: Callable[[Mapping[str, Any]], Any] = lambda epoch: None,
    **recipe: Any,
) -> FinetuneResult:
    """Fine-tune a model on labelled texts, and export the best epoch to a bundle.

    Everything that can be wrong with the arguments and the data is found before training begins.
    ``<out>.training`` holds the run: ``run.json``, what it is made of; ``log.jsonl``, a line for
    each step and each epoch; ``checkpoint.npz``; and the parameters of the best epoch, as
    ``save_parameters`` writes them. Called again with the same arguments after it was interrupted,
    a run goes on from its last checkpoint, and ends with the same bits on the same machine. The
    record stays beside the bundle, with a plot, ``training.png``, where matplotlib is installed.

    Args:
        model: one of `bertrt.export.zoo.MODELS`, with `dataset`; or a Hugging Face directory of a
            BERT. Its encoder, and its pooler if it has one, are taken; the head is new.
        out: where the bundle goes; nothing may be there yet.
        task: one of `bertrt.tasks.settings.PRESETS`; or "classification" or "regression".
        data: the directory of the data, whose files have the task's usual names.
        train, dev: files, in place of those of `data`. The first of the development files decides
            which epoch is the best.
        columns: for tasks without a preset; see `bertrt.evaluation.datasets.read_examples`.
        labels: a classifier's in the order of its logits; the preset's, or those of the training
            data in alphabetical order, if left out.
        dataset, params, vocab, merges: of a model of the zoo; see `bertrt.export.export_zoo`.
            `params` may be a fine-tuned checkpoint, whose head is left.
        checkpoint_steps: after how many steps of an epoch a checkpoint is written; one is at the
            end of each epoch, too.
        on_epoch: called after each epoch with what the log says of it.
        recipe: fields of `Recipe`; for the rest the task's own in `RECIPES`.

    Raises:
        InvalidInputError, InvalidTypeError: an argument or a row of the data cannot be used; or
            ``<out>.training`` is another run's.
        OutputExistsError: `out` exists.
        MissingFileError: a file, or the directory to hold `out`, is not there.
        ModelFormatError: a file of the model is broken.
        UnsupportedModelError: GluonNLP has no such net.
        MissingDependencyError: mxnet, gluonnlp, onnx or what the metrics need is not installed.
        BertrtError: the loss is no longer a finite number.
    """
    target = check_path("the output directory", out)
    if os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already; name another place, or remove it")
    if not target.parent.is_dir():
        raise MissingFileError(f"{target.parent}, which is to hold the bundle, is no directory")
    if type(checkpoint_steps) is not int or checkpoint_steps < 1:
        raise InvalidInputError(
            f"checkpoint_steps should be a whole number from 1, found {checkpoint_steps!r}"
        )
    import_onnx()  # which the bundle is going to need
    chosen = _recipe(task, recipe)
    task_data = _read_data(task, data, train, dev, columns, labels)
    check_metrics(task_data.metrics, task_data.labels)
    start = open_start(
        model,
        classes=1 if task_data.labels is None else len(task_data.labels),
        max_length=chosen.max_length,
        seed=chosen.seed,
        dataset=dataset,
        params=params,
        vocab=vocab,
        merges=merges,
    )
    rows = [
        encode(part, start.tokenizer, task_data.labels)
        for part in (task_data.train, *task_data.dev)
    ]
    facts = {
        **start.origin,
        "task": task,
        "labels": task_data.labels,
        "train": _facts(task_data.train),
        "dev": [_facts(part) for part in task_data.dev],
        "recipe": dataclasses.asdict(chosen),
    }
    record = target.with_name(f"{target.name}.training")
    with _own(record, facts):
        run = _Run(record, start, task_data, rows[0], rows[1:], chosen)
        run.train(checkpoint_steps, on_epoch)
        best = run.best
        write_plot(record / _LOG, record / _PLOT)
        set_parameters(
            start.net,
            {name: c.array for name, c in read_params(run.best_params).items()},
            str(run.best_params),
        )
        write_bundle(
            start.net,
            target,
            tokenizer=start.tokenizer_file,
            task=task_data.task,
            labels=task_data.labels,
            pooling=None,
            settings={"pair": task_data.pair},
            origin={
                **start.origin,
                "finetuned": {name: facts[name] for name in ("task", "train", "dev", "recipe")}
                | {"epoch": best["epoch"], "scores": best["scores"]},
            },
        )
    return FinetuneResult(target, record, best, run.epochs)


def _recipe(task: str, given: Mapping[str, Any]) -> Recipe:
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(given) - known):
        raise InvalidInputError(
            f"there is no {', '.join(unknown)} in a recipe; there is {', '.join(sorted(known))}"
        )
    own = RECIPES.get(task, {}) if isinstance(task, str) else {}
    return Recipe(**{**own, **given})


# --- data -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Data:
    task: str
    labels: list[str] | None
    metrics: tuple[str, ...]
    train: Examples
    dev: list[Examples]

    @property
    def pair(self) -> bool:
        return isinstance(self.train.texts[0], tuple)


def _read_data(
    task: str,
    data: Any,
    train: Any,
    dev: Any,
    columns: Sequence[str] | None,
    labels: Sequence[str] | None,
) -> _Data:
    preset = PRESETS.get(task) if isinstance(task, str) else None
    kind = task if preset is None else preset.task
    if kind not in ("classification", "regression"):
        raise InvalidInputError(
            f"task {task!r}: fine-tuning is for classification, regression, {', '.join(PRESETS)}"
        )
    if isinstance(dev, str | os.PathLike):
        dev = [dev]
    for name, files in (("train", train), ("dev", dev)):
        if data is None and (files is None or files == []):
            raise InvalidInputError(
                f"no {name} data: name a directory with --data, or files with --train and --dev"
            )
    if labels is None and preset is not None:
        labels = preset.labels
    (train_file,) = find_files(data, task, "train") if train is None else (train,)
    dev_files = dev or find_files(data, task, "dev")
    training = read_examples(train_file, task, labels=labels, columns=columns)
    if kind == "classification":
        labels = sorted(set(training.labels)) if labels is None else labels
        if len(set(training.labels)) < 2:
            raise InvalidInputError(
                f"{training.path}: every label is {training.labels[0]!r}; a classifier needs two"
            )
    parts = [read_examples(path, task, labels=labels, columns=columns) for path in dev_files]
    for part in parts:
        if isinstance(part.texts[0], tuple) != isinstance(training.texts[0], tuple):
            raise InvalidInputError(
                f"{part.path} and {training.path}: the one has pairs of texts, the other has not"
            )
    return _Data(
        kind,
        list(labels) if kind == "classification" and labels is not None else None,
        metrics_of(task),
        training,
        parts,
    )


def _facts(examples: Examples) -> dict[str, Any]:
    return {"file": examples.path.name, "sha256": examples.sha256, "rows": len(examples)}


# --- the run ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _own(record: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Make the directory of a run, or take it over from an earlier process; no other process may
    have it meanwhile.

    Raises:
        InvalidInputError: another process has it, or it is the directory of another run.
    """
    if os.path.lexists(record) and not os.path.isdir(record):
        raise OutputExistsError(f"{record} exists, and is no directory")
    with naming(record):
        record.mkdir(exist_ok=True)
        descriptor = os.open(record, os.O_RDONLY)
    try:
        try:
            with naming(record):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except WriteError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise InvalidInputError(f"{record}: another process is training there") from None
        path = record / _RUN
        for name in (_RUN, _CHECKPOINT, _PLOT):  # of a process that was killed
            remove_partial(record / name)
        wanted = json.loads(json.dumps(facts))
        if path.exists():
            found = read_json(path)
            if not isinstance(found, dict):
                raise ModelFormatError(f"{path} should be a JSON object")
            other = [name for name in wanted if found.get(name) != wanted[name]]
            if other:
                raise InvalidInputError(
                    f"{record} is of a run with another {' and '.join(other)} ({path} tells); "
                    "name another --out, or remove it"
                )
        elif any(record.iterdir()):
            raise OutputExistsError(f"{record} exists, and is no run of finetune")
        else:
            text = json.dumps(wanted, indent=1, ensure_ascii=False) + "\n"
            write_text(path, text)
        yield
    finally:
        os.close(descriptor)


class _Run:
    """A run in its directory."""

    def __init__(
        self,
        record: Path,
        start: Start,
        data: _Data,
        rows: Rows,
        dev: Sequence[Rows],
        recipe: Recipe,
    ) -> None:
        self._record = record
        self._data = data
        self._rows, self._dev, self._recipe = rows, dev, recipe
        losses = import_gluon()[0].gluon.loss
        loss = losses.L2Loss() if data.labels is None else losses.SoftmaxCELoss()
        self._learner = Learner(start.net, recipe, loss)
        self.epochs: list[dict[str, Any]] = []
        # Where the next step is.
        self._epoch = self._step = 0
        # The losses of the epoch so far, for its mean.
        self._loss = 0.0
        self._ended = False

    @property
    def best(self) -> dict[str, Any]:
        """The best epoch so far."""
        metric = self._data.metrics[0]

        def points(epoch: Mapping[str, Any]) -> float:
            found = epoch["scores"][0][metric]
            return -math.inf if found is None else found

        return max(self.epochs, key=points)  # the first of equals

    @property
    def best_params(self) -> Path:
        """The parameters of the best epoch."""
        return self._params(self.best["epoch"])

    def _params(self, epoch: int) -> Path:
        return self._record / f"epoch-{epoch}.params"

    def train(self, checkpoint_steps: int, on_epoch: Callable[[Mapping[str, Any]], Any]) -> None:
        """Train to the end, from the checkpoint if there is one."""
        recipe = self._recipe
        log_size = self._restore()
        lengths = self._rows.lengths
        batches = -(-len(lengths) // recipe.batch_size)
        steps = -(-batches // recipe.accumulate)
        total = recipe.epochs * steps
        with (
            appending_file(self._record / _LOG) as log,
            progress(total, "fine-tuning", "step") as advance,
        ):
            log.truncate(log_size)
            advance(self._epoch * steps + self._step)

            def write(line: Mapping[str, Any]) -> None:
                log.write(json.dumps(line).encode() + b"\n")
                log.flush()

            while not self._ended:
                batches_now = epoch_batches(
                    lengths, recipe.batch_size, seed=recipe.seed, epoch=self._epoch
                )
                began = time.monotonic()
                while self._step < steps:
                    done = self._epoch * steps + self._step
                    rate = learning_rate(recipe, done, total)
                    at = self._step * recipe.accumulate
                    loss = self._learner.step(
                        [self._rows.batch(b) for b in batches_now[at : at + recipe.accumulate]],
                        rate,
                        seed=done,
                    )
                    write(
                        {
                            "epoch": self._epoch + 1,
                            "step": done + 1,
                            "loss": loss,
                            "learning_rate": rate,
                        }
                    )
                    self._loss += loss
                    self._step += 1
                    advance(1)
                    if self._step % checkpoint_steps == 0 and self._step < steps:
                        self._save(log)
                self._end_epoch(steps)
                write({**self.epochs[-1], "seconds": round(time.monotonic() - began, 1)})
                self._save(log)
                for epoch in self.epochs:
                    if epoch is not self.best:
                        with naming(self._params(epoch["epoch"])):
                            self._params(epoch["epoch"]).unlink(missing_ok=True)
                on_epoch(self.epochs[-1])

    def _end_epoch(self, steps: int) -> None:
        """Score the epoch, and keep its parameters if it is the best."""
        scores = []
        for part, rows in zip(self._data.dev, self._dev, strict=True):
            logits = self._learner.logits(rows, self._recipe.batch_size)
            if self._data.labels is None:
                predicted: list[Any] = logits[:, 0].tolist()
            else:
                predicted = [self._data.labels[index] for index in logits.argmax(axis=1)]
            found = score(self._data.metrics, part.labels, predicted, self._data.labels)
            # JSON has no NaN, which a correlation with equal predictions is.
            points = {name: None if math.isnan(value) else value for name, value in found.items()}
            scores.append({"file": part.path.name, "rows": len(part), **points})
        before = self.best if self.epochs else None
        self.epochs.append({"epoch": self._epoch + 1, "loss": self._loss / steps, "scores": scores})
        if self.best is self.epochs[-1]:
            write_params(self.best_params, self._learner.weights(), prefix="")
        elif before is not None:
            waited = self._epoch + 1 - before["epoch"]
            self._ended = self._recipe.early_stop is not None and waited >= self._recipe.early_stop
        self._epoch, self._step, self._loss = self._epoch + 1, 0, 0.0
        self._ended = self._ended or self._epoch == self._recipe.epochs

    def _save(self, log: Any) -> None:
        """Write a checkpoint; of a run that has ended, without the arrays that nobody needs."""
        sync(log, self._record / _LOG)
        state = {
            "epochs": self.epochs,
            "epoch": self._epoch,
            "step": self._step,
            "loss": self._loss,
            "ended": self._ended,
            "log_size": log.tell(),
        }
        arrays = {} if self._ended else self._learner.arrays()
        write_checkpoint(self._record / _CHECKPOINT, arrays, state)

    def _restore(self) -> int:
        """Go to where the checkpoint is; returns the size that the log had there."""
        path = self._record / _CHECKPOINT
        if not path.exists():
            return 0
        arrays, state = read_checkpoint(path)
        try:
            self.epochs, self._epoch, self._step = state["epochs"], state["epoch"], state["step"]
            self._loss, self._ended = state["loss"], state["ended"]
            if not self._ended:
                self._learner.restore(arrays)
            return int(state["log_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(
                f"{path} does not fit the run ({error}); remove it to begin the run again"
            ) from error
