"""The program of an instance that is not forked from a template: `python3 /opt/joey-runtime/bootstrap.py`."""

import os
import sys


def package():
    """Make this folder the package `joey_runtime`, and its modules no modules of their own."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    if "joey_runtime" not in sys.modules:
        made = type(sys)("joey_runtime")
        made.__path__ = [here]
        sys.modules["joey_runtime"] = made


def main():
    """Serve on the channel until it ends."""
    import _socket  # of `socket` nothing is needed, and it takes milliseconds

    package()
    from joey_runtime import serve

    os._exit(serve.serve(_socket.socket(fileno=int(os.environ.pop("JOEY_CHANNEL_FD")))))


if __name__ == "__main__":
    main()
