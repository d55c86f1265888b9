"""The graph compiler: one small IR, the fusion passes over it, and the plan they end in.

It knows plans and no files: `bertrt.models` reads graphs. Needs numpy only.
"""
