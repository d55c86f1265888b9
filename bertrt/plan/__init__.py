"""The plan, a fused model as a list of steps: what the compiler makes and the engines run."""
