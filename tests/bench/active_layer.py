# SPDX-License-Identifier: Apache-2.0
"""The core of tests/bench/active_layer: for each row, round and contender a fresh overlay over the same
full base (every cluster random data), one run of fio's NBD engine, and the overlay is thrown away.

Contenders:
  cairn, remote base   the base in a cairnd on this machine, read over HTTP
  cairn, local base    the base a sealed layer in the disk folder, the nearest thing to what QEMU has:
                       nothing of it is read from a server
  qemu-nbd, extended   the base a local qcow2 file, the overlay with extended_l2=on,cluster_size=128k
  qemu-nbd, plain      the same with QEMU's defaults (64 KiB clusters)

All write through the page cache (qemu-nbd --cache=writeback) and nobody asks for a flush, so what is
compared is the path.  Writes go to each place of the disk once at most; a run ends when all are
written, or its time is up.  Rewrites go to an overlay that was written full before.

With the remote base, writes of whole 4 KiB blocks must read nothing from the server.  That is
counted, by the server's log of requests and by the disk's own two counters, and if one is not 0 the
bench fails.
"""

import json
import pathlib
import re
import shutil
import sys
import tempfile
import time

from nbd_bench import (Contender, cell, make_image, median, parse_arguments, run, run_fio,
                       start_qemu_nbd, wait_for)
from cairntest import Attachment, BUILD, CAIRN, Cairnd, MIB, Process, private_home

MIXED = "4 KiB random 70 % reads, depth 16"

# fio's options; is the overlay full before; are these whole subclusters, so that nothing is read
ROWS = {
    "4 KiB random writes, depth 16": ("--rw=randwrite --bs=4k --iodepth=16", False, True),
    "4 KiB rewrites, depth 16": ("--rw=randwrite --bs=4k --iodepth=16", True, True),
    "64 KiB sequential writes, depth 4": ("--rw=write --bs=64k --iodepth=4", False, True),
    "1 MiB sequential writes, depth 4": ("--rw=write --bs=1m --iodepth=4", False, True),
    "512 B sequential writes, depth 1": ("--rw=write --bs=512 --iodepth=1", False, False),
    "512 B sequential writes, depth 16": ("--rw=write --bs=512 --iodepth=16", False, False),
    MIXED: ("--rw=randrw --rwmixread=70 --bs=4k --iodepth=16", False, False),
}
GOAL = 1.3


class CairnDisk(Contender):
    """A disk folder, of which the active layer is put back to what it was for each measurement."""

    def __init__(self, name, server, folder):
        super().__init__(name, lambda: Attachment(self.server.url, self.log, "--disk", self.folder))
        self.server, self.folder, self.log = server, folder, folder.with_suffix(".log")
        self.empty = folder.with_suffix(".empty")
        shutil.copyfile(folder / "active.qcow2", self.empty)

    def reset(self):
        if self.process:
            self.process.end()
            self.process = None
        shutil.copyfile(self.empty, self.folder / "active.qcow2")
        self.log_position = len(self.server.text())

    def facts(self):
        """What the disk says that it read from beneath, and of its memory."""
        info = self.server.cairn("info", "--json", self.folder).json()
        return {"backingBytes": info["active"]["backingBytes"],
                "serverBytes": info["remote"]["readBytes"],
                "sentBytes": sent_content(self.server, self.log_position),
                "cacheBytes": info["active"]["cacheBytes"],
                "memoryBytes": memory(self.process.nbdkit_pid)}


class QemuDisk(Contender):
    def __init__(self, name, folder, base, *create):
        self.overlay = folder / f"{name.replace(', ', '-')}.qcow2"
        self.create = ("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, *create,
                       self.overlay)
        super().__init__(name, lambda: start_qemu_nbd(folder, self.overlay.stem, self.overlay,
                                                      "--cache=writeback"))

    def reset(self):
        self.kill()
        self.overlay.unlink(missing_ok=True)
        run(*self.create)

    def facts(self):
        return {"memoryBytes": memory(self.process.pid)}


def memory(pid):
    """Anonymous memory: tables, buffers, stacks; no page cache."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.M)[1]) << 10


def sent_content(server, position):
    """Bytes of blobs, which is where clients read content, that the server's log says it has sent,
    behind a position in the log."""
    lines = re.findall(r"method=GET path=\S+/blobs/\S+ status=\d+ bytes_in=\d+ bytes_out=(\d+)",
                       server.text()[position:])
    return sum(map(int, lines))


def remote_disk(folder, server, image):
    server.push(image, "bench:full")
    disk = folder / "remote"
    Attachment(server.url, folder / "make.log", "bench:full", "--disk", disk).stop()
    return CairnDisk("cairn, remote base", server, disk)


def local_disk(folder, image, size):
    """A disk whose base is a sealed layer: its server is gone when it is to be published."""
    server = Cairnd(pathlib.Path(tempfile.mkdtemp(prefix="gone", dir=folder)))
    tiny = folder / "tiny.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", tiny, f"{size}")
    server.push(tiny, "bench:tiny")
    disk = folder / "local"
    socket, store = folder / "make.sock", server.store
    nbdkit = Process(["nbdkit", "-f", "--unix", socket, BUILD / "lib" / "nbdkit-cairn-plugin.so",
                      "ref=bench:tiny", f"disk={disk}", f"server={server.url}", "deadline=100"],
                     folder / "make.log")
    wait_for(lambda: nbdkit.check_running() and (disk / "control.sock").exists(), "nbdkit")
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image,
        f"nbd+unix:///?socket={socket}")
    server.kill()
    run(CAIRN, "snapshot", disk, "bench:never", env={"CAIRN_SERVER": server.url}, code=1)
    nbdkit.stop()
    server = Cairnd(folder / "again", store=store)
    return CairnDisk("cairn, local base", server, disk), server


def start_all(folder, options, servers):
    """What is compared, in the table's order."""
    image = make_image(folder, options.size * MIB)
    for name in ("server", "again"):
        (folder / name).mkdir()
    servers.append(Cairnd(folder / "server"))
    remote = remote_disk(folder, servers[0], image)
    local, server = local_disk(folder, image, options.size * MIB)
    servers.append(server)
    return [remote, local,
            QemuDisk("qemu-nbd, extended", folder, image, "-o",
                     "extended_l2=on,cluster_size=128k"),
            QemuDisk("qemu-nbd, plain", folder, image)]


