"""test_spills.py for 64-bit Arm: the loops of the products keep their sums in registers."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bertrt import _native

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("aarch64", "arm64"), reason="reads code for 64-bit Arm"
)


class Tile(NamedTuple):
    """The loop of one precision's largest tile. Attention's is that of the same operands."""

    name: str
    multiply: str  # the instruction
    count: int  # how many of them
    widening: str = ""  # how weights are widened, if they are


TILES = [
    Tile("fp32", "fmla", 24),
    Tile("bf16", "fmla", 40, "shl"),
    Tile("int8", "smlal2?", 40, "sxtl"),
    Tile("int8's attention", "smlal2?", 40),
    Tile("int8, dot products", "sdot", 24),
    Tile("int8, I8MM", "smmla", 24),
    Tile("bf16, BF16", "bfmmla", 24),
    Tile("bf16's attention, BF16", "bfdot", 24),
]

INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(.*?)(?:\s*(?://|<).*)?$")
JUMP = re.compile(r"(?:b(?:\.[a-z]+)?|cbn?z [wx]\d+,|tbn?z [wx]\d+, #\d+,) ([0-9a-f]+)$")
VECTOR = re.compile(r"(?:ld|st)[a-z0-9]+ \{?[vqds]\d+")


def inner_loops(path: str) -> Iterator[list[str]]:
    """The instructions of each loop that has no loop in it."""
    # Binutils for this architecture alone, or beside those of another.
    tool = shutil.which("aarch64-linux-gnu-objdump") or shutil.which("objdump")
    if tool is None:
        pytest.skip("needs objdump, of binutils")
    command = [tool, "--disassemble", "--no-show-raw-insn", "--section=.text", path]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [match for line in listing.splitlines() if (match := INSTRUCTION.match(line))]
    texts = [" ".join(match[2].split()) for match in found]
    where = {match[1]: i for i, match in enumerate(found)}
    begin = -1  # of the last loop
    for end, text in enumerate(texts):
        jump = JUMP.match(text)
        target = where.get(jump[1], end + 1) if jump else end + 1
        if begin < target <= end:
            begin = target
            yield texts[target : end + 1]


def spills(loop: list[str]) -> list[str]:
    """What reads or writes a vector at an address that the loop does not change: the stack."""
    written = {text.split()[1].rstrip(",") for text in loop if re.match(r"[a-z]+ x\d+,", text)}
    for text in loop:  # an address that an access itself moves on
        if match := re.search(r"\[(x\d+|sp)[^\]]*\](!|, [#x])", text):
            written.add(match[1])
    found = []
    for text in loop:
        address = re.search(r"\[((?:x|sp).*?)\]", text)
        if VECTOR.match(text) and address:
            used = set(re.findall(r"x\d+|sp", address[1]))
            if not used & written:
                found.append(text)
    return found


@pytest.fixture(scope="module")
def loops() -> list[list[str]]:
    return list(inner_loops(_native.__file__))


@pytest.mark.parametrize("tile", TILES, ids=[tile.name for tile in TILES])
def test_a_full_tile_keeps_its_sums_in_registers(loops, tile):
    full = []
    for loop in loops:
        names = [text.split()[0] for text in loop]
        widening = [way for way in ("shl", "sxtl") if way in names]
        count = sum(re.fullmatch(tile.multiply, name) is not None for name in names)
        # The loop that measures the peak loads nothing, and an activation multiplies.
        product = any(VECTOR.match(text) for text in loop) and "fmul" not in names
        if count == tile.count and "".join(widening) == tile.widening and product:
            full.append(loop)
    assert full, f"no loop of {tile.count} {tile.multiply}: tiles are smaller, or cut"
    assert [spills(loop) for loop in full] == [[] for _ in full]


def test_a_spill_is_seen():
    kept = ["ldp q1, q2, [x0], #32", "ldr s3, [x1, x2]", "add x1, x1, #0x4", "b.ne 10"]
    assert spills(kept) == []
    assert spills([*kept, "str q3, [sp, #16]", "ldr q4, [x9, #32]"]) == [
        "str q3, [sp, #16]",
        "ldr q4, [x9, #32]",
    ]
