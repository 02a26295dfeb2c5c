"""A connection to the engine: JOEY_URL's, else this machine's, which is started if none answers."""

import os

from joey.client.transport import Connection, Unreachable, socket_path


def engine(start=True):
    """A Connection. Raises Unreachable if there is no engine and none can be started."""
    if elsewhere():
        from joey.cli import remote

        return remote.connect()
    path = socket_path()
    try:
        return Connection.open(path)
    except Unreachable as error:
        if not start or not absent(error):
            raise
    from joey.cli.spawn import spawn

    spawn()
    return Connection.open(path)


def elsewhere():
    """Whether the engine meant is not the one of JOEY_HOME."""
    return bool(os.environ.get("JOEY_URL"))


def absent(error):
    """Whether nobody listens, as opposed to: we may not ask."""
    import errno

    return error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR) and not os.path.isdir(socket_path())
