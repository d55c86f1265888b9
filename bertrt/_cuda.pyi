"""The compiled part of bertrt: plan execution on GPUs. Use bertrt.Engine."""

from collections.abc import Callable, Mapping
from typing import Any

from bertrt._native import FloatArray, IntArray

VERSION: str
"""The version of bertrt that the module belongs to."""

class Device:
    """A GPU: what it is, and what it has."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def arch(self) -> str:
        """ "sm_90", say."""
    @property
    def multiprocessors(self) -> int: ...
    @property
    def memory(self) -> int:
        """Bytes."""

def devices() -> list[Device]:
    """The GPUs of this machine. Raises DeviceError that says what is missing."""

def free_memory(device: int = 0) -> int:
    """Bytes of a GPU's memory that nobody uses."""

class Model:
    """A plan with its weights on a GPU. See `bertrt._native.Model`; the weights are copied."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        weights: dict[str, Any],
        precision: str = "fp32",
        device: int = 0,
        fetch: Callable[[list[Any]], list[FloatArray]] | None = None,
    ) -> None: ...

class Engine:
    """Runs a Model on its GPU. Engines of one Model share its weights.

    `graphs`: whether small parts run by CUDA graphs. `part_tokens`: a batch runs in parts of whole
    sequences of at most so many tokens, or of one; 0: what suits the GPU and the memory that is
    free on it."""

    def __init__(
        self, model: Model, trace: bool = False, graphs: bool = True, part_tokens: int = 0
    ) -> None: ...
    def run(
        self,
        token_ids: IntArray,
        token_types: IntArray,
        cu_seqlens: IntArray,
        masked_positions: IntArray | None,
        outputs: list[str],
        attended: IntArray | None = None,
    ) -> dict[str, FloatArray]:
        """See `bertrt._native.Engine.run`; DeviceError where the GPU's memory does not suffice."""

    @property
    def device(self) -> Device: ...
    @property
    def part_tokens(self) -> int: ...
    def launches(self) -> dict[str, Any]:
        """How parts of batches were launched since loading: "parts", in all; "by_graph", of them by
        a CUDA graph; "captured", the graphs that were made; "overlap", whether a kernel starts
        while the one before it ends; "no_graphs", why no graphs are made, or no more, or ""."""
    def steps(self) -> list[tuple[str, str, float, int, int]]:
        """See `bertrt._native.Engine.steps`; the seconds are the GPU's."""

kernels: Any
"""Single kernels, for tests: csrc/bindings/testing/cuda_kernels.cpp."""
