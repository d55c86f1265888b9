"""What check.py runs, each part in a process of its own:

    python benchmarks/gpu/parts.py PART RESULT.json [--trial] [--seconds S] [--bundle DIR]

A part raises what is wrong, Skipped if it cannot run here, or returns what it found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import attention as of_attention
import models
import numpy as np
import tiles as of_tiles
from models import OUTPUTS, PRECISIONS, Sizes, batch_of, bound, plan_of

__all__ = ["PARTS", "Skipped", "main"]

SPANS = "span_logits"
KERNELS = "BERTRT_CUDA_KERNELS"
# Samples a second of one GPU, BERT large on SQuAD 1.1, offline, closed division, with 99 and with
# 99.9 percent of the accuracy in fp32: https://mlcommons.org/benchmarks/inference-datacenter
MLPERF = {
    "MLPerf Inference v4.1, H200, 99 %": 9224,
    "MLPerf Inference v4.1, H200, 99.9 %": 8165,
    "MLPerf Inference v4.1, GH200, 99 %": 9864,
    "MLPerf Inference v4.1, GH200, 99.9 %": 8779,
}


class Skipped(Exception):  # noqa: N818  (no error)
    """A part that cannot run here, and why."""


class Place:
    """Where the parts run.

    Attributes:
        cuda: bertrt._cuda, or in a trial the emulator in its place.
        device: PyTorch's name of it.
        trial: whether this only tries the parts.
        seconds: that the soak takes.
        bundle: of a part about one.
    """

    def __init__(self, trial: bool, seconds: float, bundle: Path | None) -> None:
        self.trial, self.seconds, self.bundle = trial, seconds, bundle
        if trial:
            Sizes.shrink()
            self.cuda: ModuleType = models.emulated()
        else:
            from bertrt import _cuda

            self.cuda = _cuda
        self.device = "cpu" if trial else "cuda"

    def engine(self, name: str, precision: str, **options: Any) -> Any:
        """An engine for BERT base or large."""
        return self.cuda.Engine(self.cuda.Model(*plan_of(name), precision, 0), **options)

    def peers(self, name: str, precision: str) -> dict[str, Any]:
        """PyTorch's, or why there are none."""
        try:
            import peers
        except ImportError as error:
            print(f"   without PyTorch: {error}", flush=True)
            return {}
        return peers.peers_of(name, plan_of(name)[1], precision, self.device)

    def most(self, count: int) -> int:
        """So many texts; in a trial one or two."""
        return min(count, 2) if self.trial else count

    def length(self, tokens: int) -> int:
        """So many tokens of a text; in a trial as many as the models take."""
        return min(tokens, Sizes.length)

    def median_ms(self, run: Callable[[], Any], seconds: float = 0.5) -> float:
        """Of runs from host to host, for so long, and at least five; in a trial of one."""
        least, most = (1, 1) if self.trial else (5, 500)
        for _ in range(least // 2):
            run()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < least or (time.perf_counter() < end and len(times) < most):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        return float(np.median(times))

    def timed(self, peer: Callable[[], np.ndarray], exact: np.ndarray, limit: float) -> float | str:
        """A peer's median in milliseconds, or why there is none: its fault is not ours."""
        try:
            differing(peer(), exact, limit)
            return self.median_ms(peer)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:200]}"


def answer(engine: Any, ids: Any, types: Any, ends: Any, output: str) -> np.ndarray:
    return engine.run(ids, types, ends, None, [output])[output]


def differing(found: np.ndarray, exact: np.ndarray, limit: float) -> float:
    """The largest difference. Raises AssertionError where it is above the limit, or no number."""
    if found.shape != exact.shape:
        raise AssertionError(f"its result is {found.shape}, not {exact.shape}")
    difference = float(np.abs(found - exact).max())
    if not difference <= limit:
        raise AssertionError(f"its result differs by {difference}, at most {limit} is right")
    return difference


# --- whether it is right -------------------------------------------------------------------------


def machine(place: Place) -> dict[str, Any]:
    """The GPU. Raises DeviceError where there is none."""
    gpu = place.cuda.devices()[0]
    shown = ("name", "arch", "multiprocessors", "memory")
    return {name: getattr(gpu, name) for name in shown}


