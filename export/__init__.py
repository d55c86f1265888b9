"""Making bundles: from live Gluon nets, the model zoo, Hugging Face directories and bare graphs.

This package is the one part of bertrt that uses MXNet, GluonNLP and onnx; nothing else imports it
before it is asked to export. Install what it needs with ``pip install 'bertrt[export]'``.
"""

from .graphs import import_graph
from .huggingface import import_huggingface
from .model import export_model
from .symbol_to_onnx import symbol_to_onnx
from .zoo import export_zoo

__all__ = [
    "export_model",
    "export_zoo",
    "import_graph",
    "import_huggingface",
    "symbol_to_onnx",
]
