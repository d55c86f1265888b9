"""The model compiler: readers, one small IR, fusion passes, and the plan they end in.

Importing this package needs numpy only.
"""
