"""Several invocations at once, each in a thread; the main thread receives. A thread is made when all others work."""

import select
import threading
from contextvars import ContextVar
from queue import SimpleQueue

from . import link

_current = ContextVar("joey_invocation", default=0)


class Pool:
    """The threads of one server."""

    def __init__(self, server, most):
        self.server, self.most = server, most
        self.threads = []
        self.ended = []
        self.waiting = SimpleQueue()
        self.idle = 0  # those that wait, less what waits for them
        self.lock = threading.Lock()

    def hand_out(self):
        """What is ready."""
        while self.server.ready:
            with self.lock:
                new = self.idle <= 0 and len(self.threads) < self.most
                self.idle -= not new
            self.waiting.put(self.server.ready.popleft())
            if new:
                self.threads.append(threading.Thread(target=self._work, daemon=True, name="invocation"))
                self.threads[-1].start()

    def _work(self):
        signal = threading.Event()
        while True:
            call = self.waiting.get()
            if call is None:
                return
            call.signal = signal
            _current.set(call.id)
            try:
                self.server.application.run(call)
            except BaseException as error:  # exit() in a handler
                self.ended.append(error)
                self.server.link.sock.shutdown(0)  # SHUT_RD: the main thread hears of it
                return
            finally:
                del self.server.calls[call.id]
            with self.lock:
                self.idle += 1

    def finish(self):
        """STOP was said: what still works may need frames."""
        for _ in self.threads:
            self.waiting.put(None)
        while any(thread.is_alive() for thread in self.threads):
            if select.select([self.server.link.fd], [], [], 0.02)[0] and not self.server.pump():
                return


def wait(call):
    """Until something has come for `call`."""
    call.signal.wait()
    call.signal.clear()


def run(server, most):
    """Serve until STOP (what is in flight is finished) or the channel's end."""
    server.current, server.wait = _current.get, wait
    link.capture(server.link, _current.get, threads=True)
    pool = Pool(server, most)
    server.begin("threads")
    pool.hand_out()
    while not server.stopping and server.pump():
        pool.hand_out()
    if server.stopping:
        pool.finish()
    if pool.ended:
        raise pool.ended[0]
