"""Everything that needs a GPU, in one command: `make gpu-check`, or this file.

Builds the CUDA backend in place, runs its tests on the GPU (and on the emulator), runs some of them
under compute-sanitizer, compares BERT base and large with the CPU engine, verifies bundles against
their golden outputs, runs mixed shapes for minutes while it watches the GPU's memory, and times
the engine beside PyTorch, and bundles beside onnxruntime. It writes what it found to
benchmarks/results/gpu-<name of the GPU>.json and exits with 1 if anything failed, with 2 if there
is no GPU. It needs numpy, tokenizers, tqdm, pybind11, cmake, ninja, pytest, hypothesis and nvcc;
PyTorch and onnxruntime-gpu are timed where they are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "gpu"
RESULTS = ROOT / "benchmarks" / "results"

MODELS = {"base": (12, 768, 12), "large": (24, 1024, 16)}
VOCAB, LENGTH = 30522, 512
PRECISIONS = ("fp32", "fp16", "bf16")
# What rounding moves a number by at most, relative.
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
OUTPUTS = ["sequence_output", "pooled_output"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles to verify and to time")
    parser.add_argument("--soak", type=float, default=180, help="seconds of mixed shapes")
    arguments = parser.parse_args()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        print(f"bertrt: no GPU here: the NVIDIA driver is not installed ({error})", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    report = Report()
    if not report.stage("build", build):
        return report.end(None)
    from bertrt import DeviceError, _cuda

    try:
        gpu = _cuda.devices()[0]
    except DeviceError as error:
        print(f"bertrt: no GPU here: {error}", file=sys.stderr)
        return 2
    report.found["gpu"] = {
        "name": gpu.name,
        "arch": gpu.arch,
        "multiprocessors": gpu.multiprocessors,
        "memory": gpu.memory,
        "driver": driver(),
    }
    print(f"{gpu.name}, {gpu.arch}")
    report.stage("tests", tests)
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        report.stage(tool, lambda tool=tool: sanitize(tool))
    for name in MODELS:
        report.stage(f"parity {name}", lambda name=name: parity(name))
    for bundle in arguments.bundles:
        report.stage(f"verify {bundle.name}", lambda bundle=bundle: verify(bundle))
    report.stage("soak", lambda: soak(arguments.soak))
    for name in MODELS:
        report.stage(f"speed {name}", lambda name=name: speed(name))
    for bundle in arguments.bundles:
        report.stage(f"onnxruntime {bundle.name}", lambda bundle=bundle: onnxruntime(bundle))
    return report.end(gpu.name)


class Report:
    """What each stage found, written down when all have run."""

    def __init__(self) -> None:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        self.found: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": git.stdout.strip(),
            "host": platform.node(),
            "python": platform.python_version(),
            "stages": {},
        }

    def stage(self, name: str, run: Callable[[], dict[str, Any]]) -> bool:
        """Run a stage; one that fails is written down, and the next one runs."""
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            result = {"status": "passed", **run()}
        except Skipped as reason:
            result = {"status": "skipped", "reason": str(reason)}
        except Exception as error:
            result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.perf_counter() - start, 1)
        self.found["stages"][name] = result
        print(f"   {result['status']}  {result.get('reason', '')}", flush=True)
        return result["status"] == "passed"

    def end(self, gpu: str | None) -> int:
        """Write the file, and say how many stages failed."""
        stages = self.found["stages"]
        failed = [name for name, result in stages.items() if result["status"] == "failed"]
        if gpu is not None:
            name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
            path = RESULTS / f"gpu-{name}.json"
            path.write_text(json.dumps(self.found, indent=2) + "\n")
            print(f"wrote {path}")
        print(f"failed: {', '.join(failed)}" if failed else "nothing failed")
        return 1 if failed else 0


class Skipped(Exception):  # noqa: N818  (no error)
    """A stage that cannot run here, and why."""


def command(*words: object, **options: Any) -> str:
    """Run a command; its output is in the error if it fails."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} exited with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def driver() -> str:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "unknown"
    return command(smi, "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def build() -> dict[str, Any]:
    """Both extensions, into the package where it lies."""
    import pybind11

    command(
        *("cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DBERTRT_CUDA=ON"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'bertrt'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    command("cmake", "--build", BUILD)
    return {}


def tests() -> dict[str, Any]:
    output = command(sys.executable, "-m", "pytest", "tests/cuda", "-q", "-rs")
    return {"summary": output.strip().split("\n")[-1]}


def sanitize(tool: str) -> dict[str, Any]:
    """The GPU's tests but those of large shapes, under a tool of compute-sanitizer."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not on the PATH")
    output = command(
        *(sanitizer, "--tool", tool, "--error-exitcode", "3"),
        *(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "tests/cuda",
            "-k",
            "gpu and not sizes_of_models",
        ),
    )
    return {
        "summary": [line for line in output.split("\n") if "SUMMARY" in line or "passed" in line]
    }


# --- models with random weights ------------------------------------------------------------------


def plan_of(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """BERT with a pooler; scores have a deviation of about 1, as trained ones do."""
    layers, hidden, heads = MODELS[name]
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def draw(key: str, *shape: int) -> list[str]:
        deviation = 0.02 if len(shape) > 1 else 0.1
        weights[key] = random.normal(0, deviation, shape).astype(np.float32)
        return [key]

    def norm(key: str) -> dict[str, list[str]]:
        weights[f"{key}.gamma"] = random.normal(1, 0.1, hidden).astype(np.float32)
        return {"gamma": [f"{key}.gamma"], "beta": draw(f"{key}.beta", hidden)}

    def linear(key: str, outputs: int, inputs: int) -> dict[str, list[str]]:
        return {"weight": draw(key, outputs, inputs), "bias": draw(f"{key}.bias", outputs)}

    steps: list[dict[str, Any]] = [
        {
            "op": "embed_layer_norm",
            "name": "embeddings",
            "inputs": [],
            "output": "x0",
            "eps": 1e-12,
            "weights": {
                "word": draw("word", VOCAB, hidden),
                "type": draw("type", 2, hidden),
                "position": draw("position", LENGTH, hidden),
                **norm("embeddings"),
            },
        }
    ]
    shape = {"heads": heads, "head_dim": hidden // heads}
    dense = {"transposed": False, "activation": "none"}
    for i in range(layers):
        parts = [linear(f"{i}.{part}", hidden, hidden) for part in "qkv"]
        steps += [
            {
                "op": "qkv_linear",
                "name": f"layer{i}.qkv",
                "inputs": [f"x{i}"],
                "output": f"qkv{i}",
                "weights": {
                    role: [key for part in parts for key in part[role]]
                    for role in ("weight", "bias")
                },
                "weight_layout": "separate",
                "bias_layout": "separate",
                "transposed": False,
                **shape,
            },
            {
                "op": "attention",
                "name": f"layer{i}.attention",
                "inputs": [f"qkv{i}"],
                "output": f"c{i}",
                "weights": {},
                "scale": shape["head_dim"] ** -0.5,
                "mask": "valid_length",
                **shape,
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"layer{i}.attention_output",
                "inputs": [f"c{i}", f"x{i}"],
                "output": f"a{i}",
                "weights": {**linear(f"{i}.o", hidden, hidden), **norm(f"{i}.a")},
                "eps": 1e-12,
                "transposed": False,
            },
            {
                **dense,
                "op": "linear",
                "name": f"layer{i}.ffn",
                "inputs": [f"a{i}"],
                "output": f"f{i}",
                "weights": linear(f"{i}.f", 4 * hidden, hidden),
                "activation": "gelu_erf",
            },
            {
                "op": "linear_add_layer_norm",
                "name": f"layer{i}.ffn_output",
                "inputs": [f"f{i}", f"a{i}"],
                "output": f"x{i + 1}",
                "weights": {**linear(f"{i}.g", hidden, 4 * hidden), **norm(f"{i}.x")},
                "eps": 1e-12,
                "transposed": False,
            },
        ]
    steps += [
        {
            "op": "first_token",
            "name": "first",
            "inputs": [f"x{layers}"],
            "output": "cls",
            "weights": {},
        },
        {
            **dense,
            "op": "linear",
            "name": "pooler",
            "inputs": ["cls"],
            "output": "pooled",
            "weights": linear("pooler", hidden, hidden),
            "activation": "tanh",
        },
    ]
    plan = {
        "version": 1,
        "architecture": {
            "hidden": hidden,
            "vocab_size": VOCAB,
            "type_vocab_size": 2,
            "max_length": LENGTH,
        },
        "steps": steps,
        "outputs": {"sequence_output": f"x{layers}", "pooled_output": "pooled"},
    }
    return plan, weights


def batch_of(lengths: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids = random.integers(0, VOCAB, ends[-1], dtype=np.int32)
    return ids, random.integers(0, 2, ends[-1], dtype=np.int32), ends


def bound(name: str, precision: str, output: str) -> float:
    """The largest difference from the CPU's fp32 that is right: docs/numerics.md.

    In 16 bits a layer rounds eight arrays of rows of a deviation of about 1. The errors are
    independent: u sqrt(8 layers / 3) is their deviation, and among a million values the largest is
    within 6 of it; twice that is allowed.
    """
    layers = MODELS[name][0]
    if precision == "fp32":
        return 2e-5 if output == "pooled_output" else 5e-5 if layers <= 12 else 1e-4
    return 12 * ROUNDING[precision] * (8 * layers / 3) ** 0.5


def parity(name: str) -> dict[str, Any]:
    """Against the CPU engine in fp32, at lengths from 0 to 512; and a text's bits alone."""
    from bertrt import _cuda, _native

    made = plan_of(name)
    eighth = LENGTH // 8
    lengths = [1, 7, eighth, 2 * eighth, 2 * eighth + 1, 4 * eighth - 1, 6 * eighth, LENGTH, 0, 3]
    ids, types, ends = batch_of(lengths)
    threads = min(os.cpu_count() or 1, 16)
    model = _native.Model(*made, "fp32", threads)
    exact = _native.Engine(model, threads).run(ids, types, ends, None, OUTPUTS)
    found: dict[str, Any] = {}
    for precision in PRECISIONS:
        engine = _cuda.Engine(_cuda.Model(*made, precision, 0))
        got = engine.run(ids, types, ends, None, OUTPUTS)
        found[precision] = {key: float(np.abs(got[key] - exact[key]).max()) for key in OUTPUTS}
        for i, (begin, end) in enumerate(itertools.pairwise(ends)):
            alone = engine.run(
                ids[begin:end],
                types[begin:end],
                np.array([0, end - begin], np.int32),
                None,
                OUTPUTS,
            )
            same = np.array_equal(alone["sequence_output"], got["sequence_output"][begin:end])
            same &= np.array_equal(alone["pooled_output"][0], got["pooled_output"][i])
            if not same:
                raise AssertionError(f"{precision}: a text of {lengths[i]} has other bits alone")
        print(f"   {precision}  {found[precision]}")
    for precision, largest in found.items():
        for output, difference in largest.items():
            if not difference <= bound(name, precision, output):
                raise AssertionError(
                    f"{precision} {output} differs by {difference}, bound "
                    f"{bound(name, precision, output)}"
                )
    return {"differences": found}


def verify(bundle: Path) -> dict[str, Any]:
    output = command(sys.executable, "-m", "bertrt", "verify", bundle, "--device", "cuda")
    return {"output": output.strip().split("\n")}


def soak(seconds: float) -> dict[str, Any]:
    """Mixed shapes, after the largest one; the GPU's free memory must not change."""
    from bertrt import _cuda

    engine = _cuda.Engine(_cuda.Model(*plan_of("base"), "fp16", 0))
    largest = batch_of([LENGTH] * 32)
    engine.run(*largest, None, OUTPUTS)
    free, random, runs = _cuda.free_memory(0), np.random.default_rng(1), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lengths = random.integers(0, LENGTH + 1, random.integers(1, 33))
        outputs = OUTPUTS if random.random() < 0.5 else OUTPUTS[1:]
        engine.run(*batch_of(lengths, int(random.integers(1 << 30))), None, outputs)
        runs += 1
    lost = free - _cuda.free_memory(0)
    if lost > 0:
        raise AssertionError(f"{lost} bytes of the GPU's memory are gone after {runs} runs")
    return {"runs": runs}


# --- speed ---------------------------------------------------------------------------------------


def cases() -> dict[str, list[int]]:
    """Lengths by name: full batches, and ragged ones of the same number of texts."""
    random = np.random.default_rng(2)
    found = {}
    for length in (LENGTH // 4, 3 * LENGTH // 4):
        for texts in (1, 8, 32, 128):
            found[f"{texts} x {length}"] = [length] * texts
            if texts > 1:
                lengths = random.integers(length // 16, length + 1, texts).tolist()
                found[f"{texts} ragged to {length}"] = [*lengths[:-1], length]
    return found


def median_ms(run: Callable[[], Any]) -> float:
    """Of 20 runs after 5, each with its inputs from and its results to the host."""
    times = []
    for i in range(25):
        start = time.perf_counter()
        run()
        if i >= 5:
            times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def pooled(engine: Any, ids: np.ndarray, types: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return engine.run(ids, types, ends, None, ["pooled_output"])["pooled_output"]


def speed(name: str) -> dict[str, Any]:
    """Milliseconds for the pooled output, beside PyTorch in fp16."""
    from bertrt import _cuda

    made = plan_of(name)
    engines = {
        f"bertrt {precision}": _cuda.Engine(_cuda.Model(*made, precision, 0))
        for precision in PRECISIONS
    }
    try:
        peers = torch_models(name, made[1])
    except ImportError as error:
        peers = {}
        print(f"   without PyTorch: {error}")
    table: dict[str, dict[str, Any]] = {}
    for case, lengths in cases().items():
        ids, types, ends = batch_of(lengths)
        row: dict[str, Any] = {}
        exact = None
        runs: dict[str, Callable[[], np.ndarray]] = {
            **{key: partial(pooled, engine, ids, types, ends) for key, engine in engines.items()},
            **{key: partial(peer, ids, types, lengths) for key, peer in peers.items()},
        }
        for key, run in runs.items():
            try:
                result = run()
                exact = result if exact is None else exact
                difference = float(np.abs(result - exact).max())
                precision = key.split()[-1] if key.startswith("bertrt") else "fp16"
                if not difference <= bound(name, precision, "pooled_output"):
                    raise AssertionError(f"its result differs by {difference}")
                row[key] = median_ms(run)
            except Exception as error:
                if key.startswith("bertrt"):
                    raise
                row[key] = f"{type(error).__name__}: {error}"
        table[case] = row
        print(
            f"   {case:20}", {k: v if isinstance(v, str) else round(v, 3) for k, v in row.items()}
        )
    return {"milliseconds": table}


def torch_models(name: str, weights: dict[str, np.ndarray]) -> dict[str, Callable[..., np.ndarray]]:
    """The same model in PyTorch: fp16, scaled_dot_product_attention, eager and compiled."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    layers, hidden, heads = MODELS[name]
    w = {key: torch.from_numpy(array).cuda().half() for key, array in weights.items()}
    for i in range(layers):
        w[f"{i}.qkv"] = torch.cat([w.pop(f"{i}.{part}") for part in "qkv"])
        w[f"{i}.qkv.bias"] = torch.cat([w.pop(f"{i}.{part}.bias") for part in "qkv"])

    def norm(x: Any, key: str) -> Any:
        return F.layer_norm(x, (hidden,), w[f"{key}.gamma"], w[f"{key}.beta"], 1e-12)

    def linear(x: Any, key: str) -> Any:
        return F.linear(x, w[key], w[f"{key}.bias"])

    def forward(ids: Any, types: Any, mask: Any) -> Any:
        x = w["word"][ids] + w["type"][types] + w["position"][: ids.shape[1]]
        x = norm(x, "embeddings")
        for i in range(layers):
            qkv = linear(x, f"{i}.qkv").view(*ids.shape, 3, heads, hidden // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            c = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            c = c.transpose(1, 2).reshape(*ids.shape, hidden)
            a = norm(linear(c, f"{i}.o") + x, f"{i}.a")
            x = norm(linear(F.gelu(linear(a, f"{i}.f")), f"{i}.g") + a, f"{i}.x")
        return torch.tanh(linear(x[:, 0], "pooler"))

    def run(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
        def answer(ids: np.ndarray, types: np.ndarray, lengths: list[int]) -> np.ndarray:
            valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
            padded = np.zeros((2, *valid.shape), np.int64)
            padded[:, valid] = np.stack([ids, types])
            inputs = torch.from_numpy(padded).cuda()
            mask = None if valid.all() else torch.from_numpy(valid).cuda()[:, None, None]
            with torch.inference_mode():
                return function(inputs[0], inputs[1], mask).float().cpu().numpy()

        return answer

    return {
        f"PyTorch {torch.__version__} fp16": run(forward),
        f"PyTorch {torch.__version__} fp16 compiled": run(torch.compile(forward)),
    }


def onnxruntime(bundle: Path) -> dict[str, Any]:
    """A bundle by bertrt and by onnxruntime, both on the GPU in fp32."""
    from bertrt import BertrtError, Engine

    ids = np.random.default_rng(0).integers(1000, 2000, (8, 128))
    found = {}
    results = {}
    for backend in ("native", "onnxruntime"):
        try:
            engine = Engine.load(bundle, backend=backend, device="cuda")
        except BertrtError as error:
            raise Skipped(str(error)) from error
        with engine:
            results[backend] = engine.run(ids)
            found[backend] = median_ms(lambda e=engine: e.run(ids))
    for name, value in results["native"].items():
        np.testing.assert_allclose(value, results["onnxruntime"][name], atol=1e-3)
    return {"milliseconds of 8 x 128": found}


if __name__ == "__main__":
    sys.exit(main())
