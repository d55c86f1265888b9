"""Whether a node's attributes are of the kinds that its operator has them with."""

from __future__ import annotations

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
    kinds = onnx.AttributeProto.AttributeType
    if node.domain == MICROSOFT:
        wanted = {name: kinds.Value(kind) for name, kind in _MICROSOFT.items()}
    else:
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            return  # refused as an operator that there is not
        wanted = {name: own.type.value for name, own in schema.attributes.items()}
    # An older opset's attribute that the schema does not have is the conversion's to refuse.
    for attribute in node.attribute:
        if attribute.type != (kind := wanted.get(attribute.name, attribute.type)):
            raise ModelFormatError(
                f"{where}: attribute {attribute.name!r} is of the kind "
                f"{kinds.Name(attribute.type)}, expected {kinds.Name(kind)}"
            )
