"""Bombs: small files that say much, and large ones that mean nothing. Each is a clear error, in
memory of a small multiple of the file's size; docs/limits.md states it for each format."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bertrt.models.symbol.params import write_params

MEGABYTE = 1 << 20

# What reads each format. `path` is the bomb.
READERS = {
    "safetensors": "from bertrt.models.safetensors import read_safetensors as read",
    "params": "from bertrt.models.symbol.params import read_params as read",
    "symbol": """
from bertrt.models.symbol.plan import compile_symbol
read = lambda path: compile_symbol(path, path.with_name("model.params"))
""",
    "onnx": "from bertrt.models.onnx.plan import compile_onnx as read",
    "torch": "from bertrt.models.torch.file import read_torch as read",
    "golden": "from bertrt.models.golden import read_golden as read",
    "vocabulary": "from bertrt.text.vocabulary import Vocabulary; read = Vocabulary.read",
    "merges": "from bertrt.text.vocabulary import read_merges as read",
    "tokenizer": "from bertrt.text.tokenizer_json import read_tokenizer as read",
    "sentencepiece": """
from bertrt.models.huggingface.tokenizer.sentencepiece import read_sentencepiece as read
""",
    "json": "from bertrt.host.files import read_object as read",
    "bundle": "from bertrt import Engine; read = lambda path: Engine.load(path.parent)",
    "questions": """
from bertrt.evaluation.datasets import read_examples
read = lambda path: read_examples(path, "question-answering")
""",
    "rows": """
from bertrt.evaluation.datasets import read_examples
read = lambda path: read_examples(path, "SST")
""",
}
# The bound of docs/limits.md: so many times the file, and so many megabytes beside.
BOUNDS = {"onnx": (4, 256), "torch": (2, 128), "golden": (3, 64)}
USUAL = (32, 128)

PROGRAM = """
import re, resource, sys
from pathlib import Path
import bertrt, numpy, tokenizers
path, most = Path(sys.argv[1]), int(sys.argv[2])
{reader}
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
Path("/proc/self/clear_refs").write_text("5")  # the highest so far is now's
before = status("VmHWM")
# Whoever asks for more is refused it, and not the machine's other work.
limit = status("VmSize") + 2 * most + 2 * path.stat().st_size
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    read(path)
except bertrt.BertrtError as error:
    print(status("VmHWM") - before)
    print(type(error).__name__, error)
