"""What sentence-transformers puts behind the pooling of an embedding: small layers over one vector.

Numpy, a text at a time: a product is the sum of a row's products in numpy's own order, and not a
call of BLAS over a batch, so that no bit of a vector depends on the texts beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertrt.errors import ModelFormatError
from bertrt.tasks.activations import ACTIVATIONS, activate

__all__ = ["Module", "make_modules", "normalize", "output_width"]

# An embedding is divided by this where its norm is smaller, as in PyTorch's normalize.
_LEAST_NORM = np.float32(1e-12)
# That of torch.nn.LayerNorm, which sentence-transformers leaves as it is.
_LAYER_NORM_EPS = 1e-5

# The fields that describe each kind of module, with what each may be, and the roles of its arrays:
# those that must be there, and those that may.
_ACTIVATION_NAMES = tuple(name.lower() for name in ACTIVATIONS)
_KINDS: dict[str, tuple[dict[str, tuple[Any, ...]], tuple[str, ...], tuple[str, ...]]] = {
    "dense": (
        {"activation": _ACTIVATION_NAMES, "residual": (True, False)},
        ("weight",),
        ("bias", "residual"),
    ),
    "layer_norm": ({}, ("weight", "bias"), ()),
    "normalize": ({}, (), ()),
}


@dataclass(frozen=True, eq=False)
class Module:
    """A layer over a vector.

    Attributes:
        kind: "dense": ``activation(weight @ x + bias)``, to which with `residual` x is added, or
            the product of x with the array of that name; "layer_norm"; "normalize", to length 1.
        fields: of "dense" its "activation", a name of `bertrt.tasks.activations` in lower case, and
            whether "residual".
        arrays: float32, by their roles: "weight" (out, in) or (width,), "bias" (out,) or (width,),
            "residual" (out, in).
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, int] | None:
        """How many numbers it takes and gives; None where it gives as many as it takes."""
        if self.kind == "normalize":
            return None
        shape = self.arrays["weight"].shape
        return shape[-1], shape[0]

    def describe(self) -> dict[str, Any]:
        """All that is to be known of it but its arrays, as JSON has it."""
        return {"kind": self.kind, **self.fields}

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """The layer of a vector, float32 (in,) to float32 (out,)."""
        if self.kind == "normalize":
            return normalize(vector)
        if self.kind == "layer_norm":
            centred = vector - vector.mean(dtype=np.float64)
            centred /= np.sqrt(np.square(centred).mean() + _LAYER_NORM_EPS)
            return (centred * self.arrays["weight"] + self.arrays["bias"]).astype(np.float32)
        made = _product(self.arrays["weight"], vector)
        if "bias" in self.arrays:
            made += self.arrays["bias"]
        made = activate(self.fields["activation"], made).astype(np.float32)
        if self.fields["residual"]:
            other = self.arrays.get("residual")
            made += vector if other is None else _product(other, vector)
        return made


def _product(weight: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.asarray(np.add.reduce(weight * vector, axis=1))


def normalize(vector: np.ndarray) -> np.ndarray:
    """Each row of an array, or the one that it is, with length 1; zeros stay zeros."""
    squares = np.add.reduce(np.square(vector), axis=-1, keepdims=True)
    return np.asarray(vector / np.maximum(np.sqrt(squares), _LEAST_NORM))


def make_modules(
    described: Any, arrays: Mapping[str, np.ndarray], where: str
) -> tuple[Module, ...]:
    """Modules from what `Module.describe` gave and their arrays, checked.

    Args:
        described: a list of descriptions.
        arrays: float32, by the number of the module and the role: "0.weight", ...
        where: what messages call the place.

    Raises:
        ModelFormatError: a description or an array is missing, unknown, or not what it should be.
    """
    if not isinstance(described, Sequence) or isinstance(described, str):
        raise ModelFormatError(f"{where}: modules should be a list, found {described!r}")
    modules = []
    for index, found in enumerate(described):
        kind = found.get("kind") if isinstance(found, Mapping) else None
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ModelFormatError(
                f"{where}: the module {index} should be one of {', '.join(_KINDS)}, found {found!r}"
            )
        choices, required, optional = _KINDS[kind]
        if found.keys() != {"kind", *choices}:
            raise ModelFormatError(
                f"{where}: the module {index}, {kind}, should say {', '.join(choices) or 'no more'}"
                f", found {found!r}"
            )
        for name, values in choices.items():
            # True is 1 to Python, and no value of ours.
            if not any(
                type(found[name]) is type(value) and found[name] == value for value in values
            ):
                raise ModelFormatError(
                    f"{where}: the module {index}, {kind}: {name} should be one of "
                    f"{', '.join(map(str, values))}, found {found[name]!r}"
                )
        prefix = f"{index}."
        own = {
            name.removeprefix(prefix): array
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        if not set(required) <= own.keys() <= {*required, *optional}:
            raise ModelFormatError(
                f"{where}: the module {index}, {kind}, has the arrays "
                f"{', '.join(own) or 'of none'}; expected {', '.join(required) or 'none'}"
                + (f" and, if wanted, {', '.join(optional)}" if optional else "")
            )
        module = Module(kind, {name: found[name] for name in choices}, own)
        _check_shapes(module, f"{where}: the module {index}, {kind}")
        modules.append(module)
    if strange := [name for name in arrays if not _belongs(name, len(modules))]:
        raise ModelFormatError(f"{where}: {', '.join(strange)} belong to no module")
    return tuple(modules)


def _belongs(name: str, modules: int) -> bool:
    return any(name.startswith(f"{index}.") for index in range(modules))


def _check_shapes(module: Module, where: str) -> None:
    arrays = module.arrays
    if not arrays:
        return
    weight = arrays["weight"]
    if weight.ndim != (2 if module.kind == "dense" else 1) or 0 in weight.shape:
        raise ModelFormatError(f"{where}: its weight has the shape {weight.shape}")
    expected = {"weight": weight.shape, "bias": weight.shape[:1], "residual": weight.shape}
    for role, array in arrays.items():
        if array.dtype != np.float32 or array.shape != expected[role]:
            raise ModelFormatError(
                f"{where}: its {role} is {array.dtype} {array.shape}, expected float32 "
                f"{expected[role]}"
            )
        if not np.isfinite(array).all():
            raise ModelFormatError(f"{where}: its {role} holds numbers that are not finite")
    if module.kind == "dense":
        plain = module.fields["residual"] and "residual" not in arrays
        if plain and weight.shape[0] != weight.shape[1]:
            raise ModelFormatError(
                f"{where}: a residual connection from {weight.shape[1]} numbers to "
                f"{weight.shape[0]} needs the array residual"
            )
        if "residual" in arrays and not module.fields["residual"]:
            raise ModelFormatError(f"{where}: it has the array residual, and should have none")


def output_width(modules: Sequence[Module], width: int, where: str) -> int:
    """How many numbers come out of modules that a vector of `width` numbers goes into.

    Raises:
        ModelFormatError: one of them takes another number.
    """
    for index, module in enumerate(modules):
        if module.widths is None:
            continue
        takes, gives = module.widths
        if takes != width:
            raise ModelFormatError(
                f"{where}: the module {index} behind the pooling, {module.kind}, takes {takes} "
                f"numbers, and gets {width}"
            )
        width = gives
    return width
