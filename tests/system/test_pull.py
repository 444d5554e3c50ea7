#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Pulls that are interrupted, and pulled chains that are pushed again.  (That what is pulled is what was
pushed: test_content.)"""

import os
import signal

import qemu
from cairntest import CAIRN, Case, KIB, MIB, main, random_bytes, run, seeded
from proxy import Proxy

OVERHEAD = 64 * KIB  # of requests and manifests, generously
BASE = 48 * MIB


class Pull(Case):
    def setUp(self):
        super().setUp()
        self.server = self.cairnd()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.env = {"CAIRN_SERVER": self.proxy.url}
        self.top = self.make_chain()
        self.pushed = self.server.push(self.top, "vm:v1")

    def make_chain(self):
        base, top = self.tmp / "base.raw", self.tmp / "top.qcow2"
        base.write_bytes(random_bytes(seeded(self.id()), BASE))
        qemu.img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", top)
        qemu.io(top, "write -q -P 1 64k 4k")
        return top

    def overlay_of(self, backing):
        path = self.tmp / "overlay.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path)
        qemu.io(path, "write -q -P 2 1M 64k")
        return path

    def push(self, file, ref):
        """The ref by digest, and the bytes that travelled to the server."""
        self.proxy.take()
        result = run(CAIRN, "push", file, ref, env=self.env)
        return result.stdout.decode().splitlines()[-1], self.proxy.take()[0]

    def interrupt(self, signal_number, code, *arguments):
        """Start a pull, and stop it when the network has stalled in the middle."""
        self.proxy.stall_after(8 * KIB)  # requests for some thirty pieces of 1 MiB
        client = self.start([CAIRN, "pull", *arguments], "pull", env=self.env)
        self.assertTrue(self.proxy.reached.wait(120), client.describe())
        os.kill(client.pid, signal_number)
        self.proxy.cut()
        client.wait(code=code)
        self.proxy.stall_after(None)
        return client

    # -- Pulled chains, pushed again ------------------------------------------------------------------

    def test_pulled_chain_is_recognised(self):
        self.server.cairn("pull", "--chain", "vm:v1", self.tmp / "copy")
        ref, sent = self.push(self.tmp / "copy" / "top.qcow2", "vm:v2")
        self.assertEqual(ref, self.pushed)
        self.assertLess(sent, OVERHEAD)

    def test_overlay_of_a_pulled_chain_is_all_that_travels(self):
        self.server.cairn("pull", "--chain", "vm:v1", self.tmp / "copy")
        overlay = self.overlay_of(self.tmp / "copy" / "top.qcow2")
        _, sent = self.push(overlay, "vm:v2")
        self.assertLess(sent, overlay.stat().st_size + OVERHEAD)
        self.assertEqual(self.server.http.data("vm:v2"), qemu.convert(overlay, self.tmp / "raw"))

    def test_changed_layer_of_a_pulled_chain_is_another_layer(self):
        copy = self.tmp / "copy"
        self.server.cairn("pull", "--chain", "vm:v1", copy)
        top = (copy / "top.qcow2").resolve()
        qemu.io(top, "write -q -P 9 2M 4k")
        ref, _ = self.push(copy / "top.qcow2", "vm:v2")
        self.assertNotEqual(ref, self.pushed)
        self.assertEqual(self.server.http.data("vm:v2"), qemu.convert(top, self.tmp / "raw"))

    # -- Interruptions ---------------------------------------------------------------------------------

    def test_killed_pull_of_a_chain_goes_on(self):
        copy = self.tmp / "copy"
        self.interrupt(signal.SIGKILL, -signal.SIGKILL, "--chain", "vm:v1", copy)
        there = sum(path.stat().st_size for path in copy.iterdir() if path.is_file())
        self.assertGreater(there, 8 * MIB)
        self.proxy.take()
        run(CAIRN, "pull", "--chain", "vm:v1", copy, env=self.env)
        self.assertLess(self.proxy.take()[1], BASE + MIB - there + OVERHEAD)
        opened = qemu.convert(copy / "top.qcow2", self.tmp / "copy.raw")
        self.assertEqual(opened, qemu.convert(self.top, self.tmp / "top.raw"))

    def test_damaged_parts_of_an_earlier_pull_are_fetched_again(self):
        """What had arrived was not synced, or had its new header already."""
        copy = self.tmp / "copy"
        self.server.cairn("pull", "--chain", "vm:v1", copy)
        base, top = next(copy.glob("0000-*")), next(copy.glob("0001-*"))
        top.rename(f"{top}.part")
        base.rename(f"{base}.part")
        with open(f"{base}.part", "r+b") as part:
            part.write(bytes(MIB))
            part.truncate(2 * MIB)
        (copy / "chain.json").unlink()
        (copy / ".pulling").write_text(self.pushed.partition("@")[2])
        self.server.cairn("pull", "--chain", "vm:v1", copy)
        opened = qemu.convert(copy / "top.qcow2", self.tmp / "copy.raw")
        self.assertEqual(opened, qemu.convert(self.top, self.tmp / "top.raw"))

    def test_folder_of_another_disk_is_left_alone(self):
        copy = self.tmp / "copy"
        self.server.cairn("pull", "--chain", "vm:v1", copy)
        before = sorted(path.name for path in copy.iterdir())
        self.server.push(self.overlay_of(self.top), "vm:v2")
        said = self.server.cairn("pull", "--chain", "vm:v2", copy, code=1).stderr.decode()
        self.assertIn("choose another folder", said)
        self.assertEqual(sorted(path.name for path in copy.iterdir()), before)

    def test_cancelled_pull_leaves_nothing(self):
        for mode in ((), ("--raw",)):
            with self.subTest(mode=mode):
                folder = self.tmp / ("out" + "".join(mode))
                folder.mkdir()
                client = self.interrupt(signal.SIGINT, 1, *mode, "vm:v1", folder / "file")
                self.assertIn("cancelled", client.text())
                self.assertEqual(list(folder.iterdir()), [])


if __name__ == "__main__":
    main()
