"""Files of weights that are truncated, overwritten and replaced, while they are read and after."""

from __future__ import annotations

import _thread
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import bertrt.models.bundle
from bertrt import BertrtError, Engine, ModelFormatError, OutOfMemoryError
from bertrt.host.stored import Fetcher, File
from bertrt.models.bundle import Bundle
from bertrt.models.model import Model

IDS = np.array([[2, 3, 1, 4]])

# Answers, has the file spoilt, and answers again: in a process of its own, as it may end it.
PROGRAM = """
import sys
import numpy as np
from bertrt import Engine

path, file, how = sys.argv[1:]
engine = Engine.load(path)
ids = np.array([[2, 3, 1, 4]])
before = engine.run(ids)
with open(file, "r+b") as opened:
    size = opened.seek(0, 2)
    opened.seek(0)
    opened.truncate(0) if how == "truncated" else opened.write(b"\\xff" * size)
after = engine.run(np.array([[2, 3, 1, 4, 5, 6, 1]]))
after = engine.run(ids)
assert before.keys() == after.keys()
for name, array in before.items():
    assert np.array_equal(array, after[name]), name
print("the same bits")
"""


@pytest.fixture
def models(hugging):
    """A model by each kind of path: what to load, and the file of its weights."""
    from bertrt.export.huggingface import import_huggingface

    path = hugging.write()
    bundle = import_huggingface(path, hugging.root / "bundle")
    onnx = hugging.root / "onnx"
    shutil.copytree(bundle, onnx)
    torch = hugging.write(name="torch")
    hugging.write_torch(torch / "pytorch_model.bin", hugging.weights(hugging.config))
    (torch / "model.safetensors").unlink()
    (weights,) = [*bundle.glob("*.params"), *bundle.glob("model.safetensors")]
    return {
        "bundle": (bundle, weights),
        "huggingface": (path, path / "model.safetensors"),
        "onnx": (onnx / "model.onnx", onnx / weights.name),
        "torch": (torch, torch / "pytorch_model.bin"),
    }


@pytest.mark.parametrize(
    "kind", ["bundle", "huggingface", pytest.param("onnx", marks=pytest.mark.mxnet), "torch"]
)
@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_an_engine_does_not_notice_what_becomes_of_its_file(models, kind, how):
    path, file = models[kind]
    command = [sys.executable, "-c", PROGRAM, str(path), str(file), how]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "the same bits\n"), found.stderr


@pytest.mark.parametrize("kind", ["bundle", "huggingface", "torch"])
def test_a_file_that_changes_while_it_is_loaded(models, kind):
    """Every load has the right bits, or is an error that names the file."""
    path, file = models[kind]
    whole = file.read_bytes()
    with Engine.load(path) as engine:
        expected = engine.run(IDS)
    done = threading.Event()

    def spoil() -> None:
        while not done.is_set():
            os.truncate(file, len(whole) // 2)
            os.truncate(file, len(whole))
            with open(file, "ab") as grown:
                grown.write(b"x")
            aside = file.with_name(f".{file.name}")
            aside.write_bytes(whole)
            os.replace(aside, file)  # for a while, and for some loads, all is well
            done.wait(0.01)

    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    try:
        for _ in range(25):
            try:
                with Engine.load(path) as engine:
                    found = engine.run(IDS)
            except BertrtError as error:
                assert file.name in str(error)
            else:
                if kind == "bundle":  # the others have no sha256 that tells what is right
                    for name, array in expected.items():
                        np.testing.assert_array_equal(found[name], array)
    finally:
        done.set()
        spoiler.join()


def change(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # whatever the clock's grain


def test_reads_find_what_was_there_or_say_that_it_was_changed(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)))
    file = File(path)
    stored = file.stored(4, "uint16", (2, 3))
    assert stored is file.stored(4, "<u2", [2, 3])  # one place, one array
    expected = np.frombuffer(bytes(range(4, 16)), "<u2").reshape(2, 3)
    (tmp_path / "other").write_bytes(bytes(256))
    os.replace(tmp_path / "other", path)  # another file
    np.testing.assert_array_equal(stored.array, expected)
    assert stored.array is stored.array and not stored.array.flags.writeable
    stored.let_go()
    (again,) = Fetcher()([stored])
    np.testing.assert_array_equal(again, expected)

    for content in (bytes(256), b"", bytes(257), bytes(100)):
        path.unlink()
        path.write_bytes(bytes(range(256)))
        file = File(path)
        stored = file.stored(4, "uint16", (2, 3))
        change(path, content)
        for read in (lambda stored=stored: stored.array, lambda stored=stored: Fetcher()([stored])):
            with pytest.raises(ModelFormatError, match="weights was changed while it was in use"):
                read()


def test_arrays_are_found_however_they_lie_and_in_whatever_order(tmp_path, rng):
    data = rng.integers(0, 256, 20 << 20, np.uint8).tobytes()
    path = tmp_path / "weights"
    path.write_bytes(data)
    file = File(path)
    places = [(16 << 20, 1 << 20), (0, 8), (4, 8), (12, 3 << 20), (1 << 20, 7 << 20), (20 << 20, 0)]
    places += [(int(at), int(n)) for at, n in rng.integers(1, 1 << 19, (50, 2))]
    arrays = [file.stored(at, "uint8", (1, count)) for at, count in places]
    fetcher = Fetcher()
    for few in (arrays[:1], arrays[1:4], arrays[2:], arrays):
        for stored, array in zip(few, fetcher(few), strict=True):
            assert array.tobytes() == data[stored.offset :][: stored.nbytes]


