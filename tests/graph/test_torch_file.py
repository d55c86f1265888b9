"""Files of torch.save: every type and kind of view, nothing run, and every kind of damage an error
of bertrt's own, in bounded memory."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bertrt.errors import BertrtError, MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.models.torch.file import read_torch

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "torch_files.json").read_text())
VALUES = {
    name: np.array(value["value"], value["dtype"]).reshape(value["shape"])
    for name, value in RECORDED["values"].items()
}
TENSORS = {name: base64.b64decode(text) for name, text in RECORDED["tensors"].items()}
REFUSED = {name: base64.b64decode(text) for name, text in RECORDED["refused"].items()}
SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


@pytest.fixture
def file(tmp_path):
    """Writes a file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(content)
        return path

    return write


def entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(contents: dict[str, bytes], **options) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as out:
        for name, content in contents.items():
            out.writestr(name, content)
    return made.getvalue()


def with_pickle(content: bytes, count: int = 4) -> bytes:
    """An archive with a storage of some numbers, and this as its pickle."""
    return archive({"x/data.pkl": content, "x/data/0": np.ones(count, np.float32).tobytes()})


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
END = b"\x89}tR"


def tensor(offset=b"K\0", shape=b"K\4\x85", strides=b"K\1\x85", storage=STORAGE, end=END) -> bytes:
    return REBUILD + b"(" + storage + offset + shape + strides + end


def named(value: bytes, name: bytes = b"X\1\0\0\0x") -> bytes:
    return b"\x80\2}" + name + value + b"s."


# --- what is read -----------------------------------------------------------------------------


