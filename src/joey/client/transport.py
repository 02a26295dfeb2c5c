"""HTTP/1.1 over the engine's unix socket: as little of it as the command line needs, and quick to import.

One `Connection` carries requests one after another (keep-alive); `Connection.upgrade` turns it into a stream of frames
(joey.model.frames). `socket`, `http.client` and `json` are left alone on purpose: see joey.client.jsontext.

The engine's problems (RFC 9457) are raised as `Problem`; a connection that cannot be made or that breaks, as
`Unreachable` or `Lost`.
"""

import os

try:
    import _socket as socket
except ImportError:  # pragma: no cover
    import socket  # type: ignore[no-redef]

from joey.client import jsontext
from joey.model import frames

DEFAULT_HOME = "/var/lib/joey"
_MAX_HEAD = 1 << 16
_SUN_PATH = 107  # unix(7): sun_path has 108 bytes, one of them for the final NUL
_HEX = frozenset(b"0123456789abcdefABCDEF")


class Unreachable(ConnectionError):
    """Nobody answers on the socket: no engine runs, or we may not talk to it. `errno` as of connect(2)."""


class Lost(ConnectionError):
    """The engine closed the connection in the middle of an answer, or what it said is not HTTP."""


class Problem(Exception):
    """An error the engine reports. Attributes are the members of its problem document."""

    def __init__(self, status, document):
        self.status = status
        self.document = document
        self.title = document.get("title", "")
        self.detail = document.get("detail") or self.title or f"HTTP {status}"
        self.field = document.get("field", "")
        self.remedy = document.get("remedy", "")
        self.exit_code = document.get("exit_code", 125)
        super().__init__(f"{self.field}: {self.detail}" if self.field else self.detail)


def home():
    """The folder of this instance, absolute: JOEY_HOME or the default."""
    return os.path.abspath(os.environ.get("JOEY_HOME") or DEFAULT_HOME)


def socket_path(folder=None):
    """The engine's socket of an instance."""
    return (folder or home()) + "/run/api.sock"


def connect(path=None):
    """A connected SOCK_STREAM socket. Raises Unreachable."""
    path = path or socket_path()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    folder = -1
    try:
        address = path
        if len(os.fsencode(path)) > _SUN_PATH:
            # A path too long for the address goes by way of its folder's descriptor.
            folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder}/{os.path.basename(path)}"
        sock.connect(address)
    except OSError as error:
        sock.close()
        raise Unreachable(error.errno, error.strerror, path) from None
    except BaseException:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


def quote(text):
    """Percent-encoding of everything but RFC 3986's unreserved characters."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char in "-._~") else "".join(f"%{b:02X}" for b in char.encode())
        for char in text
    )


def query(values):
    """`?a=1&b=2` of a dict; None is left out, True is `true`, a list repeats its name. Empty if nothing is left."""
    parts = []
    for name, value in values.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if item is not None and item is not False:
                parts.append(f"{name}={quote('true' if item is True else str(item))}")
    return "?" + "&".join(parts) if parts else ""


class Response:
    """An answer whose body has not been read yet, or has: `body()` reads it whole, `stream()` in pieces."""

    def __init__(self, connection, status, headers):
        self.status = status
        self.headers = headers
        self._connection = connection

    def stream(self):
        """Pieces of the body as they come. Raises Lost if it is cut off."""
        connection = self._connection
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            return connection._chunks()
        length = "0" if self.status in (204, 304) else self.headers.get("content-length")
        if length is None:
            return connection._until_closed()
        return connection._exactly(int(length))

    def body(self):
        """The whole body as bytes."""
        return b"".join(self.stream())

    def json(self):
        """The body as a value; None if it is empty. Raises Lost if it is no JSON."""
        data = self.body()
        try:
            return jsontext.loads(data) if data else None
        except ValueError as error:
            raise Lost(f"the engine's answer is no JSON: {error}") from None


class Connection:
    """One connection to the engine. A context manager; not for several threads. headers: of every request."""

    def __init__(self, sock, headers="Host: joey\r\n"):
        self._sock = sock
        self._headers = headers
        self._buffer = bytearray()

    @classmethod
    def open(cls, path=None):
        """Connect to the engine's socket. Raises Unreachable."""
        return cls(connect(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """May be called twice."""
        self._sock.close()

    def call(self, method, path, value=None):
        """Send a request and return the decoded JSON answer. Raises Problem, Lost."""
        return self.request(method, path, value).json()

    def request(self, method, path, value=None, headers=""):
        """Send a request; the Response of a success (2xx, 101). Raises Problem, Lost."""
        body = b"" if value is None else jsontext.dumps(value).encode()
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}{kind}{headers}Content-Length: {len(body)}\r\n\r\n"
        self._send(head.encode() + body)
        response = self._response()
        if response.status >= 300:
            raise _problem(response)
        return response

    def upload(self, method, path, pieces, kind):
        """Send a body of unknown length, `pieces` of bytes of media type `kind`; → Response. Raises as request."""
        kind = f"Content-Type: {kind}\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}{kind}Transfer-Encoding: chunked\r\n\r\n"
        try:
            self._send(head.encode())
            for piece in pieces:
                if piece:
                    self._send(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._send(b"0\r\n\r\n")
        except Lost:
            pass  # it may have refused before it read everything: its answer says why
        response = self._response()
        if response.status >= 300:
            raise _problem(response)
        return response

    def upgrade(self, method, path, value=None):
        """Ask for a stream of frames. Returns (socket, headers, bytes already read): the connection is given away."""
        headers = f"Connection: Upgrade\r\nUpgrade: {frames.NAME}\r\n"
        response = self.request(method, path, value, headers)
        if response.status != 101:
            raise Lost(f"the engine answered {response.status} instead of opening a stream")
        return self._sock, response.headers, bytes(self._buffer)

    # ---- bytes

    def _send(self, data):
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            # It may have answered before it read everything (body too large): let the reader find that.
            if not self._buffer and not self._fill(soft=True):
                raise Lost(f"the engine closed the connection: {error.strerror}") from None

    def _fill(self, soft=False):
        try:
            data = self._sock.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self._buffer += data
        if not data and not soft:
            raise Lost("the engine closed the connection in the middle of its answer")
        return bool(data)

    def _line(self):
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise Lost("the engine's answer is not HTTP")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _response(self):
        words = self._line().split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise Lost("the engine's answer is not HTTP")
        headers = {}
        while line := self._line():
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        return Response(self, int(words[1]), headers)

    def _exactly(self, count):
        while count:
            if not self._buffer:
                self._fill()
            piece = bytes(self._buffer[:count])
            del self._buffer[: len(piece)]
            count -= len(piece)
            yield piece

    def _until_closed(self):
        while self._buffer or self._fill(soft=True):
            piece = bytes(self._buffer)
            self._buffer.clear()
            yield piece

    def _chunks(self):
        while True:
            size = self._line().partition(b";")[0].strip()
            if not size or not _HEX.issuperset(size):
                raise Lost("the engine's answer is cut off")
            count = int(size, 16)
            yield from self._exactly(count)
            if not count:
                while self._line():
                    pass  # trailers
                return
            self._line()


def _problem(response):
    try:
        document = response.json()
    except Lost:
        document = None
    return Problem(response.status, document if isinstance(document, dict) else {})
