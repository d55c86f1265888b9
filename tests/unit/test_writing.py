"""What is written is there whole or not at all, whatever fails and whoever is killed."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertrt.commands.main import main
from bertrt.errors import MissingFileError, ModelFormatError, OutputExistsError, WriteError
from bertrt.host import writing
from bertrt.host.paths import check_path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"


# --- one home for writing ---------------------------------------------------------------------

# What writes files, outside bertrt/host/writing.py, and why it may.
ALLOWED = {
    # Peers' converters write into a temporary directory of the benchmark's.
    "bertrt/bench/engines/ctranslate2.py": 2,
    "bertrt/bench/engines/onnxruntime.py": 2,
    "bertrt/bench/engines/openvino.py": 1,
    # The log of a peer's process, and the directories for both.
    "bertrt/bench/worker.py": 1,
    "bertrt/bench/run.py": 1,
    # Opened to read, with flags of the file object's.
    "bertrt/host/files.py": 1,
    # The null device.
    "bertrt/commands/main.py": 2,
    # The directory that holds a run is made to stay.
    "export/training/finetune.py": 1,
}
METHODS = {
    *("write_text", "write_bytes", "mkdir", "touch", "rename", "symlink_to", "hardlink_to"),
    *("save", "save_parameters", "tofile"),
}
FUNCTIONS = {
    *("os.replace", "os.rename", "os.mkdir", "os.makedirs", "os.symlink", "os.truncate"),
    *("shutil.copyfile", "shutil.copy", "shutil.copy2", "shutil.copytree", "shutil.move"),
    *("tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.TemporaryDirectory"),
    *("tempfile.NamedTemporaryFile", "tempfile.TemporaryFile"),
}


def writers(path: Path) -> Iterator[str]:
    """The calls of a module that write a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        text, name = ast.unparse(node), ast.unparse(node.func)
        if name == "open":
            mode = ast.unparse(node.args[1]) if len(node.args) > 1 else "r"
            wrong = bool(set("wax+") & set(mode))
        elif name == "os.open":
            wrong = "O_RDONLY" not in text
        else:
            *_, method = name.rpartition(".")
            wrong = name in FUNCTIONS or ("." in name and method in METHODS)
        if wrong:
            yield text