def check(path: Path, expected=VALUES) -> None:
    found = read_torch(path)
    assert list(found) == list(expected)
    raw = path.read_bytes()
    for name, array in expected.items():
        constant = found[name]
        assert constant.name == name
        assert (constant.array.dtype, constant.array.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(constant.array, array)
        flags = constant.array.flags
        assert flags.aligned and flags.c_contiguous and not flags.writeable
        if constant.file is not None:
            assert constant.file == path
            assert raw[constant.offset :].startswith(array.tobytes())


@pytest.mark.parametrize("name", TENSORS)
def test_what_torch_wrote(file, name) -> None:
    path = file(TENSORS[name])
    check(path)
    found = read_torch(path)
    views = [name for name, constant in found.items() if constant.file is not None]
    assert views == ["base", "tied", "rows", "scalar", "none", "parameter"]
    if name != "legacy":  # which aligns nothing
        assert np.shares_memory(found["base"].array, found["tied"].array)


def test_archives_of_other_times(file) -> None:
    contents = entries(TENSORS["protocol 2"])
    first = {name: data for name, data in contents.items() if name.endswith(("pkl", "version"))}
    data = {name: data for name, data in contents.items() if "/data/" in name}
    check(file(archive(first | data)))
    # A name of another length moves what follows to odd offsets.
    moved = {name.replace("archive/", "model1/"): data for name, data in (first | data).items()}
    check(file(archive(moved)))


def test_the_other_byte_order(file, hugging, tmp_path) -> None:
    path = tmp_path / "x.bin"
    arrays = SMALL | {"half": np.array([0.5, -3], np.float16)}
    hugging.write_torch(path, arrays)
    contents = entries(path.read_bytes())
    for number, array in enumerate(arrays.values()):
        contents[f"archive/data/{number}"] = array.byteswap().tobytes()
    contents["archive/byteorder"] = b"big"
    check(file(archive(contents)), arrays | {"half": arrays["half"].astype(np.float32)})
    contents["archive/byteorder"] = b"middle"
    with pytest.raises(ModelFormatError, match="its byteorder is 'middle', expected"):
        read_torch(file(archive(contents)))


def test_a_state_dictionary_of_python_2(file) -> None:
    pairs = b"ccollections\nOrderedDict\n(](](U\1x" + tensor() + b"eetR."
    check(file(with_pickle(b"\x80\2" + pairs)), {"x": np.ones(4, np.float32)})


def test_float32_is_read_when_it_is_asked_for(hugging, tmp_path) -> None:
    path = tmp_path / "x.bin"
    hugging.write_torch(path, {"large": np.zeros(1 << 20, np.float32)})
    tracemalloc.start()
    constants = read_torch(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert constants["large"].shape == constants["large"].array.shape == (1 << 20,)


def test_as_torch_reads_it(hugging, tmp_path) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    path = tmp_path / "x.bin"
    hugging.write_torch(path, SMALL)
    for name, found in torch.load(path, weights_only=True).items():
        np.testing.assert_array_equal(found.numpy(), SMALL[name])
    torch.save({name: torch.tensor(array) for name, array in SMALL.items()}, path)
    check(path, SMALL)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("evil", r"asks for posix\.system, .*nothing of it was run"),
        ("evil, legacy", r"asks for posix\.system, .*nothing of it was run"),
        *((f"evil pickle {protocol}", r"asks for posix\.system") for protocol in range(6)),
        ("net", r"asks for torch\.nn\.modules\.container\.Sequential"),
        ("state", "the entry 'state_dict' is a dict, expected a tensor"),
        ("epoch", "the entry 'epoch' is 3, expected a tensor"),
        ("list", "holds a list, expected a dictionary of tensors"),
        ("alone", "holds a tensor, expected a dictionary of tensors"),
        ("expanded", r"more than 4 times the file's size, with the tensor 'x' .*1000000"),
        ("complex", r"asks for torch\.ComplexFloatStorage"),
        ("sparse", r"asks for torch\._utils\._rebuild_sparse_tensor"),
        ("program", "is a program of TorchScript"),
    ],
)
def test_anything_but_tensors(file, tmp_path, monkeypatch, name, message) -> None:
    monkeypatch.chdir(tmp_path)
    path = file(REFUSED[name])
    with pytest.raises(UnsupportedModelError, match=message) as found:
        read_torch(path)
    assert str(path) in str(found.value) and len(str(found.value)) < 500
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cbuiltins\neval\n(X\1\0\0\0xtR.", r"asks for builtins\.eval"),
        (b"\x80\4\x8c\2os\x8c\6system\x93.", r"asks for os\.system"),
        (b"(S'id'\nios\nsystem\n.", "has the instruction STRING"),
        (b"(ios\nsystem\n.", r"asks for os\.system"),
        (b"cnumpy\n" + b"a" * 900 + b"\n.", r"asks for numpy\.aaa"),
        (b"cnumpy\n" + b"a" * 1100 + b"\n.", "breaks off or is damaged at byte 7"),
        (named(b"\x82\1"), "has the instruction EXT1"),
        (named(b"\x81"), "has the instruction NEWOBJ"),
        (named(b"\xff"), "has the instruction 0xff"),
        (b"\x80\6.", "has an unknown protocol"),
        (b"\x80\2}q\0", "breaks off or is damaged at byte 5"),
        (b"\x80\2.", "breaks off or is damaged"),
        (b"\x80\2h\7.", "breaks off or is damaged"),
        (named(b"X\xff\xff\xff\xff"), "breaks off or is damaged"),
        (named(b"X\1\0\0\0\xff"), "breaks off or is damaged"),
        (named(b"N", b")"), "has a tuple as the name of an entry"),
        (named(b"N", b"K\1"), "the entry 1 is None, expected a tensor"),
        (b"\x80\2]K\1\x85R.", "calls a list"),
        (b"\x80\2ccollections\nOrderedDict\nK\1\x85R.", "makes an OrderedDict of something else"),
        (b"\x80\2ccollections\nOrderedDict\n)R}X\1\0\0\0xK\1sb.", "sets attributes of a dict"),
        (b"\x80\2]}b.", "sets attributes of a list"),
        (named(b"K\1Q"), "refers to 1, expected a storage"),
        (named(b"X\6\0\0\0module\x85Q"), "refers to 'module', expected a storage"),
        (named(STORAGE.replace(b"tQ", b"N}tQ")), "refers to a part of another storage"),
        (named(STORAGE.replace(b"K\4", b"J\xff\xff\xff\xff")), "without type, key and number"),
        (named(tensor(storage=b"N")), "described by no storage, extents and strides"),
        (named(tensor(shape=b"]")), "described by no storage, extents and strides"),
        (named(tensor(shape=b"J\xff\xff\xff\xff\x85")), "described by no storage"),
        (named(tensor(strides=b")")), "described by no storage"),
        (named(tensor(shape=b"K\5\x85")), "of shape 5 at 0 of a storage of 4 elements"),
        (named(tensor(offset=b"K\1")), "of shape 4 at 1 of a storage of 4 elements"),
        (named(tensor(strides=b"K\2\x85")), "beyond its end"),
        (
            named(tensor(shape=b"\x8a\7\0\0\0\0\0\0\1K\0\x86", strides=b"K\0K\0\x86")),
            "described by no storage",
        ),
        (
            named(tensor(shape=b"J\0\0\0\x40J\0\0\0\x40K\0\x87", strides=b"K\0K\0K\0\x87")),
            "of shape 1073741824 x 1073741824 x 0",
        ),
        (named(tensor(end=b"\x89}}X\3\0\0\0negK\1stR")), "conjugated or negated"),
        (named(tensor(end=b"tR")), "calls torch._utils._rebuild_tensor_v2 with 4 arguments"),
    ],
)
def test_pickles_that_are_something_else(file, content, message) -> None:
    with pytest.raises(ModelFormatError, match=message) as found:
        read_torch(file(with_pickle(content)))
    assert len(str(found.value)) < 500


