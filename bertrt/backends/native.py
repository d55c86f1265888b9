"""The native engine: runs the fused plan on our own kernels, without padding."""

from __future__ import annotations

import json
import mmap
import os
import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.backends.base import Backend, cpu_only
from bertrt.batch import PackedBatch
from bertrt.errors import DeviceError, InvalidInputError
from bertrt.graph.tail import apply_tail
from bertrt.machine import machine_peaks
from bertrt.roofline import StepTrace, roofline

if TYPE_CHECKING:
    from bertrt.graph.plan import Plan
    from bertrt.model import Model

__all__ = ["NativeBackend", "load"]

PRECISIONS = ("fp32", "bf16", "int8")

# With this variable set to anything but 0, an engine measures each step and explain() tells.
TRACE = "BERTRT_TRACE"


def load(
    model: Model, *, device: str, precision: str, threads: int, trace: bool | None = None
) -> NativeBackend:
    """Load a model's plan. Arguments and errors as for `bertrt.backends.base.load_backend`; a
    BERTRT_ISA that cannot be used here is a DeviceError. `trace`: whether steps are measured; None:
    as BERTRT_TRACE says."""
    cpu_only("native", device, precision, PRECISIONS)
    try:
        from bertrt import _native
    except ImportError as error:
        raise DeviceError(
            f"backend native needs the compiled extension bertrt._native ({error}); install bertrt "
            "with pip, which builds it"
        ) from error
    if threads > _native.MAX_THREADS:
        raise InvalidInputError(f"threads is {threads}; expected 1 to {_native.MAX_THREADS}")
    plan = model.plan()
    key = _identity(plan, precision)
    packed = _packed.get(key)
    if packed is None:
        weights = {
            name: np.ascontiguousarray(constant.array, np.float32)
            for name, constant in plan.weights.items()
        }
        mapped = {name for name, array in weights.items() if _is_mapped(array)}
        packed = _native.Model(plan.to_engine(), weights, precision, threads, mapped)
        if key is not None:
            _packed[key] = packed
    if trace is None:
        trace = os.environ.get(TRACE, "0") not in ("", "0")
    return NativeBackend(_native.Engine(packed, threads, trace), plan, precision)


# The packed weights that engines of this process hold, by what they were packed from: a second
# engine of the same files shares them.
_packed: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()


def _identity(plan: Plan, precision: str) -> Hashable | None:
    """What a plan's packed weights depend on; None if some weight has no file of its own."""
    files: dict[Path, tuple[int, ...]] = {}
    places = []
    for name, constant in plan.weights.items():
        if constant.file is None:
            return None
        if constant.file not in files:
            status = constant.file.stat()
            files[constant.file] = (
                status.st_dev,
                status.st_ino,
                status.st_size,
                status.st_mtime_ns,
            )
        array = constant.array
        places.append((name, files[constant.file], constant.offset, str(array.dtype), array.shape))
    kernels = os.environ.get("BERTRT_ISA", "")
    return json.dumps(plan.to_engine()), tuple(places), precision, kernels


def _is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a file that is mapped for reading."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap) and not array.flags.writeable


class NativeBackend(Backend):
    """See `bertrt.backends.base.Backend`."""

    name = "native"
    device = "cpu"
    # The extension's pool starts threads of the child's own; the weights stay shared.
    survives_fork = True

    def __init__(self, engine: Any, plan: Plan, precision: str) -> None:
        self.precision = precision
        self.threads = engine.threads
        self.provider = engine.isa
        self._engine = engine
        self._tails = {name: plan.tail_of(name) for name in plan.outputs}
        self._made = {value: name for name, value in plan.to_engine()["outputs"].items()}

    def run(self, batch: PackedBatch, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """See `bertrt.backends.base.Backend.run`."""
        wanted = [self._made[self._tails[name][0]] for name in outputs]
        found = self._engine.run(
            batch.token_ids,
            batch.token_types,
            batch.cu_seqlens,
            batch.masked_positions,
            list(dict.fromkeys(wanted)),
            batch.attended,
        )
        results = {}
        for name, source in zip(outputs, wanted, strict=True):
            results[name] = found[source]
            for step in self._tails[name][1]:
                results[name] = apply_tail(step.op, step.fields, results[name], batch.cu_seqlens)
        if "masked_lm_outputs" in results:
            rows = results["masked_lm_outputs"]
            results["masked_lm_outputs"] = rows.reshape(batch.seqs, -1, rows.shape[1])
        return results

    def trace(self) -> list[StepTrace]:
        """What each step has done since loading; zeros unless tracing is on."""
        return [StepTrace(*step) for step in self._engine.steps()]

    def explain(self) -> str:
        """The steps with their kernels; with BERTRT_TRACE set at load, after a run, what was spent
        in each and how near that is to what the machine can do, which is measured the first
        time."""
        steps = self.trace()
        if any(step.seconds for step in steps):
            return roofline(steps, machine_peaks(self.threads))
        width = max(len(step.name) for step in steps)
        return "\n".join(f"{step.name:{width}}  {step.kernel}" for step in steps)

    def close(self) -> None:
        """See `bertrt.backends.base.Backend.close`."""
        del self._engine
