"""The parts of a product's depth."""

from __future__ import annotations

import itertools

import pytest


@pytest.fixture
def depth(emulated):
    return emulated.depth


def test_parts_of_models(depth):
    assert [depth.depth_parts(inputs) for inputs in (1, 768, 1024, 2047)] == [1, 1, 1, 1]
    assert [depth.depth_parts(inputs) for inputs in (2048, 3072, 4096, 2**31 - 1)] == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("inputs", "parts", "begins"),
    [
        (768, 1, [0, 768]),
        (3072, 4, [0, 768, 1536, 2304, 3072]),
        (4096, 4, [0, 1024, 2048, 3072, 4096]),
        (2048, 4, [0, 512, 1024, 1536, 2048]),
        (2049, 4, [0, 512, 1024, 1536, 2049]),  # the last has a step of one input more
        (2176, 4, [0, 512, 1088, 1600, 2176]),  # 34 steps: 8, 9, 8 and 9
        (2**31 - 1, 4, [0, 2**29, 2**30, 3 * 2**29, 2**31 - 1]),
    ],
)
def test_where_parts_begin(depth, inputs, parts, begins):
    assert [depth.part_begin(inputs, parts, part) for part in range(parts + 1)] == begins


@pytest.mark.parametrize("step", [64, 128])
def test_parts_are_whole_steps_and_as_equal_as_they_can_be(depth, step):
    for inputs in [*range(1, 2200), 2303, 3071, 3073, 4095, 16385]:
        parts = depth.depth_parts(inputs)
        begins = [depth.part_begin(inputs, parts, part, step) for part in range(parts + 1)]
        assert begins[0] == 0 and begins[-1] == inputs
        assert all(begin % step == 0 for begin in begins[:-1])
        steps = [-(-(end - begin) // step) for begin, end in itertools.pairwise(begins)]
        assert min(steps) >= 1 and max(steps) - min(steps) <= 1