def parity(
    place: Place, name: str, precisions: Sequence[str] = tuple(PRECISIONS)
) -> dict[str, Any]:
    """Against the CPU engine in fp32, at lengths from 0 to the longest; and a text's bits alone."""
    from bertrt import _native

    made = plan_of(name)
    eighth = Sizes.length // 8
    lengths = [1, 7, eighth, 2 * eighth, 2 * eighth + 1, 4 * eighth - 1, 6 * eighth, Sizes.length]
    lengths += [0, 3]
    ids, types, ends = batch_of(lengths)
    threads = min(os.cpu_count() or 1, 16)
    outputs = [*OUTPUTS, SPANS]
    model = _native.Model(*made, "fp32", threads)
    exact = _native.Engine(model, threads).run(ids, types, ends, None, outputs)
    found: dict[str, Any] = {}
    for precision in precisions:
        engine = place.engine(name, precision)
        got = engine.run(ids, types, ends, None, outputs)
        found[precision] = {key: float(np.abs(got[key] - exact[key]).max()) for key in outputs}
        for i, (begin, end) in enumerate(itertools.pairwise(ends)):
            one = np.array([0, end - begin], np.int32)
            alone = engine.run(ids[begin:end], types[begin:end], one, None, outputs)
            for key in outputs:
                own = slice(i, i + 1) if key == "pooled_output" else slice(begin, end)
                if not np.array_equal(alone[key], got[key][own]):
                    raise AssertionError(
                        f"{precision} {key}: a text of {lengths[i]} has other bits alone"
                    )
        print(f"   {precision}  {found[precision]}", flush=True)
    for precision, differences in found.items():
        for key, difference in differences.items():
            limit = bound(name, precision, key)
            if not difference <= limit:
                raise AssertionError(
                    f"{precision} {key} differs by {difference}, at most {limit} is right"
                )
    return {"differences": found}


def eight_bits(place: Place, name: str, precision: str) -> dict[str, Any]:
    """Products in int8 or fp8: what they cost beside int8 on the CPU and fp16, a text's bits alone,
    and milliseconds from host to host."""
    from bertrt import _native

    if precision == "fp8" and not has_fp8(place.cuda.devices()[0].arch):
        raise Skipped("fp8 needs sm_89 or later")
    made, output = plan_of(name), "sequence_output"
    batch = batch_of([1, 7, Sizes.length // 4 + 1, Sizes.length // 2, Sizes.length])
    threads = min(os.cpu_count() or 1, 16)

    def on_cpu(precision: str) -> np.ndarray:
        model = _native.Model(*made, precision, threads)
        return answer(_native.Engine(model, threads), *batch, output)

    def rms(difference: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(difference))))

    exact, engine = on_cpu("fp32"), place.engine(name, precision)
    got = answer(engine, *batch, output)
    cost = {
        "int8 on the CPU": rms(on_cpu("int8") - exact),
        "fp16": rms(answer(place.engine(name, "fp16"), *batch, output) - exact),
        precision: rms(got - exact),
    }
    # A row of normally distributed values has steps of some 0.027 of their deviation in int8, an
    # error of 0.008; that of three bits of fraction is 0.026.
    factor = {"int8": 1.5, "fp8": 6}[precision]
    most = factor * (cost["int8 on the CPU"] + cost["fp16"])  # rows between products are fp16
    if not cost[precision] <= most:
        raise AssertionError(f"{precision} costs {cost[precision]}, at most {most} is right")
    ids, types, ends = batch
    for begin, end in itertools.pairwise(ends):
        one = np.array([0, end - begin], np.int32)
        if not np.array_equal(
            answer(engine, ids[begin:end], types[begin:end], one, output), got[begin:end]
        ):
            raise AssertionError(f"a text of {end - begin} tokens has other bits alone")
    shapes = [(1, 16), (1, 128), (1, 384), (8, 128), (32, 128), (128, 128)]
    times = {}
    for count, length in shapes:
        shape = batch_of([place.length(length)] * place.most(count))
        times[f"{count} x {length}"] = place.median_ms(partial(answer, engine, *shape, output))
    print(f"   {cost} {times}", flush=True)
    return {"rms": cost, "milliseconds": times}


def has_fp8(arch: str) -> bool:
    """Of an architecture, "sm_90"."""
    return int(arch.removeprefix("sm_")) >= 89


