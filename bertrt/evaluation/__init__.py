"""What a model is worth: labelled data, metrics, parity with Gluon, and what precision costs."""

from bertrt.evaluation.run import Report, Row, evaluate

__all__ = ["Report", "Row", "evaluate"]
