"""What the daemon and a runtime say to each other, on one stream socket. Both sides import this file.

    u32 length of the payload | u8 kind | u32 invocation | payload           little-endian

    daemon                                runtime
      CONFIG {…}                            loads the handler, runs the initializer
                                            READY {…}  or  INIT_ERROR {…} and its end
      INVOKE head \n body                   one of
                                              RESULT body                   the whole answer
                                              HEAD {…} DATA … DATA … DONE   one that streams, or speaks HTTP
                                              HEAD {…} DATA … ERROR {…}     one that failed on the way
                                              ERROR {…}
      CREDIT u32                            so many bytes of DATA have been taken
      CANCEL                                nobody wants the answer any more
                                            LOG u8 stream | bytes           printed by this invocation; 0: by none
      STOP                                  no more invocations: pre-stop, then the end

A head is JSON without line breaks. Ids of invocations are the daemon's, each used once on a connection. An answer
streams at most WINDOW bytes ahead of what CREDIT has given back. Who breaks these rules is cut off.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<IBI")
CREDITS = struct.Struct("<I")

CONFIG, INVOKE, CANCEL, STOP, CREDIT = 1, 2, 3, 4, 5
READY, INIT_ERROR, RESULT, HEAD, DATA, DONE, ERROR, LOG = 16, 17, 18, 19, 20, 21, 22, 23

MAX_FRAME = (6 << 20) + (1 << 16)
"""Of a payload: a whole request or answer, and its head."""
MAX_BODY = 6 << 20
"""Of a request or answer that is no stream (as in AWS Lambda)."""
MAX_DATA = 256 << 10
"""Of one piece of a stream."""
WINDOW = 1 << 20
STDOUT, STDERR = 1, 2


def frame(kind: int, invocation: int = 0, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEADER.pack(len(payload), kind, invocation) + payload


class Frames:
    """Bytes in, frames out."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes | bytearray | memoryview) -> list[tuple[int, int, bytes]]:
        """The frames that are whole now: (kind, invocation, payload). Raises ValueError for one that is too long."""
        buffer = self._buffer
        if buffer:
            buffer += data
            data = buffer
        found: list[tuple[int, int, bytes]] = []
        at, end = 0, len(data)
        while end - at >= 9:
            length, kind, invocation = HEADER.unpack_from(data, at)
            if length > self._limit:
                raise ValueError(f"a frame of {length} bytes, at most {self._limit}")
            if end - at - 9 < length:
                break
            at += 9
            found.append((kind, invocation, bytes(data[at : at + length])))
            at += length
        if data is buffer:
            del buffer[:at]
        elif at < end:
            buffer += data[at:]
        return found