def verify(place: Place) -> dict[str, Any]:
    """A bundle against its golden outputs."""
    from bertrt import InvalidInputError
    from bertrt.evaluation.verify import verify

    assert place.bundle is not None
    try:
        report = verify(place.bundle, backends=["native"], device="cuda")
    except InvalidInputError as error:  # it has none
        raise Skipped(str(error)) from error
    print(report, flush=True)
    if not report.ok:
        raise AssertionError("its answers are not those that were recorded")
    return report.to_dict()


def soak(place: Place) -> dict[str, Any]:
    """Mixed shapes; those of the first half again in the second, in which no memory may go.

    In the first half the driver loads what it needs of the kernels' code as they are first used.
    """
    engine = place.engine("base", "fp16")
    engine.run(*batch_of([Sizes.length] * place.most(32)), None, OUTPUTS)

    def run(random: np.random.Generator) -> None:
        lengths = random.integers(0, Sizes.length + 1, random.integers(1, place.most(32) + 1))
        outputs = OUTPUTS if random.random() < 0.5 else OUTPUTS[1:]
        engine.run(*batch_of(lengths, int(random.integers(1 << 30))), None, outputs)

    random, runs = np.random.default_rng(1), 0
    end = time.monotonic() + place.seconds / 2
    while runs == 0 or time.monotonic() < end:
        run(random)
        runs += 1
    free, random = place.cuda.free_memory(0), np.random.default_rng(1)
    for _ in range(runs):
        run(random)
    lost = free - place.cuda.free_memory(0)
    if lost > 0:
        raise AssertionError(f"{lost} bytes of the GPU's memory are gone after {2 * runs} runs")
    return {"runs": 2 * runs}


# --- how quick it is -----------------------------------------------------------------------------


def cases(place: Place, name: str) -> dict[str, list[int]]:
    """Lengths of texts by the case's name."""
    sizes = [(1, 16), (1, 128), (1, 384), (8, 128), (32, 128), (128, 128)]
    if name == "large":
        sizes = [(1, 128), (32, 128), (32, 384)]
    found = {f"{t} x {n}": [place.length(n)] * place.most(t) for t, n in sizes}
    random = np.random.default_rng(2)
    for texts in (32, 128):
        longest = place.length(128)
        lengths = random.integers(longest // 16, longest + 1, place.most(texts)).tolist()
        found[f"{texts} ragged to 128"] = [*lengths[:-1], longest]
    if place.trial:  # of which most are the same
        return {name: found[name] for name in list(found)[-1:]}
    return found


def latency(place: Place, name: str) -> dict[str, Any]:
    """Milliseconds from host to host for the pooled output, beside PyTorch.

    Of the last layer the engine computes what that output needs; PyTorch computes all of it.
    Whose result is not ours within the bound is not timed.
    """
    output = "pooled_output"
    engines = {f"bertrt {p}": (place.engine(name, p), p) for p in PRECISIONS}
    others = {key: (peer, "fp16") for key, peer in place.peers(name, "fp16").items()}
    table: dict[str, dict[str, Any]] = {}
    for case, lengths in cases(place, name).items():
        batch = batch_of(lengths)
        exact = answer(engines["bertrt fp32"][0], *batch, output)
        row: dict[str, Any] = {}
        for key, (engine, precision) in engines.items():
            run = partial(answer, engine, *batch, output)
            differing(run(), exact, bound(name, precision, output))
            row[key] = place.median_ms(run, 0.2 if precision == "fp32" else 0.5)
        for key, (peer, precision) in others.items():
            row[key] = place.timed(
                partial(peer, *batch, output), exact, 2 * bound(name, precision, output)
            )
        table[case] = row
        print(f"   {name} {case:18}", shown(row), flush=True)
    return {"milliseconds": table}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()}


def threads(place: Place) -> dict[str, Any]:
    """Texts a second of one and of eight threads that share an engine, 1 x 128, base, fp16."""
    engine = place.engine("base", "fp16")
    batch = batch_of([place.length(128)])
    found = {}

    def work(count: int) -> None:
        for _ in range(count):
            answer(engine, *batch, "pooled_output")

    for callers in (1, 8):
        each = 1 if place.trial else 4000 // callers
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(work, [place.most(20)] * callers))  # streams and memory for each
            start = time.perf_counter()
            list(pool.map(work, [each] * callers))
            found[callers] = callers * each / (time.perf_counter() - start)
    print(f"   {found}", flush=True)
    return {"texts a second": found, "ratio": found[8] / found[1]}


