# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/depth: makes chains, publishes them, reads them through `cairn attach` and
through qemu-nbd, and reports (depth_report.py).

Cold: an empty block cache for each depth, everything is read over HTTP.  Warm: the second pass, one
block cache (`cairn attach --cache`) that holds what all depths show, in a client that was started anew.
qemu-nbd reads the same layers as local files, from the page cache, up to 1,000 of them, and each of its
measurements is ended after --box seconds: a full read that was not finished is given by its rate.

nbdkit's own plugins file (the base's file, from the page cache) and memory (nothing but zeros) are read in
the same rounds: they show what the way itself allows, from fio over NBD and a Unix socket through nbdkit.
So is, for each depth, a plugin that reads the same blocks from the same files of the block cache and does
nothing else (block_files_plugin.c): how much of depth is the kernel's, which has a file per layer to handle.

The rounds of what is warm go through all depths and all contenders, every other one backwards, so that
a machine that slows down slows all of them; depths are compared within a round.  A full read that is not
measured comes first, for some systems take pages back that were not used for seconds; what came from the
disk even so is reported.  A warm full read goes over the disk several times, for once is over too soon.
Before anything is measured clusters are read at random, and have to be those that the chain shows.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from nbd_bench import Contender, median, run, run_fio, start_qemu_nbd, wait_for
from cairntest import Attachment, BUILD, CAIRN, Cairnd, MIB, Process, preload, private_home, socket_of
from nbdclient import NbdClient
from deep_chain import CLUSTERS, STAMP, DeepChain
from depth_report import print_report, write_svg
from scattered_image import CLUSTER

QEMU_DEPTH_MAX = 1000
DEPTH_MAX = {"sparse": 5000, "dense": 1000}
BLOCK = 4096
CHECKED_CLUSTERS = 64
ATTACH_ROUNDS = 5
CACHE = ("--cache-size", "64G")  # nothing is evicted

RANDOM = ("--rw=randread", "--bs=4k", "--iodepth=16", "--time_based", "--norandommap")
SEQUENTIAL = ("--rw=read", "--bs=256k", "--iodepth=4")
WARM_PASSES = 4


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/bench/depth")
    parser.add_argument("--depths", type=lambda text: sorted({int(n) for n in text.split(",")}),
                        help="numbers of layers (1,10,100,500,1000)")
    parser.add_argument("--kind", choices=CLUSTERS, default="sparse",
                        help="32 clusters of 64 KiB a layer, or 16 MiB (sparse)")
    parser.add_argument("--size", type=int, help="MiB of the disk (2048)")
    parser.add_argument("--seconds", type=float, help="of each measurement of random reads (3)")
    parser.add_argument("--rounds", type=int, help="medians are over these (5)")
    parser.add_argument("--box", type=float, help="seconds at most for a full read by qemu-nbd (10)")
    parser.add_argument("--quick", action="store_true",
                        help="small figures for all that is not given: does it run?")
    parser.add_argument("--dir", type=pathlib.Path, default=os.environ.get("TMPDIR", "/var/tmp"),
                        help="where chains, store and block cache are made ($TMPDIR, /var/tmp)")
    parser.add_argument("--keep", action="store_true", help="do not remove them in the end")
    parser.add_argument("--out", type=pathlib.Path, help="write depth.json and depth.svg there, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    for name, usual, quick in (("depths", [1, 10, 100, 500, 1000], [1, 4]), ("size", 2048, 32),
                               ("seconds", 3, 0.2), ("rounds", 5, 1), ("box", 10, 1)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    deepest = DEPTH_MAX[options.kind]
    if not 1 <= options.depths[0] <= options.depths[-1] <= deepest:
        parser.error(f"--depths: {options.kind} chains have 1 to {deepest} layers")
    return options


# -- Contenders -----------------------------------------------------------------------------------

def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)[1]) << 10


