"""WSGI applications (PEP 3333), which is also Function Compute's HTTP handler."""

import io
import sys
from urllib.parse import unquote_to_bytes


class Application:
    """One application; a request and its answer are an invocation."""

    asynchronous = False

    def __init__(self, application, config):
        self.application = application
        self.static = config["static"]
        self.threads = config["concurrency"] > 1

    def environ(self, call):
        """What an application gets. Values that came as bytes are ISO 8859-1, as the PEP has it."""
        http = call.head.get("http") or {"method": "POST", "path": "/invoke", "query": "", "headers": []}
        environ = {
            "REQUEST_METHOD": http["method"],
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(http["path"]).decode("latin-1"),
            "QUERY_STRING": http.get("query", ""),
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "443" if http.get("scheme") == "https" else "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": http.get("client", ""),
            "REQUEST_URI": http["path"] + ("?" + http["query"] if http.get("query") else ""),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": http.get("scheme", "http"),
            "wsgi.input": io.BytesIO(call.body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": self.threads,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "CONTENT_LENGTH": str(len(call.body)),
            "fc.context": call.context,
            "fc.request_uri": http["path"] + ("?" + http["query"] if http.get("query") else ""),
            "lambda.context": call.context,
        }
        for name, value in http["headers"]:
            key = name.upper().replace("-", "_")
            if key == "CONTENT_LENGTH":
                continue
            if key != "CONTENT_TYPE":
                key = "HTTP_" + key
            environ[key] = environ[key] + "," + value if key in environ else value
            if key == "HTTP_HOST":
                name, _, port = value.rpartition(":")
                environ["SERVER_NAME"] = name or value
                if name and port.isdigit():
                    environ["SERVER_PORT"] = port
        return environ

    def run(self, call):
        """One invocation, to its end."""
        try:
            answer = _Answer(call)
            pieces = self.application(self.environ(call), answer.start)
            try:
                answer.send(pieces)
            finally:
                if hasattr(pieces, "close"):
                    pieces.close()
        except (Exception, KeyboardInterrupt) as error:
            call.failed(error)
        else:
            answer.end()


class _Answer:
    """Pieces go out as they come, the first with the head; an answer of one piece is one message."""

    def __init__(self, call):
        self.call = call
        self.head = None
        self.last = None

    def start(self, status, headers, exc_info=None):
        """PEP 3333's start_response."""
        if exc_info is not None:
            try:
                if self.call.started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.head is not None:
            raise AssertionError("start_response was called before, and there is no exc_info")
        self.head = {"status": int(status.split(None, 1)[0]), "headers": [[name, value] for name, value in headers]}
        return self.write

    def write(self, data):
        """A piece."""
        if not isinstance(data, bytes):
            raise TypeError("a WSGI application gives bytes, not " + type(data).__name__)
        if self.head is None:
            raise AssertionError("the application gave data before it called start_response")
        if self.call.started:
            self.call.write(data)
        elif data:
            self.call.open(self.head, data)

    def send(self, pieces):
        """What the application gave."""
        if isinstance(pieces, (list, tuple)) and not self.call.started:
            whole = b"".join(pieces)
            if self.head is None:
                raise AssertionError("the application did not call start_response")
            if len(whole) <= self.call.credit:
                self.last = whole
                return
            pieces = [whole]
        for piece in pieces:
            self.write(piece)
        if self.head is None:
            raise AssertionError("the application did not call start_response")

    def end(self):
        """All of it."""
        if self.call.started:
            self.call.done()
        else:
            self.call.complete(self.head, self.last or b"")
