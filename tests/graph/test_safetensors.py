"""safetensors files: every element type, and every kind of damage is an error of bertrt's own."""

from __future__ import annotations

import contextlib
import json
import tracemalloc

import numpy as np
import pytest

from bertrt.errors import BertrtError, MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.models.safetensors import read_safetensors, write_safetensors

ARRAYS = {
    "f64": np.array([[1.5, -2.0]]),
    "i8": np.arange(3, dtype=np.int8),  # shifts what follows it
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.array([[0.1, 65504, 6e-8]], np.float16),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
}


def file_of(entries, data: bytes = b"") -> bytes:
    """A file with this header: an object, or text as it stands."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape=(1,), begin=0, end=4, dtype="F32", **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def test_what_is_written_is_read(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    table = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    arrays = {"a.weight": table, "é": table[2:], "vector": table[0], "turned": table.T}
    written = write_safetensors(path, arrays)
    read = read_safetensors(path)
    assert list(read) == list(written) == list(arrays)
    for name, array in arrays.items():
        assert (read[name].file, read[name].offset) == (path, written[name].offset)
        np.testing.assert_array_equal(read[name].array, array)
    assert written["a.weight"].offset % 64 == 0
    package = pytest.importorskip("safetensors.numpy")
    for name, array in package.load_file(path).items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize("pad", [1, 8])
def test_every_type(hugging, tmp_path, pad) -> None:
    path = tmp_path / "x.safetensors"
    hugging.write_safetensors(path, ARRAYS, pad)
    raw = path.read_bytes()
    constants = read_safetensors(path)
    assert list(constants) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        constant = constants[name]
        assert constant.name == name
        widened = expected.dtype.kind == "f" and expected.dtype != np.float32
        assert constant.array.dtype == (np.float32 if widened else expected.dtype)
        np.testing.assert_array_equal(constant.array, expected)
        assert constant.array.flags.aligned and not constant.array.flags.writeable
        if widened:
            assert constant.file is None and constant.offset is None
        else:
            assert constant.file == path
            assert raw[constant.offset :].startswith(expected.tobytes())


def test_float32_is_read_when_it_is_asked_for(hugging, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    hugging.write_safetensors(path, {"large": np.zeros(1 << 20, np.float32)})
    tracemalloc.start()
    constants = read_safetensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert constants["large"].shape == constants["large"].array.shape == (1 << 20,)


def test_bfloat16_bit_by_bit(hugging, tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    halves = np.arange(1 << 16, dtype=np.uint16)
    hugging.write_safetensors(path, {"x": halves})
    (constant,) = read_safetensors(path).values()
    np.testing.assert_array_equal(constant.array.view(np.uint32), halves.astype(np.uint32) << 16)


def test_against_the_package(tmp_path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    reference.save_file(ARRAYS, path, metadata={"format": "np"})
    constants = read_safetensors(path)
    assert constants.keys() == ARRAYS.keys()
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(constants[name].array, expected)


BROKEN = {
    "empty": (b"", "cannot be read: it is empty"),
    "short": (b"\x02\0\0", "it has 3 bytes"),
    "header beyond the file": ((9).to_bytes(8, "little") + b"{}", "header should have 9"),
    "header absurd": (b"\xff" * 16, "header should have 18446744073709551615"),
    "not JSON": (file_of(b"{]"), "not JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "deep": (file_of(b"[" * 100_000), "the header is nested too deeply: 100000 "),
    "digits": (file_of(b'{"w": ' + b"9" * 5000 + b"}"), "number 999999999999... of 5000 digits"),
    "no object": (file_of([1]), r"the header is \[1\]"),
    "twice": (file_of(b'{"w": 1, "w": 2}'), "has 'w' twice in one object"),
    "key twice": (file_of(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' twice in"),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "no entry": (file_of({"w": 5}), "'w' is described by 5"),
    "field missing": (file_of({"w": {"dtype": "F32", "shape": []}}), "'w' is described by"),
    "field unknown": (file_of({"w": tensor(extra=1)}, bytes(4)), "'w' is described by"),
    "dtype": (file_of({"w": tensor(dtype="F8_E4M3")}, bytes(4)), "'w' has the element type 'F8"),
    "dtype no text": (file_of({"w": tensor(dtype=[])}, bytes(4)), r"'w' has the element type \[\]"),
    "negative extent": (file_of({"w": tensor([-1])}, bytes(4)), r"'w' has the shape \[-1\]"),
    "fractional extent": (file_of({"w": tensor([1.0])}, bytes(4)), r"'w' has the shape \[1.0\]"),
    "bool extent": (file_of({"w": tensor([True])}, bytes(4)), r"'w' has the shape \[True\]"),
    "rank": (file_of({"w": tensor([1] * 99)}, bytes(4)), r"'w' has the shape \[1, 1"),
    "huge": (file_of({"w": tensor([1 << 40, 1 << 40])}, bytes(4)), "'w' has the shape"),
    "huge beside zero": (file_of({"w": tensor([0, 1 << 62, 1 << 62], 0, 0)}), "'w' has the shape"),
    "offsets": (file_of({"w": tensor(begin="0")}, bytes(4)), "'w' has the data_offsets"),
    "three offsets": (
        file_of({"w": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 8]}}, bytes(8)),
        "'w' has the data_offsets",
    ),
    "backwards": (file_of({"w": tensor(begin=4, end=0)}, bytes(4)), "'w' lies at .* takes 4 bytes"),
    "odd": (file_of({"w": tensor(end=3)}, bytes(3)), "'w' lies at .* takes 4 bytes"),
    "gap": (file_of({"w": tensor(begin=4, end=8)}, bytes(8)), "'w' begins at byte 4"),
    "overlap": (
        file_of({"v": tensor([2], 0, 8), "w": tensor(begin=4, end=8)}, bytes(8)),
        "'w' begins at byte 4 of the data, and the one before it ends at 8",
    ),
    "same place": (
        file_of({"v": tensor(), "w": tensor()}, bytes(4)),
        "'w' begins at byte 0 of the data, and the one before it ends at 4",
    ),
    "truncated": (file_of({"w": tensor()}, bytes(3)), "tensors end at byte .*truncated"),
    "rest": (file_of({"w": tensor()}, bytes(5)), "tensors end at byte .*damaged"),
    "nothing but data": (file_of({}, bytes(4)), "tensors end at byte .*damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken(tmp_path, name) -> None:
    data, message = BROKEN[name]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=message) as caught:
        read_safetensors(path)
    assert "broken.safetensors" in str(caught.value) and len(str(caught.value)) < 1000
    assert isinstance(caught.value, UnsupportedModelError) == name.startswith("dtype")


def test_missing(tmp_path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_safetensors(tmp_path / "x.safetensors")


def test_nothing_is_widened_before_all_is_checked(tmp_path) -> None:
    """Many tensors over the same bytes: refused before any of them takes memory."""
    half, path = 1 << 20, tmp_path / "x.safetensors"
    entries = {f"w{i}": tensor([half], 0, 2 * half, "F16") for i in range(200)}
    path.write_bytes(file_of(entries, bytes(2 * half)))
    tracemalloc.start()
    with pytest.raises(ModelFormatError, match="begins at byte 0"):
        read_safetensors(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_cut_or_flipped_anywhere(hugging, tmp_path) -> None:
    """At every byte: an error of ours, or arrays no larger than the file makes them."""
    path = tmp_path / "x.safetensors"
    hugging.write_safetensors(path, ARRAYS)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError):
            read_safetensors(path)
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    for index in range(header):
        for byte in {data[index] ^ 0x01, data[index] ^ 0x80, int(rng.integers(256))}:
            path.write_bytes(data[:index] + bytes([byte]) + data[index + 1 :])
            with contextlib.suppress(BertrtError):
                total = sum(constant.array.nbytes for constant in read_safetensors(path).values())
                assert total <= 2 * len(data)
