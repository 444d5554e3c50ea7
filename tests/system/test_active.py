#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The active layer under random work, over the NBD socket and by itself, with and without being
killed in the middle: content against a mirror, the image against qemu-img check."""

import contextlib
import json
import os
import signal
import subprocess
import threading

import qemu
from cairntest import (BUILD, CAIRN, Case, KIB, MIB, SEED, first_difference, main, preload,
                       run, scaled, seeded, wait_for)
from mirror import Mirror, SECTOR
from nbdclient import NbdClient


class Workload:
    """Random operations of one client on one disk."""

    def __init__(self, rng, client, mirror):
        self.rng, self.client, self.mirror = rng, client, mirror

    def random_range(self):
        size = len(self.mirror.now)
        unit = self.rng.choice((1, SECTOR, SECTOR, 4 * KIB, 4 * KIB, 4 * KIB, 128 * KIB))
        length = min(self.rng.randint(1, 64) * unit, 256 * KIB)
        # Half of it in a small area, so that things are written again and again.
        limit = size if self.rng.random() < 0.5 else size // 16
        start = self.rng.randrange(0, limit - length + 1) // unit * unit
        return start, length

    def step(self):
        kind = self.rng.choices(("write", "read", "zero", "trim", "flush"), (10, 5, 2, 2, 1))[0]
        start, length = self.random_range()
        if kind == "write":
            data = self.rng.randbytes(length)
            self.mirror.will_change(start, data)
            self.client.write(start, data, fua=self.rng.random() < 0.05)
        elif kind == "read":
            difference = first_difference(self.client.read(start, length),
                                          bytes(self.mirror.now[start:start + length]))
            assert difference is None, f"read of {start:#x}+{length:#x}: {difference}"
        elif kind == "zero":
            self.mirror.will_change(start, bytes(length))
            self.client.zero(start, length, may_unmap=self.rng.random() < 0.5)
        elif kind == "trim":
            start, length = start & -SECTOR, (length + SECTOR - 1) & -SECTOR
            self.mirror.will_change(start, self.mirror.now[start:start + length])
            for sector in range(start // SECTOR, (start + length) // SECTOR):
                self.mirror.pending[sector].add(bytes(SECTOR))
            self.client.trim(start, length)
            self.mirror.learn(start, self.client.read(start, length))
        else:
            self.client.flush()
            self.mirror.flushed()


def with_backing(active, chain):
    """An active layer on the local files of its chain, for qemu-img."""
    def node(path):
        return {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}}
    return "json:" + json.dumps(dict(node(active), backing=node(chain)))


def refcount_offset(image, cluster):
    """Where a host cluster's refcount is, in an image with one refcount block."""
    image.seek(48)
    image.seek(int.from_bytes(image.read(8), "big"))
    return int.from_bytes(image.read(8), "big") + 2 * cluster


