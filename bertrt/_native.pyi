"""The compiled part of bertrt: plan execution on the CPU. Use bertrt.Engine."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
# A plan's weights; bfloat16 as uint16, e4m3 as uint8.
WeightArray = npt.NDArray[np.float32 | np.uint16 | np.int8 | np.uint8]
IntArray = npt.NDArray[np.int32]

MAX_THREADS: int

class Model:
    """A plan with its weights packed for this CPU.

    `precision` is that of the encoder's steps that state none themselves. What stands in `weights`
    in the place of arrays, with their dtype and shape, is given to `fetch` when it is needed.
    Raises ModelFormatError, DeviceError and OutOfMemoryError."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        weights: dict[str, Any],
        precision: str = "fp32",
        threads: int = 1,
        fetch: Callable[[list[Any]], list[WeightArray]] | None = None,
    ) -> None: ...

class Engine:
    """Runs a Model on threads of its own, on fewer than asked for where the system gives no more.
    Engines of one Model share its packed weights."""

    def __init__(self, model: Model, threads: int, trace: bool = False) -> None: ...
    def run(
        self,
        token_ids: IntArray,
        token_types: IntArray,
        cu_seqlens: IntArray,
        masked_positions: IntArray | None,
        outputs: list[str],
        attended: IntArray | None = None,
    ) -> dict[str, FloatArray]:
        """Runs a packed batch; float32 arrays (rows, columns) by output name. Between steps
        Python's signal handlers run, and an exception of theirs ends the run. Raises
        InvalidInputError, and OutOfMemoryError, after which the engine runs what does fit."""

    @property
    def threads(self) -> int:
        """The threads that there really are; in a forked child, those of its own."""
    @property
    def isa(self) -> str: ...
    def steps(self) -> list[tuple[str, str, float, int, int]]:
        """(name, kernel, seconds, operations, bytes) of every step.

        What was done since loading; the numbers are zero unless tracing is on. operations:
        additions and multiplications of matrix products. bytes: what has to move at least, a
        product's packed weights or the rows that another step reads and writes."""

def supported_isas() -> list[str]:
    """The instruction sets that can run here, best first; those for tests alone come last."""

def share_cores(cores: int) -> None:
    """How many cores the engines of this process have among them."""

class MachinePeaks(TypedDict):
    """See `machine_peaks`."""

    isa: str
    fp32: float
    bf16: float
    int8: float
    read: float

def machine_peaks(threads: int) -> MachinePeaks:
    """What this machine can do at most on so many threads, measured for about a second.

    "isa": the instruction set in use; "fp32", "bf16", "int8": operations a second of the
    instruction that its matrix products of that precision use, on registers alone, an addition and
    a multiplication being two; "read": bytes a second from memory."""

def present_fp32_peak(threads: int) -> float:
    """What "fp32" of `machine_peaks` comes to just now, measured for about 30 milliseconds: less if
    something else has a part of the machine."""

class kernels:  # noqa: N801  (a submodule, in truth)
    """Single kernels by instruction set; isa "reference" is the double oracle."""

    @staticmethod
    def linear(
        isa: str,
        x: FloatArray,
        weight: FloatArray,
        bias: FloatArray | None = None,
        activation: str = "none",
        threads: int = 1,
        precision: str = "fp32",
    ) -> FloatArray: ...
    @staticmethod
    def attention(
        isa: str,
        qkv: FloatArray,
        cu_seqlens: IntArray,
        heads: int,
        scale: float,
        threads: int = 1,
        precision: str = "fp32",
        bias: FloatArray | None = None,
    ) -> FloatArray: ...
    @staticmethod
    def layer_norm(
        isa: str,
        x: FloatArray,
        gamma: FloatArray,
        beta: FloatArray,
        eps: float,
        residual: FloatArray | None = None,
    ) -> FloatArray: ...
    @staticmethod
    def activation(isa: str, name: str, x: FloatArray) -> FloatArray: ...
    @staticmethod
    def float_modes(threads: int) -> list[int]:
        """The control word (MXCSR) of each thread of a new pool, in a loop; first the caller's. 0
        on other CPUs than x86-64."""

    class ThreadPool:
        """As an engine has it."""

        def __init__(self, threads: int) -> None: ...
        @property
        def threads(self) -> int: ...
        def threads_at_once(self, wanted: int, seconds: float) -> int:
            """How many threads a loop gets at once, at most so many, waiting for so long."""
