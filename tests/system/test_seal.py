#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sealing: `cairn image seal` on images made at random, against qemu-img; snapshots that seal and
compress under guest I/O."""

import os

import qemu
from cairntest import CAIRN, Case, KIB, MIB, Parallel, first_difference, main, run, scaled, seeded
from nbdclient import NbdClient

COMPRESS = ("none", "zlib", "zstd")


def status(image):
    """What an image's map says of each range, without places: below, zero or data."""
    merged = []
    for entry in qemu.extent_map(image):
        what = ("below" if entry["depth"] > 0 else "data" if entry["data"] else "zero")
        if merged and merged[-1][1] == what:
            merged[-1] = (merged[-1][0] + entry["length"], what)
        else:
            merged.append((entry["length"], what))
    return merged


def by_sector(runs):
    return [what for length, what in runs for _ in range(length // qemu.SECTOR)]


class Images(Case):
    def seal(self, image, out, *arguments):
        return run(CAIRN, "image", "seal", "--json", *arguments, image, out).json()

    def check_seals(self, image, compress):
        out, again = (image.with_name(f"{image.stem}.{compress}.{n}.qcow2") for n in range(2))
        facts = self.seal(image, out, "--compress", compress)
        self.assertEqual(facts["bytesBefore"], image.stat().st_size)
        self.assertEqual(facts["bytesAfter"], out.stat().st_size)
        qemu.check(out)
        qemu.compare(image, out)
        self.seal(out, again, "--compress", compress)
        self.assertEqual(out.read_bytes(), again.read_bytes(), "sealed again it is another file")
        before, after = by_sector(status(image)), by_sector(status(out))
        self.assertEqual([what == "below" for what in before], [what == "below" for what in after])
        if compress == "none":
            lost = [n for n, what in enumerate(before) if what == "zero" != after[n]]
            self.assertEqual(lost, [], "sectors that were zeros by the tables")

    def test_random_images(self):
        """Each layer of chains made at random, over its own backing chain."""
        def check(number):
            folder = self.tmp / str(number)
            folder.mkdir()
            rng = seeded(f"{self.id()}/{number}")
            chain = qemu.RandomChain(rng, folder)
            for layer, plan in zip(chain.layers, chain.plans):
                if not plan.raw:
                    try:
                        self.check_seals(layer, rng.choice(COMPRESS))
                    except AssertionError as error:
                        raise AssertionError(f"chain {number}, {layer}:\n{chain.describe()}") from error
        Parallel(2).each(check, range(scaled(4, 12, 400)))

    def test_facts_for_people(self):
        image = self.tmp / "i.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", image, 2 * MIB)
        qemu.io(image, "write -q -P 1 0 1M", "write -q -P 0 1M 128k")
        os.truncate(image, image.stat().st_size + MIB)
        said = run(CAIRN, "image", "seal", "--compress", "zstd", "--level", "1", image,
                   self.tmp / "out.qcow2").stdout.decode()
        self.assertRegex(said, r"zeros found: *128 KiB")
        self.assertRegex(said, r"clusters: *0, and 16 compressed")
        self.assertRegex(said, r"clusters dropped: *16")

    def test_what_is_refused(self):
        image, raw, there = (self.tmp / name for name in ("i.qcow2", "i.raw", "there.qcow2"))
        qemu.img("create", "-q", "-f", "qcow2", image, MIB)
        raw.write_bytes(bytes(MIB))
        there.write_bytes(b"mine")
        out = self.tmp / "out.qcow2"
        for code, words, arguments in (
                (1, "exists already", (image, there)),
                (1, "raw image cannot be sealed", (raw, out)),
                (1, "cannot open", (self.tmp / "none.qcow2", out)),
                (2, "--compress is none, zlib or zstd, not lz4", ("--compress", "lz4", image, out)),
                (2, "--level is a number", ("--compress", "zlib", "--level", "9x", image, out)),
                (2, "expected 1 to 9", ("--compress", "zlib", "--level", "19", image, out)),
                (2, "without compression", ("--level", "3", image, out))):
            said = run(CAIRN, "image", "seal", *arguments, code=code).stderr.decode()
            self.assertIn(words, said)
        self.assertEqual(there.read_bytes(), b"mine")
        self.assertEqual(sorted(path.name for path in self.tmp.iterdir()),
                         ["i.qcow2", "i.raw", "there.qcow2"])


class Snapshots(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()
        base = self.tmp / "base.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", base, 16 * MIB)
        qemu.io(base, "write -q -P 77 0 8M")
        self.server.push(base, "vm:v1")

    def attach_disk(self, name="disk", ref="vm:v1"):
        disk = self.attach(self.server, ref, "--disk", self.tmp / name, name=f"attach-{name}")
        client = NbdClient(disk.socket)
        self.addCleanup(client.close)
        return disk, client

    def snapshot(self, ref, *arguments, name="disk", **options):
        return self.server.cairn("snapshot", *arguments, self.tmp / name, ref, **options)

    def top_layer(self, ref):
        """The layer as it is stored: its digest, and a file of its bytes."""
        digest = self.server.cairn("log", "--json", ref).json()["layers"][0]["digest"]
        repo = ref.split(":")[0]
        path = self.tmp / f"{digest[7:19]}.qcow2"
        path.write_bytes(self.server.http.get(f"/v2/{repo}/blobs/{digest}").body)
        return digest, path

    def local_files(self, name="disk"):
        return sorted(path.name for path in (self.tmp / name).glob("*-*.qcow2"))

    def test_compressed_snapshots_of_a_running_disk(self):
        """Each layer is compressed and clean; the guest, who goes on writing, and the service see the
        same before and after."""
        disk, client = self.attach_disk()
        content = bytearray(client.read(0, client.size))
        for number, compress in enumerate(("zstd", "zlib", "none", "zstd")):
            for _ in range(20):
                start, length = self.rng.randrange(12 * MIB), self.rng.randrange(1, 300 * KIB)
                data = self.rng.choice((self.rng.randbytes(length // 100 + 1) * 100, bytes(length),
                                        self.rng.randbytes(length)))[:length]
                client.write(start, data)
                content[start:start + length] = data
            # Only whole clusters are compressed, and without one the header has no use for zstd.
            data = self.rng.randbytes(128) * KIB
            client.write(13 * MIB, data)
            content[13 * MIB:13 * MIB + len(data)] = data
            self.snapshot(f"vm:s{number}", "--compress", compress)
            self.assertIsNone(first_difference(client.read(0, client.size), bytes(content)))
            self.assertIsNone(first_difference(self.server.http.data(f"vm:s{number}"),
                                               bytes(content)))
            _, layer = self.top_layer(f"vm:s{number}")
            qemu.check_active(layer)
            facts = run(CAIRN, "image", "info", "--json", layer).json()
            self.assertEqual(facts["compression"], "zstd" if compress == "zstd" else "zlib")
            self.assertEqual(self.local_files(), [])
        disk.stop()

    def test_same_content_same_layer(self):
        """Two guests that write the same in another order, in other pieces, over other contents."""
        blocks = {self.rng.randrange(4000) * 4 * KIB: self.rng.randbytes(4 * KIB)
                  for _ in range(200)}
        shuffled = self.rng.sample(sorted(blocks), len(blocks))
        layers = []
        for name, order in (("one", sorted(blocks)), ("two", shuffled)):
            disk, client = self.attach_disk(name)
            for start in order[::2] if name == "two" else ():
                client.write(start, self.rng.randbytes(4 * KIB))
            for start in order:
                client.write(start, blocks[start])
            self.snapshot(f"vm:{name}", "--compress", "zstd", name=name)
            layers.append(self.top_layer(f"vm:{name}")[0])
            disk.stop()
        self.assertEqual(*layers)

    def test_no_space_for_a_second_file(self):
        """The snapshot is made all the same, and says what it could not do.  (A limit on the size of
        files stands in for a full disk: what is sealed fits, since it is there.)"""
        disk, client = self.attach_disk()
        data = self.rng.randbytes(6 * MIB)
        client.write(0, data)
        disk.stop()
        said = run("sh", "-c", "trap '' XFSZ; ulimit -f 6144; exec \"$0\" snapshot \"$@\"", CAIRN,
                   self.tmp / "disk", "vm:v2", env={"CAIRN_SERVER": self.server.url})
        self.assertIn(b"sealed-1.qcow2: no space left to write it anew", said.stderr)
        self.assertIsNone(first_difference(self.server.http.data("vm:v2")[:len(data)], data))
        self.assertEqual(self.local_files(), [])


if __name__ == "__main__":
    main()
