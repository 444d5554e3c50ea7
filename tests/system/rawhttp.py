# SPDX-License-Identifier: Apache-2.0
"""HTTP as it should not be spoken: connections on which anything can be sent, at any pace, and which
can end anywhere."""

import socket
import struct

from cairntest import SLOWER, Answer

GONE = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)


def head(method, path, *headers, version="HTTP/1.1"):
    """A request's head; Host is added."""
    lines = [f"{method} {path} {version}", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def chunked(*chunks):
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


class Raw:
    """One connection.  Every wait has an end, which is a failure: TimeoutError."""

    def __init__(self, port, receive_buffer=None, timeout=60):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout * SLOWER)
        self.socket.connect(("127.0.0.1", port))
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """End with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data):
        """False if the server has closed, which it may do while we send."""
        try:
            self.socket.sendall(data)
        except GONE:
            return False
        return True

    def _more(self):
        """False at the end, whichever way it came."""
        try:
            data = self.socket.recv(1 << 16)
        except GONE:
            return False
        self.received += data
        return bool(data)

    def to_end(self):
        """All that comes until the server closes."""
        while self._more():
            pass
        return self.received

    def reply(self, bodyless=False):
        """The next reply; None if the connection ends before it is there."""
        while b"\r\n\r\n" not in self.received:
            if not self._more():
                return None
        top, _, self.received = self.received.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        status = int(lines[0].split()[1])
        length = 0 if bodyless or status < 200 else int(headers.get("Content-Length", 0))
        while len(self.received) < length:
            if not self._more():
                return None
        body, self.received = self.received[:length], self.received[length:]
        return Answer(status, headers, body)

    def ask(self, data):
        """Send and get the reply."""
        self.send(data)
        return self.reply()

    def is_closed(self):
        """Has the server closed, and is nothing left to be read?  Does not wait, and takes nothing."""
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


def ask(port, data):
    """The reply to data on a connection of its own; None: it was closed without."""
    with Raw(port) as raw:
        return raw.ask(data)
