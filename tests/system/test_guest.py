#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real guest on a disk of Cairn's: Linux boots from a chain, writes, its snapshot is published,
and another guest boots from that on another disk folder."""

import unittest

import guest
from cairntest import Case, main, wait_for


@unittest.skipUnless(guest.KERNEL.exists(), f"no kernel at {guest.KERNEL}; tests/run fetches it")
class RealGuest(Case):
    def setUp(self):
        super().setUp()
        self.server = self.cairnd()
        self.server.push(guest.make_chain(self.folder("image")), "os/guest:v1")
        self.assertGreaterEqual(self.server.http.get("/v1/disks/os/guest:v1").json()["depth"], 3)

    def attach_disk(self, ref, name):
        return self.attach(self.server, ref, "--disk", self.tmp / name, name=name)

    def boot(self, disk, name, job, **words):
        return self.own(guest.Guest(self.tmp, name, disk.socket, job, **words))

    def run_guest(self, disk, name, job, **words):
        """Boot, let it do its job and power off; what it said."""
        machine = self.boot(disk, name, job, **words)
        machine.wait(timeout=600)
        self.assertIn("booted, layers: base customised nightly ", machine.said(),
                      machine.describe())
        self.assertEqual(machine.said()[-1], "done", machine.describe())
        return machine.said()

    def test_boot_write_snapshot_boot(self):
        first = self.attach_disk("os/guest:v1", "disk1")
        said = self.run_guest(first, "first", "write")
        self.assertTrue(any(line.startswith("wrote ") for line in said), said)
        self.server.cairn("snapshot", self.tmp / "disk1", "os/guest:v2")
        second = self.attach_disk("os/guest:v2", "disk2")
        said = self.run_guest(second, "second", "find")
        self.assertIn("note: written by the first guest", said)
        self.assertIn("sum is right", said)
        third = self.attach_disk("os/guest:v1", "disk3")
        said = self.run_guest(third, "third", "find")
        self.assertIn("note: ", said, "the old tag shows the old disk")

    def test_snapshot_under_a_running_guest(self):
        """The guest goes on writing; what it had synced before the snapshot is in the snapshot."""
        disk = self.attach_disk("os/guest:v1", "disk1")
        machine = self.boot(disk, "writer", "stream")
        machine.wait_said("synced 5")
        last = int(machine.said()[-1].split()[1])
        self.server.cairn("snapshot", self.tmp / "disk1", "os/guest:v2")
        after = int(machine.said()[-1].split()[1])
        wait_for(lambda: machine.check_running()
                 and int(machine.said()[-1].split()[1]) > after + 3, "the guest to write on")
        machine.kill()
        second = self.attach_disk("os/guest:v2", "disk2")
        said = self.run_guest(second, "reader", "count", last=last)
        self.assertIn(f"counted back from {last} to {max(last - 20, 0)}", said)
        self.assertFalse([line for line in said if "wrong" in line], said)


if __name__ == "__main__":
    main()
