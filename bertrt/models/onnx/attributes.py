"""Whether a node's attributes are of the kinds that its operator has them with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from bertrt.errors import ModelFormatError
from bertrt.models.onnx.call import MICROSOFT

__all__ = ["check_attributes"]

# Of onnxruntime's own operators, of which the package onnx knows nothing.
_MICROSOFT = {
    "activation": "STRING",
    "alpha": "FLOAT",
    "axis": "INT",
    "do_rotary": "INT",
    "epsilon": "FLOAT",
    "mask_filter_value": "FLOAT",
    "mask_index_type": "INT",
    "num_heads": "INT",
    "past_present_share_buffer": "INT",
    "qkv_hidden_sizes": "INTS",
    "scale": "FLOAT",
    "transA": "INT",
    "transB": "INT",
    "transBatchA": "INT",
    "transBatchB": "INT",
    "unidirectional": "INT",
}


def check_attributes(onnx: Any, opset: int, node: Any, where: str) -> None:
    """Refuse, with a ModelFormatError that begins with `where`, an attribute of another kind than
    the operator's: a number with a fraction where a whole one counts axes, say."""
    wanted = _kinds(onnx, node.domain == MICROSOFT, node.op_type, opset)
    # An older opset's attribute that the schema does not have is the conversion's to refuse.
    for attribute in node.attribute:
        if attribute.type != (kind := wanted.get(attribute.name, attribute.type)):
            name = onnx.AttributeProto.AttributeType.Name
            raise ModelFormatError(
                f"{where}: attribute {attribute.name!r} is of the kind "
                f"{name(attribute.type)}, expected {name(kind)}"
            )


@functools.lru_cache(maxsize=512)
def _kinds(onnx: Any, microsoft: bool, op_type: str, opset: int) -> Mapping[str, int]:
    """The kinds of an operator's attributes by their names; none of one that there is not."""
    if microsoft:
        kinds = onnx.AttributeProto.AttributeType
        return {name: kinds.Value(kind) for name, kind in _MICROSOFT.items()}
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return {}
    return {name: own.type.value for name, own in schema.attributes.items()}
