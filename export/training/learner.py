"""A net with its optimizer: a step of training, and predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bertrt.errors import BertrtError

from ..gluon_to_symbol import import_gluon, input_names, structural_parameters
from .batches import Rows
from .recipe import CLIP_NORM, WEIGHT_DECAY, Recipe

__all__ = ["Learner"]

# BERTAdam's two moments of each weight.
_MOMENTS = ("mean", "variance")


class Learner:
    """A net in training, with BERTAdam.

    Args:
        net: an initialised net that returns logits.
        recipe: its rates are not read: each step is given its own.
        loss: what each row costs, shape (batch,), of the net's logits and the rows' targets.
    """

    def __init__(self, net: Any, recipe: Recipe, loss: Callable[[Any, Any], Any]) -> None:
        mxnet, _ = import_gluon()
        self._mxnet, self._net, self._recipe = mxnet, net, recipe
        self._inputs = input_names(net)
        net.hybridize(static_alloc=True)
        self._loss = loss
        self._parameters = structural_parameters(net)
        for name, parameter in self._parameters.items():
            # As in finetune_classifier.py: no decay of LayerNorm and of biases.
            parameter.wd_mult = 0.0 if name.endswith(("beta", "gamma", "bias")) else 1.0
            parameter.grad_req = "add" if recipe.accumulate > 1 else "write"
        optimizer = mxnet.optimizer.create(
            "bertadam",
            learning_rate=recipe.learning_rate,
            epsilon=recipe.epsilon,
            wd=WEIGHT_DECAY,
            param_dict=dict(enumerate(self._parameters.values())),
        )
        # Not a Trainer, which keeps its optimizer's states to itself or pickles them.
        self._optimizer, self._update = optimizer, mxnet.optimizer.get_updater(optimizer)

    def step(self, batches: Sequence[Mapping[str, np.ndarray]], rate: float, *, seed: int) -> float:
        """A step on the mean gradient of the rows of all batches; returns their mean loss.

        Args:
            batches: as `Rows.batch` makes them.
            rate: the learning rate.
            seed: with the recipe's own, of the dropout.

        Raises:
            BertrtError: the loss or the gradient is not a finite number.
        """
        rows = sum(len(batch["targets"]) for batch in batches)
        parameters = list(self._parameters.values())
        if self._recipe.accumulate > 1:
            for parameter in parameters:
                parameter.zero_grad()
        total = 0.0
        seeds = np.random.SeedSequence((self._recipe.seed, seed)).generate_state(len(batches))
        for batch, drawn in zip(batches, seeds, strict=True):
            self._mxnet.random.seed(int(drawn) >> 1)
            with self._mxnet.autograd.record():
                logits = self._net(*self._arrays(batch))
                loss = self._loss(logits, self._mxnet.nd.array(batch["targets"])).sum() / rows
            loss.backward()
            total += loss.asscalar().item()
        _, gluonnlp = import_gluon()
        norm = gluonnlp.utils.clip_grad_global_norm(parameters, CLIP_NORM, check_isfinite=False)
        if not math.isfinite(total) or not math.isfinite(norm.asscalar()):
            raise BertrtError(
                f"the loss is {total} and its gradient's norm {norm.asscalar()} at learning rate "
                f"{rate}; try a lower learning rate"
            )
        self._optimizer.lr = rate
        self._update(
            list(range(len(parameters))),
            [parameter.grad() for parameter in parameters],
            [parameter.data() for parameter in parameters],
        )
        return total

    def logits(self, rows: Rows, batch_size: int) -> np.ndarray:
        """The net's answers, float32, shape (rows, classes)."""
        order = np.argsort(rows.lengths, kind="stable")
        found = [
            self._net(*self._arrays(rows.batch(order[start : start + batch_size]))).asnumpy()
            for start in range(0, len(order), batch_size)
        ]
        logits = np.concatenate(found)
        answer = np.empty_like(logits)
        answer[order] = logits
        return answer

    def _arrays(self, batch: Mapping[str, np.ndarray]) -> list[Any]:
        return [self._mxnet.nd.array(batch[name]) for name in self._inputs]

    def weights(self) -> dict[str, np.ndarray]:
        """The weights, by the names that ``save_parameters`` gives them."""
        return {name: parameter.data().asnumpy() for name, parameter in self._parameters.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights and their moments, for a checkpoint."""
        found = {}
        for index, (name, parameter) in enumerate(self._parameters.items()):
            found[f"weight/{name}"] = parameter.data().asnumpy()
            for moment, array in zip(_MOMENTS, self._update.states[index], strict=True):
                found[f"{moment}/{name}"] = array.asnumpy()
        return found

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the weights and moments of a checkpoint.

        Raises:
            KeyError, ValueError: they are not those of this net.
        """
        for index, (name, parameter) in enumerate(self._parameters.items()):
            wanted = [arrays[f"{kind}/{name}"] for kind in ("weight", *_MOMENTS)]
            if any(array.shape != parameter.shape for array in wanted):
                raise ValueError(f"{name} should have the shape {parameter.shape}")
            weight, *moments = (self._mxnet.nd.array(array) for array in wanted)
            parameter.set_data(weight)
            self._update.states[index] = tuple(moments)
            self._update.states_synced[index] = True
