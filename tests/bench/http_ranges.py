# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/http: wrk asks cairnd for ranges of a blob and of disks, and nginx for the same
ranges of a file with the same bytes, in turns.

Each pair of measurements lies next to each other in time, and its ratio is taken before the median, so that a
machine that slows down slows both.  Who of the two is first changes from round to round.  All bytes are in
the page cache; both servers use two threads (or processes) to send, and keep no log of requests unless
--log asks for one, which both then write to a file, line by line.  nginx keeps its files open, as cairnd
does.  Before the clock runs each answer is compared, byte for byte, at some places.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "system"))
from cairntest import Cairnd, KIB, MIB, private_home, run  # noqa: E402
from deep_chain import DeepChain  # noqa: E402
from nginx import Nginx  # noqa: E402

LUA = pathlib.Path(__file__).with_name("http_ranges.lua")
TICKS = os.sysconf("SC_CLK_TCK")
GOALS = {"blob": 0.9, "data": 0.8}  # of nginx, at 64 KiB
RANGES = {  # name: (length, alignment); 0: all of it
    "64 KiB": (64 * KIB, 64 * KIB),
    "64 KiB, at 4 KiB": (64 * KIB, 4 * KIB),
    "4 KiB": (4 * KIB, 4 * KIB),
    "1 MiB": (MIB, MIB),
    "whole": (0, 1),
}


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/http")
    parser.add_argument("--size", type=int, default=256, help="MiB of the disk (256)")
    parser.add_argument("--depth", type=int, default=1000, help="layers of the deep disk (1000)")
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement (1)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over these (5)")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--subjects", nargs="*", help="some of: blob raw qcow2 deep")
    parser.add_argument("--ranges", nargs="*", choices=RANGES, default=list(RANGES))
    parser.add_argument("--log", action="store_true", help="both keep a log of requests")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


# -- What is asked ------------------------------------------------------------------------------------

class Subject:
    """Bytes that both servers have: a blob, or a disk."""

    def __init__(self, name, kind, path, file):
        self.name, self.kind, self.path, self.file = name, kind, path, file
        self.size = file.stat().st_size


def blob_of(server, ref):
    """Path and file of the one layer of a disk."""
    manifest = server.http.get(f"/v2/{ref.replace(':', '/manifests/')}").json()
    digest = manifest["layers"][0]["digest"]
    hexadecimal = digest.partition(":")[2]
    return (f"/v2/{ref.partition(':')[0]}/blobs/{digest}",
            server.store / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal)


