# SPDX-License-Identifier: Apache-2.0
"""Redis for tests: real servers and sentinels on free ports, and just enough of the protocol to look
into them."""

import contextlib
import pathlib
import random
import socket
import threading

from cairntest import Process, wait_for


GIVEN = set()


def free_port():
    """One that nobody has been given yet, and that the system gives nobody of itself: else a client that
    asks again and again, while its server is being started anew, may be given the server's own port, and
    be connected with itself."""
    first_ephemeral = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10000, max(first_ephemeral, 20000))
        if port in GIVEN:
            continue
        try:
            with socket.create_server(("127.0.0.1", port)):
                GIVEN.add(port)
                return port
        except OSError:
            pass


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.file = self.socket.makefile("rb")

    def __call__(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.socket.sendall(b"*%d\r\n" % len(words)
                            + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        return self._answer()

    def _answer(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest


class Redis(Process):
    """A redis-server (or, with a configuration that says so, a sentinel) of its own."""

    def __init__(self, folder, port=None, arguments=(), sentinel=None):
        self.port = port or free_port()
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.address = f"127.0.0.1:{self.port}"
        options = ["--port", self.port, "--bind", "127.0.0.1", "--dir", folder, "--save", "",
                   "--appendonly", "no", *arguments]
        argv = ["redis-server", *options]
        if sentinel:
            config = folder / "sentinel.conf"
            config.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {folder}\n{sentinel}")
            argv = ["redis-server", config, "--sentinel"]
        super().__init__([str(word) for word in argv], folder / "redis.log")
        wait_for(lambda: self.check_running() and self.answers(), "redis-server to answer")

    def answers(self):
        with contextlib.suppress(OSError):
            return self.ask("PING") == b"PONG"
        return False

    def ask(self, *words):
        with contextlib.suppress(ConnectionError):
            return self._ask(*words)
        return self._ask(*words)  # a server that becomes master closes its connections

    def _ask(self, *words):
        connection = Connection(self.port)
        try:
            return connection(*words)
        finally:
            connection.file.close()
            connection.socket.close()

    def keys(self, pattern="*"):
        return sorted(self.ask("KEYS", pattern))

    def stop(self, code=0, timeout=60):
        """SIGTERM ends it at once: it has nothing to save."""
        with contextlib.suppress(ProcessLookupError):
            self.go_on()
        super().stop(code=code, timeout=timeout)


class Impostor:
    """Listens where a Redis should, and answers whatever it was told to: bytes for each read, or None
    for silence."""

    def __init__(self, answer, port=0):
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", port))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.nr_connections = 0
        self.open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.nr_connections += 1
                self.open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                if self.answer is not None:
                    connection.sendall(self.answer)

    def close(self):
        self.listener.close()
        for connection in self.open:
            connection.close()