def steps(place: Place) -> dict[str, Any]:
    """Microseconds of the GPU for each step of a layer in the middle, base, fp16."""
    found = {}
    for texts in (1, 128):
        engine = place.engine("base", "fp16", trace=True)
        batch = batch_of([place.length(128)] * place.most(texts))
        run = partial(answer, engine, *batch, "sequence_output")
        run()
        before = {name: seconds for name, _, seconds, _, _ in engine.steps()}
        runs = 1 if place.trial else 20
        for _ in range(runs):
            run()
        layer = f"layer{Sizes.models['base'][0] // 2}."
        found[f"{texts} x 128"] = {
            name.partition(".")[2]: (seconds - before[name]) / runs * 1e6
            for name, _, seconds, _, _ in engine.steps()
            if name.startswith(layer)
        }
    print(f"   {found}", flush=True)
    return {"microseconds": found}


def products(place: Place) -> dict[str, Any]:
    """TFLOP/s of a layer's products in bf16 and fp8 as they run, and by Hopper's instructions
    (docs/cuda.md), which no model takes unasked, with clusters of blocks where it takes them and
    without; the same bits with and without. Skipped where the GPU is not of compute capability
    9.0."""
    if not place.trial and place.cuda.devices()[0].arch != "sm_90":
        raise Skipped("Hopper's products need a GPU of compute capability 9.0")
    kernels = place.cuda.kernels
    rng = np.random.default_rng(0)
    shapes = [(2304, 768), (768, 768), (3072, 768), (768, 3072), (4096, 1024), (1024, 4096)]
    rows_of = [16, 128, 1024, 2048, 16384]
    if place.trial:
        shapes, rows_of = [(24, 80), (9, 2048)], [9]
    found: dict[str, Any] = {}
    for outputs, inputs in shapes:
        # The upper halves of floats: bf16.
        weight, x = (
            (rng.normal(size=(count, inputs)).astype(np.float32).view(np.uint32) >> 16).astype(
                np.uint16
            )
            for count in (outputs, max(rows_of))
        )
        codes = rng.integers(0, 0x7F, weight.shape, np.uint8)
        half = rng.normal(size=x.shape).astype(np.float16).view(np.uint16)
        for rows in rows_of:
            key, found_here = f"{rows} x {outputs} x {inputs}", {}
            own, alone = (
                kernels.linear("bf16", x[:rows], weight, tiles=tiles)
                for tiles in ("hopper", "hopper blocks")
            )
            if not np.array_equal(own, alone):
                raise AssertionError(f"{key}: clusters of blocks give other bits than blocks alone")
            for element in ("bf16", "fp8"):
                rate = {}
                for tiles in (None, "hopper", "hopper blocks"):
                    seconds = (
                        kernels.linear_seconds("bf16", x[:rows], weight, tiles)
                        if element == "bf16"
                        else kernels.linear_e4m3_seconds(half[:rows], codes, tiles)
                    )
                    done = 2e-12 * rows * outputs * inputs
                    rate[tiles or "as it runs"] = done / max(seconds, 1e-9)
                ahead = max(rate, key=lambda name: rate[name])
                found_here[element] = {**rate, "ahead": ahead}
                print(f"   {key} {element}  {shown(found_here[element])}", flush=True)
            found[key] = found_here
    return {"TFLOP/s": found}


def tiles(place: Place) -> dict[str, Any]:
    """Microseconds of each tile of a product at the shapes of BERT base and large, in bf16, beside
    the tile that is chosen."""
    shapes = [*of_tiles.shapes_of(768), *of_tiles.shapes_of(1024)]
    rows_of, repeats = of_tiles.ROWS, 20
    if place.trial:
        shapes, rows_of, repeats = [(24, 80), (9, 2048)], (3, 40), 1
    kernels, found = place.cuda.kernels, {}
    for shape in shapes:
        found |= of_tiles.compare(
            kernels, place.cuda.devices()[0].multiprocessors, shape, rows_of, repeats
        )
    worst = max(found, key=lambda key: found[key]["loses"])
    right = sum(row["best"] == row["chosen"] for row in found.values())
    print(f"   the best is chosen for {right} of {len(found)}; worst at {worst}", flush=True)
    return {"microseconds in bf16": found, "chosen rightly": right, "worst": worst}


