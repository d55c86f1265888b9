"""Quantisation with its receipt: a bundle in int8, bf16 or fp8, and what that cost.

Each encoder step is tried alone in the lower precision, on calibration data: the error that it
brings into the logits orders the steps. All are lowered; while that breaks a bound, the steps with
the largest errors go back, to bf16 or, where that is not enough, to fp32. (This is the sensitivity
analysis and partial quantisation of Wu et al., "Integer Quantization for Deep Learning Inference",
arXiv:2004.09602, section 6.)
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.engine.checks import check_load
from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError, ModelFormatError
from bertrt.evaluation.calibration import Calibration, engine_of
from bertrt.evaluation.receipt import Report, StepError, make_report
from bertrt.evaluation.search import FALLBACKS, Search
from bertrt.host.cores import usable_cores
from bertrt.host.writing import copy_file
from bertrt.models.bundle import write_plan, writing
from bertrt.models.manifest import GOLDEN, MODULES
from bertrt.models.model import Model
from bertrt.models.safetensors import write_safetensors
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import lowered_steps, state_precisions, store_quantized

__all__ = ["quantize"]

_WEIGHTS = "model.safetensors"


def quantize(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: str = "int8",
    calibrate: str | os.PathLike[str] | None = None,
    task: str | None = None,
    columns: Sequence[str] | None = None,
    max_loss: float | None = None,
    max_error: float | None = None,
    smooth: bool = False,
    threads: int | None = None,
    device: str = "cpu",
) -> Report:
    """Make a bundle whose encoder runs in a lower precision, its weights stored in it.

    Args:
        path: a bundle in fp32.
        out: the bundle to make; must not exist.
        precision: "int8", "bf16" or, on a GPU, "fp8".
        calibrate: a file to measure on. With `task`, `columns` or `max_loss` labelled data, as
            `bertrt.evaluation.datasets.read_examples` reads them; else texts, one a line, with a
            tab between those of a pair. None: every step is lowered, and nothing is measured.
        task, columns: of labelled data; see `bertrt.evaluation.run.read_data`.
        max_loss: points of the task's first metric that may be lost; steps that cost too much stay
            in a higher precision.
        max_error: the largest difference from fp32 that a logit may have; likewise.
        smooth: whether outliers of a matrix's input go into the weights, exactly, in the steps
            where that makes the error smaller. See `bertrt.plan.smoothing`.
        threads: as for `Engine.load`.
        device: as for `Engine.load`: where everything is measured, fp32 too.

    Returns:
        The report, which the bundle holds too.

    Raises:
        BoundError: a bound cannot be held; nothing is written. The message names the worst steps.
        InvalidInputError: an argument, or the data; the message has file and line. A bundle that is
            quantised already, or holds weights that are not finite.
        DeviceError: the device cannot be used, or not in this precision.
        OutputExistsError, MissingFileError, WriteError, ModelFormatError,
        MissingDependencyError: as for `Engine.load`, `bertrt.evaluation.run.evaluate` and
            `bertrt.models.bundle.writing`.
    """
    _check_arguments(precision, calibrate, task, columns, max_loss, max_error, smooth)
    check_load("native", device, precision, None)
    if precision == "fp8" and device == "cpu":
        raise InvalidInputError("fp8 runs on GPUs only, and is measured on one: give device='cuda'")
    if precision == "bf16" and device != "cpu":
        raise InvalidInputError(
            f"bundles in bf16 run on the CPU only, and device is {device!r}; give device='cpu'"
        )
    with writing(out) as draft:
        model = Model.open(path)
        if model.manifest is None:
            raise ModelFormatError(
                f"{model.path} is no bundle; make one with bertrt export or bertrt import"
            )
        plan = model.plan()
        if plan.precision is not None:
            raise InvalidInputError(
                f"{model.path} is quantised to {plan.precision} already; take the bundle that it "
                "was made from"
            )
        if calibrate is None:
            lowered = {step.name: precision for step in lowered_steps(plan, precision)}
            stated = state_precisions(plan, lowered)
            errors = [
                StepError(name, math.nan, math.nan, precision, smoothed=False) for name in lowered
            ]
            report = make_report(precision, stated, plan, errors)
        else:
            labelled = task is not None or columns is not None or max_loss is not None
            calibration = Calibration(
                model, calibrate, task if labelled else None, columns, labelled, threads, device
            )
            search = Search(model, calibration, precision, max_loss, max_error)
            stated, report = search.run(smooth)
        _write(model, stated, report, draft.directory)
        draft.seal(
            {
                name: value
                for name, value in model.manifest.items()
                if name not in ("format_version", "files", "manifest_sha256")
            }
            | {
                "quantization": report.to_dict()
                | {"source": {"manifest_sha256": model.manifest["manifest_sha256"]}}
            }
        )
        _check_bits(model, stated, draft.directory, threads, device)
    return report


def _check_arguments(
    precision: Any,
    calibrate: Any,
    task: Any,
    columns: Any,
    max_loss: Any,
    max_error: Any,
    smooth: Any,
) -> None:
    if precision not in FALLBACKS:
        raise InvalidInputError(f"precision is {precision!r}; expected one of int8, bf16, fp8")
    for name, bound in (("max_loss", max_loss), ("max_error", max_error)):
        if bound is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise InvalidTypeError(f"{name} is {bound!r}; expected a number")
        if not (math.isfinite(bound) and bound >= 0):
            raise InvalidInputError(f"{name} is {bound}; expected a number from 0")
    if calibrate is None:
        given = [
            name
            for name, value in (
                ("task", task),
                ("columns", columns),
                ("max_loss", max_loss),
                ("max_error", max_error),
                ("smooth", smooth or None),
            )
            if value is not None
        ]
        if given:
            raise InvalidInputError(f"{' and '.join(given)} can only go with calibration data")


def _write(model: Model, stated: Plan, report: Report, directory: Path) -> None:
    """Write all files of a bundle but its manifest."""
    stored = store_quantized(stated)
    arrays = {name: constant.array for name, constant in stored.weights.items()}
    placed = write_safetensors(directory / _WEIGHTS, arrays)
    write_plan(dataclasses.replace(stored, weights=placed), directory)
    assert model.manifest is not None
    tokenizer = model.manifest["tokenizer"] or {}
    kept = [tokenizer[key] for key in ("file", "pieces") if key in tokenizer]
    for name in (*kept, GOLDEN, MODULES):
        if name in model.manifest["files"]:
            copy_file(model.path / name, directory / name)


def _check_bits(
    model: Model, stated: Plan, directory: Path, threads: int | None, device: str
) -> None:
    """Check that a finished bundle gives what was measured, bit for bit.

    Raises:
        BertrtError: it does not.
    """
    cases = model.golden()
    threads = usable_cores() if threads is None else threads
    answers = []
    for own in (model.with_plan(stated), Model.open(directory)):
        with engine_of(own, threads, device) as engine:
            answers.append([engine.run(**case.inputs) for case in cases])
    for expected, found in zip(*answers, strict=True):
        for name, array in expected.items():
            if not np.array_equal(array, found[name], equal_nan=True):
                raise BertrtError(
                    f"the finished bundle gives another {name} than what was measured, and was not "
                    "kept"
                )
