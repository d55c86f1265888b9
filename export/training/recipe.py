"""What a fine-tuning run is told to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from bertrt.errors import InvalidInputError

__all__ = ["CLIP_NORM", "DROPOUT", "RECIPES", "WEIGHT_DECAY", "Recipe", "learning_rate"]

# Of GluonNLP's scripts/bert/finetune_classifier.py, which has no option for them.
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
DROPOUT = 0.1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a run. The defaults are those of finetune_classifier.py.

    Attributes:
        epochs: how often the training data are gone through, at most.
        batch_size: sequences that the net runs at once.
        accumulate: batches whose gradients make one step.
        learning_rate: the highest; see `learning_rate`.
        warmup: the part of all steps in which the rate rises.
        epsilon: of BERTAdam.
        max_length: tokens of a sequence at most, special ones included.
        early_stop: after how many epochs without a better score the run ends; None: never.
        seed: of the order of the data, of dropout and of the head's first weights.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-5
    warmup: float = 0.1
    epsilon: float = 1e-6
    max_length: int = 128
    early_stop: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidInputError for a value that cannot be used."""
        for name, (expected, fits) in _CHECKS.items():
            value = getattr(self, name)
            if not fits(value):
                raise InvalidInputError(f"{name} should be {expected}, found {value!r}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_COUNT = "a whole number from 1", _is_count
_CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "accumulate": _COUNT,
    "learning_rate": ("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1),
    "warmup": ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    "epsilon": ("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1),
    "max_length": ("a whole number from 3", lambda v: _is_count(v) and v >= 3),
    "early_stop": ("a whole number from 1, or None", lambda v: v is None or _is_count(v)),
    "seed": ("a whole number from 0", lambda v: type(v) is int and 0 <= v < 1 << 31),
}

# Where GluonNLP's model zoo page ("BERT for Sentence Classification") departs from the script's
# defaults, by the names of `bertrt.tasks.settings.PRESETS`.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "MRPC": {"learning_rate": 2e-5},
    "RTE": {"learning_rate": 2e-5},
    "SST": {"learning_rate": 2e-5, "epochs": 4, "batch_size": 16},
    "MNLI": {"learning_rate": 2e-5, "max_length": 80, "epsilon": 1e-8},
}


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of a step, of `steps` in all, counted from 0: it rises in a line from 0 over the
    warm-up, and falls in a line to 0, as in finetune_classifier.py."""
    rising = int(steps * recipe.warmup)
    if step < rising:
        return recipe.learning_rate * step / rising
    return recipe.learning_rate * (1 - (step - rising) / (steps - rising))
