"""The native engine: runs the fused plan on our own kernels, without padding."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.backends.base import Backend, check_precision
from bertrt.backends.roofline import StepTrace, roofline
from bertrt.batch import PackedBatch
from bertrt.errors import DeviceError, InvalidInputError
from bertrt.host.cores import usable_cores
from bertrt.host.machine import machine_peaks
from bertrt.host.stored import Fetcher, Stored
from bertrt.plan.tail import apply_tail
from bertrt.version import __version__

if TYPE_CHECKING:
    from bertrt.models.model import Model
    from bertrt.plan.plan import Plan

__all__ = ["NativeBackend", "load"]

PRECISIONS = ("fp32", "bf16", "int8")
CUDA_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")

# What explain() says of the CUDA kernels until a GPU has run the tests of this version.
UNPROVEN = (
    "The CUDA kernels were right on one H200 as they were first written; what has changed since "
    "was tested on an emulator: docs/cuda.md names it. make gpu-check tests all of it on this GPU."
)

# What it says besides where the products are in 8 bits.
UNPROVEN_INT8 = "No GPU has run the products in int8 yet."
UNPROVEN_FP8 = "No GPU has run the products in fp8 yet."
UNPROVEN_HOPPER = "No GPU has run Hopper's own kernels yet."

# The tokens of a batch, at most, and of each thread's share of one: a matrix product has long
# reached its full speed there, and whoever comes while a batch runs waits for less.
_TOKENS, _THREAD_TOKENS = 4096, 512

# With this variable set to anything but 0, an engine measures each step and explain() tells.
TRACE = "BERTRT_TRACE"

# This one names the kernels of a GPU, which the extension reads: csrc/cuda/kernel_choice.h.
KERNELS = "BERTRT_CUDA_KERNELS"


def load(
    model: Model, *, device: str, precision: str, threads: int, trace: bool | None = None
) -> NativeBackend:
    """Load a model's plan. Arguments and errors as for `bertrt.backends.base.load_backend`; a
    BERTRT_ISA or a BERTRT_CUDA_KERNELS that cannot be used here is a DeviceError. `trace`: whether
    steps are measured; None: as BERTRT_TRACE says."""
    if trace is None:
        trace = os.environ.get(TRACE, "0") not in ("", "0")
    if device != "cpu":
        return _load_cuda(model, device, precision, trace)
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
    _check_stated(model, plan, precision, device)
    check_precision("native", precision, PRECISIONS)
    # In a plan that states precisions, what states none runs in fp32.
    rest = precision if plan.precision is None else "fp32"
    packed = _shared(
        plan,
        (precision, "cpu", os.environ.get("BERTRT_ISA", "")),
        lambda weights: _native.Model(plan.to_engine(), weights, rest, threads, Fetcher()),
    )
    _native.share_cores(usable_cores())
    engine = _native.Engine(packed, threads, trace)
    return NativeBackend(engine, plan, precision, threads=threads, provider=engine.isa)


def _load_cuda(model: Model, device: str, precision: str, trace: bool) -> CudaBackend:
    try:
        module = importlib.import_module("bertrt._cuda")
    except ImportError as error:
        raise DeviceError(
            f"backend native cannot run on {device!r} without bertrt._cuda ({error}); "
            f"pip install bertrt-cuda=={__version__}, which in bertrt's sources is "
            "pip install ./csrc/cuda, or use device='cpu'"
        ) from error
    found = getattr(module, "VERSION", "0.1.0")  # until then a part of bertrt itself
    if found != __version__:
        raise DeviceError(
            f"backend native cannot run on {device!r}: bertrt._cuda ({module.__file__}) is of "
            f"version {found}, and bertrt of {__version__}; pip install bertrt-cuda=={__version__}"
        )
    plan = model.plan()
    _check_stated(model, plan, precision, device)
    check_precision("native", precision, CUDA_PRECISIONS, device)
    numbers = [int(number) for number in (device.partition(":")[2] or "0").split(",")]
    if len(set(numbers)) < len(numbers):
        raise InvalidInputError(f"device is {device!r}, which names a GPU twice")

    def engine_on(number: int) -> Any:
        # A child that was forked has the parent's objects, and nothing on the GPU.
        packed = _shared(
            plan,
            (precision, f"cuda:{number}", os.getpid(), os.environ.get(KERNELS, "")),
            lambda weights: module.Model(plan.to_engine(), weights, precision, number, Fetcher()),
        )
        return module.Engine(packed, trace)

    try:
        engines = [engine_on(number) for number in numbers]
    except DeviceError as error:
        raise DeviceError(f"backend native cannot run on {device!r}: {error}") from error
    return CudaBackend(engines, plan, precision)


def _check_stated(model: Model, plan: Plan, precision: str, device: str) -> None:
    """Refuse, of a plan that states precisions, what its weights are not there for."""
    if plan.precision is None:
        return
    if precision != plan.precision:
        raise DeviceError(
            f"{model.path} is quantised to {plan.precision}, and holds no weights for {precision}; "
            f"use precision={plan.precision!r}, or the bundle that it was made from"
        )
    if device == "cpu" and plan.precision == "fp8":
        raise DeviceError(
            f"{model.path} is quantised to fp8, which runs on GPUs only; load it with "
            "device='cuda', or use the bundle that it was made from"
        )
    if device != "cpu" and plan.precision not in ("int8", "fp8"):
        raise DeviceError(
            f"{model.path} is quantised to {plan.precision}, which runs on the CPU only; on "
            f"{device!r} use the bundle that it was made from, with precision={plan.precision!r}"
        )


# The packed weights that engines of this process hold, by what they were packed from: a second
# engine of the same files shares them.
_packed: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()

# What is being packed: who wants the same waits for it. A signal handler that interrupts the
# packing may pack for itself; a forked child has nobody to wait for.
_packing: dict[Hashable, threading.RLock] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_packing.clear)


def _shared(
    plan: Plan,
    kind: tuple[Hashable, ...],
    pack: Callable[[dict[str, np.ndarray | Stored]], Any],
) -> Any:
    """A plan's weights, packed: those that an engine of this process holds already, or new ones.

    `kind`: what they depend on besides the plan and its files. `pack`: makes them of arrays, and
    reads those that lie in files when it comes to them.
    """
    weights = {name: constant.stored for name, constant in plan.weights.items()}
    identity = _identity(plan)
    if identity is None:
        return pack(weights)
    key = identity, kind
    with _packing.setdefault(key, threading.RLock()):
        try:
            packed = _packed.get(key)
            if packed is None:
                packed = _packed[key] = pack(weights)
            return packed
        finally:
            _packing.pop(key, None)


# Weights of so many bytes, for instance a table made of another one, are told by them.
_TOLD_BY_BYTES = 1 << 20


def _identity(plan: Plan) -> Hashable | None:
    """A plan and the bytes of its weights; None if some weight, not a small one, has no file of its
    own."""
    places: list[Hashable] = []
    for name, constant in plan.weights.items():
        stored = constant.stored
        if isinstance(stored, Stored):
            where: Hashable = (stored.file.identity, stored.offset)
        elif stored.nbytes <= _TOLD_BY_BYTES:
            where = stored.tobytes()
        else:
            return None
        places.append((name, where, str(constant.dtype), constant.shape))
    return json.dumps(plan.to_engine()), tuple(places)


class NativeBackend(Backend):
    """See `bertrt.backends.base.Backend`."""

    name = "native"
    device = "cpu"
    # The extension's pool starts threads of the child's own; the weights stay shared.
    survives_fork = True

    def __init__(
        self, engine: Any, plan: Plan, precision: str, *, threads: int, provider: str
    ) -> None:
        self.precision = precision
        self._wanted = threads
        self.batch_tokens = min(_TOKENS, _THREAD_TOKENS * threads)
        self.provider = provider
        self._engine = engine
        self._tails = {name: plan.tail_of(name) for name in plan.outputs}
        self._made = {value: name for name, value in plan.to_engine()["outputs"].items()}

    @property
    def threads(self) -> int:  # type: ignore[override]
        """Those that the system gave; in a forked child, those of its own."""
        return int(self._engine.threads)

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
        time. Before them, that threads are missing, if they are."""
        if self.threads == self._wanted:
            return self._explain_steps()
        return (
            f"The system gave {self.threads} of the {self._wanted} threads that were asked for: "
            "something limits the processes of this user or container (ulimit -u, pids.max), or "
            f"the memory for their stacks.\n\n{self._explain_steps()}"
        )

    def _explain_steps(self) -> str:
        steps = self.trace()
        if any(step.seconds for step in steps):
            return roofline(steps, self._peaks())
        width = max(len(step.name) for step in steps)
        return "\n".join(f"{step.name:{width}}  {step.kernel}" for step in steps)

    def _peaks(self) -> Mapping[str, Any] | None:
        return machine_peaks(self.threads)

    def close(self) -> None:
        """See `bertrt.backends.base.Backend.close`."""
        del self._engine


