"""TLS of the clients. JOEY_CA names a file of certificates to trust besides the machine's (a self-signed server's)."""

from __future__ import annotations

import functools
import os
import ssl


class _Quiet(ssl.SSLSocket):
    """As joey.client._sync.net.Quiet."""

    def __del__(self) -> None:
        self.close()


@functools.cache
def context() -> ssl.SSLContext:
    """Verifies the server's name and certificate."""
    made = ssl.create_default_context()
    made.sslsocket_class = _Quiet
    if extra := os.environ.get("JOEY_CA"):
        made.load_verify_locations(extra)
    return made
