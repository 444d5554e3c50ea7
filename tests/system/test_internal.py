#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots published as disks of their own, against `qemu-img convert -l`; bitmaps as the
command shows them."""

import json
import shutil

import qemu
from cairntest import CAIRN, Case, KIB, MIB, main, random_bytes, run, scaled, seeded
from proxy import Proxy

OVERHEAD = 128 * KIB  # of requests and manifests, generously


class Internal(Case):
    def setUp(self):
        super().setUp()
        self.rng = seeded(self.id())
        self.server = self.cairnd()
        self.proxy = Proxy(self.server.port)
        self.addCleanup(self.proxy.close)

    def image(self, options="cluster_size=64k", size=8 * MIB, name="vm.qcow2", backing=()):
        path = self.tmp / name
        qemu.img("create", "-q", "-f", "qcow2", "-o", options, *backing, path, size)
        return path

    def fill(self, path, start, length):
        """Random bytes, so that what is stored twice would be seen."""
        source = self.tmp / "source"
        source.write_bytes(random_bytes(self.rng, length))
        qemu.io(path, f"write -q -s {source} {start} {length}")

    def snapshot(self, path, name):
        qemu.img("snapshot", "-c", name, path)

    def expected(self, path, name):
        """A snapshot's content: applied to a copy, for `convert -l` of QEMU 7.2 has the size of the
        active disk; where the sizes agree, so must both."""
        copy, raw = path.with_name("copy.qcow2"), self.tmp / "expected.raw"
        shutil.copyfile(path, copy)
        qemu.img("snapshot", "-a", name, copy)
        content = qemu.convert(copy, raw)
        if len(content) == json.loads(qemu.img("info", "--output=json", path).stdout)["virtual-size"]:
            qemu.img("convert", "-l", f"snapshot.name={name}", "-O", "raw", path, raw)
            self.assertEqual(raw.read_bytes(), content)
        return content

    def push(self, *arguments):
        """Through the proxy; bytes that travelled to the server, and what was printed."""
        self.proxy.take()
        result = run(CAIRN, "push", *arguments, env={"CAIRN_SERVER": self.proxy.url})
        return self.proxy.take()[0], result.stdout.decode().splitlines()

    def push_all(self, path, names, ref="vm:v1"):
        """Push and compare every disk that comes of it."""
        sent, lines = self.push("--internal-all", path, ref)
        tag = ref.partition(":")[2]
        self.assertEqual([line.split(" ")[0] for line in lines[:-1]],
                         [f"{tag}-{name}" for name in names])
        for name in names:
            self.assertTrue(self.server.http.data(f"{ref}-{name}") == self.expected(path, name), name)
        self.assertTrue(self.server.http.data(ref) == qemu.convert(path, self.tmp / "active.raw"))
        return sent

    def pulled(self, ref):
        out = self.tmp / "pulled.raw"
        self.server.cairn("pull", "--raw", ref, out)
        content = out.read_bytes()
        out.unlink()
        return content

    def blob_bytes(self):
        return sum((self.server.store / name).stat().st_size for name in self.server.files()
                   if name.startswith("blobs/"))

    # -- Content -------------------------------------------------------------------------------------

    def test_every_snapshot_is_a_disk(self):
        for number, options in enumerate(("cluster_size=64k", "cluster_size=512",
                                          "compat=0.10,cluster_size=4k", "cluster_size=2M",
                                          "extended_l2=on,cluster_size=128k")):
            path = self.image(options, name=f"vm{number}.qcow2")
            self.fill(path, 0, 3 * MIB)
            self.snapshot(path, "one")
            self.fill(path, MIB + 512, 100 * KIB)
            qemu.io(path, "write -z 2M 300k", "discard 0 512k")
            self.snapshot(path, "two")
            self.snapshot(path, "same")
            self.fill(path, 7 * MIB, MIB)
            self.push_all(path, ["one", "two", "same"], f"vm{number}:v1")
        self.assertTrue(self.pulled("vm0:v1-two") == self.expected(self.tmp / "vm0.qcow2", "two"))

    def test_compressed_clusters(self):
        path = self.image("compression_type=zstd")
        qemu.io(path, "write -c -P 7 0 64k")
        qemu.io(path, "write -c -P 8 128k 64k")
        self.snapshot(path, "packed")
        qemu.io(path, "write -P 9 0 64k")
        self.push_all(path, ["packed"])

    def test_over_a_backing_chain(self):
        """Also where a later snapshot shows the backing file again."""
        base, middle = self.tmp / "base.raw", None
        base.write_bytes(random_bytes(self.rng, 6 * MIB))
        middle = self.image(name="middle.qcow2", backing=("-b", base.name, "-F", "raw"))
        self.fill(middle, 2 * MIB, MIB)
        path = self.image(backing=("-b", middle.name, "-F", "qcow2"), size=10 * MIB)
        self.snapshot(path, "empty")
        self.fill(path, MIB, 3 * MIB)
        qemu.io(path, "write -z 5M 200k")
        self.snapshot(path, "written")
        qemu.img("snapshot", "-a", "empty", path)
        self.fill(path, 9 * MIB, 64 * KIB)
        self.snapshot(path, "again")
        qemu.io(path, "write -z 0 10M")
        self.push_all(path, ["empty", "written", "again"])
        depth = len(json.loads(self.server.http.get("/v2/vm/manifests/v1-empty").body)["layers"])
        self.assertEqual(depth, 3, "the first shows other sizes than its backing file")

    def test_disks_that_grow_and_shrink(self):
        path = self.image("cluster_size=4k", 3 * MIB)
        self.fill(path, 0, 3 * MIB)
        self.snapshot(path, "small")
        qemu.img("resize", path, "9M")
        self.fill(path, 2 * MIB, 7 * MIB)
        self.snapshot(path, "large")
        qemu.img("resize", "--shrink", path, "1M")
        self.snapshot(path, "tiny")
        qemu.img("resize", path, "5M")
        self.push_all(path, ["small", "large", "tiny"])

    def test_sizes_over_a_longer_backing_file(self):
        """What a short snapshot hides of the backing file shows again in a longer one."""
        base = self.tmp / "base.raw"
        base.write_bytes(random_bytes(self.rng, 8 * MIB))
        path = self.image("cluster_size=4k", 8 * MIB, backing=("-b", base.name, "-F", "raw"))
        self.fill(path, MIB, MIB)
        self.snapshot(path, "whole")
        copy = self.tmp / "short.qcow2"
        shutil.copyfile(path, copy)
        qemu.img("resize", "--shrink", copy, "2M")
        self.snapshot(copy, "short")
        qemu.img("snapshot", "-a", "whole", copy)
        self.fill(copy, 0, 4 * KIB)
        self.snapshot(copy, "long")
        self.push_all(copy, ["whole", "short", "long"])

    def test_at_random(self):
        for number in range(scaled(2, 6, 60)):
            options = self.rng.choice(("cluster_size=64k", "cluster_size=512", "cluster_size=4k",
                                       "extended_l2=on,cluster_size=16k"))
            path = self.image(options, 4 * MIB, f"r{number}.qcow2")
            names = []
            for step in range(5):
                for _ in range(6):
                    start = self.rng.randrange(0, 4 * MIB - 512 * KIB, 512)
                    length = self.rng.randrange(512, 512 * KIB, 512)
                    verb = self.rng.choice((f"write -P {self.rng.randrange(1, 255)}", "write -z",
                                            "write -z -u", "discard"))
                    qemu.io(path, f"{verb} {start} {length}")
                names.append(f"s{step}")
                self.snapshot(path, names[-1])
                if self.rng.random() < 0.3:
                    qemu.img("snapshot", "-a", self.rng.choice(names), path)
            self.push_all(path, names, f"r{number}:v")

    # -- What is stored ------------------------------------------------------------------------------

    def test_what_snapshots_share_is_stored_once(self):
        path = self.image(size=64 * MIB)
        self.fill(path, 0, 24 * MIB)
        names = []
        for number in range(4):
            names.append(f"s{number}")
            self.snapshot(path, names[-1])
            self.fill(path, number * 4 * MIB, MIB)
        self.push_all(path, names)
        self.assertLess(self.blob_bytes(), 24 * MIB + 4 * MIB + 5 * MIB)

    def test_also_what_a_reverted_image_shares(self):
        """Each snapshot stands on the one that it differs from least."""
        path = self.image(size=64 * MIB)
        self.fill(path, 0, 16 * MIB)
        self.snapshot(path, "clean")
        for name in ("a", "b", "c"):
            self.fill(path, 0, 4 * MIB)
            self.snapshot(path, name)
            qemu.img("snapshot", "-a", "clean", path)
        self.push_all(path, ["clean", "a", "b", "c"])
        self.assertLess(self.blob_bytes(), 16 * MIB + 3 * 4 * MIB + 5 * MIB)
        manifests = [json.loads(self.server.http.get(f"/v2/vm/manifests/v1{tag}").body)
                     for tag in ("", "-clean", "-a", "-b", "-c")]
        self.assertEqual([len(m["layers"]) for m in manifests], [1, 1, 2, 2, 2])

    def test_a_second_push_sends_nothing(self):
        path = self.image(size=64 * MIB)
        self.fill(path, 0, 8 * MIB)
        self.snapshot(path, "one")
        self.fill(path, 4 * MIB, MIB)
        self.assertGreater(self.push_all(path, ["one"]), 9 * MIB)
        before = self.server.files()
        self.assertLess(self.push_all(path, ["one"]), OVERHEAD)
        self.assertEqual(self.server.files(), before)
        self.snapshot(path, "two")
        self.fill(path, 20 * MIB, MIB)
        self.assertLess(self.push_all(path, ["one", "two"]), MIB + MIB + OVERHEAD)

    def test_one_snapshot_by_itself(self):
        path = self.image()
        self.fill(path, 0, 4 * MIB)
        self.snapshot(path, "one")
        self.fill(path, 0, 4 * MIB)
        self.snapshot(path, "two")
        sent, lines = self.push("--internal", "two", path, "vm:two")
        self.assertLess(sent, 4 * MIB + MIB)
        body = self.server.http.get("/v2/vm/manifests/two").body
        self.assertEqual(len(json.loads(body)["layers"]), 1)
        self.assertRegex(lines[-1], "^vm@sha256:[0-9a-f]{64}$")
        self.assertTrue(self.pulled("vm:two") == self.expected(path, "two"))
        self.push("--internal", "1", path, "vm:by-id")
        self.assertTrue(self.pulled("vm:by-id") == self.expected(path, "one"))

    # -- Names ---------------------------------------------------------------------------------------

    def test_names_become_tags(self):
        path = self.image(size=MIB)
        for name in ("nightly 2026/11/23", "a b", "a:b", "café"):
            self.snapshot(path, name)
        lines = self.push("--internal-all", path, "vm")[1]
        self.assertEqual([line.split(" ")[0] for line in lines[:-1]],
                         ["latest-nightly-2026-11-23", "latest-a-b-2", "latest-a-b-3",
                          "latest-caf--"])
        tags = json.loads(self.server.http.get("/v2/vm/tags/list").body)["tags"]
        self.assertEqual(len(tags), 5)

    def test_names_that_collide_even_so_are_refused(self):
        path = self.image(size=MIB)
        for name in ("a b", "a:b", "a-b-1"):
            self.snapshot(path, name)
        said = self.server.cairn("push", "--internal-all", path, "vm:v1", code=1).stderr.decode()
        self.assertIn('would both become tag v1-a-b-1', said)
        self.assertEqual(self.server.http.get("/v2/vm/tags/list").status, 404)

    def test_refusals(self):
        path = self.image(size=MIB)
        raw = self.tmp / "disk.raw"
        raw.write_bytes(bytes(MIB))
        said = self.server.cairn("push", "--internal", "gone", path, "vm:v1", code=1).stderr.decode()
        self.assertIn('none of its 0 snapshots has the name or ID "gone"', said)
        self.server.cairn("push", "--internal", "a", "--internal-all", path, "vm:v1", code=2)
        self.server.cairn("push", "--format", "raw", "--internal", "a", raw, "vm:v1", code=2)
        self.server.cairn("push", "--internal-all", raw, "vm:v1", code=1)
        self.server.cairn("push", "--internal-all", path, "vm@sha256:" + 64 * "0", code=2)

    # -- Of a published disk -------------------------------------------------------------------------

    def assert_reads_as(self, path, ref, names):
        """Maps and content of a published image's snapshots are those of the local file."""
        for name in names:
            content, copy = self.expected(path, name), path.with_name("copy.qcow2")
            ours = self.server.cairn("map", "--json", "--internal", name, ref).json()
            self.assertIsNone(qemu.first_extent_difference(ours, qemu.extent_map(copy)), name)
            flat, raw = self.tmp / "flat.qcow2", self.tmp / "flat.raw"
            self.server.cairn("pull", "--internal", name, ref, flat)
            self.server.cairn("pull", "--raw", "--internal", name, ref, raw)
            qemu.check(flat)
            self.assertTrue(qemu.convert(flat, self.tmp / "flat.out") == content, name)
            self.assertTrue(raw.read_bytes() == content, name)
            flat.unlink()
            raw.unlink()

    def test_snapshots_of_a_published_disk(self):
        for number, options in enumerate(("cluster_size=64k", "cluster_size=512",
                                          "compat=0.10,cluster_size=4k", "cluster_size=2M",
                                          "extended_l2=on,cluster_size=128k")):
            path = self.image(options, name=f"vm{number}.qcow2")
            self.fill(path, 0, 3 * MIB)
            self.snapshot(path, "one")
            self.fill(path, MIB + 512, 100 * KIB)
            qemu.io(path, "write -z 2M 300k", "discard 0 512k")
            self.snapshot(path, "two")
            if "compat" not in options:  # QEMU does not resize version 2 with snapshots
                qemu.img("resize", path, "9M")
            self.fill(path, 7 * MIB, MIB)
            self.snapshot(path, "later")
            self.fill(path, 0, 4 * MIB)
            self.server.push(path, f"vm{number}:v1")
            self.assert_reads_as(path, f"vm{number}:v1", ["one", "two", "later"])

    def test_snapshots_of_a_published_chain(self):
        """Compressed clusters, a backing chain of another size, a snapshot by its ID."""
        base = self.tmp / "base.qcow2"
        source = self.tmp / "base.raw"
        source.write_bytes(random_bytes(self.rng, 2 * MIB) + bytes(64 * KIB) + b"c" * 4 * MIB)
        qemu.img("convert", "-c", "-O", "qcow2", source, base)
        middle = self.image(name="middle.qcow2", backing=("-b", base.name, "-F", "qcow2"))
        self.fill(middle, MIB, MIB)
        path = self.image("compression_type=zstd", 10 * MIB,
                          backing=("-b", middle.name, "-F", "qcow2"))
        self.snapshot(path, "empty")
        qemu.io(path, "write -c -P 7 0 64k")
        qemu.io(path, "write -c -P 8 9M 64k")
        qemu.io(path, "write -z 5M 200k")
        self.snapshot(path, "written")
        qemu.io(path, "write -P 9 0 10M")
        self.server.push(path, "vm:v1")
        self.assert_reads_as(path, "vm:v1", ["empty", "written"])
        by_id = self.server.cairn("map", "--json", "--internal", "2", "vm:v1").stdout
        by_name = self.server.cairn("map", "--json", "--internal", "written", "vm:v1").stdout
        self.assertEqual(by_id, by_name)

    def test_a_map_of_a_published_snapshot_reads_tables_alone(self):
        path = self.image(size=64 * MIB)
        self.fill(path, 0, 16 * MIB)
        self.snapshot(path, "one")
        self.fill(path, 0, 16 * MIB)
        self.server.push(path, "vm:v1")
        self.proxy.take()
        run(CAIRN, "map", "--internal", "one", "vm:v1", env={"CAIRN_SERVER": self.proxy.url})
        self.assertLess(self.proxy.take()[1], MIB)

    def test_info_lists_snapshots_of_a_published_disk(self):
        path = self.image()
        self.snapshot(path, "one")
        self.server.push(path, "vm:v1")
        local = run(CAIRN, "image", "info", "--json", path).json()["snapshots"]
        self.assertEqual(self.server.cairn("info", "--json", "vm:v1").json()["snapshots"], local)
        self.assertRegex(self.server.cairn("info", "vm:v1").stdout.decode(),
                         r"snapshot: +one \(ID 1, ")

    def test_refusals_of_published_disks(self):
        path, raw = self.image(size=MIB), self.tmp / "disk.raw"
        raw.write_bytes(bytes(MIB))
        self.server.push(path, "vm:v1")
        self.server.push(raw, "raw:v1")
        out = self.tmp / "out"
        for arguments, code, words in (
                (("map", "--internal", "gone", "vm:v1"), 1, 'has the name or ID "gone"'),
                (("pull", "--internal", "gone", "vm:v1", out), 1, 'has the name or ID "gone"'),
                (("map", "--internal", "one", "raw:v1"), 2, "it has no snapshots"),
                (("pull", "--chain", "--internal", "one", "vm:v1", out), 2, "exclude each other")):
            said = self.server.cairn(*arguments, code=code).stderr.decode()
            self.assertIn(words, said)
            self.assertFalse(out.exists())

    # -- Without a service ---------------------------------------------------------------------------

    def test_map_of_a_snapshot(self):
        base = self.tmp / "base.qcow2"
        qemu.img("create", "-q", "-f", "qcow2", base, "8M")
        self.fill(base, 0, MIB)
        path = self.image(backing=("-b", base.name, "-F", "qcow2"))
        self.fill(path, 2 * MIB, MIB)
        self.snapshot(path, "one")
        self.fill(path, 2 * MIB, 2 * MIB)
        ours = run(CAIRN, "image", "map", "--internal", "one", "--json", path).json()
        copy = self.tmp / "copy.qcow2"
        shutil.copyfile(path, copy)
        qemu.img("snapshot", "-a", "one", copy)
        self.assertIsNone(qemu.first_extent_difference(ours, qemu.extent_map(copy)))

    def test_info_lists_snapshots_and_bitmaps(self):
        path = self.image()
        self.snapshot(path, "one")
        qemu.img("bitmap", "--add", "-g", "32k", path, "b0")
        info = run(CAIRN, "image", "info", "--json", path).json()
        theirs = json.loads(qemu.img("info", "--output=json", path).stdout)["snapshots"][0]
        ours = info["snapshots"][0]
        self.assertEqual((ours["id"], ours["name"], ours["dateSeconds"], ours["vmStateSize"],
                          ours["virtualSize"]),
                         (theirs["id"], theirs["name"], theirs["date-sec"], theirs["vm-state-size"],
                          8 * MIB))
        bitmap = info["bitmaps"][0]
        self.assertEqual((bitmap["name"], bitmap["granularity"], bitmap["flags"], bitmap["auto"],
                          bitmap["inUse"]), ("b0", 32 * KIB, 2, True, False))
        text = run(CAIRN, "image", "info", path).stdout.decode()
        self.assertRegex(text, r"snapshot: +one \(ID 1, \d{4}-\d\d-\d\d .* UTC, disk 8.*, VM state 0")
        self.assertRegex(text, r"bitmap: +b0 \(granularity 32.*, flags: auto\)")

    def test_dirty_ranges_of_a_bitmap(self):
        path = self.image()
        qemu.img("bitmap", "--add", "-g", "64k", path, "b0")
        qemu.io(path, "write 100k 1k", "write 1M 128k")
        ranges = [{"start": 64 * KIB, "length": 64 * KIB}, {"start": MIB, "length": 128 * KIB}]
        self.assertEqual(run(CAIRN, "image", "bitmap", "--json", path, "b0").json(), ranges)
        text = run(CAIRN, "image", "bitmap", path, "b0").stdout.decode()
        self.assertEqual(text.splitlines()[1].split(), ["0x10000", "0x10000"])
        said = run(CAIRN, "image", "bitmap", path, "gone", code=1).stderr.decode()
        self.assertIn('none of its 1 bitmaps has the name "gone"', said)

    def test_a_bitmap_that_was_not_saved(self):
        """Its writer was killed: QEMU leaves the mark, we say what it means."""
        path = self.image()
        qemu.img("bitmap", "--add", path, "b0")
        self.assertEqual(run(CAIRN, "image", "bitmap", "--json", path, "b0").json(), [])
        run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "abort", path, code=None)
        bitmap = run(CAIRN, "image", "info", "--json", path).json()["bitmaps"][0]
        self.assertTrue(bitmap["inUse"])
        self.assertIn("in use", bitmap["unusable"])
        self.assertIn("in-use", run(CAIRN, "image", "info", path).stdout.decode())
        result = run(CAIRN, "image", "bitmap", path, "b0", code=1)
        self.assertEqual(result.stdout, b"")
        self.assertIn('bitmap "b0": marked as in use', result.stderr.decode())

    def test_push_keeps_snapshots_and_bitmaps(self):
        """A plain push sends the bytes as they are."""
        path = self.image()
        self.snapshot(path, "one")
        qemu.img("bitmap", "--add", path, "b0")
        self.server.push(path, "vm:v1")
        self.server.cairn("pull", "--chain", "vm:v1", self.tmp / "chain")
        info = run(CAIRN, "image", "info", "--json", self.tmp / "chain" / "top.qcow2").json()
        self.assertEqual([s["name"] for s in info["snapshots"]], ["one"])
        self.assertEqual([b["name"] for b in info["bitmaps"]], ["b0"])


if __name__ == "__main__":
    main()
