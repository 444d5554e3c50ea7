#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The host's block cache: what is fetched, by whom, and that only right bytes come out of it,
whatever happens to its folder and to the processes that use it."""

import pathlib

import qemu
from cairntest import CAIRN, Attachment, Case, KIB, MIB, main, preload, random_bytes, run, scaled, seeded
from nbdclient import NbdClient
from proxy import Proxy

OVERHEAD = 512 * KIB  # requests, manifests and indexes, generously
BASE = 24 * MIB
COMPRESSED = 8 * MIB  # of the base, in compressed clusters


class BlockCache(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)
        self.cache = self.tmp / "cache"
        self.base = self.make_base()

    def make_base(self):
        """A golden image: a third of it compressed, for the rest is random bytes, which QEMU then
        stores as they are."""
        raw, base = self.tmp / "base.raw", self.tmp / "base.qcow2"
        words = [random_bytes(self.rng, 16) for _ in range(256)]
        text = b"".join(self.rng.choices(words, k=COMPRESSED // 16))
        raw.write_bytes(random_bytes(self.rng, BASE - COMPRESSED) + text)
        qemu.img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, base)
        return base

    def overlay(self, name, backing, clusters):
        path = self.tmp / f"{name}.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", path)
        places = self.rng.sample(range(BASE // (64 * KIB)), clusters)
        qemu.io(path, *(f"write -q -P {self.rng.randrange(1, 256)} {p * 64}k 64k" for p in places))
        return path

    def push(self, file, ref):
        self.server.push(file, ref)
        return qemu.convert(file, self.tmp / f"{pathlib.Path(file).stem}.oracle")

    def attach_cached(self, ref, name="attach", *arguments):
        return self.own(Attachment(self.proxy.url, self.tmp / f"{name}.log", "--read-only",
                                   "--cache", self.cache, *arguments, ref))

    def read_all(self, attachment, name):
        out = self.tmp / f"{name}.read"
        run("nbdcopy", "--requests=8", attachment.uri, out)
        return out.read_bytes()

    def read_cached(self, ref, name, *arguments):
        """All of a disk, and the bytes that the server sent for it."""
        attachment = self.attach_cached(ref, name, *arguments)
        self.proxy.take()
        data = self.read_all(attachment, name)
        received = self.proxy.take()[1]
        attachment.stop()
        self.processes.remove(attachment)
        return data, received

    # -- What is fetched ------------------------------------------------------------------------------

    def test_second_disk_fetches_only_what_is_its_own(self):
        a = self.push(self.overlay("a", self.base, 16), "vm:a")
        b = self.push(self.overlay("b", self.base, 16), "vm:b")
        data, received = self.read_cached("vm:a", "a")
        self.assertEqual(data, a)
        self.assertLess(received, self.base.stat().st_size + 16 * 64 * KIB + OVERHEAD)
        data, received = self.read_cached("vm:b", "b")
        self.assertEqual(data, b)
        # Its clusters, and what of the base shows here that a had written over.
        self.assertLess(received, 32 * 64 * KIB + OVERHEAD)

    def test_a_disk_that_was_read_needs_no_server(self):
        oracle = self.push(self.overlay("a", self.base, 40), "vm:a")
        attachment = self.attach_cached("vm:a")
        self.assertEqual(self.read_all(attachment, "first"), oracle)
        self.server.kill()
        self.processes.remove(self.server)
        self.assertEqual(self.read_all(attachment, "second"), oracle)

    def test_disks_read_at_once_fetch_each_byte_once(self):
        oracle = self.push(self.overlay("a", self.base, 40), "vm:a")
        attachments = [self.attach_cached("vm:a", f"attach{i}") for i in range(4)]
        self.proxy.take()
        readers = [self.start(["nbdcopy", "--requests=4", attachment.uri, self.tmp / f"out{i}"],
                              f"read{i}") for i, attachment in enumerate(attachments)]
        for i, reader in enumerate(readers):
            reader.wait()
            self.assertEqual((self.tmp / f"out{i}").read_bytes(), oracle)
        self.processes = [p for p in self.processes if p not in readers]
        received = self.proxy.take()[1]
        self.assertLess(received, 1.1 * (self.base.stat().st_size + 40 * 64 * KIB) + 4 * OVERHEAD)

    def test_random_chains_read_right(self):
        """Any cluster size, subclusters, compressed clusters, raw bases, backing files that are shorter."""
        for number in range(scaled(3, 8, 300)):
            rng = seeded(f"{self.id()} {number}")
            folder = self.folder(f"chain{number}")
            chain = qemu.RandomChain(rng, folder)
            oracle = qemu.convert(chain.top, folder / "oracle.raw", chain.top_format)
            self.server.push(chain.top, f"chains:c{number}", "--format", chain.top_format)
            for turn in ("cold", "warm"):
                with self.subTest(number=number, turn=turn, chain=chain.describe()):
                    attachment = self.attach_cached(f"chains:c{number}", f"{turn}{number}")
                    self.check_pieces(attachment, rng, oracle)
                    data = self.read_all(attachment, turn)
                    self.assertTrue(data == oracle, "wrong bytes")
                    attachment.stop()
                    self.processes.remove(attachment)

    def check_pieces(self, attachment, rng, oracle):
        disk = NbdClient(attachment.socket)
        for _ in range(60):
            length = min(rng.choice((1, 512, 3000, 4096, 70000, 300000)), len(oracle))
            at = rng.randrange(len(oracle) - length + 1)
            self.assertTrue(disk.read(at, length) == oracle[at:at + length], f"{length} bytes at {at}")
        disk.close()

    # -- Whatever happens -----------------------------------------------------------------------------

    def damage(self):
        """Bits flipped, pieces zeroed and cut off, at random."""
        for path in self.cache.glob("*.blocks"):
            with path.open("r+b") as file:
                size = path.stat().st_size
                for _ in range(200):
                    file.seek(self.rng.randrange(size))
                    file.write(bytes([self.rng.randrange(256)] * self.rng.choice((1, 8, 5000))))
                if self.rng.random() < 0.3:
                    file.truncate(self.rng.randrange(size))

    def test_damage_is_never_believed(self):
        oracle = self.push(self.overlay("a", self.base, 40), "vm:a")
        running = self.attach_cached("vm:a", "running")
        for turn in range(scaled(2, 4, 40)):
            self.assertEqual(self.read_all(running, f"running{turn}"), oracle)
            self.damage()
            self.assertEqual(self.read_all(running, f"damaged{turn}"), oracle)
            self.damage()
            self.assertEqual(self.read_cached("vm:a", f"again{turn}")[0], oracle)

    def test_kills_leave_nothing_wrong(self):
        oracle = self.push(self.overlay("a", self.base, 40), "vm:a")
        for turn in range(scaled(3, 6, 60)):
            attachment = self.attach_cached("vm:a", f"killed{turn}")
            reader = self.start(["nbdcopy", "--requests=8", attachment.uri, "null:"], f"r{turn}")
            self.proxy.stall_after(None)
            while self.proxy.take()[1] < self.rng.randrange(1, 4 * MIB) and reader.running:
                pass
            attachment.crash()
            reader.wait(code=None)
            self.processes.remove(attachment)
            self.processes.remove(reader)
        data, _ = self.read_cached("vm:a", "after")
        self.assertEqual(data, oracle)

    def test_the_folder_stays_within_its_bound(self):
        raw = self.tmp / "large.raw"
        raw.write_bytes(random_bytes(self.rng, 96 * MIB))
        self.server.push(raw, "vm:large")
        for _ in range(2):
            data, _ = self.read_cached("vm:large", "large", "--cache-size", "64M")
            self.assertEqual(data, raw.read_bytes())
            used = sum(path.stat().st_blocks * 512 for path in self.cache.iterdir())
            self.assertLess(used, (64 + 16 + 1) * MIB)
            self.assertGreater(used, 16 * MIB)

    # -- Misuse ---------------------------------------------------------------------------------------

    def test_a_folder_that_others_can_write_is_refused(self):
        self.push(self.base, "vm:a")
        self.cache.mkdir()
        self.cache.chmod(0o777)
        result = run(CAIRN, "attach", "--read-only", "--cache", self.cache, "vm:a", code=1,
                     env=dict(preload(), CAIRN_SERVER=self.server.url))
        self.assertIn(b"writable for nobody else", result.stderr)


if __name__ == "__main__":
    main()
