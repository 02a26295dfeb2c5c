"""Functions: code that runs when it is called, in instances that come and go (docs/functions.md).

An instance is a sandbox of the engine with one runtime in it (`instance.py`); `runtime/` is what runs inside, `wire.py`
what both say to each other, `code.py` where code lies.
"""