class Traffic:
    """Requests and bytes since it was made, as the server's log counts them."""

    def __init__(self, server):
        self.server, self.start = server, server.log.stat().st_size

    def counts(self):
        with open(self.server.log, "rb") as log:
            log.seek(self.start)
            sent = re.findall(rb"event=request method=GET path=\S+ status=\d+ bytes_in=\d+ bytes_out=(\d+)",
                              log.read())
        return {"requests": len(sent), "bytes": sum(map(int, sent))}


class CairnDisk(Contender):
    """One depth, attached; its block cache is the one given to start with."""

    def __init__(self, server, chain, depth, cache):
        self.server, self.depth = server, depth
        self.arguments = ("attach", chain.ref(depth), "--read-only", "--cache", cache, *CACHE)
        super().__init__(f"cairn, {depth} layers",
                         lambda: Attachment(server.url, chain.folder / f"cairn-{depth}.log",
                                            *self.arguments[1:]))

    def attach_seconds(self):
        """From the command's start until a client is in at the URI that it prints."""
        begun = time.perf_counter()
        process = subprocess.Popen([CAIRN, *map(str, self.arguments)], stdout=subprocess.PIPE,
                                   env=dict(os.environ, CAIRN_SERVER=self.server.url, **preload()))
        with process:
            uri = process.stdout.readline().decode()
            is_in = uri.startswith("nbd+unix:") and answers(socket_of(uri))
            seconds = time.perf_counter() - begun
            process.terminate()
        if not is_in:
            raise SystemExit(f"{self.name}: attach says {uri!r}, exit code {process.returncode}")
        return seconds

    def memory(self):
        return resident(self.process.nbdkit_pid)


class QemuDisk(Contender):
    def __init__(self, chain, depth):
        self.depth, self.folder, self.top = depth, chain.folder, chain.file(depth - 1)
        super().__init__(f"qemu-nbd, {depth} layers",
                         lambda: start_qemu_nbd(chain.folder, f"qemu-{depth}", self.top, "-r"))

    def attach_seconds(self):
        path = self.folder / "attach.sock"
        begun = time.perf_counter()
        process = Process(["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", path, self.top],
                          self.folder / "qemu-attach.log")
        while process.check_running() and not answers(path):
            time.sleep(0.0005)
        seconds = time.perf_counter() - begun
        process.kill()
        path.unlink(missing_ok=True)
        return seconds

    def memory(self):
        return resident(self.process.pid)

    def stop(self):
        """A deep chain takes minutes to end as it is asked to, and there is nothing to save."""
        self.kill()


class NbdkitDisk(Contender):
    """A plugin, run with the arguments given."""

    def __init__(self, folder, name, plugin, *arguments, env=None):
        self.plugin, self.socket, self.env = name, folder / f"nbdkit-{name}.sock", env
        self.command = ["nbdkit", "-f", "-r", "-U", self.socket, plugin, *arguments]
        self.log = folder / f"nbdkit-{name}.log"
        super().__init__(f"nbdkit {name}", self.start_nbdkit)

    def start_nbdkit(self):
        self.socket.unlink(missing_ok=True)
        process = Process(self.command, self.log, env=self.env)
        wait_for(lambda: process.check_running() and answers(self.socket), f"{self.name}'s socket")
        process.uri = f"nbd+unix:///?socket={self.socket}"
        process.socket = str(self.socket)
        return process


class BlockFilesDisk(NbdkitDisk):
    """What a disk shows, read from the files of its block cache, which holds all of it, and nothing else."""

    def __init__(self, disk, chain, cache):
        self.depth, self.disk, self.chain, self.cache = disk.depth, disk, chain, cache
        self.list = chain.folder / f"block-files-{disk.depth}"
        super().__init__(chain.folder, f"files-{disk.depth}",
                         BUILD / "lib" / "bench-block-files-plugin.so", f"list={self.list}",
                         env=preload())

    def write_list(self):
        """The files, and for each cluster of the disk the number of its file and its offset in that layer."""
        extents = run(CAIRN, "map", "--json", self.chain.ref(self.depth),
                      env={"CAIRN_SERVER": self.disk.server.url}).json()
        numbers = {layer: number for number, layer in enumerate({e["layer"] for e in extents})}
        places = (f"{numbers[e['layer']]} {e['offset'] + done}"
                  for e in extents for done in range(0, e["length"], CLUSTER))
        names = (self.cache / f"{layer.removeprefix('sha256:')}.blocks" for layer in numbers)
        self.list.write_text("\n".join([str(len(numbers)), *map(str, names), *places]) + "\n")


