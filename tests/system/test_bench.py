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
            "--out", out, env={"CAIRN_BUILD": str(BUILD)}, timeout=60)
        self.assertEqual([path.name for path in self.tmp.iterdir()], ["out"])
        self.check_figures(run("cat", out / "depth.json").json())
        plot = xml.etree.ElementTree.parse(out / "depth.svg").getroot()
        self.assertEqual(len(plot.findall(".//{*}polyline")), 4 * 3 + 3)  # panels, legend

    def check_figures(self, figures):
        self.assertEqual([entry["depth"] for entry in figures["depths"]], [1, 4])
        self.assertEqual(figures["warmTraffic"], {"requests": 0, "bytes": 0})
        for entry in figures["depths"]:
            cold, warm, qemu = entry["cairn"]["cold"], entry["cairn"]["warm"], entry["qemu"]
            self.assertEqual(cold["attach"]["requests"], 1)
            self.assertGreaterEqual(cold["full"]["bytes"], figures["sizeMiB"] << 20)
            for measured in (cold, warm, qemu):
                for what in ("attachSeconds", "randomReads", "bytesPerSecond"):
                    self.assertGreater(measured[what], 0)
            self.assertGreater(min(warm["residentBytes"], qemu["residentBytes"]), 1 << 20)


if __name__ == "__main__":
    main()
