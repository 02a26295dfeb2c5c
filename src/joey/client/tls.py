"""TLS of the clients. JOEY_CA names a file of certificates to trust besides the machine's (a self-signed server's)."""

from __future__ import annotations

import functools
import os
import ssl


@functools.cache
def context() -> ssl.SSLContext:
    """Verifies the server's name and certificate."""
    made = ssl.create_default_context()
    if extra := os.environ.get("JOEY_CA"):
        made.load_verify_locations(extra)
    return made
