# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/fleet: so many clients of one host start the same disk at the same time, as a fleet
of machines does that is switched on.

Each client is a `cairn attach` with a disk folder of its own, on one chain (a base full of random data under
nine layers that hold clusters in the places that a boot reads), and a process that replays the recorded
boot of boot.trace over NBD: reads that were in flight together are sent together, think times are shortened
(--think).  The checksum of each read is compared with that of the same place in what qemu-img makes of the
chain: a wrong byte ends the bench.

Two servers share one store, which is 10 ms away (cairnd --store slow:10:fs:…: each call and each read of an
object takes that longer, and there is no sendfile, as if it were an S3 bucket; bandwidth is not limited), and
one Redis.  They are started for each row, with empty memory, after a third server has published the chain.
Half of the clients ask the one server first, half the other.  The cache folder is empty, too, at the start
of each row.  Servers wait a second for Redis instead of 10 ms, for here all of them share one machine's
processors: what is measured is who has to be asked.

What a row tells:
  fetched     bytes of layers that the servers read from the store
  times       that, divided by the bytes of blocks that the host's cache holds in the end: 1 is each byte
              once.  Without the cache: divided by what one client has fetched
  index, other  bytes of index objects, and of manifests and tags, read from the store
  memory, Redis, store  look-ups of the servers' index tiers that were hits, of those that got there
  host        blocks that were found in the host's cache, of those that were looked for; who comes to a block
              that another client is fetching does not find it at first, and looks again
  attach, replay  seconds of the slowest client; clients attach eight at a time, and replay all at once

Then a server that has just started serves the first read of the chain, with and without Redis: it must build
no index, and read of the layers only what it was asked for.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import statistics
import struct
import sys
import tempfile
import time
import zlib

from nbd_bench import run  # which finds the system tests' modules
import boot_trace
from cairntest import Attachment, Cairnd, KIB, MIB, Parallel, private_home, wait_for
from nbdclient import NbdClient, READ, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC
from redis import Redis

REF, DEPTH, CLUSTER = "fleet/boot:v1", 10, 64 * KIB
CLUSTERS = 24  # of each layer above the base
GOAL = 1.001  # times that a byte is fetched
DEADLINE = 300
PATIENT = ("--redis-deadline", "1000")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/fleet")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N",
                        help="how many clients (1 4 16 64)")
    parser.add_argument("--latency", type=int, default=10, help="ms to the store (10)")
    parser.add_argument("--think", type=float, default=0.1,
                        help="factor for the think times of the trace (0.1)")
    parser.add_argument("--seconds", type=float, help="begin no row after this time")
    parser.add_argument("--quick", action="store_true",
                        help="1 and 4 clients, 1 ms, a part of the boot, no think times")
    parser.add_argument("--record", action="store_true",
                        help="boot a guest and write boot.trace anew, and nothing else")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.latency, options.think = [1, 4], 1, 0
    return options


# -- The disk -------------------------------------------------------------------------------------