"""


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def golden(entry: bytes, *, compressed: bool = False) -> bytes:
    file = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr("0/inputs/token_ids.npy", entry)
    return file.getvalue()


ZEROS = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({25 * MEGABYTE},), }}")
ENDLESS = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({1 << 40},), }}", bytes(4))


def symbol(*nodes: tuple[str, dict[str, str], list[int]]) -> bytes:
    """An embedding, node 2, and what follows it."""
    known: list[tuple[str, dict[str, str], list[int]]] = [
        ("null", {}, []),
        ("null", {}, []),
        ("Embedding", {"input_dim": "4", "output_dim": "4"}, [0, 1]),
        *nodes,
    ]
    listed = [
        {"op": op, "name": f"n{index}", "attrs": attrs, "inputs": [[i, 0, 0] for i in inputs]}
        for index, (op, attrs, inputs) in enumerate(known)
    ]
    return json.dumps({"nodes": listed, "heads": [[len(known) - 1, 0, 0]]}).encode()


def twice_as_long(op: str, attrs: dict[str, str], first: int, count: int):
    return [(op, attrs, [first + i, first + i]) for i in range(count)]


def widened(extent: int, times: int):
    nodes = []
    for i in range(times):
        nodes.append(("expand_dims", {"axis": str(3 + i)}, [2 + 2 * i]))
        nodes.append(("broadcast_axis", {"axis": str(3 + i), "size": str(extent)}, [3 + 2 * i]))
    return nodes


def ranks(count: int):
    return [("expand_dims", {"axis": "0"}, [2 + i]) for i in range(count)]


def unigram(pieces: list[str]) -> bytes:
    model = {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -1.0] for piece in pieces]}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def graph(op: str, constants: dict[str, list[int]], **attributes: object) -> Callable[[], bytes]:
    """An ONNX model with what `op` makes of constants beside its input."""

    def make() -> bytes:
        onnx = pytest.importorskip("onnx")
        helper, int64 = onnx.helper, onnx.TensorProto.INT64
        stored = [
            helper.make_tensor(name, int64, [len(values)], values) if isinstance(values, list)
            else helper.make_tensor(name, int64, [], [values])
            for name, values in constants.items()
        ]  # fmt: skip
        ids = helper.make_tensor_value_info("ids", int64, ["batch", "sequence"])
        outputs = [helper.make_tensor_value_info(n, int64, None) for n in ("out", "made")]
        nodes = [
            helper.make_node(op, list(constants), ["made"], **attributes),
            helper.make_node("Identity", ["ids"], ["out"]),
        ]
        model = helper.make_model(
            helper.make_graph(nodes, "g", [ids], outputs, stored),
            opset_imports=[helper.make_opsetid("", 17)],
        )
        return model.SerializeToString()

    return make


def many_dictionaries() -> bytes:
    """A list of 90,000 pairs, of which a dictionary is made 9,000 times."""
    pairs = b"](" + b"".join(
        (b"(" if i and i % 900 == 0 else b"")
        + b"X\5\0\0\0%05dN\x86" % i
        + (b"e" if i % 900 == 899 else b"")
        for i in range(90_000)
    )
    made = b"ccollections\nOrderedDict\n(h\0t" + b"R"
    program = b"\x80\2" + b"]q\1(" + pairs.replace(b"](", b"]q\0(", 1) + b"e"
    return zip_of({"x/data.pkl": program + b"(" + made * 9000 + b"e."})


def zip_of(entries: dict[str, bytes], **settings: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **settings) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


LISTS = b"[" + b"[]," * (5 * MEGABYTE) + b"[]]"
DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 5000
COMPACT = b",".join(b'"%x":[]' % i for i in range(MEGABYTE // 2))  # one list for some nine bytes

BOMBS: dict[str, tuple[str, Callable[[], bytes] | bytes, str]] = {
    # format, content, message
    "safetensors, 100 MB": (
        "safetensors", lambda: safetensors(b'{"a":[' + b"[]," * (33 * MEGABYTE) + b"[]]}"),
        "bytes, and at most 16777216 are read"),
    "safetensors, lists": (
        "safetensors", lambda: safetensors(b'{"a":' + LISTS + b"}"), "the header has 5242882 list"),
    "safetensors, names": (
        "safetensors", lambda: safetensors(b"{" + COMPACT + b"}"), "is described by"),
    "safetensors, deep": ("safetensors", safetensors(b'{"a":' + DEEP + b"}"), "nested too deeply"),
    "safetensors, digits": (
        "safetensors",
        safetensors(
            b'{"a":{"dtype":"F32","shape":[' + DIGITS + b'],"data_offsets":[0,4]}}', bytes(4)),
        "the header has the number 999999999999... of 5000 digits"),
    "params, counted": (
        "params", struct.pack("<QQQ", 0x112, 0, 1 << 60), "arrays announced in a file"),
    "params, elements": (
        "params",
        struct.pack("<QQQIii2q", 0x112, 0, 1, 0xF993FAC9, 0, 2, 0, 1 << 62) + bytes(64), "shape"),
    "golden, compressed": (
        "golden", lambda: golden(ZEROS + bytes(100 * MEGABYTE), compressed=True), "is compressed"),
    "golden, announced": ("golden", golden(ENDLESS), "and has 4"),
    "golden, objects": (
        "golden", golden(npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")),
        "expected numbers"),
    "golden, header": ("golden", golden(npy("(" * 60_000)), "is not readable"),
    "golden, parentheses": ("golden", golden(npy("(" * 900)), "is not readable"),
    "vocabulary, digits": (
        "vocabulary", b'{"token_to_idx": {"a": ' + DIGITS + b"}}", "number 999999999999..."),
    "vocabulary, a million digits": (
        "vocabulary", b'{"token_to_idx": {"a": ' + b"7" * 1_000_000 + b"}}", "of 1000000 digits"),
    "vocabulary, deep": ("vocabulary", DEEP, "nested too deeply: 100000"),
    "vocabulary, lists": ("vocabulary", LISTS, "lists in"),
    "vocabulary, values": (
        "vocabulary", lambda: b'{"a": [' + b"0," * (20 * MEGABYTE) + b"0]}", " values in "),
    "merges": ("merges", lambda: b"v\n" + b"\n" * (15 * MEGABYTE), "line 2: expected"),
    "tokenizer, lists": ("tokenizer", LISTS, "lists in"),
    "tokenizer, deep": ("tokenizer", DEEP, "not a tokenizer"),
    "tokenizer, shallow enough": (
        "tokenizer", b'{"model":' + b"[" * 90 + b"]" * 90 + b"}", "not a tokenizer"),
    "tokenizer, a table that says it is long": (
        "tokenizer",
        b'{"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, "model": {}}',
        "its table of normalisation is broken: it is said to have a trie of 4294967295 bytes"),
    "sentencepiece, a table that says it is long": (
        "sentencepiece",
        lambda: field(1, field(1, b"a")) + field(3, field(2, b"\xff\xff\xff\xff")),
        "its table of normalisation is broken: it is said to have a trie of 4294967295 bytes"),
    "tokenizer, a long piece": (
        "tokenizer", lambda: unigram(["a", "b" * 300_000]), "has 300000 characters; at most 1000"),
    "tokenizer, a long piece in quotes": (
        "tokenizer", lambda: unigram(["a", 'b"' * 150_000]), "has 300000 characters; at most 1000"),
    "tokenizer, long pieces": (
        "tokenizer", lambda: unigram([f"{i:0900}" for i in range(20_000)]), "pieces have 18000000"),
    "sentencepiece": (
        "sentencepiece", lambda: b"\x0a\0" * (10 * MEGABYTE), "more than 2097152 pieces"),
    "json, lists": ("json", LISTS, "lists in"),
    "json, objects": ("json", lambda: b'[{"":1}' + b',{"":1}' * MEGABYTE + b"]", "objects in"),
    "json, deep": ("json", DEEP, "nested too deeply"),
    "json, digits": ("json", b'{"hidden_size": ' + DIGITS + b"}", "of 5000 digits"),
    "json, sparse": ("json", lambda: bytes(17 * MEGABYTE), "17825792 bytes, and at most"),
    "json, quotes": ("json", lambda: b'["' + b'\\"' * (7 * MEGABYTE), "is not JSON"),
    "manifest, lists": ("bundle", LISTS, "lists in"),
    "manifest, deep": ("bundle", DEEP, "nested too deeply"),
    "manifest, twice": ("bundle", b'{"task": 1, "task": 2}', "has 'task' twice in one object"),
    "questions, lists": ("questions", LISTS, "lists in"),
    "questions, deep": ("questions", DEEP, "nested too deeply"),
    "rows, deep": ("rows", DEEP, "nested too deeply"),
    "rows, lists": ("rows", LISTS, "lists in"),
    "rows, no line": ("rows", lambda: b"a" * (65 * MEGABYTE), "line 1: has 67108864 bytes or more"),
    "symbol, shapes": ("symbol", symbol(*widened(1 << 20, 9)), "elements; at most"),
    "symbol, extent": ("symbol", symbol(*widened(1 << 40, 1)), "elements are taken"),
    "symbol, axes": ("symbol", symbol(*ranks(40)), "a result of 33 axes"),
    "symbol, doubled": (
        "symbol", symbol(*twice_as_long("Concat", {"dim": "2"}, 2, 60)), "elements; at most"),
    "symbol, doubled symbols": (
        "symbol", symbol(*twice_as_long("Concat", {"dim": "1"}, 2, 60)), "with the extent"),
    "symbol, doubled content": (
        "symbol",
        symbol(("shape_array", {}, [2]), *twice_as_long("Concat", {"dim": "0"}, 3, 60)),
        "elements; at most"),
    "symbol, attribute": (
        "symbol", symbol(("Reshape", {"shape": f"({'1,' * MEGABYTE})"}, [2])), "not a number, tup"),
    "symbol, deep attribute": (
        "symbol", symbol(("Reshape", {"shape": "-" * 100_000 + "1"}, [2])), "not a number, tup"),
    "symbol, nodes": (
        "symbol", lambda: symbol(*[("relu", {}, [2])] * 70_000), "has 70003 nodes, and at most"),
    "symbol, lists": ("symbol", LISTS, "lists in"),
    "symbol, deep": ("symbol", DEEP, "nested too deeply"),
    "torch, dictionaries": ("torch", many_dictionaries, "or makes as many entries"),
    "torch, compressed": (
        "torch",
        lambda: zip_of({"x/data.pkl": bytes(100 * MEGABYTE)}, compression=zipfile.ZIP_DEFLATED),
        "is compressed or encrypted"),
    "torch, entries": (
        "torch", lambda: zip_of({f"x/data/{i}": b"" for i in range(30_000)}), "0 entries data"),
    "onnx, nodes": ("onnx", lambda: field(7, b"\x0a\0" * (20 * MEGABYTE)), "more than 524288"),
    "onnx, attributes": (
        "onnx", lambda: field(7, field(1, b"\x2a\0" * (20 * MEGABYTE))), "more than 524288"),
    "onnx, nodes and a broken end": (
        "onnx", lambda: field(7, b"\x0a\0" * (20 * MEGABYTE)) + b"\xff", "not an ONNX file"),
    "onnx, all that is read": (
        "onnx", lambda: field(7, field(12, b"") + field(1, b"\x0a\1a\x12\1b") * 500_000),
        "has 500000 nodes, and at most 65536"),
    "onnx, fields": (
        "onnx", lambda: field(7, b"\x50\1" * (5 * MEGABYTE)), "4194304 fields"),
    "onnx, shape": ("onnx", graph("ConstantOfShape", {"s": [1 << 40]}), "elements are taken"),
    "onnx, shapes": ("onnx", graph("ConstantOfShape", {"s": [1 << 40] * 9}), "; at most"),
    "onnx, negative": ("onnx", graph("ConstantOfShape", {"s": [-1]}), "an extent of -1"),
    "onnx, tile": ("onnx", graph("Tile", {"x": [1, 2], "n": [1 << 40]}), "elements are taken"),
    "onnx, expand": ("onnx", graph("Expand", {"x": [1], "n": [1 << 40]}), "elements are taken"),
    "onnx, range": (
        "onnx", graph("Range", {"a": 0, "b": 1 << 40, "c": 1}), "elements are taken"),  # type: ignore[dict-item]
}  # fmt: skip


def grown(kind: str, path: Path) -> tuple[int, str]:
    """By how many bytes the memory of a process grew that read a file, and the error."""
    factor, beside = BOUNDS.get(kind, USUAL)
    most = factor * path.stat().st_size + beside * MEGABYTE
    program = PROGRAM.replace("{reader}", READERS[kind])
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(most)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        errors="replace",
    )
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]
    size, error = done.stdout.split("\n", 1)
    return int(size), error


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_in_bounded_memory(tmp_path, name) -> None:
    kind, content, message = BOMBS[name]
    names = {"bundle": "bertrt.json", "rows": "rows.jsonl", "onnx": "model.onnx"}
    path = tmp_path / names.get(kind, "bomb.json")
    if kind == "rows" and "no line" in name:
        path = tmp_path / "rows.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content())
    if kind == "symbol":
        write_params(tmp_path / "model.params", {"n1": np.zeros((4, 4), np.float32)})
    size, error = grown(kind, path)
    factor, beside = BOUNDS.get(kind, USUAL)
    assert message in error, error[:500]
    assert path.name in error or path.parent.name in error
    assert len(error) < 2000
    assert size <= factor * path.stat().st_size + beside * MEGABYTE


PAIRS = """
import re, sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers
from bertrt.text.huggingface import HuggingFaceTokenizer, Rules
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = HuggingFaceTokenizer(words, max_length=10, rules=Rules(None))
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
before = highest()
(found,) = tokenizer.encode([("a " * 20_000, "b " * 20_000)])
print(highest() - before, found.ids.tolist(), found.truncated)
"""


def test_a_pair_of_long_texts_takes_no_more_than_both() -> None:
    """Four thousand pieces of each; with each other they would be 16 million encodings."""
    done = subprocess.run([sys.executable, "-c", PAIRS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, rest = done.stdout.split(" ", 1)
    assert rest == "[0, 0, 0, 0, 0, 1, 1, 1, 1, 1] True\n"
    assert int(size) < 128 * MEGABYTE


def test_a_stream_without_lines_is_not_kept(tiny) -> None:
    """Of `bertrt predict`, whose input may have no end."""
    from bertrt.commands.predict import _LONGEST_LINE, _split_lines

    class Endless(io.RawIOBase):
        left = 3 * _LONGEST_LINE

        def read1(self, size: int) -> bytes:
            self.left -= size
            return b"a" * size if self.left >= 0 else b"\nb" if self.left > -2 * size else b""

    lines = [line for group in _split_lines(Endless()) for line in group]  # type: ignore[arg-type]
    assert lines == [None, b"b"]