def measure(contender, options, row):
    """One run on a fresh overlay: operations per second, and facts."""
    arguments, full, _ = ROWS[row]
    contender.reset()
    contender.ensure()
    size = f"--size={options.size}M"
    if full:
        run_fio(contender.process.uri, 60, "--rw=write", "--bs=1m", "--iodepth=4", size)
    job = run_fio(contender.process.uri, options.seconds, size, *arguments.split())
    facts = contender.facts()
    contender.reset()
    return job["read"]["iops"] + job["write"]["iops"], facts


def measure_all(options, contenders):
    """{row: {name: {"iops": median, fact: largest}}}"""
    samples = {row: {c.name: [] for c in contenders} for row in ROWS}
    for _ in range(options.rounds):
        for row in ROWS:
            for contender in contenders:
                samples[row][contender.name].append(measure(contender, options, row))
    return {row: {name: summary(runs) for name, runs in by_name.items()}
            for row, by_name in samples.items()}


def summary(runs):
    facts = {key: max(facts[key] for _, facts in runs) for key in runs[0][1]}
    return {"iops": median([iops for iops, _ in runs]), **facts}


def read_too_much(figures):
    """Rows of whole subclusters for which something was read from the server."""
    counters = ("backingBytes", "serverBytes", "sentBytes")
    if not figures[MIXED]["cairn, remote base"]["sentBytes"]:
        return ["the server's log does not tell what it has sent: nothing was counted"]
    return [f"{row}: {', '.join(f'{key} {facts[key]}' for key in counters)}, expected 0"
            for row, by_name in figures.items() if ROWS[row][2]
            for facts in [by_name["cairn, remote base"]] if any(facts[key] for key in counters)]


def print_table(options, figures, names):
    print(f"operations per second, overlay over a full base of {options.size} MiB, median of "
          f"{options.rounds} × {options.seconds:g} s;\nin brackets: Cairn with a local base ÷ that; "
          f"last column: ÷ the better of QEMU's, goal {GOAL}×\n")
    print(f"{'':36}" + "".join(f"{name:>26}" for name in names) + f"{'best':>8}")
    for row, by_name in figures.items():
        ours = by_name["cairn, local base"]["iops"]
        cells = [f"{by_name[name]['iops']:,.0f}" if name.startswith("cairn")
                 else cell(ours, by_name[name]["iops"]) for name in names]
        best = max(by_name[name]["iops"] for name in names if name.startswith("qemu"))
        print(f"{row:36}" + "".join(f"{text:>26}" for text in cells) + f"{ours / best:>7.2f}×")
    print("\nmemory at the end, MiB: all of the process"
          " (of that metadata tables); read from the server, KiB\n")
    for row, by_name in figures.items():
        print(f"{row:36}" + "".join(f"{memory_cell(by_name[name]):>26}" for name in names)
              + f"{by_name[names[0]]['serverBytes'] / 1024:>8,.0f}")


def memory_cell(facts):
    text = f"{facts['memoryBytes'] / MIB:.1f}"
    return text + (f" ({facts['cacheBytes'] / MIB:.1f})" if "cacheBytes" in facts else "")


def main():
    options = parse_arguments("tests/bench/active_layer", 1024, 1.5, 3)
    private_home()
    servers, contenders = [], []
    with tempfile.TemporaryDirectory(prefix="cairn-bench") as name:
        folder = pathlib.Path(name)
        try:
            contenders = start_all(folder, options, servers)
            figures = measure_all(options, contenders)
        finally:
            for contender in contenders:
                contender.reset()
            for server in servers[::-1]:
                server.stop()
    if options.json:
        print(json.dumps({"bench": "active_layer", "sizeMiB": options.size,
                          "seconds": options.seconds, "rounds": options.rounds,
                          "unit": "operations/s", "goal": GOAL, "figures": figures,
                          "time": int(time.time())}, indent=2))
    else:
        print_table(options, figures, [contender.name for contender in contenders])
    if read_too_much(figures):
        sys.exit("\n".join(read_too_much(figures)))


if __name__ == "__main__":
    main()