def make_chain(folder, size, reads):
    """Ten layers of random data; the path of the top."""
    generator = random.Random(1)
    raw, top = folder / "base.raw", folder / "layer0.qcow2"
    with open(raw, "wb") as out:
        for _ in range(size // MIB):
            out.write(generator.randbytes(MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, top)
    raw.unlink()
    places = sorted({read.offset // CLUSTER for read in reads})
    for ordinal in range(1, DEPTH):
        below, top = top, folder / f"layer{ordinal}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, top)
        chosen = generator.sample(places, min(CLUSTERS, len(places)))
        run("qemu-io", "-f", "qcow2", top,
            *(word for place in chosen
              for word in ("-c", f"write -q -P {generator.randrange(1, 256)} {place * 64}k 64k")))
    return top


class Expected:
    """The trace, with the checksum of what each read must give."""

    def __init__(self, folder, top, reads):
        oracle = folder / "oracle.raw"
        run("qemu-img", "convert", "-O", "raw", top, oracle)
        with open(oracle, "rb") as disk:
            for read in reads:
                disk.seek(read.offset)
                read.checksum = zlib.crc32(disk.read(read.length))
        oracle.unlink()
        self.bursts = list(boot_trace.bursts(reads))
        self.nr_reads = len(reads)
        self.nr_bytes = sum(read.length for read in reads)


# -- Clients --------------------------------------------------------------------------------------

class Replayer(NbdClient):
    """Sends reads that were in flight together at once, and looks at what comes back."""

    def replay(self, bursts, think):
        for burst in bursts:
            time.sleep(burst[0].think * think / 1e6)
            self.read_together(burst)

    def read_together(self, burst):
        requests = {}
        for read in burst:
            self.handle += 1
            requests[self.handle] = read
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, self.handle,
                                            read.offset, read.length))
        while requests:
            magic, error, handle = struct.unpack(">IIQ", self._receive(16))
            read = requests.pop(handle)
            if magic != SIMPLE_REPLY_MAGIC or error:
                raise OSError(error, f"read of {read.length} bytes at {read.offset} failed")
            if zlib.crc32(self._receive(read.length)) != read.checksum:
                raise AssertionError(f"wrong bytes: {read.length} at {read.offset}")


def replay(path, bursts, think, ready, results):
    """What a client's process does; the seconds that it took, or what went wrong, to results."""
    try:
        client = Replayer(path, DEADLINE)
        ready.wait(DEADLINE)
        started = time.monotonic()
        client.replay(bursts, think)
        results.put(time.monotonic() - started)
        client.close()
    except Exception as error:  # for the parent to raise
        results.put(f"{type(error).__name__}: {error}")


class Clients:
    """Disks of one host, attached."""

    def __init__(self, folder, servers, nr, cached):
        self.folder, self.servers, self.cached = folder, servers, cached
        self.attached, self.attach_seconds = {}, []
        try:
            Parallel(8).each(self._attach, range(nr))
        except BaseException:
            self.end()
            raise

    def _attach(self, number):
        urls = [server.url for server in self.servers]
        turned = urls[number % 2:] + urls[:number % 2]
        cache = ("--cache", self.folder / "cache") if self.cached else ()
        started = time.monotonic()
        self.attached[number] = Attachment(",".join(turned), self.folder / f"{number}.log", REF,
                                           "--disk", self.disk(number), *cache)
        self.attach_seconds.append(time.monotonic() - started)

    def disk(self, number):
        return self.folder / f"disk{number}"

    def replay(self, bursts, think):
        """Seconds of each client."""
        context = multiprocessing.get_context("fork")
        ready, results = context.Barrier(len(self.attached)), context.SimpleQueue()
        processes = [context.Process(target=replay, daemon=True,
                                     args=(a.socket, bursts, think, ready, results))
                     for a in self.attached.values()]
        for process in processes:
            process.start()
        seconds = [results.get() for _ in processes]
        for process in processes:
            process.join()
        for failure in seconds:
            if isinstance(failure, str):
                raise SystemExit(f"a client failed: {failure}")
        return seconds

    def facts(self):
        """What the disks say of what they have read from servers."""
        return [self.servers[0].cairn("info", "--json", self.disk(number)).json()["remote"]
                for number in self.attached]

    def cached_bytes(self):
        """Bytes of blocks in the cache folder: slots that are not empty (client/block_cache_internal.h)."""
        return sum(count_blocks(path) for path in (self.folder / "cache").glob("*.blocks")) * 4096

    def stop(self):
        Parallel(8).each(Attachment.stop, self.attached.values())

    def end(self):
        for attachment in self.attached.values():
            attachment.end()


def count_blocks(path):
    """Blocks that a layer's file in the cache folder holds."""
    header, segment, block, slot = 4096, 512, 4096, 8 + 4096
    with open(path, "rb") as blocks:
        length = os.fstat(blocks.fileno()).st_size
        # The stamps before the slots depend on the layer's size, which the slots' number tells, too.
        for nr in range(max(0, (length - header) // slot - 8), length // slot + 1):
            stamps = -(-(-(-nr // segment) * 4) // block) * block
            if header + stamps + nr * slot == length:
                break
        else:
            raise SystemExit(f"{path}: {length} bytes are not what a file of the block cache has")
        blocks.seek(header + stamps)
        return sum(blocks.read(slot)[:8] != bytes(8) for _ in range(nr))


# -- Servers --------------------------------------------------------------------------------------

class Site:
    """One store, one Redis, and servers that come and go."""

    def __init__(self, folder, latency):
        self.folder, self.latency = folder, latency
        self.redis = Redis(folder / "redis")
        self.running = []

    def server(self, name, with_redis, delay=None):
        arguments = ("--redis", self.redis.address, *PATIENT) if with_redis else ()
        (self.folder / name).mkdir(exist_ok=True)
        server = Cairnd(self.folder / name, store=self.folder / "store", arguments=arguments,
                        delay=delay)
        self.running.append(server)
        return server

    @contextlib.contextmanager
    def servers(self, nr, with_redis):
        """Just started, and far from the store."""
        started = [self.server(f"server{n}", with_redis, self.latency) for n in range(nr)]
        yield started
        for server in started:
            self.running.remove(server)
            server.stop()

    def publish(self, top):
        publisher = self.server("publisher", with_redis=True)
        publisher.push(top, REF)
        wait_for(lambda: len(self.redis.keys("cairn:1:l1:*")) == DEPTH, "the index in Redis")
        self.running.remove(publisher)
        publisher.stop()

    def end(self):
        for server in self.running:
            server.kill()
        self.redis.kill()


def add_up(servers):
    """Figures of several servers, added."""
    total = {}
    for server in servers:
        for name, value in server.metrics().items():
            total[name] = total.get(name, 0) + value
    return total


def rate(hits, misses):
    return hits / (hits + misses) if hits + misses else None


def tier_rate(metrics, tier):
    hits, misses = (metrics.get(f'cairn_meta_cache_{what}_total{{tier="{tier}"}}', 0)
                    for what in ("hits", "misses"))
    return rate(hits, misses)


def store_figures(metrics):
    read = {kind: int(metrics[f'cairn_store_read_bytes_total{{objects="{kind}"}}'])
            for kind in ("blobs", "index", "repos")}
    calls = {call: int(metrics[f'cairn_store_call_seconds_count{{call="{call}"}}'])
             for call in ("head", "get", "open", "read")}
    return {"layerBytes": read["blobs"], "indexBytes": read["index"], "otherBytes": read["repos"],
            "calls": calls, "builds": int(metrics["cairn_index_builds_total"]),
            "hitRates": {tier: tier_rate(metrics, tier) for tier in ("memory", "redis", "store")}}


# -- Measuring ------------------------------------------------------------------------------------

def measure_row(site, expected, options, nr, cached, with_redis):
    with site.servers(2, with_redis) as servers, \
            tempfile.TemporaryDirectory(prefix="row", dir=site.folder) as name:
        clients = Clients(pathlib.Path(name), servers, nr, cached)
        try:
            seconds = clients.replay(expected.bursts, options.think)
            facts = clients.facts()
            row = {"clients": nr, "hostCache": cached, "redis": with_redis,
                   **store_figures(add_up(servers)),
                   "attachSeconds": max(clients.attach_seconds),
                   "slowestSeconds": max(seconds), "medianSeconds": statistics.median(seconds),
                   "requests": sum(fact["reads"] for fact in facts)}
            if cached:
                blocks = [fact["blockCache"] for fact in facts]
                row["hitRates"]["host"] = rate(sum(b["hits"] for b in blocks),
                                               sum(b["misses"] for b in blocks))
                row["cachedBytes"] = clients.cached_bytes()
            clients.stop()
            return row
        finally:
            clients.end()


def measure_first_read(site, expected, with_redis):
    """What a server that has just started reads from the store for the first read of a chain."""
    with site.servers(1, with_redis) as (server,):
        read = max(expected.bursts, key=lambda burst: burst[0].length)[0]
        started = time.monotonic()
        answer = server.http.get(f"/v1/disks/{REF}/data",
                                 Range=f"bytes={read.offset}-{read.offset + read.length - 1}")
        seconds = time.monotonic() - started
        if answer.status != 206 or zlib.crc32(answer.body) != read.checksum:
            raise SystemExit(f"first read: status {answer.status}, or wrong bytes")
        return {"redis": with_redis, "bytes": read.length, "seconds": seconds,
                **store_figures(server.metrics())}


def times_fetched(row, rows):
    """How often each byte was fetched."""
    if row["hostCache"]:
        return row["layerBytes"] / row["cachedBytes"]
    alone = next((r["layerBytes"] for r in rows if r["clients"] == 1 and not r["hostCache"]), None)
    return row["layerBytes"] / alone if alone else None


def measure_all(site, expected, options):
    rows, started = [], time.monotonic()
    for cached in (False, True):
        for with_redis in (False, True):
            for nr in options.clients:
                if options.seconds and time.monotonic() - started > options.seconds:
                    continue
                rows.append(measure_row(site, expected, options, nr, cached, with_redis))
                rows[-1]["timesFetched"] = times_fetched(rows[-1], rows)
    return rows, [measure_first_read(site, expected, with_redis) for with_redis in (False, True)]


# -- Telling --------------------------------------------------------------------------------------

def percent(value):
    return "–" if value is None else f"{100 * value:.1f} %"


def print_table(options, expected, rows, firsts):
    print(f"a boot of {expected.nr_reads} reads, {expected.nr_bytes / MIB:.1f} MiB, from a chain of "
          f"{DEPTH} layers; think times × {options.think:g};\ntwo servers, {options.latency} ms from "
          "their store; read from the store: MiB of layers, KiB of the rest; hit rates; seconds of the "
          "slowest client\n")
    columns = ("host cache", "Redis", "clients", "fetched", "times", "index", "other", "memory",
               "Redis", "store", "host", "attach", "replay")
    print("".join(f"{name:>11}" for name in columns))
    for row in rows:
        rates = row["hitRates"]
        times = row["timesFetched"]
        cells = ["on" if row["hostCache"] else "off", "on" if row["redis"] else "off",
                 row["clients"], f"{row['layerBytes'] / MIB:.2f}",
                 "–" if times is None else f"{times:.3f}",
                 *(f"{row[key] / KIB:.1f}" for key in ("indexBytes", "otherBytes")),
                 *(percent(rates.get(tier)) for tier in ("memory", "redis", "store", "host")),
                 f"{row['attachSeconds']:.2f}", f"{row['slowestSeconds']:.2f}"]
        print("".join(f"{text:>11}" for text in cells))
    print("\na server that has just started, first read:")
    for first in firsts:
        print(f"  Redis {'on: ' if first['redis'] else 'off:'} {first['bytes']} bytes in "
              f"{first['seconds']:.3f} s, read of layers {first['layerBytes']}, of index objects "
              f"{first['indexBytes']}, indexes built {first['builds']}")
    worst = max((row["timesFetched"] for row in rows if row["hostCache"]), default=None)
    if worst is not None:
        print(f"\ngoal: with the host cache each byte is fetched once: {worst:.3f} times at most, "
              f"{'met' if worst < GOAL else 'missed'}")
    print("goal: a cold server's first read reads no layer's tables: "
          f"{'missed' if faults(rows, firsts) else 'met'}")


def faults(rows, firsts):
    """Goals of issue 4 that do not depend on how fast anything is, and are missed."""
    found = [f"{row['clients']} clients, cache {row['hostCache']}, Redis {row['redis']}: "
             f"{row['builds']} indexes built" for row in rows if row["builds"]]
    found += [f"a cold server read {first['layerBytes']} bytes of layers for {first['bytes']}, and "
              f"built {first['builds']} indexes" for first in firsts
              if first["builds"] or first["layerBytes"] > first["bytes"]]
    found += [f"a cold server read {first['indexBytes']} bytes of index objects beside Redis"
              for first in firsts if first["redis"] and first["indexBytes"]]
    return found


def report(options, expected, rows, firsts):
    if options.json:
        print(json.dumps({"bench": "fleet", "reads": expected.nr_reads, "bytes": expected.nr_bytes,
                          "depth": DEPTH, "latencyMs": options.latency, "think": options.think,
                          "rows": rows, "firstReads": firsts, "time": int(time.time())}, indent=2))
    else:
        print_table(options, expected, rows, firsts)
    if faults(rows, firsts):
        sys.exit("\n".join(faults(rows, firsts)))


def main():
    options = parse_arguments()
    private_home()
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as name:
        folder = pathlib.Path(name)
        if options.record:
            boot_trace.record(folder, boot_trace.TRACE)
            return
        size, reads = boot_trace.load()
        reads = reads[:len(reads) // 8] if options.quick else reads
        (folder / "chain").mkdir()
        top = make_chain(folder / "chain", size, reads)
        expected = Expected(folder, top, reads)
        site = Site(folder, options.latency)
        try:
            site.publish(top)
            shutil.rmtree(folder / "chain")
            rows, firsts = measure_all(site, expected, options)
        finally:
            site.end()
    report(options, expected, rows, firsts)


if __name__ == "__main__":
    main()
