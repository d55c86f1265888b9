"""Where `read_examples` was in version 0.1.0, and is still imported from."""

from bertrt.evaluation.datasets import read_examples
from bertrt.evaluation.examples import Examples, GoldAnswer

__all__ = ["Examples", "GoldAnswer", "read_examples"]
