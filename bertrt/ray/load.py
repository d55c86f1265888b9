"""An engine in a worker of Ray."""

from __future__ import annotations

import os
import sys
from typing import Any

from bertrt.engine import Engine
from bertrt.host.cores import usable_cores

__all__ = ["load_engine"]


def load_engine(path: str | os.PathLike[str], arguments: dict[str, Any]) -> Engine:
    """Load an engine with as many threads as Ray has given CPUs to this actor.

    Args:
        path, arguments: those of `Engine.load`. Where `threads` is not among them: the actor's
            num_cpus, rounded down, at least 1 and at most the cores that the process may really
            use; outside of a worker what `Engine.load` takes.
    """
    if arguments.get("threads") is None and (cpus := _assigned_cpus()) is not None:
        arguments = {**arguments, "threads": max(1, min(int(cpus), usable_cores()))}
    return Engine.load(path, **arguments)


def _assigned_cpus() -> float | None:
    """The CPUs that Ray counts for this worker; None outside of one."""
    # Ray's workers have imported it.
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return float(context.get_assigned_resources().get("CPU", 0))
