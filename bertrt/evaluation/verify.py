"""The parity report: does a bundle give the numbers of the model it was made from?

Every backend that is installed runs the bundle's golden inputs, whose outputs were recorded from
the source framework. Where MXNet is installed it also runs the bundle's own symbolic graph on
further ragged batches, and the other backends are held against that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.backends.base import BACKENDS, has_graph
from bertrt.engine import Engine
from bertrt.errors import DeviceError, InvalidInputError, MissingDependencyError
from bertrt.models.golden import GoldenCase
from bertrt.models.model import Model

__all__ = ["Check", "Report", "bound", "difference", "sample_batch", "verify"]

_LIVE = "mxnet"
_LIVE_LENGTHS = (1, 50, 128)
_LIVE_SEED = 7


@dataclass(frozen=True)
class Check:
    """One output of one backend against one reference.

    Attributes:
        backend: the backend's name.
        reference: ``"golden"`` or ``"live Gluon"``.
        output: the output's name.
        difference: the largest difference over all batches; relative to the largest magnitude of
            the reference where that is above 1, absolute otherwise. Infinite where the output
            holds a NaN or an infinity, or has another shape.
        bound: what the difference may be.
        padding: the largest magnitude at padded positions, which has to be 0; 0 for outputs
            without them.
    """

    backend: str
    reference: str
    output: str
    difference: float
    bound: float
    padding: float

    @property
    def ok(self) -> bool:
        """Whether the bound holds and the padding is exactly 0."""
        return self.difference <= self.bound and self.padding == 0


@dataclass(frozen=True)
class Report:
    """What :func:`verify` found. ``str(report)`` is a table for people.

    Attributes:
        path: the model.
        checks: one for each backend, reference and output.
        left_out: why a backend could not take part, by its name.
    """

    path: Path
    checks: tuple[Check, ...]
    left_out: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """Whether something was checked, and every check holds."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON; an infinite difference is None."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "checks": [
                {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in asdict(check).items()
                }
                | {"ok": check.ok}
                for check in self.checks
            ],
            "left_out": dict(self.left_out),
        }

    def __str__(self) -> str:
        rows = [("backend", "reference", "output", "difference", "bound", "")]
        for check in self.checks:
            verdict = "ok" if check.ok else "FAILED"
            if check.padding != 0:
                verdict += f" (padding reaches {check.padding:.1e}, expected 0)"
            rows.append(
                (
                    check.backend,
                    check.reference,
                    check.output,
                    f"{check.difference:.1e}",
                    f"{check.bound:.0e}",
                    verdict,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"{name}: left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def verify(
    path: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    *,
    device: str = "cpu",
    precision: str | None = None,
    threads: int | None = None,
    live: bool = True,
) -> Report:
    """Compare the backends of a model with its golden outputs, and with a live run of its graph.

    Args:
        path: a bundle; or a bare graph, for which only the live run is there to compare with.
        backends: the names of the backends to check; None for all that are installed.
        device, precision, threads: as for `Engine.load`.
        live: whether MXNet, where it is installed and the model has a symbolic graph, runs
            further ragged batches to compare with.

    Returns:
        The report. It is `ok` where every check holds.

    Raises:
        InvalidInputError: there is nothing to compare with, or no backend has such a name.
        MissingDependencyError: a backend that was asked for by its name is not installed.
        DeviceError: a backend that was asked for by its name cannot run on the device or in the
            precision.
        MissingFileError, ModelFormatError: the model is missing or broken.
    """
    for name in backends or ():
        if name not in BACKENDS:
            raise InvalidInputError(
                f"backend {name!r} does not exist; expected one of {', '.join(BACKENDS)}"
            )
    model = Model.open(path)
    golden = model.golden()
    left_out: dict[str, str] = {}
    references = {"golden": golden} if golden else {}
    if live and model.symbol_path is not None:
        try:
            references["live Gluon"] = _live_cases(model)
        except MissingDependencyError as error:
            left_out[_LIVE] = str(error)
    if not references:
        raise InvalidInputError(
            f"{model.path} holds no golden outputs, and MXNet with a symbolic graph is not there "
            "to run live; there is nothing to compare with"
        )
    layers = model.architecture["layers"]
    checks: list[Check] = []
    for name in backends or BACKENDS:
        if not backends and not has_graph(model, name):
            continue
        try:
            engine = Engine.load(
                model.path, backend=name, device=device, precision=precision, threads=threads
            )
        except (MissingDependencyError, DeviceError) as error:
            if backends:
                raise
            left_out[name] = str(error)
            continue
        with engine:
            for reference, cases in references.items():
                if (reference, name) != ("live Gluon", _LIVE):
                    checks += _check(engine, name, reference, cases, layers)
    return Report(model.path, tuple(checks), left_out)


def _check(
    engine: Engine, name: str, reference: str, cases: Sequence[GoldenCase], layers: int
) -> list[Check]:
    precision = engine.precision
    differences: dict[str, float] = {}
    padding: dict[str, float] = {}
    for case in cases:
        found = engine.run(**case.inputs)
        for output, expected in case.outputs.items():
            array = found[output]
            differences[output] = max(differences.get(output, 0.0), difference(expected, array))
            if output in ("sequence_output", "all_encodings"):
                beyond = array[..., _padding(case.inputs), :]
                padding[output] = max(
                    padding.get(output, 0.0), float(np.abs(beyond).max(initial=0.0))
                )
    return [
        Check(
            name,
            reference,
            output,
            value,
            bound(output, layers, precision),
            padding.get(output, 0.0),
        )
        for output, value in differences.items()
    ]


def _live_cases(model: Model) -> list[GoldenCase]:
    masked = "masked_lm_outputs" in model.outputs
    batches = [
        sample_batch(model.architecture, length, masked=masked, seed=_LIVE_SEED)
        for length in sorted({min(n, model.architecture["max_length"]) for n in _LIVE_LENGTHS})
    ]
    with Engine.load(model.path, backend=_LIVE) as engine:
        return [GoldenCase(batch, engine.run(**batch)) for batch in batches]


def _padding(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    length = inputs["token_ids"].shape[1]
    return np.arange(length) >= inputs["valid_length"][:, None]


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference of two arrays, relative to the largest magnitude of `expected` where
    that is above 1; infinite where the shapes differ or `found` is not finite everywhere."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return math.inf
    largest = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    return float(largest / max(1.0, np.abs(expected).max(initial=0.0)))


def bound(output: str, layers: int, precision: str = "fp32") -> float:
    """The largest difference from Gluon's fp32 that an output may have.

    In fp32 two right answers differ because sums are taken in another order; the differences grow
    with the layers, and a pooler or classifier, which ends in few numbers, shrinks them. In bf16
    and int8 a value is rounded to 2^-9 and to a 255th of its row's range, in fp8 to 2^-4, and the
    bounds tell a right run from a wrong one; what a precision costs on a task, only the task's
    metric tells.
    """
    if precision != "fp32":
        return {"bf16": 3e-2, "fp16": 5e-3, "int8": 2e-1, "fp8": 5e-1}[precision]
    if output in ("sequence_output", "all_encodings", "masked_lm_outputs"):
        return 5e-5 if layers <= 12 else 1e-4
    return 2e-5


def sample_batch(
    architecture: Mapping[str, Any],
    length: int,
    *,
    masked: bool,
    seed: int,
    num_masked: int = 3,
    lowest: int = 0,
) -> dict[str, np.ndarray]:
    """A random ragged batch that shows where a runtime would drift from Gluon.

    It has a full row, a row of one token, rows between and, unless `masked`, an empty row; ids
    reach from the first of the vocabulary to its last, and both token types occur. The padding
    holds valid ids too: an engine that reads it gives wrong numbers and not an error.

    Args:
        architecture: ``vocab_size`` and ``type_vocab_size`` (0: no token types).
        length: the sequence length.
        masked: whether to add masked positions; they point at tokens, so no row is empty then.
        seed: another seed is another batch.
        num_masked: how many positions a row has.
        lowest: the first id that there is.

    Returns:
        int64 arrays ``token_ids`` and ``token_types`` (batch, length), ``valid_length`` (batch,)
        and, if asked for, ``masked_positions`` (batch, num_masked).
    """
    random = np.random.default_rng((seed, length))
    valid = [length, 1, *random.integers(1, length + 1, size=2).tolist()]
    if not masked:
        valid.insert(1, 0)
    valid_length = np.array(valid, dtype=np.int64)
    shape = (len(valid), length)
    token_ids = random.integers(lowest, architecture["vocab_size"], size=shape, dtype=np.int64)
    token_ids[0, 0], token_ids[0, -1] = architecture["vocab_size"] - 1, lowest
    # The second text of a pair begins somewhere.
    last_type = max(architecture["type_vocab_size"], 1) - 1
    start = random.integers(0, length + 1, size=(shape[0], 1))
    token_types = np.where(np.arange(length) >= start, last_type, 0).astype(np.int64)
    token_types[0, -1] = last_type
    batch = {"token_ids": token_ids, "token_types": token_types, "valid_length": valid_length}
    if masked:
        batch["masked_positions"] = random.integers(
            0, valid_length[:, None], size=(shape[0], num_masked), dtype=np.int64
        )
    return batch