class CudaBackend(NativeBackend):
    """The same plan on a GPU, or on several."""

    survives_fork = False
    at_once = 2

    def __init__(self, engines: Sequence[Any], plan: Plan, precision: str) -> None:
        gpus = [engine.device for engine in engines]
        super().__init__(
            engines[0] if len(engines) == 1 else _SeveralGpus(engines),
            plan,
            precision,
            threads=len(engines),
            provider="; ".join(f"{gpu.name}, {gpu.arch}" for gpu in gpus),
        )
        self.batch_tokens = sum(engine.part_tokens for engine in engines)
        self.device = f"cuda:{','.join(str(gpu.number) for gpu in gpus)}"

    @property
    def threads(self) -> int:  # type: ignore[override]
        """One for each GPU."""
        return self._wanted

    def explain(self) -> str:
        """How batches were launched; then as on the CPU: times are the GPUs', and stand beside
        rates, not beside peaks."""
        more = {"int8": f" {UNPROVEN_INT8}", "fp8": f" {UNPROVEN_FP8}"}.get(self.precision, "")
        if any(step.kernel.endswith(".wgmma") for step in self.trace()):
            more += f" {UNPROVEN_HOPPER}"
        return f"{UNPROVEN}{more}\n{self._explain_launches()}\n\n{super().explain()}"

    def _explain_launches(self) -> str:
        done = self._engine.launches()
        graphs = (
            f"no CUDA graphs ({done['no_graphs']})"
            if done["no_graphs"]
            else f"{done['captured']} CUDA graphs made"
        )
        overlap = "overlap" if done["overlap"] else "come one after the other"
        return (
            f"Batches of up to {self.batch_tokens:,} tokens, {self.at_once} at once. Of "
            f"{done['parts']:,} parts {done['by_graph']:,} ran by a graph, {graphs}; kernels "
            f"{overlap}."
        )

    def _peaks(self) -> None:
        return None