def answers(path):
    """Whether a client gets in there.  That it can connect says little: qemu-nbd listens before it opens
    its images."""
    with contextlib.suppress(OSError):
        NbdClient(str(path)).close()
        return True
    return False


# -- Measurements ---------------------------------------------------------------------------------

def random_reads(contender, options):
    """Reads per second."""
    job = contender.measure(options.seconds, f"--size={options.size}M", *RANDOM)
    return job and job["read"]["iops"]


def full_read(contender, options, box, passes=1):
    """Bytes per second.  qemu-nbd takes seconds for one read of a deep chain."""
    job = run_fio(contender.ensure().uri, box, f"--size={options.size}M", f"--loops={passes}",
                  *SEQUENTIAL, slack=60)
    return job["read"]["io_bytes"] / (job["read"]["runtime"] / 1000)


def disk_bytes(contender):
    """What the contender's process has read from a real disk."""
    process = contender.ensure()
    text = pathlib.Path(f"/proc/{getattr(process, 'nbdkit_pid', process.pid)}/io").read_text()
    return int(re.search(r"^read_bytes: (\d+)$", text, re.M)[1])


def check_content(chain, disk):
    stamps = chain.stamps(disk.depth)
    client = NbdClient(disk.ensure().socket)
    for cluster in random.sample(range(chain.nr_clusters), min(CHECKED_CLUSTERS, chain.nr_clusters)):
        got = client.read(cluster * CLUSTER, BLOCK)[:STAMP.size]
        if got != stamps[cluster]:
            raise SystemExit(f"{disk.name}: cluster {cluster} begins {got.hex()}, "
                             f"expected {stamps[cluster].hex()}: layer and number")
    client.close()


def measure_attach(options, contender):
    rounds = ATTACH_ROUNDS if options.rounds > 1 else 1
    return median([contender.attach_seconds() for _ in range(rounds)])


def measure_cold(options, server, chain, depth, caches):
    """From an empty block cache on: attach, random reads, and, empty again, a full read."""
    figures = {}
    disk = CairnDisk(server, chain, depth, caches / "cold")
    try:
        traffic = Traffic(server)
        disk.ensure()
        figures["attach"] = traffic.counts() | {"residentBytes": disk.memory()}
        check_content(chain, disk)
        traffic = Traffic(server)
        figures["randomReads"] = random_reads(disk, options)
        figures["random"] = traffic.counts()
        disk.stop()
        shutil.rmtree(caches / "cold")
        traffic = Traffic(server)
        figures["bytesPerSecond"] = full_read(disk, options, 600)
        figures["full"] = traffic.counts() | {"residentBytes": disk.memory()}
        figures["serverResidentBytes"] = resident(server.pid)
    finally:
        disk.stop()
        shutil.rmtree(caches / "cold", ignore_errors=True)
    figures["attachSeconds"] = measure_attach(options, disk)
    shutil.rmtree(caches / "cold")
    return figures


def measure_warm_round(options, contender):
    if isinstance(contender, QemuDisk):
        return {"bytesPerSecond": full_read(contender, options, options.box, WARM_PASSES),
                "randomReads": random_reads(contender, options)}
    full_read(contender, options, 600)
    before = disk_bytes(contender)
    return {"bytesPerSecond": full_read(contender, options, 600, WARM_PASSES),
            "randomReads": random_reads(contender, options),
            "diskBytes": disk_bytes(contender) - before}


def measure_warm(options, contenders):
    """{contender: {"randomReads": [of each round], "bytesPerSecond": …}}"""
    samples = {contender: collections.defaultdict(list) for contender in contenders}
    for number in range(options.rounds):
        for contender in contenders[::-1] if number % 2 else contenders:
            for what, figure in measure_warm_round(options, contender).items():
                samples[contender][what].append(figure)
    return samples


