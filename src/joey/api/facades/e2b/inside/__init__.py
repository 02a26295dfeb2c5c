"""The code interpreter: programs that run inside a sandbox, where this directory is mounted. Nothing else of Joey's is
there, only Python (3.9 or later) with ipykernel, so they import neither Joey nor each other by package names.
"""
