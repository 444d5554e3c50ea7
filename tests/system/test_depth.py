#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A thousand layers, pushed one by one.  Prints what the first and the last ten pushes cost."""

import time

import qemu
from cairntest import (CAIRN, Case, KIB, MIB, Parallel, first_difference, main, run, scaled, seeded)
from nbdclient import NbdClient
from proxy import Proxy

SIZE, CLUSTER, WRITES = 128 * MIB, 64 * KIB, 4


class Depth(Case):
    def make_layer(self, number):
        """A stand-alone image with a few whole clusters; its backing name comes later, so that QEMU
        need not open what is beneath."""
        rng = seeded(f"depth layer {number}")
        path = self.tmp / f"layer{number}.qcow2"
        source = self.tmp / f"source{number}"
        source.write_bytes(rng.randbytes(CLUSTER))
        writes = [(rng.randrange(SIZE // CLUSTER) * CLUSTER, rng.random() < 0.1)
                  for _ in range(WRITES)]
        qemu.img("create", "-q", "-f", "qcow2", path, SIZE)
        qemu.io(path, *(f"write -q {'-z' if zero else f'-s {source}'} {off} {CLUSTER}"
                        for off, zero in writes))
        self.content[number] = [(off, bytes(CLUSTER) if zero else source.read_bytes())
                                for off, zero in writes]
        source.unlink()
        if number:
            qemu.img("rebase", "-u", "-b", f"layer{number - 1}.qcow2", "-F", "qcow2", path)

    def make_chain(self, depth):
        self.content = {}
        Parallel(2).each(self.make_layer, range(depth))
        disk = bytearray(SIZE)
        for number in range(depth):
            for off, data in self.content[number]:
                disk[off:off + CLUSTER] = data
        return bytes(disk)

    def push_all(self, depth):
        """Seconds and bytes of each push."""
        costs = []
        for number in range(depth):
            self.proxy.take()
            begun = time.monotonic()
            run(CAIRN, "push", self.tmp / f"layer{number}.qcow2", "deep:top",
                env={"CAIRN_SERVER": self.proxy.url})
            costs.append((time.monotonic() - begun, self.proxy.take()[0]))
        return costs

    def print_costs(self, costs):
        for name, part in (("first", costs[:10]), ("last", costs[-10:])):
            seconds = sum(cost[0] for cost in part) / len(part)
            sent = sum(cost[1] for cost in part) / len(part)
            print(f"      {name} {len(part)} pushes of {len(costs)}: {seconds * 1000:.0f} ms and "
                  f"{sent / KIB:.0f} KiB each", flush=True)

    def test_thousand_layers(self):
        depth = scaled(100, 1000, 3000)
        expected = self.make_chain(depth)
        server = self.cairnd()
        self.proxy = Proxy(server.port)
        self.addCleanup(self.proxy.close)
        costs = self.push_all(depth)
        self.print_costs(costs)
        self.assertEqual(server.http.get("/v1/disks/deep:top").json()["depth"], depth)
        self.assertIsNone(first_difference(server.http.data("deep:top"), expected))
        self.read_through_client(server, expected)
        self.last_pushes_sent_only_their_layer(costs, depth)

    def read_through_client(self, server, expected):
        disk = self.attach(server, "deep:top", "--read-only")
        client = NbdClient(disk.socket)
        got = b"".join(client.read(off, MIB) for off in range(0, SIZE, MIB))
        client.close()
        self.assertIsNone(first_difference(got, expected))

    def last_pushes_sent_only_their_layer(self, costs, depth):
        """Bytes do not grow with the depth, but for the manifest and asking which blobs are there."""
        per_layer = 1 * KIB
        first = max(sent for _, sent in costs[:10])
        last = max(sent for _, sent in costs[-10:])
        self.assertLess(last, first + depth * per_layer + WRITES * CLUSTER)


if __name__ == "__main__":
    main()
