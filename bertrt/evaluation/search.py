"""The search for the steps that stay in a higher precision, so that a bound holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError
from bertrt.evaluation.calibration import Calibration
from bertrt.evaluation.receipt import BoundError, Cost, Report, StepError, make_report
from bertrt.host.progress import progress
from bertrt.models.model import Model
from bertrt.plan.plan import Plan
from bertrt.plan.quantized import lowered_steps, product_steps, state_precisions
from bertrt.plan.smoothing import Pair, smooth, smoothing_pairs

__all__ = ["FALLBACKS", "Search"]

# Where a step goes that costs too much, nearest first. Beside fp8 and int8, on a GPU, all of these
# run in fp16.
FALLBACKS = {"int8": ("bf16", "fp32"), "bf16": ("fp32",), "fp8": ("fp32",)}


class Search:
    """Looks for what has to stay in a higher precision."""

    def __init__(
        self,
        model: Model,
        calibration: Calibration,
        precision: str,
        max_loss: float | None,
        max_error: float | None,
    ) -> None:
        self._calibration = calibration
        self._precision = precision
        self._max_loss = max_loss
        self._max_error = max_error
        self._plan = self._source = model.plan()
        self._names = [step.name for step in lowered_steps(self._plan, precision)]
        self._matrices = {step.name for step in product_steps(self._plan) if step.weights}
        if max_loss is not None and math.isnan(self._score(calibration.before)):
            raise InvalidInputError(
                f"{calibration.examples.path}: the {calibration.metrics[0]} of fp32 is not defined "
                "on these data, so that no loss of it can be bounded"
            )

    def run(self, smooth: bool) -> tuple[Plan, Report]:
        """The plan with its precisions stated, and the report.

        Raises:
            BoundError: a bound cannot be held.
        """
        calibration = self._calibration
        plain = calibration.cost(self._lowered({}))
        errors = self._errors()
        smoothed = self._smooth(errors) if smooth else set()
        order = sorted(self._names, key=lambda name: -errors[name][0])
        kept, cost = self._choose(order, errors, plain if not smoothed else None)
        chosen = self._lowered(kept)
        steps = [
            StepError(name, *errors[name], kept.get(name, self._precision), name in smoothed)
            for name in self._names
        ]
        report = dataclasses.replace(
            make_report(self._precision, chosen, self._source, steps),
            max_loss=self._max_loss,
            max_error=self._max_error,
            task=calibration.task,
            data=calibration.examples.path.name,
            sha256=calibration.examples.sha256,
            examples=len(calibration.examples),
            before=calibration.before,
            plain=plain,
            cost=cost,
            device=calibration.provider,
        )
        return chosen, report

    def _lowered(self, kept: Mapping[str, str]) -> Plan:
        """The plan with all steps lowered but those that keep another precision."""
        lowered = {name: kept.get(name, self._precision) for name in self._names}
        return state_precisions(self._plan, lowered)

    def _errors(self) -> dict[str, tuple[float, float]]:
        """Each step's own error."""
        errors = {}
        with progress(len(self._names), "steps", " steps") as advance:
            for name in self._names:
                errors[name] = self._own_error(self._plan, name)
                advance(1)
        return errors

    def _own_error(self, plan: Plan, name: str) -> tuple[float, float]:
        return self._calibration.error(state_precisions(plan, {name: self._precision}))

    def _smooth(self, errors: dict[str, tuple[float, float]]) -> set[str]:
        """Smooth the inputs of steps where that makes their error smaller; returns which."""
        calibration = self._calibration
        pairs = smoothing_pairs(self._plan)
        largest = _largest_inputs(self._plan, pairs, calibration)
        smoothed = set()
        with progress(len(pairs), "smoothing", " steps") as advance:
            for pair in pairs:
                plan = smooth(self._plan, pair, largest[pair.reader.name])
                error = self._own_error(plan, pair.reader.name)
                if error[0] < errors[pair.reader.name][0]:
                    self._plan, errors[pair.reader.name] = plan, error
                    smoothed.add(pair.reader.name)
                advance(1)
        return smoothed

    def _choose(
        self,
        order: Sequence[str],
        errors: Mapping[str, tuple[float, float]],
        plain: Cost | None,
    ) -> tuple[dict[str, str], Cost]:
        """What stays in which precision: as few steps as hold the bound, the worst first."""
        best = plain or self._calibration.cost(self._lowered({}))
        if self._holds(best):
            return {}, best
        # One matrix at least has to be lowered, or nothing has been quantised.
        most = max(i for i, name in enumerate(order) if name in self._matrices)
        for fallback in FALLBACKS[self._precision]:
            # One by one: flips of examples make a score no steady function of the steps.
            with progress(most, f"steps in {fallback}", " steps") as advance:
                for count in range(1, most + 1):
                    kept = dict.fromkeys(order[:count], fallback)
                    best = self._calibration.cost(self._lowered(kept))
                    if self._holds(best):
                        return kept, best
                    advance(1)
        worst = ", ".join(f"{name} ({errors[name][0]:.1e})" for name in order[:3])
        raise BoundError(
            f"{self._precision} cannot hold {self._bounds()} on {self._calibration.examples.path}: "
            f"with all but one matrix in fp32 {self._describe(best)}; the worst steps are {worst} "
            "(logit error, root mean square); allow more, or serve the bundle in fp32 or bf16"
        )

    def _holds(self, cost: Cost) -> bool:
        # Written so that a NaN does not hold.
        if self._max_loss is not None and not self._loss(cost) <= self._max_loss:
            return False
        return self._max_error is None or cost.largest <= self._max_error

    def _score(self, scores: Mapping[str, float]) -> float:
        return scores[self._calibration.metrics[0]]

    def _loss(self, cost: Cost) -> float:
        # Scores are ratios of counts: what is left of the last digits is no loss.
        return round(self._score(self._calibration.before) - self._score(cost.scores), 9)

    def _bounds(self) -> str:
        texts = []
        if self._max_loss is not None:
            texts.append(f"a loss of {self._max_loss} points of {self._calibration.metrics[0]}")
        if self._max_error is not None:
            texts.append(f"a logit error of {self._max_error}")
        return " and ".join(texts)

    def _describe(self, cost: Cost) -> str:
        texts = []
        if self._max_loss is not None:
            texts.append(f"{self._loss(cost):.2f} points are lost")
        if self._max_error is not None:
            texts.append(f"the largest logit error is {cost.largest:.1e}")
        return " and ".join(texts)


def _largest_inputs(
    plan: Plan, pairs: Sequence[Pair], calibration: Calibration
) -> dict[str, np.ndarray]:
    """The largest magnitude in each column of a pair's activation, on the sample, by the reader's
    name: float32, shape (width,)."""
    from bertrt import _native

    if not pairs:
        return {}
    values = [pair.activation for pair in pairs]
    described = plan.to_engine() | {"outputs": {value: value for value in values}}
    weights = {name: np.ascontiguousarray(own.array) for name, own in plan.weights.items()}
    engine = _native.Engine(
        _native.Model(described, weights, "fp32", calibration.threads), calibration.threads
    )
    largest: dict[str, Any] = dict.fromkeys(values, np.float32(0.0))
    for batch in calibration.batches():
        found = engine.run(batch.token_ids, batch.token_types, batch.cu_seqlens, None, values, None)
        for value in values:
            largest[value] = np.maximum(largest[value], np.abs(found[value]).max(axis=0))
    return {pair.reader.name: largest[pair.activation] for pair in pairs}
