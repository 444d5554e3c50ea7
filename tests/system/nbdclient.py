# SPDX-License-Identifier: Apache-2.0
"""A small NBD client over a Unix socket, after the NBD protocol document: fixed newstyle,
NBD_OPT_GO, simple replies, one request at a time.  For tests that must know exactly what was
acknowledged before something died; everything else uses QEMU and libnbd."""

import errno
import socket
import struct

IHAVEOPT, REPLY_MAGIC = 0x49484156454F5054, 0x0003E889045565A9
OPT_GO = 7
REP_ACK, REP_INFO = 1, 3
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FLAG_FUA, FLAG_NO_HOLE = 1, 2


class NbdClient:
    def __init__(self, path, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.handle = 0
        try:
            self.socket.connect(path)
            self._negotiate()
        except BaseException:
            self.socket.close()
            raise

    def _receive(self, length):
        parts = []
        while length:
            part = self.socket.recv(length)
            if not part:
                raise ConnectionError("the NBD server closed the connection")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _negotiate(self):
        magic, option_magic, flags = struct.unpack(">8sQH", self._receive(18))
        if magic != b"NBDMAGIC" or option_magic != IHAVEOPT or not flags & 1:
            raise ConnectionError("not a fixed newstyle NBD server")
        self.socket.sendall(struct.pack(">I", flags & 3))
        name = b""
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, len(body)) + body)
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            payload = self._receive(length)
            if magic != REPLY_MAGIC or kind & (1 << 31):
                raise ConnectionError(f"NBD_OPT_GO refused: {kind:#x} {payload!r}")
            if kind == REP_INFO and payload[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", payload[2:12])
            if kind == REP_ACK:
                return

    def _call(self, command, offset=0, length=0, payload=b"", flags=0):
        self.handle += 1
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, self.handle,
                                        offset, length) + payload)
        magic, error, handle = struct.unpack(">IIQ", self._receive(16))
        if magic != SIMPLE_REPLY_MAGIC or handle != self.handle:
            raise ConnectionError("an NBD reply that was not asked for")
        if error:
            raise OSError(error, errno.errorcode.get(error, "?"))
        return self._receive(length) if command == READ else b""

    def read(self, offset, length):
        return self._call(READ, offset, length)

    def write(self, offset, data, fua=False):
        self._call(WRITE, offset, len(data), data, FLAG_FUA if fua else 0)

    def zero(self, offset, length, may_unmap=True):
        self._call(WRITE_ZEROES, offset, length, flags=0 if may_unmap else FLAG_NO_HOLE)

    def trim(self, offset, length):
        self._call(TRIM, offset, length)

    def flush(self):
        self._call(FLUSH)

    def close(self):
        """Say goodbye, if there is still somebody to hear it."""
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()
