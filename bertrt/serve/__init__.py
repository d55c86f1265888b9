"""The server: models behind HTTP and gRPC. `bertrt serve` runs it; docs/serving.md says what it
answers."""
