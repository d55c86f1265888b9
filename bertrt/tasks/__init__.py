"""The tasks: from inputs to sequences, and from a model's outputs to results. Knows no model."""
