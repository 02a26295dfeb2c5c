"""A connection to the engine of JOEY_URL, with the key of JOEY_API_KEY, instead of this machine's."""

from joey.client import errors, transport
from joey.client._sync import net
from joey.client.endpoint import find


def connect():
    """A transport.Connection. Raises transport.Unreachable."""
    try:
        endpoint = find()
        sock = net.open_socket(endpoint)
    except errors.Invalid as error:
        variable = "JOEY_API_KEY" if error.where == "api_key" else "JOEY_URL"
        raise _failed(f"{variable}: {error.message}", error) from None
    except errors.Unreachable as error:
        raise _failed(str(error), error) from None
    return transport.Connection(_plain(sock) if endpoint.tls else sock, endpoint.headers)


def _failed(text, error):
    failure = transport.Unreachable(text)
    failure.remedy = error.remedy
    return failure


def _plain(tls):
    """A socket whose bytes travel by `tls`, of which poll(2) does not know what it has read ahead."""
    import socket
    import threading

    ours, theirs = socket.socketpair()
    tls.setblocking(False)
    theirs.setblocking(False)
    threading.Thread(target=_carry, args=(tls, theirs), daemon=True).start()
    return ours


def _carry(tls, plain):
    """Both ways until either ends: what waits to be sent to one side is at most a piece, then the other is not read."""
    import contextlib
    import select

    waiting = {tls: b"", plain: b""}
    with tls, plain, contextlib.suppress(OSError):  # both ends learn of it by the end of their stream
        while True:
            for source, target in ((tls, plain), (plain, tls)):
                if not waiting[target]:
                    data = _try(source.recv, 1 << 16)
                    if data == b"":
                        return
                    waiting[target] = data or b""
                if waiting[target]:
                    waiting[target] = waiting[target][_try(target.send, waiting[target]) or 0 :]
            if not tls.pending() or waiting[plain]:
                reading = [one for one, other in ((tls, plain), (plain, tls)) if not waiting[other]]
                select.select(reading, [one for one in waiting if waiting[one]], [])


def _try(call, argument):
    """None when it would have to wait."""
    import ssl

    try:
        return call(argument)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None
