"""The framing of streams (attach, exec, run, logs), in pure Python: used by the server and by clients.

    u8 type | u8[3] zero | u32 length, big-endian | payload

Types 0, 1, 2 are Docker's stream numbers. The window keeps signals and resizes quick: a client has at most WINDOW bytes
of standard input under way that the server has not yet handed to the program, so a program that does not read its input
never blocks the control frames behind it.

Nothing is imported here but on behalf of the type checker: the command line pays for every import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN, STDOUT, STDERR = 0, 1, 2
STDIN_EOF = 3  # client: no more input
RESIZE = 4  # client: u16 rows, u16 columns
SIGNAL = 5  # client: u32 number
EXIT = 6  # server: JSON of joey.model.views.Exit; the last frame
ERROR = 7  # server: JSON problem (RFC 9457); the last frame
CREDIT = 8  # server: u32, so many more bytes of input were taken

HEADER = 8
WINDOW = 1 << 18
MAX_PAYLOAD = 1 << 20
NAME = "joey-stream"
"""The protocol of `Upgrade:`."""
MEDIA_TYPE = "application/vnd.joey.stream"


def frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return bytes((kind, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def resize(rows: int, cols: int) -> bytes:
    """A RESIZE frame; sizes beyond 16 bits are cut to them."""
    return frame(RESIZE, min(rows, 0xFFFF).to_bytes(2, "big") + min(cols, 0xFFFF).to_bytes(2, "big"))


def signal(number: int) -> bytes:
    """A SIGNAL frame."""
    return frame(SIGNAL, number.to_bytes(4, "big"))


class Damaged(ValueError):
    """The bytes are not frames."""


class Decoder:
    """Bytes in, frames out. Payloads may come in pieces: what matters is never held back until a frame is whole.

    `pieces(data)` yields (kind, piece, last): pieces of STDIN, STDOUT and STDERR as they arrive, other frames whole.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._kind = -1
        self._left = 0
        self._body: bytearray | None = None

    @property
    def idle(self) -> bool:
        """Whether the bytes so far end with a whole frame."""
        return not self._head and self._kind < 0

    def pieces(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[int, bytes, bool]]:
        """Raises Damaged for a length beyond MAX_PAYLOAD or nonzero padding."""
        view, at, end = memoryview(data), 0, len(data)
        while True:
            if self._kind < 0:
                take = min(HEADER - len(self._head), end - at)
                self._head += view[at : at + take]
                at += take
                if len(self._head) < HEADER:
                    return
                self._kind, self._left = self._head[0], int.from_bytes(self._head[4:8], "big")
                if self._left > MAX_PAYLOAD or any(self._head[1:4]):
                    raise Damaged(f"no frame begins with {bytes(self._head).hex()}")
                self._head.clear()
                self._body = None if self._kind <= STDERR else bytearray()
            take = min(self._left, end - at)
            piece = view[at : at + take]
            at += take
            self._left -= take
            last = self._left == 0
            kind = self._kind
            if last:
                self._kind = -1
            if self._body is not None:
                self._body += piece
                if last:
                    yield kind, bytes(self._body), True
            elif take or last:
                yield kind, bytes(piece), last
            if at == end and self._kind >= 0:
                return