def test_storages_that_do_not_fit(file) -> None:
    for contents, message in (
        ({}, "the storage '0' of the tensor 'x' is not in the file"),
        ({"x/data/0": b"\0" * 15}, "has 15 bytes, and 4 elements of F32 take 16"),
        ({"x/data/0": b"\0" * 20}, "has 20 bytes, and 4 elements of F32 take 16"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            read_torch(file(archive({"x/data.pkl": named(tensor()), **contents})))


def test_archives_that_are_something_else(file) -> None:
    good = {"x/data.pkl": named(tensor()), "x/data/0": bytes(16)}
    for content, message in (
        (archive({"x/other": b""}), "0 entries data.pkl, expected one"),
        (archive(good | {"y/data.pkl": b""}), "2 entries data.pkl, expected one"),
        (archive(good, compression=zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
        (archive(good)[:-30], "begins as a zip archive and cannot be read as one, truncated"),
    ):
        with pytest.raises(ModelFormatError, match=message):
            read_torch(file(content))


def test_a_directory_that_is_wrong_about_itself(file) -> None:
    content = bytearray(archive({"x/data.pkl": named(tensor()), "x/data/0": bytes(16)}))
    end = content.rindex(b"PK\5\6")
    content[end + 16 : end + 20] = (10_000).to_bytes(4, "little")  # where it begins
    with pytest.raises(ModelFormatError, match=r"is not where the archive's directory|read as"):
        read_torch(file(bytes(content)))


def test_entries_over_each_other(file) -> None:
    """What makes a small archive as large as one likes."""
    content = bytearray(archive({"x/data.pkl": named(tensor()), "x/data/0": bytes(16)}))
    last = content.rindex(b"PK\1\2")
    first = content.index(b"PK\1\2")
    content[last + 42 : last + 46] = content[first + 42 : first + 46]
    with pytest.raises(ModelFormatError, match="overlap at byte 0"):
        read_torch(file(bytes(content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: it is empty"),
        (b"\0" * 100, "is no file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no file of torch.save"),
        (b"\0" * 257 + b"ustar" + b"\0" * 300, "is a tar archive"),
        (b"\x80\2K\1.", "is a pickle, and none that torch.save wrote: it begins with 1"),
        (b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "breaks off or is damaged"),
        (
            b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\2K\1.\x80\2}.",
            "the version of its format is 1, expected 1001",
        ),
    ],
)
def test_files_that_are_something_else(file, content, message) -> None:
    with pytest.raises(ModelFormatError, match=message):
        read_torch(file(content))


def test_no_file(tmp_path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_torch(tmp_path / "x.bin")


@pytest.mark.parametrize("name", TENSORS)
def test_every_truncation(file, name) -> None:
    content = TENSORS[name]
    for size in range(0, len(content), 7):
        with pytest.raises(ModelFormatError):
            read_torch(file(content[:size]))


@pytest.mark.parametrize("name", [*TENSORS, "evil"])
def test_damage(file, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    content = (TENSORS | REFUSED)[name]
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(content))] = random.integers(256)
        path = file(bytes(damaged))
        with contextlib.suppress(BertrtError):
            for constant in read_torch(path).values():
                constant.array.sum()
    assert not (tmp_path / "PWNED").exists()


# --- bounds -----------------------------------------------------------------------------------


def bounded(content: bytes, file, message: str, most: int) -> None:
    path = file(content)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(ModelFormatError, match=message):
        read_torch(path)
    assert time.perf_counter() - begin < 30
    assert tracemalloc.get_traced_memory()[1] < most
    tracemalloc.stop()


def test_memory_is_bounded(file) -> None:
    megabyte = 1 << 20
    deep = b"\x80\2)" + b"\x85" * (megabyte // 4) + b"."
    many = b"\x80\2]" + b"}a" * megabyte + b"."
    bounded(with_pickle(many), file, "has more than 1000000 instructions", 100 * megabyte)
    bounded(with_pickle(deep), file, "holds a tuple, expected a dictionary", 100 * megabyte)
    bounded(with_pickle(b"\x80\2" + b"}" * megabyte), file, "objects at once", 10 * megabyte)
    bounded(with_pickle(b"N" * (9 * megabyte)), file, "its data.pkl has 9437184 bytes", megabyte)
    # Tuples of the same two tuples: hashed or compared, they would take for ever.
    twice = b"\x80\2)" + b"2\x86" * 100
    bounded(with_pickle(twice), file, "has the instruction DUP", megabyte)
    again = b")" + b"q\0h\0\x86" * 1000
    bounded(with_pickle(named(b"N", again)), file, "has a tuple as the name", megabyte)
    # As many views as there are names, each of which would be copied.
    storage = STORAGE.replace(b"K\4", b"M\0\x10")
    turned = tensor(storage=storage, shape=b"K\x40K\x40\x86", strides=b"K\1K\x40\x86")
    views = b"".join(b"X\2\0\0\0%02x%s" % (n, turned) for n in range(200))
    content = with_pickle(b"\x80\2}(" + views + b"u.", 4096)
    bounded(content, file, "more than 4 times the file", megabyte)
    many = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 17 << 20, 4, 0)
    bounded(b"PK\3\4" + bytes(18 << 20) + many, file, "directory has more than", 10 * megabyte)
