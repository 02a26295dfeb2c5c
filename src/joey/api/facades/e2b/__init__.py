"""The API of the E2B SDKs (`e2b` 2.10 and later, Python and JavaScript) over the engine: docs/e2b.md.

One address serves both of its halves: the control plane (joey.api.facades.e2b.control) and what E2B runs inside each
sandbox, envd (joey.api.facades.e2b.envd, process, filesystem), which here runs in none: the engine does its work.
"""