def test_all_is_written_in_one_place() -> None:
    found = {}
    for top in ("bertrt", "export"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name.startswith("bertrt/export/") or name == "bertrt/host/writing.py":
                continue
            calls = list(writers(path))
            if len(calls) != ALLOWED.get(name, 0):
                found[name] = calls
    assert not found


# --- every call that can fail -----------------------------------------------------------------


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that lets system calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = DATA / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.mark.parametrize(
    ("case", "points"), [("file", 12), ("checkpoint", 20), ("report", 30), ("bundle", 80)]
)
def test_every_failure(case: str, points: int, faults: Path, tmp_path: Path) -> None:
    before = os.environ.get("LD_PRELOAD")  # a sanitizer's
    result = subprocess.run(
        [sys.executable, DATA / "write_under_faults.py", tmp_path, case],
        env={**os.environ, "LD_PRELOAD": f"{before}:{faults}" if before else str(faults)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["wrong"] == []
    # Else the library has let nothing fail.
    assert found["points"] >= points


# --- files and directories --------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_raises_leaves_what_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(error), writing.writing_file(path) as file:
        file.write(b"x" * 100_000)
        raise error
    with pytest.raises(error), writing.writing_directory(tmp_path / "directory") as directory:
        writing.write_text(directory / "a", "a")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_finds_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with open(path) as reader, writing.writing_file(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text() == "before"
        reader.seek(0)
    assert path.read_text() == "after"


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        writing.write_text(tmp_path / "file", "")
        with writing.writing_directory(tmp_path / "directory"):
            pass
    finally:
        os.umask(old)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "directory")]
    assert modes == [0o640, 0o750]


def unwritable(root: Path) -> list[tuple[Path, str]]:
    """Places that nothing can be written to, and what is said of them."""
    (root / "file").write_text("before")
    (root / "directory").mkdir()
    (root / "directory" / "inner").write_text("before")
    (root / "loop").symlink_to("loop")
    return [
        (root / "gone" / "name", "No such file or directory; the directory .* has gone"),
        (root / "file" / "name", "Not a directory; the directory .* has gone"),
        (root / ("n" * 250), "File name too long; name a shorter one"),
        (root / "loop" / "name", "Too many levels of symbolic links"),
        (root / "directory", "Is a directory"),
    ]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for path, text in unwritable(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(WriteError, match=f"^{re.escape(str(path))} cannot be written: {text}"):
            writing.write_text(path, "after")
        kind = OutputExistsError if path.name == "directory" else (MissingFileError, WriteError)
        with pytest.raises(kind), writing.writing_directory(path):
            raise AssertionError("the block must not run")
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "directory" / "inner").read_text() == "before"


def test_an_error_can_be_told_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        writing.write_text(tmp_path / "gone" / "name", "")
    assert isinstance(caught.value, WriteError)
    assert caught.value.errno == errno.ENOENT


def test_a_directory_that_vanishes_while_it_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with (
        pytest.raises(WriteError, match=r"home/bundle/plan\.json cannot be written"),
        writing.writing_directory(home / "bundle") as directory,
    ):
        shutil.rmtree(home)
        writing.write_text(directory / "plan.json", "{}")
    with pytest.raises(WriteError, match="home/file cannot be written"):
        home.mkdir()
        with writing.writing_file(home / "file") as file:
            file.write(b"x")
            shutil.rmtree(home)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_read_is_no_fault_of_the_copy(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="nothing cannot be read"):
        writing.copy_file(tmp_path / "nothing", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    home = os.getcwd()
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(MissingFileError, match=r"out is 'x'.*has been removed"):
            check_path("out", "x")
    finally:
        os.chdir(home)


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.mkdtemp", none)
    with pytest.raises(WriteError, match="TMPDIR"), writing.temporary_directory():
        raise AssertionError("the block must not run")


# --- two writers, and those that were killed --------------------------------------------------

HALF_WRITTEN = """
import sys
from bertrt.host.writing import write_text, writing_directory, writing_file
with writing_file(sys.argv[1] + "/file") as file, writing_directory(sys.argv[1] + "/made") as made:
    file.write(b"x" * 100000)
    write_text(made / "plan.json", "{}")
    print("half", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / ".file.mine.partial").write_text("no writer's")
    (tmp_path / ".other.0123456789ab.partial").write_text("another file's")
    kept = {*tmp_path.iterdir()}
    with subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        left = {*tmp_path.iterdir()} - kept
        assert len(left) == 2
        # They are somebody's now.
        for name in ("file", "made"):
            writing.remove_partial(tmp_path / name)
        assert {*tmp_path.iterdir()} == kept | left
        process.kill()
    assert (tmp_path / "file").read_text() == "before"
    assert {*tmp_path.iterdir()} == kept | left
    writing.write_text(tmp_path / "file", "after")
    with writing.writing_directory(tmp_path / "made"):
        pass
    assert {*tmp_path.iterdir()} == {*kept, tmp_path / "made"}
    assert (tmp_path / "file").read_text() == "after"


def test_the_first_of_two_writers_has_the_place(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with pytest.raises(OutputExistsError, match="untouched"), writing.writing_directory(path) as a:
        writing.write_text(a / "whose", "the second's")
        with writing.writing_directory(path) as b:
            writing.write_text(b / "whose", "the first's")
    assert (path / "whose").read_text() == "the first's"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_was_taken_for_a_killed_one_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "made", fcntl.flock, []

    def lock(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            # Another writer, between the making and the locking.
            writing.remove_partial(path)
            assert list(tmp_path.iterdir()) == []
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    with writing.writing_directory(path) as directory:
        writing.write_text(directory / "a", "a")
    assert (path / "a").read_text() == "a"


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".file.0123456789ab.partial"
    left.write_text("of somebody")

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    writing.write_text(tmp_path / "file", "after")
    assert {*tmp_path.iterdir()} == {left, tmp_path / "file"}


# --- the command line -------------------------------------------------------------------------


def command(
    *arguments: str | Path, limit: int | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run bertrt in a process whose files may have `limit` bytes."""

    def before() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "bertrt", *map(str, arguments)],
        preexec_fn=before,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("limit", [0, 100, 4096])
def test_import_where_files_cannot_grow(hugging, tmp_path: Path, limit: int) -> None:
    pytest.importorskip("onnx")
    model, out = hugging.write(), tmp_path / "out" / "bundle"
    out.parent.mkdir()
    found = command("import", model, "--out", out, limit=limit, stdout=subprocess.DEVNULL)
    assert found.returncode == 1
    # GluonNLP's own imports may warn of what else cannot be written.
    line = rf"bertrt: error: {out}/[\w.-]+ cannot be written: File too large; .*ulimit -f\)\n"
    assert re.fullmatch(line, found.stderr.splitlines(keepends=True)[-1]), found.stderr
    assert "Traceback" not in found.stderr
    assert "Exception ignored" not in found.stderr
    assert list(out.parent.iterdir()) == []


def test_import_where_nobody_may_write(hugging, tmp_path: Path, monkeypatch, capsys) -> None:
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    model = hugging.write()
    monkeypatch.setattr(os, "mkdir", refuse)
    assert main(["import", str(model), "--out", str(tmp_path / "bundle")]) == 1
    assert capsys.readouterr().err == (
        f"bertrt: error: {tmp_path}/bundle cannot be written: Permission denied; name a place that "
        "may be written\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("inspect",), ("predict", "--json"), ("--help",)])
def test_standard_output_that_is_full(hugging, arguments: tuple[str, ...]) -> None:
    name, *rest = arguments
    model = [] if name == "--help" else [hugging.write()]
    with open("/dev/full", "w") as full:
        found = command(name, *model, *rest, stdout=full, input="the boat\n" * 2000)
    assert found.returncode == 1
    assert found.stderr == (
        "bertrt: error: standard output cannot be written: No space left on device; make room, or "
        "name another place\n"
    )


TERMINATED = """
import os, signal, sys
import bertrt.evaluation.quantize as module
from bertrt.host.writing import write_text, writing_directory
def quantize(path, out, **options):
    with writing_directory(out) as made:
        write_text(made / "plan.json", "{}")
        os.kill(os.getpid(), int(sys.argv[1]))
        raise AssertionError("the signal has not arrived")
module.quantize = quantize
signal.signal(signal.SIGINT, signal.default_int_handler)
from bertrt.commands.main import main
sys.exit(main(["quantize", "bundle", "--precision", "int8", "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(tmp_path: Path, number: int, status: int) -> None:
    found = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(int(number)), tmp_path / "out"],
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (status, b"", b"")
    assert list(tmp_path.iterdir()) == []
