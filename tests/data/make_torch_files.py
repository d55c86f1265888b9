"""Makes torch_files.json: small files as torch.save writes them, and what is in them.

    pip install torch
    python tests/data/make_torch_files.py

Files are in base64. Those under "tensors" all hold the tensors of `tensors`, whose values stand
under "values" in numpy's words (floats as float32); those under "refused" hold something else.
"""

from __future__ import annotations

import base64
import collections
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def tensors() -> dict[str, Any]:
    """Every type that is read, tensors that share a storage, and views of all kinds."""
    import torch

    torch.manual_seed(0)
    base, half = torch.randn(6, 8), torch.randn(5, 3).half()
    found = {
        "base": base,
        "tied": base,
        "turned": base.t(),
        "cut": base[1:3, 2:5],
        "rows": base[2:4],
        "f64": torch.randn(3).double(),
        "f16": half,
        "f16 turned": half.t(),
        "bf16": torch.randn(4, 2).bfloat16(),
        "i64": torch.arange(7),
        "i32": torch.arange(7, dtype=torch.int32),
        "i16": torch.arange(3, dtype=torch.int16),
        "i8": torch.arange(-1, 2, dtype=torch.int8),
        "u8": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "positions": torch.arange(5).expand((1, -1)),
        "repeated": torch.tensor([1.0]).expand(3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    return collections.OrderedDict(found)


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWNED",)


def refused() -> dict[str, bytes]:
    """Files that hold something else than tensors."""
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    some = torch.ones(3)
    found = {
        "evil": saved({"x": some, "evil": Evil()}),
        "evil, legacy": saved({"x": some, "evil": Evil()}, _use_new_zipfile_serialization=False),
        "net": saved(net),
        "state": saved({"state_dict": net.state_dict()}),
        "epoch": saved({"x": some, "epoch": 3}),
        "list": saved([some]),
        "alone": saved(some),
        "expanded": saved({"x": some[:1].expand(1_000_000)}),
        "complex": saved({"x": some * 1j}),
        "sparse": saved({"x": some.to_sparse()}),
    }
    program = io.BytesIO()
    torch.jit.save(torch.jit.script(net), program)
    found["program"] = program.getvalue()
    for protocol in range(6):
        found[f"evil pickle {protocol}"] = pickle.dumps(Evil(), protocol=protocol)
    return found


def saved(value: Any, **options: Any) -> bytes:
    """The bytes of a file."""
    import torch

    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def main() -> None:
    """Write the file."""
    made = tensors()
    files = {
        "protocol 2": saved(made),
        "protocol 4": saved(made, pickle_protocol=4),
        "legacy": saved(made, _use_new_zipfile_serialization=False),
    }
    values = {}
    for name, tensor in made.items():
        array = (tensor.float() if tensor.dtype.is_floating_point else tensor).detach().numpy()
        values[name] = {"dtype": str(array.dtype), "value": array.tolist()}
        values[name]["shape"] = list(array.shape)
    content = {
        "tensors": {name: base64.b64encode(data).decode() for name, data in files.items()},
        "values": values,
        "refused": {name: base64.b64encode(data).decode() for name, data in refused().items()},
    }
    (HERE / "torch_files.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
