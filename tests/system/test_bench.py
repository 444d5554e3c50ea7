#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Benches run, and what they print makes sense; how fast anything is, is not asked here."""

import sys
import xml.etree.ElementTree

from cairntest import BUILD, Case, ROOT, main, run


class Benches(Case):
    def test_depth(self):
        """Two depths, tiny; that the content is right is what the bench looks at by itself."""
        out = self.folder("out")
        run(sys.executable, ROOT / "tests" / "bench" / "depth.py", "--quick", "--dir", self.tmp,
            "--out", out, env={"CAIRN_BUILD": str(BUILD)}, timeout=300)
        self.assertEqual([path.name for path in self.tmp.iterdir()], ["out"])
        self.check_figures(run("cat", out / "depth.json").json())
        plot = xml.etree.ElementTree.parse(out / "depth.svg").getroot()
        self.assertEqual(len(plot.findall(".//{*}polyline")), 4 * 3 + 3)  # panels, legend

    def check_figures(self, figures):
        self.assertEqual([entry["depth"] for entry in figures["depths"]], [1, 4])
        self.assertEqual(figures["warmTraffic"], {"requests": 0, "bytes": 0})
        self.assertEqual(list(figures["nbdkit"]), ["file", "memory"])
        for way in figures["nbdkit"].values():
            self.assertGreater(min(way["randomReads"], way["bytesPerSecond"]), 0)
        for entry in figures["depths"]:
            cold, warm, qemu = entry["cairn"]["cold"], entry["cairn"]["warm"], entry["qemu"]
            self.assertGreater(min(entry["files"]["randomReads"], entry["files"]["bytesPerSecond"]), 0)
            self.assertEqual(cold["attach"]["requests"], 1)
            self.assertGreaterEqual(cold["full"]["bytes"], figures["sizeMiB"] << 20)
            for measured in (cold, warm, qemu):
                for what in ("attachSeconds", "randomReads", "bytesPerSecond"):
                    self.assertGreater(measured[what], 0)
            self.assertGreater(min(warm["residentBytes"], qemu["residentBytes"]), 1 << 20)

    def test_fleet(self):
        """Clients that start the same disk at the same time fetch each byte once.  The bench itself
        fails on a wrong byte, and if a server that starts cold reads tables."""
        answer = run(sys.executable, ROOT / "tests" / "bench" / "fleet.py", "--quick", "--json",
                     env={"CAIRN_BUILD": str(BUILD), "TMPDIR": str(self.tmp)})
        self.assertEqual(list(self.tmp.iterdir()), [])
        figures = answer.json()
        self.assertEqual(len(figures["rows"]), 8)
        for row in figures["rows"]:
            with self.subTest(clients=row["clients"], cache=row["hostCache"], redis=row["redis"]):
                self.check_row(row, figures["bytes"])
        for first in figures["firstReads"]:
            self.assertEqual(first["layerBytes"], first["bytes"])

    def check_row(self, row, nr_bytes):
        if not row["hostCache"]:
            self.assertGreaterEqual(row["layerBytes"], nr_bytes * row["clients"] * 0.9)
        elif row["clients"] == 1:
            self.assertEqual(row["timesFetched"], 1)
        else:  # who waits too long for another client's fetch makes it, too
            self.assertLess(row["timesFetched"], 1.1)
        self.assertEqual(row["hitRates"]["redis"] is not None, row["redis"])


if __name__ == "__main__":
    main()
