"""Mutated plans: Python and C++ take the same ones, and run each of them to what it means.

`BERTRT_MUTANTS` says how many, `BERTRT_MUTANTS_FROM` the number of the first: a mutant is made of
its number alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bertrt import _native
from bertrt.backends.native import NativeBackend, load
from bertrt.batch import PackedBatch
from bertrt.errors import BertrtError, DeviceError, ModelFormatError
from bertrt.plan.interpret import interpret
from bertrt.plan.plan import Plan
from bertrt.plan.tail import TAIL_OPS
from bertrt.plan.weights import locate_weights

MUTANTS = int(os.environ.get("BERTRT_MUTANTS", "4000"))
FIRST = int(os.environ.get("BERTRT_MUTANTS_FROM", "0"))

# What Python alone refuses, by its messages, and what engines have instead, or why they need not.
PYTHONS_OWN = {
    # An engine gets the arrays, and looks at each array's own shape and type.
    "the table of weights": r"^weights\b|no step uses the weights|is not among the weights",
    # An engine hands out any value by any name.
    "names of outputs": r"unknown output|^output '.*' is value|^the outputs .* of \d+ layers",
    # An engine reads of the facts those that tables are indexed by, and checks these.
    "facts that a model states": r"^architecture|has no one|it has no encoder layer",
    # An engine is asked for rows at masked positions, or is not, and checks each batch.
    "inputs of a graph": r"^inputs\b|need each other$|the plan has no input",
    # They are numpy's; an engine gets the steps before them.
    "tail steps": rf"\((?:{'|'.join(sorted(TAIL_OPS))})\):|reads the result of a tail step",
    # In messages and traces they are text.
    "names that are empty or endless": r"expected a name",
}


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    path = Path(__file__).parents[1] / "fuzz" / "plans.py"
    spec = importlib.util.spec_from_file_location("fuzz_plans", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def engine_form(content: dict[str, Any]) -> dict[str, Any]:
    """`Plan.to_engine` of a plan that is none: every output that no tail step makes."""
    steps = [step for step in content["steps"] if step["op"] not in TAIL_OPS]
    made = {step["output"] for step in steps}
    left = {step["output"] for step in content["steps"] if step["op"] in TAIL_OPS} - made
    outputs: dict[str, str] = {}
    for name, value in content["outputs"].items():
        if value not in left and value not in outputs.values():
            outputs[name] = value
    if content["outputs"] and not outputs and made:
        outputs = {"last": steps[-1]["output"]}
    return {**content, "steps": steps, "outputs": outputs}


def draw_batch(random: Random, plan: dict[str, Any], positions: bool) -> PackedBatch:
    facts = plan["architecture"]
    least, most = int(positions), min(facts["max_length"], 40)
    kinds = ([1], [most], [most] * random.choice((2, 9)), [3, 1, 5], [2, most, 1])
    lengths = [min(most, n) for n in random.choice(kinds)]
    if not positions and random.random() < 0.3:
        lengths[random.randrange(len(lengths))] = least
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    rng = np.random.default_rng(random.randrange(1 << 32))
    tokens = int(ends[-1])
    return PackedBatch(
        rng.integers(0, facts["vocab_size"], tokens, dtype=np.int32),
        rng.integers(0, max(1, facts["type_vocab_size"]), tokens, dtype=np.int32),
        ends,
        np.stack([rng.integers(0, n, 2, dtype=np.int32) for n in lengths]) if positions else None,
    )


def run_raw(random: Random, plan: dict[str, Any], weights: dict[str, np.ndarray], threads: int):
    """All outputs of a plan that C++ took, of one batch."""
    model = _native.Model(plan, weights, random.choice(("fp32", "bf16", "int8")), 1)
    engine = _native.Engine(model, threads)
    batch = draw_batch(random, plan, positions=True)
    names = list(plan["outputs"])
    for wanted in [names, *([name] for name in names)]:
        engine.run(
            batch.token_ids, batch.token_types, batch.cu_seqlens, batch.masked_positions, wanted
        )


def means(plan: Plan, batch: PackedBatch) -> dict[str, np.ndarray]:
    """`interpret`, with rows as a backend has them."""
    lengths = np.diff(batch.cu_seqlens)
    valid = np.arange(max(1, lengths.max())) < lengths[:, None]
    padded = {"valid_length": lengths, "masked_positions": batch.masked_positions}
    for name, rows in (("token_ids", batch.token_ids), ("token_types", batch.token_types)):
        padded[name] = np.zeros(valid.shape, np.int64)
        padded[name][valid] = rows
    found = interpret(plan, padded)
    return {
        name: values[valid] if plan.rows[name] == "tokens" else values
        for name, values in found.items()
    }


def run_and_compare(random: Random, plan: Plan, threads: int) -> str:
    """Every output, together and alone; gives how it was held against its meaning."""
    precision = plan.precision or random.choice(("fp32", "fp32", "bf16", "int8"))
    model: Any = SimpleNamespace(plan=lambda: plan, path="mutant")
    if precision == "fp8":  # which is a GPU's, and both say so
        with pytest.raises(DeviceError, match="fp8, which runs on GPUs only"):
            load(model, device="cpu", precision=precision, threads=threads)
        weights = {name: constant.array for name, constant in plan.weights.items()}
        with pytest.raises(ModelFormatError, match="fp8"):
            _native.Model(plan.to_engine(), weights, "fp32", 1)
        return "refused"
    backend: NativeBackend = load(model, device="cpu", precision=precision, threads=threads)
    positions = plan.inputs["masked_positions"] is not None
    batch = draw_batch(random, plan.to_engine(), positions)
    if plan.inputs["valid_length"] is None:  # nothing is padding
        lengths = np.full(2, min(5, plan.architecture["max_length"]))
        tokens = int(lengths.sum())
        batch = PackedBatch(
            np.arange(tokens, dtype=np.int32) % plan.architecture["vocab_size"],
            np.zeros(tokens, np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
            np.zeros((2, 1), np.int32) if positions else None,
        )
    names = list(plan.outputs)
    found = backend.run(batch, names)
    for name in names:
        alone = backend.run(batch, [name])[name]
        # A row that pads a sequence without tokens, in front of a graph's last steps, is nobody's.
        np.testing.assert_array_equal(alone, found[name], err_msg=name)
    # A weight at another offset may be any number, which float32 and float64 take elsewhere.
    arrays = [constant.array for constant in plan.weights.values()]
    if precision != "fp32" or not all((np.abs(array) < 100).all() for array in arrays):
        return "run"
    with np.errstate(all="ignore"):
        wanted = means(plan, batch)
    if not all(np.isfinite(values).all() for values in wanted.values()):
        return "run"
    for name in names:
        assert found[name].shape == wanted[name].shape
        largest = max(1.0, float(np.abs(wanted[name]).max(initial=0.0)))
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-3 * largest, err_msg=name)
    return "compared"


def judge(random: Random, content: dict[str, Any], directory: Path) -> str:
    """What becomes of a plan; an AssertionError where Python and C++ are of two minds."""
    threads = random.choice((1, 1, 2))
    with np.errstate(all="ignore"):
        try:
            plan = Plan.from_dict(content, directory)
        except BertrtError as error:
            refusal = str(error)
        else:
            return run_and_compare(random, plan, threads)
        try:
            weights = {
                k: v.array for k, v in locate_weights(content["weights"], directory, {}).items()
            }
        except BertrtError:
            return "not mapped"
        plain = engine_form(content)
        try:
            run_raw(random, plain, weights, threads)
        except ModelFormatError:
            return "refused"
    if "there twice" in refusal and len(plain["steps"]) < len(content["steps"]):
        return "tail steps"
    for reason, pattern in PYTHONS_OWN.items():
        if re.search(pattern, refusal):
            return reason
    raise AssertionError(f"C++ took what Python refuses: {refusal}")


def test_python_and_cpp_take_the_same_plans_and_run_them_to_what_they_mean(plans, tmp_path):
    seeds = plans.write_seeds(tmp_path)
    verdicts: Counter[str] = Counter()
    for content in seeds.values():
        assert judge(Random(0), content, tmp_path) in ("compared", "run")
    for number in range(FIRST, FIRST + MUTANTS):
        random = Random(f"plan {number}")
        content = plans.mutate_plan(random, seeds[random.choice(list(seeds))])
        try:
            verdicts[judge(random, content, tmp_path)] += 1
        except Exception as error:
            raise AssertionError(f"mutant {number}") from error
    print(json.dumps(verdicts))
    if MUTANTS >= 4000:
        assert min(verdicts["compared"], verdicts["run"], verdicts["refused"]) > MUTANTS // 50
        assert all(verdicts[reason] for reason in PYTHONS_OWN), verdicts
