"""ONNX files, read into the compiler's graph. Needs the package onnx when a file is read."""