def attention(place: Place) -> dict[str, Any]:
    """TFLOP/s of attention as it runs, and by Hopper's instructions, which no model takes yet;
    Skipped where the GPU is not of compute capability 9.0."""
    if not place.trial and place.cuda.devices()[0].arch != "sm_90":
        raise Skipped("Hopper's attention needs a GPU of compute capability 9.0")
    # 16,384 tokens of one length, one text of it, and SQuAD's lengths.
    lengths = {f"{n} x {n_tokens}": [n_tokens] * n for n, n_tokens in [(1, 128), (1, 384)]}
    lengths |= {f"{16384 // n} x {n}": [n] * (16384 // n) for n in (16, 64, 128, 384, 512)}
    lengths["squad"] = models.squad(92)
    shapes = [(12, 64), (16, 64), (12, 32)]
    if place.trial:
        lengths, shapes = {"of a trial": [3, 70]}, [(1, 32)]
    found: dict[str, Any] = {}
    for heads, head_dim in shapes:
        for name, texts in lengths.items():
            key = f"{name}, {heads} heads of {head_dim}"
            found[key] = of_attention.compare(place.cuda.kernels, texts, heads, head_dim)
            print(f"   {key}  {shown(found[key])}", flush=True)
    return {"TFLOP/s in bf16": found}


def kernels(place: Place, name: str) -> dict[str, Any]:
    """Whole models on Hopper's kernels: right, the same bits alone, and milliseconds from host to
    host beside mma.sync's; Skipped where the GPU is not of compute capability 9.0."""
    if not place.trial and place.cuda.devices()[0].arch != "sm_90":
        raise Skipped("Hopper's kernels need a GPU of compute capability 9.0")
    os.environ[KERNELS] = "hopper"
    found = parity(place, name, ["fp16", "bf16"])
    engines = {}
    for choice in ("mma", "hopper"):
        os.environ[KERNELS] = choice  # read when a model is loaded
        engines[choice] = place.engine(name, "bf16")
    times: dict[str, Any] = {}
    for case, lengths in cases(place, name).items():
        run = {
            choice: partial(answer, engine, *batch_of(lengths), "sequence_output")
            for choice, engine in engines.items()
        }
        limit = 2 * bound(name, "bf16", "sequence_output")
        differing(run["hopper"](), run["mma"](), limit)
        row = {choice: place.median_ms(once) for choice, once in run.items()}
        times[case] = {**row, "ahead": min(row, key=lambda choice: row[choice])}
        print(f"   {name} {case:18}", shown(times[case]), flush=True)
    return {**found, "milliseconds in bf16": times}


def operations(name: str, lengths: list[int]) -> float:
    """Additions and multiplications of the encoder's products."""
    layers, hidden, _ = Sizes.models[name]
    pairs = sum(length * length for length in lengths)
    return layers * (24.0 * hidden * hidden * sum(lengths) + 4.0 * hidden * pairs)


def offline(place: Place) -> dict[str, Any]:
    """BERT large with the head for question answering, texts of SQuAD's lengths: texts a second.

    Beside PyTorch on the same texts, in the same order, 16,384 tokens at a time, and beside what
    was published.
    """
    name, count = "large", place.most(4096)
    lengths = models.squad(count)
    batch = batch_of(lengths)
    parts = in_parts(*batch, 16384)
    exact = answer(place.engine(name, "fp32"), *parts[0], SPANS)
    found: dict[str, Any] = {}

    def rate(key: str, run: Callable[[], Any]) -> None:
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        teraflops = operations(name, lengths) / seconds / 1e12
        found[key] = {"texts a second": count / seconds, "TFLOP/s": teraflops}
        print(f"   {key:40} {count / seconds:8.0f} texts/s  {teraflops:6.1f} TFLOP/s", flush=True)

    for precision in ("fp16", "bf16"):
        limit = bound(name, precision, SPANS)
        engine = place.engine(name, precision)
        differing(answer(engine, *parts[0], SPANS), exact, limit)
        rate(f"bertrt {precision}", lambda e=engine: answer(e, *batch, SPANS))
        for key, peer in place.peers(name, precision).items():
            # A graph is made for one shape, and here each part has its own.
            if key.endswith("graph"):
                continue
            try:
                differing(peer(*parts[0], SPANS), exact, 2 * limit)
                rate(key, lambda p=peer: [p(*part, SPANS) for part in parts])
            except Exception as error:
                found[key] = f"{type(error).__name__}: {str(error)[:200]}"
                print(f"   {key:40} {found[key]}", flush=True)
    for key, texts in MLPERF.items():
        found[key] = {"texts a second": texts}
        print(f"   {key:40} {texts:8.0f} texts/s  (published)", flush=True)
    return {"texts": count, "tokens": sum(lengths), "rates": found}


def in_parts(ids: Any, types: Any, ends: Any, most: int) -> list[tuple[Any, Any, Any]]:
    """A batch as several, of whole texts and at most so many tokens each."""
    found, first = [], 0
    while first < len(ends) - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + most, "right")) - 1)
        tokens = slice(ends[first], ends[last])
        found.append((ids[tokens], types[tokens], ends[first : last + 1] - ends[first]))
        first = last
    return found


