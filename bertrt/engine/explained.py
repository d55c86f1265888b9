"""What `Engine.explain` says."""

from __future__ import annotations

import json

from bertrt.backends.base import Backend
from bertrt.models.model import Model

__all__ = ["explained"]


def explained(model: Model, backend: Backend) -> str:
    """How a model runs on a backend, as text: what is set, where it runs, and the steps."""
    settings = " ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in model.shown_settings().items()
    )
    facts = {
        "model": model.path,
        "task": model.task or "none (a bare graph)",
        "settings": settings,
        "backend": f"{backend.name} ({backend.provider})",
        "device": backend.device,
        "precision": backend.precision,
        "threads": backend.threads,
    }
    lines = (f"{name:<11}{fact}\n" for name, fact in facts.items() if fact != "")
    return f"{''.join(lines)}\n{backend.explain()}"
