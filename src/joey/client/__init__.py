"""The client side: the light transport of the command line (transport.py), and the SDK.

`_async` is the SDK's implementation; `_sync` is generated from it (generate.py). What is public stands in `joey`.
"""
