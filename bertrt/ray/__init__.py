"""bertrt on Ray: `bertrt.ray.data` for data sets, `bertrt.ray.serve` for requests."""