def texts(place: Place) -> dict[str, Any]:
    """A bundle's texts a second by predict(), beside its encoder alone on their tokens."""
    from bertrt import Engine
    from bertrt.batch import PackedBatch

    assert place.bundle is not None
    random = np.random.default_rng(4)
    words = np.array(["a", "boat", "on", "the", "sea", "was", "seen", "by", "all", "that", "day"])
    given = [" ".join(random.choice(words, n)) for n in random.integers(4, 100, place.most(8192))]
    found = {}
    with Engine.load(place.bundle, device="cuda", precision="fp16") as engine:
        if engine.tokenizer is None:
            raise Skipped("the bundle has no tokenizer")
        encoded = engine.tokenizer.encode(given)
        ids, types = (np.concatenate([getattr(e, k) for e in encoded]) for k in ("ids", "types"))
        ends = np.concatenate([[0], np.cumsum([len(e.ids) for e in encoded])]).astype(np.int32)
        parts = [PackedBatch(*part) for part in in_parts(ids, types, ends, 16384)]
        with engine._life.use("texts") as call:
            backend = call.backend
        for key, run in {
            "predict": lambda: engine.predict(given),
            "encoder alone": lambda: [backend.run(part, ["sequence_output"]) for part in parts],
        }.items():
            run()
            start = time.perf_counter()
            run()
            found[key] = len(given) / (time.perf_counter() - start)
    print(f"   {found}", flush=True)
    return {"texts a second": found}


def onnxruntime(place: Place) -> dict[str, Any]:
    """A bundle by bertrt and by onnxruntime, both on the GPU in fp32."""
    from bertrt import BertrtError, Engine

    assert place.bundle is not None
    found, results = {}, {}
    for backend in ("native", "onnxruntime"):
        try:
            engine = Engine.load(place.bundle, backend=backend, device="cuda")
        except BertrtError as error:
            if backend == "native":
                raise
            raise Skipped(str(error)) from error
        with engine:
            ids = np.random.default_rng(0).integers(1, 9, (8, min(128, engine.max_length)))
            results[backend] = engine.run(ids)
            found[backend] = place.median_ms(partial(engine.run, ids))
    for name, value in results["native"].items():
        np.testing.assert_allclose(value, results["onnxruntime"][name], atol=1e-3)
    return {"milliseconds of 8 x 128": found}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "machine": machine,
    **{f"parity {name}": partial(parity, name=name) for name in ("base", "large")},
    **{
        f"{precision} {name}": partial(eight_bits, name=name, precision=precision)
        for precision in ("int8", "fp8")
        for name in ("base", "large")
    },
    "verify": verify,
    "soak": soak,
    **{f"latency {name}": partial(latency, name=name) for name in ("base", "large")},
    "threads": threads,
    "steps": steps,
    "products": products,
    "tiles": tiles,
    "attention": attention,
    **{f"kernels {name}": partial(kernels, name=name) for name in ("base", "large")},
    "offline": offline,
    "texts": texts,
    "onnxruntime": onnxruntime,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("result", type=Path)
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--bundle", type=Path)
    arguments = parser.parse_args()
    place = Place(arguments.trial, arguments.seconds, arguments.bundle)
    try:
        found = {"status": "passed", **PARTS[arguments.part](place)}
    except Skipped as reason:
        found = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    arguments.result.write_text(json.dumps(found))
    return 1 if found["status"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
