"""The engine: a loaded model that answers."""

from bertrt.engine.engine import Engine

__all__ = ["Engine"]
from bertrt.engine.stub import Batching
