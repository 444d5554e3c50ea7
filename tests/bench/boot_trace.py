# SPDX-License-Identifier: Apache-2.0
"""A boot as a disk sees it: the reads of a guest, in a text file, and how such a file is recorded.

boot.trace has a line `size BYTES` and then one line for each read, in the order of their starts:

    THINK SECTOR COUNT      sectors of 512 bytes; THINK: microseconds that the guest did something
                            else since the answer to all reads before
    & SECTOR COUNT          asked for while the read before was not answered yet

It is recorded from a real guest (tests/system/guest.py): Linux boots from a chain of three layers on a
cairnd, through nbdkit with the cairn plugin and nbdkit's log filter, whose log is turned into those lines;
what the guest writes goes to an active layer and is left out.  The guest starts eight programs of 2 MiB
each and reads a hundred small files, as services and their configuration would.  Offsets and lengths are
the guest's.  Think times are those of QEMU's emulation (TCG) if there is no KVM, and so much longer than on
real hardware: replays shorten them.
"""

import datetime
import pathlib
import re
import shutil

from nbd_bench import Process, wait_for  # which finds the system tests' modules
import guest
from cairntest import BUILD, Cairnd

SECTOR = 512
TRACE = pathlib.Path(__file__).with_name("boot.trace")
SERVICES, SETTINGS = 8, 100

BOOT_JOB = """
i=1
while [ $i -le %d ]; do /opt/service$i true; i=$((i + 1)); done
cat /etc/settings/* > /dev/null
""" % SERVICES


class Read:
    """One read: think is None for one that did not wait for those before it."""

    def __init__(self, think, offset, length):
        self.think, self.offset, self.length = think, offset, length


# -- Files ----------------------------------------------------------------------------------------

def load(path=TRACE):
    """The disk's size, and reads."""
    size, reads = None, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words or words[0] == "#":
            continue
        if words[0] == "size":
            size = int(words[1])
            continue
        think = None if words[0] == "&" else int(words[0])
        offset, length = (int(word) * SECTOR for word in words[1:])
        if not size or length == 0 or offset + length > size:
            raise SystemExit(f"{path}:{number}: a read of {length} bytes at {offset} "
                             f"is not in the disk's {size}")
        reads.append(Read(think, offset, length))
    return size, reads


def save(path, size, reads, comment):
    lines = [f"# {line}" for line in comment] + [f"size {size}"]
    lines += [f"{'&' if read.think is None else read.think} {read.offset // SECTOR} "
              f"{read.length // SECTOR}" for read in reads]
    path.write_text("\n".join(lines) + "\n")


def bursts(reads):
    """Reads that are in flight together, as lists."""
    together = []
    for read in reads:
        if read.think is not None and together:
            yield together
            together = []
        together.append(read)
    if together:
        yield together


# -- Recording ------------------------------------------------------------------------------------

def furnish(root):
    """Programs and settings, for a boot that reads more than one program."""
    program = pathlib.Path(shutil.which("busybox")).read_bytes()
    (root / "opt").mkdir()
    (root / "etc" / "settings").mkdir()
    for number in range(1, SERVICES + 1):
        path = root / "opt" / f"service{number}"
        path.write_bytes(program)
        path.chmod(0o755)
    for number in range(SETTINGS):
        (root / "etc" / "settings" / f"{number:03}").write_text(f"setting = {number}\n" * 50)
    (root / "etc" / "jobs" / "boot").write_text(BOOT_JOB)


def parse_log(text):
    """The reads in a log of nbdkit's log filter."""
    entry = re.compile(r"^(\S+ \S+) connection=\d+ (\.\.\.)?Read id=(\d+) "
                       r"(?:offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))?", re.M)
    reads, in_flight, idle_since = [], set(), None
    for stamp, answer, number, offset, count in entry.findall(text):
        now = datetime.datetime.fromisoformat(stamp)
        if answer:
            in_flight.discard(number)
            idle_since = now
            continue
        think = (now - idle_since) // datetime.timedelta(microseconds=1) if idle_since else 0
        reads.append(Read(None if in_flight else think, int(offset, 16), int(count, 16)))
        in_flight.add(number)
    return reads


def record(folder, path):
    """Boot a guest, and write what it read to path."""
    server = Cairnd(folder)
    try:
        (folder / "image").mkdir()
        server.push(guest.make_chain(folder / "image", furnish), "os/guest:v1")
        log, socket = folder / "reads.log", folder / "disk.sock"
        nbdkit = Process(["nbdkit", "-f", "--unix", socket, "--filter=log",
                          BUILD / "lib" / "nbdkit-cairn-plugin.so", "ref=os/guest:v1",
                          f"server={server.url}", f"disk={folder / 'disk'}", f"logfile={log}"],
                         folder / "nbdkit.log")
        try:
            wait_for(lambda: nbdkit.check_running() and socket.exists(), "nbdkit's socket")
            machine = guest.Guest(folder, "boot", socket, "boot")
            machine.wait(timeout=300)
            if machine.said()[-1] != "done":
                raise SystemExit(f"the guest did not boot to its end:\n{machine.describe()}")
        finally:
            nbdkit.stop()
    finally:
        server.stop()
    reads = parse_log(log.read_text())
    total = sum(read.length for read in reads)
    save(path, guest.ROOT_SIZE, reads,
         [f"A boot of Linux, {guest.accelerator()}: {len(reads)} reads, {total} bytes.",
          "Recorded by tests/bench/fleet --record; boot_trace.py says how, and what the lines mean."])
