# SPDX-License-Identifier: Apache-2.0
"""A TCP forwarder between client and server that counts what travels each way, and can be told to
stop forwarding after so many bytes: a network that fails in the middle of something."""

import contextlib
import socket
import threading


class Proxy:
    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.sent = self.received = 0  # by clients
        self.limit = None
        self.reached = threading.Event()
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self):
        """Bytes sent and received by clients since the last call."""
        with self.lock:
            counts = self.sent, self.received
            self.sent = self.received = 0
            return counts

    def stall_after(self, length):
        """Forward this many more bytes of what clients send, then hold still; None: go on."""
        with self.lock:
            self.limit = None if length is None else self.sent + length
            self.reached.clear()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target)
            except OSError:
                return
            with self.lock:
                self.sockets += [client, server]
            for source, sink, upwards in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=(source, sink, upwards),
                                 daemon=True).start()

    def _forward(self, source, sink, upwards):
        try:
            while data := source.recv(1 << 16):
                if not self._count(len(data), upwards):
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _count(self, length, upwards):
        """False: this and all that follows is swallowed."""
        with self.lock:
            if not upwards:
                self.received += length
                return True
            self.sent += length
            if self.limit is not None and self.sent > self.limit:
                self.reached.set()
                return False
            return True

    def cut(self):
        """Close every connection; new ones are served."""
        with self.lock:
            for end in self.sockets:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
                end.close()
            self.sockets.clear()

    def close(self):
        """For good; fine to call twice."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()
