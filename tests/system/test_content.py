#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Content and mapping of chains that QEMU made at random: what cairnd says equals what qemu-img
says, whichever way one asks."""

import hashlib

import qemu
from cairntest import (CAIRN, Case, Parallel, SEED, first_difference, main, run, scaled, seeded)


class Content(Case):
    def check_chain(self, server, number):
        """One chain, from its seed to all comparisons; a failure says how the chain was made."""
        rng = seeded(f"chain {number}")
        folder = self.folder(f"chain{number}")
        chain = qemu.RandomChain(rng, folder)
        try:
            expected = qemu.convert(chain.top, folder / "oracle.raw", chain.top_format)
            ref = f"chains/c{number}:v1"
            server.push(chain.top, ref, "--format", chain.top_format)
            self.check_data(server, ref, expected)
            self.check_ranges(server, ref, expected, rng)
            self.check_extents(server, ref, chain, len(expected), rng)
            if number % 10 == 0:
                self.check_client(server, ref, chain, folder, expected)
        except BaseException as error:
            raise AssertionError(f"chain {number} of seed {SEED}:\n{chain.describe()}\n"
                                 f"{error}") from error
        finally:
            run("rm", "-rf", folder)

    def check_data(self, server, ref, expected):
        difference = first_difference(server.http.data(ref), expected)
        self.assertIsNone(difference, f"GET data: {difference}")

    def check_ranges(self, server, ref, expected, rng):
        for _ in range(5):
            first = rng.randrange(len(expected))
            last = min(len(expected) - 1, first + rng.choice((0, 511, 4095, 70000, 1 << 21)))
            answer = server.http.get(f"/v1/disks/{ref}/data", Range=f"bytes={first}-{last}")
            self.assertEqual(answer.status, 206)
            self.assertEqual(answer.headers["Content-Range"],
                             f"bytes {first}-{last}/{len(expected)}")
            difference = first_difference(answer.body, expected[first:last + 1])
            self.assertIsNone(difference, f"GET data {first}-{last}: {difference}")

    def check_extents(self, server, ref, chain, size, rng):
        theirs = qemu.extent_map(chain.top)
        difference = qemu.first_extent_difference(server.http.extents(ref), theirs)
        self.assertIsNone(difference, f"GET extents: {difference}")
        start = rng.randrange(size)
        length = rng.randint(1, size - start)
        part = server.http.extents(ref, f"?start={start}&length={length}")
        difference = qemu.first_extent_difference(part, cut(theirs, start, length))
        self.assertIsNone(difference, f"GET extents of {start}+{length}: {difference}")

    def check_client(self, server, ref, chain, folder, expected):
        """The same through the client: pulled three ways, and mapped."""
        flat, raw, copy = folder / "flat.qcow2", folder / "pulled.raw", folder / "layers"
        server.cairn("pull", ref, flat)
        qemu.check(flat)
        self.assertIsNone(first_difference(qemu.convert(flat, folder / "flat.raw"), expected))
        server.cairn("pull", "--raw", ref, raw)
        self.assertIsNone(first_difference(raw.read_bytes(), expected))
        server.cairn("pull", "--chain", ref, copy)
        self.check_pulled_layers(copy, chain, folder, expected)
        theirs = qemu.extent_map(chain.top)
        ours = server.cairn("map", "--json", ref).json()
        self.assertIsNone(qemu.first_extent_difference(ours, theirs), "cairn map")
        ours = run(CAIRN, "image", "map", "--json", "--format", chain.top_format, chain.top).json()
        self.assertIsNone(qemu.first_extent_difference(ours, theirs), "cairn image map")

    def check_pulled_layers(self, copy, chain, folder, expected):
        """A pulled chain opens in QEMU and shows the same."""
        tops = [path for path in copy.iterdir() if path.name.startswith("top.")]
        self.assertEqual(len(tops), 1, list(copy.iterdir()))
        opened = qemu.convert(tops[0], folder / "copy.raw", chain.top_format)
        self.assertIsNone(first_difference(opened, expected))

    def test_random_chains(self):
        """At least 200 chains: GET data is `qemu-img convert -O raw`, GET extents is `qemu-img
        map`."""
        server = self.cairnd()
        Parallel(2).each(lambda number: self.check_chain(server, number),
                         range(scaled(30, 200, 3000)))

    def test_blobs_are_what_was_pushed(self):
        """Layers are stored byte for byte as QEMU wrote them, under their SHA-256."""
        server = self.cairnd()
        chain = qemu.RandomChain(seeded("blobs"), self.tmp)
        server.push(chain.top, "blobs:v1", "--format", chain.top_format)
        manifest = server.http.get("/v2/blobs/manifests/v1").json()
        for path, layer in zip(chain.layers, manifest["layers"], strict=True):
            data = path.read_bytes()
            self.assertEqual(layer["size"], len(data))
            self.assertEqual(layer["digest"], "sha256:" + hashlib.sha256(data).hexdigest())
            self.assertEqual(server.http.get(f"/v2/blobs/blobs/{layer['digest']}").body, data)


def cut(extents, start, length):
    """The part of a map that lies in a range."""
    part = []
    for entry in extents:
        first = max(entry["start"], start)
        last = min(entry["start"] + entry["length"], start + length)
        if first < last:
            entry = dict(entry, start=first, length=last - first,
                         **({"offset": entry["offset"] + first - entry["start"]}
                            if "offset" in entry else {}))
            part.append(entry)
    return part


if __name__ == "__main__":
    main()