def test_memory_for_an_array_that_is_not_there(models, monkeypatch):
    path, _ = models["bundle"]

    def short(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("bertrt.host.stored._SMALL", 0)
    with monkeypatch.context() as patch:
        patch.setattr("bertrt.host.stored.mmap.mmap", short)
        with pytest.raises(OutOfMemoryError, match=r"does not suffice|no memory for"):
            Engine.load(path)
    Engine.load(path).close()


def test_files_that_are_replaced_while_a_bundle_is_opened(models):
    path, _ = models["bundle"]
    wrong = pytest.raises(ModelFormatError, match=r"plan\.json was changed, or replaced, while")
    with wrong, Bundle.opening(path):
        shutil.copy(path / "plan.json", path / ".plan")
        os.replace(path / ".plan", path / "plan.json")


def test_plans_hold_no_matrices_of_a_loaded_model(models):
    for path, _ in (models["bundle"], models["huggingface"], models["torch"]):
        with Engine.load(path) as engine:
            for constant in engine._model.plan().weights.values():
                held = constant.stored._array is not None
                assert held == (len(constant.shape) == 1), constant.name
        # A second load of the same model reads them again.
        model = Model.open(path)
        first, second = ({n: c.array for n, c in model.plan().weights.items()} for _ in range(2))
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])


def test_other_threads_run_while_weights_are_packed(hugging):
    """With an interval so long, a thread gets the GIL only where another gives it up itself."""
    from bertrt import _native

    plan = Model.open(hugging.write()).plan()
    weights = {name: constant.array for name, constant in plan.weights.items()}
    interval = sys.getswitchinterval()
    count, done = 0, threading.Event()

    def tick() -> None:
        nonlocal count
        while not done.is_set():
            count += 1
            time.sleep(0)  # gives it up

    ticker = threading.Thread(target=tick)
    sys.setswitchinterval(1000)
    try:
        ticker.start()
        for _ in range(2000):  # it needs to be awake just then
            before = count
            _native.Model(plan.to_engine(), weights)
            if count > before:
                break
        assert count > before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        ticker.join()


def test_a_file_stays_open_to_the_end_of_the_process(tmp_path):
    """A daemon thread may read it then."""
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    script = """
import atexit, os, sys
atexit.register(lambda: os.write(1, bytes(file[0:4])))
from pathlib import Path
from bertrt.host.stored import File
file = File(Path(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"abcd", b"")


def test_an_interrupt_leaves_no_file_open(tmp_path):
    """Before whatever instruction of `File` it comes."""
    path = tmp_path / "file"
    path.write_bytes(b"abcd")
    number, ended = 0, False

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code is not File.__init__.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = len(os.listdir("/proc/self/fd"))
    while not ended:
        left = number
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            File(path)
            ended = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert len(os.listdir("/proc/self/fd")) == before, f"instruction {number}"
        number += 1
    assert number > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_a_bundle_is_checked(models, monkeypatch):
    """As by a signal handler: who checks beside is not there in the child."""
    check, go_on = bertrt.models.bundle._check_weights, threading.Event()

    def wait(*arguments):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(60)
        check(*arguments)

    monkeypatch.setattr("bertrt.models.bundle._check_weights", wait)
    with Bundle.opening(models["bundle"][0]):
        child = os.fork()
        if child == 0:
            signal.alarm(30)
        else:
            status = os.waitpid(child, 0)[1]
            go_on.set()
    if child == 0:
        os._exit(0)
    assert status == 0


def test_a_bundle_is_checked_without_the_thread_that_should(models, monkeypatch):
    """One that dies before it begins, as where there is no memory for it, or that is not given;
    and a signal handler that opens a bundle while one is made."""
    path, checked = models["bundle"][0], []
    check, start = bertrt.models.bundle._check_weights, _thread.start_new_thread

    def count(*arguments):
        checked.append(threading.get_ident())
        check(*arguments)

    def refused(*_):
        raise RuntimeError("can't start new thread")

    def interrupted(*arguments):
        monkeypatch.setattr("_thread.start_new_thread", start)
        Bundle.open(path)
        return start(*arguments)

    monkeypatch.setattr("bertrt.models.bundle._check_weights", count)
    for instead, times in ((lambda *_: 0, 1), (refused, 1), (interrupted, 2)):
        monkeypatch.setattr("_thread.start_new_thread", instead)
        # What waits for ever ends here.
        monkeypatch.setattr("threading._start_new_thread", instead, raising=False)
        signal.alarm(60)
        try:
            Bundle.open(path)
        finally:
            signal.alarm(0)
        assert len(checked) == times
        checked.clear()


def test_threads_that_load_at_once_share_what_is_packed(models):
    """None packs beside another."""
    from bertrt.backends.native import _shared

    plan, begun = Model.open(models["bundle"][0]).plan(), []
    second = threading.Event()

    class Packed:
        pass

    def pack(weights):
        begun.append(weights)
        if len(begun) > 1:
            second.set()
        second.wait(0.5)
        return Packed()

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(_shared(plan, ("test",), pack)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(begun) == 1 and len(found) == 4 and len(set(map(id, found))) == 1


def test_arrays_are_copied_before_they_are_checked():
    """So that another thread, which writes to them, changes nothing between the checks."""
    from bertrt.batch import _array

    ids = np.ones((2, 4), np.int32)
    assert not np.shares_memory(_array("token_ids", ids), ids)


def test_no_memory_for_weights(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    stored = File(path).stored(0, "<f4", (512, 1024))

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(OutOfMemoryError, match="2097152 bytes of weights"):
        Fetcher()([stored])
