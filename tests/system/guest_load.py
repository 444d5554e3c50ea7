# SPDX-License-Identifier: Apache-2.0
"""Guests that read and write their disks without a break, and notice everything: an I/O error, a wrong
byte, or a read that takes for ever ends their thread and fails the test that looks."""

import random
import threading

from cairntest import KIB, MIB, first_difference, wait_for
from nbdclient import NbdClient


class Load:
    """A thread that works on a disk over NBD until it is stopped."""

    def __init__(self, socket, content, seed, write=False):
        self.disk = NbdClient(str(socket), timeout=120)
        self.now = bytearray(content)
        self.rng = random.Random(seed)
        self.write = write
        self.lock = threading.Lock()  # of what the disk holds: a snapshot's content is known under it
        self.ended = threading.Event()
        self.failure = None
        self.turns = 0
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self):
        try:
            while not self.ended.is_set():
                with self.lock:
                    self._turn()
                self.turns += 1
        except BaseException as error:  # raised by check()
            self.failure = error

    def _turn(self):
        length = self.rng.choice((4, 4, 64, 256)) * KIB
        at = self.rng.randrange((len(self.now) - length) // 4096) * 4096
        if self.write and self.rng.random() < 0.3:
            data = self.rng.randbytes(length)
            self.disk.write(at, data)
            self.now[at:at + length] = data
        else:
            difference = first_difference(self.disk.read(at, length),
                                          bytes(self.now[at:at + length]))
            assert difference is None, f"at {at:#x}: {difference}"

    def check(self):
        if self.failure:
            raise self.failure

    def goes_on(self, turns=20):
        """Wait until it has done so much since now."""
        enough = self.turns + turns
        wait_for(lambda: self.failure or self.turns >= enough, "the guest to go on", 120)
        self.check()

    def content(self):
        """What the disk holds, with everything flushed; holds the guest up while it is looked at."""
        with self.lock:
            self.disk.flush()
            return bytes(self.now)

    def stop(self):
        """The last look: at every byte."""
        self.end()
        self.check()
        for at in range(0, len(self.now), MIB):
            expected = bytes(self.now[at:at + MIB])
            difference = first_difference(self.disk.read(at, len(expected)), expected)
            assert difference is None, f"at {at:#x}: {difference}"
        self.disk.close()

    def end(self):
        self.ended.set()
        self.thread.join()
