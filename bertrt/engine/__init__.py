"""The engine: a loaded model that answers."""

from bertrt.engine.batching import Batching, Report, Statistics, Submission
from bertrt.engine.engine import Engine
from bertrt.text.encoding import Encoding

__all__ = ["Batching", "Encoding", "Engine", "Report", "Statistics", "Submission"]
