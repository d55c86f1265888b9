"""Backends: the ways to run a model. See `bertrt.backends.base`."""
