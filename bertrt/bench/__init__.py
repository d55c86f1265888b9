"""`bertrt bench`: this runtime beside its peers, on this machine."""

from bertrt.bench.run import bench

__all__ = ["bench"]
