#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Snapshots of running and stopped disks: what they hold, what goes on meanwhile, and what is left
when something fails or is killed on the way; and `cairn attach` itself."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import threading
import time

import qemu
from cairntest import (BUILD, Case, KIB, MIB, Parallel, first_difference, main,
                       preload, scaled, seeded, wait_for)
from nbdclient import NbdClient
from proxy import Proxy

BLOCK = 4 * KIB


class Writer(threading.Thread):
    """Writes numbered records into blocks at random, one after another, until told to stop."""

    def __init__(self, rng, socket, content):
        super().__init__()
        self.rng, self.client = rng, NbdClient(socket)
        self.content = bytearray(content)
        self.records = []  # (offset, data), in order, each before it is sent
        self.acknowledged = 0
        self.flushed = 0
        self.stopping = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except (ConnectionError, OSError) as error:
            self.failure = error

    def step(self):
        block = self.rng.randrange(len(self.content) // BLOCK)
        start = block * BLOCK + self.rng.choice((0, 0, 512))
        data = self.rng.randbytes(self.rng.choice((512, 1024, 3584)))
        self.records.append((start, data))
        self.client.write(start, data)
        self.acknowledged = len(self.records)
        if self.rng.random() < 0.05:
            before = self.acknowledged
            self.client.flush()
            self.flushed = before

    def stop(self):
        self.stopping.set()
        self.join()
        self.client.close()
        assert self.failure is None, self.failure

    def after(self, content, first, count):
        """The content after records [first, count), applied to what was there before."""
        result = bytearray(content)
        for start, data in self.records[first:count]:
            result[start:start + len(data)] = data
        return result


def find_prefix(content, records, found, low, high):
    """The number of records after which the disk held what was found; they went one by one."""
    state = bytearray(content)
    for number in range(high + 1):
        if number >= low and state == found:
            return number
        if number < len(records):
            start, data = records[number]
            state[start:start + len(data)] = data
    return None


def write_striped_image(path, size):
    """A qcow2 image of two data clusters, shown in turn all over the disk: nothing merges, so that each
    guest cluster of 4 KiB is an extent of its own.  Returns the two clusters' content."""
    cluster, l2_entries = 4 * KIB, 512
    nr_tables = size // cluster // l2_entries
    l1_clusters = -(-nr_tables * 8 // cluster)
    l2_start = (1 + l1_clusters) * cluster
    data_start = l2_start + nr_tables * cluster
    stripes = [bytes([n + 1]) * cluster for n in range(2)]
    table = b"".join(struct.pack(">Q", data_start + n % 2 * 2 * cluster) for n in range(l2_entries))
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 12, size, 0, nr_tables, cluster,
                         data_start + cluster, 1, 0, 0)
    with open(path, "wb") as out:
        out.write(header.ljust(cluster, b"\0"))
        out.write(b"".join(struct.pack(">Q", l2_start + n * cluster)
                           for n in range(nr_tables)).ljust(l1_clusters * cluster, b"\0"))
        for _ in range(nr_tables):
            out.write(table)
        out.write(stripes[0] + bytes(cluster) + stripes[1])  # between them an empty refcount table
    return stripes


class Snapshots(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()

    def push_base(self, size=4 * MIB, ref="vm:v1"):
        base = self.tmp / "base.qcow2"
        source = self.tmp / "source"
        source.write_bytes(self.rng.randbytes(size // 2))
        qemu.img("create", "-q", "-f", "qcow2", base, size)
        qemu.io(base, f"write -q -s {source} {size // 4} {size // 2}")
        self.server.push(base, ref)
        return qemu.convert(base, self.tmp / "base.raw")

    def attach_disk(self, *arguments, name="disk"):
        return self.attach(self.server, *arguments, "--disk", self.tmp / name, name=f"attach-{name}")

    def snapshot(self, ref, *arguments, name="disk", **options):
        return self.server.cairn("snapshot", self.tmp / name, ref, *arguments, **options)

    def read_disk(self, disk):
        client = NbdClient(disk.socket)
        try:
            return client.read(0, client.size)
        finally:
            client.close()

    def assert_reads(self, disk, expected):
        self.assertIsNone(first_difference(self.read_disk(disk), bytes(expected)))

    def check_active(self):
        """qemu-img check of the active layer by itself: its backing name is for nobody to open."""
        node = {"driver": "qcow2", "backing": None,
                "file": {"driver": "file", "filename": str(self.tmp / "disk" / "active.qcow2")}}
        qemu.check("json:" + json.dumps(node), leaks_allowed=True)

    def nbdkit(self, *parameters):
        """The plugin without `cairn attach`; its socket."""
        socket = self.tmp / "nbd.sock"
        process = self.start(["nbdkit", "-f", "--unix", socket,
                              BUILD / "lib" / "nbdkit-cairn-plugin.so",
                              f"server={self.server.url}", "deadline=1000", *parameters],
                             "nbdkit", env=preload())
        wait_for(lambda: process.check_running() and self.accepts(socket), "nbdkit")
        return process, str(socket)

    @staticmethod
    def accepts(path):
        """nbdkit's socket has a name before it listens."""
        try:
            NbdClient(str(path)).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def sealed(self, name="disk"):
        return sorted(path.name for path in (self.tmp / name).glob("sealed-*"))

    # -- What a snapshot holds -------------------------------------------------------------------

    def test_snapshot_of_running_disk_is_one_moment(self):
        """Each snapshot is the disk after some number of writes: all that were acknowledged before it
        was asked for, none that began after it was done."""
        content = self.push_base()
        disk = self.attach_disk("vm:v1")
        writer = Writer(self.rng, disk.socket, content)
        writer.start()
        for number in range(scaled(3, 6, 50)):
            wait_for(lambda n=number: len(writer.records) > 100 * n or writer.failure, "writes")
            low = writer.acknowledged
            self.snapshot(f"vm:s{number}")
            high = len(writer.records)
            found = self.server.http.data(f"vm:s{number}")
            prefix = find_prefix(content, writer.records, found, low, high)
            self.assertIsNotNone(prefix, f"snapshot {number} is no moment in {low}..{high}")
        writer.stop()
        expected = writer.after(content, 0, writer.acknowledged)
        self.assert_reads(disk, expected)
        self.assertEqual(self.sealed(), [])
        self.snapshot("vm:last")
        second = self.attach_disk("vm:last", name="second")
        self.assert_reads(second, expected)

    def test_writes_go_on_while_a_snapshot_is_pushed(self):
        content = self.push_base(32 * MIB)
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        for start in range(0, 24 * MIB, 4 * MIB):
            client.write(start, self.rng.randbytes(4 * MIB))
        client.close()
        writer = Writer(self.rng, disk.socket, content)
        writer.start()
        wait_for(lambda: writer.acknowledged, "a write")
        before = writer.acknowledged
        self.snapshot("vm:v2")
        self.assertGreater(writer.acknowledged, before)
        writer.stop()

    def test_stopped_disk(self):
        content = bytearray(self.push_base())
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        data = self.rng.randbytes(100 * KIB)
        client.write(12345, data)
        client.close()
        disk.stop()
        content[12345:12345 + len(data)] = data
        ref = self.snapshot("vm:v2").last_line
        self.assertRegex(ref, r"^vm@sha256:[0-9a-f]{64}$")
        self.assertIsNone(first_difference(self.server.http.data("vm:v2"), bytes(content)))
        self.assertEqual(self.server.http.get("/v1/disks/vm:v2").json()["depth"], 2)
        pulled = self.tmp / "pulled.qcow2"
        self.server.cairn("pull", "vm:v2", pulled)
        self.assertIsNone(first_difference(qemu.convert(pulled, self.tmp / "p.raw"),
                                           bytes(content)))

    def test_unchanged_disk_gets_no_new_layer(self):
        self.push_base()
        self.attach_disk("vm:v1")
        first = self.snapshot("vm:v2").last_line
        second = self.snapshot("vm:v3").last_line
        self.assertEqual(first, second)
        self.assertEqual(self.server.http.get("/v1/disks/vm:v3").json()["depth"], 1)

    def test_into_another_repository(self):
        content = bytearray(self.push_base())
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        for number in range(2):
            client.write(number * BLOCK, b"x" * BLOCK)
            content[number * BLOCK:(number + 1) * BLOCK] = b"x" * BLOCK
            self.snapshot(f"other/repo{number}:v2")
        client.close()
        self.assertIsNone(first_difference(self.server.http.data("other/repo1:v2"),
                                           bytes(content)))
        self.assert_reads(disk, content)
        disk.stop()
        # The folder is known by what it was made from and by what it was snapshot to.
        self.attach_disk("other/repo1:v2").stop()
        self.attach_disk("vm:v1").stop()
        said = self.server.cairn("attach", "vm:v9", "--disk", self.tmp / "disk", code=1,
                                 env=preload()).stderr
        self.assertIn(b"vm:v9", said)

    def test_deep_stack_of_snapshots(self):
        content = bytearray(self.push_base())
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        count = scaled(5, 20, 200)
        for number in range(count):
            start, data = self.rng.randrange(3 * MIB), self.rng.randbytes(9000)
            client.write(start, data)
            content[start:start + len(data)] = data
            self.snapshot("vm:top")
        self.assertIsNone(first_difference(client.read(0, client.size), bytes(content)))
        client.close()
        self.assertEqual(self.server.http.get("/v1/disks/vm:top").json()["depth"], count + 1)

    def test_index_larger_than_one_answer(self):
        """What the index's first answer does not hold is fetched by need, by many readers at once."""
        size = 3 << 30
        stripes = write_striped_image(self.tmp / "striped.qcow2", size)
        self.server.push(self.tmp / "striped.qcow2", "vm:striped")
        disk = self.attach_disk("vm:striped")
        places = [self.rng.randrange(size // (8 * KIB)) * 8 * KIB for _ in range(scaled(40, 200, 2000))]
        places.append(size - 8 * KIB)

        def read(guest_off):
            client = NbdClient(disk.socket)
            self.assertEqual(client.read(guest_off, 8 * KIB), b"".join(stripes))
            client.close()
        Parallel(8).each(read, places)
        remote = self.server.cairn("info", self.tmp / "disk", "--json").json()["remote"]
        self.assertGreater(remote["indexReads"], 1)
        self.assertLess(remote["indexReads"], 12)

    # -- What goes wrong -------------------------------------------------------------------------

    def test_server_away(self):
        """A snapshot that cannot be pushed leaves a disk that goes on; the next one has it all, also
        after the disk was attached anew with sealed layers waiting."""
        content = bytearray(self.push_base())
        disk, socket = self.nbdkit("ref=vm:v1", f"disk={self.tmp / 'disk'}")
        client = NbdClient(socket)
        port = self.server.port
        self.server.stop()
        for number in range(2):
            client.write(number * MIB, b"y" * BLOCK)  # whole blocks: nothing to fetch
            content[number * MIB:number * MIB + BLOCK] = b"y" * BLOCK
            self.snapshot("vm:v2", code=1)
        self.assertEqual(self.sealed(), ["sealed-1.qcow2", "sealed-2.qcow2"])
        self.assertEqual(client.read(0, BLOCK), b"y" * BLOCK)
        client.write(2 * MIB, b"z" * BLOCK)
        content[2 * MIB:2 * MIB + BLOCK] = b"z" * BLOCK
        client.close()
        disk.stop()
        self.server = self.cairnd(arguments=("--listen", f"127.0.0.1:{port}"))
        disk = self.attach_disk()
        self.assert_reads(disk, content)
        self.snapshot("vm:v3")
        self.assertEqual(self.sealed(), [])
        self.assertIsNone(first_difference(self.server.http.data("vm:v3"), bytes(content)))
        self.assertEqual(self.server.http.get("/v1/disks/vm:v3").json()["depth"], 4)
        self.assert_reads(disk, content)

    def test_server_away_until_no_more_layers_fit(self):
        """However many snapshots failed, the next one publishes all of it."""
        content = bytearray(self.push_base())
        disk, socket = self.nbdkit("ref=vm:v1", f"disk={self.tmp / 'disk'}", "deadline=50")
        client = NbdClient(socket)
        port = self.server.port
        self.server.stop()
        for number in range(65):
            data = bytes([number + 1]) * BLOCK
            client.write(number * BLOCK, data)
            content[number * BLOCK:(number + 1) * BLOCK] = data
            self.snapshot("vm:v2", code=1)
        self.assertEqual(len(self.sealed()), 64)
        client.close()
        disk.stop()
        self.server = self.cairnd(arguments=("--listen", f"127.0.0.1:{port}"))
        disk = self.attach_disk()
        self.assert_reads(disk, content)
        self.snapshot("vm:v3")
        self.assertEqual(self.sealed(), [])
        self.assertIsNone(first_difference(self.server.http.data("vm:v3"), bytes(content)))
        self.assertEqual(self.server.http.get("/v1/disks/vm:v3").json()["depth"], 66)
        self.assert_reads(disk, content)

    def test_killed_while_a_sealed_layer_is_written_anew(self):
        """What is published for a sealed layer is gone when the disk is attached again, and made anew."""
        content = bytearray(self.push_base(16 * MIB))
        disk, socket = self.nbdkit("ref=vm:v1", f"disk={self.tmp / 'disk'}")
        client = NbdClient(socket)
        content[:8 * MIB] = self.rng.randbytes(8 * MIB)
        client.write(0, content[:8 * MIB])
        client.close()
        port = self.server.port
        self.server.stop()
        self.snapshot("vm:v2", code=1)
        self.assertTrue((self.tmp / "disk" / "compact-1.qcow2").exists())
        disk.kill()
        self.server = self.cairnd(arguments=("--listen", f"127.0.0.1:{port}"))
        self.attach_disk()
        self.assertEqual(sorted(path.name for path in (self.tmp / "disk").glob("*-1.qcow2")),
                         ["sealed-1.qcow2"])
        self.snapshot("vm:v2", "--compress", "zlib")
        self.assertIsNone(first_difference(self.server.http.data("vm:v2"), bytes(content)))
        self.assertEqual(list((self.tmp / "disk").glob("*-1.qcow2")), [])

    def test_another_form_than_that_of_a_snapshot_that_failed(self):
        """Layers that wait are published in whatever form the snapshot that succeeds asks for, though
        those above have recorded what they stand on by another one."""
        content = bytearray(self.push_base())
        disk, socket = self.nbdkit("ref=vm:v1", f"disk={self.tmp / 'disk'}", "deadline=50")
        client = NbdClient(socket)
        port = self.server.port
        self.server.stop()
        for number in range(2):
            data = bytes([number + 1]) * MIB
            client.write(number * MIB, data)
            content[number * MIB:(number + 1) * MIB] = data
            self.snapshot("vm:v2", "--compress", "zstd", code=1)
        client.close()
        disk.stop()
        self.server = self.cairnd(arguments=("--listen", f"127.0.0.1:{port}"))
        disk = self.attach_disk()
        self.snapshot("vm:v2")
        self.assertEqual(self.sealed(), [])
        self.assertIsNone(first_difference(self.server.http.data("vm:v2"), bytes(content)))
        disk.stop()
        self.assert_reads(self.attach_disk(), content)

    def test_killed_during_snapshots(self):
        """SIGKILL to whoever holds the disk, at random points of a snapshot with a writer going:
        everything flushed is there, and the disk goes on."""
        content = bytes(self.push_base())
        for number in range(scaled(4, 15, 300)):
            disk = self.attach_disk(*(["vm:v1"] if number == 0 else []))
            writer = Writer(self.rng, disk.socket, content)
            writer.start()
            killer = threading.Timer(self.rng.uniform(0.01, 0.3), disk.crash)
            killer.start()
            while killer.is_alive():
                self.snapshot(f"vm:k{number}", code=None)
            killer.join()
            writer.join()
            disk = self.attach_disk()
            found = self.read_disk(disk)
            # Writes went one by one, so what is there is a prefix, but for order within a flush.
            self.assert_nothing_flushed_is_lost(writer, content, found)
            content = found
            disk.stop()
            self.check_active()
        self.snapshot("vm:end")
        self.assertIsNone(first_difference(self.server.http.data("vm:end"), content))
        self.assertEqual(self.sealed(), [])

    def assert_nothing_flushed_is_lost(self, writer, content, found):
        base = writer.after(content, 0, writer.flushed)
        allowed = {}
        for start, data in writer.records[writer.flushed:]:
            for off in range(0, len(data), 512):
                allowed.setdefault(start + off, []).append(data[off:off + 512])
        for off in range(0, len(base), 512):
            sector = found[off:off + 512]
            if sector != base[off:off + 512] and sector not in allowed.get(off, ()):
                self.fail(f"sector at {off:#x} is nothing that was written there")

    def test_cancelled(self):
        """Whoever asked hangs up in the middle: the disk goes on, the next snapshot has it all."""
        content = bytearray(self.push_base(64 * MIB))
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        data = self.rng.randbytes(8 * MIB)
        for start in range(0, 64 * MIB, len(data)):
            client.write(start, data)
            content[start:start + len(data)] = data
        asker = self.start([BUILD / "bin" / "cairn", "snapshot", self.tmp / "disk", "vm:v2"],
                           "snapshot", env={"CAIRN_SERVER": self.server.url})
        wait_for(self.sealed, "the switch")
        asker.popen.send_signal(signal.SIGINT)
        asker.wait(code=None)
        wait_for(lambda: self.snapshot("vm:v3", code=None).code == 0, "the next snapshot")
        client.close()
        self.assertIsNone(first_difference(self.server.http.data("vm:v3"), bytes(content)))

    def test_attach_ends_while_a_snapshot_waits_for_the_service(self):
        self.push_base(8 * MIB)
        proxy = Proxy(self.server.port)
        self.addCleanup(proxy.close)
        disk = self.attach_disk("vm:v1", "--server", proxy.url)
        client = NbdClient(disk.socket)
        client.write(0, self.rng.randbytes(8 * MIB))
        client.close()
        proxy.stall_after(MIB)
        asker = self.start([BUILD / "bin" / "cairn", "snapshot", self.tmp / "disk", "vm:v2"],
                           "snapshot")
        self.assertTrue(proxy.reached.wait(60))
        disk.stop(timeout=20)
        asker.wait(code=1)

    def test_read_only_disk_has_no_snapshots(self):
        self.push_base()
        disk = self.attach(self.server, "vm:v1", "--read-only")
        client = NbdClient(disk.socket)
        self.assertEqual(client.flags & 2, 2)  # NBD_FLAG_READ_ONLY
        with self.assertRaises(OSError):
            client.write(0, b"x" * 512)
        client.close()

    def test_dead_server_is_an_error_and_comes_back(self):
        content = self.push_base(64 * MIB)
        port = self.server.port
        nbdkit, socket = self.nbdkit("ref=vm:v1")
        client = NbdClient(socket)
        self.server.stop()
        started = time.monotonic()
        with self.assertRaises(OSError):
            client.read(32 * MIB, BLOCK)
        self.assertLess(time.monotonic() - started, 10)
        self.server = self.cairnd(arguments=("--listen", f"127.0.0.1:{port}"))
        self.assertEqual(client.read(32 * MIB, BLOCK), content[32 * MIB:32 * MIB + BLOCK])
        client.close()
        nbdkit.stop()

    # -- attach ----------------------------------------------------------------------------------

    def test_attach_in_a_long_folder(self):
        content = self.push_base()
        name = "x" * 100 + "/" + "y" * 100
        (self.tmp / name).parent.mkdir()
        disk = self.attach(self.server, "vm:v1", "--disk", self.tmp / name)
        self.assertLess(len(disk.socket), 108)
        self.assert_reads(disk, content)
        client = NbdClient(disk.socket)
        client.write(0, b"x" * BLOCK)
        client.close()
        self.snapshot("vm:v2", name=name)
        private = pathlib.Path(disk.socket).parent
        disk.stop()
        self.assertFalse(private.exists())

    def test_attach_daemon(self):
        content = self.push_base()
        result = self.server.cairn("attach", "vm:v1", "--disk", self.tmp / "disk", "--daemon",
                                   env=preload())
        pid = int((self.tmp / "disk" / "attach.pid").read_text())
        try:
            socket = result.last_line.partition("socket=")[2]
            client = NbdClient(socket)
            self.assertEqual(client.read(0, client.size), content)
            client.close()
        finally:
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not (self.tmp / "disk" / "attach.pid").exists(), "the daemon's end")
        self.assertFalse((self.tmp / "disk" / "control.sock").exists())

    def test_attach_daemon_that_fails_says_why(self):
        said = self.server.cairn("attach", "vm:none", "--disk", self.tmp / "disk", "--daemon",
                                 code=1, env=preload()).stderr
        self.assertIn(b"vm:none", said)
        self.assertFalse((self.tmp / "disk").exists())

    def test_killed_attach_leaves_no_orphan(self):
        self.push_base()
        disk = self.attach_disk("vm:v1")
        nbdkit = disk.nbdkit_pid
        client = NbdClient(disk.socket)
        client.write(0, b"x" * BLOCK)
        client.close()
        disk.kill()
        wait_for(lambda: not self.runs(nbdkit), "nbdkit's end")
        disk = self.attach_disk()
        client = NbdClient(disk.socket)
        self.assertEqual(client.read(0, BLOCK), b"x" * BLOCK)
        client.close()

    @staticmethod
    def runs(pid):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # we are its subreaper
        return pathlib.Path(f"/proc/{pid}").exists()

    def test_attach_goes_on_when_nobody_reads_what_it_says(self):
        content = self.push_base()
        disk = self.attach_disk("vm:v1")
        disk.stop()
        ends = os.pipe()
        process = subprocess.Popen([BUILD / "bin" / "cairn", "attach", "--disk", self.tmp / "disk"],
                                   stdout=ends[1], stderr=ends[1],
                                   env=dict(preload(), CAIRN_SERVER=self.server.url))
        self.addCleanup(process.kill)
        os.close(ends[1])
        self.assertIn(b"nbd+unix:", os.read(ends[0], 1000))
        os.close(ends[0])
        with socket.socket(socket.AF_UNIX) as stranger:  # nbdkit has something to say
            stranger.connect(disk.socket)
            stranger.sendall(b"x" * 64)
            with contextlib.suppress(ConnectionError):
                while stranger.recv(1000):
                    pass
        self.assert_reads(disk, content)
        process.terminate()
        self.assertEqual(process.wait(60), 0)

    def test_answer_of_another_server_is_not_taken_for_ours(self):
        """Two attach to one socket at a time, and the other one is faster."""
        self.push_base()
        fake = self.folder("bin") / "nbdkit"
        fake.write_text(f'#!/bin/sh\n/usr/bin/env PATH="{os.environ["PATH"]}" nbdkit '
                        f'-P "{self.tmp}/pid" --unix "$3" memory 1M\nsleep 0.5\nexit 1\n')
        fake.chmod(0o755)
        said = self.server.cairn("attach", "vm:v1", "--read-only", "--socket", self.tmp / "socket",
                                 code=1, env={"PATH": f"{fake.parent}:{os.environ['PATH']}"})
        self.assertEqual(said.stdout, b"")
        os.kill(int((self.tmp / "pid").read_text()), signal.SIGTERM)

    def test_file_in_the_sockets_place_is_not_removed(self):
        self.push_base()
        victim = self.tmp / "victim"
        victim.write_text("precious")
        said = self.server.cairn("attach", "vm:v1", "--read-only", "--socket", victim, code=1,
                                 env=preload()).stderr
        self.assertIn(b"not a socket", said)
        self.assertEqual(victim.read_text(), "precious")

    def test_pid_file_is_not_written_through_a_link(self):
        self.push_base()
        self.attach_disk("vm:v1").stop()
        victim = self.tmp / "victim"
        victim.write_text("precious")
        (self.tmp / "disk" / "attach.pid").symlink_to(victim)
        said = self.server.cairn("attach", "--disk", self.tmp / "disk", "--daemon", code=1,
                                 env=preload()).stderr
        self.assertIn(b"attach.pid", said)
        self.assertEqual(victim.read_text(), "precious")

    def test_attach_ends_though_a_client_does_not_take_its_answers(self):
        self.push_base()
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        client.write(0, b"x" * BLOCK)
        for handle in range(64):
            client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, handle, 0, 4 * MIB))
        client.socket.recv(1)
        disk.stop()
        client.socket.close()
        disk = self.attach_disk()
        self.assertEqual(self.read_disk(disk)[:BLOCK], b"x" * BLOCK)

    def test_what_was_written_survives_an_abort_of_nbdkit(self):
        """A client that goes with many answers on their way makes nbdkit 1.32 abort."""
        self.push_base()
        disk = self.attach_disk("vm:v1")
        writer, reader = NbdClient(disk.socket), NbdClient(disk.socket)
        writer.write(0, b"x" * BLOCK)
        for handle in range(64):
            reader.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, handle, 0, 4 * MIB))
        reader.socket.recv(1)
        reader.close()
        disk.popen.send_signal(signal.SIGTERM)
        disk.wait(code=None)
        writer.close()
        disk = self.attach_disk()
        self.assertEqual(self.read_disk(disk)[:BLOCK], b"x" * BLOCK)

    def test_attach_ends_with_clients_connected(self):
        self.push_base()
        disk = self.attach_disk("vm:v1")
        client = NbdClient(disk.socket)
        client.write(0, b"x" * BLOCK)
        disk.stop()
        client.close()
        disk = self.attach_disk()
        self.assertEqual(self.read_disk(disk)[:BLOCK], b"x" * BLOCK)


if __name__ == "__main__":
    main()
