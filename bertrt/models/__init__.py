"""What lies at a path: a bundle, a Hugging Face directory, a symbol and its parameters, ONNX."""
