"""What runs inside an instance: Python's standard library only, Python 3.8 and later, nothing of joey but this folder.

The folder is mounted at /opt/joey-runtime, read-only. There its modules are the package `joey_runtime`, not modules of
their own, so that they cannot be taken for a user's `serve` or `frames` (see bootstrap.py).
"""
