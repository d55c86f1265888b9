"""One shape, step by step."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from bertrt.backends import native
from bertrt.backends.roofline import roofline
from bertrt.batch import PackedBatch
from bertrt.bench.plans import runnable_outputs
from bertrt.bench.workloads import full
from bertrt.host.cores import usable_cores
from bertrt.host.machine import machine_peaks
from bertrt.models.model import Model

__all__ = ["steps"]

_WARM = 3
_SECONDS = 1.0


def steps(
    path: str | os.PathLike[str],
    batch: int,
    length: int,
    precision: str = "fp32",
    threads: int | None = None,
) -> str:
    """Where the time of the native engine goes in a batch of sequences of one length: the means of
    the runs of a second, as text.

    Raises:
        BertrtError: the model cannot be used, or has fewer positions.
    """
    threads = usable_cores() if threads is None else threads
    model = Model.open(path)
    ((inputs,), outputs) = full(model, batch, length).batches, runnable_outputs(model.plan())
    packed = PackedBatch.from_padded(
        inputs.token_ids, inputs.token_types, inputs.valid_length, None, model.limits
    )
    backend = native.load(model, device="cpu", precision=precision, threads=threads, trace=True)
    for _ in range(_WARM):
        backend.run(packed, outputs)
    before = backend.trace()
    begin, runs = time.perf_counter(), 0
    while not runs or time.perf_counter() - begin < _SECONDS:
        backend.run(packed, outputs)
        runs += 1
    spent = [
        replace(
            now,
            seconds=(now.seconds - then.seconds) / runs,
            operations=(now.operations - then.operations) // runs,
            bytes=(now.bytes - then.bytes) // runs,
        )
        for then, now in zip(before, backend.trace(), strict=True)
    ]
    backend.close()
    peaks = machine_peaks(threads)
    what = f"{batch} x {length}, {precision}, {threads} threads, {peaks['isa']}"
    table = roofline([step for step in spent if step.seconds], peaks)
    return f"{what}: mean of {runs} runs\n\n{table}"
