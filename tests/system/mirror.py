# SPDX-License-Identifier: Apache-2.0
"""What a disk must hold while somebody writes to it, also after its writer was killed."""

from cairntest import first_difference

SECTOR = 512


class Mirror:
    """What a disk must hold.  Since the last flush a sector may hold any of what it was given."""

    def __init__(self, content):
        self.now = bytearray(content)
        self.pending = {}  # sector number: values that it may have besides the present one

    def will_change(self, offset, data):
        first, last = offset // SECTOR, (offset + len(data) - 1) // SECTOR
        for sector in range(first, last + 1):
            start = sector * SECTOR
            self.pending.setdefault(sector, set()).add(bytes(self.now[start:start + SECTOR]))
        self.now[offset:offset + len(data)] = data

    def learn(self, offset, data):
        """What a trim left: for each sector what was there, or zeros."""
        for start in range(0, len(data), SECTOR):
            new, old = data[start:start + SECTOR], self.now[offset + start:offset + start + SECTOR]
            assert new == old or not any(new), f"after a trim, at {offset + start:#x}"
        self.will_change(offset, data)

    def resize(self, size):
        """Durably; what is added is zeros."""
        self.now = self.now[:size] + bytes(max(size - len(self.now), 0))
        for sector in [number for number in self.pending if number * SECTOR >= size]:
            del self.pending[sector]

    def flushed(self):
        self.pending.clear()

    def after_crash(self, found):
        """Check what came back, and take it for what there is."""
        expected = bytearray(self.now)
        for sector, values in self.pending.items():
            start = sector * SECTOR
            value = found[start:start + SECTOR]
            if value in values:
                expected[start:start + SECTOR] = value
        difference = first_difference(found, bytes(expected))
        assert difference is None, f"after a crash: {difference}"
        self.now = bytearray(found)
        self.pending.clear()
