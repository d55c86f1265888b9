"""PyTorch: the model in plain operators, with its fused attention; eager, or behind one of its
compilers (`inductor`, `zentorch`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bertrt.bench import plans
from bertrt.bench.engines.base import Inputs, Runner
from bertrt.models.model import Model
from bertrt.plan.plan import Plan
from bertrt.plan.steps import Step

METHODS = {
    "fp32": "eager, scaled_dot_product_attention",
    "bf16": "eager, weights and activations in bfloat16",
}


def load(path: str, name: str, precision: str, threads: int, directory: str) -> Runner:
    """See `bertrt.bench.engines`."""
    import torch

    torch.set_num_threads(threads)
    return _Torch(torch, Model.open(path).plan(), precision)


def load_compiled(path: str, precision: str, threads: int, compiler: str) -> Runner:
    """The model behind a backend of `torch.compile`: weights frozen into the graph, and a graph for
    each shape, which is the fastest that it offers."""
    import torch
    import torch._inductor.config

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    torch._dynamo.config.recompile_limit = 64
    runner = _Torch(torch, Model.open(path).plan(), precision)
    runner.compile(compiler)
    return runner


class _Torch(Runner):
    def __init__(self, torch: Any, plan: Plan, precision: str) -> None:
        self.provider = f"torch {torch.__version__}"
        self._torch = torch
        self._steps = plans.runnable_steps(plan)
        self._wanted = {name: plan.outputs[name] for name in plans.runnable_outputs(plan)}
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._weights: dict[str, dict[str, Any]] = {}
        for step in self._steps:
            if step.op == "qkv_linear":
                weight, bias = plans.qkv(plan, step)
                arrays = {"weight": weight, "bias": bias}
            else:
                arrays = {
                    role: plan.weights[names[0]].array for role, names in step.weights.items()
                }
                if "weight" in arrays:
                    arrays["weight"] = plans.matrix(plan, step)
            self._weights[step.name] = {
                role: torch.tensor(np.ascontiguousarray(array), dtype=self._dtype)
                for role, array in arrays.items()
            }
        self._compute: Any = self._steps_of

    def compile(self, compiler: str) -> None:
        """Have a backend of `torch.compile` make one graph of the steps for each shape."""
        torch = self._torch
        for weights in self._weights.values():
            for role, weight in weights.items():
                # Only parameters are frozen.
                weights[role] = torch.nn.Parameter(weight, requires_grad=False)
        self._compute = torch.compile(self._steps_of, backend=compiler, dynamic=False)

    def prepare(self, inputs: Inputs) -> dict[str, Any]:
        torch = self._torch
        found = {
            "ids": torch.tensor(inputs.token_ids, dtype=torch.int64),
            "types": torch.tensor(inputs.token_types, dtype=torch.int64),
            "lengths": torch.tensor(inputs.valid_length),
        }
        # Without padding there is nothing to mask, and a faster kernel.
        full = bool((inputs.valid_length == inputs.token_ids.shape[1]).all())
        found["mask"] = None if full else torch.tensor(inputs.valid)[:, None, None, :]
        return found

    def run(self, prepared: dict[str, Any]) -> dict[str, Any]:
        with self._torch.inference_mode():
            return self._compute(prepared)

    def _steps_of(self, prepared: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for step in self._steps:
            operands = [values[name] for name in step.inputs]
            step_run = getattr(self, f"_{step.op}")
            values[step.output] = step_run(step, self._weights[step.name], prepared, *operands)
        return {value: values[value] for value in self._wanted.values()}

    def outputs(self, answer: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: answer[value].float().numpy() for name, value in self._wanted.items()}

    # One method for each kind of step

    def _norm(self, step: Step, w: dict[str, Any], x: Any) -> Any:
        norm = self._torch.nn.functional.layer_norm
        return norm(x, x.shape[-1:], w["gamma"], w["beta"], step.fields["eps"])

    def _embed_layer_norm(self, step: Step, w: dict[str, Any], batch: dict[str, Any]) -> Any:
        embedding = self._torch.nn.functional.embedding
        x = embedding(batch["ids"], w["word"])
        if "type" in w:
            x = x + embedding(batch["types"], w["type"])
        return self._norm(step, w, x + w["position"][: x.shape[1]])

    def _qkv_linear(self, step: Step, w: dict[str, Any], batch: dict[str, Any], x: Any) -> Any:
        return self._torch.nn.functional.linear(x, w["weight"], w["bias"])

    def _attention(self, step: Step, w: dict[str, Any], batch: dict[str, Any], qkv: Any) -> Any:
        seqs, length, _ = qkv.shape
        parts = qkv.view(seqs, length, 3, step.fields["heads"], -1).permute(2, 0, 3, 1, 4)
        mask = batch["mask"] if step.fields["mask"] == "valid_length" else None
        if "bias" in w:
            at = self._torch.arange(length)
            bias = w["bias"][:, w["bias"].shape[1] // 2 + at - at[:, None]]
            mask = bias if mask is None else self._torch.where(mask, bias, -math.inf)
        context = self._torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, scale=step.fields["scale"]
        )
        return context.transpose(1, 2).reshape(seqs, length, -1)

    def _linear_add_layer_norm(
        self, step: Step, w: dict[str, Any], batch: dict[str, Any], x: Any, residual: Any
    ) -> Any:
        x = self._torch.nn.functional.linear(x, w["weight"], w["bias"])
        return self._norm(step, w, x + residual)

    def _linear(self, step: Step, w: dict[str, Any], batch: dict[str, Any], x: Any) -> Any:
        functional = self._torch.nn.functional
        x = functional.linear(x, w["weight"], w.get("bias"))
        activation = step.fields["activation"]
        if activation == "none":
            return x
        if activation.startswith("gelu"):
            exact = activation == "gelu_erf"
            return functional.gelu(x, approximate="none" if exact else "tanh")
        return getattr(self._torch, activation)(x)

    def _layer_norm(self, step: Step, w: dict[str, Any], batch: dict[str, Any], x: Any) -> Any:
        return self._norm(step, w, x)

    def _first_token(self, step: Step, w: dict[str, Any], batch: dict[str, Any], x: Any) -> Any:
        return x[:, 0]
