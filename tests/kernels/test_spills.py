"""The loops of the matrix products, as the compiler made them: sums stay in registers.

A register tile is as large as the registers allow. A compiler that needs one more stores a sum to
the stack and loads it again in every step: the product takes twice its time, and every result stays
right. So the extension under test is disassembled. It has no symbols: a loop is known by its
multiplications.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bertrt import _native


class Tile(NamedTuple):
    """The loop of one precision's largest tile. Attention's is that of the same operands."""

    name: str
    multiply: str  # the instruction and its registers
    rows: int
    each: int  # instructions for a row: for all its vectors, and all parts of a vector
    widening: str = ""  # how weights are widened, if they are


WIDENING = ("vpslld $0x10", "vpmovsxbw")

TILES = [
    Tile("fp32, AVX2", "vfmadd...ps ymm", 6, 2),
    Tile("bf16, AVX2", "vfmadd...ps ymm", 4, 4, "vpslld $0x10"),
    Tile("int8, AVX2", "vpmaddwd ymm", 4, 2, "vpmovsxbw"),
    Tile("int8's attention, AVX2", "vpmaddwd ymm", 4, 2),
    Tile("int8, AVX-VNNI", "{vex} vpdpbusd ymm", 6, 2),
    Tile("int8's attention, AVX-VNNI", "{vex} vpdpwssd ymm", 4, 2),
    Tile("int8, AVX-VNNI in AVX-512's encoding", "vpdpbusd ymm", 6, 2),
    Tile("int8's attention, AVX-VNNI in AVX-512's encoding", "vpdpwssd ymm", 4, 2),
    Tile("fp32, AVX-512", "vfmadd...ps zmm", 14, 2),
    Tile("bf16, AVX-512", "vfmadd...ps zmm", 12, 4, "vpslld $0x10"),
    Tile("int8, AVX-512", "vpmaddwd zmm", 12, 2, "vpmovsxbw"),
    Tile("int8's attention, AVX-512", "vpmaddwd zmm", 12, 2),
    Tile("int8, AVX512-VNNI", "vpdpbusd zmm", 14, 2),
    Tile("int8's attention, AVX512-VNNI", "vpdpwssd zmm", 14, 2),
    Tile("bf16, AVX512-BF16", "vdpbf16ps zmm", 14, 2),
]

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(.*?)(?:\s*[#<].*)?$")
JUMP = re.compile(r"j[a-z]+\s+([0-9a-f]+)$")
ADDRESS = re.compile(r"\((%\w+)?(?:,(%\w+))?[^)]*\)")


def inner_loops(path: str) -> Iterator[list[str]]:
    """The instructions of each loop that has no loop in it: from where a jump leads back to, up to
    that jump."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", "--section=.text", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = [match for line in listing.splitlines() if (match := INSTRUCTION.match(line))]
    texts = [match[2] for match in found]
    where = {match[1]: i for i, match in enumerate(found)}
    begin = -1  # of the last loop
    for end, text in enumerate(texts):
        jump = JUMP.match(text)
        target = where.get(jump[1], end + 1) if jump else end + 1
        if begin < target <= end:
            begin = target
            yield texts[target : end + 1]


def spills(loop: list[str]) -> list[str]:
    """What reads or writes a vector at an address that the loop does not change.

    A loop steps through its operands: what stays in place is the stack, and what goes there was a
    sum or a weight. (The base alone is no sign: %rbp is the stack or a pointer to anything.)
    Constants lie beside the code, at %rip."""
    written = {
        text.split(",")[-1].split()[-1]
        for text in loop
        if "mm" not in text and not re.match("cmp|test|prefetch|j", text)
    }
    found = []
    for text in loop:
        address = ADDRESS.search(text)
        if address and "mm" in text:
            used = {register for register in address.groups() if register}
            if "%rip" not in used and not used & written:
                found.append(text)
    return found


@pytest.fixture(scope="module")
def loops() -> list[list[str]]:
    if "avx2" not in _native.supported_isas():
        pytest.skip("no kernels with a register tile of a known size are built for this CPU")
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump, of binutils")
    return list(inner_loops(_native.__file__))


@pytest.mark.parametrize("tile", TILES, ids=[tile.name for tile in TILES])
def test_a_full_tile_keeps_its_sums_in_registers(loops, tile):
    mnemonic, registers = tile.multiply.rsplit(maxsplit=1)
    multiply = re.compile(rf"{mnemonic}\s.*%{registers}\d+$")
    found: dict[int, list[list[str]]] = {}  # by the number of multiplications
    for loop in loops:
        widening = [way for way in WIDENING if any(text.startswith(way) for text in loop)]
        # The loop that measures the peak loads nothing.
        if "".join(widening) == tile.widening and any(
            "(" in text and "mm" in text for text in loop
        ):
            count = sum(multiply.match(text) is not None for text in loop)
            found.setdefault(count, []).append(loop)
    full = found.get(tile.rows * tile.each, [])
    assert full, f"no loop of {tile.rows} x {tile.each} {tile.multiply}: tiles are smaller, or cut"
    assert (tile.rows + 1) * tile.each not in found, "tiles are larger than this test knows"
    assert [spills(loop) for loop in full] == [[] for _ in full]


@pytest.mark.parametrize("multiply", ["tdpbf16ps", "tdpbusd"])
def test_a_step_of_amx_moves_no_sums(loops, multiply):
    found = {}
    for loop in loops:
        instructions = [text.split()[0] for text in loop]
        if multiply in instructions:
            counts = [instructions.count(name) for name in (multiply, "tileloadd", "tilestored")]
            found[tuple(counts)] = spills(loop)
    # One block of 16 rows, and two; and the loop that measures the peak.
    assert found == {(2, 3, 0): [], (4, 4, 0): [], (6, 0, 0): []}


@pytest.mark.parametrize("multiply", [tile.multiply for tile in TILES if tile.rows == 14])
def test_no_height_of_a_tile_spills(loops, multiply):
    """Of the products' loops, which fetch ahead, on AVX-512."""
    mnemonic, registers = multiply.rsplit(maxsplit=1)
    pattern = re.compile(mnemonic.replace("...", r"\d+") + rf"\b.*{registers}")
    heights = set()
    for loop in loops:
        if not any(text.startswith("prefetch") for text in loop):
            continue
        count = sum(1 for text in loop if pattern.match(text))
        if count == 0 or any(text.startswith(WIDENING) for text in loop):
            continue
        heights.add(count // 2)
        assert not spills(loop), f"{count // 2} rows"
    if "vpdpwssd" not in multiply:  # attention, whose loops fetch nothing
        assert heights == set(range(1, 15))
