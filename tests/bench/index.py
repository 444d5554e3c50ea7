# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/index: runs bench_index, pinned to one core, and prints what it measured.

The peers answer the same questions in the same run over a sorted array of structs of 24 bytes: libc's
bsearch(), a binary search by halves without branches, and a tree of libc's tsearch().  Times of look-ups
and of the codec are the thread's own, medians of the rounds; "best" is the fastest round, which on a
machine with other work is nearer to what the code can do.  Times of the merge are wall clock, on all cores.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

SIZES = (1_000, 10_000, 100_000, 1_000_000)
# Look-ups per second, {extents: (single, batch)}; seconds to merge; bytes in memory.
GOALS = {1_000: (50e6, 200e6), 1_000_000: (10e6, 60e6)}
MERGE_GOAL, MEMORY_GOAL = 1.0, 16
PLAIN = ("bsearch", "binary", "tree")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/index")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over these (7)")
    parser.add_argument("--depth", type=int, default=1000, help="layers to merge (1000)")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)),
                        help="core for the look-ups (the last)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    if options.rounds < 1 or options.depth < 1 or options.core not in os.sched_getaffinity(0):
        parser.error("--rounds and --depth must be at least 1, --core one that may be used")
    return options


def bench(*arguments, core=None):
    """Runs bench_index; a list of what it printed."""
    program = pathlib.Path(os.environ["CAIRN_BUILD"]) / "bin" / "bench_index"
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    result = subprocess.run([program, *map(str, arguments)], stdout=subprocess.PIPE, check=False,
                            preexec_fn=pin)
    if result.returncode:
        sys.exit(1)
    return [json.loads(line) for line in result.stdout.splitlines()]


def measure(options):
    lookups, sizes = [], []
    for extents in SIZES:
        lookups += bench("lookups", extents, options.rounds, core=options.core)
        sizes += bench("sizes", extents, options.rounds, core=options.core)
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as folder:
        bench("make", folder, options.depth)
        *merged, merge = bench("merge", folder, options.depth, options.rounds)
    return {"lookups": lookups, "sizes": sizes + merged, "merge": merge}


# -- Tables ---------------------------------------------------------------------------------------

def cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown processor"


def million(value):
    return f"{value / 1e6:,.1f}"


def goal(extents, way):
    place = {"single": 0, "batch": 1}.get(way)
    return million(GOALS[extents][place]) if extents in GOALS and place is not None else ""


def print_lookups(figures, queries):
    rows = {}
    for f in figures:
        if f["queries"] == queries:
            rows.setdefault((f["way"], f["isa"]), {})[f["extents"]] = f
    print(f"million look-ups per second, {queries}: median (best)\n")
    print(f"{'':22}" + "".join(f"{extents:>20,}" for extents in SIZES))
    for (way, isa), row in rows.items():
        cells = (f"{million(row[n]['perSecond'])} ({million(row[n]['best'])})" for n in SIZES)
        print(f"{way + (', ' + isa if isa else ''):22}" + "".join(f"{cell:>20}" for cell in cells))
    for way in ("single", "batch"):
        print(f"{'goal, ' + way:22}" + "".join(f"{goal(n, way):>20}" for n in SIZES))
    print()


def print_sizes(figures):
    print(f"{'bytes per extent':22}{'extents':>12}{'memory':>9}{'Redis':>9}{'wire':>9}"
          f"{'encode ns':>12}{'decode ns':>12}")
    for f in figures:
        print(f"{f['what']:22}{f['extents']:>12,}{f['memory']:>9.2f}{f['redis']:>9.2f}"
              f"{f['wire']:>9.2f}{f['encodeNs']:>12.1f}{f['decodeNs']:>12.1f}")
    print(f"{'goal':22}{'':>12}{MEMORY_GOAL:>9}\n")


def print_tables(figures):
    print(f"{cpu()}, {os.cpu_count()} cores\n")
    for queries in ("uniform", "zipf"):
        print_lookups(figures["lookups"], queries)
    print_sizes(figures["sizes"])
    merge = figures["merge"]
    print(f"merging {merge['depth']:,} layers, their files opened and their tables read: "
          f"{merge['warmSeconds']:.2f} s from the page cache, {merge['coldSeconds']:.2f} s from the "
          f"disk, {merge['cpuSeconds']:.2f} s of processor (goal {MERGE_GOAL:g} s)")


def main():
    options = parse_arguments()
    figures = measure(options)
    if options.json:
        print(json.dumps({"bench": "index", "cpu": cpu(), "rounds": options.rounds, **figures,
                          "time": int(time.time())}, indent=2))
    else:
        print_tables(figures)


if __name__ == "__main__":
    main()