def random_file(path, nr_bytes):
    generator = random.Random(1)
    with open(path, "wb") as out:
        for _ in range(nr_bytes // MIB):
            out.write(generator.randbytes(MIB))


def make_shallow(server, folder, options):
    """One file of random bytes, as a raw disk, as a qcow2 disk, and the latter's blob."""
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    random_file(raw, options.size * MIB)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    server.push(raw, "bench:raw", "--format=raw")
    server.push(qcow2, "bench:qcow2")
    path, stored = blob_of(server, "bench:qcow2")
    qcow2.unlink()
    qcow2.symlink_to(stored)  # the same file
    return [Subject("blob", "blob", path, qcow2),
            Subject("disk, raw", "data", "/v1/disks/bench:raw/data", raw),
            Subject("disk, qcow2", "data", "/v1/disks/bench:qcow2/data", raw)]


def make_deep(server, folder, options):
    chain = DeepChain(folder, "sparse", options.size * MIB, 0)
    chain.publish(server, options.depth)
    flat = folder / "deep.raw"
    flat.write_bytes(server.http.data(chain.ref(options.depth)))
    return Subject(f"disk, {options.depth} layers", "data",
                   f"/v1/disks/{chain.ref(options.depth)}/data", flat)


def make_subjects(server, folder, options):
    subjects = make_shallow(server, folder, options)
    if not options.subjects or "deep" in options.subjects:
        subjects.append(make_deep(server, folder, options))
    return [s for s in subjects
            if not options.subjects or any(word in s.name + " deep" * ("layers" in s.name)
                                           for word in options.subjects)]


def check(subject, servers, seed):
    """Both answer what the file holds, at some places."""
    generator = random.Random(seed)
    for _ in range(16):
        first = generator.randrange(subject.size - 64 * KIB) // (4 * KIB) * (4 * KIB)
        with open(subject.file, "rb") as file:
            file.seek(first)
            wanted = file.read(64 * KIB)
        for server, path in servers:
            answer = server.http.get(path, Range=f"bytes={first}-{first + 64 * KIB - 1}")
            if answer.status != 206 or answer.body != wanted:
                raise SystemExit(f"{server.url}{path} at {first}: status {answer.status}, "
                                 "or not the bytes that were expected")


# -- Measuring ----------------------------------------------------------------------------------------

def processor_seconds(pid):
    """Used by a process and its children, so far."""
    pids = [pid, *map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    stats = (pathlib.Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split() for p in pids)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS


def measure(options, server, path, subject, length, align, connections, seed):
    before = processor_seconds(server.pid)
    result = run("wrk", "-t1", f"-c{connections}", f"-d{options.seconds}s", "--timeout", "30s",
                 "-s", LUA, server.url + path, "--", subject.size, length, align, seed)
    figures = json.loads(result.last_line)
    wanted = length or subject.size
    if figures["errors"] or figures["bytes"] < figures["requests"] * wanted:
        raise SystemExit(f"{server.url}{path}: {figures}")
    return {"requestsPerSecond": figures["requests"] / figures["seconds"],
            "cpuMicroseconds": (processor_seconds(server.pid) - before) / max(figures["requests"], 1) * 1e6,
            "p50": figures["p50"], "p99": figures["p99"]}


def medians(samples):
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def compare(options, cairnd, nginx, subject, range_name, connections):
    """The figures of one row: rounds of both, and the ratio of each round."""
    sides = {"cairnd": (cairnd, subject.path), "nginx": (nginx, f"/{subject.file.name}")}
    samples = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in sorted(sides, reverse=number % 2):
            samples[name].append(measure(options, *sides[name], subject, *RANGES[range_name],
                                         connections, number))
    ratios = [ours["requestsPerSecond"] / theirs["requestsPerSecond"]
              for ours, theirs in zip(samples["cairnd"], samples["nginx"])]
    return {"subject": subject.name, "kind": subject.kind, "range": range_name,
            "connections": connections, "ratio": statistics.median(ratios),
            "ratios": ratios, **{name: medians(values) for name, values in samples.items()}}


def start(folder, options, processes):
    (folder / "cairn").mkdir()
    cairnd = Cairnd(folder / "cairn",
                    arguments=["--log-level", "info" if options.log else "warn"])
    processes.append(cairnd)
    (folder / "probe").write_bytes(b"probe")
    log = f"access_log {folder}/access.log;" if options.log else "access_log off;"
    nginx = Nginx(folder, "probe", f"{log} open_file_cache max=4096; ")
    processes.append(nginx)
    return cairnd, nginx


def bench(options, folder, processes, show):
    cairnd, nginx = start(folder, options, processes)
    rows = []
    for subject in make_subjects(cairnd, folder, options):
        check(subject, [(cairnd, subject.path), (nginx, f"/{subject.file.name}")], subject.name)
        for range_name in options.ranges:
            # A disk as a whole: many at once would all be under way when a measurement ends.
            for connections in options.connections if RANGES[range_name][0] else [1]:
                rows.append(compare(options, cairnd, nginx, subject, range_name, connections))
                show(rows[-1])
    return rows


# -- The report ---------------------------------------------------------------------------------------

COLUMNS = f"{'':18}{'':18}{'conn.':>6}{'cairnd /s':>12}{'nginx /s':>12}{'ratio':>8}" \
          f"{'cairnd µs':>11}{'nginx µs':>10}{'p99 µs':>9}{'nginx':>8}"


def print_row(row):
    ours, theirs = row["cairnd"], row["nginx"]
    print(f"{row['subject']:18}{row['range']:18}{row['connections']:6}"
          f"{ours['requestsPerSecond']:12,.0f}{theirs['requestsPerSecond']:12,.0f}{row['ratio']:8.2f}"
          f"{ours['cpuMicroseconds']:11.1f}{theirs['cpuMicroseconds']:10.1f}"
          f"{ours['p99']:9,.0f}{theirs['p99']:8,.0f}", flush=True)


def print_goals(rows):
    print()
    for kind, goal in GOALS.items():
        ratios = [row["ratio"] for row in rows if row["kind"] == kind and row["range"] == "64 KiB"]
        if ratios:
            print(f"{kind}, 64 KiB: {min(ratios):.2f} to {max(ratios):.2f} of nginx, "
                  f"goal at least {goal}: {'reached' if min(ratios) >= goal else 'MISSED'}")


def main():
    options = parse_arguments()
    private_home()
    processes = []
    if not options.json:
        print(f"ranges at random of {options.size} MiB, page cache warm, medians of {options.rounds} × "
              f"{options.seconds:g} s; µs: of the processor's time, for a request\n\n{COLUMNS}")
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as name:
        try:
            rows = bench(options, pathlib.Path(name), processes,
                         (lambda row: None) if options.json else print_row)
        finally:
            for process in processes[::-1]:
                process.stop()
    if options.json:
        print(json.dumps({"bench": "http", "sizeMiB": options.size, "seconds": options.seconds,
                          "rounds": options.rounds, "requestLog": options.log, "goals": GOALS,
                          "rows": rows, "time": int(time.time())}, indent=2))
    else:
        print_goals(rows)


if __name__ == "__main__":
    main()