def fill_cache(disk):
    """Bring all that the disk shows into its block cache, and begin anew."""
    run("nbdcopy", disk.ensure().uri, "null:", timeout=600)
    disk.stop()
    disk.ensure()


def summary(samples, shallowest):
    """Medians; and how large a figure is beside the shallowest chain's of the same round."""
    result = {}
    for what, values in samples.items():
        pairs = [(a, b) for a, b in zip(values, shallowest[what]) if a and b]
        result[what] = median(values)
        result[f"{what}OfShallowest"] = median([a / b for a, b in pairs])
    return result


def measure_all(options, server, chain, caches):
    """One entry of figures for each depth."""
    cold = {depth: measure_cold(options, server, chain, depth, caches) for depth in options.depths}
    ours = [CairnDisk(server, chain, depth, caches / "warm") for depth in options.depths]
    theirs = [QemuDisk(chain, depth) for depth in options.depths if depth <= QEMU_DEPTH_MAX]
    files = [BlockFilesDisk(disk, chain, caches / "warm") for disk in ours]
    ways = [NbdkitDisk(chain.folder, "file", "file", chain.file(0)),
            NbdkitDisk(chain.folder, "memory", "memory", f"{options.size}M")]
    try:
        for disk in ours:
            fill_cache(disk)
        for disk in files:
            disk.write_list()
            check_content(chain, disk)
        traffic = Traffic(server)
        samples = measure_warm(options, ours + files + theirs + ways)
        warm_traffic = traffic.counts()
        memory = {disk: disk.memory() for disk in ours + theirs}
    finally:
        for disk in ours + files + theirs + ways:
            disk.stop()
    attach = {disk: measure_attach(options, disk) for disk in ours + theirs}
    by_depth = {depth: {"depth": depth, "cairn": {"cold": cold[depth]}} for depth in options.depths}
    for group, name in ((ours, "cairn"), (theirs, "qemu")):
        for disk in group:
            entry = by_depth[disk.depth].setdefault(name, {})
            figures = summary(samples[disk], samples[group[0]])
            figures |= {"residentBytes": memory[disk], "attachSeconds": attach[disk]}
            entry.update({"warm": figures} if name == "cairn" else figures)
    for disk in files:
        by_depth[disk.depth]["files"] = summary(samples[disk], samples[files[0]])
    return {"depths": list(by_depth.values()), "warmTraffic": warm_traffic,
            "nbdkit": {way.plugin: {what: median(values) for what, values in samples[way].items()}
                       for way in ways}}


def publish_all(options, server, chain):
    """Seconds and the server's memory for each depth."""
    published = {}
    for depth in options.depths:
        begun = time.monotonic()
        chain.publish(server, depth)
        published[depth] = {"publishSeconds": time.monotonic() - begun,
                            "serverResidentBytes": resident(server.pid)}
    return published


def bench(options, folder):
    for name in ("server", "chain", "caches"):
        (folder / name).mkdir()
    chain = DeepChain(folder / "chain", options.kind, options.size * MIB, QEMU_DEPTH_MAX)
    server = Cairnd(folder / "server")
    try:
        published = publish_all(options, server, chain)
        figures = measure_all(options, server, chain, folder / "caches")
        figures["serverResidentBytes"] = resident(server.pid)
    finally:
        server.stop(code=None)
    for entry in figures["depths"]:
        entry |= published[entry["depth"]]
    return {"bench": "depth", "kind": options.kind, "sizeMiB": options.size,
            "seconds": options.seconds, "rounds": options.rounds, "boxSeconds": options.box,
            "time": int(time.time())} | figures


def allow_many_files():
    """qemu-nbd has all layers open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def report(options, figures):
    text = json.dumps(figures, indent=2)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "depth.json").write_text(text + "\n")
        write_svg(options.out / "depth.svg", figures)
    if options.json:
        print(text)
    else:
        print_report(figures)


def main():
    options = parse_arguments()
    private_home()
    allow_many_files()
    options.dir.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cairn-bench", dir=options.dir))
    try:
        report(options, bench(options, folder))
    finally:
        if options.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