def leak(path, number):
    """Make clusters at the end of an active layer look used."""
    cluster = 128 * KIB
    with open(path, "r+b") as image:
        end = -(-image.seek(0, 2) // cluster)
        image.truncate((end + number) * cluster)
        image.seek(refcount_offset(image, end))
        image.write(b"\0\1" * number)


class ActiveLayer(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())

    def make_disk(self, size):
        """A server with a chain of two layers; the chain's top and the guest's bytes."""
        source = self.tmp / "source"
        source.write_bytes(self.rng.randbytes(3 * MIB))
        base, top = self.tmp / "base.qcow2", self.tmp / "top.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", base, size)
        qemu.io(base, f"write -q -s {source} 0 {size // 2}")
        qemu.img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", top)
        qemu.io(top, f"write -q -s {source} {size // 4 + 512} {size // 4}")
        self.server = self.cairnd()
        self.server.push(top, "vm:v1")
        return top, qemu.convert(top, self.tmp / "oracle.raw")

    def attach_disk(self):
        return self.attach(self.server, "vm:v1", "--disk", self.tmp / "disk")

    def assert_same_as_qemu_reads(self, top, mirror):
        active, expected = self.tmp / "disk" / "active.qcow2", self.tmp / "mirror.raw"
        expected.write_bytes(mirror.now)
        qemu.compare(with_backing(active, top), expected, "-F", "raw")

    def test_random_operations_over_nbd(self):
        top, content = self.make_disk(24 * MIB)
        disk, mirror = self.attach_disk(), Mirror(content)
        client = NbdClient(disk.socket)
        work = Workload(self.rng, client, mirror)
        for _ in range(scaled(500, 4000, 100000)):
            work.step()
        client.close()
        disk.stop()
        qemu.check_active(self.tmp / "disk" / "active.qcow2")
        self.assert_same_as_qemu_reads(top, mirror)

    def test_killed_at_random_points(self):
        """SIGKILL to the process that holds the disk; then the same folder is attached again."""
        top, content = self.make_disk(24 * MIB)
        mirror = Mirror(content)
        for number in range(scaled(3, 15, 300)):
            disk = self.attach_disk()
            self.work_until_killed(disk, mirror)
            qemu.check_active(self.tmp / "disk" / "active.qcow2", leaks_allowed=True)
            with self.subTest(kill=number):
                disk = self.attach_disk()
                client = NbdClient(disk.socket)
                mirror.after_crash(client.read(0, len(mirror.now)))
                client.close()
                disk.stop()
                self.assertIn("active.qcow2: was not closed cleanly; ", disk.text())
                qemu.check_active(self.tmp / "disk" / "active.qcow2")
        self.assert_same_as_qemu_reads(top, mirror)
        self.server.cairn("snapshot", self.tmp / "disk", "vm:v2")
        self.assertIsNone(first_difference(self.server.http.data("vm:v2"), bytes(mirror.now)))

    def work_until_killed(self, disk, mirror):
        client = NbdClient(disk.socket)
        work = Workload(self.rng, client, mirror)
        killer = threading.Timer(self.rng.uniform(0.02, 0.8), disk.crash)
        killer.start()
        try:
            while True:
                work.step()
        except ConnectionError:
            pass
        finally:
            killer.join()
            client.close()

    def test_leaks_of_a_crash_are_freed_and_told(self):
        self.make_disk(4 * MIB)
        self.leave_by_crash()
        leak(self.tmp / "disk" / "active.qcow2", 12)
        self.assertFalse(self.info()["closedCleanly"])
        disk = self.attach_disk()
        self.assertIn("active.qcow2: was not closed cleanly; 12 leaked clusters freed\n",
                      disk.text())
        self.assertEqual(self.info()["lastRepair"]["leaksFreed"], 12)
        disk.stop()
        qemu.check_active(self.tmp / "disk" / "active.qcow2")
        self.assertTrue(self.info()["closedCleanly"])
        self.assertEqual(self.info()["lastRepair"]["leaksFreed"], 12)

    def test_leaks_are_told_before_attach_detaches(self):
        self.make_disk(4 * MIB)
        self.leave_by_crash()
        leak(self.tmp / "disk" / "active.qcow2", 1)
        said = self.server.cairn("attach", "--disk", self.tmp / "disk", "--daemon",
                                 env=preload())
        pid = int((self.tmp / "disk" / "attach.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not (self.tmp / "disk" / "attach.pid").exists(), "attach to end")
        self.assertIn(b"was not closed cleanly; 1 leaked cluster freed", said.stderr)

    def test_nothing_is_told_of_a_disk_that_was_closed_cleanly(self):
        self.make_disk(4 * MIB)
        for _ in range(2):
            disk = self.attach_disk()
            client = NbdClient(disk.socket)
            client.write(0, b"x" * 4096)
            client.close()
            disk.stop()
        self.assertNotIn("closed cleanly", disk.text())
        self.assertNotIn("lastRepair", self.info())

    def test_damage_that_no_crash_leaves_is_refused(self):
        self.make_disk(4 * MIB)
        self.leave_by_crash()
        active = self.tmp / "disk" / "active.qcow2"
        with open(active, "r+b") as image:
            image.seek(refcount_offset(image, 0))  # the header's
            image.write(b"\0\0")
        before = active.read_bytes()
        said = self.server.cairn("attach", "--disk", self.tmp / "disk", code=1,
                                 env=preload()).stderr.decode()
        self.assertIn("was not closed cleanly", said)
        self.assertIn(f"cairn image check --repair all {active}", said)
        self.assertEqual(before, active.read_bytes())
        run(CAIRN, "image", "check", "--repair", "all", active)
        disk = self.attach_disk()
        self.assertIn("checked, nothing to repair", disk.text())

    def test_a_read_only_attach_repairs_nothing(self):
        _, content = self.make_disk(4 * MIB)
        self.leave_by_crash()
        active = self.tmp / "disk" / "active.qcow2"
        leak(active, 3)
        before = active.read_bytes()
        disk = self.attach(self.server, "--disk", self.tmp / "disk", "--read-only")
        client = NbdClient(disk.socket)
        self.assertIsNone(first_difference(client.read(0, 4 * MIB),
                                           b"x" * 4096 + content[4096:]))
        with self.assertRaises(OSError):
            client.write(0, b"y" * 4096)
        client.close()
        disk.stop()
        self.assertEqual(before, active.read_bytes())
        self.assertFalse(self.info()["closedCleanly"])

    def test_killed_while_it_is_repaired(self):
        """At random points of the start; whenever it was, the next attach completes it."""
        _, content = self.make_disk(4 * MIB)
        active = self.tmp / "disk" / "active.qcow2"
        for _ in range(scaled(5, 15, 200)):
            self.leave_by_crash()
            leak(active, 40000)
            process = self.start([CAIRN, "attach", "--disk", self.tmp / "disk"], "killed",
                                 env=dict(preload(), CAIRN_SERVER=self.server.url))
            delay = self.rng.uniform(0, 0.15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(delay)
            process.kill_with_children()
            qemu.check_active(active, leaks_allowed=True)
            disk = self.attach_disk()
            client = NbdClient(disk.socket)
            self.assertIsNone(first_difference(client.read(0, 4 * MIB),
                                               b"x" * 4096 + content[4096:]))
            client.close()
            disk.stop()
            qemu.check_active(active)

    def leave_by_crash(self):
        """A disk with one block written and flushed, whose process was killed."""
        disk = self.attach_disk()
        client = NbdClient(disk.socket)
        client.write(0, b"x" * 4096)
        client.flush()
        disk.crash()
        client.close()

    def info(self):
        return json.loads(self.server.cairn("info", "--json", self.tmp / "disk").stdout)

    def test_stress(self):
        """The engine's active layer by itself, from many threads at once; and the same killed."""
        for mode in ("run", "kill"):
            with self.subTest(mode=mode):
                result = run(BUILD / "bin" / "active_stress", mode, "--seed", SEED & 0xFFFFFFFF,
                             "--seconds", scaled(5, 60, 1800), "--dir", self.folder(mode),
                             timeout=scaled(60, 300, 3600))
                print(f"      {result.last_line}", flush=True)

    def test_second_attach_of_a_folder_is_refused(self):
        self.make_disk(4 * MIB)
        self.attach_disk()
        said = self.server.cairn("attach", "vm:v1", "--disk", self.tmp / "disk", code=1).stderr
        self.assertIn(str(self.tmp / "disk"), said.decode())

    def test_active_layer_does_not_open_without_its_chain(self):
        """A tool that does not know better fails instead of reading zeros."""
        self.make_disk(4 * MIB)
        disk = self.attach_disk()
        client = NbdClient(disk.socket)
        client.write(0, b"x" * 4096)
        client.close()
        disk.stop()
        result = qemu.img("compare", self.tmp / "disk" / "active.qcow2",
                          self.tmp / "oracle.raw", code=None)
        self.assertEqual(result.code, 2, result.describe())
        self.assertIn(b"cairn", result.stderr)


if __name__ == "__main__":
    main()
