"""benchmarks/gpu/check.py where there is no GPU: on the emulator, with tools that pretend."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"

# Both run the command behind the options; this one finds nothing.
SANITIZER = """#!/bin/sh
test "$1" = --tool && test "$3" = --error-exitcode || exit 9
tool=$2; shift 4
"$@" || exit $?
case $tool in
  racecheck) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)";;
  *) echo "========= ERROR SUMMARY: 0 errors";;
esac
"""


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", FOLDER / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.skipif(
    "BERTRT_GPU_TRIAL" not in os.environ, reason="minutes: BERTRT_GPU_TRIAL=1 runs it"
)
def test_all_of_it_runs(tmp_path, hugging):
    pytest.importorskip("pybind11", reason="the emulator is built with pybind11")
    bundle = hugging.write(hugging.config, hugging.weights(hugging.config))
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "compute-sanitizer": SANITIZER,
        "nvidia-smi": "#!/bin/sh\necho 580.00\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], str(tools)])
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_HOME"} | {"PATH": path}
    done = subprocess.run(
        [sys.executable, FOLDER / "check.py", bundle, "--trial", tmp_path, "--soak", "0.1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: nothing" in done.stdout
    found = json.loads((tmp_path / "gpu-emulated-device.json").read_text())
    assert found["driver"] == "580.00"
    assert found["gpu"]["arch"] == "sm_89"
    parts = found["parts"]
    skipped = {name for name, part in parts.items() if part["status"] != "passed"}
    # It has no recorded outputs, and onnxruntime has no provider for CUDA here.
    assert skipped <= {f"{part} {bundle.name}" for part in ("verify", "onnxruntime", "texts")}
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert parts[f"{tool}, products"]["tests"] > 0
    assert parts["parity large"]["differences"]["fp32"]["sequence_output"] < 1e-4
    assert parts["offline"]["rates"]["MLPerf Inference v4.1, H200, 99 %"]


def run(check: ModuleType, tmp_path: Path, code: str, seconds: float = 60, **options):
    return check.run(
        check.Part("a part", [sys.executable, "-c", code], seconds, **options), tmp_path
    )


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(check, tmp_path):
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"
    result, output = run(check, tmp_path, code + "; time.sleep(600)", seconds=2)
    assert result["status"] == "failed"
    assert "longer than 2 s" in result["reason"]
    end = time.monotonic() + 60
    while running(int(output)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not check.running


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("5 passed in 1 s", "has not said that it found no errors"),
        ("5 passed in 1 s\n= ERROR SUMMARY: 3 errors", "has not said that it found no errors"),
        ("ERROR SUMMARY: 0 errors\nno tests ran in 0.01s", "no test has passed"),
    ],
)
def test_a_sanitizer_has_to_say_that_all_is_well(check, tmp_path, printed, reason):
    result, _ = run(check, tmp_path, f"print({printed!r})", says=check.clean)
    assert result["status"] == "failed"
    assert reason in result["reason"]


def test_a_tool_that_is_not_there_is_a_failure(check, tmp_path):
    result, _ = check.run(check.Part("a part", [tmp_path / "nothing"], 10), tmp_path)
    assert result["status"] == "failed"
    assert "nothing" in result["reason"]


def test_results_are_there_after_each_part(check, tmp_path, capsys):
    report = check.Report(tmp_path)
    report.name({"name": "NVIDIA H200"})
    path = tmp_path / "gpu-nvidia-h200.json"
    for count, status in enumerate(("passed", "failed"), 1):
        report.add(f"part {count}", {"status": status, "seconds": 1, "reason": "why"}, "what\n")
        parts = json.loads(path.read_text())["parts"]
        assert len(parts) == count
        assert parts[f"part {count}"]["status"] == status
    assert parts["part 2"]["output"] == "what\n"
    assert report.end(2) == 1
    assert "failed: part 2" in capsys.readouterr().out


def test_a_check_that_is_ended_ends_its_parts(tmp_path):
    code = f"""
import importlib.util, signal, sys
spec = importlib.util.spec_from_file_location("check", {str(FOLDER / "check.py")!r})
check = sys.modules["check"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)
from pathlib import Path
signal.signal(signal.SIGTERM, check.ended)
sleep = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
parts = [check.Part(str(i), sleep, 600) for i in range(2)]
check.together(parts, check.Report(Path({str(tmp_path)!r})), Path({str(tmp_path)!r}), 2)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    outputs = [tmp_path / f"{i}.txt" for i in range(2)]
    end = time.monotonic() + 120
    while not all(out.exists() and out.read_text().strip() for out in outputs):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    for out in outputs:
        assert not running(int(out.read_text()))
