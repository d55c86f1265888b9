"""Everything that needs a GPU, in one command: `make gpu-check`, or this file.

Builds the CUDA backend in place, and the emulator. Then, side by side: the tests on the GPU and on
the emulator, the GPU's tests but those of large shapes under the four tools of compute-sanitizer,
BERT base and large beside the CPU engine, and bundles beside their golden outputs. Then, one after
the other, with the GPU for itself: mixed shapes while the GPU's memory is watched, and times beside
PyTorch (peers.py), beside what MLPerf published, and beside onnxruntime.

Each part is a process of its own that has so many seconds, so that none can hang the others or
break their GPU. What each found is in benchmarks/results/gpu-<name of the GPU>.json as soon as it
ends. Exits with 1 if anything failed, with 2 if there is no GPU. What the parts may take comes to
ten minutes, besides the build, and two for each bundle.

It needs numpy, tokenizers, tqdm, pybind11, cmake, ninja, pytest, hypothesis, nvcc and
compute-sanitizer, which is looked for in $CUDA_HOME, on the PATH, in /usr/local/cuda and in the
wheel nvidia-cuda-sanitizer-api. PyTorch and onnxruntime-gpu are timed where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import glob
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
RESULTS = ROOT / "benchmarks" / "results"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
# Seconds for each part that runs beside others; and how much slower the machine of a trial is.
TOGETHER = 220
SLOWER = 10
# Tests of products: half of what the sanitizers run.
PRODUCTS = (
    "test_fp8",
    "test_hopper",
    "test_hopper_attention",
    "test_kernel_choice",
    "test_products",
    "test_tiles",
)
# What the sanitizers say when they have found nothing.
CLEAN = re.compile(r"(ERROR|RACECHECK) SUMMARY: 0 (errors|hazards)")
PASSED = re.compile(r"(\d+) passed")


@dataclass
class Part:
    """A command, and what it has to say.

    Attributes:
        name: in the results.
        command: its words; {result} becomes a path for what it found, JSON.
        seconds: that it may take.
        says: looks at what it printed. Raises ValueError for what is wrong; what it returns is
            written down.
    """

    name: str
    command: list[Any]
    seconds: float
    says: Callable[[str], dict[str, Any]] = field(default=lambda output: {})


class Report:
    """What each part found, on the disk as soon as it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "gpu-unnamed.json"
        self.parts: dict[str, dict[str, Any]] = {}
        self.found: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": first_line("git", "-C", ROOT, "rev-parse", "HEAD"),
            "changed": bool(first_line("git", "-C", ROOT, "status", "--porcelain", "-uno")),
            "host": platform.node(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "driver": first_line(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
            "parts": self.parts,
        }

    def name(self, gpu: dict[str, Any]) -> None:
        """From here on the file has the GPU's name."""
        self.found["gpu"] = gpu
        name = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
        self.path = self.folder / f"gpu-{name}.json"

    def add(self, name: str, result: dict[str, Any], output: str) -> None:
        """Write a part's result down, and print it: of its output what is there to be read."""
        self.parts[name] = result
        if result["status"] == "failed":
            result["output"] = output[-4000:]
            print(output[-4000:])
        else:
            print("".join(line for line in output.splitlines(True) if line[:3] == "   "), end="")
        print(
            f"== {name}: {result['status']}, {result['seconds']} s  {result.get('reason', '')}",
            flush=True,
        )
        if "gpu" in self.found:
            aside = self.path.with_suffix(".part")
            aside.write_text(json.dumps(self.found, indent=2) + "\n")
            aside.replace(self.path)

    def end(self, seconds: float) -> int:
        """Say what did not pass, and return the exit status."""
        if "gpu" in self.found:
            print(f"wrote {self.path}")
        for status in ("skipped", "failed"):
            names = [name for name, result in self.parts.items() if result["status"] == status]
            print(f"{status}: {', '.join(names) or 'nothing'}")
        print(f"{seconds:.0f} s in all")
        return 1 if any(result["status"] == "failed" for result in self.parts.values()) else 0


def first_line(*words: object) -> str:
    """The first line that a command prints; empty if it cannot be run."""
    try:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.partition("\n")[0]


# What runs now. Each is the first of a session.
running: set[subprocess.Popen[Any]] = set()


def ended(*_: object) -> None:
    """SIGTERM is an exception, as SIGINT is: what runs is ended with this process."""
    sys.exit("bertrt: ended by SIGTERM")


def kill(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    running.discard(process)


def run(part: Part, scratch: Path) -> tuple[dict[str, Any], str]:
    """A part in a session of its own, which ends with it or with its seconds; and its output."""
    label = re.sub(r"\W+", "-", part.name)
    out, result = scratch / f"{label}.txt", scratch / f"{label}.json"
    result.unlink(missing_ok=True)
    words = [str(result) if word == "{result}" else str(word) for word in part.command]
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        with open(out, "w") as file:
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            running.add(process)
            try:
                status = process.wait(part.seconds)
            finally:
                kill(process)
        output = out.read_text(errors="replace")
        if result.exists():
            found = json.loads(result.read_text())
        elif status:
            raise ValueError(f"it exited with {status}")
        else:
            found = {"status": "passed"}
        found |= part.says(output) if found["status"] == "passed" else {}
    except subprocess.TimeoutExpired:
        found = {"status": "failed", "reason": f"it took longer than {part.seconds:.0f} s"}
    except (OSError, ValueError) as error:
        found = {"status": "failed", "reason": str(error)}
    found["seconds"] = round(time.perf_counter() - start, 1)
    return found, out.read_text(errors="replace") if out.exists() else ""


def together(parts: list[Part], report: Report, scratch: Path, at_once: int) -> None:
    """Several parts side by side, each written down as it ends; with this process they end."""
    with ThreadPoolExecutor(at_once) as pool:
        names = {pool.submit(run, part, scratch): part.name for part in parts}
        try:
            for future in as_completed(names):
                report.add(names[future], *future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                kill(process)
            raise


# --- the parts -----------------------------------------------------------------------------------


def tools_of_python() -> str:
    """The PATH with the interpreter's own folder first: cmake and ninja may be its packages."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def builds(trial: bool) -> list[Part]:
    """Both extensions, into the package where it lies, and the emulator where its tests look."""
    import pybind11

    tag = sys.implementation.cache_tag
    common = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
    ]
    kinds = {
        "build": (
            BUILD,
            ["-DBERTRT_CUDA=ON", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={ROOT / 'bertrt'}"],
            [],
        ),
        "build of the emulator": (
            ROOT / "build" / f"emulated-{tag}",
            ["-DBERTRT_CUDA=EMULATED"],
            ["--target", "_cuda_emulated"],
        ),
    }
    found = []
    for name, (folder, options, target) in kinds.items():
        if trial and name == "build":
            continue
        configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options, *common]
        build = ["cmake", "--build", folder, *target]
        found += [Part(f"{name}, configured", configure, 120), Part(name, build, 1800)]
    return found


def passed(output: str) -> dict[str, Any]:
    """Of pytest: how many, one at least."""
    found = PASSED.findall(output)
    if not found:
        raise ValueError("no test has passed")
    return {"tests": int(found[-1]), "summary": output.strip().split("\n")[-1]}


def clean(output: str) -> dict[str, Any]:
    """Of a sanitizer: that it ran, and found nothing."""
    found = passed(output)
    if not CLEAN.search(output):
        raise ValueError("the sanitizer has not said that it found no errors")
    return found


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    spec = importlib.util.find_spec("nvidia")
    wheels = list(spec.submodule_search_locations or []) if spec else []
    toolkits = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else []
    places = [f"{toolkit}/bin" for toolkit in toolkits]
    places += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    places += [found for wheel in wheels for found in glob.glob(f"{wheel}/cu*/bin")]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def side_by_side(bundles: list[Path], trial: bool) -> list[Part]:
    """What does not mind others on the GPU."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    # A trial has no GPU: a few tests on the emulator stand for those on it.
    gpu = ["-m", "not gpu", "-k", "gelu_is or conversions"] if trial else ["-m", "gpu"]
    quick = gpu if trial else ["-m", "gpu", "-k", "not sizes_of_models"]
    emulated = gpu if trial else ["-m", "not gpu"]
    limit = TOGETHER * (SLOWER if trial else 1)
    compute_sanitizer = sanitizer() or "compute-sanitizer"
    # In two halves, of which one is the products.
    files = sorted((ROOT / "tests" / "cuda").glob("test_*.py"))
    halves = {"products": [path for path in files if path.stem in PRODUCTS]}
    if not trial:
        halves["others"] = [path for path in files if path.stem not in PRODUCTS]
    found = []
    for half, paths in halves.items():
        for place, chosen in {"GPU": gpu, "emulator": emulated}.items():
            name = f"tests on the {place}, {half}"
            found.append(Part(name, [*pytest, *chosen, *paths], limit, passed))
        for tool in TOOLS:
            checked = [compute_sanitizer, "--tool", tool, "--error-exitcode", "3"]
            words = [*checked, *pytest, "-x", *quick, *paths]
            found.append(Part(f"{tool}, {half}", words, limit, clean))
    found += [part_of(f"parity {name}", TOGETHER, trial) for name in ("base", "large")]
    found += [part_of("verify", TOGETHER, trial, bundle) for bundle in bundles]
    return found


def alone(bundles: list[Path], trial: bool, soak: float) -> list[Part]:
    """What is timed, or counts the GPU's memory."""
    found = [
        part_of("soak", soak + 20, trial, seconds=soak),
        part_of("latency base", 50, trial),
        part_of("latency large", 40, trial),
        part_of("threads", 20, trial),
        part_of("steps", 20, trial),
        part_of("products", 30, trial),
        part_of("tiles", 90, trial),
        part_of("int8 base", 20, trial),
        part_of("int8 large", 40, trial),
        part_of("fp8 base", 20, trial),
        part_of("fp8 large", 40, trial),
        part_of("attention", 30, trial),
        part_of("kernels base", 40, trial),
        part_of("kernels large", 60, trial),
        part_of("offline", 60, trial),
    ]
    for bundle in bundles:
        found += [part_of("texts", 60, trial, bundle), part_of("onnxruntime", 60, trial, bundle)]
    return found


def part_of(
    name: str, limit: float, trial: bool, bundle: Path | None = None, seconds: float = 0
) -> Part:
    """One of parts.py."""
    command: list[Any] = [sys.executable, Path(__file__).with_name("parts.py"), name, "{result}"]
    command += ["--seconds", seconds] if seconds else []
    command += ["--bundle", bundle] if bundle else []
    command += ["--trial"] if trial else []
    limit *= SLOWER if trial else 1
    return Part(f"{name} {bundle.name}" if bundle else name, command, limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, help="bundles to verify and to time")
    parser.add_argument("--soak", type=float, default=30, help="seconds of mixed shapes")
    parser.add_argument(
        "--trial",
        type=Path,
        metavar="DIR",
        help="try this file without a GPU: tiny models on the emulator, results into DIR, where "
        "they say nothing about any GPU",
    )
    arguments = parser.parse_args()
    trial = arguments.trial is not None
    signal.signal(signal.SIGTERM, ended)
    if not trial:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            print(f"bertrt: no GPU here: no NVIDIA driver is installed ({error})", file=sys.stderr)
            return 2
    os.environ["PATH"] = tools_of_python()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    bundles = [bundle.resolve() for bundle in arguments.bundles]
    scratch = (arguments.trial or ROOT / "build").resolve() / "gpu-check"
    scratch.mkdir(parents=True, exist_ok=True)
    report = Report(arguments.trial.resolve() if trial else RESULTS)
    start = time.perf_counter()

    def done(part: Part) -> bool:
        result, output = run(part, scratch)
        report.add(part.name, result, output)
        return result["status"] == "passed"

    if not all(map(done, builds(trial))):
        return report.end(time.perf_counter() - start)
    first = part_of("machine", 20, trial)
    result, output = run(first, scratch)
    if result["status"] == "failed" and "DeviceError" in result["reason"]:
        print(f"bertrt: no GPU here: {result['reason']}", file=sys.stderr)
        return 2
    if result["status"] == "passed":
        report.name({key: result[key] for key in ("name", "arch", "multiprocessors", "memory")})
    report.add(first.name, result, output)
    if result["status"] != "passed":
        return report.end(time.perf_counter() - start)
    parts = side_by_side(bundles, trial)
    together(parts, report, scratch, at_once=2 if trial else len(parts))
    for part in alone(bundles, trial, arguments.soak):
        done(part)
    return report.end(time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