class _SeveralGpus:
    """Engines of one plan, each on a GPU of its own, as one engine.

    Each runs a share of a batch's sequences, which have the same bits whoever runs them.
    """

    def __init__(self, engines: Sequence[Any]) -> None:
        self._engines = engines
        self._threads = ThreadPoolExecutor(
            CudaBackend.at_once * len(engines), thread_name_prefix="bertrt-gpu"
        )
        # A batch of one sequence has one share: callers take turns to begin with a GPU.
        self._turn = itertools.count()

    def run(
        self,
        token_ids: np.ndarray,
        token_types: np.ndarray,
        cu_seqlens: np.ndarray,
        masked_positions: np.ndarray | None,
        outputs: list[str],
        attended: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """As the engines' own."""
        # Where the tokens are shared evenly.
        even = np.linspace(0, cu_seqlens[-1], len(self._engines) + 1)[1:-1]
        cuts = [0, *np.searchsorted(cu_seqlens, even).tolist(), len(cu_seqlens) - 1]
        turn = next(self._turn)
        shares = []
        for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
            if begin == end:
                continue
            tokens = slice(cu_seqlens[begin], cu_seqlens[end])
            share = self._threads.submit(
                self._engines[(turn + i) % len(self._engines)].run,
                token_ids[tokens],
                token_types[tokens],
                cu_seqlens[begin : end + 1] - cu_seqlens[begin],
                None if masked_positions is None else masked_positions[begin:end],
                outputs,
                None if attended is None else attended[begin:end],
            )
            shares.append(share)
        found = [share.result() for share in shares]
        return {name: np.concatenate([part[name] for part in found]) for name in outputs}

    def launches(self) -> dict[str, Any]:
        """The engines' own, together."""
        done = [engine.launches() for engine in self._engines]
        together: dict[str, Any] = {
            name: sum(one[name] for one in done) for name in ("parts", "captured", "by_graph")
        }
        together["overlap"] = all(one["overlap"] for one in done)
        together["no_graphs"] = next((one["no_graphs"] for one in done if one["no_graphs"]), "")
        return together

    def steps(self) -> list[tuple[str, str, float, int, int]]:
        """The engines' own, together."""
        together = []
        for same in zip(*(engine.steps() for engine in self._engines), strict=True):
            name, kernel = same[0][:2]
            seconds, operations, moved = (sum(step[i] for step in same) for i in (2, 3, 4))
            together.append((name, kernel, seconds, operations, moved))
        return together
